/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "io/peers-internal.h"
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

enum { TLS_HANDSHAKE_BYTE = 0x16, HELLO_MAX = 1024 };

/* Limits of one message. They also bound what a member can make us hold. */
const struct frame_limits peers_limits_greeting = {
	.message_max = { [CHANNEL_SESSION] = HELLO_MAX },
};
const struct frame_limits peers_limits_up = {
	.message_max = { [CHANNEL_SESSION] = HELLO_MAX,
			 [CHANNEL_AGREE] = 8 << 20,
			 [CHANNEL_MEMBERS] = 8 << 20,
			 [CHANNEL_LAUNCH] = 4 << 20,
			 [CHANNEL_WIREUP] = 16 << 20,
			 [CHANNEL_STAGE] = 4 << 20 },
};
static const struct frame_limits limits_join = {
	.message_max = { [CHANNEL_SESSION] = PEERS_JOIN_MAX + 16 },
};

#define TO(s) (1u << (s))
static const unsigned allowed[STAGE_COUNT] = {
	[STAGE_SILENT] = TO(STAGE_TALKING) | TO(STAGE_GONE),
	[STAGE_CONNECTING] = TO(STAGE_TALKING) | TO(STAGE_GONE),
	[STAGE_TALKING] =
	    TO(STAGE_GREETING) | TO(STAGE_JOINING) | TO(STAGE_ENDING) | TO(STAGE_GONE),
	[STAGE_GREETING] = TO(STAGE_UP) | TO(STAGE_ENDING) | TO(STAGE_GONE),
	[STAGE_UP] = TO(STAGE_ENDING) | TO(STAGE_GONE),
	[STAGE_JOINING] = TO(STAGE_ANSWERING) | TO(STAGE_ENDING) | TO(STAGE_GONE),
	[STAGE_ANSWERING] = TO(STAGE_ENDING) | TO(STAGE_GONE),
	[STAGE_ENDING] = TO(STAGE_GONE),
};

/* What each refusal counts as, and how it reads. */
static const struct {
	size_t counter; /* offset in struct peers_stats, 0: none */
	const char *remedy;
} refusals[SESSION_CODE_COUNT] = {
	[SESSION_VERSION] = { offsetof(struct peers_stats, refused_version),
			      ": install the same version of Copia on both" },
	[SESSION_CLUSTER] = { offsetof(struct peers_stats, refused_cluster), NULL },
	[SESSION_CERTIFICATE] = { offsetof(struct peers_stats, refused_certificate), NULL },
	[SESSION_UNKNOWN] = { offsetof(struct peers_stats, refused_unknown), NULL },
	[SESSION_FINGERPRINT] = { offsetof(struct peers_stats, refused_fingerprint), NULL },
	[SESSION_JOINING] = { offsetof(struct peers_stats, refused_join), NULL },
};

struct session *peers_session_new(struct peers *p, const union addr *remote)
{
	struct session *s = xcalloc(1, sizeof(*s));
	s->p = p;
	s->remote = *remote;
	s->list = LIST_OTHERS;
	TAILQ_INSERT_TAIL(&p->lists[s->list], s, entry);
	p->counts[s->list]++;
	tls_conn_init(&s->conn, p->loop, &peers_session_events, &p->buffers);
	p->handles++;
	return s;
}

void peers_session_list(struct session *s, enum session_list to)
{
	struct peers *p = s->p;
	if (s->source)
		peers_source_leave(s);
	TAILQ_REMOVE(&p->lists[s->list], s, entry);
	p->counts[s->list]--;
	s->list = to;
	TAILQ_INSERT_TAIL(&p->lists[to], s, entry);
	p->counts[to]++;
}

void peers_session_stage(struct session *s, enum session_stage to, unsigned deadline_ms)
{
	assert(allowed[s->stage] & TO(to));
	if (s->stage == STAGE_ANSWERING)
		s->p->joins--;
	s->stage = to;
	s->deadline_ms = deadline_ms ? uv_now(s->p->loop) + deadline_ms : 0;
	if (deadline_ms)
		peers_sweep_start(s->p);
}

/* The peer, if it has one, forgets this session. */
static void detach(struct session *s)
{
	struct peer *peer = s->peer;
	s->peer = NULL;
	if (!peer)
		return;
	if (peer->session == s)
		peer->session = NULL;
	if (peer->greeting == s)
		peer->greeting = NULL;
	if (s->dialled && peer->attempts[s->attempt] == s)
		peer->attempts[s->attempt] = NULL;
}

/* Out of all lists; `closed` frees it. */
static void gone(struct session *s)
{
	struct peers *p = s->p;
	if (s->stage == STAGE_GONE)
		return;
	detach(s);
	if (s->source)
		peers_source_leave(s);
	TAILQ_REMOVE(&p->lists[s->list], s, entry);
	p->counts[s->list]--;
	peers_session_stage(s, STAGE_GONE, 0);
}

void peers_session_drop(struct session *s)
{
	gone(s);
	tls_conn_close(&s->conn);
}

static void send_message(struct session *s, const struct session_message *m)
{
	_cleanup_(str_free) struct str body = { 0 };
	struct session_message full = *m;
	full.version_min = (uint16_t)s->p->settings.version_min;
	full.version_max = (uint16_t)s->p->settings.version_max;
	session_write(&body, &full);
	tls_conn_send(&s->conn, CHANNEL_SESSION, body.at, body.len);
	pki_wipe(&body);
}

/* Tell the other side and leave the connection to it. */
static void end(struct session *s, enum session_code code, const char *text)
{
	peers_session_list(s, LIST_OTHERS);
	peers_session_stage(s, STAGE_ENDING, PEERS_FINISH_MS);
	if (s->conn.state == TLS_CONN_READY) {
		struct session_message m = { .type = SESSION_REFUSE,
					     .code = code,
					     .body = { (const uint8_t *)text, strlen(text) } };
		send_message(s, &m);
	}
	tls_conn_finish(&s->conn);
}

static void note_refusal(struct session *s, enum session_code code, const char *text)
{
	struct peers *p = s->p;
	char remote[ADDR_TEXT];
	size_t counter = refusals[code].counter;
	if (counter)
		++*(uint64_t *)((char *)&p->stats + counter);
	if (code != SESSION_TIE)
		peers_log(p, &s->remote, code, "session with %s refused: %s",
			  addr_show(&s->remote, remote), text);
}

void peers_session_refuse(struct session *s, enum session_code code, const char *fmt, ...)
{
	char text[SESSION_TEXT_MAX + 1];
	va_list args;
	va_start(args, fmt);
	int len = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (refusals[code].remedy && len > 0 && (size_t)len < sizeof(text))
		(void)snprintf(text + len, sizeof(text) - (size_t)len, "%s", refusals[code].remedy);
	note_refusal(s, code, text);
	end(s, code, text);
	if (s->peer && s->dialled)
		peers_dial_failed(s, code, text);
	detach(s);
}

bool peers_allows(const struct peer *peer, const struct pki_fingerprint *f)
{
	for (size_t i = 0; i < peer->allowed_count; i++)
		if (pki_fingerprint_equal(&peer->allowed[i], f))
			return true;
	return peer->allowed_count == 0;
}

/* The peer was up and is not any more. */
static void went_down(struct peer *peer, uint64_t up_since_ms, const char *reason)
{
	if (uv_now(peer->p->loop) - up_since_ms > 1000)
		peer->failures = 0; /* it was a real session, not one of a quarrel */
	peers_queue_drop(peer);
	peers_tell(peer, false, reason);
	if (!peer->forgotten && !peer->session)
		peers_dial_later(peer, false);
}

void peers_session_end(struct peer *peer, enum session_code code, const char *reason)
{
	struct session *s = peer->session;
	if (!s)
		return;
	detach(s);
	end(s, code, reason);
	went_down(peer, s->up_since_ms, reason);
}

/* --------------------------------------------------------------------------------- certificates */

/* The other side has no certificate that we verified. */
static void refuse_certificate(struct session *s)
{
	struct pki_cert claim;
	char id[ID_TEXT];
	if (!tls_peer_claim(s->conn.tls, &claim)) {
		peers_session_refuse(s, SESSION_CERTIFICATE, "certificate is not accepted: %s",
				     tls_peer_fault(s->conn.tls));
	} else if (id_compare(&claim.cluster, &s->p->settings.cluster) != 0) {
		peers_session_refuse(s, SESSION_CLUSTER,
				     "node %u presented a certificate of another cluster (%s)",
				     claim.node, id_show(&claim.cluster, id));
	} else {
		peers_session_refuse(s, SESSION_CERTIFICATE,
				     "node %u presented a certificate that this cluster's "
				     "authority did not sign: %s",
				     claim.node, tls_peer_fault(s->conn.tls));
	}
}

/* The one gate that every certificate passes, dialled or accepted. NULL: refused. */
static struct peer *admit_certificate(struct session *s)
{
	const struct pki_cert *cert = tls_peer(s->conn.tls);
	if (!cert) {
		refuse_certificate(s);
		return NULL;
	}
	struct peer *peer = peers_find(s->p, cert->node);
	if (id_compare(&cert->cluster, &s->p->settings.cluster) != 0) {
		refuse_certificate(s);
	} else if (s->dialled && s->peer != peer) {
		peers_session_refuse(s, SESSION_WRONG_NODE,
				     "this is node %u, where node %u was expected", cert->node,
				     s->peer ? s->peer->number : 0);
	} else if (!peer || peer == s->p->self) {
		peers_session_refuse(s, SESSION_UNKNOWN,
				     peer ? "node %u is myself"
					  : "node %u is not a member (any more, or yet)",
				     cert->node);
	} else if (!peers_allows(peer, &cert->fingerprint)) {
		peers_session_refuse(s, SESSION_FINGERPRINT,
				     "node %u presented a certificate that is not in use for it",
				     cert->node);
	} else {
		s->cert = *cert;
		return peer;
	}
	return NULL;
}

static void on_ready(struct tls_conn *c)
{
	struct session *s = CONTAINER(c, struct session, conn);
	if (!s->dialled && !tls_peer_present(c->tls)) {
		c->wipe = true;
		tls_conn_set_limits(c, &limits_join);
		peers_session_stage(s, STAGE_JOINING, 2 * s->p->settings.handshake_ms);
		return;
	}
	if (!admit_certificate(s))
		return;
	if (!s->dialled)
		peers_session_list(s, LIST_OTHERS);
	peers_session_stage(s, STAGE_GREETING, s->p->settings.handshake_ms);
	if (s->dialled)
		peers_dial_verified(s);
}

/* ------------------------------------------------------------------------------------ greetings */

void peers_session_greet(struct session *s)
{
	struct session_message m = { .type = SESSION_HELLO,
				     .cluster = s->p->settings.cluster,
				     .node = s->p->settings.node,
				     .incarnation = s->p->settings.incarnation,
				     .order = ++s->p->order };
	send_message(s, &m);
}

static void come_up(struct session *s, struct peer *peer)
{
	struct peers *p = s->p;
	peers_dial_stop(peer, s);
	s->peer = peer;
	peer->session = s;
	peer->greeting = NULL;
	s->up_since_ms = uv_now(p->loop);
	peers_session_stage(s, STAGE_UP, 0);
	peers_session_list(s, LIST_UP);
	tls_conn_set_limits(&s->conn, &peers_limits_up);
	tls_conn_watch(&s->conn, p->settings.dead_ms);
	p->stats.sessions++;
	if (peers_queue_any(peer))
		peers_queue_dirty(peer);
	peers_tell(peer, true, "");
}

/* False: refused. */
static bool check_hello(struct session *s, const struct session_message *m)
{
	const struct peers_settings *own = &s->p->settings;
	if (!session_version(m->version_min, m->version_max, (uint16_t)own->version_min,
			     (uint16_t)own->version_max))
		peers_session_refuse(s, SESSION_VERSION,
				     "version mismatch: node %u speaks protocol %u to %u, "
				     "node %u speaks %u to %u",
				     s->cert.node, m->version_min, m->version_max, own->node,
				     own->version_min, own->version_max);
	else if (id_compare(&m->cluster, &own->cluster) != 0)
		peers_session_refuse(s, SESSION_CLUSTER, "node %u greets for another cluster",
				     s->cert.node);
	else if (m->node != s->cert.node)
		peers_session_refuse(s, SESSION_CERTIFICATE,
				     "node %u greets with the certificate of node %u", m->node,
				     s->cert.node);
	else
		return true;
	return false;
}

/* A greeting on an accepted connection: use it, or is there a better one? See peers.h. */
static void accept_hello(struct session *s)
{
	struct peer *peer = admit_certificate(s); /* again: much may have changed since */
	if (!peer)
		return;
	struct session *old = peer->session;
	bool late = old && old->incarnation == s->incarnation && s->order < old->order;
	bool ours_wins = !old && peer->greeting && s->p->settings.node < peer->number;
	if (late || ours_wins) {
		peers_session_refuse(s, SESSION_TIE, "the other connection is used");
		return;
	}
	if (old) {
		peers_session_drop(old);
		went_down(peer, old->up_since_ms, "the other side made a new session");
		/* The event may have done anything. */
		if (s->stage != STAGE_GREETING || peer->forgotten)
			return;
	}
	peers_session_greet(s);
	come_up(s, peer);
}

static void on_refused(struct session *s, const struct session_message *m)
{
	char text[SESSION_TEXT_MAX + 1], why[PEERS_REASON_TEXT], remote[ADDR_TEXT];
	uint32_t node = s->cert.node;
	if (m->code != SESSION_TIE && s->stage != STAGE_UP)
		peers_log(s->p, &s->remote, 100 + m->code, "node %u at %s refused a session: %s",
			  node, addr_show(&s->remote, remote), session_text(m->body, text));
	(void)snprintf(why, sizeof(why), "node %u ended it: %s", node, session_text(m->body, text));
	struct peer *peer = s->peer;
	bool was_up = s->stage == STAGE_UP;
	if (peer && s->dialled && !was_up)
		peers_dial_failed(s, m->code, why);
	peers_session_drop(s);
	if (was_up && peer)
		went_down(peer, s->up_since_ms, why);
}

static void on_greeting(struct session *s, const struct session_message *m)
{
	if (s->dialled && s->peer && s->peer->greeting != s)
		return; /* cannot be: it answers a greeting that was not sent */
	if (!check_hello(s, m))
		return;
	s->incarnation = m->incarnation;
	s->order = m->order;
	if (!s->dialled)
		accept_hello(s);
	else if (admit_certificate(s))
		come_up(s, s->peer);
}

/* -------------------------------------------------------------------------------------- joining */

static void on_join(struct session *s, const struct session_message *m)
{
	struct peers *p = s->p;
	char remote[ADDR_TEXT];
	if (!session_version(m->version_min, m->version_max, (uint16_t)p->settings.version_min,
			     (uint16_t)p->settings.version_max)) {
		peers_session_refuse(s, SESSION_VERSION,
				     "version mismatch: you speak protocol %u to %u, "
				     "node %u speaks %u to %u",
				     m->version_min, m->version_max, p->settings.node,
				     p->settings.version_min, p->settings.version_max);
		return;
	}
	if (!p->settings.events.join) {
		peers_session_refuse(s, SESSION_JOINING, "this node admits nobody now");
		return;
	}
	if (p->joins >= PEERS_JOINS_MAX) {
		peers_session_refuse(s, SESSION_JOINING,
				     "too many nodes are joining: try again in a minute");
		return;
	}
	s->ticket = ++p->tickets;
	p->joins++;
	peers_session_list(s, LIST_OTHERS);
	peers_session_stage(s, STAGE_ANSWERING, PEERS_JOIN_WAIT_MS);
	p->settings.events.join(p->settings.events.ctx, s->ticket, m->body,
				addr_show(&s->remote, remote));
}

static struct session *find_ticket(struct peers *p, uint64_t ticket)
{
	struct session *s;
	TAILQ_FOREACH(s, &p->lists[LIST_OTHERS], entry)
	{
		if (s->stage == STAGE_ANSWERING && s->ticket == ticket)
			return s;
	}
	return NULL;
}

int peers_join_reply(struct peers *p, uint64_t ticket, const void *body, size_t len)
{
	struct session *s = find_ticket(p, ticket);
	if (!s)
		return -ENOENT;
	if (len > PEERS_REPLY_MAX)
		return -EMSGSIZE;
	struct session_message m = { .type = SESSION_JOIN_REPLY, .body = { body, len } };
	send_message(s, &m);
	/* Long answers take their time; the newcomer's own deadline is shorter. */
	peers_session_stage(s, STAGE_ENDING, PEERS_JOIN_WAIT_MS);
	tls_conn_finish(&s->conn);
	return 0;
}

int peers_join_refuse(struct peers *p, uint64_t ticket, const char *reason)
{
	struct session *s = find_ticket(p, ticket);
	if (!s)
		return -ENOENT;
	peers_session_refuse(s, SESSION_JOINING, "%s", reason);
	return 0;
}

/* --------------------------------------------------------------------------------------- events */

/* Closed for what it sent. */
static void garbage(struct session *s, const char *what)
{
	char remote[ADDR_TEXT];
	s->p->stats.garbage++;
	peers_log(s->p, &s->remote, 200, "connection from %s closed: %s",
		  addr_show(&s->remote, remote), what);
}

static void on_session_message(struct session *s, struct span body)
{
	struct session_message m;
	struct err err = { 0 };
	int r = session_read(body, &m, &err);
	bool greeting = s->stage == STAGE_GREETING, up = s->stage == STAGE_UP;
	if (r == 0 && m.type == SESSION_REFUSE && (greeting || up))
		on_refused(s, &m);
	else if (r == 0 && m.type == SESSION_HELLO && greeting)
		on_greeting(s, &m);
	else if (r == 0 && m.type == SESSION_JOIN && s->stage == STAGE_JOINING)
		on_join(s, &m);
	else if (r == 0 && m.type == SESSION_HELLO && s->stage == STAGE_JOINING)
		peers_session_refuse(s, SESSION_CERTIFICATE,
				     "a node of the cluster needs a certificate");
	else
		tls_conn_fail(&s->conn, -EPROTO, "message out of turn");
}

static void on_message(struct tls_conn *c, uint8_t channel, struct span body)
{
	struct session *s = CONTAINER(c, struct session, conn);
	if (channel == CHANNEL_SESSION) {
		on_session_message(s, body);
		/* The request held the token's secret; the bytes are the connection's own. */
		if (c->wipe && body.len)
			pki_wipe_bytes((void *)(uintptr_t)body.at, body.len);
		return;
	}
	assert(s->stage == STAGE_UP); /* before, no other channel is open */
	if (s->p->handlers[channel].call)
		s->p->handlers[channel].call(s->p->handlers[channel].ctx, s->peer->number, body);
}

static void on_first(struct tls_conn *c, uint8_t byte)
{
	struct session *s = CONTAINER(c, struct session, conn);
	if (byte != TLS_HANDSHAKE_BYTE) {
		garbage(s, "what it sent is not TLS");
		peers_session_drop(s);
		return;
	}
	peers_session_stage(s, STAGE_TALKING, s->p->settings.handshake_ms);
	peers_source_move(s, LIST_TALKING);
	tls_conn_start(c, tls_new_server(s->p->identity), &peers_limits_greeting);
}

static void on_connected(struct tls_conn *c)
{
	peers_dial_connected(CONTAINER(c, struct session, conn));
}

static void on_sent(struct tls_conn *c)
{
	struct session *s = CONTAINER(c, struct session, conn);
	if (s->stage == STAGE_UP && peers_queue_any(s->peer))
		peers_queue_pump(s->peer);
}

static void on_lost(struct tls_conn *c, const struct err *err)
{
	struct session *s = CONTAINER(c, struct session, conn);
	struct peer *peer = s->peer;
	enum session_stage stage = s->stage;
	bool bad = err->code == -EPROTO || err->code == -EMSGSIZE;
	if (bad && (stage == STAGE_UP || !s->dialled) && stage != STAGE_ENDING)
		garbage(s, err->msg);
	if (err->code == -EKEYREJECTED && !s->dialled)
		note_refusal(s, SESSION_CLUSTER, err->msg);
	if (peer && s->dialled && stage < STAGE_UP)
		peers_dial_failed(
		    s, bad || err->code == -EKEYREJECTED ? SESSION_CERTIFICATE : SESSION_OTHER,
		    err->msg);
	gone(s);
	if (stage == STAGE_UP && peer)
		went_down(peer, s->up_since_ms, err->msg);
}

static void on_closed(struct tls_conn *c)
{
	struct session *s = CONTAINER(c, struct session, conn);
	struct peers *p = s->p;
	assert(s->stage == STAGE_GONE);
	free(s);
	peers_handle_closed(p);
}

const struct tls_conn_events peers_session_events = {
	.connected = on_connected,
	.first = on_first,
	.ready = on_ready,
	.message = on_message,
	.sent = on_sent,
	.lost = on_lost,
	.closed = on_closed,
};
