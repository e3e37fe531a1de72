/* SPDX-License-Identifier: Apache-2.0 */
/* What the leader keeps true: enough controllers, nodes that leave are let go, and test resources
 * in at most one place; and what a node does about the resources it was given. */
#include "caps/members/members-impl-node.h"

#include "base/log.h"
#include "cluster/liveness.h"

#include <errno.h>
#include <stdio.h>

/* ---------------------------------------------------------------- controllers */

static uint64_t replace_after_ms(const Copia__MembersState *s)
{
	return !strcmp(s->profile, "fast") ? 2000 : !strcmp(s->profile, "wan") ? 60000 : 10000;
}

static void propose_role(struct members_node *mn, uint32_t number, Copia__NodeRole role,
			 const char *reason)
{
	Copia__RoleCommand c = COPIA__ROLE_COMMAND__INIT;
	c.number = number;
	c.role = role;
	c.reason = (char *)reason;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_ROLE;
	cmd.role = &c;
	node_propose(mn->node, &cmd, NULL, NULL);
}

static const struct plan_controller *find(const struct plan_controller *list, size_t count,
					  uint32_t number)
{
	for (size_t i = 0; i < count; i++)
		if (list[i].number == number)
			return &list[i];
	return NULL;
}

/* The roles that people see, and by which nodes know that they are wanted in the log, follow the
 * log's own configuration. */
static void follow_roles(struct members_node *mn, const struct plan_controller *present,
			 size_t count)
{
	const Copia__MembersState *s = mn->node->members->state;
	for (size_t i = 0; i < s->n_nodes; i++) {
		const Copia__Node *n = s->nodes[i];
		const struct plan_controller *p = find(present, count, n->number);
		if (n->state == COPIA__NODE_STATE__LEFT)
			continue;
		if (p && p->voter && n->role != COPIA__NODE_ROLE__CONTROLLER)
			propose_role(mn, n->number, COPIA__NODE_ROLE__CONTROLLER,
				     "it has the whole log and votes");
		else if (p && p->learner && n->role != COPIA__NODE_ROLE__LEARNER)
			propose_role(mn, n->number, COPIA__NODE_ROLE__LEARNER,
				     "it is to become a controller");
		else if (!p && n->role != COPIA__NODE_ROLE__AGENT)
			propose_role(mn, n->number, COPIA__NODE_ROLE__AGENT,
				     n->leaving ? "it is leaving" : "another one took its place");
	}
}

static void keep_controllers(struct members_node *mn)
{
	struct agree_status st;
	struct plan_controller present[AGREE_CONTROLLERS_MAX];
	size_t count = 0;
	struct err err = { 0 };
	agree_status(mn->node->agree, &st);
	if (st.changing)
		return;
	for (unsigned i = 0; i < st.peer_count; i++)
		if (st.peers[i].voter || st.peers[i].learner)
			present[count++] =
			    (struct plan_controller){ st.peers[i].node, st.peers[i].voter,
						      st.peers[i].learner, st.peers[i].match };
	follow_roles(mn, present, count);
	struct plan_input in = {
		.members = mn->node->members,
		.self = mn->node->number,
		.present = present,
		.present_count = count,
		.last = st.last,
		.now_ms = MAX(mn->node->members->time_ms, st.now_ms),
		.replace_after_ms = replace_after_ms(mn->node->members->state),
	};
	/* Cluster time stands still while nothing is written; the leader's own clock goes on. */
	uv_timeval64_t wall;
	if (uv_gettimeofday(&wall) == 0)
		in.now_ms = MAX(in.now_ms, (uint64_t)wall.tv_sec * 1000);
	struct plan_controllers plan;
	members_plan_controllers(&in, &plan);
	if (!plan.change)
		return;
	int r = agree_set_voters(mn->node->agree, plan.voters, (unsigned)plan.voter_count,
				 plan.learners, (unsigned)plan.learner_count, &err);
	if (r < 0 && r != -EBUSY && r != -EAGAIN)
		log_warning("members", "controllers: %s", err.msg);
}

/* Drained controllers go on voting but do not lead, if another one can. */
static void keep_leadership(struct members_node *mn)
{
	const Copia__Node *self = members_self(mn);
	struct agree_status st;
	struct err err = { 0 };
	if (!self || !self->drained)
		return;
	agree_status(mn->node->agree, &st);
	for (unsigned i = 0; i < st.peer_count; i++) {
		const Copia__Node *n = members_find(mn->node->members, st.peers[i].node);
		if (n && n != self && st.peers[i].voter && n->state == COPIA__NODE_STATE__UP &&
		    !n->drained) {
			(void)agree_transfer(mn->node->agree, n->number, &err);
			return;
		}
	}
}

static void keep_leaving(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	for (size_t i = 0; i < s->n_nodes; i++) {
		const Copia__Node *n = s->nodes[i];
		if (!n->leaving || n->role != COPIA__NODE_ROLE__AGENT ||
		    n->state == COPIA__NODE_STATE__LEFT)
			continue;
		Copia__LeaveCommand c = COPIA__LEAVE_COMMAND__INIT;
		c.number = n->number;
		c.by = "the cluster: another controller took its place";
		c.revoked = n->state == COPIA__NODE_STATE__DOWN;
		Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
		cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_LEAVE;
		cmd.leave = &c;
		node_propose(mn->node, &cmd, NULL, NULL);
	}
}

/* ---------------------------------------------------------------- resources: the leader */

static void place(struct members_node *mn, const char *name, uint32_t on)
{
	Copia__ResourceCommand c = COPIA__RESOURCE_COMMAND__INIT;
	c.name = (char *)name;
	c.place = true;
	c.place_on = on;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_RESOURCE;
	cmd.resource = &c;
	node_propose(mn->node, &cmd, NULL, NULL);
}

static void stop_granting(struct members_node *mn, struct known *k)
{
	struct err err = { 0 };
	if (k->grant_stop_asked)
		return;
	k->grant_stop_asked = true;
	Copia__Shepherd__GrantStop g = COPIA__SHEPHERD__GRANT_STOP__INIT;
	g.number = k->number;
	Copia__Shepherd__Request r = COPIA__SHEPHERD__REQUEST__INIT;
	r.call = shepherd_link_call(mn->node->shepherd);
	r.ask_case = COPIA__SHEPHERD__REQUEST__ASK_GRANT_STOP;
	r.grant_stop = &g;
	(void)shepherd_link_send(mn->node->shepherd, &r, NULL, 0, &err);
}

void members_grant_stopped(struct members_node *mn, const Copia__Shepherd__GrantStopped *g)
{
	struct known *k = members_known(mn, g->number);
	k->grant_stop_answered = true;
	k->grant_stopped_us = g->ended_us;
	members_keep(mn);
}

/* Longest lease that the leader before us may have granted just before we became leader. */
static uint64_t foreign_lease_us(const Copia__MembersState *s)
{
	const struct liveness_profile *p = liveness_profile_find(s->profile);
	return p ? (uint64_t)p->lease_ms * 1000 * 102 / 100 + 100000 : 10000000;
}

/* Has everything ended that this node may believe to hold? */
static bool lease_surely_over(struct members_node *mn, uint32_t number)
{
	struct known *k = members_known(mn, number);
	stop_granting(mn, k);
	if (!k->grant_stop_answered)
		return false;
	uint64_t now = shepherd_now_us();
	uint64_t foreign = mn->led_since_us + foreign_lease_us(mn->node->members->state);
	return now > k->grant_stopped_us && now > foreign;
}

static void keep_resource(struct members_node *mn, const Copia__Resource *r)
{
	const Copia__Node *n = r->node ? members_find(mn->node->members, r->node) : NULL;
	if (!r->node) {
		uint32_t to = members_plan_place(mn->node->members, r);
		if (to)
			place(mn, r->name, to);
		return;
	}
	bool gone = !n || n->state != COPIA__NODE_STATE__UP;
	if (gone && lease_surely_over(mn, r->node))
		place(mn, r->name, 0);
}

/* A node that is up again may be granted leases again. */
static void forgive(struct members_node *mn)
{
	struct known *k, *next;
	HASH_ITER(hh, mn->known, k, next)
	{
		const Copia__Node *n = members_find(mn->node->members, k->number);
		if (k->grant_stop_asked && n && n->state == COPIA__NODE_STATE__UP)
			k->grant_stop_asked = k->grant_stop_answered = false;
	}
}

static void send_orders(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	_cleanup_(free_p) Copia__Resource **mine = xcalloc(s->n_resources + 1, sizeof(*mine));
	for (size_t i = 0; i < s->n_nodes; i++) {
		uint32_t to = s->nodes[i]->number;
		Copia__Orders o = COPIA__ORDERS__INIT;
		o.revision = mn->node->members->revision;
		o.resources = mine;
		for (size_t k = 0; k < s->n_resources; k++)
			if (s->resources[k]->node == to)
				mine[o.n_resources++] = s->resources[k];
		struct known *k = members_known(mn, to);
		bool had_some = k->orders_revision != 0;
		if (o.n_resources == 0 && !had_some)
			continue;
		k->orders_revision = o.n_resources ? o.revision : 0;
		Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
		m.body_case = COPIA__MEMBERS_MESSAGE__BODY_ORDERS;
		m.orders = &o;
		(void)members_send(mn, to, &m);
	}
}

void members_take_orders_done(struct members_node *mn, uint32_t from, const Copia__OrdersDone *d)
{
	/* Orders are level-triggered: what matters is in the events of the tasks. */
}

void members_keep(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	if (!members_is_leader(mn) || !members_in_cluster(mn->node->members))
		return;
	keep_controllers(mn);
	keep_leadership(mn);
	keep_leaving(mn);
	if (s->n_resources) {
		members_watch_update(mn);
		forgive(mn);
		for (size_t i = 0; i < s->n_resources; i++)
			keep_resource(mn, s->resources[i]);
	}
	send_orders(mn);
}

/* ---------------------------------------------------------------- resources: the node */

enum { RESTART_MS = 1000 };

/* The task's id comes from the placement, so that a brain started again knows it. */
static struct id task_of(const Copia__Resource *r)
{
	struct id id = { "resource" };
	for (int i = 0; i < 8; i++)
		id.at[8 + i] = (uint8_t)(r->placed >> 8 * i);
	return id;
}

static void start_resource(struct members_node *mn, struct own_resource *o,
			   const Copia__Resource *r)
{
	struct err err = { 0 };
	uint64_t now = node_now_ms(mn->node);
	if (o->running || o->stopping || now < o->start_at_ms)
		return;
	/* Each start is a task of its own: ids are never used twice. */
	node_random(o->task.at + 12, 4);
	char *env[] = { "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" };
	Copia__Shepherd__Out null_out = COPIA__SHEPHERD__OUT__INIT;
	null_out.mode = COPIA__SHEPHERD__OUT_MODE__OUT_NULL;
	Copia__Shepherd__Spawn s = COPIA__SHEPHERD__SPAWN__INIT;
	s.task = (ProtobufCBinaryData){ ID_SIZE, o->task.at };
	s.argv = r->argv;
	s.n_argv = r->n_argv;
	s.env = env;
	s.n_env = ARRAY_LEN(env);
	s.stdout = &null_out;
	s.stderr = &null_out;
	s.set_user = mn->node->settings.root;
	s.uid = r->uid;
	s.gid = r->gid;
	s.lease = true;
	Copia__Shepherd__Spawn *list[] = { &s };
	o->running = true;
	if (shepherd_spawn(mn->node->shepherd, shepherd_link_call(mn->node->shepherd), list, 1,
			   NULL, 0, &err) < 0) {
		o->running = false;
		o->start_at_ms = now + RESTART_MS;
		log_warning("members", "resource %s: %s", r->name, err.msg);
	}
}

static const Copia__Resource *ordered(const Copia__Orders *o, const struct own_resource *own)
{
	for (size_t i = 0; i < o->n_resources; i++)
		if (!strcmp(o->resources[i]->name, own->name) &&
		    o->resources[i]->placed == own->placed)
			return o->resources[i];
	return NULL;
}

static void forget_own(struct members_node *mn, struct own_resource *o)
{
	HASH_DEL(mn->own, o);
	free(o->name);
	free(o);
}

void members_take_orders(struct members_node *mn, const Copia__Orders *orders)
{
	struct own_resource *o, *next;
	HASH_ITER(hh, mn->own, o, next)
	{
		if (ordered(orders, o))
			continue;
		if (o->running)
			(void)shepherd_terminate(mn->node->shepherd, 0, &o->task, 1000);
		forget_own(mn, o);
	}
	for (size_t i = 0; i < orders->n_resources && i < MEMBERS_RESOURCES_MAX; i++) {
		const Copia__Resource *r = orders->resources[i];
		HASH_FIND_STR(mn->own, r->name, o);
		if (!o) {
			o = xcalloc(1, sizeof(*o));
			o->name = xstrdup(r->name);
			o->placed = r->placed;
			o->task = task_of(r);
			HASH_ADD_KEYPTR(hh, mn->own, o->name, strlen(o->name), o);
		}
		start_resource(mn, o, r);
	}
}

bool members_task_event(struct members_node *mn, const Copia__Shepherd__Event *e)
{
	const ProtobufCBinaryData *task = NULL;
	bool ended = false;
	if (e->tell_case == COPIA__SHEPHERD__EVENT__TELL_SPAWNED) {
		task = &e->spawned->task;
		ended = e->spawned->code < 0;
	} else if (e->tell_case == COPIA__SHEPHERD__EVENT__TELL_EXIT) {
		task = &e->exit->task;
		ended = true;
	}
	if (!task || task->len != ID_SIZE || memcmp(task->data, "resource", 8))
		return false;
	struct id id;
	memcpy(id.at, task->data, ID_SIZE);
	struct own_resource *o, *next;
	HASH_ITER(hh, mn->own, o, next)
	{
		if (id_compare(&o->task, &id) || !ended)
			continue;
		o->running = false;
		o->start_at_ms = node_now_ms(mn->node) + RESTART_MS;
	}
	if (ended && e->tell_case == COPIA__SHEPHERD__EVENT__TELL_EXIT)
		(void)shepherd_release(mn->node->shepherd, &id);
	return true;
}
