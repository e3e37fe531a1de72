/* SPDX-License-Identifier: Apache-2.0 */
/* 128-bit object ids: never reused, written as 32 hexadecimal digits. All zero means "none".
 * The random bytes come from the caller, so that simulated clusters are deterministic. */
#pragma once
#include "base/util.h"

enum { ID_SIZE = 16, ID_TEXT = 33 };

struct id {
	uint8_t at[ID_SIZE];
};

int id_compare(const struct id *a, const struct id *b);
bool id_is_none(const struct id *id);
/* 32 digits and NUL into `buf`; returns `buf`. */
char *id_show(const struct id *id, char buf[ID_TEXT]);
/* True when `text` is exactly 32 hexadecimal digits. */
bool id_parse(const char *text, struct id *ret);
