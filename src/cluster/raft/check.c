/* SPDX-License-Identifier: Apache-2.0 */
/* What may come in. A message that passes is internally sound and does not contradict what this
 * node knows for certain; one that does not pass has changed nothing. */
#include "cluster/raft/core.h"
#include <errno.h>

#define BAD(...) err_set(err, -EBADMSG, __VA_ARGS__)

static bool is_position(uint64_t index, uint64_t term)
{
	return index < RAFT_TERM_MAX && term < RAFT_TERM_MAX && (index == 0) == (term == 0);
}

static int check_entry(const struct raft *r, const struct raft_message *m, unsigned i,
		       struct err *err)
{
	const struct raft_entry *e = &m->append.entries[i];
	uint64_t term_before = i ? m->append.entries[i - 1].term : m->append.prev_term;
	struct raft_config ignored;

	if (e->index != m->append.prev_index + 1 + i || e->term == 0 || e->term < term_before ||
	    e->term > m->term)
		return BAD("append: entry %u is not in order", i);
	if (e->len > RAFT_DATA_MAX || (e->len > 0 && !e->data))
		return BAD("append: entry %u has %u bytes", i, e->len);
	if (e->type == RAFT_NOOP ? e->len > 0 : e->type != RAFT_COMMAND && e->type != RAFT_CONFIG)
		return BAD("append: entry %u has type %d", i, (int)e->type);
	if (e->type == RAFT_CONFIG && raft_config_decode(e->data, e->len, &ignored, err) < 0)
		return err_wrap(err, -EBADMSG, "append: entry %u", i);
	if (m->term < r->term)
		return 0;
	/* Here the entry would replace what is committed, or what the same leader sent before. */
	uint64_t fixed = m->term == r->term ? r->verified : r->commit;
	uint64_t have = log_term(&r->log, e->index);
	if (e->index <= fixed && have && have != e->term)
		return BAD("append: entry %llu contradicts what is committed",
			   (unsigned long long)e->index);
	return 0;
}

static int check_append(const struct raft *r, const struct raft_message *m, struct err *err)
{
	if (!is_position(m->append.prev_index, m->append.prev_term) ||
	    m->append.prev_term > m->term || m->append.commit >= RAFT_TERM_MAX)
		return BAD("append: position out of bounds");
	if (m->append.count > RAFT_BATCH_MAX || (m->append.count && !m->append.entries))
		return BAD("append: %u entries", m->append.count);
	for (unsigned i = 0; i < m->append.count; i++)
		if (check_entry(r, m, i, err) < 0)
			return -EBADMSG;
	return 0;
}

static int check_append_reply(const struct raft *r, const struct raft_message *m, struct err *err)
{
	if (m->append_reply.result == RAFT_STALE || m->term != r->term || r->state != RAFT_LEADER ||
	    !leader_peer(r, m->from))
		return 0;
	/* Only what was sent can be answered. */
	uint64_t last = log_last(&r->log);
	if (m->append_reply.round > r->round)
		return BAD("append reply: round of the future");
	if (m->append_reply.result == RAFT_ACCEPTED &&
	    (m->append_reply.match > last || m->append_reply.hint > last ||
	     m->append_reply.match > m->append_reply.hint))
		return BAD("append reply: match beyond the log");
	if (m->append_reply.result == RAFT_REJECTED &&
	    (m->append_reply.prev == 0 || m->append_reply.hint > m->append_reply.prev))
		return BAD("append reply: hint out of bounds");
	return 0;
}

static int check_chunk(const struct raft *r, const struct raft_message *m, struct err *err)
{
	const struct raft_snapshot_meta *s = &m->chunk.snapshot;

	if (s->index == 0 || !is_position(s->index, s->term) || s->term > m->term ||
	    s->config_index > s->index)
		return BAD("snapshot: position out of bounds");
	if (m->chunk.len > RAFT_CHUNK_MAX || m->chunk.offset > s->size_bytes ||
	    m->chunk.len > s->size_bytes - m->chunk.offset ||
	    (m->chunk.len == 0 && m->chunk.offset != s->size_bytes) ||
	    (m->chunk.len > 0 && !m->chunk.data))
		return BAD("snapshot: piece out of bounds");
	if (config_check(&s->config, err) < 0)
		return err_wrap(err, -EBADMSG, "snapshot");
	if (s->index == r->log.base_index && r->log.base_term != s->term)
		return BAD("snapshot: contradicts what is committed");
	return 0;
}

static int check_chunk_reply(const struct raft *r, const struct raft_message *m, struct err *err)
{
	if (m->term != r->term || r->state != RAFT_LEADER || !leader_peer(r, m->from) ||
	    m->chunk_reply.result == RAFT_STALE)
		return 0;
	if (m->chunk_reply.round > r->round)
		return BAD("snapshot reply: round of the future");
	if (m->chunk_reply.done && m->chunk_reply.index > r->commit)
		return BAD("snapshot reply: of a snapshot that never was");
	return 0;
}

static int check_result(enum raft_result result, struct err *err)
{
	if (result != RAFT_STALE && result != RAFT_ACCEPTED && result != RAFT_REJECTED)
		return BAD("reply: result %d", (int)result);
	return 0;
}

static int check_leader(const struct raft *r, const struct raft_message *m, struct err *err)
{
	if (m->term != r->term)
		return 0;
	if (r->state == RAFT_LEADER || (r->leader != 0 && r->leader != m->from))
		return BAD("a second leader in term %llu", (unsigned long long)m->term);
	return 0;
}

static int check_body(const struct raft *r, const struct raft_message *m, struct err *err)
{
	int bad;

	switch (m->type) {
	case RAFT_MSG_VOTE:
		if (!is_position(m->vote.last_index, m->vote.last_term) ||
		    m->vote.last_term > m->term)
			return BAD("vote: position out of bounds");
		return 0;
	case RAFT_MSG_VOTE_REPLY:
		return check_result(m->vote_reply.result, err);
	case RAFT_MSG_APPEND:
		bad = check_leader(r, m, err);
		return bad ? bad : check_append(r, m, err);
	case RAFT_MSG_APPEND_REPLY:
		bad = check_result(m->append_reply.result, err);
		return bad ? bad : check_append_reply(r, m, err);
	case RAFT_MSG_SNAPSHOT:
		bad = check_leader(r, m, err);
		return bad ? bad : check_chunk(r, m, err);
	case RAFT_MSG_SNAPSHOT_REPLY:
		bad = check_result(m->chunk_reply.result, err);
		return bad ? bad : check_chunk_reply(r, m, err);
	case RAFT_MSG_TIMEOUT_NOW:
		return check_leader(r, m, err);
	}
	return BAD("message type %d", (int)m->type);
}

int check_message(const struct raft *r, const struct raft_message *m, struct err *err)
{
	int bad = 0;

	if (m->from == 0 || m->from == r->self || m->to != r->self)
		bad = BAD("it is addressed to %llu", (unsigned long long)m->to);
	else if ((m->term == 0 && m->type != RAFT_MSG_VOTE_REPLY) || m->term >= RAFT_TERM_MAX)
		bad = BAD("term %llu", (unsigned long long)m->term);
	else
		bad = check_body(r, m, err);
	if (bad < 0)
		return err_wrap(err, bad, "message from server %llu", (unsigned long long)m->from);
	return 0;
}
