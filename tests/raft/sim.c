/* SPDX-License-Identifier: Apache-2.0 */
/* Nodes: what a daemon does for its core, with virtual disks, clocks and messages. */
#include "sim.h"
#include <stdarg.h>

void sim_fail(struct sim *s, const char *fmt, ...)
{
	va_list args;
	va_start(args, fmt);
	vsnprintf(s->reason, sizeof(s->reason), fmt, args);
	va_end(args);
	longjmp(s->out, 1);
}

void sim_trace(struct sim *s, const struct node *n, const char *fmt, ...)
{
	if (!s->o.trace)
		return;
	va_list args;
	va_start(args, fmt);
	printf("%6lu n%lu ", s->now, n->id);
	vprintf(fmt, args);
	putchar('\n');
	va_end(args);
}

struct sim *sim_new(const struct options *o)
{
	struct sim *s = xcalloc(1, sizeof(*s));
	s->o = *o;
	s->log_cap = 4096;
	s->log = xcalloc(s->log_cap, sizeof(*s->log));
	s->matches = xcalloc(MATCH_SLOTS, sizeof(*s->matches));
	return s;
}

static void nodes_free(struct sim *s)
{
	for (unsigned i = 1; i <= NODES_MAX; i++) {
		s->nodes[i].r = raft_free(s->nodes[i].r);
		disk_free(&s->nodes[i]);
	}
	memset(s->nodes, 0, sizeof(s->nodes));
	net_clear(s);
}

struct sim *sim_free(struct sim *s)
{
	if (!s)
		return NULL;
	nodes_free(s);
	while (s->spare) {
		struct envelope *e = s->spare;
		s->spare = e->next;
		free(e);
	}
	free(s->log);
	free(s->matches);
	free(s);
	return NULL;
}

void sim_reset(struct sim *s, uint64_t seed)
{
	nodes_free(s);
	s->seed = seed;
	rng_seed(&s->rng, seed);
	s->now = 1000;
	s->isolate = 0;
	s->hunt = false;
	s->quiet = s->instant = s->manual_timers = false;
	memset(s->timer, 0, sizeof(s->timer));
	net_connect_all(s);
	check_reset(s);
	s->settings = raft_profile(RAFT_LAN);
	s->settings.election_ms = 100;
	s->settings.heartbeat_ms = 20;
	s->settings.promote_lag = 0;
	s->rates = (struct rates){ 0 };
	for (unsigned i = 1; i <= NODES_MAX; i++)
		s->nodes[i] = (struct node){ .id = i, .clock_rate = 1000, .hash = 7 };
}

void sim_bootstrap(struct sim *s, unsigned voters)
{
	struct raft_config c = { 0 };
	uint8_t body[RAFT_CONFIG_SIZE_MAX];
	struct raft_entry first;

	for (unsigned i = 1; i <= voters; i++)
		raft_config_set(&c, i, RAFT_VOTER);
	raft_bootstrap(&c, body, &first);
	s->log[0].hash = 7;
	for (unsigned i = 1; i <= s->o.nodes; i++) {
		struct node *n = &s->nodes[i];
		n->disk.snap.hash = 7;
		if (i <= voters) {
			n->disk.term = 1;
			n->disk.entries = xmalloc(64 * sizeof(first));
			n->disk.cap = 64;
			n->disk.first = n->disk.count = 1;
			/* The log holds entry data, the body is on the stack: take a held copy
			 * from a core that was given it. */
			struct raft *r;
			struct raft_update up;
			raft_new(&r, 1, &s->settings, &s->rng, NULL);
			struct raft_event ev = { .type = RAFT_START,
						 .start = {
						     .term = 1, .entries = &first, .count = 1 } };
			raft_step(r, &ev, &up, NULL);
			n->disk.entries[0] = *raft_entry(r, 1);
			raft_data_hold(n->disk.entries[0].data);
			raft_free(r);
		}
	}
}

uint64_t node_clock(const struct sim *s, const struct node *n)
{
	return n->clock_base + s->now * n->clock_rate / 1000;
}

static void trace_event(struct sim *s, struct node *n, const struct raft_event *ev)
{
	static const char *const names[] = { "",
					     "START",
					     "TICK",
					     "RECEIVE",
					     "PERSISTED",
					     "SNAPSHOT_TAKEN",
					     "SNAPSHOT_INSTALLED",
					     "PROPOSE",
					     "CHANGE",
					     "TRANSFER",
					     "READ",
					     "PEER_DOWN" };
	char text[160] = "";
	const struct raft_message *m = ev->receive;

	if (ev->type == RAFT_PERSISTED)
		snprintf(text, sizeof(text), "%lu", ev->persisted);
	if (ev->type == RAFT_RECEIVE && m->type == RAFT_MSG_VOTE)
		snprintf(text, sizeof(text), "%sVOTE last %lu^%lu%s", m->vote.pre ? "PRE-" : "",
			 m->vote.last_index, m->vote.last_term,
			 m->vote.transfer ? " transfer" : "");
	else if (ev->type == RAFT_RECEIVE && m->type == RAFT_MSG_VOTE_REPLY)
		snprintf(text, sizeof(text), "%sVOTE_REPLY result %d asked %lu",
			 m->vote_reply.pre ? "PRE-" : "", (int)m->vote_reply.result,
			 m->vote_reply.asked_term);
	else if (ev->type == RAFT_RECEIVE && m->type == RAFT_MSG_APPEND)
		snprintf(text, sizeof(text), "APPEND prev %lu^%lu count %u commit %lu round %lu",
			 m->append.prev_index, m->append.prev_term, m->append.count,
			 m->append.commit, m->append.round);
	else if (ev->type == RAFT_RECEIVE && m->type == RAFT_MSG_APPEND_REPLY)
		snprintf(text, sizeof(text),
			 "APPEND_REPLY result %d match %lu prev %lu hint %lu^%lu",
			 (int)m->append_reply.result, m->append_reply.match, m->append_reply.prev,
			 m->append_reply.hint, m->append_reply.hint_term);
	else if (ev->type == RAFT_RECEIVE && m->type == RAFT_MSG_SNAPSHOT)
		snprintf(text, sizeof(text), "SNAPSHOT %lu^%lu bytes %lu+%u of %lu",
			 m->chunk.snapshot.index, m->chunk.snapshot.term, m->chunk.offset,
			 m->chunk.len, m->chunk.snapshot.size_bytes);
	else if (ev->type == RAFT_RECEIVE && m->type == RAFT_MSG_SNAPSHOT_REPLY)
		snprintf(text, sizeof(text), "SNAPSHOT_REPLY result %d index %lu offset %lu%s",
			 (int)m->chunk_reply.result, m->chunk_reply.index, m->chunk_reply.offset,
			 m->chunk_reply.done ? " done" : "");
	else if (ev->type == RAFT_RECEIVE)
		snprintf(text, sizeof(text), "TIMEOUT_NOW");
	if (ev->type == RAFT_RECEIVE)
		sim_trace(s, n, "<- n%lu t%lu %s", m->from, m->term, text);
	else
		sim_trace(s, n, "%s %s", names[ev->type], text);
}

static void trace_result(struct sim *s, struct node *n, const struct raft_update *up, int result)
{
	if (result)
		sim_trace(s, n, "   refused: %s", raft_refusal_name(result));
	if (up->write.number)
		sim_trace(s, n, "   write %lu: term %lu vote %lu truncate %lu entries %lu at %lu",
			  up->write.number, up->write.term, up->write.vote, up->write.truncate_from,
			  up->write.count, up->write.count ? up->write.entries[0].index : 0);
	if (up->state_changed)
		sim_trace(s, n, "   %s term %lu leader %lu log %lu..%lu durable %lu commit %lu",
			  raft_state_name(up->state), up->term, up->leader, raft_first_index(n->r),
			  raft_last_index(n->r), raft_durable_index(n->r), up->commit_index);
	if (!up->config_changed)
		return;
	const struct raft_config *c = raft_config(n->r, NULL);
	for (unsigned i = 0; i < c->count; i++)
		sim_trace(s, n, "   config: n%lu%s%s%s", c->servers[i].id,
			  c->servers[i].roles & RAFT_VOTER ? " voter" : "",
			  c->servers[i].roles & RAFT_VOTER_OLD ? " old voter" : "",
			  c->servers[i].roles & RAFT_LEARNER ? " learner" : "");
}

static void take_chunk(struct sim *s, struct node *n, const struct raft_update *up)
{
	if (!up->chunk.present)
		return;
	if (n->installing_due)
		sim_fail(s, "CHUNK node %lu gets a piece while it installs", n->id);
	if (up->chunk.first)
		n->incoming_len = 0;
	if (up->chunk.offset != n->incoming_len ||
	    n->incoming_len + up->chunk.len > sizeof(n->incoming))
		sim_fail(s, "CHUNK node %lu gets offset %lu after %zu", n->id, up->chunk.offset,
			 n->incoming_len);
	memcpy(n->incoming + n->incoming_len, up->chunk.data, up->chunk.len);
	n->incoming_len += up->chunk.len;
	if (!up->chunk.last)
		return;
	n->installing = (struct snap){ .meta = up->chunk.snapshot };
	if (n->incoming_len != up->chunk.snapshot.size_bytes || !snap_read(n, &n->installing))
		sim_fail(s, "CHUNK node %lu received a snapshot that is a mixture", n->id);
	if (n->installing.meta.index <= n->applied)
		sim_fail(s, "INSTALL node %lu gets snapshot %lu, applied is %lu", n->id,
			 n->installing.meta.index, n->applied);
	n->installing_due = s->now + (s->instant ? 1 : 1 + rng_below(&s->rng, 80));
}

static void apply(struct sim *s, struct node *n, const struct raft_update *up)
{
	n->commit = up->commit_index;
	while (n->applied < n->commit) {
		const struct raft_entry *e = raft_entry(n->r, n->applied + 1);
		if (!e)
			sim_fail(s, "HOLE node %lu commits %lu, entry %lu is not there", n->id,
				 n->commit, n->applied + 1);
		check_applied(s, n, e);
		n->applied++;
	}
}

int node_step(struct sim *s, struct node *n, struct raft_event *ev)
{
	struct raft_update up;
	struct err err = { 0 };

	ev->now_ms = node_clock(s, n);
	s->stats.steps++;
	if (s->o.trace)
		trace_event(s, n, ev);
	int result = raft_step(n->r, ev, &up, &err);
	if (s->o.trace)
		trace_result(s, n, &up, result);
	if (result < 0)
		sim_fail(s, "ERROR node %lu: %s", n->id, err.msg);
	check_update(s, n, &up);
	if (up.write.number)
		disk_write(s, n, &up.write);
	for (size_t i = 0; i < up.message_count; i++) {
		check_message_out(s, n, &up.messages[i]);
		net_post(s, n, &up.messages[i]);
	}
	apply(s, n, &up);
	take_chunk(s, n, &up);
	for (size_t i = 0; i < up.read_count; i++)
		check_read(s, n, &up.reads[i]);
	n->state = up.state;
	n->deadline = up.deadline_ms;
	unsigned kept = 0;
	for (unsigned i = 0; i < n->kept_count; i++)
		if (raft_snapshot_needed(n->r, n->kept[i].meta.index))
			n->kept[kept++] = n->kept[i];
	n->kept_count = kept;
	return result;
}

void node_start(struct sim *s, struct node *n)
{
	struct err err = { 0 };
	struct rng rng;

	sim_trace(s, n, "START term %lu vote %lu snapshot %lu^%lu log %lu..%lu", n->disk.term,
		  n->disk.vote, n->disk.snap.meta.index, n->disk.snap.meta.term,
		  n->disk.count ? n->disk.first : 0, disk_last(&n->disk));
	rng_seed(&rng, rng_next(&s->rng));
	/* A monotonic clock begins anywhere. */
	n->clock_base = rng_below(&s->rng, 100000);
	if (raft_new(&n->r, n->id, &s->settings, &rng, &err) < 0)
		sim_fail(s, "ERROR node %lu: %s", n->id, err.msg);
	n->applied = n->commit = n->disk.snap.meta.index;
	n->hash = n->disk.snap.hash;
	n->kept_count = 0;
	if (n->applied)
		n->kept[n->kept_count++] = n->disk.snap;
	n->op_due = 0;
	n->paused_until = 0;
	struct raft_event ev = { .type = RAFT_START,
				 .start = { .term = n->disk.term,
					    .vote = n->disk.vote,
					    .snapshot = n->disk.snap.meta,
					    .entries = n->disk.entries,
					    .count = n->disk.count } };
	node_step(s, n, &ev);
}

void node_crash(struct sim *s, struct node *n)
{
	sim_trace(s, n, "CRASH");
	disk_crash(s, n);
	n->r = raft_free(n->r);
	s->stats.crashes++;
}

/* ---- snapshots ---- */

void node_take_snapshot(struct sim *s, struct node *n)
{
	if (n->taking_due || n->installing_due || n->applied <= raft_snapshot(n->r)->index)
		return;
	n->taking = (struct snap){ .hash = n->hash, .salt = rng_next(&s->rng) };
	if (raft_snapshot_meta(n->r, n->applied, &n->taking.meta) < 0)
		sim_fail(s, "META node %lu has none for its applied index", n->id);
	n->taking.meta.size_bytes = 16 + rng_below(&s->rng, 100);
	n->taking_due = s->now + (s->instant ? 1 : 1 + rng_below(&s->rng, 60));
}

static void snapshot_taken(struct sim *s, struct node *n)
{
	const struct snap *snap = &n->taking;
	uint64_t keep = rng_chance(&s->rng, 500) ? 0 : rng_below(&s->rng, s->rates.keep + 1);

	n->taking_due = 0;
	if (snap->meta.index <= n->disk.snap.meta.index)
		return; /* one from the leader came first */
	s->stats.snapshots++;
	n->disk.snap = *snap;
	if (n->kept_count == SNAPS_MAX)
		sim_fail(s, "SNAPSHOTS node %lu keeps too many", n->id);
	n->kept[n->kept_count++] = *snap;
	struct raft_event ev = { .type = RAFT_SNAPSHOT_TAKEN,
				 .taken = { .index = snap->meta.index,
					    .size_bytes = snap->meta.size_bytes,
					    .keep = keep } };
	node_step(s, n, &ev);
	if (rng_chance(&s->rng, 700))
		disk_trim(n, raft_first_index(n->r));
}

static void snapshot_installed(struct sim *s, struct node *n)
{
	const struct snap *snap = &n->installing;
	bool failed = !s->quiet && !s->instant && rng_chance(&s->rng, 100);

	n->installing_due = 0;
	if (!failed) {
		if (snap->meta.index > s->committed || snap->hash != s->log[snap->meta.index].hash)
			sim_fail(s, "STATE of snapshot %lu on node %lu differs", snap->meta.index,
				 n->id);
		s->stats.installs++;
		n->disk.snap = *snap;
		n->applied = snap->meta.index;
		n->commit = snap->meta.index;
		n->hash = snap->hash;
		n->kept[0] = *snap;
		n->kept_count = 1;
	}
	struct raft_event ev = { .type = RAFT_SNAPSHOT_INSTALLED,
				 .installed = { .index = snap->meta.index, .failed = failed } };
	node_step(s, n, &ev);
}

/* ---- what users do ---- */

bool node_propose(struct sim *s, struct node *n, unsigned count)
{
	uint8_t bodies[8][64];
	struct span commands[8];

	for (unsigned i = 0; i < count; i++) {
		uint64_t value = ++s->value;
		memset(bodies[i], (int)(value % 251), sizeof(bodies[i]));
		memcpy(bodies[i], &value, sizeof(value));
		commands[i] = (struct span){ bodies[i], 8 + rng_below(&s->rng, 40) };
	}
	struct raft_event ev = { .type = RAFT_PROPOSE,
				 .propose = { .commands = commands, .count = count } };
	return node_step(s, n, &ev) == 0;
}

void node_read(struct sim *s, struct node *n, bool lease)
{
	if (s->read_count == ARRAY_LEN(s->reads))
		return;
	uint64_t id = ++s->read_id;
	struct raft_event ev = { .type = RAFT_READ, .read = { .id = id, .lease = lease } };

	s->reads[s->read_count++] = (struct pending_check){ id, s->committed };
	s->stats.reads++;
	s->stats.lease_reads += lease && raft_has_lease(n->r, node_clock(s, n));
	if (node_step(s, n, &ev) != 0)
		s->read_count--;
}

int node_change(struct sim *s, struct node *n, const struct raft_config *target)
{
	struct raft_event ev = { .type = RAFT_CHANGE, .change = target };
	int result = node_step(s, n, &ev);
	s->stats.changes += result == 0;
	return result;
}

int node_transfer(struct sim *s, struct node *n, uint64_t to)
{
	struct raft_event ev = { .type = RAFT_TRANSFER, .transfer = to };
	int result = node_step(s, n, &ev);
	s->stats.transfers += result == 0;
	return result;
}

/* ---- time ---- */

void node_drive(struct sim *s, struct node *n)
{
	if (!n->r || n->paused_until > s->now)
		return;
	disk_complete(s, n);
	if (n->taking_due && n->taking_due <= s->now)
		snapshot_taken(s, n);
	if (n->installing_due && n->installing_due <= s->now)
		snapshot_installed(s, n);
	if (node_clock(s, n) < n->deadline || (s->manual_timers && !s->timer[n->id]))
		return;
	struct raft_event ev = { .type = RAFT_TICK };
	node_step(s, n, &ev);
}

void sim_ms(struct sim *s)
{
	for (unsigned i = 1; i <= s->o.nodes; i++)
		node_drive(s, &s->nodes[i]);
	net_deliver(s);
	s->now++;
}

struct node *sim_leader(struct sim *s)
{
	struct node *best = NULL;
	for (unsigned i = 1; i <= s->o.nodes; i++) {
		struct node *n = &s->nodes[i];
		if (n->r && raft_state(n->r) == RAFT_LEADER &&
		    (!best || raft_term(n->r) > raft_term(best->r)))
			best = n;
	}
	return best;
}
