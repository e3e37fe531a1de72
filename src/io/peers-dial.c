/* SPDX-License-Identifier: Apache-2.0 */
#include "io/peers-internal.h"

#include <assert.h>
#include <stdio.h>

enum { BACKOFF_FIRST_MS = 50, BACKOFF_MAX_MS = 3000, TIE_WAIT_MS = 300 };

static void try_next(struct peer *peer);

static bool is_wanted(const struct peer *peer)
{
	return !peer->forgotten && !peer->p->closing && (peer->keep || peers_queue_any(peer));
}

static void on_waited(uv_timer_t *timer)
{
	struct peer *peer = CONTAINER(timer, struct peer, timer);
	if (peer->dialling) {
		try_next(peer);
		return;
	}
	peer->waiting = false;
	peers_dial(peer);
}

void peers_dial_later(struct peer *peer, bool is_tie)
{
	if (peer->forgotten || peer->dialling || peer->session || peer->p->closing)
		return;
	/* Doubling, times 0.5 to 1.5: nodes that lost the same one must not return in step. */
	uint64_t ms =
	    MIN((uint64_t)BACKOFF_FIRST_MS << MIN(peer->failures, 10u), (uint64_t)BACKOFF_MAX_MS);
	ms = is_tie ? TIE_WAIT_MS : ms / 2 + rng_below(&peer->p->rng, ms + 1);
	peer->waiting = true;
	(void)uv_timer_start(&peer->timer, on_waited, ms, 0);
}

void peers_dial_stop(struct peer *peer, struct session *except)
{
	for (size_t i = 0; i < PEERS_ADDRESS_MAX; i++) {
		struct session *s = peer->attempts[i];
		peer->attempts[i] = NULL;
		if (s && s != except)
			peers_session_drop(s);
	}
	if (peer->greeting != except)
		peer->greeting = NULL;
	peer->dialling = peer->waiting = false;
	if (!uv_is_closing((uv_handle_t *)&peer->timer))
		(void)uv_timer_stop(&peer->timer);
}

/* All addresses failed: what is queued is void, and the back-off begins. */
static void give_up(struct peer *peer)
{
	peer->dialling = false;
	(void)uv_timer_stop(&peer->timer);
	if (peer->failures < 16)
		peer->failures++;
	peers_queue_drop(peer);
	peers_tell(peer, false, peer->fault);
	peers_dial_later(peer, false);
}

static bool any_attempt(const struct peer *peer)
{
	for (size_t i = 0; i < PEERS_ADDRESS_MAX; i++)
		if (peer->attempts[i])
			return true;
	return false;
}

/* Keep the reason that tells most: what a node said beats what the network said. */
static void note_fault(struct peer *peer, const union addr *to, const char *why, bool telling)
{
	char text[ADDR_TEXT];
	if (telling || !peer->fault[0])
		(void)snprintf(peer->fault, sizeof(peer->fault), "node %u at %s: %.150s",
			       peer->number, addr_show(to, text), why);
}

/* Begin with the next address, and set the clock for the one after it. */
static void try_next(struct peer *peer)
{
	while (peer->tried < peer->address_count) {
		size_t at = (peer->first + peer->tried++) % peer->address_count;
		struct session *s = peers_session_new(peer->p, &peer->addresses[at]);
		struct err err = { 0 };
		s->dialled = true;
		s->attempt = (unsigned)at;
		s->stage = STAGE_CONNECTING;
		peer->p->stats.dialled++;
		if (tls_conn_dial(&s->conn, &s->remote, &err) < 0) {
			note_fault(peer, &s->remote, err.msg, false);
			peers_session_drop(s);
			continue;
		}
		s->peer = peer;
		peer->attempts[at] = s;
		s->deadline_ms = uv_now(peer->p->loop) + peer->p->settings.handshake_ms;
		peers_sweep_start(peer->p);
		/* A firewalled address answers nothing: the next one does not wait for it. */
		if (peer->tried < peer->address_count)
			(void)uv_timer_start(&peer->timer, on_waited, PEERS_STAGGER_MS, 0);
		return;
	}
	if (!any_attempt(peer))
		give_up(peer);
}

void peers_dial(struct peer *peer)
{
	if (peer->session || peer->dialling || peer->waiting || !is_wanted(peer))
		return;
	peer->dialling = true;
	peer->tried = 0;
	peer->fault[0] = '\0';
	if (!peer->address_count)
		(void)snprintf(peer->fault, sizeof(peer->fault),
			       "node %u: no address of it is known", peer->number);
	try_next(peer);
}

void peers_dial_connected(struct session *s)
{
	peers_session_stage(s, STAGE_TALKING, s->p->settings.handshake_ms);
	tls_conn_start(&s->conn, tls_new_client(s->p->identity), &peers_limits_greeting);
}

void peers_dial_verified(struct session *s)
{
	struct peer *peer = s->peer;
	assert(peer && peer->dialling && !peer->greeting);
	/* One greeting only: the other side would take a second one for a new session. */
	peer->greeting = s;
	peer->first = s->attempt; /* the address that works is tried first from now on */
	for (size_t i = 0; i < PEERS_ADDRESS_MAX; i++) {
		struct session *other = peer->attempts[i];
		if (other && other != s)
			peers_session_drop(other);
	}
	peer->tried = peer->address_count;
	(void)uv_timer_stop(&peer->timer);
	peers_session_greet(s);
}

void peers_dial_failed(struct session *s, enum session_code code, const char *why)
{
	struct peer *peer = s->peer;
	assert(s->dialled && peer);
	note_fault(peer, &s->remote, why, code != SESSION_OTHER);
	peer->attempts[s->attempt] = NULL;
	if (peer->greeting == s)
		peer->greeting = NULL;
	s->peer = NULL;
	if (!peer->dialling)
		return;
	if (code == SESSION_TIE) {
		/* The other side's connection is under way; what is queued will take it. */
		peer->dialling = false;
		peers_dial_later(peer, true);
		return;
	}
	try_next(peer);
}
