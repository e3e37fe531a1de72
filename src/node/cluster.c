/* SPDX-License-Identifier: Apache-2.0 */
/* The log and its state: commands go in, members_apply() runs, everybody who waits is told. */
#include "node/brain.h"

#include "base/log.h"
#include "caps/launch/launch-node.h"
#include "caps/members/members-impl-node.h"
#include "caps/members/members-node.h"
#include "io/peers.h"
#include "io/pki.h"
#include "node/agreement/agreement.h"

#include <errno.h>
#include <stdio.h>

/* ---------------------------------------------------------------- the state's side of the log */

/* A node that becomes a controller gets the log from its beginning, or a snapshot, while it still
 * knows the cluster from the leader's view. The two never mix: the log's state is changed by the
 * log alone, or controllers would differ. */
void node_choose_state(struct node *n)
{
	struct agree_status st = { .role = AGREE_AGENT };
	if (n->agree)
		agree_status(n->agree, &st);
	bool in_log = st.role == AGREE_LEARNER || st.role == AGREE_VOTER || st.role == AGREE_LEADER;
	bool caught_up = n->from_log->revision >= n->from_view->revision;
	struct members *chosen =
	    in_log && members_in_cluster(n->from_log) && caught_up ? n->from_log : n->from_view;
	if (chosen == n->members)
		return;
	chosen->leader = n->members->leader;
	chosen->term = n->members->term;
	n->members = chosen;
}

static int on_apply(void *ctx, const struct agree_command *c, struct str *result, struct err *err)
{
	struct node *n = ctx;
	Copia__Command *cmd = copia__command__unpack(NULL, c->bytes.len, c->bytes.at);
	if (!cmd || cmd->body_case != COPIA__COMMAND__BODY_MEMBERS) {
		if (cmd)
			copia__command__free_unpacked(cmd, NULL);
		return err_set(err, -EOPNOTSUPP,
			       "the command is of a newer version; upgrade this node's copiad");
	}
	/* Several commands share a log entry, so the state counts its own revisions: equal
	 * histories give equal numbers. */
	int r = members_apply(n->from_log, n->from_log->revision + 1, c->now_ms, cmd->members,
			      result, err);
	copia__command__free_unpacked(cmd, NULL);
	return r;
}

static void on_save(void *ctx, struct str *out)
{
	const struct node *n = ctx;
	members_save(n->from_log, out);
}

static int on_load(void *ctx, struct span snapshot, struct err *err)
{
	struct node *n = ctx;
	if (snapshot.len)
		return members_load(n->from_log, snapshot.at, snapshot.len, err);
	members_reset(n->from_log);
	return 0;
}

static void on_settled(void *ctx, uint64_t index, uint64_t now_ms)
{
	struct node *n = ctx;
	node_choose_state(n);
	if (n->members == n->from_log)
		members_node_changed(n->members_node);
}

static void on_leader(void *ctx, uint32_t leader, uint64_t term, bool ready)
{
	struct node *n = ctx;
	node_choose_state(n);
	if (leader && (n->members->leader != leader || n->members->term != term))
		log_info("cluster", "leader of term %llu is %s", (unsigned long long)term,
			 members_name(n->members, leader));
	n->members->leader = leader;
	n->members->term = term;
	members_node_leader(n->members_node, ready);
}

static void on_voters(void *ctx)
{
	struct node *n = ctx;
	node_choose_state(n);
	members_node_changed(n->members_node);
}

static void on_health(void *ctx, const char *text)
{
	if (text)
		log_error("log", "%s", text);
	else
		log_info("log", "the log is well again");
}

/* ---------------------------------------------------------------- sessions */

static void on_peer_state(void *ctx, uint32_t node, bool up, const char *reason)
{
	struct node *n = ctx;
	log_debug("peers", "session with %s is %s%s%s", members_name(n->members, node),
		  up ? "up" : "down", up ? "" : ": ", up ? "" : reason);
	if (n->agree)
		agreement_session(n->agree, node, up);
	members_node_session(n->members_node, node, up);
	if (n->launch)
		launch_session(n->launch, node, up);
}

static void on_peer_drained(void *ctx, uint32_t node, enum channel channel)
{
	struct node *n = ctx;
	if (n->launch)
		launch_drained(n->launch, node, channel);
}

static void on_peer_join(void *ctx, uint64_t ticket, struct span body, const char *remote)
{
	struct node *n = ctx;
	members_node_join_asked(n->members_node, ticket, body, remote);
}

static int open_peers(struct node *n, const struct identity *i, struct err *err)
{
	struct peers_settings s = {
		.node = i->number,
		.cluster = i->cluster,
		.incarnation = n->incarnation,
		.seed = rng_next(&n->rng),
		.cert = pki_span(&i->cert),
		.key = pki_span(&i->key),
		.authority = pki_span(&i->authority),
		.events = { on_peer_state, on_peer_drained, on_peer_join, n },
	};
	int r = peers_new(&n->peers, n->loop, &s, err);
	if (r < 0)
		return err_wrap(err, r,
				"%s/identity (node.key, node.crt or authority.crt is damaged or of "
				"another node; put back the right file)",
				n->settings.state_dir);
	return peers_listen(n->peers, n->settings.port, err);
}

static enum raft_profile profile_of(const struct node *n)
{
	const char *name = n->members->state->profile;
	return !strcmp(name, "fast") ? RAFT_FAST : !strcmp(name, "wan") ? RAFT_WAN : RAFT_LAN;
}

static int open_log(struct node *n, const struct identity *i, bool fresh, struct err *err)
{
	char dir[4096];
	(void)snprintf(dir, sizeof(dir), "%s/log", n->settings.state_dir);
	struct agreement_settings s = {
		.loop = n->loop,
		.peers = n->peers,
		.dir = dir,
		.cluster = i->cluster,
		.self = i->number,
		.profile = profile_of(n),
		.rng = n->rng,
	};
	node_random(&s.epoch, sizeof(s.epoch));
	s.epoch |= 1;
	struct agree_events events = {
		.ctx = n,
		.apply = on_apply,
		.save = on_save,
		.load = on_load,
		.settled = on_settled,
		.leader_changed = on_leader,
		.voters_changed = on_voters,
		.health = on_health,
	};
	int r = fresh ? agreement_bootstrap(&s, err) : 0;
	if (r == 0)
		r = agreement_open(&n->agree, &s, &events, err);
	if (r == 0 && agreement_exists(dir))
		r = agree_serve(n->agree, true, err);
	return r;
}

int node_enter(struct node *n, const struct identity *i, bool fresh, struct err *err)
{
	n->number = i->number;
	int r = open_peers(n, i, err);
	if (r == 0)
		members_tell_peers(n->members_node);
	if (r == 0)
		r = open_log(n, i, fresh, err);
	if (r < 0) {
		node_leave(n);
		return err_wrap(err, r, "enter the cluster");
	}
	members_node_entered(n->members_node);
	return n->launch ? launch_start(n->launch, err) : 0;
}

void node_leave(struct node *n)
{
	n->agree = agree_close(n->agree);
	if (n->peers)
		peers_close(n->peers, NULL, NULL);
	n->peers = NULL;
	n->number = 0;
	members_reset(n->from_log);
	members_reset(n->from_view);
	n->members = n->from_view;
}

/* ---------------------------------------------------------------- proposing and sending */

struct proposal {
	struct node *node;
	node_done *done;
	void *ctx;
};

static void on_outcome(void *ctx, const struct agree_outcome *o)
{
	struct proposal *p = ctx;
	if (p->done)
		p->done(p->ctx, o->code, o->text, o->result);
	else if (o->code < 0)
		log_debug("cluster", "a command was refused: %s", o->text);
	free(p);
}

void node_propose(struct node *n, const Copia__MembersCommand *cmd, node_done *done, void *ctx)
{
	struct err err = { 0 };
	Copia__Command whole = COPIA__COMMAND__INIT;
	whole.body_case = COPIA__COMMAND__BODY_MEMBERS;
	whole.members = (Copia__MembersCommand *)cmd;
	size_t size = copia__command__get_packed_size(&whole);
	_cleanup_(free_p) uint8_t *bytes = xmalloc(size);
	(void)copia__command__pack(&whole, bytes);
	struct proposal *p = xmalloc(sizeof(*p));
	*p = (struct proposal){ n, done, ctx };
	int r = n->agree
		    ? agree_propose(n->agree, (struct span){ bytes, size }, 0, on_outcome, p, &err)
		    : err_set(&err, -ENOTCONN, "this node is in no cluster");
	if (r < 0) {
		free(p);
		if (done)
			done(ctx, r, err.msg, (struct span){ 0 });
	}
}

int node_send(struct node *n, uint32_t to, unsigned channel, const ProtobufCMessage *message)
{
	if (!n->peers)
		return -ENOTCONN;
	size_t size = protobuf_c_message_get_packed_size(message);
	_cleanup_(free_p) uint8_t *bytes = xmalloc(size);
	(void)protobuf_c_message_pack(message, bytes);
	return peers_send(n->peers, to, (enum channel)channel, bytes, size);
}
