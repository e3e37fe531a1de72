/* SPDX-License-Identifier: Apache-2.0 */
/* Commands that stand in the log twice. */
#include "cluster/dedup.h"

#include "base/rng.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static enum dedup_verdict ask(struct dedup *d, uint32_t node, uint64_t epoch, uint64_t sequence,
			      uint64_t low, struct dedup_result *ret)
{
	struct dedup_key key = { node, epoch, sequence };
	return dedup_check(d, &key, low, ret);
}

static void done(struct dedup *d, uint32_t node, uint64_t epoch, uint64_t sequence, int code,
		 const char *text)
{
	struct dedup_key key = { node, epoch, sequence };
	struct dedup_result r = { .code = code,
				  .index = sequence + 100,
				  .bytes = { (const uint8_t *)text, strlen(text) },
				  .text = text };
	dedup_record(d, &key, &r);
}

/* Goal: a second copy gets the outcome of the first. */
static void duplicate_gets_the_first_outcome(void **state)
{
	struct dedup *d = dedup_new();
	struct dedup_result r;
	assert_int_equal(ask(d, 1, 9, 1, 1, &r), DEDUP_NEW);
	done(d, 1, 9, 1, -EEXIST, "taken");
	assert_int_equal(ask(d, 1, 9, 1, 1, &r), DEDUP_KNOWN);
	assert_int_equal(r.code, -EEXIST);
	assert_int_equal(r.index, 101);
	assert_string_equal(r.text, "taken");
	assert_memory_equal(r.bytes.at, "taken", 5);
	/* Another node, another start of the same node, another command are not duplicates. */
	assert_int_equal(ask(d, 2, 9, 1, 1, &r), DEDUP_NEW);
	assert_int_equal(ask(d, 1, 8, 1, 1, &r), DEDUP_NEW);
	assert_int_equal(ask(d, 1, 9, 2, 1, &r), DEDUP_NEW);
	dedup_free(d);
}

/* Goal: commands may come in any order; what is below `low` is never applied again. */
static void order_does_not_matter(void **state)
{
	struct dedup *d = dedup_new();
	struct dedup_result r;
	assert_int_equal(ask(d, 1, 9, 5, 1, &r), DEDUP_NEW);
	done(d, 1, 9, 5, 0, "five");
	assert_int_equal(ask(d, 1, 9, 3, 1, &r), DEDUP_NEW);
	done(d, 1, 9, 3, 0, "three");
	assert_int_equal(ask(d, 1, 9, 5, 1, &r), DEDUP_KNOWN);
	assert_memory_equal(r.bytes.at, "five", 4);
	assert_int_equal(ask(d, 1, 9, 6, 5, &r), DEDUP_NEW);
	done(d, 1, 9, 6, 0, "six");
	assert_int_equal(ask(d, 1, 9, 3, 1, &r), DEDUP_STALE);
	assert_int_equal(ask(d, 1, 9, 4, 1, &r), DEDUP_STALE);
	assert_int_equal(ask(d, 1, 9, 5, 1, &r), DEDUP_KNOWN);
	assert_int_equal(ask(d, 1, 9, 5 + DEDUP_WINDOW, 5, &r), DEDUP_FAR);
	dedup_free(d);
}

/* Goal: memory is bounded, and what is dropped is only the result, not that it was applied. */
static void results_are_bounded(void **state)
{
	struct dedup *d = dedup_new();
	struct dedup_result r;
	char *large = calloc(1, 64 << 10);
	memset(large, 'x', (64 << 10) - 1);
	for (uint64_t i = 1; i <= 100; i++) {
		assert_int_equal(ask(d, 1, 9, i, 1, &r), DEDUP_NEW);
		done(d, 1, 9, i, 0, large);
	}
	assert_int_equal(ask(d, 1, 9, 1, 1, &r), DEDUP_KNOWN);
	assert_true(r.dropped);
	assert_int_equal(r.bytes.len, 0);
	assert_int_equal(ask(d, 1, 9, 100, 1, &r), DEDUP_KNOWN);
	assert_false(r.dropped);
	struct str out = { 0 };
	dedup_save(d, &out);
	assert_true(out.len < DEDUP_BYTES + (64 << 10));
	str_free(&out);
	free(large);
	dedup_free(d);
}

/* Goal: of one node's starts the longest unused is forgotten first. */
static void starts_of_a_node_are_bounded(void **state)
{
	struct dedup *d = dedup_new();
	struct dedup_result r;
	for (uint64_t epoch = 1; epoch <= DEDUP_EPOCHS + 1; epoch++) {
		assert_int_equal(ask(d, 1, epoch, 1, 1, &r), DEDUP_NEW);
		done(d, 1, epoch, 1, 0, "x");
	}
	for (uint64_t epoch = 2; epoch <= DEDUP_EPOCHS + 1; epoch++)
		assert_int_equal(ask(d, 1, epoch, 1, 1, &r), DEDUP_KNOWN);
	assert_int_equal(ask(d, 1, 1, 1, 1, &r), DEDUP_NEW);
	dedup_free(d);
}

/* Goal: a snapshot gives the same answers and the same bytes, after any history. */
static void snapshot_is_equal(void **state)
{
	struct rng rng;
	rng_seed(&rng, 7);
	for (unsigned round = 0; round < 50; round++) {
		struct dedup *a = dedup_new(), *b;
		struct dedup_result ra, rb;
		struct str one = { 0 }, two = { 0 };
		struct err err = { 0 };
		uint64_t low[4] = { 1, 1, 1, 1 };
		for (unsigned i = 0; i < 500; i++) {
			uint32_t node = (uint32_t)rng_below(&rng, 4);
			uint64_t sequence = low[node] + rng_below(&rng, 20);
			if (rng_chance(&rng, 300))
				low[node] += rng_below(&rng, 5);
			if (ask(a, node + 1, 1 + rng_below(&rng, 3), sequence,
				MIN(low[node], sequence), &ra) == DEDUP_NEW &&
			    rng_chance(&rng, 0))
				fail();
		}
		for (unsigned i = 0; i < 200; i++) {
			uint32_t node = 1 + (uint32_t)rng_below(&rng, 4);
			uint64_t epoch = 1 + rng_below(&rng, 3);
			uint64_t sequence = low[node - 1] + rng_below(&rng, 30);
			if (ask(a, node, epoch, sequence, low[node - 1], &ra) == DEDUP_NEW)
				done(a, node, epoch, sequence, -(int)(i % 3), "result");
		}
		dedup_save(a, &one);
		assert_int_equal(dedup_load(&b, (struct span){ (uint8_t *)one.at, one.len }, &err),
				 0);
		dedup_save(b, &two);
		assert_int_equal(one.len, two.len);
		assert_memory_equal(one.at, two.at, one.len);
		for (uint64_t s = 1; s < 200; s++) {
			uint32_t node = 1 + (uint32_t)rng_below(&rng, 4);
			assert_int_equal(ask(a, node, 2, s, 1, &ra), ask(b, node, 2, s, 1, &rb));
		}
		str_free(&one);
		str_free(&two);
		dedup_free(a);
		dedup_free(b);
	}
}

/* Goal: damaged snapshots are refused or give something valid, never a crash. */
static void damaged_snapshots_do_no_harm(void **state)
{
	struct rng rng;
	struct dedup *d = dedup_new(), *copy = NULL;
	struct dedup_result r;
	struct str out = { 0 };
	unsigned refused = 0;
	rng_seed(&rng, 11);
	for (uint64_t i = 1; i < 60; i++)
		if (ask(d, 1 + i % 3, 5, i, 1, &r) == DEDUP_NEW)
			done(d, 1 + i % 3, 5, i, 0, "result");
	dedup_save(d, &out);
	for (unsigned i = 0; i < 5000; i++) {
		struct str bad = { 0 };
		str_add(&bad, out.at, rng_chance(&rng, 200) ? rng_below(&rng, out.len) : out.len);
		for (unsigned k = 0; bad.len && k < 1 + rng_below(&rng, 4); k++)
			bad.at[rng_below(&rng, bad.len)] = (char)rng_next(&rng);
		if (dedup_load(&copy, (struct span){ (uint8_t *)bad.at, bad.len }, NULL) < 0)
			refused++;
		else
			copy = dedup_free(copy);
		str_free(&bad);
	}
	assert_true(refused > 100);
	str_free(&out);
	dedup_free(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(duplicate_gets_the_first_outcome),
		cmocka_unit_test(order_does_not_matter),
		cmocka_unit_test(results_are_bounded),
		cmocka_unit_test(starts_of_a_node_are_bounded),
		cmocka_unit_test(snapshot_is_equal),
		cmocka_unit_test(damaged_snapshots_do_no_harm),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
