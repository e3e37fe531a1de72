/* SPDX-License-Identifier: Apache-2.0 */
/* What must hold after each step. The first part looks only at outcomes, over all nodes together;
 * the second at whether each node keeps to the rules that lead to them. */
#include "sim.h"

void check_reset(struct sim *s)
{
	s->committed = 0;
	s->match_count = 0;
	s->read_count = 0;
	memset(s->leaders, 0, sizeof(s->leaders));
}

/* FNV-1a over body and type. */
uint64_t entry_value(const struct raft_entry *e)
{
	uint64_t h = 0xcbf29ce484222325ULL ^ (uint64_t)e->type;
	for (uint32_t i = 0; i < e->len; i++)
		h = (h ^ e->data[i]) * 0x100000001b3ULL;
	return h;
}

uint64_t state_hash(uint64_t before, const struct raft_entry *e)
{
	uint64_t h = before ^ (entry_value(e) + 0x9e3779b97f4a7c15ULL * e->term);
	h *= 0xff51afd7ed558ccdULL;
	return h ^ (h >> 29);
}

/* Log matching: one value for each (index, term), whoever holds it. */
static void check_match(struct sim *s, const struct node *n, const struct raft_entry *e)
{
	uint64_t value = entry_value(e);
	uint64_t at = (e->index * 0x9e3779b97f4a7c15ULL) ^ (e->term * 0xc2b2ae3d27d4eb4fULL);
	for (at = (at >> 20) % MATCH_SLOTS;; at = (at + 1) % MATCH_SLOTS) {
		struct match *m = &s->matches[at];
		if (m->run != s->stats.runs + 1) {
			if (++s->match_count > MATCH_SLOTS * 3 / 4)
				sim_fail(s, "LIMIT of the bench: too many entries in one run");
			*m = (struct match){ s->stats.runs + 1, e->index, e->term, value };
			return;
		}
		if (m->index != e->index || m->term != e->term)
			continue;
		if (m->value != value)
			sim_fail(s, "LOGMATCH node %lu has another entry %lu of term %lu", n->id,
				 e->index, e->term);
		return;
	}
}

static void check_leader(struct sim *s, struct node *n, const struct raft_update *up)
{
	if (up->state != RAFT_LEADER)
		return;
	if (up->term >= TERMS_MAX)
		sim_fail(s, "LIMIT of the bench: term %lu", up->term);
	if (s->leaders[up->term] == 0) {
		s->leaders[up->term] = n->id;
		s->stats.elections++;
	}
	if (s->leaders[up->term] != n->id)
		sim_fail(s, "TWOLEADERS nodes %lu and %lu lead term %lu", s->leaders[up->term],
			 n->id, up->term);
}

void check_applied(struct sim *s, struct node *n, const struct raft_entry *e)
{
	if (s->committed + 1 >= s->log_cap) {
		s->log_cap *= 2;
		s->log = xrealloc(s->log, s->log_cap * sizeof(*s->log));
	}
	struct committed *c = &s->log[e->index];
	uint64_t value = entry_value(e);
	if (e->index > s->committed) {
		if (e->index != s->committed + 1)
			sim_fail(s, "SKIP node %lu commits %lu after %lu", n->id, e->index,
				 s->committed);
		s->committed = e->index;
		*c = (struct committed){ e->term, value, state_hash(c[-1].hash, e), e->type };
	} else if (c->term != e->term || c->value != value || c->type != e->type) {
		sim_fail(s,
			 "COMMITTED entry %lu of term %lu is another one, of term %lu, on node %lu",
			 e->index, c->term, e->term, n->id);
	}
	n->hash = state_hash(n->hash, e);
	if (n->hash != c->hash)
		sim_fail(s, "STATE of node %lu at %lu differs", n->id, e->index);
}

void check_read(struct sim *s, struct node *n, const struct raft_read *read)
{
	for (size_t i = 0; i < s->read_count; i++) {
		if (s->reads[i].id != read->id)
			continue;
		if (read->ok && read->index < s->reads[i].floor)
			sim_fail(s, "STALE read on node %lu sees %lu, %lu was committed before",
				 n->id, read->index, s->reads[i].floor);
		s->reads[i] = s->reads[--s->read_count];
		return;
	}
	sim_fail(s, "READ %lu answered twice or never asked on node %lu", read->id, n->id);
}

void check_update(struct sim *s, struct node *n, const struct raft_update *up)
{
	check_leader(s, n, up);
	for (size_t i = 0; i < up->write.count; i++)
		check_match(s, n, &up->write.entries[i]);
	if (up->commit_index < n->commit)
		sim_fail(s, "COMMITBACK node %lu from %lu to %lu", n->id, n->commit,
			 up->commit_index);
	if (up->write.count && up->write.entries[0].index <= n->applied)
		sim_fail(s, "OVERWRITE node %lu writes entry %lu, applied is %lu", n->id,
			 up->write.entries[0].index, n->applied);
	if (up->write.truncate_from && up->write.truncate_from <= n->applied &&
	    raft_first_index(n->r) != n->disk.snap.meta.index + 1)
		sim_fail(s, "OVERWRITE node %lu deletes from %lu, applied is %lu", n->id,
			 up->write.truncate_from, n->applied);
	if (n->installing_due && up->commit_index != n->commit)
		sim_fail(s, "INSTALL node %lu commits %lu while a snapshot is loaded", n->id,
			 up->commit_index);
	if (s->o.outcome_only)
		return;
	const struct raft_entry *e = disk_entry(&n->disk, up->commit_index);
	if (up->commit_index > n->disk.snap.meta.index &&
	    (!e || e->term != raft_entry(n->r, up->commit_index)->term))
		sim_fail(s, "DURABLE node %lu commits %lu, on its disk is %lu", n->id,
			 up->commit_index, disk_last(&n->disk));
}

/* Nothing may leave that rests on what a crash could still take back. */
void check_message_out(struct sim *s, struct node *n, const struct raft_message *m)
{
	const struct disk *d = &n->disk;

	if (s->o.outcome_only)
		return;
	if (m->from != n->id)
		sim_fail(s, "SENDER node %lu says it is %lu", n->id, m->from);
	bool pre = m->type == RAFT_MSG_VOTE && m->vote.pre;
	if (m->term > d->term + pre)
		sim_fail(s, "EARLY node %lu speaks in term %lu, on its disk is %lu", n->id, m->term,
			 d->term);
	bool votes_self = m->type == RAFT_MSG_VOTE && !m->vote.pre;
	bool grants = m->type == RAFT_MSG_VOTE_REPLY && !m->vote_reply.pre &&
		      m->vote_reply.result == RAFT_ACCEPTED;
	if ((votes_self || grants) && d->term == m->term && d->vote != (votes_self ? n->id : m->to))
		sim_fail(s, "EARLY node %lu votes in term %lu, its disk does not say so", n->id,
			 m->term);
	if (m->type == RAFT_MSG_APPEND_REPLY && m->append_reply.result == RAFT_ACCEPTED &&
	    m->append_reply.match > disk_last(d))
		sim_fail(s, "EARLY node %lu confirms %lu, on its disk is %lu", n->id,
			 m->append_reply.match, disk_last(d));
}
