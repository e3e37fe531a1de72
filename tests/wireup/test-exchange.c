/* SPDX-License-Identifier: Apache-2.0 */
/* Collectives over a carrier that loses, doubles and delays: many nodes, one process, one seed. */
#include "base/rng.h"
#include "caps/wireup/collect.h"
#include "caps/wireup/exchange.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>
#include <errno.h>
#include <utlist.h>

enum { NODES_MAX = 300, UP = 1, DOWN = 2 };

struct flying {
	struct flying *next, *prev;
	uint32_t from;
	struct exchange_piece piece;
	uint8_t *bytes;
};

struct node {
	struct sim *sim;
	uint32_t index;
	struct exchange *exchange;
	struct collect *collect;
	uint32_t done, ups;
	struct str result;
};

struct sim {
	struct rng rng;
	uint64_t now_ms;
	uint32_t count;
	unsigned loss, twice; /* per mille */
	struct node nodes[NODES_MAX];
	struct flying *air;
};

static void on_send(void *ctx, const struct exchange_piece *piece)
{
	struct node *n = ctx;
	unsigned copies = rng_chance(&n->sim->rng, n->sim->twice) ? 2 : 1;
	for (; copies; copies--) {
		if (rng_chance(&n->sim->rng, n->sim->loss))
			continue;
		struct flying *f = xcalloc(1, sizeof(*f));
		f->from = n->index;
		f->piece = *piece;
		f->bytes = xmalloc(piece->data.len + 1);
		if (piece->data.len)
			memcpy(f->bytes, piece->data.at, piece->data.len);
		f->piece.data.at = f->bytes;
		DL_APPEND(n->sim->air, f);
	}
}

static void on_deliver(void *ctx, uint32_t from, uint32_t kind, struct span bytes)
{
	struct node *n = ctx;
	struct err err = { 0 };
	int r = kind == UP ? collect_up(n->collect, bytes, &err)
			   : collect_down(n->collect, bytes, &err);
	n->ups += kind == UP;
	assert_int_equal(r, 0);
}

static void on_up(void *ctx, uint32_t to, struct span bytes)
{
	struct node *n = ctx;
	exchange_send(n->exchange, to, UP, bytes, n->sim->now_ms);
}

static void on_down(void *ctx, uint32_t to, struct span bytes)
{
	struct node *n = ctx;
	exchange_send(n->exchange, to, DOWN, bytes, n->sim->now_ms);
}

static void on_done(void *ctx, struct span id, struct span result)
{
	struct node *n = ctx;
	n->done++;
	str_clear(&n->result);
	str_add(&n->result, result.at, result.len);
}

static struct sim *sim_new(uint64_t seed, uint32_t count, unsigned loss, unsigned twice)
{
	struct sim *s = xcalloc(1, sizeof(*s));
	rng_seed(&s->rng, seed);
	s->count = count;
	s->loss = loss;
	s->twice = twice;
	for (uint32_t i = 0; i < count; i++) {
		struct node *n = &s->nodes[i];
		n->sim = s;
		n->index = i;
		n->exchange = exchange_new(
		    i, count,
		    &(struct exchange_hooks){ .send = on_send, .deliver = on_deliver, .ctx = n });
		n->collect =
		    collect_new(i, &(struct collect_hooks){
				       .up = on_up, .down = on_down, .done = on_done, .ctx = n });
	}
	return s;
}

static void flying_free(struct sim *s, struct flying *f)
{
	DL_DELETE(s->air, f);
	free(f->bytes);
	free(f);
}

static void sim_free(struct sim *s)
{
	while (s->air)
		flying_free(s, s->air);
	for (uint32_t i = 0; i < s->count; i++) {
		assert_int_equal(collect_open(s->nodes[i].collect), 0);
		exchange_free(s->nodes[i].exchange);
		collect_free(s->nodes[i].collect);
		str_free(&s->nodes[i].result);
	}
	free(s);
}

/* One piece lands, any of the first few in the air; an empty sky lets time pass. */
static bool sim_step(struct sim *s)
{
	struct flying *f = s->air;
	bool waiting = false;
	for (uint64_t skip = rng_below(&s->rng, s->loss ? 4 : 1); f && skip && f->next; skip--)
		f = f->next;
	if (f) {
		struct node *n = &s->nodes[f->piece.to];
		DL_DELETE(s->air, f);
		assert_int_equal(exchange_receive(n->exchange, f->from, &f->piece, s->now_ms, NULL),
				 0);
		exchange_flush(n->exchange);
		free(f->bytes);
		free(f);
		return true;
	}
	s->now_ms += 500;
	for (uint32_t i = 0; i < s->count; i++)
		waiting |= exchange_tick(s->nodes[i].exchange, s->now_ms) != UINT64_MAX;
	return waiting;
}

/* Every `every`-th node takes part; all of these must get all contributions in order. */
static void meet(struct sim *s, unsigned round, uint32_t every, size_t bytes)
{
	uint32_t nodes[NODES_MAX], count = 0, before = s->nodes[0].done;
	struct str want = { 0 };
	char id[32];
	int len = snprintf(id, sizeof(id), "round %u", round);
	char *blob = xcalloc(1, bytes + 1);
	for (uint32_t i = 0; i < s->count; i += every)
		nodes[count++] = i;
	for (uint32_t i = 0; i < count; i++) {
		memset(blob, 'a' + (int)(nodes[i] % 26), bytes);
		str_add(&want, blob, bytes);
		assert_int_equal(collect_join(s->nodes[nodes[i]].collect,
					      (struct span){ (uint8_t *)id, (size_t)len }, nodes,
					      count, (struct span){ (uint8_t *)blob, bytes }, NULL),
				 0);
	}
	while (sim_step(s))
		;
	for (uint32_t i = 0; i < count; i++) {
		struct node *n = &s->nodes[nodes[i]];
		assert_int_equal(n->done, i ? n->done : before + 1);
		assert_int_equal(n->result.len, want.len);
		assert_memory_equal(str_text(&n->result), str_text(&want), want.len);
		assert_int_equal(exchange_pending(n->exchange), 0);
	}
	free(blob);
	str_free(&want);
}

/* Goal: all get everything, whatever the number of nodes and the size of the contributions. */
static void all_get_everything(void **state)
{
	static const uint32_t counts[] = { 1, 2, 3, 16, 17, 18, 100, 273, 300 };
	for (size_t i = 0; i < ARRAY_LEN(counts); i++) {
		struct sim *s = sim_new(i, counts[i], 0, 0);
		meet(s, 0, 1, 10);
		meet(s, 1, 3, 0);
		meet(s, 2, 1, 0);
		sim_free(s);
	}
	struct sim *s = sim_new(1, 4, 0, 0);
	meet(s, 0, 1, 5 * EXCHANGE_PIECE_MAX + 3); /* more than one piece */
	meet(s, 1, 1, EXCHANGE_PIECE_MAX);
	sim_free(s);
	(void)state;
}

/* Goal: no node hears of more than its children: the root of 300 gets 16 messages, not 299. */
static void tree_spares_the_root(void **state)
{
	struct sim *s = sim_new(1, 300, 0, 0);
	meet(s, 0, 1, 8);
	assert_int_equal(s->nodes[0].ups, COLLECT_ARITY);
	sim_free(s);
	(void)state;
}

/* Goal: loss, doubles and reordering change nothing; a failure names its seed. */
static void bad_carrier_changes_nothing(void **state)
{
	for (uint64_t seed = 1; seed <= 60; seed++) {
		bool large = seed % 10 == 0; /* pieces of 256 KiB: few nodes, or it takes minutes */
		struct sim *s =
		    sim_new(seed, 2 + (uint32_t)(seed * 7 % (large ? 4 : 40)),
			    (unsigned)(20 + seed * 5 % 300), (unsigned)(seed * 11 % 300));
		print_message("seed %u: %u nodes, %u/1000 lost, %u/1000 doubled\n", (unsigned)seed,
			      s->count, s->loss, s->twice);
		for (unsigned round = 0; round < 5; round++)
			meet(s, round, 1 + (round & 1), large ? 3 * EXCHANGE_PIECE_MAX / 2 : 100);
		sim_free(s);
	}
	(void)state;
}

/* Goal: what came before the carrier broke is sent again at once when it is back. */
static void carrier_comes_back(void **state)
{
	struct sim *s = sim_new(1, 2, 1000, 0); /* all is lost */
	exchange_send(s->nodes[1].exchange, 0, 0, (struct span){ (const uint8_t *)"x", 1 }, 0);
	assert_null(s->air);
	s->loss = 0;
	exchange_again(s->nodes[1].exchange, 1);
	assert_non_null(s->air);
	assert_int_equal(s->air->piece.sequence, 1);
	assert_int_equal(exchange_tick(s->nodes[1].exchange, 1), 1 + EXCHANGE_AGAIN_MS);
	sim_free(s);
	(void)state;
}

/* Goal: what cannot be is refused with an error, never taken. */
static void nonsense_is_refused(void **state)
{
	struct sim *s = sim_new(1, 3, 0, 0);
	struct collect *c = s->nodes[1].collect;
	static const uint32_t wrong[] = { 2, 1 }, without[] = { 0, 2 };
	static const uint8_t no_id[] = { 9, 0, 0, 0, 'x' }, lone[] = { 1, 0, 0, 0, 'x' },
			     half[] = { 1, 0, 0, 0, 'y', 0, 0, 0, 0, 5, 0, 0, 0, 'z' };
	struct span id = { (const uint8_t *)"x", 1 };
	struct exchange_piece piece = { .sequence = 1 };
	assert_int_equal(collect_join(c, id, wrong, 2, (struct span){ 0 }, NULL), -EINVAL);
	assert_int_equal(collect_join(c, id, without, 2, (struct span){ 0 }, NULL), -EINVAL);
	assert_int_equal(collect_up(c, (struct span){ no_id, sizeof(no_id) }, NULL), -EPROTO);
	assert_int_equal(collect_down(c, (struct span){ lone, sizeof(lone) }, NULL), -EPROTO);
	assert_int_equal(exchange_receive(s->nodes[1].exchange, 1, &piece, 0, NULL), -EPROTO);
	assert_int_equal(exchange_receive(s->nodes[1].exchange, 3, &piece, 0, NULL), -EPROTO);
	struct sim *other = sim_new(1, 2, 0, 0);
	assert_int_equal(
	    collect_up(other->nodes[1].collect, (struct span){ half, sizeof(half) }, NULL),
	    -EPROTO);
	other->count = 0; /* its open collective goes with it */
	for (uint32_t i = 0; i < 2; i++) {
		exchange_free(other->nodes[i].exchange);
		collect_free(other->nodes[i].collect);
	}
	free(other);
	sim_free(s);
	(void)state;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(all_get_everything),
		cmocka_unit_test(tree_spares_the_root),
		cmocka_unit_test(bad_carrier_changes_nothing),
		cmocka_unit_test(carrier_comes_back),
		cmocka_unit_test(nonsense_is_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
