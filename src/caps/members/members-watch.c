/* SPDX-License-Identifier: Apache-2.0 */
/* Who is alive: the shepherds' heartbeats, what controllers miss, and the leader's verdict.
 *
 * Heartbeats run between every node and every controller. The key of a pair is made from the
 * master key and the number of the one that is no controller; of two controllers, of the higher
 * number. So an agent holds one key, its own, and cannot speak for another. */
#include "caps/members/members-impl-node.h"

#include "base/log.h"
#include "cluster/liveness.h"

#include <errno.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdio.h>

/* ---------------------------------------------------------------- keys */

void members_node_key(const Copia__MembersState *s, bool old, uint32_t a, uint32_t b,
		      uint8_t ret[32])
{
	const ProtobufCBinaryData *master = old ? &s->old_key_master : &s->key_master;
	uint32_t number = MAX(a, b);
	uint8_t text[64] = "copia heartbeat";
	memcpy(text + 16, s->cluster_id.data, MIN(s->cluster_id.len, (size_t)ID_SIZE));
	for (int i = 0; i < 4; i++)
		text[32 + i] = (uint8_t)(number >> 8 * i);
	unsigned len = 32;
	(void)HMAC(EVP_sha256(), master->data, (int)master->len, text, 36, ret, &len);
}

static bool holds_master(const struct members_node *mn)
{
	return mn->node->members->state->key_master.len > 0;
}

/* A learner does not have the whole log yet, so not the master key: it keeps the key it has. */
static bool is_controller_role(const Copia__Node *n)
{
	return n->role == COPIA__NODE_ROLE__CONTROLLER;
}

/* Key of the pair (self, other); false when it is not known (yet). */
static bool pair_key(const struct members_node *mn, const Copia__Node *self,
		     const Copia__Node *other, bool old, uint8_t ret[32])
{
	const Copia__MembersState *s = mn->node->members->state;
	if (!holds_master(mn)) {
		const ProtobufCBinaryData *own = old ? &mn->own_old_key : &mn->own_key;
		if (own->len == 32)
			memcpy(ret, own->data, 32);
		return own->len == 32;
	}
	if (old && !s->old_key_master.len)
		return false;
	if (is_controller_role(self) && is_controller_role(other))
		members_node_key(s, old, self->number, other->number, ret);
	else
		members_node_key(s, old, is_controller_role(self) ? other->number : self->number, 0,
				 ret);
	return true;
}

/* ---------------------------------------------------------------- the shepherd's table */

struct table {
	Copia__Shepherd__Heartbeats message;
	Copia__Shepherd__Peer *peers;
	Copia__Shepherd__PeerPath *paths;
	uint8_t (*keys)[2][32];
	size_t path_count;
};

static void add_peer(struct members_node *mn, struct table *t, const Copia__Node *self,
		     const Copia__Node *n)
{
	const Copia__MembersState *s = mn->node->members->state;
	size_t at = t->message.n_peers;
	Copia__Shepherd__Peer *p = &t->peers[at];
	copia__shepherd__peer__init(p);
	if (!pair_key(mn, self, n, false, t->keys[at][0]))
		return;
	p->number = n->number;
	p->key_epoch = s->key_epoch;
	p->key = (ProtobufCBinaryData){ 32, t->keys[at][0] };
	if (pair_key(mn, self, n, true, t->keys[at][1])) {
		p->previous_epoch = s->key_epoch - 1;
		p->previous_key = (ProtobufCBinaryData){ 32, t->keys[at][1] };
	}
	const struct known *k = members_known(mn, n->number);
	p->grant = !k->grant_stop_asked && n->state == COPIA__NODE_STATE__UP;
	p->paths = xcalloc(8, sizeof(*p->paths));
	for (size_t i = 0; i < n->n_addresses && i < 8; i++) {
		Copia__Shepherd__PeerPath *path = &t->paths[t->path_count++];
		copia__shepherd__peer_path__init(path);
		path->address = n->addresses[i];
		path->port = n->port;
		p->paths[p->n_paths++] = path;
	}
	t->message.peers[t->message.n_peers++] = p;
}

static Copia__Shepherd__Profile profile_of(const Copia__MembersState *s)
{
	return !strcmp(s->profile, "fast")  ? COPIA__SHEPHERD__PROFILE__FAST
	       : !strcmp(s->profile, "wan") ? COPIA__SHEPHERD__PROFILE__WAN
					    : COPIA__SHEPHERD__PROFILE__LAN;
}

static void send_table(struct members_node *mn, const Copia__Node *self)
{
	const Copia__MembersState *s = mn->node->members->state;
	struct err err = { 0 };
	struct table t = { .message = COPIA__SHEPHERD__HEARTBEATS__INIT };
	t.peers = xcalloc(s->n_nodes, sizeof(*t.peers));
	t.paths = xcalloc(s->n_nodes * 8, sizeof(*t.paths));
	t.keys = xcalloc(s->n_nodes, sizeof(*t.keys));
	t.message.peers = xcalloc(s->n_nodes, sizeof(*t.message.peers));
	t.message.number = self->number;
	t.message.incarnation = mn->node->incarnation;
	t.message.profile = profile_of(s);
	for (size_t i = 0; i < s->n_nodes; i++) {
		const Copia__Node *n = s->nodes[i];
		if (n->number != self->number && n->state != COPIA__NODE_STATE__LEFT &&
		    (is_controller_role(self) || is_controller_role(n)))
			add_peer(mn, &t, self, n);
	}
	Copia__Shepherd__Request r = COPIA__SHEPHERD__REQUEST__INIT;
	r.ask_case = COPIA__SHEPHERD__REQUEST__ASK_HEARTBEATS;
	r.heartbeats = &t.message;
	if (shepherd_link_send(mn->node->shepherd, &r, NULL, 0, &err) < 0)
		log_error("members", "heartbeats: %s", err.msg);
	for (size_t i = 0; i < t.message.n_peers; i++)
		free(t.message.peers[i]->paths);
	free(t.message.peers);
	free(t.peers);
	free(t.paths);
	explicit_bzero(t.keys, s->n_nodes * sizeof(*t.keys));
	free(t.keys);
}

/* What of the state the table is made of; equal stamps mean an equal table. */
static uint64_t table_stamp(const struct members_node *mn)
{
	const Copia__MembersState *s = mn->node->members->state;
	uint64_t stamp = (uint64_t)s->key_epoch << 48 ^ (uint64_t)s->profile[0] << 40 ^
			 (uint64_t)holds_master(mn) << 39 ^ (uint64_t)mn->own_key.len << 32;
	for (size_t i = 0; i < s->n_nodes; i++)
		stamp = stamp * 31 + s->nodes[i]->revision;
	struct known *k, *next;
	HASH_ITER(hh, mn->known, k, next)
	stamp = stamp * 31 + k->grant_stop_asked * k->number;
	return stamp | 1;
}

static void tell_leadership(struct members_node *mn);

static void on_lease_timer(uv_timer_t *t)
{
	tell_leadership(t->data);
}

/* The shepherd grants only for as long as a quorum is known to hold, which is about the time of an
 * election; heartbeats carry the grants, so it hears of the quorum as often as they go out. */
static void keep_telling(struct members_node *mn)
{
	const struct liveness_profile *p = liveness_profile_find(mn->node->members->state->profile);
	uint64_t every_ms = p ? p->interval_ms : 50;
	if (uv_timer_get_repeat(&mn->lease_timer) != every_ms || !mn->told_leader)
		(void)uv_timer_start(&mn->lease_timer, on_lease_timer, every_ms, every_ms);
}

/* Leases are granted only while somebody may need them: renewing them costs messages. */
static void tell_leadership(struct members_node *mn)
{
	bool lead = members_is_leader(mn) && mn->node->members->state->n_resources > 0;
	if (!lead) {
		if (mn->told_leader)
			(void)shepherd_leader(mn->node->shepherd, 0, 0);
		mn->told_leader = false;
		(void)uv_timer_stop(&mn->lease_timer);
		return;
	}
	keep_telling(mn);
	mn->told_leader = true;
	uint64_t until_ms = agree_lease_until_ms(mn->node->agree);
	uint64_t mono_ms = uv_hrtime() / 1000000;
	if (until_ms <= mono_ms)
		return;
	uint64_t until_us = shepherd_now_us() + (until_ms - mono_ms) * 1000;
	(void)shepherd_leader(mn->node->shepherd, mn->node->members->term, until_us);
}

void members_watch_update(struct members_node *mn)
{
	const Copia__Node *self = members_self(mn);
	if (!self)
		return;
	uint64_t stamp = table_stamp(mn);
	/* A brain that was just started does not know the keys before it is told; the shepherd goes
	 * on meanwhile with the table of the brain before. An empty one would silence it. */
	bool keys_known = holds_master(mn) || mn->own_key.len == 32;
	if (stamp != mn->table_revision && keys_known) {
		mn->table_revision = stamp;
		send_table(mn, self);
	}
	tell_leadership(mn);
}

/* ---------------------------------------------------------------- suspicion and verdict */

enum { FIRST_HEARD_MS = 15 * 1000 };

static void set_missed_by(struct known *k, uint32_t controller, bool missing)
{
	size_t at = 0;
	while (at < k->missed_count && k->missed_by[at] != controller)
		at++;
	if (missing && at == k->missed_count)
		members_push(k->missed_by, k->missed_count, controller);
	else if (!missing && at < k->missed_count)
		k->missed_by[at] = k->missed_by[--k->missed_count];
}

struct verdict {
	struct members_node *mn;
	uint32_t number;
};

static void on_verdict(void *ctx, int code, const char *text, struct span result)
{
	struct verdict *v = ctx;
	members_known(v->mn, v->number)->verdict_pending = false;
	free(v);
}

static void propose_state(struct members_node *mn, const Copia__Node *n, Copia__NodeState state,
			  const char *reason)
{
	struct known *k = members_known(mn, n->number);
	if (k->verdict_pending)
		return;
	k->verdict_pending = true;
	Copia__StateCommand c = COPIA__STATE_COMMAND__INIT;
	c.number = n->number;
	c.state = state;
	c.reason = (char *)reason;
	c.incarnation = n->incarnation;
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_STATE;
	cmd.state = &c;
	struct verdict *v = xmalloc(sizeof(*v));
	*v = (struct verdict){ mn, n->number };
	node_propose(mn->node, &cmd, on_verdict, v);
}

static size_t current_voters(struct members_node *mn, uint32_t voters[AGREE_CONTROLLERS_MAX])
{
	struct agree_status st;
	size_t count = 0;
	agree_status(mn->node->agree, &st);
	for (unsigned i = 0; i < st.peer_count; i++)
		if (st.peers[i].voter)
			voters[count++] = st.peers[i].node;
	return count;
}

static uint64_t wall_ms(void)
{
	uv_timeval64_t t = { 0 };
	(void)uv_gettimeofday(&t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_usec / 1000;
}

static void judge(struct members_node *mn, uint32_t number)
{
	const Copia__Node *n = members_find(mn->node->members, number);
	if (!members_is_leader(mn) || !n || n->state == COPIA__NODE_STATE__LEFT ||
	    number == mn->node->number)
		return;
	struct known *k = members_known(mn, number);
	uint32_t voters[AGREE_CONTROLLERS_MAX];
	size_t count = current_voters(mn, voters);
	bool lost = members_plan_lost(voters, count, k->missed_by, k->missed_count);
	/* A newcomer writes its identity to a disk that may be slow before it is heard at all. */
	if (lost && !k->heard && wall_ms() < n->joined_ms + FIRST_HEARD_MS)
		return;
	char reason[160];
	if (lost && n->state == COPIA__NODE_STATE__UP) {
		(void)snprintf(
		    reason, sizeof(reason),
		    "silent for the time of profile %s, missed by %zu of %zu controllers",
		    mn->node->members->state->profile, k->missed_count, count);
		propose_state(mn, n, COPIA__NODE_STATE__DOWN, reason);
	} else if (!lost && n->state == COPIA__NODE_STATE__DOWN && k->heard && !k->missing) {
		propose_state(mn, n, COPIA__NODE_STATE__UP, "heard again");
	}
}

/* Tell the leader whom we miss, all of it each time: a lost message does no harm. */
static void send_suspicion(struct members_node *mn)
{
	uint32_t leader = mn->node->members->leader;
	if (!leader || leader == mn->node->number || !mn->node->peers)
		return;
	Copia__Suspicion s = COPIA__SUSPICION__INIT;
	size_t most = HASH_COUNT(mn->known) + 1;
	_cleanup_(free_p) uint32_t *missing = xcalloc(most, sizeof(*missing));
	struct known *k, *next;
	HASH_ITER(hh, mn->known, k, next)
	if (k->missing)
		missing[s.n_missing++] = k->number;
	s.missing = missing;
	Copia__MembersMessage m = COPIA__MEMBERS_MESSAGE__INIT;
	m.body_case = COPIA__MEMBERS_MESSAGE__BODY_SUSPICION;
	m.suspicion = &s;
	(void)members_send(mn, leader, &m);
}

static bool contains(const uint32_t *list, size_t count, uint32_t number)
{
	for (size_t i = 0; i < count; i++)
		if (list[i] == number)
			return true;
	return false;
}

void members_take_suspicion(struct members_node *mn, uint32_t from, const Copia__Suspicion *s)
{
	struct known *k, *next;
	if (!members_is_leader(mn))
		return;
	HASH_ITER(hh, mn->known, k, next)
	set_missed_by(k, from, contains(s->missing, s->n_missing, k->number));
	HASH_ITER(hh, mn->known, k, next)
	judge(mn, k->number);
}

static void own_opinion(struct members_node *mn, struct known *k, bool missing)
{
	k->missing = missing;
	set_missed_by(k, mn->node->number, missing);
	judge(mn, k->number);
}

void members_watch_suspect(struct members_node *mn, const Copia__Shepherd__Suspect *s)
{
	if (!members_in_cluster(mn->node->members) || !members_is_controller(mn))
		return;
	struct known *k = members_known(mn, s->number);
	log_debug("members", "%s is silent for %llu ms", members_name(mn->node->members, s->number),
		  (unsigned long long)s->silent_us / 1000);
	own_opinion(mn, k, true);
	send_suspicion(mn);
}

void members_watch_report(struct members_node *mn, const Copia__Shepherd__HeartbeatReport *r)
{
	bool controller = members_in_cluster(mn->node->members) && members_is_controller(mn);
	for (size_t i = 0; i < r->n_peers; i++) {
		const Copia__Shepherd__PeerState *p = r->peers[i];
		struct known *k = members_known(mn, p->number);
		k->heard = p->heard;
		k->rtt_us = p->rtt_us;
		k->lease_end_us = p->lease_end_us;
		if (controller)
			own_opinion(mn, k, p->suspect);
	}
	/* Each time, also when nothing changed: what was told to a former leader, or lost, is told
	 * again. */
	if (controller)
		send_suspicion(mn);
	uint64_t bad = r->bad_sender + r->bad_mac + r->malformed;
	if (bad > mn->hb_bad + 100)
		log_warning("audit",
			    "%llu heartbeats were refused: %llu unknown senders, %llu wrong "
			    "keys, %llu malformed",
			    (unsigned long long)(bad - mn->hb_bad),
			    (unsigned long long)r->bad_sender, (unsigned long long)r->bad_mac,
			    (unsigned long long)r->malformed);
	if (bad > mn->hb_bad + 100)
		mn->hb_bad = bad;
	tell_leadership(mn);
}
