/* SPDX-License-Identifier: Apache-2.0 */
/* The command `copia`: what its parts share, and how a verb gets code of its own.
 *
 * Most verbs have none: the words become the request (args.h), the daemon is asked (lib/conn.h),
 * the reply is shown by the table (show.h). A verb that does more has a row in own.c. */
#pragma once
#include "base/err.h"
#include "base/str.h"
#include "cli/args.h"
#include "cli/show.h"

#include "schema/local.pb-c.h"

/* Exit codes; the schema says what they mean. `run` and `exec` end with the program's own. */
enum exit_code {
	EXIT_OK = COPIA__EXIT_CODE__EXIT_OK,
	EXIT_FAILED = COPIA__EXIT_CODE__EXIT_FAILED,
	EXIT_USAGE = COPIA__EXIT_CODE__EXIT_USAGE,
	EXIT_NO_DAEMON = COPIA__EXIT_CODE__EXIT_NO_DAEMON,
	EXIT_NOT_FOUND = COPIA__EXIT_CODE__EXIT_NOT_FOUND,
	EXIT_REFUSED = COPIA__EXIT_CODE__EXIT_REFUSED,
	EXIT_BUSY = COPIA__EXIT_CODE__EXIT_BUSY,
	EXIT_NO_LEADER = COPIA__EXIT_CODE__EXIT_NO_LEADER,
};

/* One call of the command. */
struct cli {
	const struct verb *verb;
	struct args_common common;
	ProtobufCMessage *request; /* filled from the words; owned by main */
	char **words;              /* behind the verb's own words, as typed; borrowed */
	int word_count;
	struct show_style style;
};

/* Returns the exit code; writes its own errors with cli_error. May change c->request. */
typedef int cli_main(struct cli *c);

/* The verb's own code, or NULL. */
cli_main *own_main(const struct verb *v);

/* Ask the daemon and show the answer, stream or not: what verbs without own code do. */
int cli_call(struct cli *c);
/* Ask the daemon for the one reply of a verb that is no stream; the caller owns *ret. */
int cli_ask(struct cli *c, ProtobufCMessage **ret, struct err *err);
/* Show one reply on standard output as the user wants it. Returns EXIT_OK or EXIT_FAILED. */
int cli_show(const struct cli *c, const ProtobufCMessage *reply);
/* Write text to standard output; 0 or EXIT_FAILED with the error told. */
int cli_print(const struct str *text);

/* "copia drain: node n9 is not known" on stderr; returns the exit code for the negative errno. */
int cli_error(const struct verb *v, int code, const struct err *err);
int exit_code(int negative_errno);

/* Own code of verbs, by file. */
int help_main(struct cli *c);       /* help.c */
int version_main(struct cli *c);    /* own.c */
int completion_main(struct cli *c); /* own.c */
int doctor_main(struct cli *c);     /* doctor.c */
int lab_verb_main(struct cli *c);   /* lab.c: all verbs of group lab */
int join_main(struct cli *c);       /* own.c */
int token_main(struct cli *c);      /* own.c */
int run_main(struct cli *c);        /* run.c */
int exec_main(struct cli *c);       /* exec.c */
int copy_main(struct cli *c);       /* copy.c */

/* help.c: add the text of `copia`, `copia help`, `copia VERB --help` and `copia lab`. */
void help_short(struct str *out, const struct show_style *s);
void help_all(struct str *out, const struct show_style *s);
void help_verb(struct str *out, const struct verb *v, const struct show_style *s);
/* All verbs whose words begin with `words`; false when there is none. */
bool help_some(struct str *out, const char *words, const struct show_style *s);
