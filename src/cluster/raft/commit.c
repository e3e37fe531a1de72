/* SPDX-License-Identifier: Apache-2.0 */
/* The leader: taking office, its peers, what is committed. */
#include "cluster/raft/core.h"
#include <assert.h>
#include <errno.h>

struct peer *leader_peer(const struct raft *r, uint64_t id)
{
	if (r->state != RAFT_LEADER || id == r->self)
		return NULL;
	for (unsigned i = 0; i < r->config.count; i++)
		if (r->config.servers[i].id == id)
			return &r->peers[i];
	return NULL;
}

/* The configuration changed: peers that stay keep what is known of them. */
void leader_peers_rebuild(struct raft *r, const struct raft_config *old)
{
	struct peer *was = r->peers;

	r->peers = xcalloc(RAFT_SERVERS_MAX, sizeof(*r->peers));
	for (unsigned i = 0; i < r->config.count; i++) {
		uint64_t id = r->config.servers[i].id;
		peer_init(r, &r->peers[i], id);
		for (unsigned j = 0; j < old->count; j++)
			if (old->servers[j].id == id)
				r->peers[i] = was[j];
	}
	free(was);
	snapshot_release(r);
}

/* Append one entry of the own term; takes over a hold of `data`. */
void leader_append(struct raft *r, enum raft_entry_type type, const uint8_t *data, size_t len)
{
	if (log_reserve(&r->log, 1) < 0)
		abort(); /* a few bytes; as xmalloc() */
	struct raft_entry e = { .index = log_last(&r->log) + 1,
				.term = r->term,
				.type = type,
				.len = (uint32_t)len,
				.data = data };
	output_append(r, &e);
	r->uncommitted_bytes += len;
}

static void pump_all(struct raft *r)
{
	for (unsigned i = 0; i < r->config.count && r->state == RAFT_LEADER; i++)
		if (r->config.servers[i].id != r->self)
			peer_pump(r, &r->peers[i]);
}

void leader_round(struct raft *r)
{
	r->round++;
	r->round_began_ms[r->round % ROUNDS_KEPT] = r->now_ms;
	for (unsigned i = 0; i < r->config.count; i++)
		if (r->config.servers[i].id != r->self)
			peer_heartbeat(r, &r->peers[i]);
}

void leader_become(struct raft *r)
{
	assert(r->state != RAFT_LEADER && output_state_durable(r));
	r->state = RAFT_LEADER;
	r->leader = r->self;
	r->incoming.active = false;
	r->elected_ms = r->now_ms;
	r->heartbeat_ms = r->now_ms + r->settings.heartbeat_ms;
	r->round = 0;
	memset(r->round_began_ms, 0, sizeof(r->round_began_ms));
	r->transfer_to = 0;
	r->lease_off = false;
	r->uncommitted_bytes = 0;
	for (uint64_t i = r->commit + 1; i <= log_last(&r->log); i++)
		r->uncommitted_bytes += log_at(&r->log, i)->len;
	for (unsigned i = 0; i < r->config.count; i++)
		peer_init(r, &r->peers[i], r->config.servers[i].id);
	/* Only an entry of the own term can be committed by counting, and it takes those before
	 * it along (§3.6.2, §6.4). */
	leader_append(r, RAFT_NOOP, NULL, 0);
	r->term_start = log_last(&r->log);
	r->round = 1;
	r->round_began_ms[1] = r->now_ms;
	pump_all(r);
	leader_commit(r);
}

/* Step down when no majority answered for an election timeout (§6.2). */
static bool quorum_is_live(const struct raft *r)
{
	uint64_t heard[RAFT_SERVERS_MAX];
	for (unsigned i = 0; i < r->config.count; i++)
		heard[i] = r->config.servers[i].id == r->self ? r->now_ms : r->peers[i].contact_ms;
	return r->now_ms - config_quorum(&r->config, heard) <= r->settings.election_ms;
}

void leader_tick(struct raft *r)
{
	if (r->transfer_to && r->now_ms >= r->transfer_until_ms)
		r->transfer_to = 0; /* it did not happen: serve on */
	if (r->now_ms < r->heartbeat_ms)
		return;
	r->heartbeat_ms = r->now_ms + r->settings.heartbeat_ms;
	if (!quorum_is_live(r)) {
		follower_become(r, r->term, 0);
		return;
	}
	leader_round(r);
	transfer_pump(r);
	/* A sole voter needs nobody's answer. */
	read_confirm(r);
}

void leader_commit(struct raft *r)
{
	uint64_t match[RAFT_SERVERS_MAX];
	for (unsigned i = 0; i < r->config.count; i++)
		match[i] = r->config.servers[i].id == r->self ? r->log.durable : r->peers[i].match;
	uint64_t to = config_quorum(&r->config, match);
	if (to <= r->commit)
		return;
	/* Figure 3.7 ("Figure 8" of the paper): counting commits only entries of this term. */
	if (log_term(&r->log, to) != r->term && !planted(PLANT_COMMIT_OLD_TERM))
		return;
	assert(to <= log_last(&r->log));
	for (uint64_t i = r->commit + 1; i <= to; i++)
		r->uncommitted_bytes -= log_at(&r->log, i)->len;
	r->commit = to;
	membership_committed(r);
	pump_all(r);
}

static int propose_check(const struct raft *r, const struct span *commands, unsigned count,
			 struct err *err)
{
	uint64_t bytes = 0;

	if (count == 0 || count > RAFT_BATCH_MAX)
		return err_set(err, -EINVAL, "propose: %u commands, 1 to %u are allowed", count,
			       RAFT_BATCH_MAX);
	if (r->state != RAFT_LEADER)
		return RAFT_NOT_LEADER;
	if (r->transfer_to)
		return RAFT_TRANSFERRING;
	for (unsigned i = 0; i < count; i++) {
		if (commands[i].len > RAFT_DATA_MAX)
			return RAFT_TOO_LARGE;
		bytes += commands[i].len;
	}
	if (bytes > r->settings.uncommitted_bytes || count > r->settings.uncommitted_count)
		return RAFT_TOO_LARGE;
	if (r->uncommitted_bytes + bytes > r->settings.uncommitted_bytes ||
	    log_last(&r->log) - r->commit + count > r->settings.uncommitted_count)
		return RAFT_FULL;
	return 0;
}

int leader_propose(struct raft *r, const struct raft_event *ev, struct err *err)
{
	const struct span *commands = ev->propose.commands;
	unsigned count = ev->propose.count;
	int result = propose_check(r, commands, count, err);
	if (result != 0)
		return result;
	if (r->staged_cap < count) {
		const uint8_t **staged = realloc(r->staged, count * sizeof(*staged));
		if (!staged)
			return err_set(err, -ENOMEM, "propose: out of memory");
		r->staged = staged;
		r->staged_cap = count;
	}
	if (log_reserve(&r->log, count) < 0)
		return err_set(err, -ENOMEM, "propose: out of memory");
	for (unsigned i = 0; i < count; i++)
		if (data_copy(commands[i].at, commands[i].len, &r->staged[i]) < 0) {
			while (i-- > 0)
				raft_data_drop(r->staged[i]);
			return err_set(err, -ENOMEM, "propose: out of memory");
		}
	r->up->proposed.index = log_last(&r->log) + 1;
	r->up->proposed.term = r->term;
	for (unsigned i = 0; i < count; i++)
		leader_append(r, RAFT_COMMAND, r->staged[i], commands[i].len);
	pump_all(r);
	return 0;
}
