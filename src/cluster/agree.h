/* SPDX-License-Identifier: Apache-2.0 */
/* Agreement: every controller gets the same commands in the same order.
 *
 * One leader writes. Any node proposes; the command travels to the leader, is put into one log
 * entry with others (one disk sync for all), and is applied on every controller as soon as a
 * majority has it on disk. Engines behind this interface: `raft`, and `local`, which is the same
 * log with one voter and grows into `raft` by agree_set_voters(). An agent (a node that is no
 * controller) has no log: it only forwards.
 *
 *   AGENT --agree_serve(true)--> SERVING (learner or voter, as the log says) --(false)--> AGENT
 *
 * Exactly once: a command carries {node, epoch, sequence} of its proposer. It is sent again when
 * the leader changes or a session is lost; a second copy in the log is not applied, its proposer
 * gets the result of the first.
 *
 * Time: each entry is stamped by the leader with a cluster time that never goes back. Everything
 * in the state that depends on time uses this one; no other node's clock matters.
 *
 * One thread (the loop's). Callbacks come from the loop, never from inside a call of this
 * interface; they may call it, except agree_close(). Pure header: the engines are in src/node. */
#pragma once
#include "base/err.h"
#include "base/str.h"

enum {
	AGREE_COMMAND_MAX = 1 << 20,   /* bytes of one command */
	AGREE_RESULT_MAX = 64 << 10,   /* result bytes of one command */
	AGREE_TEXT_MAX = 512,          /* error text of one command, with the NUL */
	AGREE_OUTSTANDING_MAX = 4096,  /* commands of one node without outcome */
	AGREE_CONTROLLERS_MAX = 32,    /* voters and learners */
	AGREE_DEADLINE_MS = 10 * 1000, /* of a command proposed with deadline 0 */
};

enum agree_fate {
	AGREE_APPLIED = 1, /* exactly once; `code` is what apply() returned */
	AGREE_REFUSED,     /* not applied, and never will be */
	AGREE_UNKNOWN,     /* may have been applied or may still be: nobody answered in time */
};

struct agree_outcome {
	enum agree_fate fate;
	int code;           /* 0 or negative errno */
	uint64_t index;     /* of the entry; 0 when not known */
	struct span result; /* what apply() left; borrowed for the call */
	const char *text;   /* cause and remedy when code is not 0, else ""; borrowed */
};

typedef void agree_done(void *ctx, const struct agree_outcome *o);

/* A committed command. */
struct agree_command {
	uint64_t index, term; /* of its entry; several commands share one */
	uint64_t now_ms;      /* cluster time (milliseconds since 1970 of some leader's clock) */
	uint32_t node;        /* who proposed it */
	struct span bytes;
};

enum agree_role {
	AGREE_AGENT = 1, /* no log here */
	AGREE_WAITING,   /* serving, but not (any more) in the configuration */
	AGREE_LEARNER,
	AGREE_VOTER,
	AGREE_LEADER,
};

/* The owner of the replicated state. All but `settled`, `leader_changed`, `voters_changed` and
 * `health` are required. */
struct agree_events {
	void *ctx;
	/* Change the state. Must depend on nothing but the state and `c`. The return value and
	 * *result (empty at the call, at most AGREE_RESULT_MAX) go to the proposer and are kept
	 * for duplicates. A failing command must leave the state unchanged. */
	int (*apply)(void *ctx, const struct agree_command *c, struct str *result, struct err *err);
	/* Append the whole state to *out: a snapshot as of the last apply(). */
	void (*save)(void *ctx, struct str *out);
	/* Replace the state by a snapshot; len 0: the state of a cluster before its first command.
	 * < 0: the bytes are not understood; this node then stops serving, with that error. */
	int (*load)(void *ctx, struct span snapshot, struct err *err);
	/* A run of commands was applied, up to `index`: the moment to plan once for all of them. */
	void (*settled)(void *ctx, uint64_t index, uint64_t now_ms);
	/* leader 0: none known. `ready`: this node leads and has applied all that was committed
	 * before, so its state is current. Called again when that becomes true. */
	void (*leader_changed)(void *ctx, uint32_t leader, uint64_t term, bool ready);
	/* Voters or learners differ (agree_status has them). */
	void (*voters_changed)(void *ctx);
	/* What is wrong with the log here (disk full, damaged store…), cause and remedy; NULL: well
	 * again. */
	void (*health)(void *ctx, const char *text);
};

struct agree_peer {
	uint32_t node;
	bool voter, learner; /* both false: an old voter that is on its way out */
	bool connected;
	uint64_t match;            /* last entry durable there; 0 when this node does not lead */
	uint64_t silent_ms;        /* since its last answer to this leader */
	unsigned snapshot_percent; /* being sent a snapshot; 100: none is being sent */
};

struct agree_status {
	const char
	    *engine; /* "local" with one voter and nobody else, else "raft"; "none" on agents */
	enum agree_role role;
	uint32_t self, leader; /* leader 0: not known */
	bool ready;            /* this node leads and its state is current */
	uint64_t term;
	uint64_t first, last, durable, commit, applied; /* entries */
	uint64_t log_bytes;                             /* of the entries first…last */
	uint64_t snapshot_index, snapshot_bytes;
	uint64_t disk_bytes;  /* of the store's files */
	uint64_t now_ms;      /* cluster time of the last applied entry */
	unsigned outstanding; /* own commands without outcome */
	bool changing;        /* a change of voters is under way */
	unsigned peer_count;  /* with this node */
	struct agree_peer peers[AGREE_CONTROLLERS_MAX];
	char health[AGREE_TEXT_MAX]; /* "" when well */
};

struct agree;

/* What an engine does; call the functions below instead. */
struct agree_engine {
	int (*serve)(struct agree *a, bool on, struct err *err);
	void (*controllers)(struct agree *a, const uint32_t *nodes, unsigned count);
	int (*propose)(struct agree *a, struct span command, uint64_t deadline_ms, agree_done *done,
		       void *ctx, struct err *err);
	int (*barrier)(struct agree *a, uint64_t deadline_ms, agree_done *done, void *ctx,
		       struct err *err);
	int (*set_voters)(struct agree *a, const uint32_t *voters, unsigned voter_count,
			  const uint32_t *learners, unsigned learner_count, struct err *err);
	int (*transfer)(struct agree *a, uint32_t to, struct err *err);
	uint32_t (*leader)(const struct agree *a);
	bool (*is_leader)(const struct agree *a);
	uint64_t (*lease_until_ms)(const struct agree *a);
	void (*status)(const struct agree *a, struct agree_status *ret);
	void (*close)(struct agree *a);
};

struct agree {
	const struct agree_engine *engine;
};

/* Take part in the log (true: opens the store, makes an empty one when there is none, and waits to
 * be added by the leader) or stop doing so (false; the store stays and is used again by the next
 * serve). Errors: -EBUSY the store is in use by another process; -EUCLEAN it is damaged; -EXDEV
 * it belongs to another cluster or node; others of the file system. */
static inline int agree_serve(struct agree *a, bool on, struct err *err)
{
	return a->engine->serve(a, on, err);
}

/* Where commands may be sent while the leader is not known; copied. Agents need it, controllers
 * also learn it from the log. */
static inline void agree_controllers(struct agree *a, const uint32_t *nodes, unsigned count)
{
	a->engine->controllers(a, nodes, count);
}

/* Propose a command; the bytes are copied. After 0 `done` is called exactly once, at the latest
 * `deadline_ms` from now (0: AGREE_DEADLINE_MS) with AGREE_UNKNOWN -ETIMEDOUT, or -ECANCELED when
 * the engine is closed before. Refusals that come with `done`: -EBUSY (the leader has too much to
 * do: try again a little later), -ENOSPC (the only controller's disk is full).
 * Errors (`done` is not called): -EMSGSIZE, -EAGAIN (AGREE_OUTSTANDING_MAX reached). */
static inline int agree_propose(struct agree *a, struct span command, uint64_t deadline_ms,
				agree_done *done, void *ctx, struct err *err)
{
	return a->engine->propose(a, command, deadline_ms, done, ctx, err);
}

/* A current read: `done` comes with AGREE_APPLIED and code 0 as soon as this node's state contains
 * everything that was committed when the barrier was asked for. Follower states lag, and a leader
 * that was cut off does not know it: whoever must not read the past asks for a barrier first.
 * Errors: -EOPNOTSUPP on an agent (it has no state), -EAGAIN too many waiting. */
static inline int agree_read_barrier(struct agree *a, uint64_t deadline_ms, agree_done *done,
				     void *ctx, struct err *err)
{
	return a->engine->barrier(a, deadline_ms, done, ctx, err);
}

/* Leader only: make exactly these the voters and learners. Returns 0 when the change was begun; its
 * end is seen by voters_changed and status.changing. New nodes must be serving; make them learners
 * first and voters when `match` is near `last`.
 * Results > 0: 1 it is so already. Errors: -EPERM not leader; -EBUSY another change is under way,
 * or the leader is not ready, or leadership is being handed over; -EAGAIN a new voter lags too
 * far behind; -EINVAL no voter, a node twice, too many. */
static inline int agree_set_voters(struct agree *a, const uint32_t *voters, unsigned voter_count,
				   const uint32_t *learners, unsigned learner_count,
				   struct err *err)
{
	return a->engine->set_voters(a, voters, voter_count, learners, learner_count, err);
}

/* Leader only: hand leadership to voter `to` (0: to the one that is furthest). The end is seen by
 * leader_changed; when it fails the old leader goes on.
 * Errors: -EPERM not leader; -ENOENT no such voter; -EAGAIN it lags; -EBUSY as above. */
static inline int agree_transfer(struct agree *a, uint32_t to, struct err *err)
{
	return a->engine->transfer(a, to, err);
}

/* Node that leads as far as known here; 0: not known. */
static inline uint32_t agree_leader(const struct agree *a)
{
	return a->engine->leader(a);
}

/* True when this node leads and is ready (see leader_changed). It may be wrong for up to an
 * election time after a partition: see the lease. */
static inline bool agree_is_leader(const struct agree *a)
{
	return a->engine->is_leader(a);
}

/* Until when (monotonic milliseconds, the loop's clock) nobody else can have become leader: a
 * majority answered recently and votes for no one before. 0: not leader, not ready or no lease. */
static inline uint64_t agree_lease_until_ms(const struct agree *a)
{
	return a->engine->lease_until_ms(a);
}

static inline void agree_status(const struct agree *a, struct agree_status *ret)
{
	a->engine->status(a, ret);
}

/* Stop: what was handed to the disk is made durable first; commands without outcome end with
 * AGREE_UNKNOWN -ECANCELED, from within this call. The memory is given back by the loop. Takes
 * NULL, returns NULL. Not from inside a callback. */
static inline struct agree *agree_close(struct agree *a)
{
	if (a)
		a->engine->close(a);
	return NULL;
}
