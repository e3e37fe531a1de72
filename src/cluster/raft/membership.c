/* SPDX-License-Identifier: Apache-2.0 */
/* Who takes part: joint consensus (§4.3), and handing over leadership (§3.10). */
#include "cluster/raft/core.h"
#include <assert.h>
#include <errno.h>

/* The configuration at `index`, which is not below the latest snapshot. Borrowed from the core or
 * decoded into *buf. */
const struct raft_config *config_as_of(const struct raft *r, uint64_t index,
				       struct raft_config *buf, uint64_t *ret_index)
{
	for (uint64_t i = index; i > r->snapshots[0].index; i--) {
		const struct raft_entry *e = log_at(&r->log, i);
		if (!e || e->type != RAFT_CONFIG)
			continue;
		int bad = raft_config_decode(e->data, e->len, buf, NULL);
		assert(bad == 0); /* checked before it came into the log */
		*ret_index = i;
		return buf;
	}
	*ret_index = r->snapshots[0].config_index;
	return &r->snapshots[0].config;
}

/* The latest configuration in the log is in force, committed or not (§4.1). */
void config_refresh(struct raft *r)
{
	struct raft_config buf, old = r->config;
	uint64_t index;

	r->config = *config_as_of(r, log_last(&r->log), &buf, &index);
	r->config_index = index;
	r->up->config_changed = true;
	if (r->state == RAFT_LEADER)
		leader_peers_rebuild(r, &old);
}

static void append_config(struct raft *r, const struct raft_config *c)
{
	uint8_t body[RAFT_CONFIG_SIZE_MAX];
	size_t len = raft_config_encode(c, body);
	const uint8_t *data;

	if (data_copy(body, len, &data) < 0)
		abort(); /* a few bytes; as xmalloc() */
	leader_append(r, RAFT_CONFIG, data, len);
	config_refresh(r);
}

static void pump_all(struct raft *r)
{
	for (unsigned i = 0; i < r->config.count && r->state == RAFT_LEADER; i++)
		if (r->config.servers[i].id != r->self)
			peer_pump(r, &r->peers[i]);
}

/* A voter that is far behind would count in the majority and hold up commits (§4.2.1). */
static bool new_voter_lags(const struct raft *r, const struct raft_config *target)
{
	if (r->settings.promote_lag == 0)
		return false;
	for (unsigned i = 0; i < target->count; i++) {
		const struct raft_server *s = &target->servers[i];
		if (!(s->roles & RAFT_VOTER) || s->id == r->self ||
		    (raft_config_roles(&r->config, s->id) & RAFT_VOTER))
			continue;
		const struct peer *p = leader_peer(r, s->id);
		if (!p || !peer_is_live(r, p) ||
		    p->match + r->settings.promote_lag < log_last(&r->log))
			return true;
	}
	return false;
}

int membership_change(struct raft *r, const struct raft_config *target, struct err *err)
{
	int bad = config_check(target, err);
	if (bad < 0)
		return err_wrap(err, -EINVAL, "change");
	if (raft_config_is_joint(target))
		return err_set(err, -EINVAL, "change: the target must not be joint");
	if (r->state != RAFT_LEADER)
		return RAFT_NOT_LEADER;
	/* A leader that has committed nothing in its term does not know what is in force (the flaw
	 * of single-server changes, Ongaro on raft-dev 2015; harmless to wait here too). */
	if (r->commit < r->term_start)
		return RAFT_NOT_READY;
	if (r->config_index > r->commit || raft_config_is_joint(&r->config))
		return RAFT_CHANGING;
	if (r->transfer_to)
		return RAFT_TRANSFERRING;
	if (raft_config_equal(&r->config, target))
		return RAFT_UNCHANGED;
	if (new_voter_lags(r, target))
		return RAFT_LAGS;
	struct raft_config next = *target;
	if (!config_same_voters(&r->config, target) && !config_join(&r->config, target, &next))
		return err_set(err, -EINVAL, "change: more than %d servers on the way",
			       RAFT_SERVERS_MAX);
	append_config(r, &next);
	r->up->proposed.index = r->config_index;
	r->up->proposed.term = r->term;
	pump_all(r);
	leader_commit(r);
	return 0;
}

/* The best heir: the voter that is furthest among those that answer. */
static struct peer *best_voter(const struct raft *r)
{
	struct peer *best = NULL;
	for (unsigned i = 0; i < r->config.count; i++) {
		struct peer *p = &r->peers[i];
		if (r->config.servers[i].id == r->self || !peer_is_live(r, p) ||
		    !(r->config.servers[i].roles & RAFT_VOTER))
			continue;
		if (!best || p->match > best->match)
			best = p;
	}
	return best;
}

static void send_timeout_now(struct raft *r, uint64_t to)
{
	/* The receiver's election breaks through the lease, now or, if the message is late, later
	 * in this term. */
	r->lease_off = !planted(PLANT_LEASE_WITHOUT_STICKING);
	output_message(r, to, RAFT_MSG_TIMEOUT_NOW);
}

/* The leader is not a voter any more: tell what is committed, name an heir, leave (§4.2.2). */
static void retire(struct raft *r)
{
	leader_round(r);
	struct peer *heir = best_voter(r);
	if (heir)
		send_timeout_now(r, heir->id);
	follower_become(r, r->term, 0);
}

void membership_committed(struct raft *r)
{
	if (r->config_index > r->commit)
		return;
	/* What was committed in the joint configuration was committed by both majorities. A new
	 * leader comes here with its no-op. */
	if (raft_config_is_joint(&r->config)) {
		struct raft_config next;
		config_leave(&r->config, &next);
		append_config(r, &next);
	} else if (!config_votes(&r->config, r->self)) {
		retire(r);
	}
}

int transfer_begin(struct raft *r, uint64_t to)
{
	if (r->state != RAFT_LEADER)
		return RAFT_NOT_LEADER;
	if (r->transfer_to)
		return RAFT_TRANSFERRING;
	if (to == r->self)
		return RAFT_UNCHANGED;
	struct peer *p = to ? leader_peer(r, to) : best_voter(r);
	if (!p || !(raft_config_roles(&r->config, p->id) & RAFT_VOTER))
		return to ? RAFT_UNKNOWN : RAFT_LAGS;
	if (!peer_is_live(r, p))
		return RAFT_LAGS;
	r->transfer_to = p->id;
	r->transfer_until_ms = r->now_ms + r->settings.election_ms;
	transfer_pump(r);
	return 0;
}

/* Nothing is proposed during a transfer, so the target catches up; then it is told to campaign,
 * again with each heartbeat because the message may be lost. */
void transfer_pump(struct raft *r)
{
	if (r->state != RAFT_LEADER || !r->transfer_to)
		return;
	struct peer *p = leader_peer(r, r->transfer_to);
	if (!p || !(raft_config_roles(&r->config, p->id) & RAFT_VOTER)) {
		r->transfer_to = 0;
		return;
	}
	if (p->match == log_last(&r->log))
		send_timeout_now(r, p->id);
}

void transfer_timeout_now(struct raft *r, const struct raft_message *m)
{
	append_heard(r);
	if (config_votes(&r->config, r->self) && !r->incoming.installing && output_state_durable(r))
		election_campaign(r, true);
}
