/* SPDX-License-Identifier: Apache-2.0 */
#include "node/control-impl.h"

#include "base/log.h"
#include "node/node.h"

#include <schema/control.pb-c.h>
#include <schema/verb.h>
#include <uthash.h>
#include <utlist.h>

#include <assert.h>
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

struct handler {
	const struct verb *verb;
	control_verb *run;
};

struct control {
	struct node *node;
	uv_pipe_t listener;
	bool listening;
	char *path;
	struct handler handlers[128];
	size_t handler_count;
	struct conn *conns;
	size_t conn_count;
	uv_timer_t resume; /* takes up the connections that are marked `again` */
	char scratch[64 * 1024];
};

/* One program's connection. */
struct conn {
	uv_pipe_t pipe;
	struct control *control;
	struct call_who who;
	struct str in;
	size_t queued; /* bytes handed to the loop and not yet taken by the client */
	bool full;     /* some call was told that there is no room */
	unsigned holds;
	bool paused; /* not read: the client does not take what it is sent */
	bool again;  /* frames that were received before a pause are still to be taken */
	bool closing;
	struct call *calls;
	size_t call_count;
	struct conn *prev, *next;
};

/* ---------------------------------------------------------------- calls */

struct call *call_new(struct node *node, const struct call_sink *sink, void *sink_ctx,
		      const struct call_who *who, uint64_t number)
{
	struct call *c = xcalloc(1, sizeof(*c));
	c->node = node;
	c->sink = sink;
	c->sink_ctx = sink_ctx;
	c->who = *who;
	c->number = number;
	return c;
}

uid_t call_uid(const struct call *c)
{
	return c->who.uid;
}

gid_t call_gid(const struct call *c)
{
	return c->who.gid;
}

pid_t call_pid(const struct call *c)
{
	return c->who.pid;
}

bool call_privileged(const struct call *c)
{
	return c->who.privileged;
}

const char *call_user(const struct call *c)
{
	return c->who.user;
}

struct node *call_node(const struct call *c)
{
	return c->node;
}

static void send_frame(struct call *c, Copia__ControlFrame *f)
{
	f->call = c->number;
	c->sink->send(c->sink_ctx, c, f);
}

void call_reply(struct call *c, const ProtobufCMessage *message)
{
	size_t size = protobuf_c_message_get_packed_size(message);
	_cleanup_(free_p) uint8_t *body = xmalloc(size);
	(void)protobuf_c_message_pack(message, body);
	call_reply_packed(c, body, size);
}

void call_reply_packed(struct call *c, const uint8_t *body, size_t len)
{
	Copia__ControlFrame f = COPIA__CONTROL_FRAME__INIT;
	f.body = (ProtobufCBinaryData){ len, (uint8_t *)body };
	send_frame(c, &f);
}

void call_finish(struct call *c, int code, const char *fmt, ...)
{
	char text[sizeof(((struct err *)0)->msg)] = "";
	if (fmt) {
		va_list args;
		va_start(args, fmt);
		(void)vsnprintf(text, sizeof(text), fmt, args);
		va_end(args);
	}
	assert(code <= 0);
	Copia__ControlFrame f = COPIA__CONTROL_FRAME__INIT;
	f.code = code;
	f.error = text;
	f.last = true;
	send_frame(c, &f);
	c->sink->end(c->sink_ctx, c);
	free(c);
}

void call_gone(struct call *c)
{
	if (c->hooks.closed)
		c->hooks.closed(c->ctx, c);
	free(c);
}

size_t call_room(const struct call *c)
{
	return c->sink->room(c->sink_ctx, c);
}

void call_keep(struct call *c, const struct call_hooks *hooks, void *ctx)
{
	c->hooks = *hooks;
	c->ctx = ctx;
}

void call_hold(struct call *c, bool hold)
{
	if (c->held == hold)
		return;
	c->held = hold;
	c->sink->hold(c->sink_ctx, c, hold);
}

/* ---------------------------------------------------------------- running a verb */

void control_on(struct control *s, const char *verb, control_verb *handler)
{
	const struct verb *v = verb_find(verb);
	assert(v && s->handler_count < ARRAY_LEN(s->handlers));
	s->handlers[s->handler_count++] = (struct handler){ v, handler };
}

static control_verb *find_handler(const struct control *s, const struct verb *v)
{
	for (size_t i = 0; i < s->handler_count; i++)
		if (s->handlers[i].verb == v)
			return s->handlers[i].run;
	return NULL;
}

static int check_rights(const struct call *c, const struct verb *v, struct err *err)
{
	if (!v->root || c->who.privileged)
		return 0;
	return err_set(
	    err, -EPERM,
	    "copia %s: only root and the user that runs copiad on this node may do this; "
	    "you are %s",
	    v->words, c->who.user);
}

void control_run(struct control *s, struct call *c, const char *words, struct span body,
		 bool may_forward)
{
	struct err err = { 0 };
	const struct verb *v = verb_find(words);
	control_verb *run = v ? find_handler(s, v) : NULL;
	if (!run) {
		call_finish(
		    c, -EOPNOTSUPP,
		    "this node's copiad (%s) does not know \"%.40s\"; copia and copiad are of "
		    "different versions",
		    COPIA_VERSION, words);
		return;
	}
	if (check_rights(c, v, &err) < 0) {
		log_warning("audit", "refused \"%s\" to user %s (uid %u)", v->words, c->who.user,
			    (unsigned)c->who.uid);
		call_finish(c, err.code, "%s", err.msg);
		return;
	}
	ProtobufCMessage *request = protobuf_c_message_unpack(v->request, NULL, body.len, body.at);
	if (!request) {
		call_finish(c, -EBADMSG, "copia %s: the request is malformed", v->words);
		return;
	}
	if (v->root)
		log_info("audit", "user %s (uid %u) asked for \"%s\"", c->who.user,
			 (unsigned)c->who.uid, v->words);
	int r = v->leader && may_forward ? node_forward(s->node, c, v->words, body) : 0;
	if (r == 0)
		r = run(s->node, c, request, &err);
	if (r < 0)
		call_finish(c, r, "%s", *err.msg ? err.msg : strerror(-r));
	protobuf_c_message_free_unpacked(request, NULL);
}

/* ---------------------------------------------------------------- connections */

static void on_conn_closed(uv_handle_t *h)
{
	struct conn *n = h->data;
	str_free(&n->in);
	DL_DELETE(n->control->conns, n);
	n->control->conn_count--;
	free(n);
}

static void conn_close(struct conn *n)
{
	if (n->closing)
		return;
	n->closing = true;
	struct call *c, *next;
	DL_FOREACH_SAFE(n->calls, c, next)
	{
		DL_DELETE(n->calls, c);
		call_gone(c);
	}
	n->calls = NULL;
	uv_close((uv_handle_t *)&n->pipe, on_conn_closed);
}

struct pending {
	uv_write_t req;
	struct conn *conn;
	size_t len;
	uint8_t bytes[];
};

static void give_room(struct conn *n)
{
	if (!n->full || n->queued > CONTROL_QUEUE_MAX / 2)
		return;
	n->full = false;
	/* A hook may end its call, or others: start again after each. */
	struct call *c;
	DL_FOREACH(n->calls, c)
	c->wants_room = true;
	do {
		DL_FOREACH(n->calls, c)
		{
			if (!c->wants_room)
				continue;
			c->wants_room = false;
			if (c->hooks.room)
				c->hooks.room(c->ctx, c);
			break;
		}
	} while (c && !n->closing);
}

static void reading_set(struct conn *n);

static void on_written(uv_write_t *req, int status)
{
	struct pending *p = req->data;
	struct conn *n = p->conn;
	n->queued -= p->len;
	free(p);
	if (n->closing)
		return;
	if (status < 0) {
		conn_close(n);
		return;
	}
	give_room(n);
	if (n->paused && n->queued <= CONTROL_QUEUE_MAX / 2) {
		n->paused = false;
		reading_set(n);
	}
}

static void conn_send(void *ctx, struct call *c, const Copia__ControlFrame *f)
{
	struct conn *n = ctx;
	if (n->closing)
		return;
	uint32_t size = (uint32_t)copia__control_frame__get_packed_size(f);
	struct pending *p = xmalloc(sizeof(*p) + 4 + size);
	for (int i = 0; i < 4; i++)
		p->bytes[i] = (uint8_t)(size >> 8 * i);
	(void)copia__control_frame__pack(f, p->bytes + 4);
	uv_buf_t buf = uv_buf_init((char *)p->bytes, 4 + size);
	int done = n->queued ? 0 : uv_try_write((uv_stream_t *)&n->pipe, &buf, 1);
	if (done == (int)buf.len) {
		free(p);
		return;
	}
	if (done > 0) {
		buf.base += done;
		buf.len -= (size_t)done;
	}
	p->conn = n;
	p->len = buf.len;
	p->req.data = p;
	n->queued += p->len;
	if (uv_write(&p->req, (uv_stream_t *)&n->pipe, &buf, 1, on_written) < 0) {
		n->queued -= p->len;
		free(p);
	}
	/* Short replies ask nobody for room: whoever calls and never listens is not heard. Streams
	 * do ask, and stay below this: their signals and input get through however slow they read.
	 */
	if (n->queued >= 2 * CONTROL_QUEUE_MAX && !n->paused) {
		n->paused = true;
		reading_set(n);
	}
	(void)c;
}

static size_t conn_room(void *ctx, const struct call *c)
{
	struct conn *n = ctx;
	if (n->queued < CONTROL_QUEUE_MAX)
		return CONTROL_QUEUE_MAX - n->queued;
	n->full = true;
	return 0;
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf);

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *buf)
{
	struct conn *n = h->data;
	*buf = uv_buf_init(n->control->scratch, sizeof(n->control->scratch));
}

static bool is_read(const struct conn *n)
{
	return !n->closing && !n->paused && n->holds == 0;
}

static void on_resume(uv_timer_t *t);

/* Read or not, as things are now. What was received before a pause is taken by the loop, not from
 * within: the caller is some handler in the middle of its work. */
static void reading_set(struct conn *n)
{
	if (n->closing)
		return;
	if (!is_read(n)) {
		uv_read_stop((uv_stream_t *)&n->pipe);
		return;
	}
	(void)uv_read_start((uv_stream_t *)&n->pipe, on_alloc, on_read);
	if (n->in.len < 4)
		return;
	n->again = true;
	(void)uv_timer_start(&n->control->resume, on_resume, 0, 0);
}

static void conn_hold(void *ctx, struct call *c, bool hold)
{
	struct conn *n = ctx;
	n->holds += hold ? 1U : -1U;
	reading_set(n);
}

static void conn_end(void *ctx, struct call *c)
{
	struct conn *n = ctx;
	call_hold(c, false);
	DL_DELETE(n->calls, c);
	n->call_count--;
}

static const struct call_sink conn_sink = { conn_send, conn_room, conn_hold, conn_end };

static struct call *find_call(struct conn *n, uint64_t number)
{
	struct call *c;
	DL_FOREACH(n->calls, c)
	if (c->number == number)
		return c;
	return NULL;
}

static void start_call(struct conn *n, const Copia__ControlFrame *f)
{
	struct call *c = call_new(n->control->node, &conn_sink, n, &n->who, f->call);
	DL_APPEND(n->calls, c);
	n->call_count++;
	if (n->call_count > CONTROL_CALLS_MAX)
		call_finish(c, -EBUSY, "more than %d calls at once on one connection",
			    CONTROL_CALLS_MAX);
	else if (f->version != CONTROL_VERSION)
		call_finish(
		    c, -EPROTO,
		    "copia speaks protocol %u, this node's copiad (%s) protocol %d; install "
		    "the same version of both",
		    f->version, COPIA_VERSION, CONTROL_VERSION);
	else
		control_run(n->control, c, f->verb, (struct span){ f->body.data, f->body.len },
			    true);
}

static void take_frame(struct conn *n, const Copia__ControlFrame *f)
{
	struct call *c = find_call(n, f->call);
	if (!c && *f->verb)
		start_call(n, f);
	else if (c && c->hooks.frame)
		c->hooks.frame(c->ctx, c, f->body.data, f->body.len, f->last);
	/* Anything else is a late frame of a call that has ended: dropped. */
}

/* Take all whole frames; returns false when the connection is garbage. */
static bool take_frames(struct conn *n)
{
	size_t at = 0;
	while (is_read(n) && n->in.len - at >= 4) {
		const uint8_t *p = (const uint8_t *)n->in.at + at;
		uint32_t size =
		    p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
		if (size > CONTROL_FRAME_MAX)
			return false;
		if (n->in.len - at - 4 < size)
			break;
		Copia__ControlFrame *f = copia__control_frame__unpack(NULL, size, p + 4);
		if (!f)
			return false;
		take_frame(n, f);
		copia__control_frame__free_unpacked(f, NULL);
		at += 4 + size;
	}
	str_cut(&n->in, at);
	return true;
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf)
{
	struct conn *n = stream->data;
	if (got > 0)
		str_add(&n->in, buf->base, (size_t)got);
	if (got < 0 || !take_frames(n))
		conn_close(n);
}

static void on_resume(uv_timer_t *t)
{
	struct control *s = t->data;
	struct conn *n;
	/* Connections are taken out of the list by the loop only, so this may close some. */
	DL_FOREACH(s->conns, n)
	{
		bool again = n->again;
		n->again = false;
		if (again && is_read(n) && !take_frames(n))
			conn_close(n);
	}
}

/* ---------------------------------------------------------------- the listening socket */

static void learn_user(struct conn *n)
{
	int fd;
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);
	if (uv_fileno((uv_handle_t *)&n->pipe, &fd) == 0)
		(void)getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len);
	n->who = (struct call_who){ .uid = cred.uid, .gid = cred.gid, .pid = cred.pid };
	n->who.privileged = cred.pid && (cred.uid == 0 || cred.uid == geteuid());
	struct passwd store, *found = NULL;
	char text[1024];
	if (getpwuid_r(cred.uid, &store, text, sizeof(text), &found) == 0 && found)
		(void)snprintf(n->who.user, sizeof(n->who.user), "%s", found->pw_name);
	else
		(void)snprintf(n->who.user, sizeof(n->who.user), "%u", (unsigned)cred.uid);
}

bool call_groups(const struct call *c, gid_t **ret, size_t *ret_count)
{
	if (c->sink != &conn_sink)
		return false;
	const struct conn *n = c->sink_ctx;
	int fd;
	if (uv_fileno((const uv_handle_t *)&n->pipe, &fd) < 0)
		return false;
	socklen_t len = 64 * sizeof(gid_t);
	gid_t *groups = xmalloc(len);
	while (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &len) < 0) {
		/* ERANGE says in `len` how much is wanted. */
		if (errno != ERANGE) {
			free(groups);
			return false;
		}
		groups = xrealloc(groups, len);
	}
	*ret = groups;
	*ret_count = len / sizeof(gid_t);
	return true;
}

/* Nobody but root and our own user may take so many connections that others get none. */
static bool has_place(const struct conn *n)
{
	const struct control *s = n->control;
	size_t same = 0;
	const struct conn *other;
	if (s->conn_count > CONTROL_CONNECTIONS_MAX)
		return false;
	if (n->who.privileged)
		return true;
	DL_FOREACH(s->conns, other)
	same += other->who.uid == n->who.uid && !other->closing;
	return same <= CONTROL_USER_CONNECTIONS_MAX &&
	       s->conn_count <= CONTROL_CONNECTIONS_MAX - CONTROL_RESERVED;
}

static void on_connection(uv_stream_t *listener, int status)
{
	struct control *s = listener->data;
	if (status < 0)
		return;
	struct conn *n = xcalloc(1, sizeof(*n));
	n->control = s;
	(void)uv_pipe_init(s->node->loop, &n->pipe, 0);
	n->pipe.data = n;
	DL_APPEND(s->conns, n);
	s->conn_count++;
	int r = uv_accept(listener, (uv_stream_t *)&n->pipe);
	if (r == 0)
		learn_user(n);
	if (r < 0 || !has_place(n)) {
		conn_close(n);
		return;
	}
	(void)uv_read_start((uv_stream_t *)&n->pipe, on_alloc, on_read);
}

int control_new(struct control **ret, struct node *node, struct err *err)
{
	struct control *s = xcalloc(1, sizeof(*s));
	s->node = node;
	struct str path = { 0 };
	str_printf(&path, "%s/copia.sock", node->settings.run_dir);
	s->path = str_take(&path);
	(void)uv_pipe_init(node->loop, &s->listener, 0);
	s->listener.data = s;
	(void)uv_timer_init(node->loop, &s->resume);
	s->resume.data = s;
	*ret = s;
	return 0;
}

int control_listen(struct control *s, struct err *err)
{
	/* copiad holds the lock of the state folder, so an old socket here is nobody's. */
	(void)unlink(s->path);
	int r = uv_pipe_bind(&s->listener, s->path);
	/* Everybody may connect: rights are decided for each verb by the peer's credentials. */
	if (r == 0 && chmod(s->path, 0666) < 0)
		r = -errno;
	if (r == 0)
		r = uv_listen((uv_stream_t *)&s->listener, 128, on_connection);
	if (r < 0)
		return err_set(err, r, "listen on %s: %s", s->path, uv_strerror(r));
	s->listening = true;
	return 0;
}

static void on_listener_closed(uv_handle_t *h)
{
	struct control *s = h->data;
	free(s->path);
	free(s);
}

void control_close(struct control *s)
{
	struct conn *n, *next;
	DL_FOREACH_SAFE(s->conns, n, next)
	conn_close(n);
	/* The loop closes handles in the order asked: the listener, and so `s`, goes last. */
	uv_close((uv_handle_t *)&s->resume, NULL);
	uv_close((uv_handle_t *)&s->listener, on_listener_closed);
}
