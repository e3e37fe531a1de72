/* SPDX-License-Identifier: Apache-2.0 */
/* Making a core, asking it. */
#include "cluster/raft/core.h"
#include <errno.h>

static const struct raft_settings profiles[] = {
	[RAFT_FAST] = { .heartbeat_ms = 15, .election_ms = 60 },
	[RAFT_LAN] = { .heartbeat_ms = 50, .election_ms = 200 },
	[RAFT_WAN] = { .heartbeat_ms = 300, .election_ms = 1500 },
};

struct raft_settings raft_profile(enum raft_profile profile)
{
	struct raft_settings s = profiles[profile];
	s.drift_permille = 50;
	s.append_bytes = 256 << 10;
	s.inflight_count = 128;
	s.inflight_bytes = 8 << 20;
	s.uncommitted_count = 65536;
	s.uncommitted_bytes = 32 << 20;
	s.chunk_bytes = 256 << 10;
	s.promote_lag = 1000;
	return s;
}

#define FIELD(f, low, high)                                                                        \
	{                                                                                          \
#f, offsetof(struct raft_settings, f), low, high                                   \
	}

static const struct {
	const char *name;
	size_t at;
	unsigned min, max;
} bounds[] = {
	FIELD(heartbeat_ms, 1, 60000),
	FIELD(election_ms, 10, 600000),
	FIELD(drift_permille, 0, 500),
	FIELD(append_bytes, 1, 64 << 20),
	FIELD(inflight_count, 1, RAFT_INFLIGHT_MAX),
	FIELD(inflight_bytes, 1, 1 << 30),
	FIELD(uncommitted_count, 2, 1 << 24),
	FIELD(uncommitted_bytes, 1, 1 << 30),
	FIELD(chunk_bytes, 1, RAFT_CHUNK_MAX),
	FIELD(promote_lag, 0, UINT32_MAX),
};

static int check_settings(const struct raft_settings *s, struct err *err)
{
	for (size_t i = 0; i < ARRAY_LEN(bounds); i++) {
		unsigned value;
		memcpy(&value, (const char *)s + bounds[i].at, sizeof(value));
		if (value < bounds[i].min || value > bounds[i].max)
			return err_set(err, -EINVAL, "raft setting %s is %u, allowed are %u to %u",
				       bounds[i].name, value, bounds[i].min, bounds[i].max);
	}
	if (s->election_ms < 3 * s->heartbeat_ms)
		return err_set(err, -EINVAL,
			       "raft setting election_ms is %u, needed are 3 heartbeats of %u",
			       s->election_ms, s->heartbeat_ms);
	return 0;
}

int raft_new(struct raft **ret, uint64_t self, const struct raft_settings *settings,
	     const struct rng *rng, struct err *err)
{
	if (self == 0)
		return err_set(err, -EINVAL, "raft: server id 0");
	int bad = check_settings(settings, err);
	if (bad < 0)
		return bad;
	struct raft *r = xcalloc(1, sizeof(*r));
	r->peers = xcalloc(RAFT_SERVERS_MAX, sizeof(*r->peers));
	r->self = self;
	r->settings = *settings;
	r->rng = *rng;
	*ret = r;
	return 0;
}

struct raft *raft_free(struct raft *r)
{
	if (!r)
		return NULL;
	log_deinit(&r->log);
	free(r->peers);
	free(r->reads);
	free(r->out);
	free(r->ready);
	free(r->staged);
	free(r);
	return NULL;
}

const char *raft_refusal_name(int refusal)
{
	static const char *const names[] = {
		[0] = "done",
		[RAFT_NOT_LEADER] = "not leader",
		[RAFT_FULL] = "full",
		[RAFT_NOT_READY] = "not ready",
		[RAFT_CHANGING] = "changing",
		[RAFT_LAGS] = "lags",
		[RAFT_UNKNOWN] = "unknown",
		[RAFT_TRANSFERRING] = "transferring",
		[RAFT_UNCHANGED] = "unchanged",
		[RAFT_TOO_LARGE] = "too large",
	};
	if (refusal < 0 || (size_t)refusal >= ARRAY_LEN(names))
		return "error";
	return names[refusal];
}

const char *raft_state_name(enum raft_state state)
{
	static const char *const names[] = {
		[RAFT_FOLLOWER] = "follower",
		[RAFT_PRE_CANDIDATE] = "pre-candidate",
		[RAFT_CANDIDATE] = "candidate",
		[RAFT_LEADER] = "leader",
	};
	return names[state];
}

uint64_t raft_self(const struct raft *r)
{
	return r->self;
}

uint64_t raft_term(const struct raft *r)
{
	return r->term;
}

uint64_t raft_vote(const struct raft *r)
{
	return r->vote;
}

enum raft_state raft_state(const struct raft *r)
{
	return r->state;
}

uint64_t raft_leader(const struct raft *r)
{
	return r->leader;
}

uint64_t raft_commit_index(const struct raft *r)
{
	return r->told;
}

uint64_t raft_first_index(const struct raft *r)
{
	return log_first(&r->log);
}

uint64_t raft_last_index(const struct raft *r)
{
	return log_last(&r->log);
}

uint64_t raft_durable_index(const struct raft *r)
{
	return r->log.durable;
}

const struct raft_entry *raft_entry(const struct raft *r, uint64_t index)
{
	return log_at(&r->log, index);
}

const struct raft_config *raft_config(const struct raft *r, uint64_t *ret_index)
{
	if (ret_index)
		*ret_index = r->config_index;
	return &r->config;
}

bool raft_config_committed(const struct raft *r)
{
	return r->config_index <= r->commit;
}

int raft_snapshot_meta(const struct raft *r, uint64_t index, struct raft_snapshot_meta *ret)
{
	struct raft_config buf;
	uint64_t config_index;

	if (index == 0 || index < r->snapshots[0].index || index > r->told)
		return -ENOENT;
	const struct raft_config *c = config_as_of(r, index, &buf, &config_index);
	*ret = (struct raft_snapshot_meta){ .index = index,
					    .term = log_term(&r->log, index),
					    .config_index = config_index,
					    .config = *c };
	return 0;
}

const struct raft_snapshot_meta *raft_snapshot(const struct raft *r)
{
	return &r->snapshots[0];
}

bool raft_snapshot_needed(const struct raft *r, uint64_t index)
{
	for (unsigned i = 0; i < r->snapshot_count; i++)
		if (r->snapshots[i].index == index)
			return true;
	return false;
}

bool raft_has_lease(const struct raft *r, uint64_t now_ms)
{
	return read_lease_holds(r, MAX(now_ms, r->now_ms));
}

bool raft_peer_info(const struct raft *r, uint64_t id, struct raft_peer_info *ret)
{
	const struct peer *p = leader_peer(r, id);
	if (!p)
		return false;
	*ret = (struct raft_peer_info){ .match = p->match,
					.next = p->next,
					.contact_ms = p->contacted ? p->contact_ms : 0,
					.snapshot = p->mode == PEER_SNAPSHOT,
					.snapshot_offset = p->snapshot.offset };
	if (!ret->snapshot)
		ret->snapshot_offset = 0;
	return true;
}
