/* SPDX-License-Identifier: Apache-2.0 */
/* A growing byte string that is always NUL-terminated behind `len` once something was added.
 * Zero-initialised it is empty and valid: struct str s = { 0 }. Aborts when memory is gone, so
 * the caller bounds what outsiders can make it grow to. */
#pragma once
#include "base/util.h"
#include <stdarg.h>

struct str {
	char *at; /* NULL while nothing was ever added */
	size_t len, cap;
};

void str_reserve(struct str *s, size_t more);
void str_add(struct str *s, const void *bytes, size_t len);
void str_puts(struct str *s, const char *text);
void str_printf(struct str *s, const char *fmt, ...) _printf_(2, 3);
void str_vprintf(struct str *s, const char *fmt, va_list args);
/* Drop the first `count` bytes. */
void str_cut(struct str *s, size_t count);
/* Forget the content, keep the memory. */
void str_clear(struct str *s);
void str_free(struct str *s); /* also for _cleanup_(str_free) */
/* The text, never NULL; owned by `s`. */
const char *str_text(const struct str *s);
/* Hand the text to the caller (free()); `s` is empty afterwards. */
char *str_take(struct str *s);
