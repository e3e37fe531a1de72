/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions between real nodes over loopback: messages, loss, order, priority. */
#include "mesh.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
/* cmocka wants the four above before itself. */
#include <cmocka.h>

static void send_text(struct mesh *m, uint32_t from, uint32_t to, enum channel channel,
		      const char *text)
{
	assert_int_equal(peers_send(m->nodes[from].peers, to, channel, text, strlen(text)), 0);
}

/* Goal: three nodes say something to each other on every channel, and to themselves. */
static void all_channels_reach_everyone(void **state)
{
	struct mesh m;
	mesh_init(&m);
	for (uint32_t i = 1; i <= 3; i++)
		mesh_start(&m, i);
	for (uint32_t i = 1; i <= 3; i++)
		for (uint32_t k = 1; k <= 3; k++)
			if (i != k)
				mesh_know(&m, i, k);
	for (uint32_t i = 1; i <= 3; i++)
		for (uint32_t k = 1; k <= 3; k++)
			for (enum channel c = CHANNEL_AGREE; c < CHANNEL_COUNT; c++)
				send_text(&m, i, k, c, "hello");
	/* To ourselves too: from the loop, never from within peers_send(). */
	assert_int_equal(m.nodes[1].received[CHANNEL_AGREE].count, 0);
	for (uint32_t i = 1; i <= 3; i++)
		for (enum channel c = CHANNEL_AGREE; c < CHANNEL_COUNT; c++)
			mesh_wait(&m, m.nodes[i].received[c].count == 3);
	for (uint32_t i = 1; i <= 3; i++) {
		struct peers_stats stats;
		peers_stats(m.nodes[i].peers, &stats);
		assert_int_equal(stats.up, 2); /* one session for each pair */
		assert_int_equal(stats.unfinished, 0);
		assert_int_equal(m.nodes[i].down_count, 0);
	}
	assert_true(peers_rtt_us(m.nodes[1].peers, 2) > 0);
	assert_int_equal(peers_incarnation(m.nodes[1].peers, 3), 3);
	assert_int_equal(peers_send(m.nodes[1].peers, 9, CHANNEL_AGREE, "x", 1), -ENOENT);
	mesh_free(&m);
}

/* Goal: both dial at the same moment, many times: always exactly one session, nobody sees it fail,
 * and everything sent arrives. */
static void simultaneous_dials_leave_one_session(void **state)
{
	for (int round = 0; round < 20; round++) {
		struct mesh m;
		mesh_init(&m);
		mesh_start(&m, 1);
		mesh_start(&m, 2);
		mesh_know(&m, 1, 2);
		mesh_know(&m, 2, 1);
		send_text(&m, 1, 2, CHANNEL_AGREE, "from one");
		if (round % 2) /* sometimes one is ahead */
			(void)uv_run(&m.loop, UV_RUN_NOWAIT);
		send_text(&m, 2, 1, CHANNEL_AGREE, "from two");
		mesh_wait(&m, m.nodes[1].received[CHANNEL_AGREE].count == 1 &&
				  m.nodes[2].received[CHANNEL_AGREE].count == 1);
		for (uint32_t i = 1; i <= 2; i++) {
			struct peers_stats stats;
			peers_stats(m.nodes[i].peers, &stats);
			assert_int_equal(stats.up, 1);
			assert_int_equal(stats.sessions, 1);
			assert_int_equal(m.nodes[i].down_count, 0);
		}
		mesh_free(&m);
	}
}

/* Goal: 200 MB with back-pressure: the sender is told to wait, queues stay bounded, every byte
 * arrives in order. */
static void bulk_arrives_whole_with_back_pressure(void **state)
{
	enum { SIZE = 1 << 20, COUNT = 200 };
	struct mesh m;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	uint8_t *block = xmalloc(SIZE);
	uint64_t hash = MESH_HASH_START;
	unsigned full = 0;
	struct peers *p = m.nodes[1].peers;
	for (unsigned i = 0; i < COUNT; i++) {
		for (size_t k = 0; k < SIZE; k += 8)
			memcpy(block + k, &(uint64_t){ i * 2654435761u + k * 40503u }, 8);
		size_t len = i % 3 ? SIZE : SIZE - 12345;
		int r;
		while ((r = peers_send(p, 2, CHANNEL_STAGE, block, len)) == -EAGAIN) {
			unsigned before = m.nodes[1].drained[CHANNEL_STAGE];
			full++;
			assert_true(peers_queued(p, 2, CHANNEL_STAGE) <= 9u << 20);
			mesh_wait(&m, m.nodes[1].drained[CHANNEL_STAGE] > before);
		}
		assert_int_equal(r, 0);
		hash = mesh_hash(hash, block, len);
	}
	const struct received *got = &m.nodes[2].received[CHANNEL_STAGE];
	mesh_wait(&m, got->count == COUNT);
	assert_true(got->hash == hash);
	assert_true(full > 0);
	assert_int_equal(m.nodes[1].down_count, 0);
	free(block);
	mesh_free(&m);
}

/* Goal: messages of every length around the borders of frames and records keep their borders. */
static void every_length_keeps_its_borders(void **state)
{
	static const size_t lengths[] = { 0,     1,     5,     16378, 16379, 16384,  32767,
					  32768, 32769, 65536, 65537, 98304, 1 << 20 };
	struct mesh m;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	uint8_t *bytes = xcalloc(1, 4 << 20);
	const struct received *got = &m.nodes[2].received[CHANNEL_LAUNCH];
	for (size_t i = 0; i < ARRAY_LEN(lengths); i++) {
		uint64_t before = got->bytes;
		memset(bytes, (int)i + 1, lengths[i]);
		assert_int_equal(peers_send(m.nodes[1].peers, 2, CHANNEL_LAUNCH, bytes, lengths[i]),
				 0);
		mesh_wait(&m, got->count == i + 1);
		assert_int_equal(got->bytes - before, lengths[i]);
	}
	size_t max = peers_message_max(CHANNEL_LAUNCH);
	assert_int_equal(peers_send(m.nodes[1].peers, 2, CHANNEL_LAUNCH, bytes, max), 0);
	assert_int_equal(peers_send(m.nodes[1].peers, 2, CHANNEL_LAUNCH, bytes, max + 1),
			 -EMSGSIZE);
	mesh_wait(&m, got->count == ARRAY_LEN(lengths) + 1);
	free(bytes);
	mesh_free(&m);
}

/* Goal: the other side dies and returns: `down` is told once, the session comes back by itself with
 * the new incarnation, and messages flow again. */
static void session_returns_after_the_other_side_died(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	uint64_t before = peers_incarnation(m.nodes[1].peers, 2);
	uint16_t port = peers_port(m.nodes[2].peers);
	mesh_stop(&m, 2);
	mesh_wait(&m, m.nodes[1].down_count > 0);
	assert_false(peers_up(m.nodes[1].peers, 2));
	/* Not reachable now: a message is dropped, and that is told. */
	unsigned down = m.nodes[1].down_count;
	assert_int_equal(peers_send(m.nodes[1].peers, 2, CHANNEL_AGREE, "lost", 4), 0);
	mesh_wait(&m, m.nodes[1].down_count > down);
	assert_int_equal(peers_queued(m.nodes[1].peers, 2, CHANNEL_AGREE), 0);
	assert_non_null(strstr(peers_reason(m.nodes[1].peers, 2), "refused"));

	mesh_start(&m, 2);
	assert_int_not_equal(peers_port(m.nodes[2].peers), port);
	mesh_know(&m, 2, 1);
	mesh_know(&m, 1, 2);
	mesh_wait(&m, peers_up(m.nodes[1].peers, 2));
	assert_true(peers_incarnation(m.nodes[1].peers, 2) != before);
	send_text(&m, 1, 2, CHANNEL_AGREE, "again");
	mesh_wait(&m, m.nodes[2].received[CHANNEL_AGREE].count == 1);
	mesh_free(&m);
}

/* Goal: a cut connection is replaced, and both sides end with the same single session. */
static void cut_connection_is_replaced(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	mesh_start(&m, 2);
	struct relay *r = relay_start(&m, peers_port(m.nodes[2].peers));
	union addr at = mesh_loopback(relay_port(r));
	mesh_know_at(&m, 1, 2, &at, 1);
	mesh_know(&m, 2, 1);
	peers_keep(m.nodes[1].peers, 2, true);
	for (unsigned i = 1; i <= 5; i++) {
		mesh_wait(&m, m.nodes[1].up_count == i && peers_up(m.nodes[1].peers, 2) &&
				  peers_up(m.nodes[2].peers, 1));
		send_text(&m, 1, 2, CHANNEL_AGREE, "x");
		send_text(&m, 2, 1, CHANNEL_AGREE, "y");
		mesh_wait(&m, m.nodes[1].received[CHANNEL_AGREE].count == i &&
				  m.nodes[2].received[CHANNEL_AGREE].count == i);
		relay_cut(r);
		mesh_wait(&m, m.nodes[1].down_count == i);
	}
	relay_stop(r);
	mesh_free(&m);
}

/* Goal: an address that swallows everything, and one that refuses, delay the session by no more
 * than 250 ms each. */
static void dead_addresses_do_not_delay(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	mesh_start(&m, 2);
	/* A listener with a full backlog that nobody empties: SYNs get no answer. */
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), filler[4];
	union addr dead = mesh_loopback(0), addresses[3];
	socklen_t len = sizeof(dead);
	assert_true(fd >= 0 && bind(fd, &dead.any, sizeof(dead.v4)) == 0 && listen(fd, 0) == 0);
	assert_int_equal(getsockname(fd, &dead.any, &len), 0);
	for (size_t i = 0; i < ARRAY_LEN(filler); i++) {
		filler[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
		(void)connect(filler[i], &dead.any, sizeof(dead.v4));
	}
	addresses[0] = dead;
	addresses[1] = mesh_loopback(1); /* refuses */
	addresses[2] = mesh_loopback(peers_port(m.nodes[2].peers));
	mesh_know_at(&m, 1, 2, addresses, 3);
	mesh_know_at(&m, 2, 1, NULL, 0);
	uint64_t start = uv_hrtime();
	peers_keep(m.nodes[1].peers, 2, true);
	mesh_wait(&m, peers_up(m.nodes[1].peers, 2));
	uint64_t took_ms = (uv_hrtime() - start) / 1000000;
	assert_in_range(took_ms, 150, 600);

	/* The one that works is first from now on. */
	peers_disconnect(m.nodes[1].peers, 2, "test");
	assert_false(peers_up(m.nodes[1].peers, 2));
	start = uv_hrtime();
	mesh_wait(&m, peers_up(m.nodes[1].peers, 2));
	took_ms = (uv_hrtime() - start) / 1000000;
	assert_in_range(took_ms, 0, 190);
	for (size_t i = 0; i < ARRAY_LEN(filler); i++)
		(void)close(filler[i]);
	(void)close(fd);
	mesh_free(&m);
}

/* Goal: the session also works over IPv6. */
static void ipv6_loopback_works(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	mesh_start(&m, 2);
	union addr a;
	assert_int_equal(addr_parse("::1", peers_port(m.nodes[2].peers), &a, NULL), 0);
	mesh_know_at(&m, 1, 2, &a, 1);
	mesh_know_at(&m, 2, 1, NULL, 0); /* 2 does not know where 1 is: it is dialled by it */
	send_text(&m, 1, 2, CHANNEL_AGREE, "six");
	mesh_wait(&m, m.nodes[2].received[CHANNEL_AGREE].count == 1);
	send_text(&m, 2, 1, CHANNEL_AGREE, "back");
	mesh_wait(&m, m.nodes[1].received[CHANNEL_AGREE].count == 1);
	mesh_free(&m);
}

struct echo {
	struct mesh *m;
	uint64_t sent_ns, worst_ns;
	unsigned count;
};

static void echo_back(void *ctx, uint32_t from, struct span body)
{
	struct mesh *m = ctx;
	assert_int_equal(peers_send(m->nodes[2].peers, from, CHANNEL_AGREE, body.at, body.len), 0);
}

static void echo_received(void *ctx, uint32_t from, struct span body)
{
	struct echo *e = ctx;
	e->worst_ns = MAX(e->worst_ns, uv_hrtime() - e->sent_ns);
	e->count++;
}

static void keep_full(struct mesh *m, const uint8_t *block, size_t len)
{
	while (peers_send(m->nodes[1].peers, 2, CHANNEL_STAGE, block, len) == 0)
		;
	while (peers_send(m->nodes[1].peers, 2, CHANNEL_LAUNCH, block, len) == 0)
		;
}

/* Goal: behind a slow link with megabytes of bulk queued, a message of AGREE overtakes them, and
 * the bulk channels share what is left. */
static void agree_overtakes_bulk(void **state)
{
	enum { SPEED = 10 << 20, ROUNDS = 20, BLOCK = 1 << 20 };
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	mesh_start(&m, 2);
	struct relay *r = relay_start(&m, peers_port(m.nodes[2].peers));
	relay_set_speed(r, SPEED);
	union addr at = mesh_loopback(relay_port(r));
	mesh_know_at(&m, 1, 2, &at, 1);
	mesh_know_at(&m, 2, 1, NULL, 0);
	struct echo echo = { .m = &m };
	peers_on(m.nodes[2].peers, CHANNEL_AGREE, echo_back, &m);
	peers_on(m.nodes[1].peers, CHANNEL_AGREE, echo_received, &echo);
	peers_keep(m.nodes[1].peers, 2, true);
	mesh_wait(&m, peers_up(m.nodes[1].peers, 2));

	uint8_t *block = xcalloc(1, BLOCK);
	keep_full(&m, block, BLOCK);
	size_t queued = peers_queued(m.nodes[1].peers, 2, CHANNEL_STAGE) +
			peers_queued(m.nodes[1].peers, 2, CHANNEL_LAUNCH);
	for (unsigned i = 0; i < ROUNDS; i++) {
		echo.sent_ns = uv_hrtime();
		send_text(&m, 1, 2, CHANNEL_AGREE, "urgent");
		mesh_wait(&m, echo.count == i + 1);
		keep_full(&m, block, BLOCK);
	}
	uint64_t behind_ms = queued * 1000 / SPEED; /* what it takes behind the queue */
	(void)printf("agree: worst %llu ms, the queue is worth %llu ms\n",
		     (unsigned long long)(echo.worst_ns / 1000000), (unsigned long long)behind_ms);
	assert_true(behind_ms > 1000);
	assert_true(echo.worst_ns / 1000000 < behind_ms / 4);
	mesh_wait(&m, m.nodes[2].received[CHANNEL_STAGE].count >= 4 &&
			  m.nodes[2].received[CHANNEL_LAUNCH].count >= 4);
	free(block);
	relay_stop(r);
	mesh_free(&m);
}

/* Goal: what passes between two nodes holds nothing readable: neither a marker in messages of any
 * channel, nor the cluster's id, nor the nodes' names. */
static void nothing_on_the_wire_is_readable(void **state)
{
	static const char marker[] = "MARKER-that-must-not-be-seen";
	char id[ID_TEXT];
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	mesh_start(&m, 2);
	struct relay *r = relay_start(&m, peers_port(m.nodes[2].peers));
	relay_keep_text(r, true);
	union addr at = mesh_loopback(relay_port(r));
	mesh_know_at(&m, 1, 2, &at, 1);
	mesh_know_at(&m, 2, 1, NULL, 0);
	for (enum channel c = CHANNEL_AGREE; c < CHANNEL_COUNT; c++)
		send_text(&m, 1, 2, c, marker);
	for (enum channel c = CHANNEL_AGREE; c < CHANNEL_COUNT; c++) {
		mesh_wait(&m, m.nodes[2].received[c].count == 1);
		assert_string_equal(str_text(&m.nodes[2].received[c].last), marker);
		send_text(&m, 2, 1, c, marker);
		mesh_wait(&m, m.nodes[1].received[c].count == 1);
	}
	assert_true(relay_bytes(r, true) > 1000 && relay_bytes(r, false) > 1000);
	assert_true(relay_saw(r, "copia")); /* the ALPN name: the capture does see plain text */
	assert_false(relay_saw(r, "MARKER"));
	assert_false(relay_saw(r, id_show(&m.own.cluster, id)));
	assert_false(relay_saw(r, (char[]){ "node-" }));
	relay_stop(r);
	mesh_free(&m);
}

enum { FORGET, DISCONNECT, REPLACE, CLOSE, WAYS };

struct rude {
	struct mesh *m;
	unsigned way, calls;
	bool closed;
};

static void on_rude_closed(void *ctx)
{
	((struct rude *)ctx)->closed = true;
}

/* What a handler may do to the session that it is called from. */
static void be_rude(struct rude *r)
{
	struct mesh_node *n = &r->m->nodes[1];
	r->calls++;
	switch (r->way) {
	case FORGET:
		peers_forget_node(n->peers, 2);
		break;
	case DISCONNECT:
		peers_disconnect(n->peers, 2, "rude");
		break;
	case REPLACE:
		peers_forget_node(n->peers, 2);
		mesh_know(r->m, 1, 2);
		assert_int_equal(peers_send(n->peers, 2, CHANNEL_AGREE, "again", 5), 0);
		break;
	default:
		peers_close(take_ptr(n->peers), on_rude_closed, r);
	}
}

static void rude_handler(void *ctx, uint32_t from, struct span body)
{
	be_rude(ctx);
}

static void rude_state(void *ctx, uint32_t node, bool up, const char *reason)
{
	struct rude *r = ctx;
	if (!up && !r->calls)
		be_rude(r);
}

static void rude_drained(void *ctx, uint32_t node, enum channel channel)
{
	be_rude(ctx);
}

/* Goal: handlers and events may forget, end, replace and close what called them. */
static void events_may_do_anything(void **state)
{
	uint8_t *block = xcalloc(1, 1 << 20);
	for (unsigned i = 0; i < 3 * WAYS; i++) {
		struct mesh m;
		struct rude rude = { .m = &m, .way = i % WAYS };
		mesh_init(&m);
		/* Node 1's own events are the rude ones. */
		mesh_start(&m, 1);
		mesh_stop(&m, 1);
		struct mesh_node *one = &m.nodes[1];
		struct peers_settings s = { .node = 1,
					    .cluster = m.own.cluster,
					    .incarnation = 1000,
					    .cert = pki_span(&one->cert),
					    .key = pki_span(&one->key),
					    .authority = pki_span(&m.own.authority),
					    .events = { .ctx = &rude } };
		if (i / WAYS == 1)
			s.events.state = rude_state;
		if (i / WAYS == 2)
			s.events.drained = rude_drained;
		assert_int_equal(peers_new(&one->peers, &m.loop, &s, NULL), 0);
		assert_int_equal(peers_listen(one->peers, 0, NULL), 0);
		peers_on(one->peers, CHANNEL_LAUNCH, rude_handler, &rude);
		mesh_pair(&m, 1, 2);
		if (i / WAYS == 0) {
			send_text(&m, 2, 1, CHANNEL_LAUNCH, "a");
			send_text(&m, 2, 1, CHANNEL_LAUNCH, "b");
		} else if (i / WAYS == 1) {
			peers_disconnect(m.nodes[2].peers, 1, "test");
		} else {
			while (peers_send(one->peers, 2, CHANNEL_STAGE, block, 1 << 20) == 0)
				;
		}
		mesh_wait(&m, rude.calls > 0);
		if (rude.way == CLOSE)
			mesh_wait(&m, rude.closed);
		if (rude.way == REPLACE)
			mesh_wait(&m, m.nodes[2].received[CHANNEL_AGREE].count > 0);
		mesh_free(&m);
	}
	free(block);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_channels_reach_everyone),
		cmocka_unit_test(simultaneous_dials_leave_one_session),
		cmocka_unit_test(every_length_keeps_its_borders),
		cmocka_unit_test(bulk_arrives_whole_with_back_pressure),
		cmocka_unit_test(session_returns_after_the_other_side_died),
		cmocka_unit_test(cut_connection_is_replaced),
		cmocka_unit_test(dead_addresses_do_not_delay),
		cmocka_unit_test(ipv6_loopback_works),
		cmocka_unit_test(agree_overtakes_bulk),
		cmocka_unit_test(nothing_on_the_wire_is_readable),
		cmocka_unit_test(events_may_do_anything),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
