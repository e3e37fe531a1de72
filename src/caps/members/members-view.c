/* SPDX-License-Identifier: Apache-2.0 */
/* What agents know: a view made by the leader, whole or as what changed since a revision. */
#include "caps/members/members-impl.h"

#include <errno.h>

Copia__View *members_view(const struct members *m, uint64_t since)
{
	const Copia__MembersState *s = m->state;
	_cleanup_(free_p) Copia__Node **nodes = xcalloc(s->n_nodes, sizeof(*nodes));
	_cleanup_(free_p) Copia__Event **events = xcalloc(s->n_events, sizeof(*events));
	/* Borrowed parts, packed and unpacked once: the result is all the caller's own. */
	Copia__View v = COPIA__VIEW__INIT;
	v.nodes = nodes;
	v.events = events;
	v.cluster_id = s->cluster_id;
	v.cluster_name = s->cluster_name;
	v.revision = m->revision;
	v.leader = m->leader;
	v.term = m->term;
	v.profile = s->profile;
	v.controllers_wanted = s->controllers_wanted;
	v.time_ms = m->time_ms;
	v.complete = since == 0;
	v.authority = s->authority;
	v.key_epoch = s->key_epoch;
	v.root_tasks = s->root_tasks;
	v.since = since;
	for (size_t i = 0; i < s->n_nodes; i++)
		if (s->nodes[i]->revision > since || since == 0)
			nodes[v.n_nodes++] = s->nodes[i];
	for (size_t i = 0; i < s->n_events; i++)
		if (s->events[i]->revision > since)
			events[v.n_events++] = s->events[i];
	return members_copy_of(&v);
}

static void put_node(Copia__MembersState *s, const Copia__Node *from)
{
	Copia__Node *n = members_copy_of(from);
	size_t at = s->n_nodes;
	while (at > 0 && s->nodes[at - 1]->number >= n->number)
		at--;
	if (at < s->n_nodes && s->nodes[at]->number == n->number) {
		copia__node__free_unpacked(s->nodes[at], NULL);
		s->nodes[at] = n;
		return;
	}
	members_push(s->nodes, s->n_nodes, n);
	memmove(s->nodes + at + 1, s->nodes + at, (s->n_nodes - 1 - at) * sizeof(s->nodes[0]));
	s->nodes[at] = n;
}

static void put_event(Copia__MembersState *s, const Copia__Event *from)
{
	if (s->n_events >= MEMBERS_EVENTS_MAX) {
		copia__event__free_unpacked(s->events[0], NULL);
		memmove(s->events, s->events + 1, (s->n_events - 1) * sizeof(s->events[0]));
		s->n_events--;
	}
	members_push(s->events, s->n_events, members_copy_of(from));
}

static void forget_all(Copia__MembersState *s)
{
	for (size_t i = 0; i < s->n_nodes; i++)
		copia__node__free_unpacked(s->nodes[i], NULL);
	s->n_nodes = 0;
	for (size_t i = 0; i < s->n_events; i++)
		copia__event__free_unpacked(s->events[i], NULL);
	s->n_events = 0;
}

static bool view_is_sane(const struct members *m, const Copia__View *v)
{
	if (v->cluster_id.len != ID_SIZE || v->n_nodes > MEMBERS_NODES_MAX ||
	    v->n_events > MEMBERS_EVENTS_MAX)
		return false;
	for (size_t i = 0; i < v->n_nodes; i++)
		if (v->nodes[i]->number == 0 || strlen(v->nodes[i]->name) > MEMBERS_NAME_MAX)
			return false;
	return !members_in_cluster(m) ||
	       !memcmp(m->state->cluster_id.data, v->cluster_id.data, ID_SIZE);
}

int members_merge(struct members *m, const Copia__View *v, struct err *err)
{
	if (!view_is_sane(m, v))
		return err_set(err, -EBADMSG, "the leader's view of the cluster is malformed");
	if (v->term < m->term)
		return 0;
	if (!v->complete && !members_in_cluster(m))
		return err_set(err, -ESTALE, "a view of changes came before a complete one");
	if (!v->complete && v->since > m->revision)
		return err_set(err, -ESTALE, "changes before revision %llu are missing here",
			       (unsigned long long)v->since);
	bool news = v->complete || v->revision > m->revision || v->leader != m->leader ||
		    v->key_epoch != m->state->key_epoch;
	m->leader = v->leader;
	m->term = v->term;
	if (v->revision < m->revision && !v->complete)
		return news;
	Copia__MembersState *s = m->state;
	if (v->complete)
		forget_all(s);
	members_set_bytes(&s->cluster_id, &v->cluster_id);
	members_set_text(&s->cluster_name, v->cluster_name);
	members_set_bytes(&s->authority, &v->authority);
	members_set_text(&s->profile, v->profile);
	s->controllers_wanted = v->controllers_wanted;
	s->key_epoch = v->key_epoch;
	s->root_tasks = v->root_tasks;
	for (size_t i = 0; i < v->n_nodes; i++)
		put_node(s, v->nodes[i]);
	uint64_t known = v->complete ? 0 : m->revision;
	for (size_t i = 0; i < v->n_events; i++)
		if (v->events[i]->revision > known)
			put_event(s, v->events[i]);
	m->revision = v->revision;
	m->time_ms = v->time_ms;
	return news;
}
