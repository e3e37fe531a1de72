/* SPDX-License-Identifier: Apache-2.0 */
/* What went wrong, for a person and for the program.
 *
 * Functions return int: 0 done, > 0 a documented result of that one function, < 0 a negative
 * errno, passed on unchanged. The last parameter `struct err *err` carries the message: the
 * innermost function writes the cause (err_set), each caller that knows more puts its context in
 * front (err_wrap): "load pod web: open /x: No such file or directory". `err` may be NULL. The
 * struct is of fixed size, so that reporting a failure cannot fail. */
#pragma once
#include "base/util.h"

struct err {
	int code; /* the negative errno of the failure; 0 while nothing failed */
	char msg[512];
};

/* Set cause and code; returns `code` so that callers can write `return err_set(…)`. */
int err_set(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);

/* Put context in front of the present message; returns `code`. */
int err_wrap(struct err *err, int code, const char *fmt, ...) _printf_(3, 4);
