/* SPDX-License-Identifier: Apache-2.0 */
/* Each command of the members: checked whole first, then applied; a refused one changes nothing. */
#include "base/units.h"
#include "caps/members/members-impl.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

struct apply {
	struct members *m;
	uint64_t index, time_ms;
	struct str *result;
	struct err *err;
};

static bool name_is_good(const char *name)
{
	size_t len = strlen(name);
	if (len == 0 || len > MEMBERS_NAME_MAX || !isalnum((unsigned char)name[0]))
		return false;
	for (const char *c = name; *c; c++)
		if (!isalnum((unsigned char)*c) && *c != '-' && *c != '.' && *c != '_')
			return false;
	return true;
}

static Copia__Node *present(const struct apply *a, uint32_t number)
{
	Copia__Node *n = members_node_at(a->m, number);
	if (!n || n->state == COPIA__NODE_STATE__LEFT) {
		err_set(a->err, -ENOENT, "node %u is not in the cluster", number);
		return NULL;
	}
	return n;
}

static void touch(const struct apply *a, Copia__Node *n)
{
	a->m->revision = a->index;
	a->m->time_ms = a->time_ms;
	n->revision = a->index;
}

static void set_state(const struct apply *a, Copia__Node *n, Copia__NodeState state,
		      const char *reason)
{
	touch(a, n);
	if (n->state != state)
		n->since_ms = a->time_ms;
	n->state = state;
	members_set_text(&n->reason, reason);
}

static void begin(const struct apply *a)
{
	a->m->revision = a->index;
	a->m->time_ms = a->time_ms;
}

static void return_number(const struct apply *a, uint32_t number)
{
	if (a->result)
		str_printf(a->result, "%u", number);
}

/* ---------------------------------------------------------------- the cluster */

static bool profile_is_known(const char *profile)
{
	return !strcmp(profile, "fast") || !strcmp(profile, "lan") || !strcmp(profile, "wan");
}

static void free_bytes(ProtobufCBinaryData *field)
{
	free(field->data);
	*field = (ProtobufCBinaryData){ 0 };
}

static int apply_init(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__InitCommand *c = cmd->init;
	Copia__MembersState *s = a->m->state;
	if (members_in_cluster(a->m))
		return err_set(a->err, -EEXIST, "this node is already in cluster \"%s\"",
			       s->cluster_name);
	if (c->cluster_id.len != ID_SIZE || !c->first || !name_is_good(c->first->name) ||
	    !name_is_good(c->cluster_name) || !profile_is_known(c->profile))
		return err_set(a->err, -EINVAL,
			       "name, profile or id of the new cluster is not valid");
	begin(a);
	members_set_bytes(&s->cluster_id, &c->cluster_id);
	members_set_text(&s->cluster_name, c->cluster_name);
	members_set_bytes(&s->authority, &c->authority);
	members_set_bytes(&s->authority_key, &c->authority_key);
	members_set_bytes(&s->key_master, &c->key_master);
	members_set_text(&s->profile, c->profile);
	s->key_epoch = 1;
	s->controllers_wanted = 3;
	s->next_serial = 2;
	s->root_tasks = c->root_tasks;
	Copia__Node *n = members_copy_of(c->first);
	n->number = 1;
	s->next_number = 2;
	n->role = COPIA__NODE_ROLE__CONTROLLER;
	n->joined_ms = n->since_ms = a->time_ms;
	members_push(s->nodes, s->n_nodes, n);
	set_state(a, n, COPIA__NODE_STATE__UP, "made the cluster");
	members_tell(a->m, "cluster-made", "cluster", "cluster \"%s\" was made by node %s",
		     s->cluster_name, n->name);
	return_number(a, 1);
	return 0;
}

static int set_controllers(const struct apply *a, const char *value)
{
	uint64_t count;
	int r = parse_u64(value, 1, 5, &count, a->err);
	if (r < 0)
		return err_wrap(a->err, r, "controllers");
	if (count % 2 == 0)
		return err_set(a->err, -EINVAL,
			       "controllers: %s is even and tolerates no more losses than %d; "
			       "choose 1, 3 or 5",
			       value, (int)count - 1);
	a->m->state->controllers_wanted = (uint32_t)count;
	return 0;
}

static int set_profile(const struct apply *a, const char *value)
{
	if (!profile_is_known(value))
		return err_set(a->err, -EINVAL, "profile \"%.40s\" is not one of fast, lan, wan",
			       value);
	members_set_text(&a->m->state->profile, value);
	return 0;
}

static int set_root_tasks(const struct apply *a, const char *value)
{
	bool on = !strcmp(value, "on");
	if (!on && strcmp(value, "off"))
		return err_set(a->err, -EINVAL, "root-tasks: \"%.40s\" is not one of on, off",
			       value);
	a->m->state->root_tasks = on;
	return 0;
}

static int apply_setting(const struct apply *a, const Copia__MembersCommand *cmd)
{
	static const struct {
		const char *name;
		int (*set)(const struct apply *a, const char *value);
	} settings[] = {
		{ "controllers", set_controllers },
		{ "profile", set_profile },
		{ "root-tasks", set_root_tasks },
	};
	const Copia__SettingCommand *c = cmd->setting;
	for (size_t i = 0; i < ARRAY_LEN(settings); i++) {
		if (strcmp(c->name, settings[i].name))
			continue;
		int r = settings[i].set(a, c->value);
		if (r < 0)
			return r;
		begin(a);
		members_tell(a->m, "setting", "cluster", "%s was set to %s by %s", c->name,
			     c->value, c->by);
		return 0;
	}
	return err_set(a->err, -ENOENT, "there is no setting \"%.40s\"", c->name);
}

static int apply_key(const struct apply *a, const Copia__MembersCommand *cmd)
{
	Copia__MembersState *s = a->m->state;
	const Copia__KeyCommand *c = cmd->key;
	if (c->epoch != s->key_epoch + 1)
		return err_set(a->err, -ESTALE, "another rotation of the keys came first");
	if (c->key_master.len < 16)
		return err_set(a->err, -EINVAL, "the new heartbeat key is too short");
	begin(a);
	free_bytes(&s->old_key_master);
	s->old_key_master = s->key_master;
	s->key_master = (ProtobufCBinaryData){ 0 };
	members_set_bytes(&s->key_master, &c->key_master);
	s->key_epoch = c->epoch;
	members_tell(a->m, "keys-rotated", "cluster",
		     "heartbeat keys of epoch %u are in force (%s)", c->epoch, c->by);
	return 0;
}

static int apply_event(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__EventCommand *c = cmd->event;
	if (strlen(c->kind) > 40 || strlen(c->object) > 128)
		return err_set(a->err, -EINVAL, "event: kind or object is too long");
	begin(a);
	members_tell(a->m, c->kind, c->object, "%s", c->text);
	return 0;
}

static int apply_leader(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__LeaderCommand *c = cmd->leader;
	const Copia__Node *n = present(a, c->number);
	if (!n)
		return -ENOENT;
	begin(a);
	members_tell_node(a->m, "leader", n, "%s leads in term %llu", n->name,
			  (unsigned long long)c->term);
	return 0;
}

/* ---------------------------------------------------------------- tokens and joining */

static void drop_stale_tokens(const struct apply *a)
{
	Copia__MembersState *s = a->m->state;
	size_t kept = 0;
	for (size_t i = 0; i < s->n_tokens; i++) {
		Copia__Token *t = s->tokens[i];
		/* Kept for a day after its end, so that a late joiner is told "used" or
		 * "expired" and not "unknown". */
		if (t->expires_ms + 86400000 < a->time_ms)
			copia__token__free_unpacked(t, NULL);
		else
			s->tokens[kept++] = t;
	}
	s->n_tokens = kept;
}

static int apply_token(const struct apply *a, const Copia__MembersCommand *cmd)
{
	Copia__MembersState *s = a->m->state;
	const Copia__TokenCommand *c = cmd->token;
	if (c->hash.len != 32)
		return err_set(a->err, -EINVAL, "token: malformed");
	drop_stale_tokens(a);
	if (s->n_tokens >= MEMBERS_TOKENS_MAX)
		return err_set(a->err, -ENOSPC,
			       "there are %d tokens already; wait until some have expired",
			       MEMBERS_TOKENS_MAX);
	begin(a);
	Copia__Token *t = xmalloc(sizeof(*t));
	copia__token__init(t);
	members_set_bytes(&t->hash, &c->hash);
	t->made_ms = a->time_ms;
	t->expires_ms = a->time_ms + c->lifetime_ms;
	members_push(s->tokens, s->n_tokens, t);
	members_tell(a->m, "token-made", "cluster", "a token was made by %s", c->by);
	return 0;
}

static Copia__Token *find_token(const struct members *m, const ProtobufCBinaryData *hash)
{
	for (size_t i = 0; i < m->state->n_tokens; i++) {
		Copia__Token *t = m->state->tokens[i];
		if (t->hash.len == hash->len && !memcmp(t->hash.data, hash->data, hash->len))
			return t;
	}
	return NULL;
}

static bool same_bytes(const ProtobufCBinaryData *x, const ProtobufCBinaryData *y)
{
	return x->len == y->len && x->len && !memcmp(x->data, y->data, x->len);
}

/* 0: may join; 1: it is the answer to an earlier attempt that is asked for again. */
static int check_token(const struct apply *a, const Copia__JoinCommand *c, Copia__Token **ret)
{
	Copia__Token *t = find_token(a->m, &c->token_hash);
	*ret = t;
	if (!t)
		return err_set(
		    a->err, -EACCES,
		    "the token is not known to cluster \"%s\"; make a new one there: copia "
		    "token",
		    a->m->state->cluster_name);
	if (t->used && same_bytes(&t->attempt, &c->attempt))
		return 1;
	if (t->used)
		return err_set(
		    a->err, -EACCES,
		    "the token was used already, by node %s; make a new one: copia token",
		    members_name(a->m, t->used_by));
	if (t->expires_ms < a->time_ms)
		return err_set(a->err, -EACCES,
			       "the token has expired; make a new one: copia token");
	return 0;
}

static int check_newcomer(const struct apply *a, const Copia__Node *n)
{
	if (!name_is_good(n->name))
		return err_set(
		    a->err, -EINVAL,
		    "node name \"%.64s\" is not valid: letters, digits, dots and dashes, at "
		    "most %d; choose one with --node",
		    n->name, MEMBERS_NAME_MAX);
	const Copia__Node *other = members_find_name(a->m, n->name);
	if (other)
		return err_set(
		    a->err, -EEXIST,
		    "name %s is taken by node %u; choose another with --node, or remove the "
		    "old one: copia leave %s --force",
		    n->name, other->number, n->name);
	if (a->m->state->n_nodes >= MEMBERS_NODES_MAX)
		return err_set(a->err, -ENOSPC, "the cluster has %d nodes, more are not possible",
			       MEMBERS_NODES_MAX);
	if (n->n_addresses == 0 || n->n_addresses > MEMBERS_ADDRESSES_MAX || n->port == 0 ||
	    n->port > 65535)
		return err_set(a->err, -EINVAL, "node %s gave no usable address; use --address",
			       n->name);
	return 0;
}

static int apply_join(const struct apply *a, const Copia__MembersCommand *cmd)
{
	Copia__MembersState *s = a->m->state;
	const Copia__JoinCommand *c = cmd->join;
	Copia__Token *t;
	if (!c->node)
		return err_set(a->err, -EINVAL, "join: malformed");
	int r = check_token(a, c, &t);
	if (r < 0)
		return r;
	if (r == 1) {
		return_number(a, t->used_by);
		return 0;
	}
	r = check_newcomer(a, c->node);
	if (r < 0)
		return r;
	begin(a);
	Copia__Node *n = members_copy_of(c->node);
	n->number = s->next_number++;
	n->role = COPIA__NODE_ROLE__AGENT;
	n->drained = false;
	n->joined_ms = n->since_ms = a->time_ms;
	members_push(s->nodes, s->n_nodes, n);
	set_state(a, n, COPIA__NODE_STATE__UP, "joined");
	t->used = true;
	t->used_by = n->number;
	members_set_bytes(&t->attempt, &c->attempt);
	members_tell_node(a->m, "node-joined", n, "node %s joined as number %u", n->name,
			  n->number);
	return_number(a, n->number);
	return 0;
}

/* ---------------------------------------------------------------- nodes */

static int apply_update(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__UpdateCommand *c = cmd->update;
	Copia__Node *n = present(a, c->number);
	if (!n)
		return -ENOENT;
	if (c->n_addresses > MEMBERS_ADDRESSES_MAX || c->port > 65535)
		return err_set(a->err, -EINVAL, "node %s: malformed update", n->name);
	bool restarted = n->incarnation != c->incarnation;
	bool was_down = n->state == COPIA__NODE_STATE__DOWN;
	touch(a, n);
	n->incarnation = c->incarnation;
	if (c->port)
		n->port = c->port;
	if (c->n_addresses) {
		for (size_t i = 0; i < n->n_addresses; i++)
			free(n->addresses[i]);
		n->n_addresses = 0;
		for (size_t i = 0; i < c->n_addresses; i++)
			members_push(n->addresses, n->n_addresses, xstrdup(c->addresses[i]));
	}
	if (c->facts) {
		if (n->facts)
			copia__node_facts__free_unpacked(n->facts, NULL);
		n->facts = members_copy_of(c->facts);
	}
	/* A node that was down is up when its heartbeats are heard, not because it says so. */
	if (restarted && !was_down)
		members_tell_node(a->m, "node-restarted", n, "the daemon of node %s started again",
				  n->name);
	return 0;
}

static int apply_state(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__StateCommand *c = cmd->state;
	Copia__Node *n = present(a, c->number);
	if (!n)
		return -ENOENT;
	if (c->state != COPIA__NODE_STATE__UP && c->state != COPIA__NODE_STATE__DOWN)
		return err_set(a->err, -EINVAL, "node %s cannot be put into that state", n->name);
	if (c->incarnation && c->incarnation != n->incarnation)
		return err_set(a->err, -ESTALE, "node %s has started again since", n->name);
	if (n->state == c->state)
		return 0;
	bool up = c->state == COPIA__NODE_STATE__UP;
	set_state(a, n, c->state, c->reason);
	members_tell_node(a->m, up ? "node-up" : "node-down", n, "node %s is %s: %s", n->name,
			  up ? "up" : "down", c->reason);
	return 0;
}

static int apply_role(const struct apply *a, const Copia__MembersCommand *cmd)
{
	static const char *const words[] = { "an agent", "a learner", "a controller" };
	const Copia__RoleCommand *c = cmd->role;
	Copia__Node *n = present(a, c->number);
	if (!n)
		return -ENOENT;
	if ((unsigned)c->role >= ARRAY_LEN(words))
		return err_set(a->err, -EINVAL, "node %s cannot be given that role", n->name);
	if (n->role == c->role)
		return 0;
	touch(a, n);
	n->role = c->role;
	members_tell_node(a->m, "role", n, "node %s is %s: %s", n->name, words[c->role], c->reason);
	return 0;
}

static int apply_drain(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__DrainCommand *c = cmd->drain;
	Copia__Node *n = present(a, c->number);
	if (!n)
		return -ENOENT;
	if (n->drained == (bool)c->on)
		return 0;
	touch(a, n);
	n->drained = c->on;
	if (c->on) {
		members_set_text(&n->reason, *c->reason ? c->reason : "drained");
		members_tell_node(a->m, "node-drained", n, "node %s was drained by %s%s%s", n->name,
				  c->by, *c->reason ? ": " : "", c->reason);
	} else {
		members_set_text(&n->reason, "resumed");
		members_tell_node(a->m, "node-resumed", n, "node %s works again (%s)", n->name,
				  c->by);
	}
	return 0;
}

static int apply_leave(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__LeaveCommand *c = cmd->leave;
	Copia__Node *n = present(a, c->number);
	if (!n)
		return -ENOENT;
	if (members_staying(a->m) == !n->leaving)
		return err_set(
		    a->err, -EBUSY,
		    "node %s is the last of the cluster; stop copiad and remove its state "
		    "folder to end the cluster",
		    n->name);
	if (n->role != COPIA__NODE_ROLE__AGENT) {
		/* Its place is filled first; the leader then asks again. */
		touch(a, n);
		if (!n->leaving)
			members_tell_node(a->m, "node-leaving", n, "node %s is leaving (%s)",
					  n->name, c->by);
		n->leaving = true;
		n->drained = true;
		members_set_text(&n->reason, "leaving");
		return 0;
	}
	n->leaving = false;
	set_state(a, n, COPIA__NODE_STATE__LEFT, c->revoked ? "removed" : "left");
	free_bytes(&n->fingerprint);
	free_bytes(&n->old_fingerprint);
	members_tell_node(a->m, c->revoked ? "node-removed" : "node-left", n, "node %s %s (%s)",
			  n->name, c->revoked ? "was removed, its certificate is void" : "left",
			  c->by);
	return 0;
}

static int apply_certificate(const struct apply *a, const Copia__MembersCommand *cmd)
{
	const Copia__CertificateCommand *c = cmd->certificate;
	Copia__Node *n = present(a, c->number);
	if (!n)
		return -ENOENT;
	if (c->fingerprint.len != 32)
		return err_set(a->err, -EINVAL, "node %s: malformed certificate", n->name);
	if (same_bytes(&n->fingerprint, &c->fingerprint))
		return 0;
	touch(a, n);
	bool first = n->fingerprint.len == 0;
	/* One that never reached its node is not kept in the place of the one that the node has:
	 * it would lock the node out. */
	if (!same_bytes(&n->old_fingerprint, &c->held)) {
		free_bytes(&n->old_fingerprint);
		n->old_fingerprint = n->fingerprint;
		n->fingerprint = (ProtobufCBinaryData){ 0 };
	}
	members_set_bytes(&n->fingerprint, &c->fingerprint);
	if (c->serial >= a->m->state->next_serial)
		a->m->state->next_serial = c->serial + 1;
	if (!first)
		members_tell_node(a->m, "certificate", n, "node %s has a new certificate", n->name);
	return 0;
}

/* ---------------------------------------------------------------- test resources */

void members_remove_resource(Copia__MembersState *s, size_t at)
{
	copia__resource__free_unpacked(s->resources[at], NULL);
	memmove(s->resources + at, s->resources + at + 1,
		(s->n_resources - at - 1) * sizeof(s->resources[0]));
	s->n_resources--;
}

static int define_resource(const struct apply *a, const Copia__ResourceCommand *c)
{
	Copia__MembersState *s = a->m->state;
	if (!name_is_good(c->name) || c->define->n_argv == 0)
		return err_set(a->err, -EINVAL, "resource: a name and a program are needed");
	if (s->n_resources >= MEMBERS_RESOURCES_MAX)
		return err_set(a->err, -ENOSPC, "there are %d resources already",
			       MEMBERS_RESOURCES_MAX);
	begin(a);
	Copia__Resource *r = members_copy_of(c->define);
	members_set_text(&r->name, c->name);
	r->node = 0;
	r->ending = r->removed = false;
	r->revision = a->index;
	members_push(s->resources, s->n_resources, r);
	members_tell(a->m, "resource-made", c->name, "resource %s was made", c->name);
	return 0;
}

static int place_resource(const struct apply *a, Copia__Resource *r, uint32_t node)
{
	const Copia__Node *n = present(a, node);
	if (!n)
		return -ENOENT;
	if (r->node)
		return err_set(a->err, -EBUSY, "resource %s is on node %s still", r->name,
			       members_name(a->m, r->node));
	begin(a);
	r->node = node;
	r->placed = a->index;
	r->revision = a->index;
	members_tell(a->m, "resource", r->name, "resource %s goes to node %s", r->name, n->name);
	return 0;
}

/* From here on nobody may start it by this placement: what ended stays ended. */
static int end_resource(const struct apply *a, Copia__Resource *r)
{
	if (r->ending || !r->node)
		return 0;
	begin(a);
	r->ending = true;
	r->revision = a->index;
	members_tell(a->m, "resource", r->name, "resource %s ends on node %s", r->name,
		     members_name(a->m, r->node));
	return 0;
}

static int resource_ended(const struct apply *a, size_t at, uint64_t placed)
{
	Copia__MembersState *s = a->m->state;
	Copia__Resource *r = s->resources[at];
	if (!r->ending || r->placed != placed)
		return err_set(a->err, -ESTALE, "resource %s was not to end there", r->name);
	begin(a);
	members_tell(a->m, r->removed ? "resource-removed" : "resource", r->name, "resource %s %s",
		     r->name, r->removed ? "was removed" : "is nowhere now");
	r->node = 0;
	r->ending = false;
	r->revision = a->index;
	if (r->removed)
		members_remove_resource(s, at);
	return 0;
}

static int remove_resource(const struct apply *a, size_t at)
{
	Copia__MembersState *s = a->m->state;
	Copia__Resource *r = s->resources[at];
	if (r->node) {
		r->removed = true;
		return end_resource(a, r);
	}
	begin(a);
	members_tell(a->m, "resource-removed", r->name, "resource %s was removed", r->name);
	members_remove_resource(s, at);
	return 0;
}

static int apply_resource(const struct apply *a, const Copia__MembersCommand *cmd)
{
	Copia__MembersState *s = a->m->state;
	const Copia__ResourceCommand *c = cmd->resource;
	size_t at = 0;
	while (at < s->n_resources && strcmp(s->resources[at]->name, c->name))
		at++;
	bool known = at < s->n_resources;
	if (c->define)
		return known ? err_set(a->err, -EEXIST, "resource %s %s", c->name,
				       s->resources[at]->removed
					   ? "is being removed; try again in a moment"
					   : "exists already")
			     : define_resource(a, c);
	if (!known)
		return err_set(a->err, -ENOENT, "there is no resource \"%.64s\"", c->name);
	if (c->place && c->place_on)
		return place_resource(a, s->resources[at], c->place_on);
	if (c->place)
		return c->ended ? resource_ended(a, at, c->placed)
				: end_resource(a, s->resources[at]);
	if (!c->remove)
		return err_set(a->err, -EINVAL, "resource %s: nothing to do", c->name);
	return remove_resource(a, at);
}

/* ---------------------------------------------------------------- all of them */

int members_apply(struct members *m, uint64_t index, uint64_t time_ms,
		  const Copia__MembersCommand *cmd, struct str *result, struct err *err)
{
	typedef int apply_fn(const struct apply *a, const Copia__MembersCommand *cmd);
	static apply_fn *const table[] = {
		[COPIA__MEMBERS_COMMAND__BODY_INIT] = apply_init,
		[COPIA__MEMBERS_COMMAND__BODY_TOKEN] = apply_token,
		[COPIA__MEMBERS_COMMAND__BODY_JOIN] = apply_join,
		[COPIA__MEMBERS_COMMAND__BODY_UPDATE] = apply_update,
		[COPIA__MEMBERS_COMMAND__BODY_STATE] = apply_state,
		[COPIA__MEMBERS_COMMAND__BODY_ROLE] = apply_role,
		[COPIA__MEMBERS_COMMAND__BODY_DRAIN] = apply_drain,
		[COPIA__MEMBERS_COMMAND__BODY_LEAVE] = apply_leave,
		[COPIA__MEMBERS_COMMAND__BODY_CERTIFICATE] = apply_certificate,
		[COPIA__MEMBERS_COMMAND__BODY_KEY] = apply_key,
		[COPIA__MEMBERS_COMMAND__BODY_SETTING] = apply_setting,
		[COPIA__MEMBERS_COMMAND__BODY_EVENT] = apply_event,
		[COPIA__MEMBERS_COMMAND__BODY_LEADER] = apply_leader,
		[COPIA__MEMBERS_COMMAND__BODY_RESOURCE] = apply_resource,
	};
	assert(index > m->revision || !members_in_cluster(m));
	if ((unsigned)cmd->body_case >= ARRAY_LEN(table) || !table[cmd->body_case])
		return err_set(err, -EOPNOTSUPP,
			       "the command is of a newer version; upgrade this node's copiad");
	if (cmd->body_case != COPIA__MEMBERS_COMMAND__BODY_INIT && !members_in_cluster(m))
		return err_set(err, -ENOTCONN, "this node is in no cluster");
	const struct apply a = { m, index, time_ms, result, err };
	return table[cmd->body_case](&a, cmd);
}
