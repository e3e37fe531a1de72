/* SPDX-License-Identifier: Apache-2.0 */
/* A cluster of Raft cores in one process and on one virtual clock, all of it made from one seed.
 *
 * sim.c    nodes: carries events in and updates out, as a daemon would
 * disk.c   what a node has on its disk, what is on the way there, what a crash leaves of it
 * net.c    messages: lost, doubled, late, cut off
 * check.c  what must hold after each step
 * random.c one run with faults drawn from the seed, then healing
 *
 * A broken invariant ends the run through sim_fail(). */
#pragma once
#include "base/rng.h"
#include "cluster/raft/raft.h"
#include <setjmp.h>
#include <stdio.h>

enum {
	NODES_MAX = 9,
	RING = 4096, /* ms that a message may take at most */
	SNAPS_MAX = 8,
	MATCH_SLOTS = 1 << 17,
	TERMS_MAX = 1 << 16,
};

struct snap {
	struct raft_snapshot_meta meta;
	uint64_t hash; /* of the state at meta.index */
	uint64_t salt; /* makes the bytes of two nodes' snapshots differ */
};

/* Durable part of a node; index of entries[0] is first. */
struct disk {
	uint64_t term, vote;
	struct snap snap;
	struct raft_entry *entries;
	uint64_t first;
	size_t count, cap;
};

struct disk_op {
	struct disk_op *next;
	uint64_t due;
	uint64_t number;
	bool has_state;
	uint64_t term, vote, truncate_from;
	struct raft_entry *entries;
	size_t count;
};

struct node {
	uint64_t id;
	struct raft *r; /* NULL while down */
	uint64_t restart_at, paused_until;
	uint64_t clock_base, clock_rate; /* own ms per 1000 ms of the simulation */
	uint64_t deadline;               /* in own time */
	struct disk disk;
	struct disk_op *ops, **ops_tail;
	uint64_t op_due;
	/* snapshots: being taken, being installed, kept for peers */
	struct snap taking, installing;
	uint64_t taking_due, installing_due; /* 0: none */
	struct snap kept[SNAPS_MAX];
	unsigned kept_count;
	uint8_t incoming[512];
	size_t incoming_len;
	/* the state machine */
	uint64_t applied, commit, hash;
	enum raft_state state;
	uint64_t frozen_disk; /* scenarios: writes are not completed before this time */
};

struct envelope {
	struct envelope *next;
	struct raft_message m;
	struct raft_entry *entries;
	uint8_t *data;
};

struct committed {
	uint64_t term, value, hash;
	enum raft_entry_type type;
};

struct rates {
	unsigned loss, duplicate, late;         /* per mille of messages */
	unsigned crash, cut, cut_one_way, heal; /* per 100,000 ms */
	unsigned pause, transfer, change, hint; /* the same */
	unsigned propose, read;                 /* per mille of ms */
	unsigned slow_disk;                     /* per mille of writes */
	unsigned snapshot_every, keep;          /* entries */
};

struct options {
	unsigned nodes, voters;
	bool member; /* change the configuration */
	uint64_t ms;
	bool trace;
	bool outcome_only; /* look at what happens, not at whether a node obeys the rules */
};

struct stats {
	uint64_t runs, steps, messages, committed, elections, crashes, snapshots, installs;
	uint64_t changes, transfers, reads, lease_reads, heal_ms_max, heal_ms_sum;
};

struct pending_check {
	uint64_t id, floor; /* the read must see at least this index */
};

struct sim {
	struct options o;
	struct stats stats;
	struct rng rng;
	uint64_t seed, now;
	struct node nodes[NODES_MAX + 1]; /* by id, from 1 */
	struct raft_settings settings;
	struct rates rates;
	bool quiet;         /* no faults any more */
	bool instant;       /* scenarios: messages take 1 ms, disks nothing */
	bool manual_timers; /* scenarios: only nodes in `timer` get ticks */
	bool timer[NODES_MAX + 1];
	bool blocked[NODES_MAX + 1][NODES_MAX + 1]; /* from, to */
	struct envelope *ring[RING], **ring_tail[RING];
	struct envelope *spare;
	bool hunt;                    /* leaders with a lease are cut off when somebody campaigns */
	uint64_t isolate, isolate_at; /* a node that will be cut off */
	uint64_t value;
	/* what was seen, over all nodes */
	struct committed *log; /* by index */
	uint64_t log_cap, committed;
	uint64_t leaders[TERMS_MAX];
	struct match {
		uint64_t run, index, term, value;
	} * matches;
	uint64_t match_count;
	struct pending_check reads[RAFT_READS_MAX];
	size_t read_count;
	uint64_t read_id;
	jmp_buf out;
	char reason[512];
};

/* sim.c */
struct sim *sim_new(const struct options *o);
struct sim *sim_free(struct sim *s);
/* Forget the last run, take a new seed. */
void sim_reset(struct sim *s, uint64_t seed);
/* The first `voters` nodes are the cluster, the others wait to be added. */
void sim_bootstrap(struct sim *s, unsigned voters);
void sim_fail(struct sim *s, const char *fmt, ...) _printf_(2, 3) __attribute__((noreturn));
void sim_trace(struct sim *s, const struct node *n, const char *fmt, ...) _printf_(3, 4);
int node_step(struct sim *s, struct node *n, struct raft_event *ev);
void node_start(struct sim *s, struct node *n);
void node_crash(struct sim *s, struct node *n);
void node_drive(struct sim *s, struct node *n); /* all that is due */
void node_take_snapshot(struct sim *s, struct node *n);
uint64_t node_clock(const struct sim *s, const struct node *n);
bool node_propose(struct sim *s, struct node *n, unsigned count);
void node_read(struct sim *s, struct node *n, bool lease);
int node_change(struct sim *s, struct node *n, const struct raft_config *target);
int node_transfer(struct sim *s, struct node *n, uint64_t to);
void sim_ms(struct sim *s);             /* one millisecond of drive and deliver */
struct node *sim_leader(struct sim *s); /* of the highest term; NULL */

/* disk.c */
void disk_write(struct sim *s, struct node *n, const struct raft_write *w);
void disk_complete(struct sim *s, struct node *n);
void disk_crash(struct sim *s, struct node *n);
void disk_free(struct node *n);
void disk_trim(struct node *n, uint64_t first);
uint64_t disk_last(const struct disk *d);
const struct raft_entry *disk_entry(const struct disk *d, uint64_t index);
uint8_t snap_byte(const struct snap *snap, uint64_t at);
bool snap_read(struct node *n, struct snap *ret);

/* net.c */
void net_post(struct sim *s, struct node *n, const struct raft_message *m);
void net_deliver(struct sim *s);
void net_clear(struct sim *s);
void net_connect_all(struct sim *s);
/* Groups by digit: net_groups(s, "00111") cuts nodes 1 and 2 from 3, 4 and 5. */
void net_groups(struct sim *s, const char *digits);
struct envelope *net_copy(struct sim *s, const struct raft_message *m);
void net_receive(struct sim *s, struct envelope *e); /* takes it over */

/* check.c */
void check_reset(struct sim *s);
uint64_t entry_value(const struct raft_entry *e);
uint64_t state_hash(uint64_t before, const struct raft_entry *e);
void check_update(struct sim *s, struct node *n, const struct raft_update *up);
void check_applied(struct sim *s, struct node *n, const struct raft_entry *e);
void check_message_out(struct sim *s, struct node *n, const struct raft_message *m);
void check_read(struct sim *s, struct node *n, const struct raft_read *read);

/* random.c */
void random_run(struct sim *s);
