/* SPDX-License-Identifier: Apache-2.0 */
#include "base/err.h"

#include <stdarg.h>
#include <stdio.h>

int err_set(struct err *err, int code, const char *fmt, ...)
{
	if (!err)
		return code;
	err->code = code;
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(err->msg, sizeof(err->msg), fmt, args);
	va_end(args);
	return code;
}

int err_wrap(struct err *err, int code, const char *fmt, ...)
{
	if (!err)
		return code;
	char cause[sizeof(err->msg)];
	memcpy(cause, err->msg, sizeof(cause));
	err->code = code;
	va_list args;
	va_start(args, fmt);
	int used = vsnprintf(err->msg, sizeof(err->msg), fmt, args);
	va_end(args);
	if (used >= 0 && (size_t)used + 3 < sizeof(err->msg)) {
		size_t room = sizeof(err->msg) - (size_t)used;
		if (snprintf(err->msg + used, room, ": %s", cause) >= (int)room)
			memcpy(err->msg + sizeof(err->msg) - 4, "...", 4);
	}
	return code;
}
