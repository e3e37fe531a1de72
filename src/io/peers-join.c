/* SPDX-License-Identifier: Apache-2.0 */
#include "io/peers-internal.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

enum { TIMEOUT_MS = 15000 };

static const struct frame_limits limits_reply = {
	.message_max = { [CHANNEL_SESSION] = PEERS_REPLY_MAX + 16 },
};

struct attempt {
	struct tls_conn conn; /* first */
	struct peers_join *j;
	union addr remote;
	bool connected;
};

/*   resolving --> trying addresses --first that is verified--> asking --> done
 * Exactly one call of `cb`; afterwards only handles are waited for. */
struct peers_join {
	uv_loop_t *loop;
	peers_join_done *cb; /* NULL once called or cancelled */
	void *ctx;
	struct str host, request;
	uint16_t port, version_min, version_max;
	uint8_t authority[PKI_FINGERPRINT_SIZE];

	struct addr_resolve *resolve;
	union addr addresses[ADDR_RESOLVE_MAX];
	size_t count, tried;
	struct attempt *attempts[ADDR_RESOLVE_MAX];
	struct attempt *asked; /* has the request */
	struct err fault;      /* the most telling so far */
	uv_timer_t stagger, deadline;
	struct tls_conn_buffers buffers;
	unsigned handles;
};

static const struct tls_conn_events attempt_events;

static void free_if_done(struct peers_join *j)
{
	if (j->handles)
		return;
	str_free(&j->host);
	pki_wipe(&j->request);
	pki_wipe_bytes(&j->buffers, sizeof(j->buffers));
	free(j);
}

static void on_timer_closed(uv_handle_t *handle)
{
	struct peers_join *j = handle->data;
	j->handles--;
	free_if_done(j);
}

static void drop_attempt(struct attempt *a)
{
	struct peers_join *j = a->j;
	for (size_t i = 0; i < ADDR_RESOLVE_MAX; i++)
		if (j->attempts[i] == a)
			j->attempts[i] = NULL;
	tls_conn_close(&a->conn);
}

static void close_all(struct peers_join *j)
{
	addr_resolve_cancel(take_ptr(j->resolve));
	for (size_t i = 0; i < ADDR_RESOLVE_MAX; i++)
		if (j->attempts[i])
			drop_attempt(j->attempts[i]);
	uv_close((uv_handle_t *)&j->stagger, on_timer_closed);
	uv_close((uv_handle_t *)&j->deadline, on_timer_closed);
}

static void finish(struct peers_join *j, const struct peers_joined *joined, const struct err *err)
{
	peers_join_done *cb = take_ptr(j->cb);
	assert(cb);
	cb(j->ctx, err ? err->code : 0, joined, err);
	close_all(j);
}

static void fail(struct peers_join *j, int code, const char *why)
{
	struct err err = { 0 };
	err_set(&err, code, "%s", why);
	finish(j, NULL, &err);
}

/* What a person should hear first when addresses fail in different ways. */
static int rank(int code)
{
	return code == -EKEYREJECTED ? 3 : code == -EPROTO ? 2 : code ? 1 : 0;
}

static void note_fault(struct peers_join *j, const union addr *to, int code, const char *why)
{
	static const char *const remedies[] = {
		"is copiad running there, and is the port right and open?",
		"is the port right?",
		"the token is of another cluster than the one of this host",
	};
	char text[ADDR_TEXT];
	if (rank(code) > rank(j->fault.code))
		err_set(&j->fault, code, "%s: %s: %s", addr_show(to, text), why,
			remedies[rank(code) - 1]);
}

static void try_next(struct peers_join *j);

static void on_stagger(uv_timer_t *timer)
{
	try_next(timer->data);
}

static void try_next(struct peers_join *j)
{
	while (j->tried < j->count) {
		size_t at = j->tried++;
		struct attempt *a = xcalloc(1, sizeof(*a));
		struct err err = { 0 };
		a->j = j;
		a->remote = j->addresses[at];
		tls_conn_init(&a->conn, j->loop, &attempt_events, &j->buffers);
		j->handles++;
		if (tls_conn_dial(&a->conn, &a->remote, &err) < 0) {
			note_fault(j, &a->remote, -EHOSTUNREACH, err.msg);
			continue;
		}
		j->attempts[at] = a;
		if (j->tried < j->count)
			(void)uv_timer_start(&j->stagger, on_stagger, PEERS_STAGGER_MS, 0);
		return;
	}
	for (size_t i = 0; i < ADDR_RESOLVE_MAX; i++)
		if (j->attempts[i])
			return;
	struct err fault = j->fault;
	finish(j, NULL, &fault);
}

static void on_resolved(void *ctx, int result, const union addr *addresses, size_t count,
			const struct err *err)
{
	struct peers_join *j = ctx;
	j->resolve = NULL;
	if (result < 0) {
		fail(j, -EHOSTUNREACH, err->msg);
		return;
	}
	memcpy(j->addresses, addresses, count * sizeof(*addresses));
	j->count = count;
	try_next(j);
}

/* --------------------------------------------------------------------------------------- events */

static void on_connected(struct tls_conn *c)
{
	struct attempt *a = CONTAINER(c, struct attempt, conn);
	a->connected = true;
	tls_conn_start(c, tls_new_join(a->j->authority), &limits_reply);
}

/* Verified: the first one gets the request, the others go. */
static void on_ready(struct tls_conn *c)
{
	struct attempt *a = CONTAINER(c, struct attempt, conn);
	struct peers_join *j = a->j;
	if (!tls_peer(c->tls)) { /* cannot be, since a client's handshake fails then */
		fail(j, -EKEYREJECTED, "the other side is not verified");
		return;
	}
	j->asked = a;
	j->tried = j->count;
	(void)uv_timer_stop(&j->stagger);
	for (size_t i = 0; i < ADDR_RESOLVE_MAX; i++)
		if (j->attempts[i] && j->attempts[i] != a)
			drop_attempt(j->attempts[i]);

	_cleanup_(pki_wipe) struct str body = { 0 }, frames = { 0 };
	struct session_message m = { .type = SESSION_JOIN,
				     .version_min = j->version_min,
				     .version_max = j->version_max,
				     .body = pki_span(&j->request) };
	/* Reserved at once: growing would leave copies of the secret behind. */
	str_reserve(&body, j->request.len + 64);
	str_reserve(&frames, j->request.len + 128);
	session_write(&body, &m);
	frame_append(&frames, CHANNEL_SESSION, body.at, body.len);
	tls_conn_write(c, frames.at, frames.len);
	pki_wipe(&j->request);
}

static void on_reply(struct attempt *a, const struct session_message *m)
{
	struct peers_join *j = a->j;
	_cleanup_(str_free) struct str authority = { 0 };
	struct err err = { 0 };
	if (!session_version(m->version_min, m->version_max, j->version_min, j->version_max)) {
		fail(j, -EPROTONOSUPPORT, "version mismatch: install the same version of Copia");
		return;
	}
	if (tls_join_authority(a->conn.tls, &authority, &err) < 0) {
		finish(j, NULL, &err);
		return;
	}
	struct peers_joined joined = { .reply = m->body, .authority_pem = authority.at };
	(void)addr_show(&a->remote, joined.remote);
	finish(j, &joined, NULL);
}

static void on_message(struct tls_conn *c, uint8_t channel, struct span body)
{
	struct attempt *a = CONTAINER(c, struct attempt, conn);
	struct session_message m;
	char text[SESSION_TEXT_MAX + 1];
	if (session_read(body, &m, NULL) < 0)
		fail(a->j, -EPROTO, "the other side's answer cannot be read");
	else if (m.type == SESSION_REFUSE)
		fail(a->j, m.code == SESSION_VERSION ? -EPROTONOSUPPORT : -EACCES,
		     session_text(m.body, text));
	else if (m.type == SESSION_JOIN_REPLY)
		on_reply(a, &m);
	else
		fail(a->j, -EPROTO, "the other side answered with something else");
}

static void on_lost(struct tls_conn *c, const struct err *err)
{
	struct attempt *a = CONTAINER(c, struct attempt, conn);
	struct peers_join *j = a->j;
	char text[128];
	drop_attempt(a);
	if (!j->cb)
		return;
	if (j->asked == a) {
		fail(j, -ECONNRESET,
		     "connection lost before the answer came: the token may have been used; look "
		     "at 'copia nodes' on a node of the cluster before trying again");
		return;
	}
	if (!a->connected)
		note_fault(j, &a->remote, -EHOSTUNREACH, err->msg);
	else if (err->code == -EKEYREJECTED)
		note_fault(j, &a->remote, -EKEYREJECTED, err->msg);
	else {
		(void)snprintf(text, sizeof(text), "it does not answer like a Copia node (%.60s)",
			       err->msg);
		note_fault(j, &a->remote, -EPROTO, text);
	}
	try_next(j);
}

static void ignore(struct tls_conn *c)
{
}

/* The other side speaks first: TLS servers never do. */
static void on_first(struct tls_conn *c, uint8_t byte)
{
	tls_conn_fail(c, -EPROTO, "it spoke first");
}

static void on_closed(struct tls_conn *c)
{
	struct attempt *a = CONTAINER(c, struct attempt, conn);
	struct peers_join *j = a->j;
	free(a);
	j->handles--;
	free_if_done(j);
}

static const struct tls_conn_events attempt_events = {
	.connected = on_connected,
	.first = on_first,
	.ready = on_ready,
	.message = on_message,
	.sent = ignore,
	.lost = on_lost,
	.closed = on_closed,
};

static void on_deadline(uv_timer_t *timer)
{
	struct peers_join *j = timer->data;
	if (j->asked) {
		fail(j, -ETIMEDOUT,
		     "no answer to the request in time: the cluster may have no leader now; look "
		     "at 'copia status' on a node of it before trying again");
		return;
	}
	for (size_t i = 0; i < ADDR_RESOLVE_MAX; i++) {
		struct attempt *a = j->attempts[i];
		if (a)
			note_fault(j, &a->remote, a->connected ? -EPROTO : -EHOSTUNREACH,
				   a->connected ? "it does not answer like a Copia node"
						: "no answer in time");
	}
	struct err fault = j->fault;
	if (!fault.code)
		err_set(&fault, -EHOSTUNREACH, "host '%s' cannot be resolved in time",
			str_text(&j->host));
	finish(j, NULL, &fault);
}

/* ------------------------------------------------------------------------------------ interface */

int peers_join(uv_loop_t *loop, const struct peers_join_settings *settings, peers_join_done *cb,
	       void *ctx, struct peers_join **ret, struct err *err)
{
	assert(cb);
	if (settings->request.len > PEERS_JOIN_MAX)
		return err_set(err, -EMSGSIZE, "request for joining is longer than %d bytes",
			       PEERS_JOIN_MAX);
	struct peers_join *j = xcalloc(1, sizeof(*j));
	j->loop = loop;
	j->cb = cb;
	j->ctx = ctx;
	j->port = settings->port;
	j->version_min = (uint16_t)(settings->version_min ? settings->version_min : PEERS_VERSION);
	j->version_max = (uint16_t)(settings->version_max ? settings->version_max : PEERS_VERSION);
	memcpy(j->authority, settings->authority, sizeof(j->authority));
	int r =
	    addr_resolve(loop, settings->host, settings->port, on_resolved, j, &j->resolve, err);
	if (r < 0) {
		free(j);
		return r;
	}
	str_puts(&j->host, settings->host);
	str_add(&j->request, settings->request.at, settings->request.len);
	(void)uv_timer_init(loop, &j->stagger);
	(void)uv_timer_init(loop, &j->deadline);
	j->stagger.data = j->deadline.data = j;
	j->handles = 2;
	(void)uv_timer_start(&j->deadline, on_deadline,
			     settings->timeout_ms ? settings->timeout_ms : TIMEOUT_MS, 0);
	*ret = j;
	return 0;
}

void peers_join_cancel(struct peers_join *j)
{
	assert(j->cb);
	j->cb = NULL;
	close_all(j);
}
