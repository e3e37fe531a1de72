/* SPDX-License-Identifier: Apache-2.0 */
/* The network between the nodes. */
#include "sim.h"

static struct envelope *envelope_get(struct sim *s)
{
	struct envelope *e = s->spare;
	if (!e)
		return xcalloc(1, sizeof(*e));
	s->spare = e->next;
	return e;
}

static void envelope_put(struct sim *s, struct envelope *e)
{
	if (e->entries)
		for (unsigned i = 0; i < e->m.append.count; i++)
			raft_data_drop(e->entries[i].data);
	free(e->entries);
	free(e->data);
	e->entries = NULL;
	e->data = NULL;
	e->next = s->spare;
	s->spare = e;
}

static uint8_t *chunk_read(struct sim *s, struct node *n, const struct raft_message *m)
{
	for (unsigned k = 0; k < n->kept_count; k++) {
		if (n->kept[k].meta.index != m->chunk.snapshot.index)
			continue;
		uint8_t *data = xmalloc(m->chunk.len + 1);
		for (uint32_t i = 0; i < m->chunk.len; i++)
			data[i] = snap_byte(&n->kept[k], m->chunk.offset + i);
		return data;
	}
	sim_fail(s, "SNAPSHOT node %lu must send snapshot %lu that it was allowed to delete", n->id,
		 m->chunk.snapshot.index);
}

/* A deep copy, independent of the core that made the message. */
struct envelope *net_copy(struct sim *s, const struct raft_message *m)
{
	struct envelope *e = envelope_get(s);

	e->m = *m;
	if (m->type == RAFT_MSG_APPEND && m->append.count) {
		e->entries = xmemdup(m->append.entries, m->append.count * sizeof(*e->entries));
		for (unsigned i = 0; i < m->append.count; i++)
			raft_data_hold(e->entries[i].data);
		e->m.append.entries = e->entries;
	}
	if (m->type == RAFT_MSG_SNAPSHOT) {
		e->data = m->chunk.data ? xmemdup(m->chunk.data, m->chunk.len)
					: chunk_read(s, &s->nodes[m->from], m);
		e->m.chunk.data = e->data;
	}
	return e;
}

static uint64_t travel_time(struct sim *s)
{
	if (s->instant)
		return 1;
	if (!s->quiet && rng_chance(&s->rng, s->rates.late))
		return 1 + rng_below(&s->rng, rng_chance(&s->rng, 200) ? RING - 2 : 600);
	return 1 + rng_below(&s->rng, 12);
}

static void enqueue(struct sim *s, struct envelope *e, uint64_t due)
{
	unsigned slot = due % RING;

	e->next = NULL;
	if (!s->ring[slot])
		s->ring_tail[slot] = &s->ring[slot];
	*s->ring_tail[slot] = e;
	s->ring_tail[slot] = &e->next;
}

void net_post(struct sim *s, struct node *n, const struct raft_message *m)
{
	if (m->to < 1 || m->to > s->o.nodes)
		sim_fail(s, "MESSAGE node %lu sends to node %lu", n->id, m->to);
	if (s->blocked[m->from][m->to] || !s->nodes[m->to].r)
		return;
	unsigned copies = 1;
	if (!s->quiet && !s->instant) {
		if (rng_chance(&s->rng, s->rates.loss))
			return;
		copies += rng_chance(&s->rng, s->rates.duplicate);
	}
	while (copies-- > 0)
		enqueue(s, net_copy(s, m), s->now + travel_time(s));
}

void net_receive(struct sim *s, struct envelope *e)
{
	struct node *n = &s->nodes[e->m.to];

	if (n->r) {
		struct raft_event ev = { .type = RAFT_RECEIVE, .receive = &e->m };
		s->stats.messages++;
		node_step(s, n, &ev);
	}
	envelope_put(s, e);
}

void net_deliver(struct sim *s)
{
	unsigned slot = s->now % RING;
	struct envelope *e = s->ring[slot];

	s->ring[slot] = NULL;
	while (e) {
		struct envelope *next = e->next;
		struct node *n = &s->nodes[e->m.to];
		if (s->blocked[e->m.from][e->m.to])
			envelope_put(s, e);
		else if (n->paused_until > s->now)
			enqueue(s, e, n->paused_until);
		else
			net_receive(s, e);
		e = next;
	}
}

void net_clear(struct sim *s)
{
	for (unsigned i = 0; i < RING; i++) {
		while (s->ring[i]) {
			struct envelope *e = s->ring[i];
			s->ring[i] = e->next;
			envelope_put(s, e);
		}
	}
}

void net_connect_all(struct sim *s)
{
	memset(s->blocked, 0, sizeof(s->blocked));
}

void net_groups(struct sim *s, const char *digits)
{
	for (unsigned a = 1; a <= s->o.nodes; a++)
		for (unsigned b = 1; b <= s->o.nodes; b++)
			s->blocked[a][b] = digits[a - 1] != digits[b - 1];
}
