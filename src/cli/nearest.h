/* SPDX-License-Identifier: Apache-2.0 */
/* "Did you mean": edits that turn one word into the other, neighbours exchanged counting once
 * (optimal string alignment). Words over NEAREST_MAX bytes are never near. Pure. */
#pragma once
#include "base/util.h"

enum { NEAREST_MAX = 40 };

unsigned word_distance(const char *a, const char *b);

/* Keep in *best whichever is nearer to `typed`, *best or `word`; start with NULL. Words so far away
 * that nobody would have meant them are never kept. */
void nearest_try(const char *typed, const char *word, const char **best);
