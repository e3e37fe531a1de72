/* SPDX-License-Identifier: Apache-2.0 */
/* One TCP connection that carries frames, in TLS once it was started: what peers.c and peers-join.c
 * build on. Embedded in its owner's object, whose memory must stay until `closed` is called.
 *
 *   NEW --dial--> DIALLING --connected--> RAW --start--> SECURING --> READY
 *   NEW --adopt--> RAW                                READY --finish--> FINISHING
 *   any but NEW --close--> CLOSED, later the `closed` event
 *
 * Every function may be called from within every event. Once closed, by whomever, only `closed`
 * still comes. */
#pragma once
#include "io/addr.h"
#include "io/tls.h"
#include "wire/frame.h"
#include <uv.h>

enum tls_conn_state {
	TLS_CONN_NEW,
	TLS_CONN_DIALLING,
	TLS_CONN_RAW, /* connected, nothing said */
	TLS_CONN_SECURING,
	TLS_CONN_READY,
	TLS_CONN_FINISHING, /* sends what is left, then takes nothing in until the other side ends
			     */
	TLS_CONN_CLOSED
};

struct tls_conn;

struct tls_conn_events {
	void (*connected)(struct tls_conn *c); /* after tls_conn_dial() */
	/* First bytes of an adopted connection; `byte` is the first one. Calls tls_conn_start() or
	 * tls_conn_close(). */
	void (*first)(struct tls_conn *c, uint8_t byte);
	void (*ready)(struct tls_conn *c);
	void (*message)(struct tls_conn *c, uint8_t channel, struct span body);
	void (*sent)(struct tls_conn *c); /* the kernel took bytes: c->inflight is smaller now */
	/* Over, by the other side or by an error; closed already, `closed` follows. */
	void (*lost)(struct tls_conn *c, const struct err *err);
	void (*closed)(struct tls_conn *c); /* the memory may be freed now */
};

enum { TLS_CONN_CIPHER_SIZE = 64 * 1024, TLS_CONN_PLAIN_SIZE = 16 * 1024 };

/* Shared by all connections of a loop: bytes stay here only while they are looked at. */
struct tls_conn_buffers {
	char cipher[TLS_CONN_CIPHER_SIZE], plain[TLS_CONN_PLAIN_SIZE];
};

struct tls_conn {
	uv_tcp_t tcp;
	enum tls_conn_state state;
	const struct tls_conn_events *events;
	struct tls_conn_buffers *buffers; /* borrowed */
	struct tls *tls;                  /* from tls_conn_start() on */
	struct frame_decoder *decoder;    /* likewise */
	size_t inflight;                  /* bytes that the kernel has not taken yet */
	bool wipe;                        /* plaintext holds secrets: wiped after use */
};

/* Also makes this process ignore SIGPIPE, unless it has its own handler. */
void tls_conn_init(struct tls_conn *c, uv_loop_t *loop, const struct tls_conn_events *events,
		   struct tls_conn_buffers *buffers);
/* Take over a connected socket (closed on failure too) and wait for the first byte. After any
 * failure the connection is closed and `closed` follows. */
int tls_conn_adopt(struct tls_conn *c, int fd, struct err *err);
int tls_conn_dial(struct tls_conn *c, const union addr *to, struct err *err);
/* Begin TLS; owns `tls`. `limits` is borrowed. */
void tls_conn_start(struct tls_conn *c, struct tls *tls, const struct frame_limits *limits);
void tls_conn_set_limits(struct tls_conn *c, const struct frame_limits *limits);

/* Encrypt and hand over. For whole frames; only in READY. Errors lead to `lost`, later. */
void tls_conn_write(struct tls_conn *c, const void *bytes, size_t len);
void tls_conn_send(struct tls_conn *c, uint8_t channel, const void *body, size_t len);
/* Tell the other side that this was all, wait for its end, then close. The owner calls
 * tls_conn_close() when it takes too long. */
void tls_conn_finish(struct tls_conn *c);
/* Close for a fault of what came in: `lost` is called with it, now. */
void tls_conn_fail(struct tls_conn *c, int code, const char *why);
void tls_conn_close(struct tls_conn *c); /* does nothing when closed */

/* Notice dead links: silence of `dead_ms`, with something to send or without. */
void tls_conn_watch(struct tls_conn *c, unsigned dead_ms);
uint32_t tls_conn_rtt_us(const struct tls_conn *c); /* 0: unknown */
