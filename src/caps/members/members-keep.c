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

static void propose_resource(struct members_node *mn, Copia__ResourceCommand *c)
{
	c->place = true;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_RESOURCE;
	cmd.resource = c;
	node_propose(mn->node, &cmd, NULL, NULL);
}

static void propose_ended(struct members_node *mn, const Copia__Resource *r)
{
	Copia__ResourceCommand c = COPIA__RESOURCE_COMMAND__INIT;
	c.name = r->name;
	c.ended = true;
	c.placed = r->placed;
	propose_resource(mn, &c);
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
static bool lease_surely_over(struct members_node *mn, uint32_t number, bool left)
{
	struct known *k = members_known(mn, number);
	uint64_t now = shepherd_now_us();
	uint64_t most = foreign_lease_us(mn->node->members->state);
	if (now <= mn->led_since_us + most)
		return false;
	/* One that left is not in the shepherd's table any more, so nobody can tell when the last
	 * grant was made; after it left, none was. */
	if (left) {
		k->left_us = k->left_us ? k->left_us : now;
		return now > k->left_us + 2 * most;
	}
	stop_granting(mn, k);
	return k->grant_stop_answered && now > k->grant_stopped_us;
}

/* Three steps, each in the log: it is placed; it is to end there, after which no orders name it
 * any more; its end is certain, because its node said so or its lease is over. */
static void keep_resource(struct members_node *mn, const Copia__Resource *r)
{
	const Copia__Node *n = r->node ? members_find(mn->node->members, r->node) : NULL;
	Copia__ResourceCommand c = COPIA__RESOURCE_COMMAND__INIT;
	c.name = r->name;
	if (!r->node) {
		c.place_on = members_plan_place(mn->node->members, r);
		if (c.place_on)
			propose_resource(mn, &c);
		return;
	}
	bool left = !n || n->state == COPIA__NODE_STATE__LEFT;
	bool gone = left || n->state != COPIA__NODE_STATE__UP;
	if (!r->ending && (gone || n->drained))
		propose_resource(mn, &c);
	else if (r->ending && gone && lease_surely_over(mn, r->node, left))
		propose_ended(mn, r);
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

static void send_orders_to(struct members_node *mn, uint32_t to, Copia__Resource **mine)
{
	const Copia__MembersState *s = mn->node->members->state;
	struct known *k = members_known(mn, to);
	bool owns = false;
	Copia__Orders o = COPIA__ORDERS__INIT;
	o.revision = mn->node->members->revision;
	o.term = mn->node->members->term;
	o.resources = mine;
	for (size_t i = 0; i < s->n_resources; i++) {
		if (s->resources[i]->node != to)
			continue;
		owns = true;
		if (!s->resources[i]->ending)
			mine[o.n_resources++] = s->resources[i];
	}
	if (!owns && k->idle)
		return;
	if (to == mn->node->number) {
		members_take_orders(mn, &o);
		k->idle = !owns;
		return;
	}
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_ORDERS;
	m.orders = &o;
	if (members_send(mn, to, &m) == 0)
		k->idle = !owns;
}

static void send_orders(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	_cleanup_(free_p) Copia__Resource **mine = xcalloc(s->n_resources + 1, sizeof(*mine));
	for (size_t i = 0; i < s->n_nodes; i++)
		if (s->nodes[i]->state != COPIA__NODE_STATE__LEFT)
			send_orders_to(mn, s->nodes[i]->number, mine);
}

void members_take_orders_done(struct members_node *mn, uint32_t from, const Copia__OrdersDone *d)
{
	const Copia__MembersState *s = mn->node->members->state;
	if (!members_is_leader(mn))
		return;
	for (size_t i = 0; i < s->n_resources; i++) {
		const Copia__Resource *r = s->resources[i];
		bool there = false;
		for (size_t k = 0; k < d->n_placed; k++)
			there = there || d->placed[k] == r->placed;
		/* It knows that the resource is to end, and has nothing of it. */
		if (r->node == from && r->ending && d->revision >= r->revision && !there)
			propose_ended(mn, r);
	}
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

enum { RESTART_MS = 1000, GRACE_MS = 2000 };

/* "resource", 6 bytes of the placement, 2 random ones: each start is a task of its own, for ids
 * are never used twice. */
static const char task_prefix[8] = "resource";

static struct id task_of(uint64_t placed)
{
	struct id id;
	memcpy(id.at, task_prefix, sizeof(task_prefix));
	for (int i = 0; i < 6; i++)
		id.at[8 + i] = (uint8_t)(placed >> 8 * i);
	node_random(id.at + 14, 2);
	return id;
}

static bool is_task(const ProtobufCBinaryData *task, struct id *ret, uint64_t *ret_placed)
{
	if (task->len != ID_SIZE || memcmp(task->data, task_prefix, sizeof(task_prefix)))
		return false;
	memcpy(ret->at, task->data, ID_SIZE);
	*ret_placed = 0;
	for (int i = 0; i < 6; i++)
		*ret_placed |= (uint64_t)ret->at[8 + i] << 8 * i;
	return true;
}

static struct own_resource *find_own(struct members_node *mn, uint64_t placed)
{
	struct own_resource *o;
	HASH_FIND(hh, mn->own, &placed, sizeof(placed), o);
	return o;
}

static struct own_resource *add_own(struct members_node *mn, uint64_t placed)
{
	struct own_resource *o = xcalloc(1, sizeof(*o));
	o->placed = placed;
	HASH_ADD(hh, mn->own, placed, sizeof(o->placed), o);
	return o;
}

static void drop_own(struct members_node *mn, struct own_resource *o)
{
	HASH_DEL(mn->own, o);
	free(o);
}

/* A former leader's orders may come late. It cannot have granted the lease that we hold now, so
 * one of a later term than the orders shows that they are void. */
static bool lease_fits(const struct members_node *mn, uint64_t term)
{
	const Copia__Shepherd__LeaseState *l = mn->hello ? mn->hello->lease : NULL;
	return l && l->phase == COPIA__SHEPHERD__LEASE_PHASE__LEASE_HELD && l->term <= term;
}

static void start_resource(struct members_node *mn, struct own_resource *o,
			   const Copia__Resource *r)
{
	struct err err = { 0 };
	const struct node *n = mn->node;
	if (n->settings.root && r->uid == 0 && !n->members->state->root_tasks) {
		log_warning("audit", "refused resource %s of root", r->name);
		o->start_at_ms = node_now_ms(n) + RESTART_MS;
		return;
	}
	o->task = task_of(o->placed);
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
	s.set_user = n->settings.root;
	s.uid = r->uid;
	s.gid = r->gid;
	s.lease = true;
	Copia__Shepherd__Spawn *list[] = { &s };
	o->running = true;
	if (shepherd_spawn(n->shepherd, shepherd_link_call(n->shepherd), list, 1, NULL, 0, &err) <
	    0) {
		o->running = false;
		o->start_at_ms = node_now_ms(n) + RESTART_MS;
		log_warning("members", "resource %s: %s", r->name, err.msg);
	}
}

static bool is_ordered(const Copia__Orders *orders, uint64_t placed)
{
	for (size_t i = 0; i < orders->n_resources; i++)
		if (orders->resources[i]->placed == placed)
			return true;
	return false;
}

/* What is still there, to the leader, who waits for the end of some. */
static void tell_own(struct members_node *mn)
{
	Copia__OrdersDone d = COPIA__ORDERS_DONE__INIT;
	_cleanup_(free_p) uint64_t *placed = xcalloc(HASH_COUNT(mn->own) + 1, sizeof(*placed));
	struct own_resource *o, *next;
	HASH_ITER(hh, mn->own, o, next)
	placed[d.n_placed++] = o->placed;
	d.placed = placed;
	d.revision = mn->orders_revision;
	if (members_is_leader(mn)) {
		members_take_orders_done(mn, mn->node->number, &d);
		return;
	}
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_ORDERS_DONE;
	m.orders_done = &d;
	if (mn->node->members->leader)
		(void)members_send(mn, mn->node->members->leader, &m);
}

static void stop_own(struct members_node *mn, struct own_resource *o)
{
	if (!o->running) {
		drop_own(mn, o);
		return;
	}
	if (!o->stopping)
		(void)shepherd_terminate(mn->node->shepherd, 0, &o->task, GRACE_MS);
	o->stopping = true;
}

void members_end_own(struct members_node *mn)
{
	struct own_resource *o, *next;
	HASH_ITER(hh, mn->own, o, next)
	stop_own(mn, o);
	mn->orders_revision = 0;
}

void members_take_orders(struct members_node *mn, const Copia__Orders *orders)
{
	struct own_resource *o, *next;
	if (orders->revision < mn->orders_revision)
		return;
	mn->orders_revision = orders->revision;
	HASH_ITER(hh, mn->own, o, next)
	if (!is_ordered(orders, o->placed))
		stop_own(mn, o);
	for (size_t i = 0; i < orders->n_resources && i < MEMBERS_RESOURCES_MAX; i++) {
		const Copia__Resource *r = orders->resources[i];
		o = find_own(mn, r->placed);
		if (!o)
			o = add_own(mn, r->placed);
		if (!o->running && node_now_ms(mn->node) >= o->start_at_ms &&
		    lease_fits(mn, orders->term))
			start_resource(mn, o, r);
	}
	tell_own(mn);
}

static void own_ended(struct members_node *mn, struct own_resource *o)
{
	o->running = false;
	o->start_at_ms = node_now_ms(mn->node) + RESTART_MS;
	if (o->stopping)
		drop_own(mn, o);
	tell_own(mn);
}

/* A brain started again: what the one before had started. */
static void found_own(struct members_node *mn, const Copia__Shepherd__TaskState *t,
		      const struct id *id, uint64_t placed)
{
	if (t->exit) {
		(void)shepherd_release(mn->node->shepherd, id);
		return;
	}
	struct own_resource *o = find_own(mn, placed);
	if (!o)
		o = add_own(mn, placed);
	o->task = *id;
	o->running = true;
}

bool members_task_event(struct members_node *mn, const Copia__Shepherd__Event *e)
{
	struct id id;
	uint64_t placed;
	const ProtobufCBinaryData *task =
	    e->tell_case == COPIA__SHEPHERD__EVENT__TELL_TASK      ? &e->task->task
	    : e->tell_case == COPIA__SHEPHERD__EVENT__TELL_SPAWNED ? &e->spawned->task
	    : e->tell_case == COPIA__SHEPHERD__EVENT__TELL_EXIT    ? &e->exit->task
								   : NULL;
	if (!task || !is_task(task, &id, &placed))
		return false;
	if (e->tell_case == COPIA__SHEPHERD__EVENT__TELL_TASK) {
		found_own(mn, e->task, &id, placed);
		return true;
	}
	bool exited = e->tell_case == COPIA__SHEPHERD__EVENT__TELL_EXIT;
	if (exited)
		(void)shepherd_release(mn->node->shepherd, &id);
	else if (e->spawned->code < 0)
		log_warning("members", "a resource does not start: %s", e->spawned->error);
	struct own_resource *o = find_own(mn, placed);
	if (o && o->running && !id_compare(&o->task, &id) && (exited || e->spawned->code < 0))
		own_ended(mn, o);
	return true;
}
