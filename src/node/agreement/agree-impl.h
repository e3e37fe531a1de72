/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the driver share.
 *
 *   agree-core.c     the core: events in, updates out; timer, store, snapshots on the disk
 *   agree-apply.c    committed entries to the owner of the state; snapshots of the state
 *   agree-leader.c   commands into batches, batches into entries, answers to proposers
 *   agree-propose.c  own commands and reads until their outcome
 *   agree-wire.c     messages to bytes and back
 *   agreement.c      the interface of agree.h
 *
 * Everything that calls the owner happens in agree_pump(), once per turn of the loop, after what
 * came from the network and the disk in that turn: so commands that arrive together become one
 * entry, and no callback ever runs inside a step of the core or inside a call of agree.h. */
#pragma once
#include "cluster/dedup.h"
#include "io/peers.h"
#include "io/store.h"
#include "node/agreement/agreement.h"
#include "schema/agree.pb-c.h"

enum {
	AGREE_BATCH_BYTES = 256 << 10, /* of commands in one entry (or one larger command) */
	AGREE_BATCH_COUNT = 4096,
	AGREE_PENDING_BYTES = 16 << 20, /* of commands that wait for an entry at the leader */
	AGREE_PENDING_COUNT = 65536,
	AGREE_READS_MAX = 4096,
	AGREE_SNAPSHOT_ENTRIES = 100000, /* applied since the last snapshot: take one */
	AGREE_SNAPSHOT_BYTES = 64 << 20,
	AGREE_KEEP_ENTRIES = 10000,  /* of the log behind a snapshot, for those who lag a little */
	AGREE_TICK_MS = 25,          /* deadlines and retries of own commands */
	AGREE_RETRY_MS = 1000,       /* a command without answer is sent again */
	AGREE_ASK_MS = 100,          /* while no leader is known: ask the next controller */
	AGREE_APPLY_SLICE_US = 5000, /* applying gives way to the rest of the loop after this */
	AGREE_HANDLES = 4,
};

/* A command at the leader, before it has an entry. */
struct pending {
	uint32_t node;
	uint64_t epoch, sequence, low;
	size_t len;
	uint8_t bytes[];
};

/* An own command without outcome. */
struct proposal {
	uint64_t sequence;
	uint64_t deadline_ms, sent_ms;
	uint32_t sent_to; /* 0: to nobody since the leader changed */
	unsigned sends;
	agree_done *done;
	void *ctx;
	size_t len;
	uint8_t bytes[];
};

/* An own read. */
struct barrier {
	struct barrier *next;
	uint64_t id, deadline_ms, asked_ms;
	uint64_t index; /* to be applied; 0: not known yet */
	agree_done *done;
	void *ctx;
};

/* A read of another node, at the leader. */
struct asked_read {
	struct asked_read *next;
	uint64_t id; /* in the core */
	uint32_t node;
	uint64_t their_id;
};

/* Answers to one proposer that are gathered while entries are applied. */
struct answers {
	uint32_t node;
	uint64_t epoch;
	size_t count, cap, bytes;
	Copia__AgreeAnswer *at;
};

struct agreement {
	struct agree base;
	struct agreement_settings s; /* `dir` is ours */
	struct agree_events events;
	struct rng rng;
	uv_timer_t timer; /* the core's deadline */
	uv_timer_t tick;  /* runs while there are own commands or reads */
	uv_idle_t idle;   /* makes the loop go on to `check` at once */
	uv_check_t check; /* agree_pump() */
	unsigned handles; /* not closed yet */
	bool closing;

	/* the log; NULL on an agent */
	struct raft *core;
	struct store *store;
	uint64_t commit;       /* as the core said last */
	uint64_t submitted;    /* last write handed to the store */
	uint64_t written;      /* last durable one */
	int trouble;           /* of the store */
	uint64_t trouble_ms;   /* since when, for the turn that acts on it */
	bool trouble_transfer; /* leadership was offered to others since */
	bool mute;             /* the disk fails: be silent so that others elect a leader */
	struct chunk_read *chunk_reads; /* pieces of snapshots on their way from the disk */
	struct err stop; /* code < 0: stop serving at the next turn, for this reason */

	/* the state */
	struct dedup *dedup;
	uint64_t applied, applied_term, now_ms;
	uint64_t since_entries, since_bytes; /* applied since the last snapshot */
	bool saving;                         /* a snapshot is being written */
	uint64_t saving_index, saving_bytes;
	uint64_t snapshots[STORE_KEEP_MAX]; /* on the disk, oldest first */
	unsigned snapshot_count;

	/* the leader's part */
	struct pending **pending;
	size_t pending_head, pending_end, pending_cap, pending_bytes;
	uint64_t stamp_ms;      /* of the last batch made here */
	uint64_t stamped_at_ms; /* by the monotonic clock */
	bool full;              /* the core takes no more until something is committed */
	struct answers *answers;
	size_t answers_count, answers_cap;
	struct asked_read *asked;
	unsigned asked_count;

	/* own commands: low … next - 1, at their sequence modulo DEDUP_WINDOW */
	struct proposal *proposals[DEDUP_WINDOW];
	uint64_t low, next;
	unsigned outstanding;
	bool unsent; /* some wait to be sent */
	struct barrier *barriers;
	unsigned barrier_count;
	uint64_t next_read;

	/* who leads, as far as known; on controllers the core knows better */
	uint32_t hint;
	uint64_t hint_term, asked_leader_ms;
	uint32_t controllers[AGREE_CONTROLLERS_MAX];
	unsigned controller_count, controller_next;

	/* what the owner was told */
	uint32_t told_leader;
	uint64_t told_term;
	bool told_ready, told_anything;
	bool voters_dirty, health_dirty;
	char health[AGREE_TEXT_MAX];
	struct str out; /* for packing */
};

static inline struct agreement *agreement_of(const struct agree *a)
{
	return CONTAINER((struct agree *)(uintptr_t)a, struct agreement, base);
}

/* Monotonic, read now. */
uint64_t agree_clock_ms(void);

/* agreement.c */
void agree_wake(struct agreement *a); /* run agree_pump() in this or the next turn */
void agree_set_health(struct agreement *a, const char *text); /* NULL: well */
bool agree_leads(const struct agreement *a);
bool agree_ready(const struct agreement *a);
uint32_t agree_known_leader(const struct agreement *a);

/* agree-core.c */
int agree_core_open(struct agreement *a, struct err *err);
void agree_core_close(struct agreement *a);
/* Result as raft_step()'s; what the update says is done, `ret` (may be NULL) has the rest of it. */
int agree_step(struct agreement *a, struct raft_event *ev, struct raft_update *ret,
	       struct err *err);
void agree_on_timer(uv_timer_t *timer);
void agree_watch_store(struct agreement *a); /* in each turn */
bool agree_only_voter(const struct agreement *a);

/* agree-apply.c */
/* Apply what is committed. Returns false when it stopped early to give way. */
bool agree_apply(struct agreement *a);
int agree_load(struct agreement *a, struct span snapshot, uint64_t index, uint64_t term,
	       struct err *err);
void agree_snapshot(struct agreement *a); /* takes one when it is time */

/* agree-leader.c */
void agree_lead(struct agreement *a);     /* in each turn */
void agree_lead_end(struct agreement *a); /* leadership is lost */
/* A command to be put into the log. < 0: refused, with the reason. */
int agree_enqueue(struct agreement *a, const struct dedup_key *key, uint64_t low, struct span bytes,
		  struct err *err);
void agree_on_forward(struct agreement *a, uint32_t from, const Copia__AgreeForward *m);
void agree_answer(struct agreement *a, const struct dedup_key *key, bool refused,
		  const struct dedup_result *r);
void agree_answers_send(struct agreement *a);
void agree_on_read_ask(struct agreement *a, uint32_t from, uint64_t id);
/* A read of the core is confirmed or failed. */
void agree_on_core_read(struct agreement *a, const struct raft_read *r);

/* agree-propose.c */
int agree_propose_new(struct agreement *a, struct span command, uint64_t deadline_ms,
		      agree_done *done, void *ctx, struct err *err);
int agree_barrier_new(struct agreement *a, uint64_t deadline_ms, agree_done *done, void *ctx,
		      struct err *err);
void agree_propose_send(struct agreement *a); /* in each turn */
void agree_on_tick(uv_timer_t *timer);
void agree_resend_all(struct agreement *a);
void agree_resend_to(struct agreement *a, uint32_t node);
/* The outcome of an own command, from the own log or from the leader. */
void agree_outcome(struct agreement *a, uint64_t sequence, enum agree_fate fate,
		   const struct dedup_result *r);
void agree_on_answers(struct agreement *a, uint32_t from, const Copia__AgreeAnswers *m);
void agree_on_leader(struct agreement *a, uint32_t from, const Copia__AgreeLeader *m);
void agree_on_read_reply(struct agreement *a, const Copia__AgreeReadReply *m);
void agree_barrier_index(struct agreement *a, uint64_t id, bool ok, uint64_t index);
void agree_barriers_done(struct agreement *a); /* those whose index is applied */
void agree_cancel_all(struct agreement *a);

/* agree-wire.c */
/* 0, or as peers_send(); -ENOTCONN without a network. */
int agree_send(struct agreement *a, uint32_t to, const Copia__AgreeMessage *m);
void agree_send_raft(struct agreement *a, const struct raft_message *m);
/* A handler of peers; ctx is the agreement. */
void agree_receive(void *ctx, uint32_t from, struct span body);
void agree_meta_pack(const struct raft_snapshot_meta *m, struct str *out);
int agree_meta_unpack(struct span bytes, struct raft_snapshot_meta *ret, struct err *err);
void agree_pack(const ProtobufCMessage *m, struct str *out);
