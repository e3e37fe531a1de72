/* SPDX-License-Identifier: Apache-2.0 */
#include "base/id.h"

int id_compare(const struct id *a, const struct id *b)
{
	return memcmp(a->at, b->at, ID_SIZE);
}

bool id_is_none(const struct id *id)
{
	static const struct id none;
	return id_compare(id, &none) == 0;
}

char *id_show(const struct id *id, char buf[ID_TEXT])
{
	static const char digits[] = "0123456789abcdef";
	for (int i = 0; i < ID_SIZE; i++) {
		buf[2 * i] = digits[id->at[i] >> 4];
		buf[2 * i + 1] = digits[id->at[i] & 15];
	}
	buf[ID_TEXT - 1] = '\0';
	return buf;
}

static int digit_value(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

bool id_parse(const char *text, struct id *ret)
{
	if (strlen(text) != ID_TEXT - 1)
		return false;
	struct id id;
	for (int i = 0; i < ID_SIZE; i++) {
		int high = digit_value(text[2 * i]), low = digit_value(text[2 * i + 1]);
		if (high < 0 || low < 0)
			return false;
		id.at[i] = (uint8_t)(high << 4 | low);
	}
	*ret = id;
	return true;
}
