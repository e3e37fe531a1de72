/* SPDX-License-Identifier: Apache-2.0 */
/* Messages to bytes and back. What comes is checked for size here and for sense by the core. */
#include "node/agreement/agree-impl.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

void agree_pack(const ProtobufCMessage *m, struct str *out)
{
	size_t len = protobuf_c_message_get_packed_size(m);
	str_reserve(out, len + 1);
	size_t wrote = protobuf_c_message_pack(m, (uint8_t *)out->at + out->len);
	assert(wrote == len);
	out->len += len;
	out->at[out->len] = '\0';
}

int agree_send(struct agreement *a, uint32_t to, const Copia__AgreeMessage *m)
{
	if (!a->s.peers)
		return -ENOTCONN;
	str_clear(&a->out);
	agree_pack(&m->base, &a->out);
	return peers_send(a->s.peers, to, CHANNEL_AGREE, a->out.at, a->out.len);
}

/* ---- out ---- */

/* Room for the parts that a message points to. */
struct parts {
	Copia__RaftMessage raft;
	Copia__RaftVote vote;
	Copia__RaftVoteReply vote_reply;
	Copia__RaftAppend append;
	Copia__RaftAppendReply append_reply;
	Copia__RaftSnapshotMeta meta;
	Copia__RaftChunk chunk;
	Copia__RaftChunkReply chunk_reply;
	Copia__RaftTimeoutNow timeout_now;
	uint8_t config[RAFT_CONFIG_SIZE_MAX];
	Copia__RaftEntry *entries;
	Copia__RaftEntry **list;
};

static void fill_meta(const struct raft_snapshot_meta *m, uint8_t config[RAFT_CONFIG_SIZE_MAX],
		      Copia__RaftSnapshotMeta *to)
{
	copia__raft_snapshot_meta__init(to);
	to->index = m->index;
	to->term = m->term;
	to->size_bytes = m->size_bytes;
	to->config_index = m->config_index;
	to->config = (ProtobufCBinaryData){ raft_config_encode(&m->config, config), config };
}

void agree_meta_pack(const struct raft_snapshot_meta *m, struct str *out)
{
	uint8_t config[RAFT_CONFIG_SIZE_MAX];
	Copia__RaftSnapshotMeta to;
	fill_meta(m, config, &to);
	agree_pack(&to.base, out);
}

static void fill_vote(const struct raft_message *m, struct parts *p)
{
	copia__raft_vote__init(&p->vote);
	p->vote.last_index = m->vote.last_index;
	p->vote.last_term = m->vote.last_term;
	p->vote.pre = m->vote.pre;
	p->vote.transfer = m->vote.transfer;
	p->raft.vote = &p->vote;
	p->raft.body_case = COPIA__RAFT_MESSAGE__BODY_VOTE;
}

static void fill_vote_reply(const struct raft_message *m, struct parts *p)
{
	copia__raft_vote_reply__init(&p->vote_reply);
	p->vote_reply.pre = m->vote_reply.pre;
	p->vote_reply.result = m->vote_reply.result;
	p->vote_reply.asked_term = m->vote_reply.asked_term;
	p->raft.vote_reply = &p->vote_reply;
	p->raft.body_case = COPIA__RAFT_MESSAGE__BODY_VOTE_REPLY;
}

static void fill_append(const struct raft_message *m, struct parts *p)
{
	unsigned count = m->append.count;
	copia__raft_append__init(&p->append);
	p->append.prev_index = m->append.prev_index;
	p->append.prev_term = m->append.prev_term;
	p->append.commit = m->append.commit;
	p->append.round = m->append.round;
	if (count) {
		p->entries = xcalloc(count, sizeof(*p->entries));
		p->list = xcalloc(count, sizeof(*p->list));
	}
	for (unsigned i = 0; i < count; i++) {
		const struct raft_entry *e = &m->append.entries[i];
		copia__raft_entry__init(&p->entries[i]);
		p->entries[i].term = e->term;
		p->entries[i].type = e->type;
		p->entries[i].data = (ProtobufCBinaryData){ e->len, (uint8_t *)e->data };
		p->list[i] = &p->entries[i];
	}
	p->append.n_entries = count;
	p->append.entries = p->list;
	p->raft.append = &p->append;
	p->raft.body_case = COPIA__RAFT_MESSAGE__BODY_APPEND;
}

static void fill_append_reply(const struct raft_message *m, struct parts *p)
{
	copia__raft_append_reply__init(&p->append_reply);
	p->append_reply.result = m->append_reply.result;
	p->append_reply.round = m->append_reply.round;
	p->append_reply.match = m->append_reply.match;
	p->append_reply.prev = m->append_reply.prev;
	p->append_reply.hint = m->append_reply.hint;
	p->append_reply.hint_term = m->append_reply.hint_term;
	p->raft.append_reply = &p->append_reply;
	p->raft.body_case = COPIA__RAFT_MESSAGE__BODY_APPEND_REPLY;
}

static void fill_chunk(const struct raft_message *m, struct parts *p)
{
	assert(m->chunk.data || !m->chunk.len);
	fill_meta(&m->chunk.snapshot, p->config, &p->meta);
	copia__raft_chunk__init(&p->chunk);
	p->chunk.snapshot = &p->meta;
	p->chunk.round = m->chunk.round;
	p->chunk.offset = m->chunk.offset;
	p->chunk.data = (ProtobufCBinaryData){ m->chunk.len, (uint8_t *)m->chunk.data };
	p->raft.chunk = &p->chunk;
	p->raft.body_case = COPIA__RAFT_MESSAGE__BODY_CHUNK;
}

static void fill_chunk_reply(const struct raft_message *m, struct parts *p)
{
	copia__raft_chunk_reply__init(&p->chunk_reply);
	p->chunk_reply.result = m->chunk_reply.result;
	p->chunk_reply.round = m->chunk_reply.round;
	p->chunk_reply.index = m->chunk_reply.index;
	p->chunk_reply.offset = m->chunk_reply.offset;
	p->chunk_reply.done = m->chunk_reply.done;
	p->raft.chunk_reply = &p->chunk_reply;
	p->raft.body_case = COPIA__RAFT_MESSAGE__BODY_CHUNK_REPLY;
}

static void fill_timeout_now(const struct raft_message *m, struct parts *p)
{
	copia__raft_timeout_now__init(&p->timeout_now);
	p->raft.timeout_now = &p->timeout_now;
	p->raft.body_case = COPIA__RAFT_MESSAGE__BODY_TIMEOUT_NOW;
}

typedef void fill(const struct raft_message *m, struct parts *p);

static fill *const fills[] = {
	[RAFT_MSG_VOTE] = fill_vote,
	[RAFT_MSG_VOTE_REPLY] = fill_vote_reply,
	[RAFT_MSG_APPEND] = fill_append,
	[RAFT_MSG_APPEND_REPLY] = fill_append_reply,
	[RAFT_MSG_SNAPSHOT] = fill_chunk,
	[RAFT_MSG_SNAPSHOT_REPLY] = fill_chunk_reply,
	[RAFT_MSG_TIMEOUT_NOW] = fill_timeout_now,
};

void agree_send_raft(struct agreement *a, const struct raft_message *m)
{
	struct parts p;
	Copia__AgreeMessage out = COPIA__AGREE_MESSAGE__INIT;
	if (a->mute)
		return;
	p.entries = NULL;
	p.list = NULL;
	copia__raft_message__init(&p.raft);
	p.raft.term = m->term;
	assert((unsigned)m->type < ARRAY_LEN(fills) && fills[m->type]);
	fills[m->type](m, &p);
	out.body_case = COPIA__AGREE_MESSAGE__BODY_RAFT;
	out.raft = &p.raft;
	/* What cannot be sent is lost; the core sends again what it needs. */
	(void)agree_send(a, (uint32_t)m->to, &out);
	free(p.entries);
	free(p.list);
}

/* ---- in ---- */

static int read_meta(const Copia__RaftSnapshotMeta *m, struct raft_snapshot_meta *ret,
		     struct err *err)
{
	ret->index = m->index;
	ret->term = m->term;
	ret->size_bytes = m->size_bytes;
	ret->config_index = m->config_index;
	if (m->size_bytes > STORE_SNAPSHOT_MAX)
		return err_set(err, -EMSGSIZE, "snapshot of %" PRIu64 " bytes", m->size_bytes);
	return raft_config_decode(m->config.data, m->config.len, &ret->config, err);
}

int agree_meta_unpack(struct span bytes, struct raft_snapshot_meta *ret, struct err *err)
{
	Copia__RaftSnapshotMeta *m = copia__raft_snapshot_meta__unpack(NULL, bytes.len, bytes.at);
	if (!m)
		return err_set(err, -EBADMSG, "the snapshot's description is damaged");
	int r = read_meta(m, ret, err);
	copia__raft_snapshot_meta__free_unpacked(m, NULL);
	return r;
}

static int read_append(const Copia__RaftAppend *m, struct raft_message *ret,
		       struct raft_entry **ret_entries, struct err *err)
{
	if (m->n_entries > RAFT_BATCH_MAX)
		return err_set(err, -EMSGSIZE, "append of %zu entries", m->n_entries);
	struct raft_entry *e = m->n_entries ? xcalloc(m->n_entries, sizeof(*e)) : NULL;
	for (size_t i = 0; i < m->n_entries; i++) {
		const Copia__RaftEntry *from = m->entries[i];
		e[i] = (struct raft_entry){ .index = m->prev_index + 1 + i,
					    .term = from->term,
					    .type = (enum raft_entry_type)from->type,
					    .len = (uint32_t)from->data.len,
					    .data = from->data.len ? from->data.data : NULL };
	}
	*ret_entries = e;
	ret->append.prev_index = m->prev_index;
	ret->append.prev_term = m->prev_term;
	ret->append.commit = m->commit;
	ret->append.round = m->round;
	ret->append.entries = e;
	ret->append.count = (unsigned)m->n_entries;
	return 0;
}

static int read_small(const Copia__RaftMessage *m, struct raft_message *ret, struct err *err)
{
	switch (m->body_case) {
	case COPIA__RAFT_MESSAGE__BODY_VOTE:
		ret->type = RAFT_MSG_VOTE;
		ret->vote.last_index = m->vote->last_index;
		ret->vote.last_term = m->vote->last_term;
		ret->vote.pre = m->vote->pre;
		ret->vote.transfer = m->vote->transfer;
		return 0;
	case COPIA__RAFT_MESSAGE__BODY_VOTE_REPLY:
		ret->type = RAFT_MSG_VOTE_REPLY;
		ret->vote_reply.pre = m->vote_reply->pre;
		ret->vote_reply.result = m->vote_reply->result;
		ret->vote_reply.asked_term = m->vote_reply->asked_term;
		return 0;
	case COPIA__RAFT_MESSAGE__BODY_APPEND_REPLY:
		ret->type = RAFT_MSG_APPEND_REPLY;
		ret->append_reply.result = m->append_reply->result;
		ret->append_reply.round = m->append_reply->round;
		ret->append_reply.match = m->append_reply->match;
		ret->append_reply.prev = m->append_reply->prev;
		ret->append_reply.hint = m->append_reply->hint;
		ret->append_reply.hint_term = m->append_reply->hint_term;
		return 0;
	case COPIA__RAFT_MESSAGE__BODY_CHUNK_REPLY:
		ret->type = RAFT_MSG_SNAPSHOT_REPLY;
		ret->chunk_reply.result = m->chunk_reply->result;
		ret->chunk_reply.round = m->chunk_reply->round;
		ret->chunk_reply.index = m->chunk_reply->index;
		ret->chunk_reply.offset = m->chunk_reply->offset;
		ret->chunk_reply.done = m->chunk_reply->done;
		return 0;
	case COPIA__RAFT_MESSAGE__BODY_TIMEOUT_NOW:
		ret->type = RAFT_MSG_TIMEOUT_NOW;
		return 0;
	default:
		return err_set(err, -EBADMSG, "a kind of message that is not known");
	}
}

static int read_chunk(const Copia__RaftChunk *m, struct raft_message *ret, struct err *err)
{
	if (!m->snapshot || m->data.len > RAFT_CHUNK_MAX)
		return err_set(err, -EBADMSG, "a piece of a snapshot without description");
	ret->type = RAFT_MSG_SNAPSHOT;
	ret->chunk.round = m->round;
	ret->chunk.offset = m->offset;
	ret->chunk.len = (uint32_t)m->data.len;
	ret->chunk.data = m->data.len ? m->data.data : NULL;
	return read_meta(m->snapshot, &ret->chunk.snapshot, err);
}

static int receive_raft(struct agreement *a, uint32_t from, const Copia__RaftMessage *m,
			struct err *err)
{
	struct raft_message in = { .from = from, .to = a->s.self, .term = m->term };
	struct raft_entry *entries = NULL;
	struct raft_event ev = { .type = RAFT_RECEIVE, .receive = &in };
	int r;
	if (m->body_case == COPIA__RAFT_MESSAGE__BODY_APPEND) {
		in.type = RAFT_MSG_APPEND;
		r = read_append(m->append, &in, &entries, err);
	} else if (m->body_case == COPIA__RAFT_MESSAGE__BODY_CHUNK) {
		r = read_chunk(m->chunk, &in, err);
	} else {
		r = read_small(m, &in, err);
	}
	if (r == 0)
		r = agree_step(a, &ev, NULL, err);
	free(entries);
	return r;
}

static int receive(struct agreement *a, uint32_t from, const Copia__AgreeMessage *m,
		   struct err *err)
{
	switch (m->body_case) {
	case COPIA__AGREE_MESSAGE__BODY_RAFT:
		/* Not serving: as if the message had been lost. */
		return a->core && from != a->s.self ? receive_raft(a, from, m->raft, err) : 0;
	case COPIA__AGREE_MESSAGE__BODY_FORWARD:
		agree_on_forward(a, from, m->forward);
		return 0;
	case COPIA__AGREE_MESSAGE__BODY_ANSWERS:
		agree_on_answers(a, from, m->answers);
		return 0;
	case COPIA__AGREE_MESSAGE__BODY_LEADER:
		agree_on_leader(a, from, m->leader);
		return 0;
	case COPIA__AGREE_MESSAGE__BODY_READ_ASK:
		agree_on_read_ask(a, from, m->read_ask->id);
		return 0;
	case COPIA__AGREE_MESSAGE__BODY_READ_REPLY:
		agree_on_read_reply(a, m->read_reply);
		return 0;
	default:
		return err_set(err, -EBADMSG, "a kind of message that is not known");
	}
}

void agree_receive(void *ctx, uint32_t from, struct span body)
{
	struct agreement *a = ctx;
	struct err err = { 0 };
	Copia__AgreeMessage *m = copia__agree_message__unpack(NULL, body.len, body.at);
	int r =
	    m ? receive(a, from, m, &err) : err_set(&err, -EBADMSG, "bytes that are no message");
	if (m)
		copia__agree_message__free_unpacked(m, NULL);
	if (r < 0)
		log_debug("agree", "node %" PRIu32 " sent %s", from, err.msg);
}
