/* SPDX-License-Identifier: Apache-2.0 */
/* Verbs with code of their own. */
#include "cli/cli.h"

#include "cli/nearest.h"
#include "lib/conn.h"

#include "schema/members.pb-c.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* Made by tools/gen_completion.py. */
extern const char completion_bash[], completion_zsh[];

static const struct {
	const char *words;
	cli_main *run;
} own_table[] = {
	{ "help", help_main },     { "version", version_main }, { "completion", completion_main },
	{ "doctor", doctor_main }, { "join", join_main },       { "run", run_main },
	{ "exec", exec_main },     { "copy", copy_main },       { "token", token_main },
};

cli_main *own_main(const struct verb *v)
{
	for (size_t i = 0; i < ARRAY_LEN(own_table); i++)
		if (!strcmp(own_table[i].words, v->words))
			return own_table[i].run;
	if (!strcmp(v->group, "lab"))
		return lab_verb_main;
	return NULL;
}

/* ---------------------------------------------------------------- help, version, completion */

static int no_such_help(const struct cli *c, const char *words)
{
	const char *best = NULL;
	for (size_t i = 0; i < verb_count; i++)
		nearest_try(words, verbs[i].words, &best);
	struct err err = { 0 };
	(void)err_set(&err, -ENOENT, "unknown verb \"%.60s\"; %s%s%s", words,
		      best ? "did you mean \"" : "all verbs: copia help", best ? best : "",
		      best ? "\"?" : "");
	return cli_error(c->verb, -ENOENT, &err);
}

int help_main(struct cli *c)
{
	const Copia__HelpRequest *q = (const void *)c->request;
	_cleanup_(str_free) struct str words = { 0 }, out = { 0 };
	for (size_t i = 0; i < q->n_words; i++)
		str_printf(&words, "%s%s", i ? " " : "", q->words[i]);
	const struct verb *v = verb_find(str_text(&words));
	if (!words.len)
		help_all(&out, &c->style);
	else if (v)
		help_verb(&out, v, &c->style);
	else if (!help_some(&out, str_text(&words), &c->style))
		return no_such_help(c, str_text(&words));
	return cli_print(&out);
}

int version_main(struct cli *c)
{
	Copia__VersionReply reply = COPIA__VERSION_REPLY__INIT;
	reply.version = (char *)COPIA_VERSION;
	reply.protocol = CONN_VERSION;
	return cli_show(c, &reply.base);
}

int completion_main(struct cli *c)
{
	const Copia__CompletionRequest *q = (const void *)c->request;
	_cleanup_(str_free) struct str out = { 0 };
	str_puts(&out, !strcmp(q->shell, "zsh") ? completion_zsh : "");
	str_puts(&out, completion_bash);
	return cli_print(&out);
}

/* ---------------------------------------------------------------- join */

/* The token is a secret, and arguments stand in the list of processes: "-" reads it instead. */
int join_main(struct cli *c)
{
	Copia__JoinVerbRequest *q = (void *)c->request;
	if (strcmp(q->token, "-"))
		return cli_call(c);
	char line[1024];
	if (!fgets(line, sizeof(line), stdin)) {
		struct err err = { 0 };
		(void)err_set(&err, -EINVAL, "no token on standard input");
		return cli_error(c->verb, -EINVAL, &err);
	}
	line[strcspn(line, "\r\n")] = '\0';
	free(q->token);
	q->token = xstrdup(line);
	return cli_call(c);
}

/* Whoever looks at a token on a terminal is about to type it elsewhere: say what. Programs get the
 * token alone. */
int token_main(struct cli *c)
{
	struct err err = { 0 };
	ProtobufCMessage *m = NULL;
	int r = cli_ask(c, &m, &err);
	if (r < 0)
		return cli_error(c->verb, r, &err);
	const Copia__TokenReply *reply = (const void *)m;
	int code = cli_show(c, m);
	_cleanup_(str_free) struct str hint = { 0 };
	for (size_t i = 0; i < reply->n_join; i++) {
		str_puts(&hint, i ? "or:                    " : "On the other machine:  ");
		show_text(&hint, reply->join[i], false);
		str_puts(&hint, "\n");
	}
	if (isatty(STDOUT_FILENO) && !c->common.json)
		(void)fputs(str_text(&hint), stderr);
	protobuf_c_message_free_unpacked(m, NULL);
	return code;
}
