/* SPDX-License-Identifier: Apache-2.0 */
#include "io/tls-conn.h"

#include <assert.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes that the kernel may hold unsent: keeps what was queued first by priority from waiting
 * behind megabytes in the socket. */
enum { NOT_SENT_LOW_BYTES = 128 * 1024 };

struct write {
	uv_write_t request; /* first */
	struct tls_conn *conn;
	char *bytes;
	size_t len;
};

static void on_closed(uv_handle_t *handle)
{
	struct tls_conn *c = CONTAINER(handle, struct tls_conn, tcp);
	assert(c->state == TLS_CONN_CLOSED);
	tls_free(c->tls);
	c->tls = NULL;
	if (c->decoder)
		frame_decoder_free(c->decoder);
	free(c->decoder);
	c->decoder = NULL;
	c->events->closed(c);
}

void tls_conn_close(struct tls_conn *c)
{
	if (c->state == TLS_CONN_CLOSED)
		return;
	c->state = TLS_CONN_CLOSED;
	uv_close((uv_handle_t *)&c->tcp, on_closed);
}

static void lose(struct tls_conn *c, const struct err *err)
{
	if (c->state == TLS_CONN_CLOSED)
		return;
	tls_conn_close(c);
	c->events->lost(c, err);
}

void tls_conn_fail(struct tls_conn *c, int code, const char *why)
{
	struct err err = { 0 };
	err_set(&err, code, "%s", why);
	lose(c, &err);
}

/* libuv writes without MSG_NOSIGNAL: a peer that closed would end this process. A handler that the
 * program has set stays. */
static void ignore_broken_pipes(void)
{
	struct sigaction now;
	if (sigaction(SIGPIPE, NULL, &now) == 0 && !(now.sa_flags & SA_SIGINFO) &&
	    now.sa_handler == SIG_DFL)
		(void)signal(SIGPIPE, SIG_IGN);
}

void tls_conn_init(struct tls_conn *c, uv_loop_t *loop, const struct tls_conn_events *events,
		   struct tls_conn_buffers *buffers)
{
	*c = (struct tls_conn){ .state = TLS_CONN_NEW, .events = events, .buffers = buffers };
	ignore_broken_pipes();
	int r = uv_tcp_init(loop, &c->tcp);
	assert(r == 0); /* makes no socket yet, cannot fail */
	(void)r;
}

/* ------------------------------------------------------------------------------------ sending */

static void on_shut(uv_shutdown_t *request, int status)
{
	free(request);
}

/* All is sent: end our direction. */
static void shut(struct tls_conn *c)
{
	uv_shutdown_t *request = xmalloc(sizeof(*request));
	if (uv_shutdown(request, (uv_stream_t *)&c->tcp, on_shut) < 0)
		free(request);
}

static void on_written(uv_write_t *request, int status)
{
	struct write *w = (struct write *)request;
	struct tls_conn *c = w->conn;
	assert(c->inflight >= w->len);
	c->inflight -= w->len;
	free(w->bytes);
	free(w);
	if (c->state == TLS_CONN_CLOSED)
		return;
	if (status < 0) {
		struct err err = { 0 };
		err_set(&err, status, "connection lost: %s", uv_strerror(status));
		lose(c, &err);
		return;
	}
	if (c->state == TLS_CONN_READY)
		c->events->sent(c);
}

/* Hand what TLS has put out to the kernel. */
static void flush(struct tls_conn *c)
{
	struct str *out = tls_output(c->tls);
	if (!out->len || c->state == TLS_CONN_CLOSED)
		return;
	struct write *w = xcalloc(1, sizeof(*w));
	w->conn = c;
	w->len = out->len;
	w->bytes = str_take(out);
	c->inflight += w->len;
	uv_buf_t buf = uv_buf_init(w->bytes, (unsigned)w->len);
	int r = uv_write(&w->request, (uv_stream_t *)&c->tcp, &buf, 1, on_written);
	if (r < 0) { /* not connected any more: reading says so next */
		c->inflight -= w->len;
		free(w->bytes);
		free(w);
	}
}

void tls_conn_write(struct tls_conn *c, const void *bytes, size_t len)
{
	assert(c->state == TLS_CONN_READY || c->state == TLS_CONN_CLOSED);
	if (c->state == TLS_CONN_CLOSED)
		return;
	struct err err = { 0 };
	int r = tls_write(c->tls, bytes, len, &err);
	flush(c);
	if (r < 0) /* our own direction is broken: the other side sees the end and so do we */
		shut(c);
}

void tls_conn_send(struct tls_conn *c, uint8_t channel, const void *body, size_t len)
{
	_cleanup_(str_free) struct str frames = { 0 };
	frame_append(&frames, channel, body, len);
	tls_conn_write(c, frames.at, frames.len);
}

void tls_conn_finish(struct tls_conn *c)
{
	if (c->state == TLS_CONN_CLOSED || c->state == TLS_CONN_FINISHING)
		return;
	if (!c->tls) {
		tls_conn_close(c);
		return;
	}
	tls_end(c->tls);
	flush(c);
	c->state = TLS_CONN_FINISHING;
	shut(c); /* libuv does it behind what is queued */
}

/* ---------------------------------------------------------------------------------- receiving */

static int on_message(void *ctx, uint8_t channel, struct span body)
{
	struct tls_conn *c = ctx;
	c->events->message(c, channel, body);
	return c->state == TLS_CONN_READY ? 0 : -ECANCELED;
}

static void secure(struct tls_conn *c)
{
	struct err err = { 0 };
	int r = tls_handshake(c->tls, &err);
	flush(c);
	if (r < 0) {
		lose(c, &err);
	} else if (r > 0) {
		c->state = TLS_CONN_READY;
		c->events->ready(c);
	}
}

static void read_frames(struct tls_conn *c)
{
	char *plain = c->buffers->plain;
	struct err err = { 0 };
	while (c->state == TLS_CONN_READY) {
		int got = tls_read(c->tls, plain, TLS_CONN_PLAIN_SIZE, &err);
		int r = got;
		if (got > 0) {
			r = frame_feed(c->decoder, plain, (size_t)got, on_message, c, &err);
			if (c->wipe)
				pki_wipe_bytes(plain, (size_t)got);
		}
		flush(c); /* an alert, an answer to a change of keys */
		if (r < 0 && r != -ECANCELED)
			lose(c, &err);
		if (got <= 0 || r < 0)
			return;
	}
}

static void on_bytes(struct tls_conn *c, const char *bytes, size_t len)
{
	if (c->state == TLS_CONN_RAW) {
		c->events->first(c, (uint8_t)bytes[0]);
		if (c->state == TLS_CONN_CLOSED)
			return;
		assert(c->state == TLS_CONN_SECURING);
	}
	if (c->state == TLS_CONN_FINISHING)
		return;
	tls_input(c->tls, bytes, len);
	if (c->state == TLS_CONN_SECURING)
		secure(c);
	if (c->state == TLS_CONN_READY)
		read_frames(c);
	tls_input(c->tls, NULL, 0); /* what is left belongs to a connection that ends */
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *ret)
{
	struct tls_conn *c = CONTAINER(handle, struct tls_conn, tcp);
	*ret = uv_buf_init(c->buffers->cipher, TLS_CONN_CIPHER_SIZE);
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf)
{
	struct tls_conn *c = CONTAINER(stream, struct tls_conn, tcp);
	if (got > 0) {
		on_bytes(c, buf->base, (size_t)got);
	} else if (got < 0) {
		struct err err = { 0 };
		if (got == UV_EOF)
			err_set(&err, -ECONNRESET, "the other side closed the connection");
		else
			err_set(&err, (int)got, "connection lost: %s", uv_strerror((int)got));
		lose(c, &err);
	}
}

static int begin(struct tls_conn *c, struct err *err)
{
	int r = uv_tcp_nodelay(&c->tcp, 1);
	int fd = -1, low = NOT_SENT_LOW_BYTES;
	if (!r)
		r = uv_fileno((uv_handle_t *)&c->tcp, &fd);
	if (!r)
		(void)setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &low, sizeof(low));
	if (!r)
		r = uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
	if (r < 0)
		return err_set(err, r, "connection lost: %s", uv_strerror(r));
	c->state = TLS_CONN_RAW;
	return 0;
}

int tls_conn_adopt(struct tls_conn *c, int fd, struct err *err)
{
	assert(c->state == TLS_CONN_NEW);
	int r = uv_tcp_open(&c->tcp, fd);
	if (r < 0) {
		(void)close(fd);
		err_set(err, r, "take a connection: %s", uv_strerror(r));
	} else {
		r = begin(c, err);
	}
	if (r < 0)
		tls_conn_close(c);
	return r;
}

static void on_connected(uv_connect_t *request, int status)
{
	struct tls_conn *c = request->data;
	free(request);
	if (c->state == TLS_CONN_CLOSED)
		return;
	struct err err = { 0 };
	if (status < 0)
		err_set(&err, status, "%s", uv_strerror(status));
	else
		status = begin(c, &err);
	if (status < 0)
		lose(c, &err);
	else
		c->events->connected(c);
}

int tls_conn_dial(struct tls_conn *c, const union addr *to, struct err *err)
{
	assert(c->state == TLS_CONN_NEW);
	uv_connect_t *request = xcalloc(1, sizeof(*request));
	request->data = c;
	c->state = TLS_CONN_DIALLING;
	int r = uv_tcp_connect(request, &c->tcp, &to->any, on_connected);
	if (r < 0) {
		free(request);
		tls_conn_close(c);
		return err_set(err, r, "%s", uv_strerror(r));
	}
	return 0;
}

void tls_conn_start(struct tls_conn *c, struct tls *tls, const struct frame_limits *limits)
{
	assert(c->state == TLS_CONN_RAW && !c->tls);
	c->tls = tls;
	c->decoder = xcalloc(1, sizeof(*c->decoder));
	c->decoder->limits = limits;
	c->state = TLS_CONN_SECURING;
	secure(c); /* a client says something now, a server waits */
}

void tls_conn_set_limits(struct tls_conn *c, const struct frame_limits *limits)
{
	if (c->decoder)
		c->decoder->limits = limits;
}

/* ------------------------------------------------------------------------------------ the link */

void tls_conn_watch(struct tls_conn *c, unsigned dead_ms)
{
	int fd;
	if (uv_fileno((uv_handle_t *)&c->tcp, &fd) < 0)
		return;
	/* TCP_USER_TIMEOUT counts unanswered data and unanswered probes alike (tcp(7)). */
	int on = 1, idle_s = (int)MAX(dead_ms / 3000, 1u), every_s = idle_s, count = 3;
	unsigned user_ms = dead_ms;
	(void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every_s, sizeof(every_s));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	(void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_ms, sizeof(user_ms));
}

uint32_t tls_conn_rtt_us(const struct tls_conn *c)
{
	int fd;
	struct tcp_info info;
	socklen_t size = sizeof(info);
	if (uv_fileno((const uv_handle_t *)&c->tcp, &fd) < 0 ||
	    getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) < 0)
		return 0;
	return info.tcpi_rtt;
}
