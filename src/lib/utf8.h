/* SPDX-License-Identifier: Apache-2.0 */
/* Length of the valid UTF-8 sequence that begins at `at` (RFC 3629: no overlong forms, no
 * surrogates, at most U+10FFFF), or 0 when there is none in `left` bytes. Pure. */
#pragma once
#include "base/util.h"

static inline size_t utf8_sequence(const char *text, size_t left)
{
	const uint8_t *at = (const uint8_t *)text;
	if (!left || (at[0] >= 0x80 && at[0] < 0xc2) || at[0] > 0xf4)
		return 0;
	size_t len = at[0] < 0x80 ? 1 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
	if (left < len)
		return 0;
	for (size_t i = 1; i < len; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
	    (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f))
		return 0;
	return len;
}
