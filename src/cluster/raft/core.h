/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the core: its state, and what its files offer each other. One idea per file:
 *
 *	step.c         events to handlers          election.c    votes, becoming something
 *	check.c        what may come in            replication.c leader: appends out, replies in
 *	start.c        from disk to memory         append.c      follower: appends in
 *	output.c       the update                  commit.c      leader: commit index, peers
 *	membership.c   changes, transfer           snapshot.c    both sides of a snapshot
 *	read.c         reads and the lease         info.c        getters
 *	log.c config.c the log, the sets of servers
 *
 *	            timeout               majority              durable, majority
 *	FOLLOWER ------------> PRE_CANDIDATE -------> CANDIDATE -----------> LEADER
 *	    ^                      |                     |                     |
 *	    +----------------------+---------------------+---------------------+
 *	       higher term, or a leader of this term; leader: no majority heard */
#pragma once
#include "cluster/raft/config.h"
#include "cluster/raft/log.h"
#include "cluster/raft/plant.h"
#include "cluster/raft/raft.h"

enum {
	ROUNDS_KEPT = 64,   /* rounds whose start time is remembered, for the lease */
	SNAPSHOTS_KEPT = 4, /* latest, and older ones on their way to a peer */
	HELD_MAX = 64,      /* messages that wait for term and vote to be durable */
};

enum peer_mode {
	PEER_PROBE,     /* where the logs part is not known: one message at a time */
	PEER_REPLICATE, /* a window of messages on the way */
	PEER_SNAPSHOT,  /* what it needs was compacted */
};

struct peer {
	uint64_t id;
	enum peer_mode mode;
	uint64_t match; /* durable there */
	uint64_t next;  /* next entry to send; > match */
	uint64_t contact_ms;
	bool contacted;    /* contact_ms is an answer, not the election */
	uint64_t round;    /* highest that it answered … */
	uint64_t round_ms; /* … and when that round began; 0: never */
	uint64_t commit_sent;
	bool probing; /* PROBE: a message is on the way */
	struct {
		struct {
			uint64_t last;
			uint64_t bytes;
		} at[RAFT_INFLIGHT_MAX];
		unsigned head, count;
		uint64_t bytes;
	} flight;
	struct {
		uint64_t index;
		uint64_t offset; /* next byte it wants */
		uint64_t sent_ms;
	} snapshot;
};

struct pending_read {
	uint64_t id, index, round;
};

struct raft {
	uint64_t self;
	struct raft_settings settings;
	struct rng rng;
	bool started;
	uint64_t now_ms;

	uint64_t term, vote, leader;
	enum raft_state state;
	struct raft_log log;
	uint64_t commit; /* known to be committed */
	uint64_t told;   /* told to the driver: min(commit, durable), never sinks */
	struct raft_config config;
	uint64_t config_index;
	struct raft_snapshot_meta snapshots[SNAPSHOTS_KEPT]; /* [0] latest */
	unsigned snapshot_count;

	uint64_t write_number;  /* last given out */
	uint64_t write_durable; /* last reported durable */
	uint64_t write_state;   /* last that carried term and vote */

	uint64_t deadline_ms;     /* election timer; not used by a leader */
	uint64_t sticky_until_ms; /* no vote against a leader before (§4.2.3) */

	/* As follower in this term. */
	uint64_t verified;   /* log equals the leader's up to here */
	uint64_t acked;      /* match of the last answer */
	uint64_t round_seen; /* highest round of this leader */
	bool ack_due;        /* an answer waits for term and vote to be durable */
	struct {
		bool active;
		bool installing; /* all there; the driver loads it */
		struct raft_snapshot_meta meta;
		uint64_t offset;
	} incoming;

	/* As candidate; parallel to config.servers. */
	enum { VOTE_OPEN, VOTE_YES, VOTE_NO } votes[RAFT_SERVERS_MAX];
	bool ballot_open; /* term and own vote are durable, requests may leave */
	bool ballot_transfer;
	uint64_t retry_ms;

	/* As leader; peers are parallel to config.servers, the own slot is unused. */
	struct peer *peers;
	uint64_t term_start;               /* index of the no-op of this term */
	uint64_t elected_ms, heartbeat_ms; /* heartbeat: next one */
	uint64_t round;
	uint64_t round_began_ms[ROUNDS_KEPT];
	uint64_t uncommitted_bytes;
	uint64_t transfer_to, transfer_until_ms;
	bool lease_off; /* a transfer was begun in this term: voters may have been released */
	struct pending_read *reads;
	size_t read_count, read_cap;

	/* Output of the present step. */
	struct raft_message *out;
	size_t out_count, out_cap;
	struct raft_message held[HELD_MAX];
	uint64_t held_write[HELD_MAX];
	unsigned held_count;
	struct raft_read *ready;
	size_t ready_count, ready_cap;
	struct raft_write write; /* entries are filled in at the end */
	uint64_t write_first;    /* first entry of the write; 0: none */
	const uint8_t **staged;  /* held copies of a message's entry data */
	size_t staged_cap;
	struct raft_update *up;
};

/* output.c */
void output_begin(struct raft *r, struct raft_update *up);
void output_end(struct raft *r);
/* A new message, to be completed by the caller at once. While term or vote are not durable it
 * waits; when too many wait it is lost, which a network may do anyway. */
struct raft_message *output_message(struct raft *r, uint64_t to, enum raft_message_type type);
void output_release(struct raft *r);
void output_state(struct raft *r);                              /* term, vote go to the disk */
void output_append(struct raft *r, const struct raft_entry *e); /* takes a hold of e->data */
void output_truncate(struct raft *r, uint64_t from);
void output_reset(struct raft *r, uint64_t index, uint64_t term);
void output_read(struct raft *r, uint64_t id, uint64_t index, bool ok);
bool output_state_durable(const struct raft *r);

/* start.c */
int start(struct raft *r, const struct raft_event *ev, struct err *err);

/* check.c */
int check_message(const struct raft *r, const struct raft_message *m, struct err *err);

/* election.c */
void follower_become(struct raft *r, uint64_t term, uint64_t leader);
void election_timer_reset(struct raft *r);
void election_tick(struct raft *r);
void election_campaign(struct raft *r, bool transfer);
void election_persisted(struct raft *r);
void election_vote(struct raft *r, const struct raft_message *m);
void election_vote_reply(struct raft *r, const struct raft_message *m);
void election_peer_down(struct raft *r, uint64_t peer);

/* append.c */
void append_receive(struct raft *r, const struct raft_message *m);
void append_persisted(struct raft *r);
void append_heard(struct raft *r);
int append_stage(struct raft *r, const struct raft_message *m, struct err *err);

/* commit.c */
void leader_become(struct raft *r);
void leader_append(struct raft *r, enum raft_entry_type type, const uint8_t *data, size_t len);
void leader_tick(struct raft *r);
void leader_commit(struct raft *r);
void leader_round(struct raft *r); /* begin a round and tell everybody */
struct peer *leader_peer(const struct raft *r, uint64_t id);
void leader_peers_rebuild(struct raft *r, const struct raft_config *old);
int leader_propose(struct raft *r, const struct raft_event *ev, struct err *err);

/* replication.c */
void peer_init(struct raft *r, struct peer *p, uint64_t id);
void peer_probe(struct peer *p, uint64_t next);
void peer_pump(struct raft *r, struct peer *p);
void peer_heartbeat(struct raft *r, struct peer *p);
void peer_contact(struct raft *r, struct peer *p, uint64_t round);
bool peer_is_live(const struct raft *r, const struct peer *p);
void replication_reply(struct raft *r, const struct raft_message *m);

/* membership.c */
void config_refresh(struct raft *r);
const struct raft_config *config_as_of(const struct raft *r, uint64_t index,
				       struct raft_config *buf, uint64_t *ret_index);
int membership_change(struct raft *r, const struct raft_config *target, struct err *err);
void membership_committed(struct raft *r);
int transfer_begin(struct raft *r, uint64_t to);
void transfer_pump(struct raft *r);
void transfer_timeout_now(struct raft *r, const struct raft_message *m);

/* snapshot.c */
void snapshot_begin(struct raft *r, struct peer *p);
void snapshot_resend(struct raft *r, struct peer *p);
void snapshot_reply(struct raft *r, const struct raft_message *m);
void snapshot_receive(struct raft *r, const struct raft_message *m);
int snapshot_taken(struct raft *r, const struct raft_event *ev, struct err *err);
int snapshot_installed(struct raft *r, const struct raft_event *ev, struct err *err);
void snapshot_release(struct raft *r);

/* read.c */
int read_begin(struct raft *r, uint64_t id, bool lease);
void read_confirm(struct raft *r);
void read_fail_all(struct raft *r);
bool read_lease_holds(const struct raft *r, uint64_t now_ms);
