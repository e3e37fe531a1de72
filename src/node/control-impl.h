/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of calls, for the two places that make them: the unix socket, and the leader for verbs
 * that other nodes forward to it. */
#pragma once
#include "node/control.h"

#include <schema/control.pb-c.h>

enum { CONTROL_VERSION = 1 };

struct call_who {
	uid_t uid;
	gid_t gid;
	pid_t pid;
	bool privileged;
	char user[64];
};

/* Where the frames of a call go. */
struct call_sink {
	void (*send)(void *ctx, struct call *c, const Copia__ControlFrame *frame);
	size_t (*room)(void *ctx, const struct call *c);
	void (*hold)(void *ctx, struct call *c, bool hold);
	void (*end)(void *ctx, struct call *c); /* forget the call; it is freed afterwards */
};

struct call {
	struct node *node;
	const struct call_sink *sink;
	void *sink_ctx;
	struct call_who who;
	uint64_t number;
	struct call_hooks hooks;
	void *ctx;
	bool held, wants_room;
	struct call *prev, *next;
};

struct call *call_new(struct node *node, const struct call_sink *sink, void *sink_ctx,
		      const struct call_who *who, uint64_t number);
void call_reply_packed(struct call *c, const uint8_t *body, size_t len);
/* The other side is gone: tells the handler and frees the call. */
void call_gone(struct call *c);

/* Check rights, unpack and run; the call may have ended when this returns. */
void control_run(struct control *s, struct call *c, const char *words, struct span body,
		 bool may_forward);

/* 1: the leader will answer; 0: we are the leader, answer here; < 0: nobody can, err is said. */
int node_forward(struct node *n, struct call *c, const char *words, struct span body);

int control_new(struct control **ret, struct node *node, struct err *err);
/* Serve from now on; separate from control_new() so that no verb is asked before its handler is
 * there. Errors: -EADDRINUSE, -EACCES, -ENOENT with the path. */
int control_listen(struct control *s, struct err *err);
/* Ends all calls; memory goes when the loop has closed the handles. */
void control_close(struct control *s);
