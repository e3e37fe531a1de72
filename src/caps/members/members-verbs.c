/* SPDX-License-Identifier: Apache-2.0 */
/* What people ask about the cluster and tell it to do. */
#include "caps/members/members-impl-node.h"

#include "base/log.h"
#include "base/nodelist.h"
#include "base/units.h"
#include "caps/launch/launch-node.h"
#include "node/control-impl.h"

#include <errno.h>
#include <stdio.h>
#include <time.h>
#include <utlist.h>

/* ---------------------------------------------------------------- commands with a short answer */

struct done_op {
	struct call *call;
	char text[256];
};

static void done_closed(void *ctx, struct call *c)
{
	((struct done_op *)ctx)->call = NULL;
}

static void on_done(void *ctx, int code, const char *text, struct span result)
{
	struct done_op *op = ctx;
	if (op->call && code == 0) {
		Copia__DoneReply reply = COPIA__DONE_REPLY__INIT;
		reply.text = op->text;
		call_reply(op->call, &reply.base);
		call_finish(op->call, 0, NULL);
	} else if (op->call) {
		call_finish(op->call, code, "%s", text);
	}
	free(op);
}

static void finish_text(struct call *c, const char *fmt, ...) _printf_(2, 3);
static void finish_text(struct call *c, const char *fmt, ...)
{
	char text[256];
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	Copia__DoneReply reply = COPIA__DONE_REPLY__INIT;
	reply.text = text;
	call_reply(c, &reply.base);
	call_finish(c, 0, NULL);
}

static int propose_for(struct node *n, struct call *c, const Copia__MembersCommand *cmd,
		       const char *fmt, ...) _printf_(4, 5);
static int propose_for(struct node *n, struct call *c, const Copia__MembersCommand *cmd,
		       const char *fmt, ...)
{
	static const struct call_hooks hooks = { .closed = done_closed };
	struct done_op *op = xcalloc(1, sizeof(*op));
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(op->text, sizeof(op->text), fmt, args);
	va_end(args);
	op->call = c;
	call_keep(c, &hooks, op);
	node_propose(n, cmd, on_done, op);
	return 0;
}

static unsigned distance(const char *a, const char *b)
{
	size_t n = strlen(b);
	unsigned row[MEMBERS_NAME_MAX + 2];
	if (n > MEMBERS_NAME_MAX)
		return UINT32_MAX;
	for (unsigned j = 0; j <= n; j++)
		row[j] = j;
	for (unsigned i = 1; *a; a++, i++) {
		unsigned corner = row[0];
		row[0] = i;
		for (unsigned j = 1; j <= n; j++) {
			unsigned best = corner + (*a != b[j - 1]);
			corner = row[j];
			best = MIN(best, row[j] + 1);
			row[j] = MIN(best, row[j - 1] + 1);
		}
	}
	return row[n];
}

static const Copia__Node *need_node(const struct members *m, const char *name, struct err *err)
{
	const Copia__Node *n = members_find_name(m, name);
	const char *nearest = NULL;
	unsigned best = 3;
	if (n)
		return n;
	for (size_t i = 0; i < m->state->n_nodes; i++) {
		const Copia__Node *other = m->state->nodes[i];
		if (other->state != COPIA__NODE_STATE__LEFT && distance(name, other->name) < best) {
			best = distance(name, other->name);
			nearest = other->name;
		}
	}
	err_set(err, -ENOENT, "there is no node \"%.64s\"%s%s%s; see copia nodes", name,
		nearest ? "; do you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
	return NULL;
}

static int verb_drain(struct node *n, struct call *c, const ProtobufCMessage *request,
		      struct err *err)
{
	const Copia__DrainRequest *q = (const Copia__DrainRequest *)request;
	const Copia__Node *node = need_node(n->members, q->node, err);
	if (!node)
		return -ENOENT;
	Copia__DrainCommand d = COPIA__DRAIN_COMMAND__INIT;
	d.number = node->number;
	d.on = true;
	d.reason = q->reason;
	d.by = (char *)call_user(c);
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_DRAIN;
	cmd.drain = &d;
	return propose_for(n, c, &cmd, "node %s is drained: no new work goes there", node->name);
}

static int verb_resume(struct node *n, struct call *c, const ProtobufCMessage *request,
		       struct err *err)
{
	const Copia__ResumeRequest *q = (const Copia__ResumeRequest *)request;
	const Copia__Node *node = need_node(n->members, q->node, err);
	if (!node)
		return -ENOENT;
	Copia__DrainCommand d = COPIA__DRAIN_COMMAND__INIT;
	d.number = node->number;
	d.by = (char *)call_user(c);
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_DRAIN;
	cmd.drain = &d;
	return propose_for(n, c, &cmd, "node %s works again", node->name);
}

static int verb_leave(struct node *n, struct call *c, const ProtobufCMessage *request,
		      struct err *err)
{
	const Copia__LeaveRequest *q = (const Copia__LeaveRequest *)request;
	if (!n->number)
		return err_set(err, -ENOTCONN, "this node is in no cluster");
	const Copia__Node *node =
	    *q->node ? need_node(n->members, q->node, err) : members_find(n->members, n->number);
	if (!node)
		return *q->node ? -ENOENT
				: err_set(err, -EAGAIN,
					  "this node does not know the cluster yet; try again");
	if (node->state == COPIA__NODE_STATE__DOWN && !q->force)
		return err_set(
		    err, -EHOSTDOWN,
		    "node %s is down and cannot agree; remove it all the same: copia leave "
		    "%s --force",
		    node->name, node->name);
	Copia__LeaveCommand l = COPIA__LEAVE_COMMAND__INIT;
	l.number = node->number;
	l.by = (char *)call_user(c);
	l.revoked = q->force;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_LEAVE;
	cmd.leave = &l;
	return propose_for(n, c, &cmd,
			   node->role == COPIA__NODE_ROLE__AGENT
			       ? "node %s left the cluster"
			       : "node %s leaves as soon as another controller took its "
				 "place; follow it with copia events -f",
			   node->name);
}

static int verb_set(struct node *n, struct call *c, const ProtobufCMessage *request,
		    struct err *err)
{
	const Copia__SetRequest *q = (const Copia__SetRequest *)request;
	Copia__SettingCommand s = COPIA__SETTING_COMMAND__INIT;
	s.name = q->name;
	s.value = q->value;
	s.by = (char *)call_user(c);
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_SETTING;
	cmd.setting = &s;
	return propose_for(n, c, &cmd, "%s is %s", q->name, q->value);
}

static int verb_leader(struct node *n, struct call *c, const ProtobufCMessage *request,
		       struct err *err)
{
	const Copia__LeaderRequest *q = (const Copia__LeaderRequest *)request;
	const Copia__Node *node = need_node(n->members, q->node, err);
	if (!node)
		return -ENOENT;
	if (node->number == n->number) {
		finish_text(c, "node %s leads already", node->name);
		return 0;
	}
	if (node->role != COPIA__NODE_ROLE__CONTROLLER)
		return err_set(
		    err, -EINVAL,
		    "node %s is no controller and cannot lead; controllers are marked in "
		    "copia nodes",
		    node->name);
	int r = agree_transfer(n->agree, node->number, err);
	if (r < 0)
		return r;
	finish_text(c, "leadership goes to node %s", node->name);
	return 0;
}

static int rotate_keys(struct node *n, struct call *c)
{
	uint8_t master[32];
	node_random(master, sizeof(master));
	Copia__KeyCommand k = COPIA__KEY_COMMAND__INIT;
	k.epoch = n->members->state->key_epoch + 1;
	k.key_master = (ProtobufCBinaryData){ sizeof(master), master };
	k.by = (char *)call_user(c);
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_KEY;
	cmd.key = &k;
	int r = propose_for(n, c, &cmd, "heartbeat keys of epoch %u are in force", k.epoch);
	explicit_bzero(master, sizeof(master));
	return r;
}

static unsigned rotate_certificates(struct node *n)
{
	const Copia__MembersState *s = n->members->state;
	unsigned count = 0;
	Copia__RotateOrder order = COPIA__ROTATE_ORDER__INIT;
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_ROTATE;
	m.rotate = &order;
	for (size_t i = 0; i < s->n_nodes; i++)
		if (s->nodes[i]->state == COPIA__NODE_STATE__UP)
			count += members_send(n->members_node, s->nodes[i]->number, &m) == 0;
	return count;
}

static int verb_rotate(struct node *n, struct call *c, const ProtobufCMessage *request,
		       struct err *err)
{
	const Copia__RotateRequest *q = (const Copia__RotateRequest *)request;
	bool certificates = !strcmp(q->what, "certificates"), all = !strcmp(q->what, "all");
	unsigned count = certificates || all ? rotate_certificates(n) : 0;
	if (!certificates)
		return rotate_keys(n, c);
	finish_text(c, "%u nodes were told to ask for new certificates", count);
	return 0;
}

static int verb_resource(struct node *n, struct call *c, const ProtobufCMessage *request,
			 struct err *err)
{
	const Copia__ResourceRequest *q = (const Copia__ResourceRequest *)request;
	if (!q->remove && call_uid(c) == 0 && n->settings.root && !n->members->state->root_tasks) {
		log_warning("audit", "refused a resource of root");
		return err_set(err, -EPERM,
			       "tasks of root are not allowed in this cluster: copia set "
			       "root-tasks on");
	}
	Copia__Resource r = COPIA__RESOURCE__INIT;
	r.argv = q->argv;
	r.n_argv = q->n_argv;
	r.uid = call_uid(c);
	r.gid = call_gid(c);
	Copia__ResourceCommand rc = COPIA__RESOURCE_COMMAND__INIT;
	rc.name = q->name;
	rc.remove = q->remove;
	rc.define = q->remove ? NULL : &r;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_RESOURCE;
	cmd.resource = &rc;
	return propose_for(n, c, &cmd, "resource %s %s", q->name,
			   q->remove ? "ends and is forgotten" : "was made");
}

/* ---------------------------------------------------------------- nodes */

static const char *state_word(const Copia__Node *n)
{
	static const char *const words[] = { "unknown", "up", "down", "left" };
	if (n->leaving && n->state == COPIA__NODE_STATE__UP)
		return "leaving";
	if (n->drained && n->state == COPIA__NODE_STATE__UP)
		return "drained";
	return (unsigned)n->state < ARRAY_LEN(words) ? words[n->state] : "unknown";
}

static const char *role_word(const struct node *n, const Copia__Node *node)
{
	static const char *const words[] = { "agent", "learner", "controller" };
	if (node->number == n->members->leader)
		return "leader";
	return (unsigned)node->role < ARRAY_LEN(words) ? words[node->role] : "agent";
}

static void fill_row(struct node *n, const Copia__Node *node, Copia__NodeRow *row)
{
	copia__node_row__init(row);
	struct known *k = members_known(n->members_node, node->number);
	row->name = node->name;
	row->number = node->number;
	row->state = (char *)state_word(node);
	row->role = (char *)role_word(n, node);
	row->addresses = node->addresses;
	row->n_addresses = node->n_addresses;
	row->reason = node->reason;
	row->since_ms = node->since_ms;
	row->facts = node->facts;
	row->labels = node->labels;
	row->n_labels = node->n_labels;
	if (k->load.taken_ms)
		row->load = &k->load;
	if (node->facts) {
		row->cores = node->facts->cores;
		row->memory_bytes = node->facts->memory_bytes;
		row->version = node->facts->version;
	}
}

static bool wanted(const struct nodelist *list, const Copia__Node *n)
{
	for (size_t i = 0; i < list->count; i++)
		if (!strcmp(list->names[i], n->name) || !strcmp(list->names[i], "all"))
			return true;
	return list->count == 0;
}

static int verb_nodes(struct node *n, struct call *c, const ProtobufCMessage *request,
		      struct err *err)
{
	const Copia__NodesRequest *q = (const Copia__NodesRequest *)request;
	const Copia__MembersState *s = n->members->state;
	_cleanup_(nodelist_free) struct nodelist list = { 0 };
	if (*q->nodes) {
		int r = nodelist_parse(q->nodes, &list, err);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < list.count; i++)
		if (strcmp(list.names[i], "all") && !need_node(n->members, list.names[i], err))
			return -ENOENT;
	_cleanup_(free_p) Copia__NodeRow *rows = xcalloc(s->n_nodes + 1, sizeof(*rows));
	_cleanup_(free_p) Copia__NodeRow **list_out = xcalloc(s->n_nodes + 1, sizeof(*list_out));
	Copia__NodesReply reply = COPIA__NODES_REPLY__INIT;
	reply.nodes = list_out;
	for (size_t i = 0; i < s->n_nodes; i++) {
		if ((s->nodes[i]->state == COPIA__NODE_STATE__LEFT && !q->all) ||
		    !wanted(&list, s->nodes[i]))
			continue;
		fill_row(n, s->nodes[i], &rows[reply.n_nodes]);
		list_out[reply.n_nodes] = &rows[reply.n_nodes];
		reply.n_nodes++;
	}
	call_reply(c, &reply.base);
	call_finish(c, 0, NULL);
	return 0;
}

/* ---------------------------------------------------------------- status */

static void list_controllers(const struct members *m, struct str *out)
{
	for (size_t i = 0; i < m->state->n_nodes; i++) {
		const Copia__Node *n = m->state->nodes[i];
		if (n->role == COPIA__NODE_ROLE__CONTROLLER)
			str_printf(out, "%s%s%s", out->len ? ", " : "", n->name,
				   n->state == COPIA__NODE_STATE__UP ? "" : " (down)");
	}
}

static const char *judge_health(const struct node *n, const struct agree_status *st)
{
	if (!n->number)
		return "in no cluster: copia init, or copia join";
	if (*st->health)
		return st->health;
	if (!n->members->leader)
		return "no leader: too few controllers are up, or the network is cut";
	return members_count_up(n->members) < members_staying(n->members) ? "some nodes are down"
									  : "ok";
}

static int verb_status(struct node *n, struct call *c, const ProtobufCMessage *request,
		       struct err *err)
{
	struct agree_status st = { 0 };
	char id[ID_TEXT] = "";
	_cleanup_(str_free) struct str controllers = { 0 };
	if (n->agree)
		agree_status(n->agree, &st);
	Copia__StatusReply reply = COPIA__STATUS_REPLY__INIT;
	reply.in_cluster = n->number != 0;
	reply.health = (char *)judge_health(n, &st);
	if (n->number) {
		list_controllers(n->members, &controllers);
		reply.cluster = n->members->state->cluster_name;
		reply.cluster_id = id_show(&n->members_node->identity.cluster, id);
		reply.node = n->members_node->identity.name;
		reply.leader = n->members->leader
				   ? (char *)members_name(n->members, n->members->leader)
				   : "none";
		reply.controllers = (char *)str_text(&controllers);
		reply.profile = n->members->state->profile;
		reply.engine = st.engine ? (char *)st.engine : "";
	}
	reply.term = n->members->term;
	reply.nodes_up = (uint32_t)members_count_up(n->members);
	reply.nodes = (uint32_t)members_staying(n->members);
	reply.commit_index = st.commit;
	reply.applied_index = st.applied;
	reply.tasks = n->launch ? launch_tasks(n->launch) : 0;
	const Copia__Shepherd__Hello *hello = n->members_node->hello;
	uint64_t now = shepherd_now_us();
	if (hello && hello->lease && hello->lease->until_us > now)
		reply.lease_left_ms = (hello->lease->until_us - now) / 1000;
	call_reply(c, &reply.base);
	call_finish(c, 0, NULL);
	return 0;
}

/* ---------------------------------------------------------------- events */

struct follower {
	struct members_node *mn;
	struct call *call;
	uint64_t sent;
	bool follow;
	struct follower *prev, *next;
};

static void follower_free(struct follower *f)
{
	DL_DELETE(f->mn->followers, f);
	free(f);
}

/* Send what is new, as much as there is room for. */
static void follower_feed(struct follower *f)
{
	const Copia__MembersState *s = f->mn->node->members->state;
	for (size_t i = 0; i < s->n_events; i++) {
		if (s->events[i]->revision <= f->sent)
			continue;
		if (call_room(f->call) < 4096)
			return;
		uint64_t revision = s->events[i]->revision;
		call_reply(f->call, &s->events[i]->base);
		/* Events of one revision travel together: only behind the last one is it done. */
		if (i + 1 == s->n_events || s->events[i + 1]->revision != revision)
			f->sent = revision;
	}
	if (!f->follow) {
		call_finish(f->call, 0, NULL);
		follower_free(f);
	}
}

static void follower_room(void *ctx, struct call *c)
{
	follower_feed(ctx);
}

static void follower_closed(void *ctx, struct call *c)
{
	follower_free(ctx);
}

void members_followers_news(struct members_node *mn)
{
	struct follower *f, *next;
	DL_FOREACH_SAFE(mn->followers, f, next)
	follower_feed(f);
}

static int verb_events(struct node *n, struct call *c, const ProtobufCMessage *request,
		       struct err *err)
{
	const Copia__EventsRequest *q = (const Copia__EventsRequest *)request;
	const Copia__MembersState *s = n->members->state;
	static const struct call_hooks hooks = { .room = follower_room, .closed = follower_closed };
	if (!n->number)
		return err_set(
		    err, -ENOTCONN,
		    "this node is in no cluster; make one with copia init or join one with "
		    "copia join");
	struct follower *f = xcalloc(1, sizeof(*f));
	uint32_t lines = q->lines ? q->lines : 50;
	f->mn = n->members_node;
	f->call = c;
	f->follow = q->follow;
	f->sent = q->since;
	if (!q->since && s->n_events > lines)
		f->sent = s->events[s->n_events - lines - 1]->revision;
	DL_APPEND(n->members_node->followers, f);
	call_keep(c, &hooks, f);
	follower_feed(f);
	return 0;
}

/* ---------------------------------------------------------------- explain */

static void show_time(uint64_t ms, uint64_t now_ms, struct str *out)
{
	char text[32];
	str_printf(out, "%s ago", show_duration(now_ms > ms ? now_ms - ms : 0, text));
}

static uint64_t wall_ms(void)
{
	uv_timeval64_t t = { 0 };
	(void)uv_gettimeofday(&t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_usec / 1000;
}

static void explain_node(struct node *n, const Copia__Node *node, struct str *out)
{
	struct known *k = members_known(n->members_node, node->number);
	uint64_t now = wall_ms();
	str_printf(out, "node %s (number %u) is %s since ", node->name, node->number,
		   state_word(node));
	show_time(node->since_ms, now, out);
	str_printf(out, ": %s\n", *node->reason ? node->reason : "no reason was recorded");
	if (node->state == COPIA__NODE_STATE__DOWN)
		str_printf(out,
			   "what to do: see that the machine and its network run and copiad is "
			   "started; or remove it: copia leave %s --force\n",
			   node->name);
	if (node->drained && !node->leaving)
		str_printf(out, "it takes no new work; let it work again: copia resume %s\n",
			   node->name);
	str_printf(out, "role: %s", role_word(n, node));
	if (node->role == COPIA__NODE_ROLE__AGENT)
		str_printf(out,
			   "; the cluster wants %u controllers, an odd number of nodes that are "
			   "up",
			   n->members->state->controllers_wanted);
	str_puts(out, "\n");
	if (node->number != n->number && node->state != COPIA__NODE_STATE__LEFT) {
		str_printf(out, "session with the leader: %s",
			   peers_up(n->peers, node->number) ? "up" : "down");
		if (!peers_up(n->peers, node->number) && *peers_reason(n->peers, node->number))
			str_printf(out, " (%s)", peers_reason(n->peers, node->number));
		str_printf(out, "; heartbeats: %s",
			   !k->heard    ? "never heard"
			   : k->missing ? "silent"
					: "heard");
		if (k->rtt_us)
			str_printf(out, ", round trip %u us", k->rtt_us);
		str_puts(out, "\n");
	}
	if (node->facts)
		str_printf(out, "machine: %s; %s, Linux %s, Copia %s\n", node->facts->topology,
			   node->facts->system, node->facts->kernel, node->facts->version);
}

static void explain_leader(struct node *n, struct str *out)
{
	struct agree_status st;
	agree_status(n->agree, &st);
	str_printf(out, "node %s leads in term %llu; a majority of the controllers elected it\n",
		   members_name(n->members, n->members->leader),
		   (unsigned long long)n->members->term);
	for (unsigned i = 0; i < st.peer_count; i++)
		str_printf(out, "  %s %s: has %llu of %llu entries%s\n",
			   st.peers[i].voter ? "voter" : "learner",
			   members_name(n->members, st.peers[i].node),
			   (unsigned long long)(st.peers[i].node == n->number ? st.last
									      : st.peers[i].match),
			   (unsigned long long)st.last,
			   st.peers[i].node == n->number || st.peers[i].connected
			       ? ""
			       : ", not connected");
}

static void explain_cluster(struct node *n, struct str *out)
{
	struct agree_status st;
	agree_status(n->agree, &st);
	size_t voters = 0, up = 0;
	for (unsigned i = 0; i < st.peer_count; i++) {
		const Copia__Node *node = members_find(n->members, st.peers[i].node);
		voters += st.peers[i].voter;
		up += st.peers[i].voter && node && node->state == COPIA__NODE_STATE__UP;
	}
	str_printf(out, "cluster %s: %s\n", n->members->state->cluster_name, judge_health(n, &st));
	str_printf(out, "%zu of %zu controllers are up; it serves as long as %zu are\n", up, voters,
		   voters / 2 + 1);
	if (voters < n->members->state->controllers_wanted)
		str_printf(out,
			   "%u controllers are wanted, but an even number tolerates no more "
			   "losses than the odd one below it: more nodes are needed\n",
			   n->members->state->controllers_wanted);
}

static int verb_explain(struct node *n, struct call *c, const ProtobufCMessage *request,
			struct err *err)
{
	const Copia__ExplainRequest *q = (const Copia__ExplainRequest *)request;
	const Copia__MembersState *s = n->members->state;
	_cleanup_(str_free) struct str text = { 0 };
	char object[MEMBERS_NAME_MAX + 16] = "cluster";
	if (!strcmp(q->kind, "node")) {
		const Copia__Node *node = need_node(n->members, q->name, err);
		if (!node)
			return -ENOENT;
		explain_node(n, node, &text);
		(void)snprintf(object, sizeof(object), "node %s", node->name);
	} else if (!strcmp(q->kind, "leader")) {
		explain_leader(n, &text);
		(void)snprintf(object, sizeof(object), "leader");
	} else if (!strcmp(q->kind, "cluster")) {
		explain_cluster(n, &text);
	} else {
		return err_set(err, -EINVAL, "%s: see copia ps, which shows jobs and tasks",
			       q->kind);
	}
	_cleanup_(free_p) Copia__Event **events = xcalloc(s->n_events + 1, sizeof(*events));
	Copia__ExplainReply reply = COPIA__EXPLAIN_REPLY__INIT;
	reply.events = events;
	for (size_t i = 0; i < s->n_events; i++)
		if (!strcmp(s->events[i]->object, object) || !strcmp(s->events[i]->kind, object))
			events[reply.n_events++] = s->events[i];
	for (size_t i = reply.n_events > 5 ? reply.n_events - 5 : 0; i < reply.n_events; i++) {
		str_puts(&text,
			 i == (reply.n_events > 5 ? reply.n_events - 5 : 0) ? "story:\n" : "");
		str_puts(&text, "  ");
		show_time(events[i]->time_ms, wall_ms(), &text);
		str_printf(&text, ": %s\n", events[i]->text);
	}
	reply.text = (char *)str_text(&text);
	call_reply(c, &reply.base);
	call_finish(c, 0, NULL);
	return 0;
}

/* ---------------------------------------------------------------- doctor */

static int verb_doctor(struct node *n, struct call *c, const ProtobufCMessage *request,
		       struct err *err)
{
	const Copia__Shepherd__Hello *hello = n->members_node->hello;
	size_t most = (hello ? hello->n_facts : 0) + 1;
	_cleanup_(free_p) Copia__Finding *findings = xcalloc(most, sizeof(*findings));
	_cleanup_(free_p) Copia__Finding **list = xcalloc(most, sizeof(*list));
	Copia__DoctorReply reply = COPIA__DOCTOR_REPLY__INIT;
	reply.findings = list;
	for (size_t i = 0; hello && i < hello->n_facts; i++) {
		const Copia__Shepherd__Fact *f = hello->facts[i];
		Copia__Finding *out = &findings[i];
		copia__finding__init(out);
		out->level = f->ok ? "ok" : "note";
		out->what = f->ok || !*f->detail ? f->name : f->detail;
		if (!f->ok) {
			out->effect = f->loss;
			out->remedy = f->remedy;
		}
		list[reply.n_findings++] = out;
	}
	call_reply(c, &reply.base);
	call_finish(c, 0, NULL);
	return 0;
}

void members_verbs_register(struct members_node *mn)
{
	static const struct {
		const char *verb;
		control_verb *run;
	} verbs[] = {
		{ "doctor", verb_doctor }, { "drain", verb_drain },
		{ "events", verb_events }, { "explain", verb_explain },
		{ "leader", verb_leader }, { "leave", verb_leave },
		{ "nodes", verb_nodes },   { "resource", verb_resource },
		{ "resume", verb_resume }, { "rotate", verb_rotate },
		{ "set", verb_set },       { "status", verb_status },
	};
	for (size_t i = 0; i < ARRAY_LEN(verbs); i++)
		control_on(mn->node->control, verbs[i].verb, verbs[i].run);
}
