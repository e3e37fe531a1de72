/* SPDX-License-Identifier: Apache-2.0 */
/* Reads without log entries (§6.4): by confirming leadership with a round of heartbeats that began
 * after the read came, or by a lease. Either way the read sees everything up to `index`, which
 * covers the no-op of this term: before that is committed a leader does not know the commit index.
 */
#include "cluster/raft/core.h"
#include <assert.h>

static uint64_t confirmed_round(const struct raft *r)
{
	uint64_t round[RAFT_SERVERS_MAX];
	for (unsigned i = 0; i < r->config.count; i++)
		round[i] = r->config.servers[i].id == r->self ? r->round : r->peers[i].round;
	return config_quorum(&r->config, round);
}

bool read_lease_holds(const struct raft *r, uint64_t now_ms)
{
	if (r->state != RAFT_LEADER || !r->settings.lease || r->lease_off)
		return false;
	uint64_t began[RAFT_SERVERS_MAX];
	for (unsigned i = 0; i < r->config.count; i++)
		began[i] = r->config.servers[i].id == r->self ? now_ms : r->peers[i].round_ms;
	uint64_t from = config_quorum(&r->config, began);
	/* A voter counts election_ms on its own clock from when it heard the round, which is not
	 * before the round began. Two milliseconds for rounding on both sides. */
	uint64_t lease_ms =
	    (uint64_t)r->settings.election_ms * 1000 / (1000 + r->settings.drift_permille) - 2;
	return from > 0 && now_ms < from + lease_ms;
}

/* Begin a round for the reads that wait, unless one is on its way already. */
static void begin_round(struct raft *r)
{
	if (r->read_count && r->reads[r->read_count - 1].round > r->round &&
	    confirmed_round(r) >= r->round)
		leader_round(r);
}

int read_begin(struct raft *r, uint64_t id, bool lease)
{
	if (r->state != RAFT_LEADER)
		return RAFT_NOT_LEADER;
	uint64_t index = MAX(r->commit, r->term_start);
	if ((lease && read_lease_holds(r, r->now_ms)) || planted(PLANT_READ_UNCONFIRMED)) {
		output_read(r, id, index, true);
		return 0;
	}
	if (r->read_count == RAFT_READS_MAX)
		return RAFT_FULL;
	if (r->read_count == r->read_cap) {
		r->read_cap = r->read_cap ? r->read_cap * 2 : 16;
		r->reads = xrealloc(r->reads, r->read_cap * sizeof(*r->reads));
	}
	r->reads[r->read_count++] =
	    (struct pending_read){ .id = id, .index = index, .round = r->round + 1 };
	begin_round(r);
	read_confirm(r);
	return 0;
}

void read_confirm(struct raft *r)
{
	if (r->state != RAFT_LEADER || r->read_count == 0)
		return;
	uint64_t round = confirmed_round(r);
	size_t done = 0;
	while (done < r->read_count && r->reads[done].round <= round) {
		output_read(r, r->reads[done].id, r->reads[done].index, true);
		done++;
	}
	r->read_count -= done;
	memmove(r->reads, r->reads + done, r->read_count * sizeof(*r->reads));
	begin_round(r);
}

void read_fail_all(struct raft *r)
{
	for (size_t i = 0; i < r->read_count; i++)
		output_read(r, r->reads[i].id, 0, false);
	r->read_count = 0;
}
