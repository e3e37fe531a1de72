/* SPDX-License-Identifier: Apache-2.0 */
/* Raft as a pure function: one event in, one update out.
 *
 *	raft_step(core, event with its time, update)
 *
 * No sockets, files, clocks or threads. The driver (src/node) carries events in and does what the
 * update says; src/cluster/raft holds every rule that safety rests on. Text: D. Ongaro,
 * "Consensus: Bridging Theory and Practice", 2014; what is done and where we differ is in
 * docs/agreement.md. The bench in tests/raft drives the same interface through lost, late and
 * doubled messages, partitions, crashes and torn writes.
 *
 * What a driver has to do, completely:
 *  1. Call raft_step() from one thread at a time with `now_ms` from a monotonic clock, read after
 *     the message or request arrived.
 *  2. up->write.number != 0: hand the write to the disk. Writes become durable in the order of
 *     their numbers and each one whole, or after a crash a prefix of its entries (term and vote
 *     first). When number n and all before it are durable, step RAFT_PERSISTED with n; one event
 *     may cover many writes (group commit). The core itself keeps back every message that rests
 *     on a write that is not durable yet.
 *  3. Send up->messages at once, in any order, over anything that may lose, double or delay.
 *     RAFT_MSG_SNAPSHOT has no data: read `chunk.len` bytes at `chunk.offset` of the own snapshot
 *     `chunk.snapshot.index` into it; if that cannot be read, do not send it.
 *  4. up->commit_index rose: apply entries up to it in order (raft_entry()). It never sinks, and
 *     is never above what this node's own disk holds.
 *  5. up->chunk.present: write the bytes of a snapshot that is being received; when `last`, make
 *     it durable with its meta, load it as the state at its index, then step
 *     RAFT_SNAPSHOT_INSTALLED. Nothing is committed here in between.
 *  6. up->reads: answer those with `ok` as soon as the applied index is >= `index`.
 *  7. up->deadline_ms: step RAFT_TICK then (later is safe, earlier harmless).
 *  8. Now and then write a snapshot of the applied state with raft_snapshot_meta(), make it
 *     durable, step RAFT_SNAPSHOT_TAKEN; then entries below raft_first_index() may be deleted
 *     from the store, and older snapshots for which raft_snapshot_needed() is false.
 *
 * Fate of a proposal: it got (index, term) in up->proposed. It is committed exactly when the
 * entry applied at that index has that term; when another term is applied there, it is lost.
 * While this node is not leader the fate is open.
 *
 * Memory: everything an event points to is borrowed for the call; the core copies what it keeps.
 * Everything an update points to belongs to the core and is valid until the next raft_step(),
 * except that entry data may be kept longer with raft_data_hold(). The core keeps in memory all
 * entries since the last compaction.
 *
 * Invariants, checked by assertions: compacted <= commit <= last index; durable <= last; term
 * and commit never sink; nothing at or below commit is ever replaced. */
#pragma once
#include "base/err.h"
#include "base/rng.h"
#include "base/util.h"

enum {
	RAFT_SERVERS_MAX = 32, /* voters, old voters and learners together */
	RAFT_CONFIG_SIZE_MAX = 2 + RAFT_SERVERS_MAX * 9,
	RAFT_DATA_MAX = 16 << 20, /* bytes of one entry */
	RAFT_BATCH_MAX = 4096,    /* entries in one message or proposal */
	RAFT_CHUNK_MAX = 4 << 20, /* bytes of one piece of a snapshot */
	RAFT_INFLIGHT_MAX = 256,  /* append messages on the way to one peer */
	RAFT_READS_MAX = 4096,    /* reads waiting for confirmation */
};
#define RAFT_TERM_MAX (UINT64_C(1) << 60) /* larger terms and indexes are refused as garbage */

/* ---- entries ---- */

enum raft_entry_type {
	RAFT_NOOP = 1,    /* no data; first entry of each leader */
	RAFT_COMMAND = 2, /* the driver's; opaque here */
	RAFT_CONFIG = 3,  /* encoded struct raft_config; in force as soon as it is in the log */
};

struct raft_entry {
	uint64_t index; /* from 1 */
	uint64_t term;
	enum raft_entry_type type;
	uint32_t len;
	const uint8_t *data; /* NULL when len is 0 */
};

/* Keep the data of an entry that came from an update or from raft_entry() beyond the next step,
 * from any thread. `data` may be NULL. Every hold needs one drop. */
void raft_data_hold(const uint8_t *data);
void raft_data_drop(const uint8_t *data);

/* ---- who takes part ---- */

enum raft_role {
	RAFT_VOTER = 1,     /* counts in elections and commits */
	RAFT_VOTER_OLD = 2, /* counts in the old majority of a joint configuration (§4.3) */
	RAFT_LEARNER = 4,   /* receives everything, counts nowhere */
};

/* Sorted by id, each id once, each with at least one role, at least one RAFT_VOTER. It is joint
 * when some server has RAFT_VOTER_OLD: then both majorities are needed. A server may be
 * VOTER|VOTER_OLD or VOTER_OLD|LEARNER (about to be demoted); never VOTER|LEARNER. */
struct raft_config {
	unsigned count; /* 0: not known yet (a node that was never told) */
	struct raft_server {
		uint64_t id; /* never 0 */
		unsigned roles;
	} servers[RAFT_SERVERS_MAX];
};

/* Add a server or replace its roles, keeping the order. Returns false when full or id is 0. */
bool raft_config_set(struct raft_config *c, uint64_t id, unsigned roles);
void raft_config_remove(struct raft_config *c, uint64_t id);
/* Roles of a server; 0 when not listed. */
unsigned raft_config_roles(const struct raft_config *c, uint64_t id);
bool raft_config_is_joint(const struct raft_config *c);
bool raft_config_equal(const struct raft_config *a, const struct raft_config *b);
/* Fixed encoding, the body of a RAFT_CONFIG entry: version 1, count, then per server 8 bytes id
 * (little endian) and 1 byte roles. Returns the length. */
size_t raft_config_encode(const struct raft_config *c, uint8_t buf[RAFT_CONFIG_SIZE_MAX]);
/* Errors: -EBADMSG (anything not exactly as encoded or against the rules above); *ret untouched. */
int raft_config_decode(const uint8_t *data, size_t len, struct raft_config *ret, struct err *err);

/* ---- snapshots ---- */

struct raft_snapshot_meta {
	uint64_t index; /* last entry it contains; 0: no snapshot */
	uint64_t term;  /* of that entry */
	uint64_t size_bytes;
	uint64_t config_index;     /* entry the configuration comes from */
	struct raft_config config; /* as of `index` */
};

/* ---- messages ---- */

enum raft_message_type {
	RAFT_MSG_VOTE = 1, /* request, also pre-vote */
	RAFT_MSG_VOTE_REPLY = 2,
	RAFT_MSG_APPEND = 3, /* entries, or heartbeat when it has none */
	RAFT_MSG_APPEND_REPLY = 4,
	RAFT_MSG_SNAPSHOT = 5, /* one piece */
	RAFT_MSG_SNAPSHOT_REPLY = 6,
	RAFT_MSG_TIMEOUT_NOW = 7, /* leadership transfer (§3.10) */
};

enum raft_result {
	RAFT_STALE = 0, /* the request was of an older term: this answer carries only `term` */
	RAFT_ACCEPTED = 1,
	RAFT_REJECTED = 2,
};

/* All plain values; the driver makes bytes of them. Fields of other types are zero. */
struct raft_message {
	enum raft_message_type type;
	uint64_t from, to; /* on receipt `from` is the authenticated sender, not what it claims */
	uint64_t term;     /* sender's; for a pre-vote request the term it would campaign in */
	union {
		struct {
			uint64_t last_index, last_term;
			bool pre;      /* pre-vote (§9.6): nobody's term or vote changes */
			bool transfer; /* the leader wants this election (§4.2.3) */
		} vote;
		struct {
			bool pre;
			enum raft_result result;
			uint64_t asked_term; /* term of the request */
		} vote_reply;
		struct {
			uint64_t prev_index, prev_term;
			uint64_t commit;
			uint64_t round; /* echoed; leadership is confirmed by it (§6.4) */
			const struct raft_entry *entries; /* prev_index+1 … */
			unsigned count;
		} append;
		struct {
			enum raft_result result;
			uint64_t round;
			uint64_t match; /* ACCEPTED: durable here and equal to the leader's log */
			uint64_t prev;  /* REJECTED: the prev_index that did not fit */
			uint64_t hint;  /* REJECTED: highest index that may fit; ACCEPTED: equal
					 * to the leader's log, perhaps not durable yet */
			uint64_t hint_term; /* REJECTED: term of the entry at `hint`; 0: none */
		} append_reply;
		struct {
			struct raft_snapshot_meta snapshot;
			uint64_t round;
			uint64_t offset;
			uint32_t len;
			const uint8_t *data; /* outgoing: NULL, filled by the driver */
		} chunk;
		struct {
			enum raft_result
			    result; /* REJECTED: cannot take it now, begin at `offset` */
			uint64_t round;
			uint64_t index;  /* of the snapshot */
			uint64_t offset; /* next byte wanted */
			bool done;       /* installed and durable, or not needed: match >= index */
		} chunk_reply;
	};
};

/* ---- events ---- */

enum raft_event_type {
	RAFT_START = 1, /* first event, once */
	RAFT_TICK,
	RAFT_RECEIVE,
	RAFT_PERSISTED,
	RAFT_SNAPSHOT_TAKEN,
	RAFT_SNAPSHOT_INSTALLED,
	RAFT_PROPOSE,
	RAFT_CHANGE, /* new set of voters and learners */
	RAFT_TRANSFER,
	RAFT_READ,
	RAFT_PEER_DOWN, /* hint: the connection to a peer closed */
};

struct raft_event {
	enum raft_event_type type;
	uint64_t now_ms; /* monotonic; a smaller value than before counts as the one before */
	union {
		/* What is on the disk. Entries are contiguous and reach back at most to
		 * what was last kept; those that do not fit the snapshot are dropped (the
		 * first write says so). A new cluster starts with raft_bootstrap(), a node
		 * that waits to be added with nothing at all. */
		struct {
			uint64_t term, vote;
			struct raft_snapshot_meta snapshot;
			const struct raft_entry *entries;
			size_t count;
		} start;
		const struct raft_message *receive;
		uint64_t persisted; /* highest write number that is durable with all before */
		/* A snapshot of the applied state at `index` is durable. The last `keep`
		 * entries up to it stay in the log for peers that lag. */
		struct {
			uint64_t index, size_bytes, keep;
		} taken;
		/* The snapshot whose last chunk came is durable and loaded; or `failed` and
		 * thrown away, then it is sent again. */
		struct {
			uint64_t index;
			bool failed;
		} installed;
		struct {
			const struct span *commands;
			unsigned count; /* 1 … RAFT_BATCH_MAX; all or none is accepted */
		} propose;
		/* Target of a change; roles RAFT_VOTER and RAFT_LEARNER only. The core goes
		 * through the joint configuration by itself when voters change. */
		const struct raft_config *change;
		uint64_t transfer; /* to whom; 0: the voter that is furthest */
		struct {
			uint64_t id; /* comes back in up->reads */
			bool lease;  /* allow an answer by lease (settings.lease) */
		} read;
		uint64_t peer_down;
	};
};

/* Results > 0 of raft_step(): refused, nothing changed. */
enum raft_refusal {
	RAFT_NOT_LEADER = 1, /* ask raft_leader() */
	RAFT_FULL,           /* too much uncommitted: retry when the commit index rose */
	RAFT_NOT_READY,      /* leader has not committed an entry of its term yet: retry soon */
	RAFT_CHANGING,       /* another change of configuration is under way */
	RAFT_LAGS,           /* the new voter or the target of a transfer is too far behind */
	RAFT_UNKNOWN,        /* no such voter */
	RAFT_TRANSFERRING,   /* leadership is being handed over: retry at the new leader */
	RAFT_UNCHANGED,      /* the configuration is already so */
	RAFT_TOO_LARGE,      /* a command above RAFT_DATA_MAX or above the uncommitted limit */
};
const char *raft_refusal_name(int refusal);

/* ---- updates ---- */

enum raft_state { RAFT_FOLLOWER, RAFT_PRE_CANDIDATE, RAFT_CANDIDATE, RAFT_LEADER };
const char *raft_state_name(enum raft_state state);

struct raft_update {
	/* One ordered write: first term and vote, then delete, then append. */
	struct raft_write {
		uint64_t number; /* 0: nothing to write */
		bool has_state;
		uint64_t term, vote;
		uint64_t truncate_from; /* delete entries with index >= this; 0: none */
		const struct raft_entry *entries;
		size_t count;
	} write;

	const struct raft_message *messages;
	size_t message_count;

	uint64_t commit_index; /* present value in each update */

	struct {
		bool present;
		bool first; /* offset 0: forget any other snapshot that was coming in */
		bool last;
		struct raft_snapshot_meta snapshot;
		uint64_t offset;
		const uint8_t *data; /* borrowed from the event */
		uint32_t len;
	} chunk;

	const struct raft_read {
		uint64_t id;
		uint64_t index;
		bool ok; /* false: leadership was lost, ask the next leader */
	} * reads;
	size_t read_count;

	struct {
		uint64_t index; /* of the first proposed entry, or of the CONFIG entry; 0: none */
		uint64_t term;
	} proposed;

	bool state_changed;  /* state, term or leader differ from before the step */
	bool config_changed; /* raft_config() differs from before the step */
	enum raft_state state;
	uint64_t term;
	uint64_t leader; /* 0: not known */
	uint64_t deadline_ms;
};

/* ---- the core ---- */

struct raft_settings {
	unsigned heartbeat_ms;
	unsigned election_ms;    /* a follower campaigns after 1 … 2 times this */
	bool lease;              /* lease reads allowed; the same on every node of a cluster */
	unsigned drift_permille; /* bound on the difference of clock rates for the lease */
	unsigned append_bytes;   /* aim for one append message */
	unsigned inflight_count; /* append messages on the way to one peer */
	unsigned inflight_bytes;
	unsigned uncommitted_count; /* entries a leader accepts above the commit index */
	unsigned uncommitted_bytes;
	unsigned chunk_bytes;
	unsigned promote_lag; /* entries a new voter may be behind when it is added; 0: any */
};

enum raft_profile { RAFT_FAST, RAFT_LAN, RAFT_WAN };
struct raft_settings raft_profile(enum raft_profile profile);

struct raft;

/* A core for server `self` (not 0). `rng` is copied; give each node another seed. Returns
 * -EINVAL for settings out of bounds, naming the field. The caller owns *ret: raft_free(). */
int raft_new(struct raft **ret, uint64_t self, const struct raft_settings *settings,
	     const struct rng *rng, struct err *err);
struct raft *raft_free(struct raft *r); /* takes NULL, returns NULL */

/* Take one event. 0: done, *up says what to do. > 0: enum raft_refusal, *up holds only the
 * present state. < 0: the event was wrong and changed nothing (-EBADMSG: a message against the
 * rules, with its sender in `err`; -EINVAL; -ENOMEM), *up as for a refusal. */
int raft_step(struct raft *r, const struct raft_event *ev, struct raft_update *up, struct err *err);

/* The first entry of a new cluster: index 1, term 1, a CONFIG. Every initial voter stores the same
 * entry and term 1 without a vote, then starts with them. `buf` must outlive *ret. */
void raft_bootstrap(const struct raft_config *c, uint8_t buf[RAFT_CONFIG_SIZE_MAX],
		    struct raft_entry *ret);

uint64_t raft_self(const struct raft *r);
uint64_t raft_term(const struct raft *r);
uint64_t raft_vote(const struct raft *r);
enum raft_state raft_state(const struct raft *r);
uint64_t raft_leader(const struct raft *r);
uint64_t raft_commit_index(const struct raft *r);
uint64_t raft_first_index(const struct raft *r); /* first entry in the log */
uint64_t raft_last_index(const struct raft *r);
uint64_t raft_durable_index(const struct raft *r);
/* Borrowed until the next step; NULL when compacted or not there. */
const struct raft_entry *raft_entry(const struct raft *r, uint64_t index);
/* The latest configuration in the log, committed or not, and the index it came from. */
const struct raft_config *raft_config(const struct raft *r, uint64_t *ret_index);
bool raft_config_committed(const struct raft *r);
/* Meta of a snapshot at `index`, for latest snapshot <= index <= commit; size_bytes 0.
 * Returns -ENOENT for any other index. */
int raft_snapshot_meta(const struct raft *r, uint64_t index, struct raft_snapshot_meta *ret);
/* Latest snapshot that the core knows. */
const struct raft_snapshot_meta *raft_snapshot(const struct raft *r);
/* Is the own snapshot at `index` the latest or still on its way to a peer? */
bool raft_snapshot_needed(const struct raft *r, uint64_t index);
/* True while this leader may answer reads from its lease at `now_ms`. */
bool raft_has_lease(const struct raft *r, uint64_t now_ms);

/* What a leader knows of a peer. False when not leader or not in the configuration. */
struct raft_peer_info {
	uint64_t match; /* durable there */
	uint64_t next;
	uint64_t contact_ms; /* last answer; 0: none in this term */
	bool snapshot;       /* is being sent a snapshot */
	uint64_t snapshot_offset;
};
bool raft_peer_info(const struct raft *r, uint64_t id, struct raft_peer_info *ret);
