/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/conn.h"

#include "lib/frames.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
	READ_SIZE = 64 * 1024,
	IN_HIGH = 4 << 20, /* received and not taken: stop reading, so that the daemon waits */
};

/* A call that could not be sent and is answered here, with a reason. */
struct refusal {
	uint64_t call;
	char text[256];
};

struct conn {
	int fd; /* -1 while BROKEN */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	bool chosen; /* the user named the path: whose daemon it is, is the user's business */
	uint64_t last_call;
	struct frame_reader in;
	struct str out;
	size_t out_at;              /* bytes of `out` that the kernel took */
	Copia__ControlFrame *frame; /* what conn_next handed out last; owned */
	struct refusal refusal;     /* call 0: none */
};

/* ---------------------------------------------------------------- finding and connecting */

/* How the user's own daemon calls its socket; false when there is no such place. */
static bool user_path(unsigned place, char buf[108])
{
	const char *run = getenv("XDG_RUNTIME_DIR");
	int len = -1;
	if (place == 0)
		len = snprintf(buf, 108, "/run/copia/copia.sock");
	else if (place == 1 && run && *run)
		len = snprintf(buf, 108, "%s/copia/copia.sock", run);
	else if (place == 2)
		len = snprintf(buf, 108, "/tmp/copia-%u/copia.sock", (unsigned)geteuid());
	return len > 0 && len < 108;
}

char *conn_default_path(char buf[108])
{
	const char *chosen = getenv("COPIA_SOCKET");
	if (chosen && *chosen) {
		(void)snprintf(buf, 108, "%s", chosen);
		return buf;
	}
	for (unsigned place = 0; place < 3; place++)
		if (user_path(place, buf) && !access(buf, F_OK))
			return buf;
	(void)user_path(0, buf);
	return buf;
}

static const char *remedy(int code)
{
	switch (code) {
	case EACCES:
	case EPERM:
		return "ask the owner of that daemon for access";
	case EAGAIN:
		return "it has too many connections; try again";
	default:
		return "is copiad running? systemctl status copiad";
	}
}

static int refuse(const struct conn *c, int code, struct err *err)
{
	int kind = code == EACCES || code == EPERM ? -EACCES : -ECONNREFUSED;
	return err_set(err, kind, "no daemon at %s: %s (%s)", c->path, strerror(code),
		       remedy(code));
}

/* A socket in a folder that everybody may write to could be anybody's: what is typed must only
 * reach a daemon of root or of this user. */
static int check_owner(const struct conn *c, int fd, struct err *err)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) < 0)
		return refuse(c, errno, err);
	if (c->chosen || peer.uid == 0 || peer.uid == geteuid())
		return 0;
	return err_set(err, -EACCES,
		       "the daemon at %s belongs to user %u (set COPIA_SOCKET=%s if that is meant)",
		       c->path, (unsigned)peer.uid, c->path);
}

static int connect_to(struct conn *c, struct err *err)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	(void)snprintf(to.sun_path, sizeof(to.sun_path), "%s", c->path);
	/* Connecting to a unix socket ends at once or, when the daemon is behind with accepting,
	 * waits for it; only afterwards the descriptor must not block. */
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return err_set(err, -errno, "socket: %s", strerror(errno));
	int r;
	do
		r = connect(fd, (struct sockaddr *)&to, sizeof(to));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		r = refuse(c, errno, err);
	else
		r = check_owner(c, fd, err);
	if (r < 0) {
		(void)close(fd);
		return r;
	}
	c->fd = fd;
	return 0;
}

int conn_open(struct conn **ret, const char *path, struct err *err)
{
	const char *env = getenv("COPIA_SOCKET");
	char found[108];
	const char *wanted = path;
	if (!wanted)
		wanted = env && *env ? env : conn_default_path(found);
	struct conn *c = xcalloc(1, sizeof(*c));
	c->fd = -1;
	c->chosen = path || (env && *env);
	int r;
	if (strlen(wanted) >= sizeof(c->path)) {
		r = err_set(err, -ENAMETOOLONG,
			    "path of the daemon's socket is longer than %zu bytes: %s",
			    sizeof(c->path) - 1, wanted);
	} else {
		(void)snprintf(c->path, sizeof(c->path), "%s", wanted);
		r = connect_to(c, err);
	}
	if (r < 0) {
		(void)conn_close(c);
		return r;
	}
	*ret = c;
	return 0;
}

/* Forget the descriptor and what was on its way out; received frames stay. */
static void break_off(struct conn *c)
{
	if (c->fd >= 0)
		(void)close(c->fd);
	c->fd = -1;
	str_clear(&c->out);
	c->out_at = 0;
}

static void drop_frame(struct conn *c)
{
	if (c->frame)
		copia__control_frame__free_unpacked(c->frame, NULL);
	c->frame = NULL;
}

struct conn *conn_close(struct conn *c)
{
	if (!c)
		return NULL;
	break_off(c);
	drop_frame(c);
	str_free(&c->in.in);
	str_free(&c->out);
	free(c);
	return NULL;
}

int conn_reopen(struct conn *c, struct err *err)
{
	break_off(c);
	str_clear(&c->in.in);
	c->in.at = 0;
	c->refusal.call = 0;
	return connect_to(c, err);
}

/* ---------------------------------------------------------------- moving bytes */

int conn_fd(const struct conn *c)
{
	return c->fd;
}

size_t conn_queued(const struct conn *c)
{
	return c->out.len - c->out_at;
}

static bool wants_input(const struct conn *c)
{
	return c->in.in.len - c->in.at < IN_HIGH;
}

short conn_events(const struct conn *c)
{
	return (short)((wants_input(c) ? POLLIN : 0) | (conn_queued(c) ? POLLOUT : 0));
}

static int went_away(struct conn *c, int code, struct err *err)
{
	break_off(c);
	return err_set(err, -ECONNRESET, "the daemon at %s went away%s%s", c->path,
		       code ? ": " : "", code ? strerror(code) : "");
}

static bool only_later(int code)
{
	return code == EAGAIN || code == EWOULDBLOCK || code == EINTR;
}

static int write_some(struct conn *c, struct err *err)
{
	while (conn_queued(c)) {
		ssize_t sent =
		    send(c->fd, c->out.at + c->out_at, conn_queued(c), MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0)
			return only_later(errno) ? 0 : went_away(c, errno, err);
		c->out_at += (size_t)sent;
	}
	str_clear(&c->out);
	c->out_at = 0;
	return 0;
}

static int read_some(struct conn *c, struct err *err)
{
	while (wants_input(c)) {
		str_reserve(&c->in.in, READ_SIZE);
		ssize_t got = recv(c->fd, c->in.in.at + c->in.in.len, READ_SIZE, MSG_DONTWAIT);
		if (got < 0 && only_later(errno))
			return 0;
		if (got <= 0)
			return went_away(c, got < 0 ? errno : 0, err);
		c->in.in.len += (size_t)got;
		c->in.in.at[c->in.in.len] = '\0';
	}
	return 0;
}

int conn_work(struct conn *c, struct err *err)
{
	if (c->fd < 0)
		return err_set(err, -ECONNRESET, "the daemon at %s went away", c->path);
	/* Reading comes first: the daemon may have said why before it hung up. */
	int r = read_some(c, err);
	return r < 0 ? r : write_some(c, err);
}

int conn_wait(struct conn *c, int timeout_ms, struct err *err)
{
	struct pollfd p = { .fd = c->fd, .events = conn_events(c) };
	if (c->fd >= 0) {
		int r = poll(&p, 1, timeout_ms);
		if (r < 0)
			return err_set(err, -errno, "wait for the daemon: %s", strerror(errno));
		if (!r)
			return err_set(err, -ETIMEDOUT, "no answer from the daemon at %s", c->path);
	}
	return conn_work(c, err);
}

/* ---------------------------------------------------------------- calls */

/* Remember why a call could not be sent, for conn_next to tell. One is enough: the caller takes
 * frames between calls; of several the first counts. */
static void remember_refusal(struct conn *c, uint64_t call, const struct err *why)
{
	if (c->refusal.call)
		return;
	c->refusal.call = call;
	(void)snprintf(c->refusal.text, sizeof(c->refusal.text), "%.255s", why->msg);
}

uint64_t conn_begin(struct conn *c, const char *verb, const ProtobufCMessage *request, bool last)
{
	Copia__ControlFrame head = COPIA__CONTROL_FRAME__INIT;
	head.call = ++c->last_call;
	head.verb = (char *)verb;
	head.last = last;
	head.version = CONN_VERSION;
	struct err why = { 0 };
	if (c->fd >= 0 && frame_put(&c->out, &head, request, &why) < 0)
		remember_refusal(c, head.call, &why);
	return head.call;
}

int conn_send(struct conn *c, uint64_t call, const ProtobufCMessage *message, bool last,
	      struct err *err)
{
	assert(call && call <= c->last_call);
	if (c->fd < 0)
		return err_set(err, -ECONNRESET, "the daemon at %s went away", c->path);
	Copia__ControlFrame head = COPIA__CONTROL_FRAME__INIT;
	head.call = call;
	head.last = last;
	return frame_put(&c->out, &head, message, err);
}

static void fill_frame(const Copia__ControlFrame *from, struct conn_frame *ret)
{
	*ret = (struct conn_frame){
		.call = from->call,
		.body = { from->body.data, from->body.len },
		.last = from->last,
		.code = from->code,
		.error = from->error,
	};
}

int conn_next(struct conn *c, struct conn_frame *ret, struct err *err)
{
	if (c->refusal.call) {
		*ret = (struct conn_frame){ .call = c->refusal.call,
					    .last = true,
					    .code = -EMSGSIZE,
					    .error = c->refusal.text };
		c->refusal.call = 0;
		return 1;
	}
	drop_frame(c);
	int r = frame_take(&c->in, &c->frame, err);
	if (r < 0)
		break_off(c);
	if (r <= 0)
		return r;
	fill_frame(c->frame, ret);
	return 1;
}

/* ---------------------------------------------------------------- one question, one answer */

static uint64_t monotonic_ms(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* Milliseconds until `end_ms` for poll(), -1 when there is no end. */
static int left_ms(uint64_t end_ms)
{
	if (!end_ms)
		return -1;
	uint64_t now_ms = monotonic_ms();
	return now_ms >= end_ms ? 0 : (int)MIN(end_ms - now_ms, (uint64_t)INT32_MAX);
}

static void free_message(ProtobufCMessage **m)
{
	if (*m)
		protobuf_c_message_free_unpacked(*m, NULL);
	*m = NULL;
}

/* Look through what has come. 1: the call ended; 0: not yet. */
static int take_answer(struct conn *c, uint64_t call, const ProtobufCMessageDescriptor *reply,
		       ProtobufCMessage **answer, struct err *err)
{
	struct conn_frame f;
	int r;
	while ((r = conn_next(c, &f, err)) > 0) {
		if (f.call != call)
			continue;
		if (f.last && f.code < 0)
			return err_set(err, f.code, "%s", *f.error ? f.error : strerror(-f.code));
		if (f.body.len || !f.last) {
			free_message(answer);
			*answer = protobuf_c_message_unpack(reply, NULL, f.body.len, f.body.at);
			if (!*answer)
				return err_set(err, -EPROTO,
					       "the daemon's answer is not understood: daemon and "
					       "command are of different versions");
		}
		if (f.last)
			return 1;
	}
	return r;
}

int conn_ask(struct conn *c, const char *verb, const ProtobufCMessage *request,
	     const ProtobufCMessageDescriptor *reply, int timeout_ms, ProtobufCMessage **ret,
	     struct err *err)
{
	uint64_t end_ms = timeout_ms < 0 ? 0 : monotonic_ms() + (uint64_t)timeout_ms;
	uint64_t call = conn_begin(c, verb, request, true);
	_cleanup_(free_message) ProtobufCMessage *answer = NULL;
	struct err gone = { 0 };
	int r, lost = 0;
	while ((r = take_answer(c, call, reply, &answer, err)) == 0) {
		if (lost < 0)
			return err_set(err, lost, "%s", gone.msg);
		lost = conn_wait(c, left_ms(end_ms), &gone);
		if (lost == -EINTR)
			lost = 0;
	}
	if (r < 0)
		return r;
	if (!answer)
		answer = protobuf_c_message_unpack(reply, NULL, 0, NULL);
	if (!answer)
		return err_set(err, -ENOMEM, "out of memory");
	*ret = take_ptr(answer);
	return 0;
}
