/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots (chapter 5): taken here, sent in pieces, received. The core moves no bytes: it says
 * which piece the driver reads or writes. */
#include "cluster/raft/core.h"
#include <assert.h>
#include <errno.h>

/* ---- sending ---- */

static const struct raft_snapshot_meta *snapshot_find(const struct raft *r, uint64_t index)
{
	for (unsigned i = 0; i < r->snapshot_count; i++)
		if (r->snapshots[i].index == index)
			return &r->snapshots[i];
	return NULL;
}

static bool is_being_sent(const struct raft *r, uint64_t index)
{
	if (r->state != RAFT_LEADER)
		return false;
	for (unsigned i = 0; i < r->config.count; i++)
		if (r->peers[i].mode == PEER_SNAPSHOT && r->peers[i].snapshot.index == index)
			return true;
	return false;
}

/* Forget older snapshots that nobody is being sent. */
void snapshot_release(struct raft *r)
{
	unsigned kept = 1;
	for (unsigned i = 1; i < r->snapshot_count; i++)
		if (is_being_sent(r, r->snapshots[i].index))
			r->snapshots[kept++] = r->snapshots[i];
	r->snapshot_count = MIN(kept, r->snapshot_count);
}

static void send_chunk(struct raft *r, struct peer *p)
{
	const struct raft_snapshot_meta *meta = snapshot_find(r, p->snapshot.index);

	assert(meta && p->snapshot.offset <= meta->size_bytes);
	struct raft_message *m = output_message(r, p->id, RAFT_MSG_SNAPSHOT);
	m->chunk.snapshot = *meta;
	m->chunk.round = r->round;
	m->chunk.offset = p->snapshot.offset;
	/* At the end an empty piece asks whether it is installed. */
	m->chunk.len =
	    (uint32_t)MIN(meta->size_bytes - p->snapshot.offset, (uint64_t)r->settings.chunk_bytes);
	p->snapshot.sent_ms = r->now_ms;
}

void snapshot_begin(struct raft *r, struct peer *p)
{
	assert(r->snapshots[0].index >= r->log.base_index && r->snapshots[0].index > 0);
	p->mode = PEER_SNAPSHOT;
	p->snapshot.index = r->snapshots[0].index;
	p->snapshot.offset = 0;
	p->flight.head = p->flight.count = 0;
	p->flight.bytes = 0;
	send_chunk(r, p);
}

/* With each heartbeat: the piece or its answer may be lost. */
void snapshot_resend(struct raft *r, struct peer *p)
{
	if (!peer_is_live(r, p)) {
		/* Begin anew with the latest when it is back. */
		peer_probe(p, p->match + 1);
		snapshot_release(r);
		return;
	}
	if (r->now_ms - p->snapshot.sent_ms >= 2 * (uint64_t)r->settings.heartbeat_ms)
		send_chunk(r, p);
}

void snapshot_reply(struct raft *r, const struct raft_message *m)
{
	struct peer *p = leader_peer(r, m->from);
	if (!p)
		return;
	peer_contact(r, p, m->chunk_reply.round);
	read_confirm(r);
	if (p->mode != PEER_SNAPSHOT || p->snapshot.index != m->chunk_reply.index)
		return;
	const struct raft_snapshot_meta *meta = snapshot_find(r, p->snapshot.index);
	uint64_t offset = m->chunk_reply.offset;
	if (m->chunk_reply.done) {
		p->match = MAX(p->match, p->snapshot.index);
		peer_probe(p, p->match + 1);
		snapshot_release(r);
		leader_commit(r);
		p = leader_peer(r, m->from);
		if (p)
			peer_pump(r, p);
		return;
	}
	if (offset > meta->size_bytes)
		return;
	bool accepted = m->chunk_reply.result == RAFT_ACCEPTED;
	if (accepted ? offset <= p->snapshot.offset : offset == p->snapshot.offset)
		return; /* late, doubled, or to be tried again with the next heartbeat */
	p->snapshot.offset = offset;
	if (offset < meta->size_bytes)
		send_chunk(r, p);
}

/* ---- taking ---- */

int snapshot_taken(struct raft *r, const struct raft_event *ev, struct err *err)
{
	uint64_t index = ev->taken.index;

	if (index > r->told)
		return err_set(err, -EINVAL, "snapshot at %llu: only %llu is committed",
			       (unsigned long long)index, (unsigned long long)r->told);
	if (index <= r->snapshots[0].index)
		return 0; /* a newer one came from the leader meanwhile */
	struct raft_snapshot_meta meta;
	int bad = raft_snapshot_meta(r, index, &meta);
	assert(bad == 0);
	meta.size_bytes = ev->taken.size_bytes;

	if (r->snapshot_count == SNAPSHOTS_KEPT) {
		/* The oldest goes, whoever was being sent it begins anew. */
		uint64_t oldest = r->snapshots[--r->snapshot_count].index;
		for (unsigned i = 0; r->state == RAFT_LEADER && i < r->config.count; i++)
			if (r->peers[i].mode == PEER_SNAPSHOT &&
			    r->peers[i].snapshot.index == oldest)
				peer_probe(&r->peers[i], r->peers[i].match + 1);
	}
	memmove(&r->snapshots[1], &r->snapshots[0], r->snapshot_count * sizeof(meta));
	r->snapshots[0] = meta;
	r->snapshot_count++;
	snapshot_release(r);
	if (index > ev->taken.keep)
		log_compact(&r->log, index - ev->taken.keep);
	return 0;
}

/* ---- receiving ---- */

static bool is_same(const struct raft_snapshot_meta *a, const struct raft_snapshot_meta *b)
{
	return a->index == b->index && a->term == b->term && a->size_bytes == b->size_bytes;
}

static void answer(struct raft *r, const struct raft_message *ask, enum raft_result result,
		   uint64_t offset, bool done)
{
	struct raft_message *m = output_message(r, ask->from, RAFT_MSG_SNAPSHOT_REPLY);
	m->chunk_reply.result = result;
	m->chunk_reply.round = ask->chunk.round;
	m->chunk_reply.index = ask->chunk.snapshot.index;
	m->chunk_reply.offset = offset;
	m->chunk_reply.done = done;
}

static void take_chunk(struct raft *r, const struct raft_message *m)
{
	struct raft_update *up = r->up;

	up->chunk.present = true;
	up->chunk.first = m->chunk.offset == 0;
	up->chunk.snapshot = r->incoming.meta;
	up->chunk.offset = m->chunk.offset;
	up->chunk.data = m->chunk.data;
	up->chunk.len = m->chunk.len;
	r->incoming.offset += m->chunk.len;
	r->incoming.installing = r->incoming.offset == r->incoming.meta.size_bytes;
	up->chunk.last = r->incoming.installing;
}

void snapshot_receive(struct raft *r, const struct raft_message *m)
{
	const struct raft_snapshot_meta *meta = &m->chunk.snapshot;

	append_heard(r);
	r->round_seen = MAX(r->round_seen, m->chunk.round);
	if (meta->index <= r->commit) {
		answer(r, m, RAFT_ACCEPTED, meta->size_bytes, r->log.durable >= meta->index);
		return;
	}
	bool same = r->incoming.active && is_same(&r->incoming.meta, meta);
	if (r->incoming.installing) {
		if (same)
			answer(r, m, RAFT_ACCEPTED, meta->size_bytes, false);
		return; /* another one has to wait */
	}
	if (!same && m->chunk.offset == 0 &&
	    !(r->incoming.active && r->incoming.meta.index > meta->index)) {
		r->incoming.active = same = true;
		r->incoming.meta = *meta;
		r->incoming.offset = 0;
	}
	if (!same) {
		answer(r, m, RAFT_REJECTED, 0, false);
		return;
	}
	if (m->chunk.offset == r->incoming.offset)
		take_chunk(r, m);
	answer(r, m, m->chunk.offset > r->incoming.offset ? RAFT_REJECTED : RAFT_ACCEPTED,
	       r->incoming.offset, false);
}

static void install(struct raft *r)
{
	const struct raft_snapshot_meta *meta = &r->incoming.meta;
	bool fits = log_term(&r->log, meta->index) == meta->term;

	assert(meta->index > r->commit);
	r->snapshots[0] = *meta;
	r->snapshot_count = 1;
	if (fits || (planted(PLANT_SNAPSHOT_KEEPS_LOG) && log_last(&r->log) >= meta->index)) {
		/* The same entry, so the same past (log matching): what follows stays. */
		log_covered(&r->log, meta->index);
		log_compact(&r->log, meta->index);
	} else {
		output_reset(r, meta->index, meta->term);
	}
	r->commit = meta->index;
	r->verified = MAX(r->verified, r->commit);
	config_refresh(r);
}

int snapshot_installed(struct raft *r, const struct raft_event *ev, struct err *err)
{
	if (!r->incoming.installing || r->incoming.meta.index != ev->installed.index)
		return err_set(err, -EINVAL, "snapshot at %llu: none is being installed",
			       (unsigned long long)ev->installed.index);
	if (!ev->installed.failed)
		install(r);
	r->incoming.active = r->incoming.installing = false;
	append_persisted(r);
	return 0;
}
