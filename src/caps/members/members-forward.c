/* SPDX-License-Identifier: Apache-2.0 */
/* Verbs that only the leader can answer, asked on any node: the request travels, the answer comes
 * back, the asking user is the one on the asking node. */
#include "caps/members/members-impl-node.h"

#include "base/log.h"
#include "node/control-impl.h"

#include <schema/control.pb-c.h>

#include <errno.h>
#include <stdio.h>

enum { FORWARDS_MAX = 1024 };

struct waiting *members_wait(struct members_node *mn)
{
	struct waiting *w = xcalloc(1, sizeof(*w));
	w->number = ++mn->next_call;
	w->leader = mn->node->members->leader;
	HASH_ADD(hh, mn->waiting, number, sizeof(w->number), w);
	return w;
}

struct waiting *members_waiting(struct members_node *mn, uint64_t number)
{
	struct waiting *w;
	HASH_FIND(hh, mn->waiting, &number, sizeof(number), w);
	return w;
}

void members_wait_done(struct members_node *mn, struct waiting *w)
{
	HASH_DEL(mn->waiting, w);
	free(w);
}

/* ---------------------------------------------------------------- the asking side */

static void on_caller_gone(void *ctx, struct call *c)
{
	struct members_node *mn = ctx;
	struct waiting *w, *next;
	HASH_ITER(hh, mn->waiting, w, next)
	if (w->call == c)
		members_wait_done(mn, w);
}

int members_forward(struct members_node *mn, struct call *c, const char *words, struct span body,
		    struct err *err)
{
	uint32_t leader = mn->node->members->leader;
	if (!mn->node->peers)
		return err_set(
		    err, -ENOTCONN,
		    "this node is in no cluster; make one with copia init or join one with "
		    "copia join");
	if (members_is_leader(mn))
		return 0;
	if (!leader || leader == mn->node->number || !peers_up(mn->node->peers, leader))
		return err_set(
		    err, -EHOSTDOWN,
		    "the cluster has no leader that this node can reach; too few controllers "
		    "are up, or the network is cut: copia status");
	if (HASH_COUNT(mn->waiting) >= FORWARDS_MAX)
		return err_set(err, -EAGAIN, "too many calls wait for the leader; try again");
	struct waiting *w = members_wait(mn);
	w->call = c;
	Copia__ForwardedCall f = COPIA__FORWARDED_CALL__INIT;
	f.call = w->number;
	f.verb = (char *)words;
	f.body = (ProtobufCBinaryData){ body.len, (uint8_t *)body.at };
	f.uid = call_uid(c);
	f.gid = call_gid(c);
	f.user = (char *)call_user(c);
	f.from = mn->node->number;
	f.privileged = call_privileged(c);
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_CALL;
	m.call = &f;
	if (members_send(mn, leader, &m) < 0) {
		members_wait_done(mn, w);
		return err_set(err, -EHOSTDOWN, "the leader %s cannot be reached",
			       members_name(mn->node->members, leader));
	}
	static const struct call_hooks hooks = { .closed = on_caller_gone };
	call_keep(c, &hooks, mn);
	return 1;
}

void members_take_reply(struct members_node *mn, const Copia__ForwardedReply *r)
{
	struct waiting *w = members_waiting(mn, r->call);
	if (!w || !w->call)
		return;
	struct call *c = w->call;
	members_wait_done(mn, w);
	if (r->code == 0)
		call_reply_packed(c, r->body.data, r->body.len);
	call_finish(c, MIN(r->code, 0), "%s", r->error);
}

void members_forward_lost(struct members_node *mn, uint32_t leader)
{
	struct waiting *w, *next;
	if (leader == UINT32_MAX)
		return;
	HASH_ITER(hh, mn->waiting, w, next)
	{
		if (w->leader == leader)
			continue;
		struct call *c = w->call;
		uint64_t ticket = w->ticket;
		members_wait_done(mn, w);
		if (c)
			call_finish(
			    c, -EAGAIN,
			    "the leader changed while it worked on this; look (copia status, "
			    "copia events) whether it was done, and try again");
		if (ticket && mn->node->peers)
			(void)peers_join_refuse(mn->node->peers, ticket,
						"the leader changed; try again");
	}
}

/* ---------------------------------------------------------------- the leader's side */

struct remote_call {
	struct members_node *mn;
	uint32_t from;
	uint64_t number;
	struct str body;
};

static void remote_send(void *ctx, struct call *c, const Copia__ControlFrame *f)
{
	struct remote_call *r = ctx;
	if (!f->last) {
		str_clear(&r->body);
		str_add(&r->body, f->body.data, f->body.len);
		return;
	}
	Copia__ForwardedReply reply = COPIA__FORWARDED_REPLY__INIT;
	reply.call = r->number;
	reply.code = f->code;
	reply.error = f->error;
	reply.body = (ProtobufCBinaryData){ r->body.len, (uint8_t *)r->body.at };
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_REPLY;
	m.reply = &reply;
	(void)members_send(r->mn, r->from, &m);
}

static size_t remote_room(void *ctx, const struct call *c)
{
	return CONTROL_FRAME_MAX;
}

static void remote_hold(void *ctx, struct call *c, bool hold)
{
}

static void remote_end(void *ctx, struct call *c)
{
	struct remote_call *r = ctx;
	str_free(&r->body);
	free(r);
}

void members_take_call(struct members_node *mn, uint32_t from, const Copia__ForwardedCall *f)
{
	static const struct call_sink sink = { remote_send, remote_room, remote_hold, remote_end };
	struct remote_call *r = xcalloc(1, sizeof(*r));
	*r = (struct remote_call){ .mn = mn, .from = from, .number = f->call };
	struct call_who who = { .uid = f->uid, .gid = f->gid, .privileged = f->privileged };
	(void)snprintf(who.user, sizeof(who.user), "%s@%s", f->user,
		       members_name(mn->node->members, from));
	struct call *c = call_new(mn->node, &sink, r, &who, f->call);
	if (!members_is_leader(mn) && !mn->node->members->leader)
		call_finish(c, -EHOSTDOWN,
			    "the cluster has no leader just now; too few controllers are up, or "
			    "the network is cut: copia status");
	else if (!members_is_leader(mn))
		call_finish(c, -EAGAIN, "the leader changed; try again");
	else
		control_run(mn->node->control, c, f->verb,
			    (struct span){ f->body.data, f->body.len }, false);
}

int node_forward(struct node *n, struct call *c, const char *words, struct span body)
{
	struct err err = { 0 };
	int r = members_forward(n->members_node, c, words, body, &err);
	if (r < 0)
		call_finish(c, r, "%s", err.msg);
	return r < 0 ? 1 : r;
}
