/* SPDX-License-Identifier: Apache-2.0 */
/* The unix socket of a node: programs call verbs of the schema, the brain answers.
 *
 * A verb has one handler. The handler either answers at once (call_reply + call_finish) or keeps
 * the call and answers later, any number of times; a streaming verb also gets the frames that the
 * client sends after its request. A call ends exactly once: by call_finish(), or because the client
 * went away; then `closed` is called (if set) and the call must not be used any more.
 *
 *   OPEN --call_finish--> ENDED        OPEN --client gone--> closed() --> ENDED
 *
 * Everything runs on the loop's thread. The caller's user is known from the socket's peer
 * credentials and cannot be forged. */
#pragma once
#include "base/err.h"
#include "base/str.h"

#include <protobuf-c/protobuf-c.h>
#include <sys/types.h>

struct node;
struct control;
struct call;

enum {
	CONTROL_FRAME_MAX = 1 << 20, /* bytes of one frame, both ways */
	CONTROL_CALLS_MAX = 64,      /* open calls of one connection */
	CONTROL_CONNECTIONS_MAX = 4096,
	CONTROL_USER_CONNECTIONS_MAX = 2048, /* of one ordinary user */
	CONTROL_RESERVED = 256,              /* of all, for root and the user that copiad runs as */
	CONTROL_QUEUE_MAX = 4 << 20, /* bytes waiting for one client; beyond: call_room() is 0 */
};

/* Answer the request, which is unpacked, of the verb's request type, and freed by the caller of the
 * handler when it returns. Returning < 0 finishes the call with that code and err->msg. */
typedef int control_verb(struct node *n, struct call *c, const ProtobufCMessage *request,
			 struct err *err);

/* Handlers are found by the verb's words in the generated table; registering a verb that the schema
 * does not have is a programmer's error. `verb` is kept. */
void control_on(struct control *s, const char *verb, control_verb *handler);

/* Who asks. For a verb forwarded to the leader these are the asking user on the asking node. */
uid_t call_uid(const struct call *c);
gid_t call_gid(const struct call *c);
pid_t call_pid(const struct call *c);        /* 0 when forwarded */
bool call_privileged(const struct call *c);  /* root, or the user that the daemon runs as */
const char *call_user(const struct call *c); /* name or number, never NULL */
/* The supplementary groups that the asking process has, which may be fewer than its user's. false:
 * not known, for the call came from another node. The caller frees *ret. */
bool call_groups(const struct call *c, gid_t **ret, size_t *ret_count);
struct node *call_node(const struct call *c);

/* Send one reply or stream message; packs it at once. Never blocks; when the client is slow the
 * bytes wait: a stream's producer asks call_room() first and goes on when `room` is called. */
void call_reply(struct call *c, const ProtobufCMessage *message);
/* End the call. code 0 or negative errno; text may be NULL when code is 0. */
void call_finish(struct call *c, int code, const char *text_fmt, ...) _printf_(3, 4);

/* Bytes that may still be sent before the client's queue is full. */
size_t call_room(const struct call *c);

/* For handlers that keep the call. All optional; `ctx` is handed to each. */
struct call_hooks {
	/* A further frame of the client (stream message, still packed); `last`: it will send no
	 * more. Reading pauses while call_hold() is in force, so that slow receivers push back. */
	void (*frame)(void *ctx, struct call *c, const uint8_t *body, size_t len, bool last);
	void (*room)(void *ctx, struct call *c);   /* the queue went below half */
	void (*closed)(void *ctx, struct call *c); /* client gone; the call is freed afterwards */
};
void call_keep(struct call *c, const struct call_hooks *hooks, void *ctx);
/* Stop (true) or resume (false) reading frames from this call's connection. */
void call_hold(struct call *c, bool hold);
