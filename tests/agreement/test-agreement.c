/* SPDX-License-Identifier: Apache-2.0 */
/* The whole of agreement with real processes, sessions and disks. */
#include "cluster.h"

#include "cluster/agree.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

enum { FATES = 4 };

struct outcomes {
	unsigned all, by_fate[FATES], failed;
};

/* Take all outcomes that are there (or wait for `wanted`). */
static void take_done(struct cluster *c, unsigned number, struct outcomes *o, unsigned wanted)
{
	while (o->all < wanted) {
		unsigned id, index;
		int fate, code;
		const char *line = cluster_expect(c, number, "done ");
		assert_int_equal(sscanf(line, "done %u %d %d %u", &id, &fate, &code, &index), 4);
		assert_in_range(fate, AGREE_APPLIED, AGREE_UNKNOWN);
		o->all++;
		o->by_fate[fate]++;
		if (fate == AGREE_APPLIED && code)
			o->failed++;
	}
}

static void propose(struct cluster *c, unsigned number, unsigned first, unsigned count)
{
	for (unsigned i = 0; i < count; i++)
		cluster_say(c, number, "propose %u 0", first + i);
}

/* Goal: a node alone commits, restarts after kill -9, and has everything. */
static void sole_node_restarts(void **state)
{
	struct cluster c;
	struct outcomes o = { 0 };
	struct cluster_status before, after;
	cluster_init(&c, RAFT_FAST);
	cluster_start(&c, 1, true);
	assert_int_equal(cluster_leader(&c), 1);
	propose(&c, 1, 1, 200);
	take_done(&c, 1, &o, 200);
	assert_int_equal(o.by_fate[AGREE_APPLIED], 200);
	cluster_status(&c, 1, &before);
	assert_int_equal(before.count, 200);
	cluster_kill(&c, 1);
	cluster_start(&c, 1, false);
	assert_int_equal(cluster_leader(&c), 1);
	cluster_status(&c, 1, &after);
	assert_true(after.term > before.term);
	assert_int_equal(after.count, 200);
	assert_true(after.hash == before.hash);
	cluster_quit(&c, 1);
	cluster_deinit(&c);
}

/* Goal: what apply() refuses comes back with its code, and leaves no other trace. */
static void refused_command_tells_its_code(void **state)
{
	struct cluster c;
	cluster_init(&c, RAFT_FAST);
	cluster_start(&c, 1, true);
	cluster_leader(&c);
	cluster_say(&c, 1, "propose 1999 0");
	assert_string_equal(cluster_expect(&c, 1, "done "), "done 1999 1 -1 3 ");
	cluster_say(&c, 1, "propose 7 0");
	assert_string_equal(cluster_expect(&c, 1, "done "), "done 7 1 0 4 7");
	cluster_deinit(&c);
}

/* Goal: one node grows to three, leadership moves by command, reads are current on each node, and
 * an agent without a log proposes too. */
static void one_grows_to_three(void **state)
{
	struct cluster c;
	struct outcomes o[5] = { 0 };
	cluster_init(&c, RAFT_FAST);
	cluster_grow(&c, 3);
	for (unsigned i = 1; i <= 3; i++)
		propose(&c, i, i * 10000, 100);
	for (unsigned i = 1; i <= 3; i++)
		take_done(&c, i, &o[i], 100);
	for (unsigned i = 1; i <= 3; i++)
		assert_int_equal(o[i].by_fate[AGREE_APPLIED], 100);
	cluster_say(&c, 1, "transfer 3");
	cluster_expect(&c, 1, "transfer 0");
	while (cluster_leader(&c) != 3)
		;
	cluster_say(&c, 3, "lease");
	while (!strcmp(cluster_expect(&c, 3, "lease "), "lease -1"))
		cluster_say(&c, 3, "lease");
	cluster_say(&c, 1, "lease");
	assert_string_equal(cluster_expect(&c, 1, "lease "), "lease -1");
	for (unsigned i = 1; i <= 3; i++) {
		unsigned long long applied, count;
		int code;
		propose(&c, 2, 20500 + i, 1);
		take_done(&c, 2, &o[0], i);
		cluster_say(&c, i, "barrier");
		assert_int_equal(sscanf(cluster_expect(&c, i, "barrier "), "barrier %d %llu %llu",
					&code, &applied, &count),
				 3);
		assert_int_equal(code, 0);
		assert_int_equal(count, 300 + i);
	}
	cluster_start(&c, 4, false);
	cluster_say(&c, 4, "controllers 1,2,3");
	propose(&c, 4, 40000, 100);
	take_done(&c, 4, &o[4], 100);
	assert_int_equal(o[4].by_fate[AGREE_APPLIED], 100);
	cluster_say(&c, 4, "barrier");
	assert_int_equal(atoi(cluster_expect(&c, 4, "barrier ") + 8), -EOPNOTSUPP);
	cluster_settle(&c);
	cluster_deinit(&c);
}

/* Goal: 1,000 commands from three nodes and an agent while leaders are killed (-9) and come back:
 * each has an outcome, what was acknowledged is there exactly once, and states are equal. */
static void killed_leaders_lose_nothing(void **state)
{
	struct cluster c;
	struct outcomes o[5] = { 0 };
	unsigned sent[5] = { 0 };
	cluster_init(&c, RAFT_FAST);
	cluster_grow(&c, 3);
	cluster_start(&c, 4, false);
	cluster_say(&c, 4, "controllers 1,2,3");
	unsigned safe =
	    4; /* whoever proposes must not be killed, or its outcomes are lost with it */
	for (unsigned round = 0; round < 5; round++) {
		unsigned leader = cluster_leader(&c), other = leader % 3 + 1;
		propose(&c, safe, safe * 100000 + sent[safe], 100);
		sent[safe] += 100;
		propose(&c, other, other * 100000 + sent[other], 100);
		sent[other] += 100;
		/* In the middle of it: some are answered, some are on their way. */
		take_done(&c, safe, &o[safe], o[safe].all + 1);
		cluster_kill(&c, leader);
		o[leader] = (struct outcomes){ 0 };
		take_done(&c, safe, &o[safe], sent[safe]);
		take_done(&c, other, &o[other], o[other].all + 100);
		cluster_start(&c, leader, false);
		cluster_say(&c, leader, "know %u %u", safe, c.nodes[safe].port);
	}
	cluster_settle(&c);
	struct cluster_status s;
	cluster_status(&c, 1, &s);
	assert_int_equal(s.doubles, 0);
	unsigned applied = o[safe].by_fate[AGREE_APPLIED];
	assert_int_equal(applied, 500);
	assert_int_equal(o[safe].by_fate[AGREE_UNKNOWN], 0);
	assert_int_equal(s.count, 1000);
	cluster_deinit(&c);
}

/* Goal: without a majority a command has no outcome but "unknown", in time; when the majority is
 * back it is applied at most once. */
static void no_majority_means_unknown(void **state)
{
	struct cluster c;
	struct cluster_status s;
	cluster_init(&c, RAFT_FAST);
	cluster_grow(&c, 3);
	unsigned leader = cluster_leader(&c), a = leader % 3 + 1, b = a % 3 + 1;
	cluster_kill(&c, a);
	cluster_kill(&c, b);
	cluster_say(&c, leader, "propose 5 300");
	unsigned id;
	int fate, code;
	assert_int_equal(
	    sscanf(cluster_expect(&c, leader, "done "), "done %u %d %d", &id, &fate, &code), 3);
	assert_int_equal(fate, AGREE_UNKNOWN);
	assert_int_equal(code, -ETIMEDOUT);
	cluster_say(&c, leader, "barrier");
	cluster_start(&c, a, false);
	cluster_start(&c, b, false);
	cluster_leader(&c);
	assert_int_equal(atoi(cluster_expect(&c, leader, "barrier ") + 8), 0);
	cluster_settle(&c);
	cluster_status(&c, leader, &s);
	assert_true(s.count <= 1);
	cluster_deinit(&c);
}

/* Goal: the log is compacted, a fresh learner gets the state as a snapshot in pieces and becomes a
 * voter; all of them restart from their snapshots. */
static void fresh_learner_gets_a_snapshot(void **state)
{
	struct cluster c;
	struct outcomes o = { 0 };
	struct cluster_status s;
	cluster_init(&c, RAFT_FAST);
	c.snapshot_entries = 20;
	c.keep_entries = 5;
	cluster_start(&c, 1, true);
	cluster_leader(&c);
	for (unsigned i = 0; i < 100; i++) {
		propose(&c, 1, 1 + i * 3, 3);
		take_done(&c, 1, &o, o.all + 3);
	}
	do
		cluster_status(&c, 1, &s);
	while (s.first < 40 || s.snapshot < 40);
	cluster_start(&c, 2, false);
	cluster_say(&c, 2, "serve 1");
	cluster_expect(&c, 2, "serve 0");
	cluster_say(&c, 1, "voters 1 2");
	cluster_expect(&c, 1, "voters 0");
	do
		cluster_status(&c, 2, &s);
	while (s.count < 300);
	assert_true(s.snapshot >= 40);
	assert_true(s.first > 1);
	cluster_settle(&c);
	cluster_say(&c, 1, "voters 1,2 0");
	cluster_expect(&c, 1, "voters 0");
	do
		cluster_status(&c, 2, &s);
	while (s.voters != 2 || s.changing);
	for (unsigned i = 0; i < 2; i++) {
		propose(&c, 2, 1001 + i, 1);
		take_done(&c, 2, &o, o.all + 1);
		cluster_settle(&c);
		cluster_kill(&c, 1);
		cluster_kill(&c, 2);
		cluster_start(&c, 1, false);
		cluster_start(&c, 2, false);
	}
	cluster_settle(&c);
	cluster_status(&c, 1, &s);
	assert_int_equal(s.count, 302);
	assert_int_equal(o.by_fate[AGREE_APPLIED], 302);
	cluster_deinit(&c);
}

/* Goal: a leader whose disk is full says so and hands over; the others go on; with space again it
 * follows by itself. Nothing acknowledged is lost. */
static void leader_with_full_disk_hands_over(void **state)
{
	struct cluster c;
	struct outcomes o[4] = { 0 };
	struct cluster_status s;
	cluster_init(&c, RAFT_FAST);
	cluster_grow(&c, 3);
	unsigned full = cluster_leader(&c), other = full % 3 + 1;
	cluster_say(&c, full, "limit 1");
	cluster_expect(&c, full, "limit 0");
	propose(&c, other, 1, 50);
	propose(&c, full, 101, 50);
	cluster_expect(&c, full, "health the log of this node cannot be written");
	do
		cluster_status(&c, other, &s);
	while (!s.leader || s.leader == full);
	take_done(&c, other, &o[other], 50);
	take_done(&c, full, &o[full], 50);
	assert_int_equal(o[other].by_fate[AGREE_APPLIED], 50);
	cluster_status(&c, full, &s);
	assert_int_not_equal(s.leader, full);
	cluster_say(&c, full, "limit 0");
	cluster_expect(&c, full, "limit 0");
	cluster_expect(&c, full, "health well");
	cluster_settle(&c);
	cluster_status(&c, full, &s);
	assert_true(s.count >= 50 + o[full].by_fate[AGREE_APPLIED]);
	assert_true(s.count <= 100 - o[full].by_fate[AGREE_REFUSED]);
	cluster_deinit(&c);
}

/* Goal: the only controller refuses with the reason while its disk is full, and goes on by itself.
 */
static void sole_node_with_full_disk_refuses(void **state)
{
	struct cluster c;
	struct cluster_status s;
	cluster_init(&c, RAFT_FAST);
	cluster_start(&c, 1, true);
	cluster_leader(&c);
	cluster_say(&c, 1, "limit 1");
	cluster_expect(&c, 1, "limit 0");
	cluster_say(&c, 1, "propose 1 0");
	cluster_expect(&c, 1, "health the log of this node cannot be written");
	cluster_say(&c, 1, "propose 2 0");
	unsigned id;
	int fate, code;
	assert_int_equal(
	    sscanf(cluster_expect(&c, 1, "done 2 "), "done %u %d %d", &id, &fate, &code), 3);
	assert_int_equal(fate, AGREE_REFUSED);
	assert_int_equal(code, -ENOSPC);
	cluster_say(&c, 1, "limit 0");
	cluster_expect(&c, 1, "health well");
	assert_string_equal(cluster_expect(&c, 1, "done 1 1 0 "), "done 1 1 0 3 1");
	cluster_say(&c, 1, "propose 3 0");
	cluster_expect(&c, 1, "done 3 1 0 ");
	cluster_status(&c, 1, &s);
	assert_int_equal(s.count, 2);
	cluster_deinit(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sole_node_restarts),
		cmocka_unit_test(refused_command_tells_its_code),
		cmocka_unit_test(one_grows_to_three),
		cmocka_unit_test(killed_leaders_lose_nothing),
		cmocka_unit_test(no_majority_means_unknown),
		cmocka_unit_test(fresh_learner_gets_a_snapshot),
		cmocka_unit_test(leader_with_full_disk_hands_over),
		cmocka_unit_test(sole_node_with_full_disk_refuses),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
