/* SPDX-License-Identifier: Apache-2.0 */
#include "base/util.h"

#include <stdio.h>

static void *checked(void *p)
{
	if (p)
		return p;
	fputs("copia: out of memory\n", stderr);
	abort();
}

void *xmalloc(size_t size)
{
	return checked(malloc(size ? size : 1));
}

void *xcalloc(size_t count, size_t size)
{
	return checked(calloc(count ? count : 1, size ? size : 1));
}

void *xrealloc(void *old, size_t size)
{
	return checked(realloc(old, size ? size : 1));
}

char *xstrdup(const char *text)
{
	return checked(strdup(text));
}

char *xstrndup(const char *text, size_t len)
{
	return checked(strndup(text, len));
}

void *xmemdup(const void *from, size_t size)
{
	void *to = xmalloc(size);
	if (size)
		memcpy(to, from, size);
	return to;
}
