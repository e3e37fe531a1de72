/* SPDX-License-Identifier: Apache-2.0 */
/* Elections: timer, pre-vote (§9.6), votes (§3.4), what a node becomes. */
#include "cluster/raft/core.h"
#include <assert.h>

void election_timer_reset(struct raft *r)
{
	unsigned base = r->settings.election_ms;
	r->deadline_ms = r->now_ms + base + rng_below(&r->rng, base);
}

/* Follow `leader` (0: not known) in `term`, which is not below the present one. */
void follower_become(struct raft *r, uint64_t term, uint64_t leader)
{
	assert(term >= r->term);
	bool was_active = r->state != RAFT_FOLLOWER;

	if (term > r->term) {
		r->term = term;
		r->vote = 0;
		/* What is committed is in the log of every later leader (§3.6.3). */
		r->verified = r->commit;
		r->acked = 0;
		r->round_seen = 0;
		r->ack_due = false;
		/* Another leader's snapshot may have other bytes. One that is complete is as
		 * good as before. */
		if (!r->incoming.installing)
			r->incoming.active = false;
		output_state(r);
	}
	if (r->state == RAFT_LEADER) {
		read_fail_all(r);
		r->transfer_to = 0;
		r->verified = r->commit;
	}
	r->state = RAFT_FOLLOWER;
	r->leader = leader;
	snapshot_release(r);
	if (was_active)
		election_timer_reset(r);
}

/* A server that its latest configuration leaves out still campaigns while it does not know that
 * entry to be committed and was a voter before it: it may be the only one that has the entry, and
 * then nobody else can win (§4.2.2). Its own vote does not count. */
static bool is_leaving(const struct raft *r)
{
	struct raft_config buf;
	uint64_t index;

	if (r->config_index <= r->commit)
		return false;
	return config_votes(config_as_of(r, r->config_index - 1, &buf, &index), r->self);
}

static bool may_campaign(const struct raft *r)
{
	/* While the state is being replaced by a snapshot the log is not whole. */
	if (r->incoming.installing)
		return false;
	return config_votes(&r->config, r->self) || is_leaving(r);
}

static bool majority_says_yes(const struct raft *r)
{
	uint64_t yes[RAFT_SERVERS_MAX];
	for (unsigned i = 0; i < r->config.count; i++)
		yes[i] = r->votes[i] == VOTE_YES;
	return config_quorum(&r->config, yes) == 1;
}

static void votes_set(struct raft *r, uint64_t id, bool granted)
{
	for (unsigned i = 0; i < r->config.count; i++)
		if (r->config.servers[i].id == id)
			r->votes[i] = granted ? VOTE_YES : VOTE_NO;
}

static void votes_clear(struct raft *r)
{
	for (unsigned i = 0; i < RAFT_SERVERS_MAX; i++)
		r->votes[i] = VOTE_OPEN;
	r->retry_ms = r->now_ms + r->settings.heartbeat_ms;
}

/* Ask every voter that has not answered yet. */
static void votes_ask(struct raft *r)
{
	bool pre = r->state == RAFT_PRE_CANDIDATE;
	uint64_t last = log_last(&r->log);

	for (unsigned i = 0; i < r->config.count; i++) {
		const struct raft_server *s = &r->config.servers[i];
		if (s->id == r->self || r->votes[i] != VOTE_OPEN ||
		    !(s->roles & (RAFT_VOTER | RAFT_VOTER_OLD)))
			continue;
		struct raft_message *m = output_message(r, s->id, RAFT_MSG_VOTE);
		m->term = r->term + pre;
		m->vote.last_index = last;
		m->vote.last_term = log_term(&r->log, last);
		m->vote.pre = pre;
		m->vote.transfer = !pre && r->ballot_transfer;
	}
}

/* The requests leave when term and own vote are durable, and with them, because writes are
 * ordered, every entry that the requests speak of. */
static void ballot_begin(struct raft *r)
{
	assert(r->state == RAFT_CANDIDATE && !r->ballot_open && output_state_durable(r));
	r->ballot_open = true;
	votes_set(r, r->self, true);
	if (majority_says_yes(r))
		leader_become(r);
	else
		votes_ask(r);
}

static void candidate_become(struct raft *r, bool transfer)
{
	follower_become(r, r->term + 1, 0);
	r->vote = r->self;
	r->state = RAFT_CANDIDATE;
	r->ballot_open = false;
	r->ballot_transfer = transfer;
	votes_clear(r);
	election_timer_reset(r);
}

void election_campaign(struct raft *r, bool transfer)
{
	assert(may_campaign(r) && r->state != RAFT_LEADER);
	if (planted(PLANT_TERM_NOT_RAISED) && config_is_sole(&r->config, r->self) &&
	    r->vote == r->self && output_state_durable(r)) {
		leader_become(r);
		return;
	}
	if (transfer || config_is_sole(&r->config, r->self)) {
		candidate_become(r, transfer);
		return;
	}
	r->state = RAFT_PRE_CANDIDATE;
	r->leader = 0;
	votes_clear(r);
	votes_set(r, r->self, true);
	election_timer_reset(r);
	if (majority_says_yes(r))
		candidate_become(r, false);
	else
		votes_ask(r);
}

void election_tick(struct raft *r)
{
	if (r->now_ms >= r->deadline_ms) {
		/* Also a learner forgets a leader that is silent, or it would for ever refuse a
		 * vote that is asked of it. */
		r->leader = 0;
		if (may_campaign(r))
			election_campaign(r, false);
		else
			election_timer_reset(r);
		return;
	}
	if (r->state == RAFT_FOLLOWER || r->now_ms < r->retry_ms)
		return;
	r->retry_ms = r->now_ms + r->settings.heartbeat_ms;
	if (r->state == RAFT_PRE_CANDIDATE || r->ballot_open)
		votes_ask(r);
}

void election_persisted(struct raft *r)
{
	if (r->state == RAFT_CANDIDATE && !r->ballot_open && output_state_durable(r))
		ballot_begin(r);
}

/* A closed connection is only a hint. It moves the own timer; voters are released from the
 * leader's lease only where there is no lease. */
void election_peer_down(struct raft *r, uint64_t peer)
{
	if (r->state == RAFT_LEADER) {
		struct peer *p = leader_peer(r, peer);
		if (p && p->mode == PEER_REPLICATE)
			peer_probe(p, p->match + 1);
		return;
	}
	if (r->leader != peer || r->state != RAFT_FOLLOWER)
		return;
	if (!r->settings.lease)
		r->sticky_until_ms = r->now_ms;
	uint64_t from = MAX(r->now_ms, r->sticky_until_ms);
	r->deadline_ms =
	    MIN(r->deadline_ms, from + 1 + rng_below(&r->rng, r->settings.heartbeat_ms));
}

/* Voters that hear a leader ignore everybody who wants to replace it (§4.2.3), unless it asked
 * for that itself. Without this a removed server could disturb, and the lease would be void. */
static bool is_sticky(const struct raft *r)
{
	if (r->state == RAFT_LEADER)
		return true;
	return !planted(PLANT_LEASE_WITHOUT_STICKING) && r->now_ms < r->sticky_until_ms;
}

static void vote_answer(struct raft *r, const struct raft_message *ask, enum raft_result result)
{
	struct raft_message *m = output_message(r, ask->from, RAFT_MSG_VOTE_REPLY);
	m->vote_reply.pre = ask->vote.pre;
	m->vote_reply.result = result;
	m->vote_reply.asked_term = ask->term;
}

static bool log_is_good_enough(const struct raft *r, const struct raft_message *m)
{
	return planted(PLANT_VOTE_FOR_OLD_LOG) ||
	       log_is_covered_by(&r->log, m->vote.last_index, m->vote.last_term);
}

static void pre_vote(struct raft *r, const struct raft_message *m)
{
	if (m->term < r->term) {
		vote_answer(r, m, RAFT_STALE);
		return;
	}
	if (is_sticky(r))
		return;
	bool term_free =
	    m->term > r->term || (r->leader == 0 && (r->vote == 0 || r->vote == m->from));
	vote_answer(r, m, term_free && log_is_good_enough(r, m) ? RAFT_ACCEPTED : RAFT_REJECTED);
}

/* A node that is asked votes whether or not its own configuration lists it or the asker: the
 * entry that says so may not have come yet (§4.1). */
void election_vote(struct raft *r, const struct raft_message *m)
{
	if (m->vote.pre) {
		pre_vote(r, m);
		return;
	}
	if (m->term < r->term) {
		vote_answer(r, m, RAFT_STALE);
		return;
	}
	/* Also in a term that is known already: that came from an answer, not from a leader. */
	if (!m->vote.transfer && is_sticky(r))
		return;
	if (m->term > r->term)
		follower_become(r, m->term, 0);
	bool grant = r->state == RAFT_FOLLOWER && (r->vote == 0 || r->vote == m->from) &&
		     log_is_good_enough(r, m);
	if (grant && r->vote == 0) {
		r->vote = m->from;
		output_state(r);
	}
	if (grant)
		election_timer_reset(r);
	vote_answer(r, m, grant ? RAFT_ACCEPTED : RAFT_REJECTED);
}

void election_vote_reply(struct raft *r, const struct raft_message *m)
{
	if (!raft_config_roles(&r->config, m->from))
		return;
	bool granted = m->vote_reply.result == RAFT_ACCEPTED;
	/* Whoever grants a pre-vote may already be in the term that was asked for. */
	if (m->term > r->term && !(m->vote_reply.pre && granted)) {
		follower_become(r, m->term, 0);
		return;
	}
	if (m->vote_reply.result == RAFT_STALE)
		return;
	if (m->vote_reply.pre) {
		if (r->state != RAFT_PRE_CANDIDATE || m->vote_reply.asked_term != r->term + 1)
			return;
		votes_set(r, m->from, granted);
		if (majority_says_yes(r))
			candidate_become(r, false);
		return;
	}
	if (r->state != RAFT_CANDIDATE || !r->ballot_open || m->vote_reply.asked_term != r->term)
		return;
	votes_set(r, m->from, granted);
	if (majority_says_yes(r))
		leader_become(r);
}
