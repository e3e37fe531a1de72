/* SPDX-License-Identifier: Apache-2.0 */
/* Cores wired to each other directly: no delay, no loss, writes durable at once, no checks. What
 * is measured is the core and one copy of each message's entries, on one processor. */
#include "speed.h"
#include <time.h>

enum { QUEUE_MAX = 65536, WINDOW = 64 };

struct lane {
	struct raft *r[NODES_MAX + 1];
	unsigned nodes;
	uint64_t now, steps, messages, sent_count;
	struct queued {
		struct raft_message m;
		struct raft_entry *entries;
	} * queue;
	size_t head, count;
	uint64_t commit[NODES_MAX + 1];
	uint64_t deadline[NODES_MAX + 1];
};

static double seconds_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void push(struct lane *l, const struct raft_message *m)
{
	if (l->count == QUEUE_MAX)
		return; /* lost */
	struct queued *q = &l->queue[(l->head + l->count++) % QUEUE_MAX];
	q->m = *m;
	q->entries = NULL;
	if (m->type != RAFT_MSG_APPEND || !m->append.count)
		return;
	q->entries = xmemdup(m->append.entries, m->append.count * sizeof(*q->entries));
	for (unsigned i = 0; i < m->append.count; i++)
		raft_data_hold(q->entries[i].data);
	q->m.append.entries = q->entries;
}

static int step(struct lane *l, unsigned id, struct raft_event *ev)
{
	struct raft_update up;
	ev->now_ms = l->now;
	int result = raft_step(l->r[id], ev, &up, NULL);
	l->steps++;
	for (size_t i = 0; i < up.message_count; i++)
		push(l, &up.messages[i]);
	l->commit[id] = up.commit_index;
	l->deadline[id] = up.deadline_ms;
	if (up.write.number) {
		struct raft_event done = { .type = RAFT_PERSISTED, .persisted = up.write.number };
		step(l, id, &done);
	}
	return result;
}

static void deliver_one(struct lane *l)
{
	struct queued *q = &l->queue[l->head];
	struct raft_entry *entries = q->entries;
	unsigned count = entries ? q->m.append.count : 0;
	struct raft_message m = q->m;

	l->head = (l->head + 1) % QUEUE_MAX;
	l->count--;
	struct raft_event ev = { .type = RAFT_RECEIVE, .receive = &m };
	l->messages++;
	step(l, (unsigned)m.to, &ev);
	for (unsigned i = 0; i < count; i++)
		raft_data_drop(entries[i].data);
	free(entries);
}

static unsigned leader_of(const struct lane *l)
{
	for (unsigned i = 1; i <= l->nodes; i++)
		if (raft_state(l->r[i]) == RAFT_LEADER)
			return i;
	return 0;
}

static void compact(struct lane *l)
{
	for (unsigned i = 1; i <= l->nodes; i++) {
		struct raft_event ev = {
			.type = RAFT_SNAPSHOT_TAKEN,
			.taken = { .index = l->commit[i], .size_bytes = 1, .keep = 10000 }
		};
		step(l, i, &ev);
	}
}

static void begin(struct lane *l, unsigned nodes)
{
	struct raft_settings settings = raft_profile(RAFT_LAN);
	struct raft_config c = { 0 };
	uint8_t body[RAFT_CONFIG_SIZE_MAX];
	struct raft_entry first;

	*l = (struct lane){ .nodes = nodes, .queue = xcalloc(QUEUE_MAX, sizeof(*l->queue)) };
	for (unsigned i = 1; i <= nodes; i++)
		raft_config_set(&c, i, RAFT_VOTER);
	raft_bootstrap(&c, body, &first);
	for (unsigned i = 1; i <= nodes; i++) {
		struct rng rng;
		rng_seed(&rng, i);
		raft_new(&l->r[i], i, &settings, &rng, NULL);
		struct raft_event ev = { .type = RAFT_START,
					 .start = { .term = 1, .entries = &first, .count = 1 } };
		step(l, i, &ev);
	}
	while (!leader_of(l)) {
		l->now++;
		for (unsigned i = 1; i <= nodes; i++) {
			struct raft_event ev = { .type = RAFT_TICK };
			if (l->deadline[i] <= l->now)
				step(l, i, &ev);
		}
		while (l->count)
			deliver_one(l);
	}
}

static void end(struct lane *l)
{
	while (l->count)
		deliver_one(l);
	for (unsigned i = 1; i <= l->nodes; i++)
		raft_free(l->r[i]);
	free(l->queue);
}

static void measure(unsigned nodes, unsigned batch)
{
	static const uint8_t body[8];
	struct span commands[256];
	struct lane l;

	for (unsigned i = 0; i < batch; i++)
		commands[i] = (struct span){ body, sizeof(body) };
	begin(&l, nodes);
	unsigned leader = leader_of(&l);
	uint64_t from = l.commit[leader], compacted = from;
	l.steps = 0;
	double began = seconds_now(), took;
	do {
		for (unsigned k = 0; k < WINDOW; k++) {
			struct raft_event ev = { .type = RAFT_PROPOSE,
						 .propose = { commands, batch } };
			step(&l, leader, &ev);
		}
		while (l.count)
			deliver_one(&l);
		if (l.commit[leader] > compacted + 50000) {
			compact(&l);
			compacted = l.commit[leader];
		}
		took = seconds_now() - began;
	} while (took < 1.0);
	uint64_t entries = l.commit[leader] - from;
	printf("%u nodes, batches of %3u: %9.0f committed entries/s, %9.0f steps/s, "
	       "%.2f messages per entry\n",
	       nodes, batch, (double)entries / took, (double)l.steps / took,
	       (double)l.messages / (double)entries);
	end(&l);
}

int speed_run(const struct options *o)
{
	static const unsigned batches[] = { 1, 16, 256 };
	for (unsigned i = 0; i < ARRAY_LEN(batches); i++)
		measure(3, batches[i]);
	measure(5, 16);
	return 0;
}
