/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"
#include "world.h"

#include <errno.h>
#include <string.h>

#define MINUTE 60000

/* Goal: the first node makes the cluster and is its controller. */
static void first_node_makes_the_cluster(void **state)
{
	struct world w;
	world_open(&w);
	assert_int_equal(world_set(&w, "controllers", "3"), -ENOTCONN);
	assert_int_equal(world_init(&w, "lab", "n1"), 0);
	assert_string_equal(str_text(&w.result), "1");
	const Copia__Node *n = members_find_name(w.m, "n1");
	assert_non_null(n);
	assert_int_equal(n->role, COPIA__NODE_ROLE__CONTROLLER);
	assert_int_equal(world_init(&w, "lab", "n1"), -EEXIST);
	world_close(&w);
}

/* Goal: a token admits one node, once, and says why it does not admit another. */
static void token_admits_once(void **state)
{
	struct world w;
	world_with(&w, 1);
	assert_int_equal(world_token(&w, 'a', MINUTE), 0);
	assert_int_equal(world_join(&w, 'a', "n2", '1'), 0);
	assert_string_equal(str_text(&w.result), "2");
	assert_int_equal(world_join(&w, 'a', "n3", '2'), -EACCES);
	assert_non_null(strstr(w.err.msg, "used already, by node n2"));
	world_close(&w);
}

/* Goal: a newcomer whose answer was lost asks again and gets the same number. */
static void same_attempt_same_answer(void **state)
{
	struct world w;
	world_with(&w, 1);
	assert_int_equal(world_token(&w, 'a', MINUTE), 0);
	assert_int_equal(world_join(&w, 'a', "n2", '1'), 0);
	uint64_t revision = w.m->revision;
	assert_int_equal(world_join(&w, 'a', "n2", '1'), 0);
	assert_string_equal(str_text(&w.result), "2");
	assert_int_equal(w.m->revision, revision);
	world_close(&w);
}

/* Goal: expired, unknown and foreign tokens are told apart from used ones. */
static void bad_tokens_are_refused(void **state)
{
	struct world w;
	world_with(&w, 1);
	assert_int_equal(world_token(&w, 'a', MINUTE), 0);
	w.now_ms += MINUTE + 1;
	assert_int_equal(world_join(&w, 'a', "n2", '1'), -EACCES);
	assert_non_null(strstr(w.err.msg, "expired"));
	assert_int_equal(world_join(&w, 'z', "n2", '1'), -EACCES);
	assert_non_null(strstr(w.err.msg, "not known to cluster \"lab\""));
	world_close(&w);
}

/* Goal: two nodes never share a name, and a refused join leaves the token unused. */
static void name_taken_is_refused(void **state)
{
	struct world w;
	world_with(&w, 2);
	assert_int_equal(world_token(&w, 'q', MINUTE), 0);
	assert_int_equal(world_join(&w, 'q', "n2", '1'), -EEXIST);
	assert_non_null(strstr(w.err.msg, "name n2 is taken by node 2"));
	assert_int_equal(world_join(&w, 'q', "bad name", '1'), -EINVAL);
	assert_int_equal(world_join(&w, 'q', "n3", '1'), 0);
	world_close(&w);
}

/* Goal: numbers are never used again, names are, after their node left. */
static void numbers_are_never_reused(void **state)
{
	struct world w;
	world_with(&w, 3);
	assert_int_equal(world_leave(&w, 3), 0);
	assert_null(members_find_name(w.m, "n3"));
	assert_int_equal(world_token(&w, 'r', MINUTE), 0);
	assert_int_equal(world_join(&w, 'r', "n3", '1'), 0);
	assert_string_equal(str_text(&w.result), "4");
	assert_int_equal(world_drain(&w, 3, true), -ENOENT);
	world_close(&w);
}

/* Goal: a controller that leaves stays until its place is filled; the last node cannot leave. */
static void controller_leaves_in_two_steps(void **state)
{
	struct world w;
	world_with(&w, 2);
	assert_int_equal(world_leave(&w, 1), 0);
	assert_true(members_find(w.m, 1)->leaving);
	assert_int_equal(members_find(w.m, 1)->state, COPIA__NODE_STATE__UP);
	assert_int_equal(world_leave(&w, 2), -EBUSY);
	assert_int_equal(world_role(&w, 2, COPIA__NODE_ROLE__CONTROLLER), 0);
	assert_int_equal(world_role(&w, 1, COPIA__NODE_ROLE__AGENT), 0);
	assert_int_equal(world_leave(&w, 1), 0);
	assert_int_equal(members_find(w.m, 1)->state, COPIA__NODE_STATE__LEFT);
	world_close(&w);
}

/* Goal: a verdict about a former life of a daemon is void. */
static void late_verdict_is_void(void **state)
{
	struct world w;
	world_with(&w, 2);
	assert_int_equal(world_update(&w, 2, 9), 0);
	Copia__StateCommand c = COPIA__STATE_COMMAND__INIT;
	c.number = 2;
	c.state = COPIA__NODE_STATE__DOWN;
	c.reason = "silent";
	c.incarnation = 1;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_STATE;
	cmd.state = &c;
	assert_int_equal(world_apply(&w, &cmd), -ESTALE);
	assert_int_equal(members_find(w.m, 2)->state, COPIA__NODE_STATE__UP);
	world_close(&w);
}

/* Goal: after a rotation the old certificate is still welcome, the one before it is not. */
static void rotation_keeps_one_old_certificate(void **state)
{
	struct world w;
	world_with(&w, 2);
	for (char which = 'A'; which <= 'C'; which++)
		assert_int_equal(world_certificate(&w, 2, which), 0);
	const Copia__Node *n = members_find(w.m, 2);
	assert_int_equal(n->fingerprint.data[0], 'C');
	assert_int_equal(n->old_fingerprint.data[0], 'B');
	world_close(&w);
}

/* Goal: key epochs follow one another; a second rotation at once is refused. */
static void keys_rotate_in_order(void **state)
{
	struct world w;
	world_with(&w, 1);
	assert_int_equal(world_key(&w, 3), -ESTALE);
	assert_int_equal(world_key(&w, 2), 0);
	assert_int_equal(world_key(&w, 2), -ESTALE);
	assert_int_equal(w.m->state->old_key_master.data[0], 'K');
	world_close(&w);
}

/* Goal: settings are checked before anything changes. */
static void settings_are_checked(void **state)
{
	struct world w;
	world_with(&w, 1);
	uint64_t revision = w.m->revision;
	assert_int_equal(world_set(&w, "controllers", "4"), -EINVAL);
	assert_int_equal(world_set(&w, "controllers", "9"), -ERANGE);
	assert_int_equal(world_set(&w, "profile", "warp"), -EINVAL);
	assert_int_equal(world_set(&w, "colour", "red"), -ENOENT);
	assert_int_equal(w.m->revision, revision);
	assert_int_equal(world_set(&w, "controllers", "5"), 0);
	assert_int_equal(w.m->state->controllers_wanted, 5);
	world_close(&w);
}

/* Goal: a resource is never placed while it is somewhere. */
static void resource_is_in_one_place(void **state)
{
	struct world w;
	world_with(&w, 3);
	assert_int_equal(world_resource(&w, "clock", true, false, 0), 0);
	assert_int_equal(world_resource(&w, "clock", true, false, 0), -EEXIST);
	assert_int_equal(world_resource(&w, "clock", false, true, 2), 0);
	assert_int_equal(world_resource(&w, "clock", false, true, 3), -EBUSY);
	uint64_t placed = w.m->state->resources[0]->placed;
	assert_int_equal(world_resource_ended(&w, "clock", placed), -ESTALE);
	assert_int_equal(world_resource(&w, "clock", false, true, 0), 0);
	assert_int_equal(world_resource(&w, "clock", false, true, 3), -EBUSY);
	assert_int_equal(world_resource_ended(&w, "clock", placed + 1), -ESTALE);
	assert_int_equal(world_resource_ended(&w, "clock", placed), 0);
	assert_int_equal(world_resource(&w, "clock", false, true, 3), 0);
	/* Its name is free once it has ended. */
	placed = w.m->state->resources[0]->placed;
	assert_int_equal(world_resource(&w, "clock", false, false, 0), 0);
	assert_int_equal(world_resource(&w, "clock", true, false, 0), -EEXIST);
	assert_int_equal(world_resource_ended(&w, "clock", placed), 0);
	assert_int_equal(w.m->state->n_resources, 0);
	world_close(&w);
}

/* Goal: the story is bounded, the oldest line goes first. */
static void story_is_bounded(void **state)
{
	struct world w;
	world_with(&w, 1);
	for (int i = 0; i < MEMBERS_EVENTS_MAX + 10; i++)
		assert_int_equal(world_drain(&w, 1, i % 2 == 0), 0);
	assert_int_equal(w.m->state->n_events, MEMBERS_EVENTS_MAX);
	assert_string_not_equal(w.m->state->events[0]->kind, "cluster-made");
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(first_node_makes_the_cluster),
		cmocka_unit_test(token_admits_once),
		cmocka_unit_test(same_attempt_same_answer),
		cmocka_unit_test(bad_tokens_are_refused),
		cmocka_unit_test(name_taken_is_refused),
		cmocka_unit_test(numbers_are_never_reused),
		cmocka_unit_test(controller_leaves_in_two_steps),
		cmocka_unit_test(late_verdict_is_void),
		cmocka_unit_test(rotation_keeps_one_old_certificate),
		cmocka_unit_test(keys_rotate_in_order),
		cmocka_unit_test(settings_are_checked),
		cmocka_unit_test(resource_is_in_one_place),
		cmocka_unit_test(story_is_bounded),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
