/* SPDX-License-Identifier: Apache-2.0 */
/* The connection, against a peer on a real unix socket that says exactly what the case wants. */
#include "lib/conn.h"
#include "../test.h"
#include "base/str.h"
#include "lib/frames.h"

#include "schema/members.pb-c.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char folder[] = "/tmp/copia-conn-XXXXXX";
static char path[96];

/* ---------------------------------------------------------------- the peer */

typedef void peer(int fd);

static void write_all(int fd, const void *bytes, size_t len)
{
	for (size_t at = 0; at < len;) {
		ssize_t n = write(fd, (const char *)bytes + at, len - at);
		if (n <= 0)
			_exit(2);
		at += (size_t)n;
	}
}

static Copia__ControlFrame *next_frame(int fd, struct frame_reader *r)
{
	Copia__ControlFrame *f = NULL;
	while (frame_take(r, &f, NULL) == 0) {
		char bytes[4096];
		ssize_t n = read(fd, bytes, sizeof(bytes));
		if (n <= 0)
			return NULL;
		str_add(&r->in, bytes, (size_t)n);
	}
	return f;
}

static void say(struct str *out, uint64_t call, const char *text, bool last, int code,
		const char *error)
{
	Copia__ControlFrame head = COPIA__CONTROL_FRAME__INIT;
	Copia__DoneReply body = COPIA__DONE_REPLY__INIT;
	head.call = call;
	head.last = last;
	head.code = code;
	head.error = (char *)error;
	body.text = (char *)text;
	(void)frame_put(out, &head, text ? &body.base : NULL, NULL);
}

/* Answers each call with its verb, in pieces of three bytes; "fail" is refused. */
static void polite(int fd)
{
	struct frame_reader r = { 0 };
	for (Copia__ControlFrame *f; (f = next_frame(fd, &r));) {
		struct str out = { 0 };
		say(&out, f->call + 1000, "not for you", true, 0, "");
		if (strcmp(f->verb, "fail")) {
			say(&out, f->call, f->verb, false, 0, "");
			say(&out, f->call, NULL, true, 0, "");
		} else {
			say(&out, f->call, NULL, true, -ENOENT, "node n9 is not known");
		}
		for (size_t at = 0; at < out.len; at += 3)
			write_all(fd, out.at + at, MIN(out.len - at, (size_t)3));
	}
}

static void silent(int fd)
{
	struct frame_reader r = { 0 };
	while (next_frame(fd, &r))
		;
}

static void rude(int fd)
{
	struct frame_reader r = { 0 };
	(void)next_frame(fd, &r);
	write_all(fd, "\xff\xff\xff\xff", 4);
	silent(fd);
}

/* Says half of it and goes. */
static void fleeting(int fd)
{
	struct frame_reader r = { 0 };
	Copia__ControlFrame *f = next_frame(fd, &r);
	struct str out = { 0 };
	say(&out, f->call, "first", false, 0, "");
	say(&out, f->call, "second", false, 0, "");
	write_all(fd, out.at, out.len - 2);
}

/* Counts the bytes of a stream and tells the sum at its end. */
static void counting(int fd)
{
	struct frame_reader r = { 0 };
	size_t sum = 0;
	for (Copia__ControlFrame *f; (f = next_frame(fd, &r));) {
		sum += f->body.len;
		if (f->last) {
			struct str out = { 0 };
			char text[32];
			(void)snprintf(text, sizeof(text), "%zu", sum);
			say(&out, f->call, text, false, 0, "");
			say(&out, f->call, NULL, true, 0, "");
			write_all(fd, out.at, out.len);
		}
		copia__control_frame__free_unpacked(f, NULL);
	}
}

/* Serve `clients` connections, one after the other; the socket is there when this returns. */
static pid_t serve(peer *how, int clients)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	(void)snprintf(at.sun_path, sizeof(at.sun_path), "%s", path);
	(void)unlink(path);
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(listener >= 0);
	assert_int_equal(bind(listener, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(listener, 4), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		for (int i = 0; i < clients; i++) {
			int fd = accept(listener, NULL, NULL);
			how(fd);
			(void)close(fd);
		}
		_exit(0);
	}
	(void)close(listener);
	return pid;
}

static void end(pid_t pid)
{
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	(void)unlink(path);
}

static struct conn *must_open(void)
{
	struct conn *c = NULL;
	struct err err = { 0 };
	if (conn_open(&c, path, &err) < 0)
		fail_msg("%s", err.msg);
	return c;
}

/* ---------------------------------------------------------------- cases */

static void an_answer_in_pieces_is_one_answer(void **state)
{
	(void)state;
	pid_t pid = serve(polite, 1);
	struct conn *c = must_open();
	struct err err = { 0 };
	Copia__StatusRequest q = COPIA__STATUS_REQUEST__INIT;
	for (int i = 0; i < 3; i++) {
		ProtobufCMessage *m = NULL;
		assert_int_equal(
		    conn_ask(c, "status", &q.base, &copia__done_reply__descriptor, 5000, &m, &err),
		    0);
		assert_string_equal(((Copia__DoneReply *)m)->text, "status");
		protobuf_c_message_free_unpacked(m, NULL);
	}
	ProtobufCMessage *m = NULL;
	assert_int_equal(
	    conn_ask(c, "fail", &q.base, &copia__done_reply__descriptor, 5000, &m, &err), -ENOENT);
	assert_string_equal(err.msg, "node n9 is not known");
	assert_null(m);
	(void)conn_close(c);
	end(pid);
}

static int ask(struct conn *c, int timeout_ms, struct err *err)
{
	Copia__StatusRequest q = COPIA__STATUS_REQUEST__INIT;
	ProtobufCMessage *m = NULL;
	int r = conn_ask(c, "status", &q.base, &copia__done_reply__descriptor, timeout_ms, &m, err);
	if (r == 0)
		protobuf_c_message_free_unpacked(m, NULL);
	return r;
}

static void silence_has_an_end(void **state)
{
	(void)state;
	pid_t pid = serve(silent, 1);
	struct conn *c = must_open();
	struct err err = { 0 }, expected = { 0 };
	assert_int_equal(ask(c, 50, &err), -ETIMEDOUT);
	(void)err_set(&expected, 0, "no answer from the daemon at %s", path);
	assert_string_equal(err.msg, expected.msg);
	(void)conn_close(c);
	end(pid);
}

static void nonsense_breaks_the_connection(void **state)
{
	(void)state;
	pid_t pid = serve(rude, 1);
	struct conn *c = must_open();
	struct err err = { 0 };
	assert_int_equal(ask(c, 5000, &err), -EPROTO);
	assert_int_equal(conn_fd(c), -1);
	assert_int_equal(conn_work(c, &err), -ECONNRESET);
	(void)conn_close(c);
	end(pid);
}

static void what_came_before_the_end_is_still_there(void **state)
{
	(void)state;
	pid_t pid = serve(fleeting, 2);
	struct conn *c = must_open();
	struct err err = { 0 };
	Copia__StatusRequest q = COPIA__STATUS_REQUEST__INIT;
	uint64_t call = conn_begin(c, "events", &q.base, true);
	int r;
	while ((r = conn_wait(c, 5000, &err)) == 0)
		;
	assert_int_equal(r, -ECONNRESET);
	struct conn_frame f;
	assert_int_equal(conn_next(c, &f, &err), 1);
	assert_int_equal(f.call, call);
	assert_false(f.last);
	assert_int_equal(conn_next(c, &f, &err), 0);
	/* Again with a new call of a new number; the half frame of the old one is forgotten. */
	assert_int_equal(conn_reopen(c, &err), 0);
	assert_int_equal(ask(c, 5000, &err), -ECONNRESET);
	assert_true(conn_begin(c, "status", &q.base, true) > call + 1);
	(void)conn_close(c);
	end(pid);
}

static void a_stream_keeps_its_order_and_its_bounds(void **state)
{
	(void)state;
	enum { MESSAGES = 2000 };
	pid_t pid = serve(counting, 1);
	struct conn *c = must_open();
	struct err err = { 0 };
	char *text = xcalloc(1, 5001);
	memset(text, 'x', 5000);
	Copia__DoneReply q = COPIA__DONE_REPLY__INIT;
	uint64_t call = conn_begin(c, "run", &q.base, false);
	q.text = text;
	for (int i = 0; i < MESSAGES; i++) {
		while (conn_queued(c) > CONN_QUEUE_HIGH)
			assert_int_equal(conn_wait(c, 5000, &err), 0);
		assert_int_equal(conn_send(c, call, &q.base, i + 1 == MESSAGES, &err), 0);
		assert_int_equal(conn_work(c, &err), 0);
		assert_true(conn_queued(c) < 2 * CONN_QUEUE_HIGH);
	}
	struct conn_frame f;
	while (conn_next(c, &f, &err) == 0)
		assert_int_equal(conn_wait(c, 5000, &err), 0);
	Copia__DoneReply *m = copia__done_reply__unpack(NULL, f.body.len, f.body.at);
	assert_int_equal(strtoull(m->text, NULL, 10), (5000 + 3) * MESSAGES);
	copia__done_reply__free_unpacked(m, NULL);
	(void)conn_close(c);
	end(pid);
	free(text);
}

static void a_request_too_large_is_answered_here(void **state)
{
	(void)state;
	pid_t pid = serve(silent, 1);
	struct conn *c = must_open();
	struct err err = { 0 };
	Copia__DoneReply q = COPIA__DONE_REPLY__INIT;
	q.text = xcalloc(1, CONN_FRAME_MAX + 1);
	memset(q.text, 'x', CONN_FRAME_MAX);
	ProtobufCMessage *m = NULL;
	assert_int_equal(conn_ask(c, "run", &q.base, &copia__done_reply__descriptor, -1, &m, &err),
			 -EMSGSIZE);
	free(q.text);
	(void)conn_close(c);
	end(pid);
}

static void a_missing_daemon_is_named_with_a_remedy(void **state)
{
	(void)state;
	struct conn *c = NULL;
	struct err err = { 0 }, expected = { 0 };
	assert_int_equal(conn_open(&c, path, &err), -ECONNREFUSED);
	(void)err_set(&expected, 0,
		      "no daemon at %s: No such file or directory (is copiad running? systemctl "
		      "status copiad)",
		      path);
	assert_string_equal(err.msg, expected.msg);
	assert_null(c);
	/* A socket that nobody listens to any more: the daemon was killed. */
	pid_t pid = serve(silent, 0);
	int status;
	(void)waitpid(pid, &status, 0);
	assert_int_equal(conn_open(&c, path, &err), -ECONNREFUSED);
	assert_non_null(strstr(err.msg, "Connection refused"));
	char *deep = xcalloc(1, 200);
	memset(deep, 'x', 199);
	assert_int_equal(conn_open(&c, deep, &err), -ENAMETOOLONG);
	free(deep);
}

static void the_socket_is_found(void **state)
{
	(void)state;
	char buf[108];
	(void)setenv("COPIA_SOCKET", "/some/where.sock", 1);
	assert_string_equal(conn_default_path(buf), "/some/where.sock");
	(void)unsetenv("COPIA_SOCKET");
	char dir[128], expected[160];
	(void)setenv("XDG_RUNTIME_DIR", folder, 1);
	(void)snprintf(dir, sizeof(dir), "%s/copia", folder);
	(void)snprintf(expected, sizeof(expected), "%s/copia/copia.sock", folder);
	(void)unlink(path);
	if (access("/run/copia/copia.sock", F_OK))
		assert_string_not_equal(conn_default_path(buf), expected);
	/* `path` is at that place now. */
	pid_t pid = serve(silent, 0);
	if (access("/run/copia/copia.sock", F_OK))
		assert_string_equal(conn_default_path(buf), expected);
	end(pid);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_answer_in_pieces_is_one_answer),
		cmocka_unit_test(silence_has_an_end),
		cmocka_unit_test(nonsense_breaks_the_connection),
		cmocka_unit_test(what_came_before_the_end_is_still_there),
		cmocka_unit_test(a_stream_keeps_its_order_and_its_bounds),
		cmocka_unit_test(a_request_too_large_is_answered_here),
		cmocka_unit_test(a_missing_daemon_is_named_with_a_remedy),
		cmocka_unit_test(the_socket_is_found),
	};
	if (!mkdtemp(folder))
		return 1;
	char dir[64];
	(void)snprintf(dir, sizeof(dir), "%s/copia", folder);
	if (mkdir(dir, 0700) < 0)
		return 1;
	(void)snprintf(path, sizeof(path), "%s/copia.sock", dir);
	int failed = cmocka_run_group_tests(tests, NULL, NULL);
	(void)unlink(path);
	(void)rmdir(dir);
	(void)rmdir(folder);
	return failed;
}
