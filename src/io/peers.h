/* SPDX-License-Identifier: Apache-2.0 */
/* Sessions between the brains of a cluster: TLS 1.3 with certificates on both sides, one TCP port,
 * one loop, one thread.
 *
 * A *session* is one connection between two nodes, used in both directions whoever dialled, so that
 * a node whose own port is firewalled still takes part and n nodes need half the handshakes. When
 * both sides dial at once, the connection of the lower number wins, and only before any message
 * was sent; each greeting carries a counter, so that a late one is told from a renewed one.
 *
 *   IDLE --send, keep--> DIALLING --greeted--> UP --lost, forgotten--> IDLE
 *   IDLE, DIALLING --accepted from the other side--> UP
 *   DIALLING --no address works--> IDLE, with back-off before the next dial
 *
 * Promises: within one session, messages of one channel arrive whole, once and in order. When a
 * session ends, and when dialling fails, everything queued for that node is dropped and the state
 * event (up = false) says so; nothing is sent twice. Channels have priorities (SESSION, AGREE,
 * MEMBERS, then the others in turn); a frame never waits for more than PEERS_BATCH_BYTES that were
 * handed to the kernel before. Receivers take a message when it comes: flow control over a channel
 * (credits, windows) is for those who send bulk data over it.
 *
 * A session is up only after: the certificate's chain ends in the cluster's authority, cluster id
 * and number in the certificate and in the greeting agree, the number is known, and the certificate
 * is one of those allowed for it. Each refusal is counted, told to the other side and logged once a
 * minute for each address. That a session is up or down says nothing certain about the node. */
#pragma once
#include "base/err.h"
#include "base/id.h"
#include "io/addr.h"
#include "io/pki.h"
#include <uv.h>

enum {
	PEERS_VERSION = 1,              /* of the protocol; greetings carry a range */
	PEERS_PORT = 7440,              /* default */
	PEERS_ADDRESS_MAX = 8,          /* of one node */
	PEERS_FINGERPRINT_MAX = 4,      /* of one node: current, previous… */
	PEERS_BATCH_BYTES = 256 * 1024, /* handed to the kernel at once, for each session */
	PEERS_JOIN_MAX = 16 * 1024,     /* request for joining, bytes */
	PEERS_REASON_TEXT = 256
};

enum channel {
	CHANNEL_SESSION = 1, /* greetings and refusals; not for users of this module */
	CHANNEL_AGREE,
	CHANNEL_MEMBERS,
	CHANNEL_LAUNCH,
	CHANNEL_WIREUP,
	CHANNEL_STAGE,
	CHANNEL_COUNT
};

struct peers;

/* A message from node `from` (also from ourselves). `body` is borrowed, valid during the call. All
 * functions below may be called from within. */
typedef void peers_handler(void *ctx, uint32_t from, struct span body);

struct peers_events {
	/* up: the session is ready. Not up: it ended or could not be made, for `reason`; what was
	 * queued is lost. */
	void (*state)(void *ctx, uint32_t node, bool up, const char *reason);
	/* The queue of a channel that had answered -EAGAIN is at most half full again. */
	void (*drained)(void *ctx, uint32_t node, enum channel channel);
	/* A machine without certificate asks to join. Answer, now or within a minute, with
	 * peers_join_reply() or peers_join_refuse(). `body` is borrowed and holds a secret. NULL:
	 * joining is refused here. */
	void (*join)(void *ctx, uint64_t ticket, struct span body, const char *remote);
	void *ctx;
};

struct peers_settings {
	uint32_t node;        /* own number, > 0 */
	struct id cluster;    /* not none */
	uint64_t incarnation; /* of this process: differs after each start */
	uint64_t seed;        /* for jitter */

	struct span cert, key, authority; /* PEM, copied; `authority` may hold several */

	/* 0 in what follows means the default. */
	unsigned version_min, version_max; /* PEERS_VERSION */
	unsigned dead_ms;                  /* silence after which a session is given up: 10,000 */
	unsigned handshake_ms;             /* deadline for newcomers: 5,000; join request: twice */
	unsigned source_max;               /* unfinished connections of one address: 1,024 */
	unsigned unfinished_max;           /* in total: 12,000, or what the descriptors allow */
	struct peers_events events;
};

/* Makes the mesh; nothing listens or dials yet. Raises the soft limit of descriptors to the hard
 * one. Errors: -EBADMSG, -EKEYREJECTED (certificate, key, authority or ids do not fit together). */
int peers_new(struct peers **ret, uv_loop_t *loop, const struct peers_settings *settings,
	      struct err *err);
/* Ends all sessions and calls `done` (may be NULL) from the loop when nothing is left of `p`. */
void peers_close(struct peers *p, void (*done)(void *ctx), void *ctx);

/* Listen on `port` (0: any) of all addresses, IPv6 and IPv4. Errors: -EADDRINUSE, -EACCES… */
int peers_listen(struct peers *p, uint16_t port, struct err *err);
/* Could peers_listen() do it now? Nothing stays open. */
int peers_port_check(uint16_t port, struct err *err);
uint16_t peers_port(const struct peers *p); /* 0 while not listening */

/* Use a new certificate and key, and maybe authority, for sessions made from now on; present ones
 * go on. On failure the old identity stays. Errors: as peers_new(). */
int peers_set_identity(struct peers *p, struct span cert, struct span key, struct span authority,
		       struct err *err);

struct peers_node {
	uint32_t number;
	const union addr *addresses; /* where it listens, best first; may be none: it dials us */
	size_t address_count;
	const struct pki_fingerprint *allowed; /* none: any certificate for this number */
	size_t allowed_count;
};

/* Make a node known, or replace what is known of it. A session whose certificate is no longer
 * allowed is closed at once. Errors: -EINVAL (own number, too many addresses or fingerprints). */
int peers_set_node(struct peers *p, const struct peers_node *node, struct err *err);
/* The node left or was revoked: its session ends at once, new ones are refused. */
void peers_forget_node(struct peers *p, uint32_t number);

/* One handler for each channel; NULL drops its messages. */
void peers_on(struct peers *p, enum channel channel, peers_handler *handler, void *ctx);

/* Queue a message; bytes are copied. Dials if needed. To ourselves: delivered by the loop, never
 * from within this call. Results: 0, -EAGAIN (queue full: wait for `drained`), -ENOENT (unknown
 * node), -EMSGSIZE (over peers_message_max()), -ENOMEM. */
int peers_send(struct peers *p, uint32_t to, enum channel channel, const void *bytes, size_t len);
/* Longest message of a channel in bytes. */
size_t peers_message_max(enum channel channel);

/* Keep a session with this node up always (or no longer). Forgotten with the node. */
void peers_keep(struct peers *p, uint32_t number, bool keep);
/* End the session, if any, and what is queued; not kept from dialling again. */
void peers_disconnect(struct peers *p, uint32_t number, const char *reason);

bool peers_up(const struct peers *p, uint32_t number);
/* Smoothed round trip as TCP measures it, in microseconds; 0 when not up. */
uint32_t peers_rtt_us(const struct peers *p, uint32_t number);
/* Incarnation from the other side's greeting; 0 when not up. */
uint64_t peers_incarnation(const struct peers *p, uint32_t number);
/* Why the last session ended or could not be made; "" when there is nothing to tell. */
const char *peers_reason(const struct peers *p, uint32_t number);
/* Bytes queued for a channel of a node. */
size_t peers_queued(const struct peers *p, uint32_t number, enum channel channel);

struct peers_stats {
	uint64_t accepted, dialled;   /* connections */
	uint64_t sessions;            /* that came up, in total */
	uint64_t garbage;             /* connections closed for what they sent */
	uint64_t late;                /* closed for not finishing in time */
	uint64_t displaced;           /* closed to make room for newer ones */
	uint64_t refused_cluster;     /* certificate of another cluster */
	uint64_t refused_certificate; /* unknown issuer, wrong kind */
	uint64_t refused_unknown;     /* node unknown here (never was, left, revoked) */
	uint64_t refused_fingerprint; /* right number, certificate not allowed */
	uint64_t refused_version;
	uint64_t refused_join;
	uint32_t unfinished, up; /* now */
};
void peers_stats(const struct peers *p, struct peers_stats *ret);

/* Answer a request for joining; the connection closes behind it. Errors: -ENOENT (gone). */
int peers_join_reply(struct peers *p, uint64_t ticket, const void *body, size_t len);
/* `reason` is shown to the person who tried. */
int peers_join_refuse(struct peers *p, uint64_t ticket, const char *reason);

/* --- the newcomer's side; needs no struct peers --- */

struct peers_join_settings {
	const char *host; /* name or address */
	uint16_t port;
	uint8_t authority[PKI_FINGERPRINT_SIZE]; /* from the token */
	struct span request;                     /* at most PEERS_JOIN_MAX bytes; copied, wiped */
	unsigned timeout_ms;                     /* of it all; 0: 15,000 */
	unsigned version_min, version_max;       /* 0: PEERS_VERSION */
};

struct peers_joined {
	struct span reply;         /* borrowed */
	const char *authority_pem; /* the certificate that the fingerprint means; borrowed */
	char remote[ADDR_TEXT];    /* the address that answered */
};

/* Ask a member for admission. The secret in `request` is sent only after the other side has proved
 * that its certificate was signed by the authority of that fingerprint. All addresses of `host` are
 * tried, and only one gets the request. `cb` is called exactly once, from the loop, with `joined`
 * on success, else with the reason:
 *   -EHOSTUNREACH     no address answered, or the name is unknown
 *   -EPROTO           something answered, but it is not a Copia node
 *   -EKEYREJECTED     a Copia node of another cluster
 *   -EPROTONOSUPPORT  versions do not fit
 *   -EACCES           refused by the member; the message is what it said
 *   -ECONNRESET       lost after the request was sent: the token may have been used
 *   -ETIMEDOUT
 * Errors: -EINVAL, -EMSGSIZE. */
struct peers_join;
typedef void peers_join_done(void *ctx, int result, const struct peers_joined *joined,
			     const struct err *err);
int peers_join(uv_loop_t *loop, const struct peers_join_settings *settings, peers_join_done *cb,
	       void *ctx, struct peers_join **ret, struct err *err);
/* Give up; `cb` is not called any more. Not after `cb` was called. */
void peers_join_cancel(struct peers_join *j);
