/* SPDX-License-Identifier: Apache-2.0 */
/* What users of the core rely on, one statement each. */
#include "scene.h"

/* Goal: a leader that reaches no majority steps down within two election timeouts. */
static void isolated_leader_steps_down(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	scene_groups(s, "011");
	s->timer[1] = true;
	unsigned took = 0;
	while (raft_state(n1->r) == RAFT_LEADER && took < 1000) {
		scene_run(s, 1);
		took++;
	}
	assert_true(took <= 2 * s->settings.election_ms);
	sim_free(s);
}

/* Goal: a node that was cut off and campaigned disturbs nobody when it comes back. */
static void returning_node_does_not_disturb(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	uint64_t term = raft_term(n1->r);
	scene_groups(s, "001");
	s->timer[3] = true;
	scene_run(s, 3000);
	assert_int_equal(raft_state(s->nodes[3].r), RAFT_PRE_CANDIDATE);
	net_connect_all(s);
	scene_run(s, 500);
	assert_int_equal(raft_term(n1->r), term);
	assert_int_equal(raft_state(n1->r), RAFT_LEADER);
	assert_int_equal(raft_leader(s->nodes[3].r), 1);
	sim_free(s);
}

/* Goal: a server that was removed and does not know it disturbs nobody. */
static void removed_server_does_not_disturb(void **state)
{
	SCENE(s, 4, 4);
	struct node *n1 = scene_elect(s, 1), *n4 = &s->nodes[4];
	scene_run(s, 60);
	scene_groups(s, "0001");
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_remove(&c, 4);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 100);
	assert_true(raft_config_committed(n1->r));
	uint64_t term = raft_term(n1->r);
	net_connect_all(s);
	s->timer[4] = true;
	scene_run(s, 3000);
	assert_int_equal(raft_config_roles(raft_config(n4->r, NULL), 4), RAFT_VOTER);
	assert_int_equal(raft_term(n1->r), term);
	assert_int_equal(raft_state(n1->r), RAFT_LEADER);
	sim_free(s);
}

/* Goal: a leader that removes itself commits that without counting itself, then leaves; one of the
 * others leads without waiting for a timeout. */
static void leader_removes_itself(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_remove(&c, 1);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 30);
	assert_int_equal(raft_state(n1->r), RAFT_FOLLOWER);
	struct node *leader = sim_leader(s);
	assert_non_null(leader);
	assert_int_not_equal(leader->id, 1);
	assert_true(raft_config_equal(raft_config(leader->r, NULL), &c));
	uint64_t at = scene_put(s, leader);
	scene_run(s, 30);
	assert_int_equal(scene_commit(leader), at);
	sim_free(s);
}

/* Goal: two of four voters are replaced at once; nothing is committed by one of the two majorities
 * alone. */
static void joint_configuration_needs_both_majorities(void **state)
{
	SCENE(s, 5, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	struct raft_config c = { 0 };
	raft_config_set(&c, 1, RAFT_VOTER);
	raft_config_set(&c, 4, RAFT_VOTER);
	raft_config_set(&c, 5, RAFT_VOTER);
	scene_groups(s, "01100"); /* the old majority is out of reach, the new one is there */
	assert_int_equal(node_change(s, n1, &c), 0);
	uint64_t at = raft_last_index(n1->r);
	scene_run(s, 80);
	assert_true(raft_config_is_joint(raft_config(n1->r, NULL)));
	assert_true(scene_commit(n1) < at);
	assert_int_equal(raft_last_index(s->nodes[4].r), at);
	net_connect_all(s);
	s->timer[1] = true; /* the check for a quorum may have ended its leadership */
	scene_run(s, 600);
	assert_true(scene_commit(n1) > at);
	assert_true(raft_config_equal(raft_config(n1->r, NULL), &c));
	sim_free(s);
}

/* Goal: leadership moves on request in a few message times, and nothing is accepted meanwhile. */
static void leadership_is_transferred(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	uint64_t last = scene_put(s, n1);
	assert_int_equal(node_transfer(s, n1, 2), 0);
	assert_false(node_propose(s, n1, 1));
	assert_int_equal(node_transfer(s, n1, 3), RAFT_TRANSFERRING);
	scene_run(s, 12);
	assert_int_equal(raft_state(s->nodes[2].r), RAFT_LEADER);
	scene_run(s, 12);
	assert_true(scene_commit(&s->nodes[2]) > last);
	assert_int_equal(node_transfer(s, &s->nodes[2], 7), RAFT_UNKNOWN);
	assert_int_equal(node_transfer(s, n1, 2), RAFT_NOT_LEADER);
	sim_free(s);
}

/* Goal: a transfer to a node that does not answer ends after an election timeout. */
static void failed_transfer_ends(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	scene_groups(s, "010");
	assert_int_equal(node_transfer(s, n1, 2), 0);
	assert_false(node_propose(s, n1, 1));
	scene_run(s, s->settings.election_ms + 2);
	uint64_t at = scene_put(s, n1);
	scene_run(s, 20);
	assert_int_equal(scene_commit(n1), at);
	sim_free(s);
}

/* Goal: a follower with many entries of other terms is brought in line in one rejection per term,
 * not per entry. */
static void back_off_skips_whole_terms(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1), *n2 = &s->nodes[2];
	scene_run(s, 60);
	scene_groups(s, "011");
	for (unsigned i = 0; i < 300; i++)
		scene_put(s, n1);
	scene_run(s, 5);
	scene_crash(s, n1);
	scene_elect(s, 2);
	for (unsigned i = 0; i < 20; i++)
		scene_put(s, n2);
	scene_run(s, 30);
	node_start(s, n1);
	net_connect_all(s);
	unsigned took = 0;
	while (raft_durable_index(n1->r) != raft_last_index(n2->r) && took < 1000) {
		scene_run(s, 1);
		took++;
	}
	/* One heartbeat, two round trips and the write. */
	assert_true(took <= s->settings.heartbeat_ms + 10);
	sim_free(s);
}

/* Goal: a leader that cannot commit takes only a bounded number of entries. */
static void uncommitted_log_is_bounded(void **state)
{
	struct sim *s = scene_new(3, 3);
	if (setjmp(s->out) != 0)
		fail_msg("%s", s->reason);
	s->settings.uncommitted_count = 50;
	scene_start(s, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	scene_groups(s, "011");
	unsigned taken = 0;
	while (node_propose(s, n1, 1))
		taken++;
	assert_int_equal(taken, 50);
	net_connect_all(s);
	scene_elect(s, 1);
	scene_run(s, 100);
	assert_true(node_propose(s, n1, 1));
	sim_free(s);
}

/* Goal: a read is answered only after leadership was confirmed since it came. */
static void read_waits_for_confirmation(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	scene_groups(s, "011");
	node_read(s, n1, false);
	scene_run(s, 40);
	assert_int_equal(s->read_count, 1);
	net_connect_all(s);
	scene_run(s, 40);
	assert_int_equal(s->read_count, 0);
	sim_free(s);
}

/* Goal: a lease answers at once, and is void from the moment an heir is named, for the term. */
static void lease_ends_with_a_transfer(void **state)
{
	struct sim *s = scene_new(3, 3);
	if (setjmp(s->out) != 0)
		fail_msg("%s", s->reason);
	s->settings.lease = true;
	scene_start(s, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	assert_true(raft_has_lease(n1->r, node_clock(s, n1)));
	node_read(s, n1, true);
	assert_int_equal(s->read_count, 0);
	scene_groups(s, "010");
	assert_int_equal(node_transfer(s, n1, 2), 0);
	assert_false(raft_has_lease(n1->r, node_clock(s, n1)));
	scene_run(s, 3 * s->settings.election_ms);
	assert_int_equal(raft_state(n1->r), RAFT_LEADER);
	assert_false(raft_has_lease(n1->r, node_clock(s, n1)));
	sim_free(s);
}

/* Goal: a lease ends before a voter may elect somebody else. */
static void lease_ends_before_an_election(void **state)
{
	struct sim *s = scene_new(3, 3);
	if (setjmp(s->out) != 0)
		fail_msg("%s", s->reason);
	s->settings.lease = true;
	scene_start(s, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	scene_groups(s, "011");
	s->timer[2] = s->timer[3] = true;
	bool had = false;
	for (unsigned i = 0; i < 600; i++) {
		scene_run(s, 1);
		bool has = raft_has_lease(n1->r, node_clock(s, n1));
		had |= has;
		if (has) {
			assert_int_not_equal(raft_state(s->nodes[2].r), RAFT_LEADER);
			assert_int_not_equal(raft_state(s->nodes[3].r), RAFT_LEADER);
		}
	}
	assert_true(had);
	assert_true(raft_state(s->nodes[2].r) == RAFT_LEADER ||
		    raft_state(s->nodes[3].r) == RAFT_LEADER);
	sim_free(s);
}

/* Goal: a new learner gets the snapshot in pieces and then the log behind it; the leader keeps the
 * snapshot until it is there. */
static void learner_gets_snapshot_in_pieces(void **state)
{
	struct sim *s = scene_new(2, 1);
	if (setjmp(s->out) != 0)
		fail_msg("%s", s->reason);
	s->settings.chunk_bytes = 7;
	scene_start(s, 1);
	struct node *n1 = &s->nodes[1], *n2 = &s->nodes[2];
	scene_run(s, 5);
	for (unsigned i = 0; i < 20; i++)
		scene_put(s, n1);
	scene_run(s, 5);
	node_take_snapshot(s, n1);
	scene_run(s, 5);
	uint64_t first = raft_snapshot(n1->r)->index;
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_set(&c, 2, RAFT_LEARNER);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 25);
	struct raft_peer_info info;
	assert_true(raft_peer_info(n1->r, 2, &info));
	assert_true(info.snapshot);
	/* A newer snapshot does not end the transfer of the one on its way. */
	scene_put(s, n1);
	scene_run(s, 2);
	node_take_snapshot(s, n1);
	scene_run(s, 2);
	assert_true(raft_snapshot(n1->r)->index > first);
	assert_true(raft_snapshot_needed(n1->r, first));
	scene_run(s, 600);
	assert_int_equal(n2->applied, n1->applied);
	assert_int_equal(n2->hash, n1->hash);
	assert_false(raft_snapshot_needed(n1->r, first));
	sim_free(s);
}

/* Goal: a voter that is far behind is not made to count. */
static void lagging_learner_is_not_promoted(void **state)
{
	struct sim *s = scene_new(2, 1);
	if (setjmp(s->out) != 0)
		fail_msg("%s", s->reason);
	s->settings.promote_lag = 5;
	scene_start(s, 1);
	struct node *n1 = &s->nodes[1];
	scene_run(s, 5);
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_set(&c, 2, RAFT_VOTER);
	assert_int_equal(node_change(s, n1, &c), RAFT_LAGS);
	raft_config_set(&c, 2, RAFT_LEARNER);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 60);
	raft_config_set(&c, 2, RAFT_VOTER);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 60);
	assert_true(raft_config_committed(n1->r));
	sim_free(s);
}

/* Goal: where no lease is given, a closed connection to the leader makes a new one in a fraction of
 * the election timeout. */
static void closed_connection_shortens_the_election(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_run(s, 60);
	scene_crash(s, n1);
	s->timer[2] = s->timer[3] = true;
	for (unsigned i = 2; i <= 3; i++) {
		struct raft_event ev = { .type = RAFT_PEER_DOWN, .peer_down = 1 };
		node_step(s, &s->nodes[i], &ev);
	}
	scene_run(s, s->settings.heartbeat_ms + 30);
	assert_non_null(sim_leader(s));
	sim_free(s);
}

/* Goal: a disk that ends in the middle of a snapshot's installation is understood at start: the log
 * that does not fit is dropped. */
static void start_drops_a_log_that_does_not_fit_the_snapshot(void **state)
{
	struct raft_settings settings = raft_profile(RAFT_LAN);
	struct rng rng;
	struct raft *r;
	struct raft_update up;
	struct raft_entry log[3] = { { .index = 4, .term = 1, .type = RAFT_NOOP },
				     { .index = 5, .term = 1, .type = RAFT_NOOP },
				     { .index = 6, .term = 2, .type = RAFT_NOOP } };
	struct raft_event ev = { .type = RAFT_START,
				 .start = { .term = 3, .entries = log, .count = 3 } };
	raft_config_set(&ev.start.snapshot.config, 1, RAFT_VOTER);
	raft_config_set(&ev.start.snapshot.config, 2, RAFT_VOTER);
	ev.start.snapshot.index = 5;
	ev.start.snapshot.config_index = 1;
	rng_seed(&rng, 1);

	ev.start.snapshot.term = 2; /* entry 5 has another term */
	assert_int_equal(raft_new(&r, 1, &settings, &rng, NULL), 0);
	assert_int_equal(raft_step(r, &ev, &up, NULL), 0);
	assert_int_equal(up.write.truncate_from, 1);
	assert_int_equal(raft_last_index(r), 5);
	raft_free(r);

	ev.start.snapshot.term = 1; /* it fits */
	assert_int_equal(raft_new(&r, 1, &settings, &rng, NULL), 0);
	assert_int_equal(raft_step(r, &ev, &up, NULL), 0);
	assert_int_equal(up.write.number, 0);
	assert_int_equal(raft_last_index(r), 6);
	assert_int_equal(raft_commit_index(r), 5);
	raft_free(r);

	ev.start.snapshot.index = 2; /* entry 3 is missing */
	ev.start.snapshot.config_index = 1;
	assert_int_equal(raft_new(&r, 1, &settings, &rng, NULL), 0);
	struct err err = { 0 };
	assert_true(raft_step(r, &ev, &up, &err) < 0);
	assert_non_null(strstr(err.msg, "missing"));
	raft_free(r);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(isolated_leader_steps_down),
		cmocka_unit_test(returning_node_does_not_disturb),
		cmocka_unit_test(removed_server_does_not_disturb),
		cmocka_unit_test(leader_removes_itself),
		cmocka_unit_test(joint_configuration_needs_both_majorities),
		cmocka_unit_test(leadership_is_transferred),
		cmocka_unit_test(failed_transfer_ends),
		cmocka_unit_test(back_off_skips_whole_terms),
		cmocka_unit_test(uncommitted_log_is_bounded),
		cmocka_unit_test(read_waits_for_confirmation),
		cmocka_unit_test(lease_ends_with_a_transfer),
		cmocka_unit_test(lease_ends_before_an_election),
		cmocka_unit_test(learner_gets_snapshot_in_pieces),
		cmocka_unit_test(lagging_learner_is_not_promoted),
		cmocka_unit_test(closed_connection_shortens_the_election),
		cmocka_unit_test(start_drops_a_log_that_does_not_fit_the_snapshot),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
