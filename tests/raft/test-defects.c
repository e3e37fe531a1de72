/* SPDX-License-Identifier: Apache-2.0 */
/* Mistakes that Raft libraries have made, one test for each: the right behaviour is asserted. */
#include "scene.h"

/* Goal: an entry of an old term that stands on a majority is not committed by counting, and may
 * still be replaced (dissertation, figure 3.7; "Figure 8" of the paper). */
static void figure_8_old_term_is_not_committed_by_counting(void **state)
{
	SCENE(s, 5, 5);
	struct node *n1 = scene_elect(s, 1);
	scene_put(s, n1);
	scene_run(s, 60);

	/* a: entry A of term 2 only on nodes 1 and 2 */
	scene_groups(s, "00111");
	uint64_t a = scene_put(s, n1), term_a = raft_term(n1->r);
	scene_run(s, 10);
	assert_int_equal(raft_last_index(s->nodes[2].r), a);
	scene_crash(s, n1);

	/* b: node 5 leads nodes 3 to 5; its entry stays with itself */
	struct node *n5 = scene_elect(s, 5);
	scene_groups(s, "00112");
	scene_run(s, 5);
	assert_int_equal(raft_last_index(s->nodes[3].r), a - 1);
	scene_crash(s, n5);

	/* c: node 1 leads again and brings A to node 3, one entry at a time */
	s->settings.append_bytes = 1;
	s->settings.inflight_count = 1;
	node_start(s, n1);
	scene_groups(s, "00011");
	scene_elect(s, 1);
	struct raft_peer_info info = { 0 };
	for (unsigned i = 0; i < 50 && raft_last_index(s->nodes[3].r) < a; i++)
		scene_run(s, 1);
	s->blocked[1][3] = true; /* A, but not the no-op behind it */
	for (unsigned i = 0; i < 50 && info.match < a; i++) {
		scene_run(s, 1);
		assert_true(raft_peer_info(n1->r, 3, &info));
	}
	assert_int_equal(info.match, a);
	assert_int_equal(raft_entry(n1->r, a)->term, term_a);
	assert_true(raft_peer_info(n1->r, 2, &info));
	assert_true(info.match >= a);      /* nodes 1, 2 and 3: a majority has A … */
	assert_true(scene_commit(n1) < a); /* … and it is not committed */

	/* d: node 5 wins with nodes 3 and 4 and replaces A */
	scene_crash(s, n1);
	node_start(s, n5);
	scene_groups(s, "10000");
	scene_elect(s, 5);
	scene_run(s, 300);
	uint64_t last = scene_put(s, n5);
	scene_run(s, 100);
	assert_true(scene_commit(n5) >= last);
	assert_true(raft_entry(s->nodes[2].r, a)->term > term_a);
	assert_true(raft_entry(s->nodes[3].r, a)->term > term_a);
	sim_free(s);
}

/* Goal: the answer to a leader of an old term carries only the new term; a node that leads again in
 * that newer term does not take it for a success. */
static void answer_to_old_term_carries_no_match(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	for (unsigned i = 0; i < 5; i++)
		scene_put(s, n1);
	scene_run(s, 60);
	uint64_t old_term = raft_term(n1->r), at = scene_commit(n1);
	struct raft_snapshot_meta meta;
	assert_int_equal(raft_snapshot_meta(n1->r, at, &meta), 0);
	meta.size_bytes = 16;

	scene_crash(s, n1);
	node_start(s, n1);
	scene_elect(s, 1);
	scene_run(s, 60);
	assert_true(raft_term(n1->r) > old_term);
	scene_groups(s, "012");
	uint64_t last = 0, commit = scene_commit(n1);
	for (unsigned i = 0; i < 8; i++)
		last = scene_put(s, n1);
	scene_run(s, 3);
	net_connect_all(s);
	net_clear(s);

	uint8_t bytes[16] = { 0 };
	struct raft_message snapshot = { .type = RAFT_MSG_SNAPSHOT,
					 .from = 1,
					 .to = 3,
					 .term = old_term,
					 .chunk = { .snapshot = meta, .len = 16, .data = bytes } };
	struct raft_message append = {
		.type = RAFT_MSG_APPEND, .from = 1, .to = 3, .term = old_term
	};
	scene_deliver(s, &snapshot);
	scene_deliver(s, &append);
	const struct raft_message *m = scene_on_way(s, 3, 1, RAFT_MSG_SNAPSHOT_REPLY);
	assert_non_null(m);
	assert_int_equal(m->chunk_reply.result, RAFT_STALE);
	assert_false(m->chunk_reply.done);
	m = scene_on_way(s, 3, 1, RAFT_MSG_APPEND_REPLY);
	assert_non_null(m);
	assert_int_equal(m->append_reply.result, RAFT_STALE);
	assert_int_equal(m->append_reply.match, 0);
	s->blocked[1][2] = s->blocked[1][3] = true;
	scene_run(s, 3);
	assert_int_equal(scene_commit(n1), commit);
	assert_true(commit < last);
	sim_free(s);
}

/* Goal: a sole voter takes a new term when it starts again, because an entry of its old term may
 * have reached a learner before it was on its own disk. */
static void sole_voter_restarts_in_a_new_term(void **state)
{
	SCENE(s, 2, 1);
	struct node *n1 = &s->nodes[1];
	scene_run(s, 5);
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_set(&c, 2, RAFT_LEARNER);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 100);
	uint64_t term = raft_term(n1->r);

	n1->frozen_disk = s->now + 1000;
	uint64_t at = scene_put(s, n1);
	scene_run(s, 5);
	assert_int_equal(raft_last_index(s->nodes[2].r), at);
	assert_true(scene_commit(n1) < at);
	scene_crash(s, n1);
	n1->frozen_disk = 0;
	assert_int_equal(disk_last(&n1->disk), at - 1);

	node_start(s, n1);
	scene_run(s, 5);
	assert_int_equal(raft_state(n1->r), RAFT_LEADER);
	assert_true(raft_term(n1->r) > term);
	scene_put(s, n1);
	scene_run(s, 100);
	assert_int_equal(scene_commit(&s->nodes[2]), scene_commit(n1));
	assert_true(raft_entry(s->nodes[2].r, at)->term > term);
	sim_free(s);
}

/* Goal: a leader changes the configuration only after an entry of its own term is committed. */
static void no_change_before_the_own_term_is_committed(void **state)
{
	SCENE(s, 4, 3);
	struct node *n1 = scene_elect(s, 1);
	scene_groups(s, "0111"); /* its no-op does not get out */
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_set(&c, 4, RAFT_VOTER);
	assert_int_equal(node_change(s, n1, &c), RAFT_NOT_READY);
	net_connect_all(s);
	scene_run(s, 40);
	assert_int_equal(node_change(s, n1, &c), 0);
	assert_int_equal(node_change(s, n1, &c), RAFT_CHANGING);
	scene_run(s, 40);
	assert_true(raft_config_committed(n1->r));
	assert_false(raft_config_is_joint(raft_config(n1->r, NULL)));
	assert_int_equal(node_change(s, n1, &c), RAFT_UNCHANGED);
	sim_free(s);
}

/* Goal: a follower notes the index of the configuration entry itself, not of the first entry of the
 * message it came in. */
static void configuration_index_is_that_of_its_entry(void **state)
{
	SCENE(s, 4, 3);
	struct node *n1 = scene_elect(s, 1), *n3 = &s->nodes[3];
	scene_run(s, 60);
	scene_groups(s, "0010");
	scene_put(s, n1);
	scene_put(s, n1);
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_set(&c, 4, RAFT_LEARNER);
	assert_int_equal(node_change(s, n1, &c), 0);
	uint64_t at, seen;
	(void)raft_config(n1->r, &at);
	assert_int_equal(at, raft_last_index(n1->r));
	scene_put(s, n1);
	scene_run(s, 60);
	net_connect_all(s);
	scene_run(s, 100);
	(void)raft_config(n3->r, &seen);
	assert_int_equal(seen, at);
	assert_true(raft_config_committed(n3->r));
	assert_true(raft_config_equal(raft_config(n3->r, NULL), &c));
	sim_free(s);
}

/* Goal: an append that begins below what the receiver has compacted, even at 0, adds only what is
 * new, at its own index. */
static void append_below_the_snapshot_is_trimmed(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1), *n2 = &s->nodes[2];
	for (unsigned i = 0; i < 10; i++)
		scene_put(s, n1);
	scene_run(s, 60);
	node_take_snapshot(s, n2);
	scene_run(s, 5);
	assert_int_equal(raft_first_index(n2->r), scene_commit(n2) + 1);

	scene_groups(s, "010");
	uint64_t last = scene_put(s, n1);
	struct raft_message m = { .type = RAFT_MSG_APPEND,
				  .from = 1,
				  .to = 2,
				  .term = raft_term(n1->r),
				  .append = { .entries = raft_entry(n1->r, 1),
					      .count = (unsigned)last } };
	scene_deliver(s, &m);
	assert_int_equal(raft_last_index(n2->r), last);
	assert_int_equal(raft_entry(n2->r, last)->index, last);
	assert_int_equal(entry_value(raft_entry(n2->r, last)),
			 entry_value(raft_entry(n1->r, last)));
	/* The same that ends within the compacted part changes nothing. */
	m.append.count = 4;
	scene_deliver(s, &m);
	assert_int_equal(raft_last_index(n2->r), last);
	sim_free(s);
}

/* Goal: a late message that knows less does not take the commit index back. */
static void commit_index_never_sinks(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1), *n2 = &s->nodes[2];
	for (unsigned i = 0; i < 10; i++)
		scene_put(s, n1);
	scene_run(s, 60);
	uint64_t commit = scene_commit(n2), last = raft_last_index(n2->r);
	struct raft_message m = { .type = RAFT_MSG_APPEND,
				  .from = 1,
				  .to = 2,
				  .term = raft_term(n1->r),
				  .append = {
				      .entries = raft_entry(n1->r, 1), .count = 3, .commit = 2 } };
	scene_deliver(s, &m);
	m.append.count = 0;
	m.append.commit = 0;
	scene_deliver(s, &m);
	assert_int_equal(scene_commit(n2), commit);
	assert_int_equal(raft_last_index(n2->r), last);
	/* Nor may it rise beyond what is known to be the leader's log. */
	m.append.commit = 1000;
	scene_deliver(s, &m);
	assert_true(scene_commit(n2) <= last);
	sim_free(s);
}

/* Goal: a late rejection of something that is known to match moves nothing. */
static void late_rejection_below_match_is_ignored(void **state)
{
	SCENE(s, 3, 3);
	struct node *n1 = scene_elect(s, 1);
	for (unsigned i = 0; i < 10; i++)
		scene_put(s, n1);
	scene_run(s, 60);
	struct raft_peer_info before, after;
	assert_true(raft_peer_info(n1->r, 2, &before));
	assert_int_equal(before.match, raft_last_index(n1->r));
	for (uint64_t prev = 1; prev <= before.match; prev++) {
		struct raft_message m = { .type = RAFT_MSG_APPEND_REPLY,
					  .from = 2,
					  .to = 1,
					  .term = raft_term(n1->r),
					  .append_reply = {
					      .result = RAFT_REJECTED, .prev = prev, .hint = 0 } };
		scene_deliver(s, &m);
		assert_true(raft_peer_info(n1->r, 2, &after));
		assert_int_equal(after.match, before.match);
		assert_int_equal(after.next, before.next);
	}
	uint64_t last = scene_put(s, n1);
	scene_run(s, 10);
	assert_int_equal(scene_commit(n1), last);
	sim_free(s);
}

/* Goal: a promoted node that has not heard of its promotion votes, or a cluster of one that grows
 * would be without a leader for ever. */
static void promoted_node_votes_before_it_knows(void **state)
{
	SCENE(s, 2, 1);
	struct node *n1 = &s->nodes[1];
	scene_run(s, 5);
	struct raft_config c = *raft_config(n1->r, NULL);
	raft_config_set(&c, 2, RAFT_LEARNER);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 100);
	scene_groups(s, "01");
	raft_config_set(&c, 2, RAFT_VOTER);
	assert_int_equal(node_change(s, n1, &c), 0);
	scene_run(s, 3); /* it is only on the disk of node 1 */
	scene_crash(s, n1);
	net_connect_all(s);
	node_start(s, n1);
	assert_int_equal(raft_config_roles(raft_config(s->nodes[2].r, NULL), 2), RAFT_LEARNER);
	scene_elect(s, 1);
	scene_run(s, 100);
	assert_true(raft_config_committed(s->nodes[2].r));
	assert_int_equal(raft_config_roles(raft_config(s->nodes[2].r, NULL), 2), RAFT_VOTER);
	sim_free(s);
}

/* Goal: a voter that turns itself into a learner and is the only one that has the entry brings it
 * to an end after a crash. (Found by the bench.) */
static void leaving_voter_still_campaigns(void **state)
{
	SCENE(s, 2, 2);
	struct node *n1 = scene_elect(s, 1), *n2 = &s->nodes[2];
	scene_run(s, 60);
	struct raft_config c = { 0 };
	raft_config_set(&c, 1, RAFT_LEARNER);
	raft_config_set(&c, 2, RAFT_VOTER);
	assert_int_equal(node_change(s, n1, &c), 0);
	for (unsigned i = 0; i < 50 && raft_config_is_joint(raft_config(n1->r, NULL)); i++)
		scene_run(s, 1);
	scene_groups(s, "01"); /* the last entry stays with node 1 */
	scene_run(s, 2);
	scene_crash(s, n1);
	net_connect_all(s);
	node_start(s, n1);
	assert_true(raft_config_is_joint(raft_config(n2->r, NULL)));
	assert_int_equal(raft_config_roles(raft_config(n1->r, NULL), 1), RAFT_LEARNER);
	s->timer[1] = s->timer[2] = true;
	for (unsigned i = 0; i < 4000 && raft_state(n2->r) != RAFT_LEADER; i++)
		scene_run(s, 1);
	assert_int_equal(raft_state(n2->r), RAFT_LEADER);
	scene_run(s, 100);
	assert_true(raft_config_committed(n2->r));
	assert_true(raft_config_equal(raft_config(n2->r, NULL), &c));
	sim_free(s);
}

/* Goal: a leader that leaves serves reads by a lease from the only voter that stays; when that one
 * starts again it waits until the lease is over. (Found by the bench.) */
static void restarted_sole_voter_waits_for_the_lease_of_a_leaving_leader(void **state)
{
	struct sim *s = scene_new(2, 2);
	if (setjmp(s->out) != 0)
		fail_msg("%s", s->reason);
	s->settings.lease = true;
	scene_start(s, 2);
	struct node *n1 = scene_elect(s, 1), *n2 = &s->nodes[2];
	scene_run(s, 60);
	struct raft_config c = { 0 };
	raft_config_set(&c, 2, RAFT_VOTER);
	assert_int_equal(node_change(s, n1, &c), 0);
	for (unsigned i = 0; i < 50 && !raft_config_equal(raft_config(n2->r, NULL), &c); i++)
		scene_run(s, 1);
	/* Its confirmation is lost: node 1 leads on. */
	scene_groups(s, "01");
	assert_int_equal(raft_state(n1->r), RAFT_LEADER);
	assert_true(raft_has_lease(n1->r, node_clock(s, n1)));
	scene_run(s, 2);
	scene_crash(s, n2);
	node_start(s, n2);
	s->timer[2] = true;
	bool led = false;
	for (unsigned i = 0; i < 300; i++) {
		scene_run(s, 1);
		led |= raft_state(n2->r) == RAFT_LEADER;
		if (raft_state(n2->r) == RAFT_LEADER && raft_state(n1->r) == RAFT_LEADER)
			assert_false(raft_has_lease(n1->r, node_clock(s, n1)));
		if (raft_state(n1->r) == RAFT_LEADER)
			node_read(s, n1, true);
	}
	assert_true(led);
	sim_free(s);
}

/* Goal: a voter keeps to the lease of its leader also when it learned a newer term from an answer,
 * and votes when the lease is over. (Found by the bench.) */
static void voter_in_a_newer_term_keeps_to_the_lease(void **state)
{
	struct sim *s = scene_new(3, 3);
	if (setjmp(s->out) != 0)
		fail_msg("%s", s->reason);
	s->settings.lease = true;
	scene_start(s, 3);
	struct node *n1 = scene_elect(s, 1), *n3 = &s->nodes[3];
	scene_run(s, 60);
	scene_groups(s, "012");
	assert_true(raft_has_lease(n1->r, node_clock(s, n1)));
	uint64_t term = raft_term(n1->r) + 1, last = raft_last_index(n1->r);
	struct raft_message stale = {
		.type = RAFT_MSG_APPEND_REPLY, .from = 2, .to = 3, .term = term
	};
	scene_deliver(s, &stale);
	assert_int_equal(raft_term(n3->r), term);
	struct raft_message ask = { .type = RAFT_MSG_VOTE,
				    .from = 2,
				    .to = 3,
				    .term = term,
				    .vote = { .last_index = last, .last_term = term - 1 } };
	scene_deliver(s, &ask);
	assert_int_equal(raft_vote(n3->r), 0);
	scene_run(s, s->settings.election_ms);
	assert_false(raft_has_lease(n1->r, node_clock(s, n1)));
	scene_deliver(s, &ask);
	assert_int_equal(raft_vote(n3->r), 2);
	sim_free(s);
}

/* Goal: answers to a pre-vote that come late, in whatever state, count nowhere. */
static void late_pre_vote_answers_count_nowhere(void **state)
{
	SCENE(s, 5, 5);
	struct node *n1 = &s->nodes[1];
	struct raft_message m = { .type = RAFT_MSG_VOTE_REPLY,
				  .to = 1,
				  .vote_reply = { .pre = true, .result = RAFT_ACCEPTED } };
	/* follower */
	m.term = raft_term(n1->r);
	m.vote_reply.asked_term = m.term + 1;
	for (m.from = 2; m.from <= 5; m.from++)
		scene_deliver(s, &m);
	assert_int_equal(raft_state(n1->r), RAFT_FOLLOWER);
	/* candidate: none of its own requests arrives, only answers of before */
	s->timer[1] = true;
	while (raft_state(n1->r) != RAFT_CANDIDATE)
		scene_run(s, 1);
	scene_groups(s, "01111");
	scene_run(s, 2);
	m.term = raft_term(n1->r) - 1;
	m.vote_reply.asked_term = raft_term(n1->r);
	for (m.from = 2; m.from <= 5; m.from++)
		scene_deliver(s, &m);
	assert_int_equal(raft_state(n1->r), RAFT_CANDIDATE);
	/* leader */
	net_connect_all(s);
	scene_elect(s, 1);
	uint64_t term = raft_term(n1->r);
	m.term = term;
	m.vote_reply.asked_term = term + 1;
	for (m.from = 2; m.from <= 5; m.from++)
		scene_deliver(s, &m);
	assert_int_equal(raft_state(n1->r), RAFT_LEADER);
	assert_int_equal(raft_term(n1->r), term);
	/* A refusal of a newer term is heard in each state. */
	m.from = 2;
	m.term = term + 3;
	m.vote_reply.result = RAFT_STALE;
	scene_deliver(s, &m);
	assert_int_equal(raft_state(n1->r), RAFT_FOLLOWER);
	assert_int_equal(raft_term(n1->r), term + 3);
	sim_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(figure_8_old_term_is_not_committed_by_counting),
		cmocka_unit_test(answer_to_old_term_carries_no_match),
		cmocka_unit_test(sole_voter_restarts_in_a_new_term),
		cmocka_unit_test(no_change_before_the_own_term_is_committed),
		cmocka_unit_test(configuration_index_is_that_of_its_entry),
		cmocka_unit_test(append_below_the_snapshot_is_trimmed),
		cmocka_unit_test(commit_index_never_sinks),
		cmocka_unit_test(late_rejection_below_match_is_ignored),
		cmocka_unit_test(promoted_node_votes_before_it_knows),
		cmocka_unit_test(leaving_voter_still_campaigns),
		cmocka_unit_test(restarted_sole_voter_waits_for_the_lease_of_a_leaving_leader),
		cmocka_unit_test(voter_in_a_newer_term_keeps_to_the_lease),
		cmocka_unit_test(late_pre_vote_answers_count_nowhere),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
