/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/members/members-impl.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

/* ---------------------------------------------------------------- small tools */

void members_set_text(char **field, const char *text)
{
	if (*field != protobuf_c_empty_string)
		free(*field);
	*field = xstrdup(text ? text : "");
}

void members_set_bytes(ProtobufCBinaryData *field, const ProtobufCBinaryData *value)
{
	free(field->data);
	field->len = value->len;
	field->data = value->len ? xmemdup(value->data, value->len) : NULL;
}

void *members_copy(const ProtobufCMessage *message)
{
	size_t size = protobuf_c_message_get_packed_size(message);
	_cleanup_(free_p) uint8_t *bytes = xmalloc(size);
	(void)protobuf_c_message_pack(message, bytes);
	void *copy = protobuf_c_message_unpack(message->descriptor, NULL, size, bytes);
	assert(copy);
	return copy;
}

static void tell(struct members *m, const char *kind, const char *object, const char *fmt,
		 va_list args)
{
	Copia__MembersState *s = m->state;
	if (s->n_events >= MEMBERS_EVENTS_MAX) {
		copia__event__free_unpacked(s->events[0], NULL);
		memmove(s->events, s->events + 1, (s->n_events - 1) * sizeof(s->events[0]));
		s->n_events--;
	}
	char text[400];
	(void)vsnprintf(text, sizeof(text), fmt, args);
	Copia__Event *e = xmalloc(sizeof(*e));
	copia__event__init(e);
	e->revision = m->revision;
	e->time_ms = m->time_ms;
	e->kind = xstrdup(kind);
	e->object = xstrdup(object);
	e->text = xstrdup(text);
	members_push(s->events, s->n_events, e);
}

void members_tell(struct members *m, const char *kind, const char *object, const char *fmt, ...)
{
	va_list args;
	va_start(args, fmt);
	tell(m, kind, object, fmt, args);
	va_end(args);
}

void members_tell_node(struct members *m, const char *kind, const Copia__Node *n, const char *fmt,
		       ...)
{
	char object[MEMBERS_NAME_MAX + 16];
	(void)snprintf(object, sizeof(object), "node %s", n->name);
	va_list args;
	va_start(args, fmt);
	tell(m, kind, object, fmt, args);
	va_end(args);
}

/* ---------------------------------------------------------------- life */

static Copia__MembersState *state_new(void)
{
	Copia__MembersState *s = xmalloc(sizeof(*s));
	copia__members_state__init(s);
	return s;
}

struct members *members_new(void)
{
	struct members *m = xcalloc(1, sizeof(*m));
	m->state = state_new();
	return m;
}

void members_reset(struct members *m)
{
	if (m->state->authority_key.len) /* the key does not stay in freed memory */
		explicit_bzero(m->state->authority_key.data, m->state->authority_key.len);
	copia__members_state__free_unpacked(m->state, NULL);
	*m = (struct members){ .state = state_new() };
}

struct members *members_free(struct members *m)
{
	if (!m)
		return NULL;
	members_reset(m);
	copia__members_state__free_unpacked(m->state, NULL);
	free(m);
	return NULL;
}

bool members_in_cluster(const struct members *m)
{
	return m->state->cluster_id.len == ID_SIZE;
}

/* ---------------------------------------------------------------- looking things up */

Copia__Node *members_node_at(struct members *m, uint32_t number)
{
	size_t low = 0, high = m->state->n_nodes;
	while (low < high) {
		size_t middle = (low + high) / 2;
		if (m->state->nodes[middle]->number < number)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < m->state->n_nodes && m->state->nodes[low]->number == number)
		return m->state->nodes[low];
	return NULL;
}

const Copia__Node *members_find(const struct members *m, uint32_t number)
{
	return members_node_at((struct members *)m, number);
}

const Copia__Node *members_find_name(const struct members *m, const char *name)
{
	for (size_t i = 0; i < m->state->n_nodes; i++) {
		const Copia__Node *n = m->state->nodes[i];
		if (n->state != COPIA__NODE_STATE__LEFT && strcmp(n->name, name) == 0)
			return n;
	}
	return NULL;
}

const char *members_name(const struct members *m, uint32_t number)
{
	static _Thread_local char texts[8][MEMBERS_NAME_MAX + 16];
	static _Thread_local unsigned next;
	const Copia__Node *n = members_find(m, number);
	char *text = texts[next++ % 8];
	if (n)
		(void)snprintf(text, sizeof(texts[0]), "%s", n->name);
	else
		(void)snprintf(text, sizeof(texts[0]), "node %u", number);
	return text;
}

bool members_takes_work(const Copia__Node *n)
{
	return n->state == COPIA__NODE_STATE__UP && !n->drained;
}

size_t members_staying(const struct members *m)
{
	size_t count = 0;
	for (size_t i = 0; i < m->state->n_nodes; i++)
		count += m->state->nodes[i]->state != COPIA__NODE_STATE__LEFT &&
			 !m->state->nodes[i]->leaving;
	return count;
}

size_t members_count_up(const struct members *m)
{
	size_t count = 0;
	for (size_t i = 0; i < m->state->n_nodes; i++)
		count += m->state->nodes[i]->state == COPIA__NODE_STATE__UP;
	return count;
}

/* ---------------------------------------------------------------- snapshot */

void members_save(const struct members *m, struct str *out)
{
	m->state->revision = m->revision;
	m->state->time_ms = m->time_ms;
	size_t size = copia__members_state__get_packed_size(m->state);
	str_reserve(out, size);
	(void)copia__members_state__pack(m->state, (uint8_t *)out->at + out->len);
	out->len += size;
	out->at[out->len] = '\0';
}

static bool well_formed(const Copia__MembersState *s)
{
	if (s->cluster_id.len != ID_SIZE || s->n_nodes > MEMBERS_NODES_MAX ||
	    s->n_events > MEMBERS_EVENTS_MAX || s->n_tokens > MEMBERS_TOKENS_MAX)
		return false;
	for (size_t i = 1; i < s->n_nodes; i++)
		if (s->nodes[i]->number <= s->nodes[i - 1]->number)
			return false;
	return true;
}

int members_load(struct members *m, const uint8_t *bytes, size_t len, struct err *err)
{
	Copia__MembersState *s = copia__members_state__unpack(NULL, len, bytes);
	if (!s || !well_formed(s)) {
		if (s)
			copia__members_state__free_unpacked(s, NULL);
		return err_set(err, -EBADMSG, "snapshot of the members cannot be read");
	}
	copia__members_state__free_unpacked(m->state, NULL);
	m->state = s;
	m->revision = s->revision;
	m->time_ms = s->time_ms;
	return 0;
}

void members_check(const struct members *m)
{
	const Copia__MembersState *s = m->state;
	for (size_t i = 0; i < s->n_nodes; i++) {
		const Copia__Node *n = s->nodes[i];
		assert(n->number > 0 && (!s->next_number || n->number < s->next_number));
		assert(i == 0 || s->nodes[i - 1]->number < n->number);
		assert(n->revision <= m->revision);
		assert(n->state != COPIA__NODE_STATE__LEFT || n->role == COPIA__NODE_ROLE__AGENT);
		if (n->state != COPIA__NODE_STATE__LEFT)
			assert(members_find_name(m, n->name) == n);
	}
	assert(s->n_events <= MEMBERS_EVENTS_MAX && s->n_tokens <= MEMBERS_TOKENS_MAX);
}
