/* SPDX-License-Identifier: Apache-2.0 */
/* What the files of peers.h share.
 *
 *   peers.c          the mesh: settings, nodes, queries, messages to ourselves
 *   peers-accept.c   the port: who may be unfinished, and for how long
 *   peers-session.c  greetings, refusals, who wins
 *   peers-dial.c     addresses in turn, back-off
 *   peers-queue.c    messages by priority into sessions
 *   peers-join.c     the newcomer, who has no struct peers
 */
#pragma once
#include "base/rng.h"
#include "io/peers.h"
#include "io/tls-conn.h"
#include "wire/session.h"
#include <sys/queue.h>

#define PEERS_LOG "peers"

enum {
	PEERS_DEAD_MS = 10000,
	PEERS_HANDSHAKE_MS = 5000,
	PEERS_JOIN_WAIT_MS = 60000, /* for our own answer to a request */
	PEERS_FINISH_MS = 1000,     /* for the other side to read a refusal */
	PEERS_STAGGER_MS = 200,     /* before the next address is tried as well */
	PEERS_SWEEP_MS = 250,
	PEERS_SOURCE_MAX = 1024,
	PEERS_SOURCE_TALKING_MAX = 128, /* in the handshake, of one address */
	PEERS_TALKING_MAX = 1024,
	PEERS_UNFINISHED_MAX = 12000,
	PEERS_JOINS_MAX = 64, /* waiting for our answer */
	PEERS_SOURCE_BUCKETS = 1024,
	PEERS_LOGGED = 64,
	PEERS_LOG_MS = 60000,
	PEERS_REPLY_MAX = 8 * 1024 * 1024, /* answer to a newcomer: holds the view of a cluster */
	PEERS_SCRATCH_SIZE = FRAME_HEADER_SIZE + FRAME_BODY_MAX + 16 * 1024
};

/*   SILENT --first byte--> TALKING --certificate--> GREETING --greeted--> UP
 *                          TALKING --none--> JOINING --request--> ANSWERING
 *   CONNECTING --> TALKING --verified--> GREETING           (dialled)
 *   any --refused, answered--> ENDING;  any --> GONE */
enum session_stage {
	STAGE_SILENT,     /* accepted, no byte yet, no TLS object */
	STAGE_CONNECTING, /* dialled */
	STAGE_TALKING,    /* TLS handshake */
	STAGE_GREETING,   /* certificate verified, no greeting yet */
	STAGE_UP,
	STAGE_JOINING, /* no certificate: one request is waited for */
	STAGE_ANSWERING,
	STAGE_ENDING,
	STAGE_GONE,
	STAGE_COUNT
};

/* Every session that is not GONE is in the list of its kind, oldest first. */
enum session_list {
	LIST_SILENT,  /* accepted strangers, in SILENT */
	LIST_TALKING, /* accepted strangers further on, JOINING included */
	LIST_OTHERS, /* unfinished, but not to be displaced: dialled, verified, answering, ending */
	LIST_UP,
	LIST_COUNT
};

TAILQ_HEAD(session_head, session);

/* Strangers by address; IPv6 by /64, which is what one host has. */
struct source {
	struct source *next;
	uint8_t key[9];
	unsigned count[2]; /* LIST_SILENT, LIST_TALKING */
	struct session_head strangers[2];
};

struct session {
	struct tls_conn conn; /* first */
	struct peers *p;
	struct peer *peer; /* NULL until known, and once the peer is rid of it */
	enum session_stage stage;
	enum session_list list;
	TAILQ_ENTRY(session) entry, source_entry;
	struct source *source; /* strangers only */
	uint64_t deadline_ms;  /* 0: none */
	union addr remote;
	bool dialled;
	unsigned attempt; /* index of the address dialled */

	struct pki_cert cert; /* verified; node 0 before */
	uint64_t incarnation, order;
	uint64_t up_since_ms;
	uint64_t ticket; /* ANSWERING */
};

struct message {
	STAILQ_ENTRY(message) entry;
	size_t len, done;
	uint8_t bytes[];
};

struct queue {
	STAILQ_HEAD(, message) messages;
	size_t bytes;
	bool full; /* answered -EAGAIN and owes `drained` */
};

struct peer {
	struct peers *p;
	uint32_t number;
	bool keep, forgotten;
	union addr addresses[PEERS_ADDRESS_MAX];
	size_t address_count;
	struct pki_fingerprint allowed[PEERS_FINGERPRINT_MAX];
	size_t allowed_count;

	struct session *session;  /* UP */
	struct session *greeting; /* dialled, our greeting is sent */
	struct session *attempts[PEERS_ADDRESS_MAX];
	size_t next, first, tried; /* addresses: next to try, where we began, how many */
	bool dialling, waiting;    /* attempts run; back-off runs */
	unsigned failures;
	uv_timer_t timer;              /* stagger or back-off */
	char fault[PEERS_REASON_TEXT]; /* most telling of the present dial */
	char reason[PEERS_REASON_TEXT];

	struct queue queues[CHANNEL_COUNT];
	unsigned turn; /* among the bulk channels */
	bool dirty, pumping;
	TAILQ_ENTRY(peer) dirty_entry;
};

struct logged {
	uint64_t until_ms;
	uint32_t hash, hidden;
};

struct peers {
	uv_loop_t *loop;
	struct peers_settings settings; /* spans are not kept */
	struct tls_identity *identity;
	struct tls_conn_buffers buffers;
	uint8_t scratch[PEERS_SCRATCH_SIZE];
	struct rng rng;
	uint64_t order, tickets;

	struct peer **nodes; /* sorted by number; ourselves included */
	size_t node_count, node_cap;
	struct peer *self;
	struct {
		peers_handler *call;
		void *ctx;
	} handlers[CHANNEL_COUNT];

	struct session_head lists[LIST_COUNT];
	unsigned counts[LIST_COUNT];
	struct source *sources[PEERS_SOURCE_BUCKETS];
	unsigned joins;

	int listen_fd; /* -1: none */
	uint16_t port;
	uv_poll_t listen_poll;
	bool listening, accept_paused;
	uv_timer_t sweep;
	uv_prepare_t pump;
	uv_idle_t deliver;
	TAILQ_HEAD(, peer) dirty;

	struct peers_stats stats;
	struct logged logged[PEERS_LOGGED];

	unsigned handles; /* of libuv, not yet closed */
	bool closing;
	void (*done)(void *ctx);
	void *done_ctx;
};

/* peers.c */
struct peer *peers_find(const struct peers *p, uint32_t number); /* NULL: unknown */
void peers_handle_closed(struct peers *p); /* one of p->handles is gone; may free `p` */
void peers_tell(struct peer *peer, bool up, const char *reason);
/* A warning, once a minute for each address and matter. */
void peers_log(struct peers *p, const union addr *remote, unsigned matter, const char *fmt, ...)
    _printf_(4, 5);

/* peers-accept.c */
void peers_sweep_start(struct peers *p);
void peers_on_sweep(uv_timer_t *timer);
void peers_unlisten(struct peers *p);
void peers_source_leave(struct session *s);
/* Make room if there are too many in TALKING; `s` has just come there. */
void peers_source_move(struct session *s, enum session_list to);

/* peers-session.c */
extern const struct tls_conn_events peers_session_events;
extern const struct frame_limits peers_limits_greeting, peers_limits_up;
struct session *peers_session_new(struct peers *p, const union addr *remote);
void peers_session_list(struct session *s, enum session_list to);
void peers_session_stage(struct session *s, enum session_stage to, unsigned deadline_ms);
/* Close now; the peer loses it and hears nothing. */
void peers_session_drop(struct session *s);
/* Say why and end. Counted and logged. */
void peers_session_refuse(struct session *s, enum session_code code, const char *fmt, ...)
    _printf_(3, 4);
bool peers_allows(const struct peer *peer, const struct pki_fingerprint *f);
/* The peer's session, if any, ends; its queue is dropped, and it is told. */
void peers_session_end(struct peer *peer, enum session_code code, const char *reason);

/* Sends our greeting. */
void peers_session_greet(struct session *s);

/* peers-dial.c */
void peers_dial(struct peer *peer); /* if it is wanted, and neither up, dialling nor waiting */
void peers_dial_connected(struct session *s);
void peers_dial_verified(struct session *s); /* greets if it is the first */
/* An attempt is over. `code` as in the refusal, or SESSION_OTHER. */
void peers_dial_failed(struct session *s, enum session_code code, const char *why);
void peers_dial_stop(struct peer *peer, struct session *except); /* all attempts */
void peers_dial_later(struct peer *peer, bool is_tie);           /* back-off, then peers_dial() */

/* peers-queue.c */
void peers_queue_init(struct peer *peer);
int peers_queue_add(struct peer *peer, enum channel channel, const void *bytes, size_t len);
bool peers_queue_any(const struct peer *peer);
void peers_queue_drop(struct peer *peer);
void peers_queue_dirty(struct peer *peer);
void peers_queue_pump(struct peer *peer);
void peers_on_pump(uv_prepare_t *prepare);
void peers_on_deliver(uv_idle_t *idle);
