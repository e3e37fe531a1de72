/* SPDX-License-Identifier: Apache-2.0 */
/* Verbs without code of their own: ask the daemon, show what it says. */
#include "cli/cli.h"

#include "lib/conn.h"
#include "lib/json.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <time.h>

enum {
	ANSWER_MS = 60000,     /* for a verb without a time of its own */
	GRACE_MS = 5000,       /* on top of a verb's own time: the daemon tells better why */
	REOPEN_EVERY_MS = 200, /* while the daemon restarts */
	REOPEN_FOR_MS = 30000,
};

static void close_conn(struct conn **c)
{
	*c = conn_close(*c);
}

static void free_message(ProtobufCMessage **m)
{
	if (*m)
		protobuf_c_message_free_unpacked(*m, NULL);
}

/* The place of a scalar field of the request by name and type, or NULL. */
static void *request_field(const struct cli *c, const char *name, ProtobufCType type)
{
	const ProtobufCFieldDescriptor *f = args_field(c->verb, name);
	if (!f || f->type != type || f->label == PROTOBUF_C_LABEL_REPEATED)
		return NULL;
	return (char *)c->request + f->offset;
}

static bool request_flag(const struct cli *c, const char *name)
{
	const protobuf_c_boolean *flag = request_field(c, name, PROTOBUF_C_TYPE_BOOL);
	return flag && *flag;
}

static int answer_ms(const struct cli *c)
{
	const uint64_t *own_ms = request_field(c, "timeout_ms", PROTOBUF_C_TYPE_UINT64);
	if (!own_ms || !*own_ms)
		return ANSWER_MS;
	return *own_ms > INT32_MAX - GRACE_MS ? -1 : (int)*own_ms + GRACE_MS;
}

/* A reply that many nodes had a part in names those that did not answer. */
static void tell_silent(const struct cli *c, const ProtobufCMessage *reply)
{
	const ProtobufCFieldDescriptor *f =
	    protobuf_c_message_descriptor_get_field_by_name(reply->descriptor, "silent");
	if (!f || f->label != PROTOBUF_C_LABEL_REPEATED || f->type != PROTOBUF_C_TYPE_STRING)
		return;
	const uint8_t *at = (const uint8_t *)reply;
	size_t count = *(const size_t *)(const void *)(at + f->quantifier_offset);
	char *const *names = *(char *const *const *)(const void *)(at + f->offset);
	_cleanup_(str_free) struct str text = { 0 };
	for (size_t i = 0; i < count; i++) {
		str_printf(&text, "%s", i ? ", " : "");
		show_text(&text, names[i], true);
	}
	if (count)
		(void)fprintf(stderr, "copia %s: no answer from %s\n", c->verb->words,
			      str_text(&text));
}

int cli_show(const struct cli *c, const ProtobufCMessage *reply)
{
	_cleanup_(str_free) struct str out = { 0 };
	if (c->common.json) {
		json_message(&out, reply, true);
		str_puts(&out, "\n");
	} else {
		struct show_style style = c->style;
		style.names = request_flag(c, "names");
		show_reply(&out, c->verb, reply, &style);
	}
	int code = cli_print(&out);
	tell_silent(c, reply);
	return code;
}

/* ---------------------------------------------------------------- streams */

struct stream {
	struct cli *cli;
	struct conn *conn;
	uint64_t call;
	struct show_widths widths;
	bool follow; /* the user wants it to go on; it survives a restart of the daemon */
};

/* A follower that lost the daemon goes on behind the last message it showed, where request and
 * messages tell by the fields `since` and `revision`. */
static void note_place(struct stream *s, const ProtobufCMessage *m)
{
	const ProtobufCFieldDescriptor *f =
	    protobuf_c_message_descriptor_get_field_by_name(m->descriptor, "revision");
	uint64_t *since = request_field(s->cli, "since", PROTOBUF_C_TYPE_UINT64);
	if (since && f && f->type == PROTOBUF_C_TYPE_UINT64)
		*since = *(const uint64_t *)((const char *)m + f->offset);
}

static int show_body(struct stream *s, const struct conn_frame *f, struct err *err)
{
	_cleanup_(free_message) ProtobufCMessage *m =
	    protobuf_c_message_unpack(s->cli->verb->reply, NULL, f->body.len, f->body.at);
	if (!m)
		return err_set(err, -EPROTO,
			       "the daemon's answer is not understood: daemon and "
			       "command are of different versions");
	_cleanup_(str_free) struct str out = { 0 };
	if (s->cli->common.json) {
		json_message(&out, m, false);
		str_puts(&out, "\n");
	} else {
		show_line(&out, s->cli->verb, m, &s->widths, &s->cli->style);
	}
	note_place(s, m);
	if (cli_print(&out) != EXIT_OK)
		return err_set(err, -EIO, "the output cannot be written");
	return 0;
}

/* Show what has come. 1: the call ended, 0: not yet. */
static int show_frames(struct stream *s, struct err *err)
{
	struct conn_frame f;
	int r;
	while ((r = conn_next(s->conn, &f, err)) > 0) {
		if (f.call != s->call)
			continue;
		if (f.body.len || !f.last)
			r = show_body(s, &f, err);
		if (r < 0)
			return r;
		if (f.last && f.code < 0)
			return err_set(err, f.code, "%s", *f.error ? f.error : strerror(-f.code));
		if (f.last)
			return 1;
	}
	return r;
}

/* Wait for the daemon to come back. There is nothing to wait on but time: the socket's name may
 * be there before anybody listens, or not at all. */
static int come_back(struct stream *s, struct err *err)
{
	for (int waited_ms = 0; waited_ms < REOPEN_FOR_MS; waited_ms += REOPEN_EVERY_MS) {
		if (conn_reopen(s->conn, err) == 0) {
			s->call = conn_begin(s->conn, s->cli->verb->words, s->cli->request, true);
			return 0;
		}
		(void)poll(NULL, 0, REOPEN_EVERY_MS);
	}
	return -ECONNRESET;
}

static int follow_stream(struct stream *s, struct err *err)
{
	int r;
	while ((r = show_frames(s, err)) == 0) {
		r = conn_wait(s->conn, -1, err);
		if (r == 0 || r == -EINTR)
			continue;
		/* What came before the end is still shown. */
		struct err ignored = { 0 };
		int shown = show_frames(s, &ignored);
		if (shown > 0)
			return 0;
		if (r != -ECONNRESET || !s->follow)
			return r;
		r = come_back(s, err);
		if (r < 0)
			return r;
	}
	return r;
}

static int call_stream(struct cli *c, struct conn *conn, struct err *err)
{
	struct stream s = { .cli = c, .conn = conn, .follow = request_flag(c, "follow") };
	s.call = conn_begin(conn, c->verb->words, c->request, true);
	return follow_stream(&s, err);
}

int cli_ask(struct cli *c, ProtobufCMessage **ret, struct err *err)
{
	_cleanup_(close_conn) struct conn *conn = NULL;
	int r = conn_open(&conn, NULL, err);
	if (r < 0)
		return r;
	return conn_ask(conn, c->verb->words, c->request, c->verb->reply, answer_ms(c), ret, err);
}

int cli_call(struct cli *c)
{
	struct err err = { 0 };
	int r;
	if (c->verb->stream_out) {
		_cleanup_(close_conn) struct conn *conn = NULL;
		r = conn_open(&conn, NULL, &err);
		if (r == 0)
			r = call_stream(c, conn, &err);
		return r < 0 ? cli_error(c->verb, r, &err) : EXIT_OK;
	}
	_cleanup_(free_message) ProtobufCMessage *reply = NULL;
	r = cli_ask(c, &reply, &err);
	return r < 0 ? cli_error(c->verb, r, &err) : cli_show(c, reply);
}
