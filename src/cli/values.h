/* SPDX-License-Identifier: Apache-2.0 */
/* One value as typed becomes one field of a message. Pure. */
#pragma once
#include "cli/args.h"

/* True when `word` is one of "a|b|c". */
bool value_is_among(const char *word, const char *allowed);
