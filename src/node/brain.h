/* SPDX-License-Identifier: Apache-2.0 */
/* Glue between the parts of the brain: the log and its state on one side, sessions and the
 * shepherd on the other. */
#pragma once
#include "cluster/agree.h"
#include "node/node.h"

#include <schema/members.pb-c.h>

struct identity;

/* Start sessions and the log as this identity. `fresh`: make the log of a new cluster. */
int node_enter(struct node *n, const struct identity *i, bool fresh, struct err *err);
/* Leave the cluster: sessions and log are closed, the state is empty. Not from inside a callback of
 * agree or peers: see node_leave_soon(). */
void node_leave(struct node *n);

/* Read from the log's state or the leader's view, whichever is right now. */
void node_choose_state(struct node *n);

/* Propose one command of the members. `done` is called exactly once, also on immediate failure
 * (then from within). code 0: applied; else the reason is in `text`. */
typedef void node_done(void *ctx, int code, const char *text, struct span result);
void node_propose(struct node *n, const Copia__MembersCommand *cmd, node_done *done, void *ctx);

/* Send a packed message; failures are no news (level-triggered users send again). */
int node_send(struct node *n, uint32_t to, unsigned channel, const ProtobufCMessage *message);
