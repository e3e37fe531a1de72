/* SPDX-License-Identifier: Apache-2.0 */
/* The follower's half of replication (§3.5). */
#include "cluster/raft/core.h"
#include <assert.h>
#include <errno.h>

/* A leader of this term spoke. */
void append_heard(struct raft *r)
{
	r->sticky_until_ms = r->now_ms + r->settings.election_ms;
	election_timer_reset(r);
}

/* Copy the data of entries that may be taken over before anything changes, so that missing memory
 * leaves the core as it was. */
int append_stage(struct raft *r, const struct raft_message *m, struct err *err)
{
	unsigned count = m->append.count;

	if (r->staged_cap < count) {
		const uint8_t **staged = realloc(r->staged, count * sizeof(*staged));
		if (!staged)
			return err_set(err, -ENOMEM, "append: out of memory");
		r->staged = staged;
		r->staged_cap = count;
	}
	bool differs = false; /* from the first entry on that differs, all are taken */
	for (unsigned i = 0; i < count; i++) {
		const struct raft_entry *e = &m->append.entries[i];
		r->staged[i] = NULL;
		if (e->index <= r->commit || (!differs && log_term(&r->log, e->index) == e->term))
			continue;
		differs = true;
		if (data_copy(e->data, e->len, &r->staged[i]) < 0) {
			while (i-- > 0)
				raft_data_drop(r->staged[i]);
			return err_set(err, -ENOMEM, "append: out of memory");
		}
	}
	if (log_reserve(&r->log, count) < 0) {
		for (unsigned i = 0; i < count; i++)
			raft_data_drop(r->staged[i]);
		return err_set(err, -ENOMEM, "append: out of memory");
	}
	return 0;
}

static uint64_t durable_match(const struct raft *r)
{
	return planted(PLANT_ACK_BEFORE_DURABLE) ? r->verified : MIN(r->verified, r->log.durable);
}

static void acknowledge(struct raft *r)
{
	if (!output_state_durable(r)) {
		r->ack_due = true;
		return;
	}
	struct raft_message *m = output_message(r, r->leader, RAFT_MSG_APPEND_REPLY);
	m->append_reply.result = RAFT_ACCEPTED;
	m->append_reply.round = r->round_seen;
	m->append_reply.match = r->acked = durable_match(r);
	m->append_reply.hint = r->verified;
	r->ack_due = false;
}

/* The entry before does not fit. Skip back over a whole term at once: the leader's entries from
 * terms above prev_term cannot be here at or below prev (§3.5, fast back-off). */
static void reject(struct raft *r, const struct raft_message *ask)
{
	uint64_t hint = MIN(ask->append.prev_index, log_last(&r->log));
	while (hint > r->commit && log_term(&r->log, hint) > ask->append.prev_term)
		hint--;
	struct raft_message *m = output_message(r, ask->from, RAFT_MSG_APPEND_REPLY);
	m->append_reply.result = RAFT_REJECTED;
	m->append_reply.round = ask->append.round;
	m->append_reply.prev = ask->append.prev_index;
	m->append_reply.hint = hint;
	m->append_reply.hint_term = log_term(&r->log, hint);
}

/* Does the log hold the leader's entry at prev_index? What is committed here, the leader has:
 * so nothing at or below the commit index is compared, let alone replaced, and a message that
 * begins below what was compacted needs no special case. */
static bool fits(const struct raft *r, const struct raft_message *m)
{
	uint64_t prev = m->append.prev_index;
	if (prev < r->commit)
		return true;
	if (planted(PLANT_NO_CONSISTENCY_CHECK))
		return prev <= log_last(&r->log);
	return prev <= log_last(&r->log) && log_term(&r->log, prev) == m->append.prev_term;
}

/* Take over what is new; returns whether a configuration was among it or among what it replaced. */
static bool take_entries(struct raft *r, const struct raft_message *m)
{
	bool config_touched = false;

	for (unsigned i = 0; i < m->append.count; i++) {
		struct raft_entry e = m->append.entries[i];
		e.data = take_ptr(r->staged[i]);
		if (e.index <= r->commit || log_term(&r->log, e.index) == e.term) {
			raft_data_drop(e.data);
			continue;
		}
		if (e.index <= log_last(&r->log)) {
			config_touched |= r->config_index >= e.index;
			output_truncate(r, e.index);
		}
		config_touched |= e.type == RAFT_CONFIG;
		output_append(r, &e);
	}
	return config_touched;
}

void append_receive(struct raft *r, const struct raft_message *m)
{
	append_heard(r);
	r->round_seen = MAX(r->round_seen, m->append.round);
	/* Until the snapshot is loaded the log must not move past it. */
	bool frozen = r->incoming.installing;
	if (frozen || !fits(r, m)) {
		for (unsigned i = 0; i < m->append.count; i++)
			raft_data_drop(r->staged[i]);
		if (frozen)
			acknowledge(r);
		else
			reject(r, m);
		return;
	}
	if (take_entries(r, m))
		config_refresh(r);

	uint64_t end = m->append.prev_index + m->append.count;
	r->verified = MAX(r->verified, end);
	assert(r->verified <= log_last(&r->log) || end < r->commit);
	/* Monotone by max: a late message knows less (§3.5). */
	r->commit = MAX(r->commit, MIN(m->append.commit, r->verified));
	if (r->incoming.active && r->incoming.meta.index <= r->commit)
		r->incoming.active = false;
	/* A heartbeat is answered at once, entries when they are durable. */
	if (m->append.count == 0 || r->log.durable >= end || durable_match(r) > r->acked)
		acknowledge(r);
}

void append_persisted(struct raft *r)
{
	if (r->state != RAFT_FOLLOWER || r->leader == 0 || !output_state_durable(r))
		return;
	if (r->ack_due || durable_match(r) > r->acked)
		acknowledge(r);
}
