/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"

#include "cluster/liveness.h"

#define LAN (&liveness_profiles[LIVENESS_LAN])

enum { MS = 1000 };

/* Goal: silence for dead_ms makes suspect, once, and not before; a packet makes alive again. */
static void silence_makes_suspect(void **state)
{
	struct liveness_peer p;
	liveness_peer_init(&p, 2, LAN, 1000 * MS);
	assert_true(liveness_heard(&p, 0, 200, LAN, 1010 * MS));
	assert_int_equal(p.state, LIVENESS_ALIVE);
	assert_false(liveness_heard(&p, 0, 200, LAN, 1020 * MS));
	assert_int_equal(liveness_tick(&p, LAN, 0, 1320 * MS - 1), 2); /* its path went down */
	assert_int_equal(liveness_tick(&p, LAN, 0, 1320 * MS), 1);
	assert_int_equal(p.state, LIVENESS_SUSPECT);
	assert_int_equal(liveness_tick(&p, LAN, 0, 1400 * MS), 0);
	assert_true(liveness_heard(&p, 1, 0, LAN, 1500 * MS));
	assert_int_equal(p.state, LIVENESS_ALIVE);
}

/* Goal: a node that was never heard is suspect after the same time. */
static void a_node_never_heard_becomes_suspect(void **state)
{
	struct liveness_peer p;
	liveness_peer_init(&p, 1, LAN, 1000 * MS);
	assert_int_equal(liveness_tick(&p, LAN, 0, 1299 * MS), 0);
	assert_int_equal(liveness_tick(&p, LAN, 0, 1300 * MS), 1);
	assert_int_equal(p.heard_us, 0);
}

/* Goal: one path's silence is seen while the node stays alive by the other. */
static void a_path_goes_down_alone(void **state)
{
	struct liveness_peer p;
	liveness_peer_init(&p, 2, LAN, 0);
	(void)liveness_heard(&p, 0, 0, LAN, 10 * MS);
	(void)liveness_heard(&p, 1, 0, LAN, 10 * MS);
	(void)liveness_heard(&p, 1, 0, LAN, 150 * MS);
	assert_int_equal(liveness_tick(&p, LAN, 0, 165 * MS), 2);
	assert_false(p.paths[0].up);
	assert_true(p.paths[1].up);
	assert_int_equal(p.state, LIVENESS_ALIVE);
}

/* Goal: who was late accuses nobody, and goes on accusing afterwards. */
static void own_lateness_accuses_nobody(void **state)
{
	struct liveness_peer p;
	liveness_peer_init(&p, 1, LAN, 0);
	(void)liveness_heard(&p, 0, 0, LAN, 1000 * MS);
	assert_int_equal(liveness_lateness(LAN, 1050 * MS, 1200 * MS), 0);
	uint64_t late_us = liveness_lateness(LAN, 1050 * MS, 9050 * MS);
	assert_int_equal(late_us, 8000 * MS);
	assert_int_equal(liveness_tick(&p, LAN, late_us, 9050 * MS), 0);
	assert_int_equal(p.state, LIVENESS_ALIVE);
	assert_true(p.paths[0].up);
	assert_int_equal(liveness_tick(&p, LAN, 0, 9300 * MS), 1);
}

/* Goal: each packet counts once, in any order within 64; lives only go upwards. */
static void replays_are_refused(void **state)
{
	struct liveness_window w = { 0 };
	assert_false(liveness_window_take(&w, 0, 1));
	assert_false(liveness_window_take(&w, 5, 0));
	assert_true(liveness_window_take(&w, 5, 10));
	assert_false(liveness_window_take(&w, 5, 10));
	assert_true(liveness_window_take(&w, 5, 12));
	assert_true(liveness_window_take(&w, 5, 11));
	assert_false(liveness_window_take(&w, 5, 11));
	assert_true(liveness_window_take(&w, 5, 100));
	assert_false(liveness_window_take(&w, 5, 36));
	assert_true(liveness_window_take(&w, 5, 37));
	assert_false(liveness_window_take(&w, 4, 1000));
	assert_true(liveness_window_take(&w, 6, 1));
	assert_false(liveness_window_take(&w, 5, 101));
	assert_true(liveness_window_take(&w, 6, UINT64_MAX));
	assert_false(liveness_window_take(&w, 6, 1));
}

/* Goal: loss is what is missing of the last 64, from the first packet on. */
static void loss_is_counted(void **state)
{
	struct liveness_window w = { 0 };
	assert_int_equal(liveness_window_loss_permille(&w), 0);
	for (uint64_t i = 1000; i < 1010; i++)
		assert_true(liveness_window_take(&w, 1, i));
	assert_int_equal(liveness_window_loss_permille(&w), 0);
	for (uint64_t i = 1010; i < 1210; i += 2)
		assert_true(liveness_window_take(&w, 1, i));
	assert_int_equal(liveness_window_loss_permille(&w), 500);
}

/* Goal: the profiles' numbers fit together, whatever they are set to. */
static void profiles_fit(void **state)
{
	for (int i = 0; i < LIVENESS_PROFILE_COUNT; i++) {
		const struct liveness_profile *p = &liveness_profiles[i];
		assert_ptr_equal(liveness_profile_find(p->name), p);
		assert_true(3 * p->interval_ms <= p->warn_ms && p->warn_ms < p->dead_ms);
		assert_true(p->kill_before_ms < p->term_before_ms);
		/* Three heartbeats may be lost before a task hears of it. */
		assert_true(p->term_before_ms + 4 * p->interval_ms <= p->lease_ms);
		assert_true(p->dead_ms < p->lease_ms);
	}
	assert_null(liveness_profile_find("none"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(silence_makes_suspect),
		cmocka_unit_test(a_node_never_heard_becomes_suspect),
		cmocka_unit_test(a_path_goes_down_alone),
		cmocka_unit_test(own_lateness_accuses_nobody),
		cmocka_unit_test(replays_are_refused),
		cmocka_unit_test(loss_is_counted),
		cmocka_unit_test(profiles_fit),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
