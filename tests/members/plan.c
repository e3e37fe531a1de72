/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"
#include "caps/members/members-plan.h"
#include "world.h"

#include <stdio.h>
#include <string.h>

/* "v1 v2 l3": voters and learners of the log, all caught up. */
static size_t present(const char *text, uint64_t match, struct plan_controller out[8])
{
	size_t count = 0;
	for (const char *c = text; *c; c++) {
		if (*c != 'v' && *c != 'l')
			continue;
		out[count++] =
		    (struct plan_controller){ (uint32_t)(c[1] - '0'), *c == 'v', *c == 'l', match };
	}
	return count;
}

/* The plan as text: "v1 l2 l3", or "-" when nothing changes. */
static const char *plan(struct world *w, const char *now, uint64_t match)
{
	static char text[64];
	struct plan_controller list[8];
	struct plan_controllers out;
	const struct plan_input in = {
		.members = w->m,
		.self = (uint32_t)(now[1] - '0'),
		.present = list,
		.present_count = present(now, match, list),
		.last = 1000,
		.now_ms = w->now_ms,
		.replace_after_ms = 10000,
	};
	members_plan_controllers(&in, &out);
	if (!out.change)
		return "-";
	size_t at = 0;
	for (size_t i = 0; i < out.voter_count; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%sv%u", at ? " " : "",
				       out.voters[i]);
	for (size_t i = 0; i < out.learner_count; i++)
		at += (size_t)snprintf(text + at, sizeof(text) - at, " l%u", out.learners[i]);
	return text;
}

/* Goal: one node, or two, have one controller; the third node makes three. */
static void grows_in_odd_steps(void **state)
{
	struct world w;
	world_with(&w, 1);
	assert_string_equal(plan(&w, "v1", 1000), "-");
	world_close(&w);
	world_with(&w, 2);
	assert_string_equal(plan(&w, "v1", 1000), "-");
	world_close(&w);
	world_with(&w, 3);
	assert_string_equal(plan(&w, "v1", 1000), "v1 l2 l3");
	assert_string_equal(plan(&w, "v1 l2 l3", 5), "-");
	assert_string_equal(plan(&w, "v1 l2 l3", 990), "v1 v2 v3");
	assert_string_equal(plan(&w, "v1 v2 v3", 1000), "-");
	world_close(&w);
}

/* Goal: five when asked for, and back to three. */
static void follows_the_setting(void **state)
{
	struct world w;
	world_with(&w, 6);
	assert_string_equal(plan(&w, "v1 v2 v3", 1000), "-");
	assert_int_equal(world_set(&w, "controllers", "5"), 0);
	assert_string_equal(plan(&w, "v1 v2 v3", 1000), "v1 v2 v3 l4 l5");
	assert_string_equal(plan(&w, "v1 v2 v3 l4 l5", 1000), "v1 v2 v3 v4 v5");
	assert_int_equal(world_set(&w, "controllers", "1"), 0);
	assert_string_equal(plan(&w, "v1 v2 v3", 1000), "v1");
	world_close(&w);
}

/* Goal: a lost controller is replaced after a while, not at once, and not without a replacement. */
static void lost_controller_is_replaced(void **state)
{
	struct world w;
	world_with(&w, 4);
	assert_int_equal(world_state(&w, 2, COPIA__NODE_STATE__DOWN), 0);
	assert_string_equal(plan(&w, "v1 v2 v3", 1000), "-");
	w.now_ms += 20000;
	assert_string_equal(plan(&w, "v1 v2 v3", 1000), "v1 v3 v2 l4");
	assert_string_equal(plan(&w, "v1 v2 v3 l4", 1000), "v1 v3 v4");
	world_close(&w);
	world_with(&w, 3);
	assert_int_equal(world_state(&w, 2, COPIA__NODE_STATE__DOWN), 0);
	w.now_ms += 20000;
	assert_string_equal(plan(&w, "v1 v2 v3", 1000), "-");
	world_close(&w);
}

/* Goal: drained nodes are not chosen, those that leave are let go. */
static void drained_and_leaving(void **state)
{
	struct world w;
	world_with(&w, 4);
	assert_int_equal(world_drain(&w, 2, true), 0);
	assert_string_equal(plan(&w, "v1", 1000), "v1 l3 l4");
	assert_int_equal(world_role(&w, 3, COPIA__NODE_ROLE__CONTROLLER), 0);
	assert_int_equal(world_leave(&w, 3), 0);
	assert_int_equal(world_drain(&w, 2, false), 0);
	assert_string_equal(plan(&w, "v1 v3 v4", 1000), "v1 v4 v3 l2");
	assert_string_equal(plan(&w, "v1 v3 v4 l2", 1000), "v1 v4 v2");
	world_close(&w);
}

/* Goal: a node is lost only when a majority of the controllers misses it. */
static void majority_judges(void **state)
{
	const uint32_t voters[] = { 1, 2, 3 }, one[] = { 2 }, two[] = { 2, 3 }, others[] = { 7, 8 };
	assert_false(members_plan_lost(voters, 3, one, 1));
	assert_true(members_plan_lost(voters, 3, two, 2));
	assert_false(members_plan_lost(voters, 3, others, 2));
	assert_false(members_plan_lost(voters, 0, two, 2));
	assert_false(members_plan_lost(voters, 2, one, 1));
}

/* Goal: a resource goes where fewest are, never to a node that takes no work. */
static void resources_spread(void **state)
{
	struct world w;
	world_with(&w, 3);
	assert_int_equal(world_drain(&w, 1, true), 0);
	assert_int_equal(world_resource(&w, "a", true, false, 0), 0);
	assert_int_equal(world_resource(&w, "b", true, false, 0), 0);
	assert_int_equal(members_plan_place(w.m, w.m->state->resources[0]), 2);
	assert_int_equal(world_resource(&w, "a", false, true, 2), 0);
	assert_int_equal(members_plan_place(w.m, w.m->state->resources[1]), 3);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(grows_in_odd_steps),
		cmocka_unit_test(follows_the_setting),
		cmocka_unit_test(lost_controller_is_replaced),
		cmocka_unit_test(drained_and_leaving),
		cmocka_unit_test(majority_judges),
		cmocka_unit_test(resources_spread),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
