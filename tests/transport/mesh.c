/* SPDX-License-Identifier: Apache-2.0 */
#include "mesh.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdio.h>

void mesh_fail(const char *what, const char *file, int line)
{
	(void)fprintf(stderr, "%s:%d: not within %d ms: %s\n", file, line, MESH_WAIT_MS, what);
	abort();
}

static void check(int r, const struct err *err, const char *what)
{
	if (r == 0)
		return;
	(void)fprintf(stderr, "%s: %s\n", what, err->msg);
	abort();
}

void credentials_make(struct credentials *c)
{
	struct err err = { 0 };
	check(pki_random(&c->cluster, sizeof(c->cluster), &err), &err, "random");
	check(pki_authority_new(&c->cluster, &c->authority_key, &c->authority, &err), &err,
	      "authority");
}

void credentials_free(struct credentials *c)
{
	pki_wipe(&c->authority_key);
	str_free(&c->authority);
}

void credentials_sign(const struct credentials *c, uint32_t number, struct str *ret_key,
		      struct str *ret_cert)
{
	struct err err = { 0 };
	_cleanup_(str_free) struct str csr = { 0 };
	pki_wipe(ret_key);
	str_free(ret_cert);
	check(pki_key_new(ret_key, &err), &err, "key");
	check(pki_csr_new(pki_span(ret_key), &csr, &err), &err, "request");
	check(pki_sign(pki_span(&c->authority_key), pki_span(&c->authority), pki_span(&csr),
		       &c->cluster, number, 0, ret_cert, &err),
	      &err, "sign");
}

/* ---------------------------------------------------------------------------------------- loop */

static void on_tick(uv_timer_t *timer)
{
	uv_stop(timer->loop);
}

bool mesh_turn(struct mesh *m, uint64_t end_ms)
{
	static uv_timer_t tick;
	(void)uv_timer_init(&m->loop, &tick);
	(void)uv_timer_start(&tick, on_tick, 10, 0);
	(void)uv_run(&m->loop, UV_RUN_ONCE);
	uv_close((uv_handle_t *)&tick, NULL);
	(void)uv_run(&m->loop, UV_RUN_NOWAIT);
	return uv_hrtime() / 1000000 < end_ms;
}

void mesh_init(struct mesh *m)
{
	memset(m, 0, sizeof(*m));
	(void)uv_loop_init(&m->loop);
	credentials_make(&m->own);
}

void mesh_free(struct mesh *m)
{
	for (uint32_t i = 1; i <= MESH_MAX; i++) {
		struct mesh_node *n = &m->nodes[i];
		mesh_stop(m, i);
		pki_wipe(&n->key);
		str_free(&n->cert);
		str_free(&n->join_body);
		for (size_t k = 0; k < CHANNEL_COUNT; k++)
			str_free(&n->received[k].last);
	}
	credentials_free(&m->own);
	uint64_t end_ms = uv_hrtime() / 1000000 + MESH_WAIT_MS;
	while (uv_loop_alive(&m->loop) && uv_run(&m->loop, UV_RUN_ONCE) &&
	       uv_hrtime() / 1000000 < end_ms)
		;
	if (uv_loop_close(&m->loop) != 0) {
		uv_print_all_handles(&m->loop, stderr);
		mesh_fail("every handle is closed", __FILE__, __LINE__);
	}
}

/* --------------------------------------------------------------------------------------- nodes */

uint64_t mesh_hash(uint64_t hash, const void *bytes, size_t len)
{
	const uint8_t *at = bytes;
	if (hash == MESH_HASH_START)
		hash = 14695981039346656037u;
	for (size_t i = 0; i < len; i++)
		hash = (hash ^ at[i]) * 1099511628211u;
	return hash;
}

static void on_message(void *ctx, uint32_t from, struct span body)
{
	struct received *r = ctx;
	r->count++;
	r->bytes += body.len;
	r->hash = mesh_hash(r->hash, body.at, body.len);
	r->last_from = from;
	str_clear(&r->last);
	str_add(&r->last, body.at, MIN(body.len, (size_t)256));
}

static void on_state(void *ctx, uint32_t node, bool up, const char *reason)
{
	struct mesh_node *n = ctx;
	if (up) {
		n->up_count++;
	} else {
		n->down_count++;
		(void)snprintf(n->reason, sizeof(n->reason), "%s", reason);
	}
}

static void on_drained(void *ctx, uint32_t node, enum channel channel)
{
	struct mesh_node *n = ctx;
	n->drained[channel]++;
}

static void on_join(void *ctx, uint64_t ticket, struct span body, const char *remote)
{
	struct mesh_node *n = ctx;
	n->join_count++;
	n->join_ticket = ticket;
	str_clear(&n->join_body);
	str_add(&n->join_body, body.at, body.len);
	assert(*remote);
}

struct mesh_node *mesh_start(struct mesh *m, uint32_t number)
{
	assert(number > 0 && number <= MESH_MAX);
	struct mesh_node *n = &m->nodes[number];
	struct err err = { 0 };
	assert(!n->peers);
	n->number = number;
	if (!n->cert.len)
		credentials_sign(&m->own, number, &n->key, &n->cert);
	struct pki_cert cert;
	check(pki_cert_read(pki_span(&n->cert), &cert, &err), &err, "read");
	n->fingerprint = cert.fingerprint;

	struct peers_settings s = m->settings;
	s.node = number;
	s.cluster = m->own.cluster;
	s.incarnation = ++m->incarnations;
	s.seed = m->incarnations;
	s.cert = pki_span(&n->cert);
	s.key = pki_span(&n->key);
	s.authority = pki_span(&m->own.authority);
	s.events = (struct peers_events){ on_state, on_drained, on_join, n };
	check(peers_new(&n->peers, &m->loop, &s, &err), &err, "new");
	check(peers_listen(n->peers, 0, &err), &err, "listen");
	n->up_count = n->down_count = 0;
	n->reason[0] = '\0';
	for (enum channel i = CHANNEL_AGREE; i < CHANNEL_COUNT; i++) {
		str_free(&n->received[i].last);
		n->received[i] = (struct received){ 0 };
		peers_on(n->peers, i, on_message, &n->received[i]);
	}
	return n;
}

static void on_closed(void *ctx)
{
	*(bool *)ctx = true;
}

void mesh_stop(struct mesh *m, uint32_t number)
{
	struct mesh_node *n = &m->nodes[number];
	if (!n->peers)
		return;
	n->closed = false;
	peers_close(take_ptr(n->peers), on_closed, &n->closed);
	mesh_wait(m, n->closed);
}

union addr mesh_loopback(uint16_t port)
{
	union addr a = { 0 };
	struct err err = { 0 };
	check(addr_parse("127.0.0.1", port, &a, &err), &err, "address");
	return a;
}

void mesh_know_at(struct mesh *m, uint32_t from, uint32_t to, const union addr *addresses,
		  size_t count)
{
	struct err err = { 0 };
	struct peers_node node = { .number = to,
				   .addresses = addresses,
				   .address_count = count,
				   .allowed = &m->nodes[to].fingerprint,
				   .allowed_count = 1 };
	check(peers_set_node(m->nodes[from].peers, &node, &err), &err, "set node");
}

void mesh_know(struct mesh *m, uint32_t from, uint32_t to)
{
	assert(m->nodes[to].peers);
	union addr a = mesh_loopback(peers_port(m->nodes[to].peers));
	mesh_know_at(m, from, to, &a, 1);
}

void mesh_pair(struct mesh *m, uint32_t a, uint32_t b)
{
	if (!m->nodes[a].peers)
		(void)mesh_start(m, a);
	if (!m->nodes[b].peers)
		(void)mesh_start(m, b);
	mesh_know(m, a, b);
	mesh_know(m, b, a);
	peers_keep(m->nodes[a].peers, b, true);
	mesh_wait(m, peers_up(m->nodes[a].peers, b) && peers_up(m->nodes[b].peers, a));
}
