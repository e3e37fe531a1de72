/* SPDX-License-Identifier: Apache-2.0 */
#include "scene.h"

struct sim *scene_new(unsigned nodes, unsigned voters)
{
	struct options o = { .nodes = nodes, .voters = voters, .trace = getenv("RAFT_TRACE") };
	struct sim *s = sim_new(&o);
	sim_reset(s, 4711);
	s->instant = s->manual_timers = true;
	return s;
}

void scene_start(struct sim *s, unsigned voters)
{
	sim_bootstrap(s, voters);
	for (unsigned i = 1; i <= s->o.nodes; i++)
		node_start(s, &s->nodes[i]);
}

void scene_run(struct sim *s, unsigned ms)
{
	bool timer[NODES_MAX + 1];
	memcpy(timer, s->timer, sizeof(timer));
	while (ms-- > 0) {
		for (unsigned i = 1; i <= s->o.nodes; i++)
			s->timer[i] = timer[i] || s->nodes[i].state == RAFT_LEADER;
		sim_ms(s);
	}
	memcpy(s->timer, timer, sizeof(timer));
}

struct node *scene_elect(struct sim *s, uint64_t id)
{
	struct node *n = &s->nodes[id];
	memset(s->timer, 0, sizeof(s->timer));
	s->timer[id] = true;
	for (unsigned i = 0; i < 3000 && raft_state(n->r) != RAFT_LEADER; i++)
		sim_ms(s);
	assert_int_equal(raft_state(n->r), RAFT_LEADER);
	memset(s->timer, 0, sizeof(s->timer));
	return n;
}

uint64_t scene_put(struct sim *s, struct node *n)
{
	assert_true(node_propose(s, n, 1));
	return raft_last_index(n->r);
}

void scene_groups(struct sim *s, const char *digits)
{
	net_clear(s);
	net_groups(s, digits);
}

void scene_crash(struct sim *s, struct node *n)
{
	node_crash(s, n);
	net_clear(s);
}

void scene_deliver(struct sim *s, const struct raft_message *m)
{
	net_receive(s, net_copy(s, m));
}

const struct raft_message *scene_on_way(const struct sim *s, uint64_t from, uint64_t to,
					enum raft_message_type type)
{
	for (unsigned i = 0; i < RING; i++)
		for (const struct envelope *e = s->ring[i]; e; e = e->next)
			if (e->m.from == from && e->m.to == to && e->m.type == type)
				return &e->m;
	return NULL;
}

uint64_t scene_commit(const struct node *n)
{
	return raft_commit_index(n->r);
}
