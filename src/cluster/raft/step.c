/* SPDX-License-Identifier: Apache-2.0 */
/* One event to its handlers. */
#include "cluster/raft/core.h"
#include <assert.h>
#include <errno.h>

#ifdef RAFT_PLANT
int raft_planted = RAFT_PLANT;
#endif

/* What a leader says to its followers. */
static bool is_of_leader(const struct raft_message *m)
{
	return m->type == RAFT_MSG_APPEND || m->type == RAFT_MSG_SNAPSHOT ||
	       m->type == RAFT_MSG_TIMEOUT_NOW;
}

/* The sender leads an older term. The answer carries nothing but the newer one. */
static void answer_stale(struct raft *r, const struct raft_message *ask)
{
	if (ask->type == RAFT_MSG_APPEND)
		output_message(r, ask->from, RAFT_MSG_APPEND_REPLY);
	else if (ask->type == RAFT_MSG_SNAPSHOT)
		output_message(r, ask->from, RAFT_MSG_SNAPSHOT_REPLY);
	static_assert(RAFT_STALE == 0, "a zeroed answer is a stale one");
}

static void receive_from_leader(struct raft *r, const struct raft_message *m)
{
	if (m->term < r->term) {
		answer_stale(r, m);
		return;
	}
	if (m->term > r->term || r->state != RAFT_FOLLOWER || r->leader == 0)
		follower_become(r, m->term, m->from);
	switch (m->type) {
	case RAFT_MSG_APPEND:
		append_receive(r, m);
		break;
	case RAFT_MSG_SNAPSHOT:
		snapshot_receive(r, m);
		break;
	default:
		transfer_timeout_now(r, m);
		break;
	}
}

static void receive_reply(struct raft *r, const struct raft_message *m)
{
	if (m->term > r->term) {
		/* A server outside the configuration cannot unseat a leader. */
		if (raft_config_roles(&r->config, m->from))
			follower_become(r, m->term, 0);
		return;
	}
	if (m->term < r->term || r->state != RAFT_LEADER)
		return;
	if (m->type == RAFT_MSG_APPEND_REPLY && m->append_reply.result != RAFT_STALE)
		replication_reply(r, m);
	else if (m->type == RAFT_MSG_SNAPSHOT_REPLY && m->chunk_reply.result != RAFT_STALE)
		snapshot_reply(r, m);
}

static int receive(struct raft *r, const struct raft_event *ev, struct err *err)
{
	const struct raft_message *m = ev->receive;
	int bad = check_message(r, m, err);

	if (bad < 0)
		return bad;
	if (m->type == RAFT_MSG_APPEND && m->term >= r->term) {
		bad = append_stage(r, m, err);
		if (bad < 0)
			return bad;
	}
	if (is_of_leader(m))
		receive_from_leader(r, m);
	else if (m->type == RAFT_MSG_VOTE)
		election_vote(r, m);
	else if (m->type == RAFT_MSG_VOTE_REPLY)
		election_vote_reply(r, m);
	else
		receive_reply(r, m);
	return 0;
}

static int tick(struct raft *r, const struct raft_event *ev, struct err *err)
{
	if (r->state == RAFT_LEADER)
		leader_tick(r);
	else
		election_tick(r);
	return 0;
}

static int persisted(struct raft *r, const struct raft_event *ev, struct err *err)
{
	if (ev->persisted > r->write_number)
		return err_set(err, -EINVAL, "persisted: write %llu was never given out",
			       (unsigned long long)ev->persisted);
	if (ev->persisted <= r->write_durable)
		return 0;
	r->write_durable = ev->persisted;
	log_persisted(&r->log, ev->persisted);
	output_release(r);
	election_persisted(r);
	append_persisted(r);
	if (r->state == RAFT_LEADER) {
		leader_commit(r);
		read_confirm(r);
		transfer_pump(r);
	}
	return 0;
}

static int peer_down(struct raft *r, const struct raft_event *ev, struct err *err)
{
	election_peer_down(r, ev->peer_down);
	return 0;
}

static int change(struct raft *r, const struct raft_event *ev, struct err *err)
{
	return membership_change(r, ev->change, err);
}

static int transfer(struct raft *r, const struct raft_event *ev, struct err *err)
{
	return transfer_begin(r, ev->transfer);
}

static int read_request(struct raft *r, const struct raft_event *ev, struct err *err)
{
	return read_begin(r, ev->read.id, ev->read.lease);
}

static int (*const handlers[])(struct raft *r, const struct raft_event *ev, struct err *err) = {
	[RAFT_START] = start,
	[RAFT_TICK] = tick,
	[RAFT_RECEIVE] = receive,
	[RAFT_PERSISTED] = persisted,
	[RAFT_SNAPSHOT_TAKEN] = snapshot_taken,
	[RAFT_SNAPSHOT_INSTALLED] = snapshot_installed,
	[RAFT_PROPOSE] = leader_propose,
	[RAFT_CHANGE] = change,
	[RAFT_TRANSFER] = transfer,
	[RAFT_READ] = read_request,
	[RAFT_PEER_DOWN] = peer_down,
};

int raft_step(struct raft *r, const struct raft_event *ev, struct raft_update *up, struct err *err)
{
	int result;

	output_begin(r, up);
	r->now_ms = MAX(r->now_ms, ev->now_ms);
	enum raft_state state = r->state;
	uint64_t term = r->term, leader = r->leader, commit = r->commit;

	if (ev->type < RAFT_START || ev->type >= ARRAY_LEN(handlers))
		result = err_set(err, -EINVAL, "raft: event %d", (int)ev->type);
	else if (ev->type != RAFT_START && !r->started)
		result = err_set(err, -EINVAL, "raft: not started");
	else
		result = handlers[ev->type](r, ev, err);
	assert(result == 0 || (r->out_count == 0 && r->write.number == 0));
	assert(r->term >= term && r->commit >= commit);
	up->state_changed = r->state != state || r->term != term || r->leader != leader;
	output_end(r);
	return result;
}
