/* SPDX-License-Identifier: Apache-2.0 */
/* The client's side of the unix socket of this node's daemon.
 *
 * One connection carries many calls. A call begins with the verb and its request; after that both
 * sides may send messages until each has sent its last one. Two ways to use it:
 *
 *   simple     conn_open, conn_ask (waits for the one reply), conn_close
 *   streaming  conn_open, conn_begin, then in a loop: poll conn_fd for conn_events, conn_work,
 *              conn_next until it returns 0, conn_send; a slow daemon shows in conn_queued
 *
 *   OPEN --conn_work fails--> BROKEN --conn_reopen--> OPEN (all calls forgotten)
 *
 * A daemon's brain may be restarted while a client is attached: the client then sees conn_work
 * return -ECONNRESET, calls conn_reopen until it is there again, and begins anew the calls that it
 * still wants. Numbers of calls are never used twice, so nothing old can be taken for new.
 * Not thread safe; nothing here blocks but conn_wait, conn_ask and conn_reopen. */
#pragma once
#include "base/err.h"

#include <protobuf-c/protobuf-c.h>

struct conn;

enum {
	CONN_VERSION = 1,          /* of the protocol, ControlFrame.version */
	CONN_FRAME_MAX = 1 << 20,  /* bytes of one frame without its length */
	CONN_QUEUE_HIGH = 1 << 18, /* above this in conn_queued stop producing */
};

/* What the daemon sent for one call. Valid until the next conn_next, conn_work or conn_close. */
struct conn_frame {
	uint64_t call;
	struct span
	    body;  /* a packed message of the verb's reply type; len 0: none or all default */
	bool last; /* the call has ended; `code` says how */
	int code;  /* with last: 0 or a negative errno */
	const char *error; /* with code < 0: object, cause and remedy; never NULL */
};

/* $COPIA_SOCKET, else the first that exists of /run/copia/copia.sock,
 * $XDG_RUNTIME_DIR/copia/copia.sock and /tmp/copia-UID/copia.sock, else the first that this user's
 * daemon would make. Returns `buf`. */
char *conn_default_path(char buf[108]);

/* Connect to `path` (NULL: conn_default_path). On success the caller owns *ret.
 * Errors: -ECONNREFUSED (no daemon there: message with path, cause and remedy), -EACCES (not
 * allowed, or a socket in a shared folder that belongs to somebody else), -ENAMETOOLONG. */
int conn_open(struct conn **ret, const char *path, struct err *err);
/* Takes NULL, returns NULL. What was not yet sent is lost. */
struct conn *conn_close(struct conn *c);
/* Connect again to the same path, once. Errors: as conn_open; then the old state stays BROKEN. */
int conn_reopen(struct conn *c, struct err *err);

/* For poll(): the descriptor (-1 while BROKEN; it changes with conn_reopen) and POLLIN|POLLOUT. */
int conn_fd(const struct conn *c);
short conn_events(const struct conn *c);
/* Read and write what is possible now. Returns 0; -ECONNRESET when the daemon went away (frames
 * that came before can still be taken with conn_next), -EPROTO when it sent nonsense. */
int conn_work(struct conn *c, struct err *err);
/* Wait until the descriptor is ready, at most timeout_ms (-1: for ever), then conn_work.
 * Errors: -ETIMEDOUT, -EINTR (a signal), and those of conn_work. */
int conn_wait(struct conn *c, int timeout_ms, struct err *err);

/* Begin a call; returns its number, never 0. The request is packed at once. `last`: no messages
 * will follow (always so for a verb without stream_in). A request that is too large for a frame
 * is answered by conn_next with -EMSGSIZE and never sent. */
uint64_t conn_begin(struct conn *c, const char *verb, const ProtobufCMessage *request, bool last);
/* Send a further message of a call, packed at once; NULL sends only the end (with `last`).
 * Errors: -EMSGSIZE, -ECONNRESET while BROKEN. Bytes are queued without limit: look at
 * conn_queued first. */
int conn_send(struct conn *c, uint64_t call, const ProtobufCMessage *message, bool last,
	      struct err *err);
/* Bytes that the kernel has not taken yet. */
size_t conn_queued(const struct conn *c);
/* Take the next frame of any call: 1 with *ret filled, 0 when there is none,
 * -EPROTO when the daemon sent nonsense (the connection is BROKEN then). */
int conn_next(struct conn *c, struct conn_frame *ret, struct err *err);

/* Call a verb and wait for its one reply. On success *ret is a message of type `reply`; the caller
 * frees it with protobuf_c_message_free_unpacked(). Frames of other calls are dropped, so this is
 * not for connections with streams. `timeout_ms` -1: as long as it takes.
 * Errors: the daemon's own code with its text, -ETIMEDOUT, -ECONNRESET, -EPROTO. */
int conn_ask(struct conn *c, const char *verb, const ProtobufCMessage *request,
	     const ProtobufCMessageDescriptor *reply, int timeout_ms, ProtobufCMessage **ret,
	     struct err *err);
