/* SPDX-License-Identifier: Apache-2.0 */
/* Collects what one step gives out. Pointers to entries are set last, because the log may move
 * while a step appends to it. */
#include "cluster/raft/core.h"
#include <assert.h>

void output_begin(struct raft *r, struct raft_update *up)
{
	*up = (struct raft_update){ 0 };
	r->up = up;
	r->out_count = 0;
	r->ready_count = 0;
	r->write = (struct raft_write){ 0 };
	r->write_first = 0;
}

bool output_state_durable(const struct raft *r)
{
	return r->write_durable >= r->write_state;
}

static struct raft_message *out_add(struct raft *r)
{
	if (r->out_count == r->out_cap) {
		r->out_cap = r->out_cap ? r->out_cap * 2 : 16;
		r->out = xrealloc(r->out, r->out_cap * sizeof(*r->out));
	}
	return &r->out[r->out_count++];
}

struct raft_message *output_message(struct raft *r, uint64_t to, enum raft_message_type type)
{
	struct raft_message *m;

	assert(to != 0 && to != r->self);
	if (output_state_durable(r)) {
		m = out_add(r);
	} else {
		/* A leader's term is durable before it leads: only answers and requests for
		 * votes, which point to nothing, come here. */
		assert(type != RAFT_MSG_APPEND && type != RAFT_MSG_SNAPSHOT);
		if (r->held_count == HELD_MAX) {
			r->held_count--;
			memmove(&r->held[0], &r->held[1], r->held_count * sizeof(r->held[0]));
			memmove(&r->held_write[0], &r->held_write[1],
				r->held_count * sizeof(r->held_write[0]));
		}
		r->held_write[r->held_count] = r->write_state;
		m = &r->held[r->held_count++];
	}
	*m = (struct raft_message){ .type = type, .from = r->self, .to = to, .term = r->term };
	return m;
}

void output_release(struct raft *r)
{
	unsigned done = 0;
	while (done < r->held_count && r->held_write[done] <= r->write_durable)
		*out_add(r) = r->held[done++];
	r->held_count -= done;
	memmove(&r->held[0], &r->held[done], r->held_count * sizeof(r->held[0]));
	memmove(&r->held_write[0], &r->held_write[done], r->held_count * sizeof(r->held_write[0]));
}

static void write_touch(struct raft *r)
{
	if (r->write.number == 0)
		r->write.number = ++r->write_number;
}

void output_state(struct raft *r)
{
	write_touch(r);
	r->write.has_state = true;
	r->write_state = r->write.number;
}

void output_append(struct raft *r, const struct raft_entry *e)
{
	write_touch(r);
	if (r->write_first == 0)
		r->write_first = e->index;
	log_append(&r->log, e, r->write.number);
}

void output_truncate(struct raft *r, uint64_t from)
{
	assert(r->write_first == 0);
	assert(from > r->commit);
	write_touch(r);
	r->write.truncate_from = from;
	log_truncate(&r->log, from);
}

void output_reset(struct raft *r, uint64_t index, uint64_t term)
{
	assert(r->write_first == 0);
	write_touch(r);
	r->write.truncate_from = 1;
	log_reset(&r->log, index, term);
}

void output_read(struct raft *r, uint64_t id, uint64_t index, bool ok)
{
	if (r->ready_count == r->ready_cap) {
		r->ready_cap = r->ready_cap ? r->ready_cap * 2 : 16;
		r->ready = xrealloc(r->ready, r->ready_cap * sizeof(*r->ready));
	}
	r->ready[r->ready_count++] = (struct raft_read){ .id = id, .index = index, .ok = ok };
}

static uint64_t next_deadline(const struct raft *r)
{
	uint64_t at = r->deadline_ms;
	if (r->state == RAFT_LEADER)
		at = r->transfer_to ? MIN(r->heartbeat_ms, r->transfer_until_ms) : r->heartbeat_ms;
	else if (r->state != RAFT_FOLLOWER)
		at = MIN(r->deadline_ms, r->retry_ms);
	return MAX(at, r->now_ms + 1);
}

static void check_invariants(const struct raft *r)
{
	assert(r->log.base_index <= r->commit);
	assert(r->commit <= log_last(&r->log));
	assert(r->log.durable >= r->log.base_index);
	assert(r->log.durable <= log_last(&r->log));
	assert(r->told <= r->commit && r->told <= r->log.durable);
	assert(r->snapshots[0].index <= r->told);
	assert(r->config_index <= log_last(&r->log));
	assert(r->state != RAFT_LEADER || (r->leader == r->self && output_state_durable(r)));
	assert(r->state == RAFT_FOLLOWER || r->state == RAFT_LEADER || r->leader == 0);
}

void output_end(struct raft *r)
{
	struct raft_update *up = r->up;

	/* While the driver loads a snapshot the state must not move. */
	if (!r->incoming.installing)
		r->told = MAX(r->told, MIN(r->commit, r->log.durable));
	for (size_t i = 0; i < r->out_count; i++) {
		struct raft_message *m = &r->out[i];
		if (m->type == RAFT_MSG_APPEND && m->append.count)
			m->append.entries = log_at(&r->log, m->append.prev_index + 1);
	}
	if (r->write_first) {
		r->write.entries = log_at(&r->log, r->write_first);
		r->write.count = log_last(&r->log) - r->write_first + 1;
	}
	if (r->write.has_state) {
		r->write.term = r->term;
		r->write.vote = planted(PLANT_VOTE_NOT_STORED) ? 0 : r->vote;
	}
	up->write = r->write;
	up->messages = r->out;
	up->message_count = r->out_count;
	up->reads = r->ready;
	up->read_count = r->ready_count;
	up->commit_index = r->told;
	up->state = r->state;
	up->term = r->term;
	up->leader = r->leader;
	up->deadline_ms = next_deadline(r);
	r->up = NULL;
	if (r->started)
		check_invariants(r);
}
