/* SPDX-License-Identifier: Apache-2.0 */
/* The leader's half of replication: what each peer has, what is on the way to it (§3.5, §10.2).
 *
 *	          accepted at next-1
 *	  PROBE --------------------> REPLICATE
 *	   ^  ^-----------------------+ |
 *	   |     rejected, gone         | compacted
 *	   |   match >= its index       v
 *	   +------------------------ SNAPSHOT */
#include "cluster/raft/core.h"
#include <assert.h>

enum { ENTRY_OVERHEAD = 32 }; /* bytes of framing per entry, for the window only */

void peer_init(struct raft *r, struct peer *p, uint64_t id)
{
	*p = (struct peer){
		.id = id, .mode = PEER_PROBE, .next = log_last(&r->log) + 1, .contact_ms = r->now_ms
	};
}

bool peer_is_live(const struct raft *r, const struct peer *p)
{
	return p->contacted && r->now_ms - p->contact_ms <= r->settings.election_ms;
}

void peer_probe(struct peer *p, uint64_t next)
{
	p->mode = PEER_PROBE;
	p->next = MAX(next, p->match + 1);
	p->probing = false;
	p->flight.head = p->flight.count = 0;
	p->flight.bytes = 0;
}

static void flight_add(struct peer *p, uint64_t last, uint64_t bytes)
{
	assert(p->flight.count < RAFT_INFLIGHT_MAX);
	unsigned at = (p->flight.head + p->flight.count++) % RAFT_INFLIGHT_MAX;
	p->flight.at[at].last = last;
	p->flight.at[at].bytes = bytes;
	p->flight.bytes += bytes;
}

static void flight_done(struct peer *p, uint64_t match)
{
	while (p->flight.count && p->flight.at[p->flight.head].last <= match) {
		p->flight.bytes -= p->flight.at[p->flight.head].bytes;
		p->flight.head = (p->flight.head + 1) % RAFT_INFLIGHT_MAX;
		p->flight.count--;
	}
}

static bool window_is_open(const struct raft *r, const struct peer *p)
{
	return p->flight.count < r->settings.inflight_count &&
	       p->flight.bytes < r->settings.inflight_bytes;
}

/* One append with up to `most` entries from next. The base of the log must reach next-1. */
static uint64_t send_append(struct raft *r, struct peer *p, unsigned most, uint64_t *ret_bytes)
{
	uint64_t prev = p->next - 1, bytes = 0;
	unsigned count = 0;

	assert(prev >= r->log.base_index);
	while (count < most && bytes < r->settings.append_bytes) {
		const struct raft_entry *e = log_at(&r->log, p->next + count);
		if (!e)
			break;
		bytes += e->len + ENTRY_OVERHEAD;
		count++;
	}
	struct raft_message *m = output_message(r, p->id, RAFT_MSG_APPEND);
	m->append.prev_index = prev;
	m->append.prev_term = log_term(&r->log, prev);
	m->append.commit = r->commit;
	m->append.round = r->round;
	m->append.count = count;
	p->commit_sent = r->commit;
	*ret_bytes = bytes;
	return prev + count;
}

/* Says only that there is a leader: fits every log, commits nothing. */
static void send_bare(struct raft *r, struct peer *p)
{
	struct raft_message *m = output_message(r, p->id, RAFT_MSG_APPEND);
	m->append.round = r->round;
}

static bool is_compacted(const struct raft *r, const struct peer *p)
{
	return p->next - 1 < r->log.base_index;
}

/* Send what the peer lacks, as far as its window allows. */
void peer_pump(struct raft *r, struct peer *p)
{
	uint64_t bytes;

	assert(r->state == RAFT_LEADER);
	if (p->mode == PEER_SNAPSHOT || (p->mode == PEER_PROBE && p->probing))
		return;
	if (is_compacted(r, p)) {
		/* A peer that does not answer gets no snapshot. */
		if (peer_is_live(r, p)) {
			snapshot_begin(r, p);
		} else {
			p->probing = true;
			send_bare(r, p);
		}
		return;
	}
	if (p->mode == PEER_PROBE) {
		p->probing = true;
		send_append(r, p, RAFT_BATCH_MAX, &bytes);
		return;
	}
	while (p->next <= log_last(&r->log) && window_is_open(r, p)) {
		uint64_t last = send_append(r, p, RAFT_BATCH_MAX, &bytes);
		flight_add(p, last, bytes);
		p->next = last + 1;
	}
	/* An idle peer learns the commit index at once, a busy one with the next entries. */
	if (p->flight.count == 0 && p->commit_sent < r->commit)
		send_append(r, p, 0, &bytes);
}

/* Also finds what was lost: the empty append does not fit where entries are missing. */
void peer_heartbeat(struct raft *r, struct peer *p)
{
	uint64_t bytes;

	if (p->mode == PEER_SNAPSHOT) {
		send_bare(r, p);
		snapshot_resend(r, p);
	} else if (is_compacted(r, p)) {
		send_bare(r, p);
	} else {
		send_append(r, p, 0, &bytes);
	}
}

void peer_contact(struct raft *r, struct peer *p, uint64_t round)
{
	p->contact_ms = r->now_ms;
	p->contacted = true;
	if (round > p->round) {
		p->round = round;
		if (r->round - round < ROUNDS_KEPT)
			p->round_ms = r->round_began_ms[round % ROUNDS_KEPT];
	}
}

static void accepted(struct raft *r, struct peer *p, const struct raft_message *m)
{
	uint64_t match = m->append_reply.match, equal = m->append_reply.hint;
	bool advanced = match > p->match;

	p->match = MAX(p->match, match);
	p->next = MAX(p->next, p->match + 1);
	flight_done(p, p->match);
	if (p->mode == PEER_SNAPSHOT && p->match >= p->snapshot.index) {
		peer_probe(p, equal + 1);
		snapshot_release(r);
	}
	if (p->mode == PEER_PROBE && (equal + 1 >= p->next || is_compacted(r, p))) {
		p->next = MAX(p->next, equal + 1);
		p->probing = false;
		/* Still compacted: the pump sees to that. */
		if (!is_compacted(r, p))
			p->mode = PEER_REPLICATE;
	}
	if (advanced)
		leader_commit(r);
}

/* Largest index at which the logs may agree: not above hint, of a term not above hint_term. */
static uint64_t back_off(const struct raft *r, uint64_t hint, uint64_t hint_term)
{
	uint64_t at = MIN(hint, log_last(&r->log));
	while (at > r->log.base_index && log_term(&r->log, at) > hint_term)
		at--;
	return at;
}

static void rejected(struct raft *r, struct peer *p, const struct raft_message *m)
{
	uint64_t prev = m->append_reply.prev;

	/* Late or doubled: it speaks of something that is known to match, or was not asked last. */
	if (p->mode == PEER_SNAPSHOT || prev <= p->match || prev >= p->next)
		return;
	if (p->mode == PEER_PROBE && prev != p->next - 1)
		return;
	uint64_t at = back_off(r, m->append_reply.hint, m->append_reply.hint_term);
	peer_probe(p, MIN(at + 1, prev));
}

void replication_reply(struct raft *r, const struct raft_message *m)
{
	struct peer *p = leader_peer(r, m->from);
	if (!p)
		return;
	peer_contact(r, p, m->append_reply.round);
	if (m->append_reply.result == RAFT_ACCEPTED)
		accepted(r, p, m);
	else
		rejected(r, p, m);
	/* The commit may have ended the leadership or moved the peers. */
	p = leader_peer(r, m->from);
	if (p) {
		peer_pump(r, p);
		transfer_pump(r);
		read_confirm(r);
	}
}
