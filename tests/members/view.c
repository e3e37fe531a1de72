/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"
#include "world.h"

#include <errno.h>
#include <string.h>

static void feed(struct world *w, struct members *agent, uint64_t since, int expected)
{
	struct err err = { 0 };
	Copia__View *v = members_view(w->m, since);
	assert_int_equal(members_merge(agent, v, &err), expected);
	copia__view__free_unpacked(v, NULL);
}

/* Goal: an agent that gets a whole view, then changes, knows what the leader knows. */
static void changes_add_up(void **state)
{
	struct world w;
	world_with(&w, 3);
	struct members *agent = members_new();
	feed(&w, agent, 0, 1);
	uint64_t known = agent->revision;
	assert_int_equal(world_state(&w, 2, COPIA__NODE_STATE__DOWN), 0);
	assert_int_equal(world_leave(&w, 3), 0);
	feed(&w, agent, known, 1);
	assert_int_equal(agent->state->n_nodes, w.m->state->n_nodes);
	assert_int_equal(agent->state->n_events, w.m->state->n_events);
	assert_int_equal(members_find(agent, 2)->state, COPIA__NODE_STATE__DOWN);
	assert_null(members_find_name(agent, "n3"));
	members_check(agent);
	feed(&w, agent, known, 0);
	assert_int_equal(agent->state->n_events, w.m->state->n_events);
	members_free(agent);
	world_close(&w);
}

/* Goal: changes that do not follow on what is known are refused, so that a whole view is asked. */
static void gap_is_seen(void **state)
{
	struct world w;
	world_with(&w, 3);
	struct members *agent = members_new();
	feed(&w, agent, 2, -ESTALE);
	feed(&w, agent, 0, 1);
	assert_int_equal(world_drain(&w, 2, true), 0);
	uint64_t skipped = w.m->revision;
	assert_int_equal(world_drain(&w, 3, true), 0);
	feed(&w, agent, skipped, -ESTALE);
	members_free(agent);
	world_close(&w);
}

/* Goal: a view holds no secret of the controllers. */
static void view_has_no_secret(void **state)
{
	struct world w;
	world_with(&w, 2);
	Copia__View *v = members_view(w.m, 0);
	uint8_t bytes[8192];
	size_t len = copia__view__pack(v, bytes);
	uint8_t master[32];
	memset(master, 'K', sizeof(master));
	assert_null(memmem(bytes, len, master, sizeof(master)));
	copia__view__free_unpacked(v, NULL);
	world_close(&w);
}

/* Goal: the view of another cluster is refused. */
static void other_cluster_is_refused(void **state)
{
	struct world w;
	world_with(&w, 1);
	struct members *agent = members_new();
	struct err err = { 0 };
	feed(&w, agent, 0, 1);
	Copia__View *v = members_view(w.m, 0);
	v->cluster_id.data[0] ^= 1;
	assert_int_equal(members_merge(agent, v, &err), -EBADMSG);
	copia__view__free_unpacked(v, NULL);
	members_free(agent);
	world_close(&w);
}

/* Goal: a snapshot restores exactly what was saved. */
static void snapshot_is_exact(void **state)
{
	struct world w;
	world_with(&w, 4);
	struct str a = { 0 }, b = { 0 };
	struct err err = { 0 };
	members_save(w.m, &a);
	struct members *m = members_new();
	assert_int_equal(members_load(m, (const uint8_t *)a.at, a.len, &err), 0);
	assert_int_equal(m->revision, w.m->revision);
	members_save(m, &b);
	assert_int_equal(a.len, b.len);
	assert_memory_equal(a.at, b.at, a.len);
	assert_int_equal(members_load(m, (const uint8_t *)a.at, a.len / 2, &err), -EBADMSG);
	str_free(&a);
	str_free(&b);
	members_free(m);
	world_close(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(changes_add_up),     cmocka_unit_test(gap_is_seen),
		cmocka_unit_test(view_has_no_secret), cmocka_unit_test(other_cluster_is_refused),
		cmocka_unit_test(snapshot_is_exact),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
