/* SPDX-License-Identifier: Apache-2.0 */
/* One run: rates, settings and faults from the seed; then no faults any more, and within
 * HEAL_ELECTIONS election timeouts the cluster must commit again and all members must agree. To
 * that comes the time to carry the backlog through the window, which may be one entry at a time. */
#include "sim.h"

enum {
	HEAL_ELECTIONS = 40,
	ROUND_TRIP_MS = 40, /* two messages and a write at their slowest, without faults */
};

static unsigned up_to(struct sim *s, unsigned most)
{
	return (unsigned)rng_below(&s->rng, most + 1);
}

/* Often none at all, so that each kind of fault is also seen alone. */
static unsigned some(struct sim *s, unsigned most)
{
	return rng_chance(&s->rng, 250) ? 0 : up_to(s, most);
}

static void draw_settings(struct sim *s)
{
	struct raft_settings *set = &s->settings;

	set->election_ms = 60 + up_to(s, 100);
	set->heartbeat_ms = 10 + up_to(s, 10);
	set->lease = rng_chance(&s->rng, 500);
	set->drift_permille = up_to(s, 100);
	set->append_bytes = 1 + up_to(s, rng_chance(&s->rng, 500) ? 200 : 4000);
	set->inflight_count = 1 + up_to(s, 20);
	set->inflight_bytes = 1 + up_to(s, 8000);
	set->uncommitted_count = 8 + up_to(s, 200);
	set->uncommitted_bytes = 200 + up_to(s, 8000);
	set->chunk_bytes = 4 + up_to(s, 80);
	set->promote_lag = rng_chance(&s->rng, 500) ? 0 : 5 + up_to(s, 40);
}

/* Much reading, long leases, quick elections and leaders cut off: where a lease could go wrong. */
static void hunt_leases(struct sim *s)
{
	s->hunt = true;
	s->settings.lease = rng_chance(&s->rng, 800);
	s->settings.election_ms = 160;
	s->settings.heartbeat_ms = 10 + up_to(s, 40);
	s->rates.read = 500;
	s->rates.propose = 300;
	s->rates.transfer = some(s, 4000);
	s->rates.crash = some(s, 400);
	s->rates.cut = some(s, 2000);
	s->rates.hint = some(s, 2000);
	s->rates.slow_disk = 0;
}

static void draw_rates(struct sim *s)
{
	s->rates = (struct rates){ .loss = some(s, 100),
				   .duplicate = some(s, 60),
				   .late = some(s, 60),
				   .crash = some(s, 800),
				   .cut = some(s, 900),
				   .cut_one_way = some(s, 900),
				   .heal = 200 + up_to(s, 1000),
				   .pause = some(s, 300),
				   .transfer = some(s, 400),
				   .change = some(s, 4000),
				   .hint = some(s, 400),
				   .propose = 10 + up_to(s, 400),
				   .read = some(s, 200),
				   .slow_disk = some(s, 100),
				   .snapshot_every = 3 + up_to(s, 40),
				   .keep = up_to(s, 12) };
	if (rng_chance(&s->rng, 250))
		hunt_leases(s);
}

static bool happens(struct sim *s, unsigned per_100000)
{
	return rng_below(&s->rng, 100000) < per_100000;
}

static void hint_all(struct sim *s, uint64_t down)
{
	for (unsigned i = 1; i <= s->o.nodes; i++) {
		struct node *n = &s->nodes[i];
		if (i == down || !n->r || n->paused_until > s->now || rng_chance(&s->rng, 400))
			continue;
		struct raft_event ev = { .type = RAFT_PEER_DOWN, .peer_down = down };
		node_step(s, n, &ev);
	}
}

static void cut(struct sim *s)
{
	char digits[NODES_MAX];
	for (unsigned i = 0; i < s->o.nodes; i++)
		digits[i] = rng_chance(&s->rng, 350) ? '1' : rng_chance(&s->rng, 150) ? '2' : '0';
	net_groups(s, digits);
}

/* Cut a leader off that holds a lease while somebody campaigns against it. */
static void hunt(struct sim *s)
{
	struct node *leader = sim_leader(s);
	bool campaign = false;

	if (!leader || !raft_has_lease(leader->r, node_clock(s, leader)))
		return;
	for (unsigned i = 1; i <= s->o.nodes; i++)
		campaign |= s->nodes[i].r && s->nodes[i].state == RAFT_CANDIDATE;
	if (campaign && rng_chance(&s->rng, 100)) {
		s->isolate = leader->id;
		s->isolate_at = s->now;
	}
}

static void network_faults(struct sim *s)
{
	if (s->hunt)
		hunt(s);
	if (happens(s, s->rates.cut))
		cut(s);
	if (happens(s, s->rates.cut_one_way)) {
		uint64_t a = 1 + rng_below(&s->rng, s->o.nodes);
		uint64_t b = 1 + rng_below(&s->rng, s->o.nodes);
		s->blocked[a][b] = a != b;
	}
	if (happens(s, s->rates.heal))
		net_connect_all(s);
	if (s->isolate && s->now >= s->isolate_at) {
		for (unsigned i = 1; i <= s->o.nodes; i++)
			s->blocked[s->isolate][i] = s->blocked[i][s->isolate] = i != s->isolate;
		s->isolate = 0;
	}
}

static void node_faults(struct sim *s, struct node *n)
{
	if (!n->r) {
		if (s->now >= n->restart_at)
			node_start(s, n);
		return;
	}
	if (happens(s, s->rates.crash)) {
		node_crash(s, n);
		n->restart_at = s->now + rng_below(&s->rng, 300);
		if (s->rates.hint)
			hint_all(s, n->id);
	} else if (happens(s, s->rates.pause)) {
		n->paused_until = s->now + rng_below(&s->rng, 400);
	} else if (happens(s, s->rates.hint)) {
		hint_all(s, n->id);
	}
}

/* Any set of voters and learners, mostly close to the present one. */
static void change(struct sim *s, struct node *n)
{
	struct raft_config c = *raft_config(n->r, NULL);
	unsigned edits = rng_chance(&s->rng, 700) ? 1 : 1 + up_to(s, 3);

	for (unsigned i = 0; i < c.count;) {
		c.servers[i].roles &= ~(unsigned)RAFT_VOTER_OLD;
		if (c.servers[i].roles)
			i++;
		else
			raft_config_remove(&c, c.servers[i].id);
	}
	while (edits-- > 0) {
		uint64_t id = 1 + rng_below(&s->rng, s->o.nodes);
		unsigned choice = up_to(s, 9);
		if (choice < 5)
			raft_config_set(&c, id, RAFT_VOTER);
		else if (choice < 8)
			raft_config_set(&c, id, RAFT_LEARNER);
		else
			raft_config_remove(&c, id);
	}
	unsigned voters = 0;
	for (unsigned i = 0; i < c.count; i++)
		voters += c.servers[i].roles == RAFT_VOTER;
	if (voters > 0)
		node_change(s, n, &c);
}

/* A leader that is cut off just after it named an heir is the hardest test of its lease. */
static void transfer(struct sim *s, struct node *n)
{
	uint64_t to = rng_chance(&s->rng, 500) ? 0 : 1 + up_to(s, s->o.nodes - 1);
	if (node_transfer(s, n, to) == 0 && rng_chance(&s->rng, 300)) {
		s->isolate = n->id;
		s->isolate_at = s->now + up_to(s, 30);
	}
}

static void users(struct sim *s, struct node *n)
{
	if (!n->r || n->paused_until > s->now)
		return;
	if (raft_state(n->r) == RAFT_LEADER) {
		if (rng_chance(&s->rng, s->rates.propose))
			node_propose(s, n, 1 + up_to(s, 3));
		if (rng_chance(&s->rng, s->rates.read))
			node_read(s, n, rng_chance(&s->rng, 500));
		if (s->o.member && happens(s, s->rates.change))
			change(s, n);
		if (happens(s, s->rates.transfer))
			transfer(s, n);
	}
	if (n->applied > raft_snapshot(n->r)->index + s->rates.snapshot_every &&
	    rng_chance(&s->rng, 150))
		node_take_snapshot(s, n);
}

static void fault_ms(struct sim *s)
{
	network_faults(s);
	for (unsigned i = 1; i <= s->o.nodes; i++) {
		node_faults(s, &s->nodes[i]);
		node_drive(s, &s->nodes[i]);
		users(s, &s->nodes[i]);
	}
	net_deliver(s);
	s->now++;
}

/* ---- after the faults ---- */

static bool all_agree(struct sim *s)
{
	struct node *leader = sim_leader(s);
	if (!leader || !raft_config_committed(leader->r))
		return false;
	const struct raft_config *c = raft_config(leader->r, NULL);
	if (raft_config_is_joint(c))
		return false;
	for (unsigned i = 0; i < c->count; i++) {
		const struct node *n = &s->nodes[c->servers[i].id];
		if (!n->r || n->applied != s->committed || n->hash != s->log[s->committed].hash ||
		    raft_last_index(n->r) != s->committed)
			return false;
	}
	return true;
}

static uint64_t backlog_ms(const struct sim *s)
{
	uint64_t last = 0, applied = UINT64_MAX;
	for (unsigned i = 1; i <= s->o.nodes; i++) {
		last = MAX(last, raft_last_index(s->nodes[i].r));
		applied = MIN(applied, s->nodes[i].applied);
	}
	uint64_t window = MIN(s->settings.inflight_count,
			      s->settings.inflight_bytes / s->settings.append_bytes + 1);
	return (last - applied) / window * ROUND_TRIP_MS;
}

static void heal(struct sim *s)
{
	uint64_t from = s->now, mark = 0;

	s->quiet = true;
	net_connect_all(s);
	for (unsigned i = 1; i <= s->o.nodes; i++) {
		s->nodes[i].paused_until = 0;
		if (!s->nodes[i].r)
			node_start(s, &s->nodes[i]);
	}
	uint64_t limit = from + (uint64_t)HEAL_ELECTIONS * s->settings.election_ms + backlog_ms(s);
	/* First a new entry must be committed, then everybody must have it. */
	uint64_t before = s->committed;
	while (s->now < limit) {
		struct node *leader = sim_leader(s);
		if (!mark && leader && s->now % 10 == 0 && node_propose(s, leader, 1) &&
		    raft_state(leader->r) == RAFT_LEADER && s->committed > before + 5)
			mark = s->committed;
		if (mark && all_agree(s))
			break;
		for (unsigned i = 1; i <= s->o.nodes; i++) {
			struct node *n = &s->nodes[i];
			if (n->r &&
			    n->applied > raft_snapshot(n->r)->index + s->rates.snapshot_every)
				node_take_snapshot(s, n);
		}
		sim_ms(s);
	}
	if (s->now >= limit)
		sim_fail(s, "STALL %s within %lu ms after healing, the election timeout is %u ms",
			 mark ? "the members do not agree" : "nothing new was committed",
			 limit - from, s->settings.election_ms);
	s->stats.heal_ms_sum += s->now - from;
	s->stats.heal_ms_max = MAX(s->stats.heal_ms_max, s->now - from);
}

void random_run(struct sim *s)
{
	draw_settings(s);
	draw_rates(s);
	for (unsigned i = 1; i <= s->o.nodes; i++)
		s->nodes[i].clock_rate = 1000 + up_to(s, s->settings.drift_permille);
	sim_bootstrap(s, s->o.voters);
	for (unsigned i = 1; i <= s->o.nodes; i++)
		node_start(s, &s->nodes[i]);
	uint64_t end = s->now + s->o.ms;
	while (s->now < end)
		fault_ms(s);
	heal(s);
}
