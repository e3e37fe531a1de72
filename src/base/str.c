/* SPDX-License-Identifier: Apache-2.0 */
#include "base/str.h"

#include <assert.h>
#include <stdio.h>

void str_reserve(struct str *s, size_t more)
{
	size_t need = s->len + more + 1;
	assert(need > s->len);
	if (need <= s->cap)
		return;
	size_t cap = s->cap ? s->cap : 64;
	while (cap < need)
		cap *= 2;
	s->at = xrealloc(s->at, cap);
	s->cap = cap;
}

void str_add(struct str *s, const void *bytes, size_t len)
{
	str_reserve(s, len);
	if (len)
		memcpy(s->at + s->len, bytes, len);
	s->len += len;
	s->at[s->len] = '\0';
}

void str_puts(struct str *s, const char *text)
{
	str_add(s, text, strlen(text));
}

void str_vprintf(struct str *s, const char *fmt, va_list args)
{
	va_list again;
	va_copy(again, args);
	int need = vsnprintf(NULL, 0, fmt, args);
	assert(need >= 0);
	str_reserve(s, (size_t)need);
	(void)vsnprintf(s->at + s->len, (size_t)need + 1, fmt, again);
	va_end(again);
	s->len += (size_t)need;
}

void str_printf(struct str *s, const char *fmt, ...)
{
	va_list args;
	va_start(args, fmt);
	str_vprintf(s, fmt, args);
	va_end(args);
}

void str_cut(struct str *s, size_t count)
{
	assert(count <= s->len);
	if (!count)
		return;
	memmove(s->at, s->at + count, s->len - count);
	s->len -= count;
	s->at[s->len] = '\0';
}

void str_clear(struct str *s)
{
	s->len = 0;
	if (s->at)
		s->at[0] = '\0';
}

void str_free(struct str *s)
{
	free(s->at);
	*s = (struct str){ 0 };
}

const char *str_text(const struct str *s)
{
	return s->at ? s->at : "";
}

char *str_take(struct str *s)
{
	char *text = s->at ? s->at : xstrdup("");
	*s = (struct str){ 0 };
	return text;
}
