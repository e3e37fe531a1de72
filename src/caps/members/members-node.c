/* SPDX-License-Identifier: Apache-2.0 */
/* Life of the members on one node: entering a cluster, the view that agents get, load. */
#include "caps/members/members-impl-node.h"

#include "base/log.h"
#include "caps/launch/launch-node.h"
#include "io/pki.h"
#include "node/control-impl.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

enum {
	PUSH_DELAY_MS = 5, /* several changes travel together */
	LOAD_EVERY_MS = 5000,
	KEEP_EVERY_MS = 1000,
	STALE_AFTER_MS = 10 * 1000, /* without the leader */
	SUPERSEDED_MS = 5 * 1000,   /* certificates that were replaced */
};

/* ---------------------------------------------------------------- small tools */

struct known *members_known(struct members_node *mn, uint32_t number)
{
	struct known *k;
	HASH_FIND_INT(mn->known, &number, k);
	if (k)
		return k;
	k = xcalloc(1, sizeof(*k));
	k->number = number;
	HASH_ADD_INT(mn->known, number, k);
	return k;
}

const Copia__Node *members_self(const struct members_node *mn)
{
	return members_find(mn->node->members, mn->node->number);
}

bool members_is_leader(const struct members_node *mn)
{
	return mn->ready && mn->node->agree && agree_is_leader(mn->node->agree);
}

bool members_is_controller(const struct members_node *mn)
{
	if (!mn->node->agree)
		return false;
	struct agree_status s;
	agree_status(mn->node->agree, &s);
	return s.role != AGREE_AGENT;
}

int members_send(struct members_node *mn, uint32_t to, const Copia__MembersMessage *m)
{
	return node_send(mn->node, to, CHANNEL_MEMBERS, &m->base);
}

size_t members_addresses(const Copia__Node *n, union addr ret[PEERS_ADDRESS_MAX])
{
	size_t count = 0;
	for (size_t i = 0; i < n->n_addresses && count < PEERS_ADDRESS_MAX; i++)
		if (addr_parse(n->addresses[i], (uint16_t)n->port, &ret[count], NULL) == 0)
			count++;
	return count;
}

/* ---------------------------------------------------------------- who may talk to us */

static void push_to(struct members_node *mn, uint32_t to, uint64_t since);
static void ask_controllers(struct members_node *mn);

/* Do we know what the leader knows? Not after a start, nor when it was out of reach for a while. */
static void judge_freshness(struct members_node *mn)
{
	uint32_t leader = mn->node->members->leader;
	bool in_touch = leader &&
			(leader == mn->node->number || peers_up(mn->node->peers, leader)) &&
			(mn->node->members == mn->node->from_log || mn->viewed);
	uint64_t now = node_now_ms(mn->node);
	if (in_touch)
		mn->in_touch_ms = now;
	if (!in_touch)
		mn->viewed = false;
	mn->fresh = in_touch || (mn->fresh && now < mn->in_touch_ms + STALE_AFTER_MS);
}

/* Sessions of a node that is gone end at once. One that left by itself is told first: the leader
 * sends it the view in which it left, and forgets it at the next turn of the timer. */
static void say_goodbye(struct members_node *mn, const Copia__Node *n)
{
	struct known *k = members_known(mn, n->number);
	bool polite = !strcmp(n->reason, "left") && peers_up(mn->node->peers, n->number);
	if (polite && !k->goodbye_said) {
		k->goodbye_said = true;
		if (members_is_leader(mn))
			push_to(mn, n->number, 0);
		return;
	}
	if (!polite || k->goodbye_due)
		peers_forget_node(mn->node->peers, n->number);
	k->goodbye_due = true;
}

static bool is_welcome(const struct known *k, size_t count, const struct pki_fingerprint *f)
{
	for (size_t i = 0; i < count; i++)
		if (pki_fingerprint_equal(&k->welcome[i], f))
			return true;
	return false;
}

/* A session ends when its certificate is not welcome any more. If that were at the moment when the
 * next one is recorded, nodes that do not know the new one yet would refuse it, and could not be
 * told, for the session that tells them is gone: so what was on record is welcome for a while. */
static void judge_certificates(struct members_node *mn, struct known *k, const Copia__Node *n)
{
	struct pki_fingerprint now[ARRAY_LEN(k->welcome)];
	size_t count = 0;
	bool news = false;
	uint64_t now_ms = node_now_ms(mn->node);
	const ProtobufCBinaryData *prints[] = { &n->fingerprint, &n->old_fingerprint };
	for (size_t i = 0; i < ARRAY_LEN(prints); i++)
		if (prints[i]->len == PKI_FINGERPRINT_SIZE) {
			memcpy(now[count].at, prints[i]->data, PKI_FINGERPRINT_SIZE);
			news = news || !is_welcome(k, k->on_record, &now[count]);
			count++;
		}
	if (news)
		k->superseded_ms = now_ms;
	struct known record = { .on_record = count };
	memcpy(record.welcome, now, sizeof(now));
	if (now_ms < k->superseded_ms + SUPERSEDED_MS)
		for (size_t i = 0; i < k->welcome_count && count < ARRAY_LEN(now); i++)
			if (!is_welcome(&record, record.on_record, &k->welcome[i]))
				now[count++] = k->welcome[i];
	memcpy(k->welcome, now, sizeof(now));
	k->welcome_count = count;
	k->on_record = record.on_record;
}

void members_tell_peers(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	bool controller = members_is_controller(mn);
	judge_freshness(mn);
	for (size_t i = 0; i < s->n_nodes; i++) {
		const Copia__Node *n = s->nodes[i];
		struct err err = { 0 };
		if (n->number == mn->node->number)
			continue;
		if (n->state == COPIA__NODE_STATE__LEFT) {
			say_goodbye(mn, n);
			continue;
		}
		union addr addresses[PEERS_ADDRESS_MAX];
		struct known *k = members_known(mn, n->number);
		judge_certificates(mn, k, n);
		struct peers_node p = { n->number, addresses, members_addresses(n, addresses),
					k->welcome, k->welcome_count };
		/* A certificate that is not recorded yet is just being signed: nobody has it. */
		if (k->on_record == 0)
			continue;
		/* What we know is old: the controllers may have new certificates since. Those of
		 * the cluster's authority for their numbers are good enough to ask what is new. */
		if (!mn->fresh && n->role != COPIA__NODE_ROLE__AGENT)
			p.allowed_count = 0;
		if (peers_set_node(mn->node->peers, &p, &err) < 0)
			log_warning("members", "node %s: %s", n->name, err.msg);
		peers_keep(mn->node->peers, n->number,
			   n->role != COPIA__NODE_ROLE__AGENT ||
			       (controller && n->state == COPIA__NODE_STATE__UP));
	}
}

static void tell_agreement(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	uint32_t numbers[AGREE_CONTROLLERS_MAX];
	unsigned count = 0;
	for (size_t i = 0; i < s->n_nodes && count < AGREE_CONTROLLERS_MAX; i++)
		if (s->nodes[i]->role != COPIA__NODE_ROLE__AGENT)
			numbers[count++] = s->nodes[i]->number;
	agree_controllers(mn->node->agree, numbers, count);
	const Copia__Node *self = members_self(mn);
	struct err err = { 0 };
	/* The role says that the leader wants us in the log; leaving it again is seen by the role
	 * only once the log itself has dropped us. */
	if (self && self->role != COPIA__NODE_ROLE__AGENT && !members_is_controller(mn)) {
		log_info("members", "this node becomes a controller");
		if (agree_serve(mn->node->agree, true, &err) < 0)
			log_error("members", "cannot become a controller: %s", err.msg);
	} else if (self && self->role == COPIA__NODE_ROLE__AGENT && members_is_controller(mn)) {
		struct agree_status st;
		agree_status(mn->node->agree, &st);
		if (st.role == AGREE_WAITING) {
			log_info("members", "this node is no controller any more");
			(void)agree_serve(mn->node->agree, false, &err);
			ask_controllers(mn);
		}
	}
}

/* ---------------------------------------------------------------- the view */

static void fill_keys(struct members_node *mn, Copia__View *v, uint32_t to)
{
	const Copia__MembersState *s = mn->node->members->state;
	uint8_t key[32];
	if (!s->key_master.len)
		return;
	members_node_key(s, false, to, 0, key);
	ProtobufCBinaryData bytes = { sizeof(key), key };
	members_set_bytes(&v->key, &bytes);
	if (s->old_key_master.len) {
		members_node_key(s, true, to, 0, key);
		members_set_bytes(&v->old_key, &bytes);
	}
	explicit_bzero(key, sizeof(key));
}

static void push_to(struct members_node *mn, uint32_t to, uint64_t since)
{
	Copia__View *v = members_view(mn->node->members, since);
	fill_keys(mn, v, to);
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_VIEW;
	m.view = v;
	if (members_send(mn, to, &m) == 0)
		members_known(mn, to)->revision_sent = mn->node->members->revision;
	copia__view__free_unpacked(v, NULL);
}

static void on_push(uv_timer_t *t)
{
	struct members_node *mn = t->data;
	const Copia__MembersState *s = mn->node->members->state;
	mn->push_armed = false;
	if (!members_is_leader(mn))
		return;
	for (size_t i = 0; i < s->n_nodes; i++) {
		uint32_t to = s->nodes[i]->number;
		if (s->nodes[i]->role == COPIA__NODE_ROLE__CONTROLLER || to == mn->node->number ||
		    !peers_up(mn->node->peers, to))
			continue;
		struct known *k = members_known(mn, to);
		if (k->revision_sent && k->revision_sent < mn->node->members->revision)
			push_to(mn, to, k->revision_sent);
	}
}

static void arm_push(struct members_node *mn)
{
	if (mn->push_armed || !mn->ready)
		return;
	mn->push_armed = true;
	(void)uv_timer_start(&mn->push_timer, on_push, PUSH_DELAY_MS, 0);
}

static void ask_view(struct members_node *mn, uint32_t from)
{
	Copia__ViewAsk ask = COPIA__VIEW_ASK__INIT;
	/* The story is not in the view that was saved for this start. */
	bool sure = mn->whole || mn->node->members == mn->node->from_log;
	ask.revision = sure ? mn->node->members->revision : 0;
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_ASK;
	m.ask = &ask;
	(void)members_send(mn, from, &m);
}

/* Whoever leads answers, and names itself. */
static void ask_controllers(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	for (size_t i = 0; i < s->n_nodes; i++)
		if (s->nodes[i]->role != COPIA__NODE_ROLE__AGENT &&
		    s->nodes[i]->number != mn->node->number &&
		    peers_up(mn->node->peers, s->nodes[i]->number))
			ask_view(mn, s->nodes[i]->number);
}

/* Where the others are, for the next start: without it a controller that restarts could not reach
 * the others, and its log cannot tell before a leader was elected. */
static void save_view(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	struct err err = { 0 };
	uint64_t newest = 0;
	for (size_t i = 0; i < s->n_nodes; i++)
		newest = MAX(newest, s->nodes[i]->revision);
	if (newest == mn->saved_revision || !mn->identity.number)
		return;
	Copia__View *v = members_view(mn->node->members, 0);
	/* Names and addresses are what the next start needs; the story is not. */
	for (size_t i = 0; i < v->n_events; i++)
		copia__event__free_unpacked(v->events[i], NULL);
	v->n_events = 0;
	size_t size = copia__view__get_packed_size(v);
	str_clear(&mn->identity.view);
	str_reserve(&mn->identity.view, size);
	mn->identity.view.len = copia__view__pack(v, (uint8_t *)mn->identity.view.at);
	copia__view__free_unpacked(v, NULL);
	if (identity_save_view(mn->node->settings.state_dir, &mn->identity, &err) < 0)
		log_error("members", "%s", err.msg);
	else
		mn->saved_revision = newest;
}

/* A controller that was replaced while it was away has a log that will never tell it so: nobody
 * sends it entries any more. The leader's view does. */
static bool was_replaced(const struct members_node *mn, const Copia__View *v)
{
	if (members_is_leader(mn) || v->revision <= mn->node->from_log->revision ||
	    v->term < mn->node->members->term)
		return false;
	for (size_t i = 0; i < v->n_nodes; i++)
		if (v->nodes[i]->number == mn->node->number)
			return v->nodes[i]->role == COPIA__NODE_ROLE__AGENT;
	return false;
}

static void take_view(struct members_node *mn, uint32_t from, const Copia__View *v)
{
	struct err err = { 0 };
	node_choose_state(mn->node);
	if (mn->node->members == mn->node->from_log) {
		if (!was_replaced(mn, v))
			return; /* the log tells us */
		log_info("members", "this node was replaced as a controller while it was away");
		(void)agree_serve(mn->node->agree, false, &err);
		node_choose_state(mn->node);
	}
	/* Only the leader itself can say that there is none in this term. */
	if (!v->leader && v->term <= mn->node->from_view->term &&
	    from != mn->node->from_view->leader)
		return;
	int r = members_merge(mn->node->from_view, v, &err);
	if (r == -ESTALE)
		ask_view(mn, from);
	if (r < 0) {
		log_debug("members", "view of %u: %s", from, err.msg);
		return;
	}
	mn->viewed = true;
	mn->whole = mn->whole || v->complete;
	if (v->key.len == 32)
		members_set_bytes(&mn->own_key, &v->key);
	if (v->old_key.len == 32)
		members_set_bytes(&mn->own_old_key, &v->old_key);
	if (r > 0)
		members_node_changed(mn);
}

static void answer_ask(struct members_node *mn, uint32_t from, const Copia__ViewAsk *ask)
{
	if (!members_is_leader(mn))
		return;
	bool known = ask->revision <= mn->node->members->revision;
	push_to(mn, from, known ? ask->revision : 0);
}

/* ---------------------------------------------------------------- load */

static void take_load(struct members_node *mn, uint32_t from, const Copia__LoadReport *r)
{
	if (r->load && r->number == from) {
		struct known *k = members_known(mn, from);
		k->load = *r->load;
		k->load.taken_ms = node_now_ms(mn->node);
	}
}

static void on_load_timer(uv_timer_t *t)
{
	struct members_node *mn = t->data;
	Copia__NodeLoad load = COPIA__NODE_LOAD__INIT;
	sysinfo_load_read(&mn->load, node_now_ms(mn->node), &load);
	struct known *self = members_known(mn, mn->node->number);
	self->load = load;
	self->load.taken_ms = node_now_ms(mn->node);
	if (!mn->node->peers)
		return;
	Copia__LoadReport report = COPIA__LOAD_REPORT__INIT;
	report.number = mn->node->number;
	report.load = &load;
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_LOAD;
	m.load = &report;
	const Copia__MembersState *s = mn->node->members->state;
	for (size_t i = 0; i < s->n_nodes; i++)
		if (s->nodes[i]->role == COPIA__NODE_ROLE__CONTROLLER &&
		    s->nodes[i]->number != mn->node->number &&
		    peers_up(mn->node->peers, s->nodes[i]->number))
			(void)members_send(mn, s->nodes[i]->number, &m);
}

/* ---------------------------------------------------------------- telling the cluster who we are
 */

static void on_updated(void *ctx, int code, const char *text, struct span result)
{
	struct members_node *mn = ctx;
	mn->update_pending = false;
	mn->updated = code == 0;
	if (code == -ENOENT)
		members_was_removed(mn, text);
	else if (code < 0)
		log_debug("members", "telling the cluster about this node: %s", text);
}

static void tell_update(struct members_node *mn)
{
	const Copia__Node *self = members_self(mn);
	if (mn->updated || mn->update_pending || !mn->node->members->leader || !self || mn->leaving)
		return;
	Copia__UpdateCommand u = COPIA__UPDATE_COMMAND__INIT;
	u.number = mn->node->number;
	u.incarnation = mn->node->incarnation;
	u.port = mn->node->settings.port;
	u.facts = mn->facts;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_UPDATE;
	cmd.update = &u;
	mn->update_pending = true;
	node_propose(mn->node, &cmd, on_updated, mn);
}

/* ---------------------------------------------------------------- events from the glue */

void members_node_changed(struct members_node *mn)
{
	const Copia__Node *self = members_self(mn);
	if (self && self->state == COPIA__NODE_STATE__LEFT) {
		members_was_removed(mn, self->reason);
		return;
	}
	members_tell_peers(mn);
	tell_agreement(mn);
	members_watch_update(mn);
	arm_push(mn);
	tell_update(mn);
	members_keep(mn);
	members_followers_news(mn);
	const Copia__MembersState *s = mn->node->members->state;
	for (size_t i = 0; i < s->n_nodes; i++)
		if (s->nodes[i]->state != COPIA__NODE_STATE__UP && mn->node->launch &&
		    s->nodes[i]->number != mn->node->number)
			launch_node_down(mn->node->launch, s->nodes[i]->number);
}

static void announce_leader(struct members_node *mn)
{
	if (mn->announced_term == mn->node->members->term)
		return;
	mn->announced_term = mn->node->members->term;
	Copia__LeaderCommand l = COPIA__LEADER_COMMAND__INIT;
	l.number = mn->node->number;
	l.term = mn->node->members->term;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_LEADER;
	cmd.leader = &l;
	node_propose(mn->node, &cmd, NULL, NULL);
}

/* It leads no more: those who have no log hear it from nobody else while there is no other. */
static void tell_end_of_lead(struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	for (size_t i = 0; i < s->n_nodes; i++)
		if (s->nodes[i]->role != COPIA__NODE_ROLE__CONTROLLER &&
		    peers_up(mn->node->peers, s->nodes[i]->number))
			push_to(mn, s->nodes[i]->number, mn->node->members->revision);
}

void members_node_leader(struct members_node *mn, bool ready)
{
	bool was_ready = mn->ready;
	mn->ready = ready;
	if (was_ready && !ready)
		tell_end_of_lead(mn);
	members_forward_lost(mn, mn->node->members->leader);
	if (ready && !was_ready) {
		mn->led_since_us = shepherd_now_us();
		struct known *k, *next;
		HASH_ITER(hh, mn->known, k, next)
		{
			k->revision_sent = 0;
			k->missed_count = 0;
			k->idle = false;
			k->left_us = 0;
			k->grant_stop_asked = k->grant_stop_answered = false;
			k->verdict_pending = false;
		}
		if (members_in_cluster(mn->node->members)) {
			announce_leader(mn);
			for (size_t i = 0; i < mn->node->members->state->n_nodes; i++) {
				uint32_t to = mn->node->members->state->nodes[i]->number;
				if (to != mn->node->number && peers_up(mn->node->peers, to))
					push_to(mn, to, mn->node->members->revision);
			}
		}
	}
	members_watch_update(mn);
	tell_update(mn);
	members_keep(mn);
}

void members_node_session(struct members_node *mn, uint32_t number, bool up)
{
	struct known *k = members_known(mn, number);
	k->revision_sent = 0;
	k->idle = false;
	const Copia__Node *n = members_find(mn->node->members, number);
	if (up && n && n->role != COPIA__NODE_ROLE__AGENT && !members_is_controller(mn))
		ask_view(mn, number);
	/* The answer may have been lost with the session before. */
	if (up && number == mn->node->members->leader && mn->pending_key.len)
		members_ask_certificate(mn);
	if (!up)
		members_forward_lost(mn, number == mn->node->members->leader ? 0 : UINT32_MAX);
}

static void on_message(void *ctx, uint32_t from, struct span body)
{
	struct members_node *mn = ctx;
	Copia__MembersMessage *m = copia__members_message__unpack(NULL, body.len, body.at);
	if (!m) {
		log_warning("members", "node %s sent a malformed message",
			    members_name(mn->node->members, from));
		return;
	}
	switch (m->body_case) {
	case COPIA__MEMBERS_MESSAGE__BODY_VIEW:
		take_view(mn, from, m->view);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_ASK:
		answer_ask(mn, from, m->ask);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_LOAD:
		take_load(mn, from, m->load);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_SUSPICION:
		members_take_suspicion(mn, from, m->suspicion);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_CALL:
		members_take_call(mn, from, m->call);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_REPLY:
		members_take_reply(mn, m->reply);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_CERTIFICATE_ASK:
		members_take_certificate_ask(mn, from, m->certificate_ask);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_CERTIFICATE_GRANT:
		members_take_certificate(mn, m->certificate_grant);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_JOIN:
		members_take_join(mn, from, m->join);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_JOIN_REPLY:
		members_take_join_reply(mn, m->join_reply);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_ORDERS:
		if (from == mn->node->members->leader)
			members_take_orders(mn, m->orders);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_ORDERS_DONE:
		members_take_orders_done(mn, from, m->orders_done);
		break;
	case COPIA__MEMBERS_MESSAGE__BODY_ROTATE:
		if (from == mn->node->members->leader)
			members_ask_certificate(mn);
		break;
	default:
		break; /* of a newer version */
	}
	copia__members_message__free_unpacked(m, NULL);
}

static void on_keep_timer(uv_timer_t *t)
{
	struct members_node *mn = t->data;
	if (!members_in_cluster(mn->node->members))
		return;
	save_view(mn);
	members_tell_peers(mn);
	tell_update(mn);
	members_keep(mn);
	uint32_t leader = mn->node->members->leader;
	if (members_is_controller(mn) && leader && leader != mn->node->number &&
	    peers_up(mn->node->peers, leader))
		ask_view(mn, leader); /* most often there is nothing that the log did not tell */
	/* Who hears of no leader asks all controllers: at its start, after it was a controller
	 * itself or was replaced as one, and when a message was lost. */
	if (!leader || (!members_is_controller(mn) && !mn->updated))
		ask_controllers(mn);
}

void members_node_entered(struct members_node *mn)
{
	peers_on(mn->node->peers, CHANNEL_MEMBERS, on_message, mn);
	mn->updated = mn->update_pending = mn->leaving = false;
	mn->fresh = mn->viewed = mn->whole = false;
	(void)uv_timer_start(&mn->load_timer, on_load_timer, 0, LOAD_EVERY_MS);
	(void)uv_timer_start(&mn->keep_timer, on_keep_timer, KEEP_EVERY_MS, KEEP_EVERY_MS);
	if (members_in_cluster(mn->node->members))
		members_node_changed(mn);
}

void members_node_hello(struct members_node *mn, const Copia__Shepherd__Hello *hello)
{
	if (mn->hello)
		copia__shepherd__hello__free_unpacked(mn->hello, NULL);
	mn->hello = members_copy_of(hello);
}

void members_node_shepherd(struct members_node *mn, const Copia__Shepherd__Event *e)
{
	switch (e->tell_case) {
	case COPIA__SHEPHERD__EVENT__TELL_HEARTBEATS:
		members_watch_report(mn, e->heartbeats);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_SUSPECT:
		members_watch_suspect(mn, e->suspect);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_LATE:
		log_warning("members", "this machine was late by %llu ms; nobody is accused for it",
			    (unsigned long long)e->late->late_us / 1000);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_GRANT_STOPPED:
		members_grant_stopped(mn, e->grant_stopped);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_LEASE:
		mn->hello->lease =
		    mn->hello->lease ? mn->hello->lease : xcalloc(1, sizeof(*e->lease));
		*mn->hello->lease = *e->lease;
		break;
	default:
		(void)members_task_event(mn, e);
	}
}

/* ---------------------------------------------------------------- life */

int members_node_new(struct members_node **ret, struct node *n, const char *name, struct err *err)
{
	struct members_node *mn = xcalloc(1, sizeof(*mn));
	char host[MEMBERS_NAME_MAX + 1] = "";
	(void)gethostname(host, sizeof(host) - 1);
	host[strcspn(host, ".")] = '\0';
	mn->node = n;
	mn->name = xstrdup(name && *name ? name : *host ? host : "node");
	mn->facts = sysinfo_facts();
	sysinfo_load_init(&mn->load, mn->facts->threads);
	uv_timer_t *timers[] = { &mn->push_timer, &mn->load_timer, &mn->keep_timer,
				 &mn->lease_timer };
	for (size_t i = 0; i < ARRAY_LEN(timers); i++) {
		(void)uv_timer_init(n->loop, timers[i]);
		timers[i]->data = mn;
	}
	members_join_register(mn);
	members_verbs_register(mn);
	*ret = mn;
	return 0;
}

int members_node_start(struct members_node *mn, struct err *err)
{
	struct identity i = { 0 };
	int r = identity_load(mn->node->settings.state_dir, &i, err);
	if (r == 1) {
		log_info("members", "this node is in no cluster: copia init, or copia join");
		return 0;
	}
	if (r < 0)
		return r;
	mn->identity = i;
	Copia__View *v = copia__view__unpack(NULL, i.view.len, (const uint8_t *)i.view.at);
	/* What was known last time; a controller's own log replaces it at once. */
	if (v) {
		v->term = 0;
		v->leader = 0;
		(void)members_merge(mn->node->from_view, v, err);
		copia__view__free_unpacked(v, NULL);
	}
	return node_enter(mn->node, &mn->identity, false, err);
}
