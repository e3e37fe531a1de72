/* SPDX-License-Identifier: Apache-2.0 */
/* Errors become exit codes and lines on stderr. */
#include "cli/cli.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* What is not listed is EXIT_FAILED. */
static const struct {
	int code;
	enum exit_code exit;
} exit_codes[] = {
	{ EINVAL, EXIT_USAGE },         { ERANGE, EXIT_USAGE },
	{ E2BIG, EXIT_USAGE },          { EMSGSIZE, EXIT_USAGE },
	{ ENAMETOOLONG, EXIT_USAGE },   { ECONNREFUSED, EXIT_NO_DAEMON },
	{ ECONNRESET, EXIT_NO_DAEMON }, { ENOENT, EXIT_NOT_FOUND },
	{ ESRCH, EXIT_NOT_FOUND },      { EACCES, EXIT_REFUSED },
	{ EPERM, EXIT_REFUSED },        { EBUSY, EXIT_BUSY },
	{ EAGAIN, EXIT_BUSY },          { ETIMEDOUT, EXIT_BUSY },
	{ ENOTCONN, EXIT_NO_LEADER },   { ENOLINK, EXIT_NO_LEADER },
	{ ENETDOWN, EXIT_NO_LEADER },   { EHOSTDOWN, EXIT_NO_LEADER },
};

int exit_code(int negative_errno)
{
	if (negative_errno >= 0)
		return EXIT_OK;
	for (size_t i = 0; i < ARRAY_LEN(exit_codes); i++)
		if (exit_codes[i].code == -negative_errno)
			return exit_codes[i].exit;
	return EXIT_FAILED;
}

int cli_error(const struct verb *v, int code, const struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	str_printf(&text, "copia%s%s: ", v ? " " : "", v ? v->words : "");
	/* The daemon's words may quote what other nodes sent. */
	show_text(&text, *err->msg ? err->msg : strerror(-code), true);
	str_puts(&text, "\n");
	(void)fflush(stdout);
	(void)fputs(str_text(&text), stderr);
	return exit_code(code);
}

int cli_print(const struct str *text)
{
	size_t wrote = fwrite(str_text(text), 1, text->len, stdout);
	if (wrote == text->len && !fflush(stdout))
		return EXIT_OK;
	struct err err = { 0 };
	int code = err_set(&err, -EIO, "write to standard output: %s", strerror(errno));
	return cli_error(NULL, code, &err);
}
