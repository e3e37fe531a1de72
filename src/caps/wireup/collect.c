/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/collect.h"
#include <assert.h>
#include <errno.h>
#include <uthash.h>

struct entry {
	uint32_t node;
	struct span bytes; /* owned */
};

struct gather {
	UT_hash_handle hh;
	bool joined, sent_up;
	uint32_t *nodes; /* participants; known once joined */
	uint32_t count, position, expected;
	struct entry *entries;
	uint32_t entry_count, entry_cap;
	size_t id_len;
	char id[];
};

struct collect {
	uint32_t self;
	struct collect_hooks hooks;
	struct gather *gathers;
};

static void put_u32(struct str *to, uint32_t value)
{
	uint8_t b[4] = { (uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
			 (uint8_t)(value >> 24) };
	str_add(to, b, sizeof(b));
}

static bool get_u32(struct span *from, uint32_t *ret)
{
	if (from->len < 4)
		return false;
	*ret = from->at[0] | (uint32_t)from->at[1] << 8 | (uint32_t)from->at[2] << 16 |
	       (uint32_t)from->at[3] << 24;
	from->at += 4;
	from->len -= 4;
	return true;
}

static bool get_bytes(struct span *from, uint32_t len, struct span *ret)
{
	if (from->len < len)
		return false;
	*ret = (struct span){ from->at, len };
	from->at += len;
	from->len -= len;
	return true;
}

static struct gather *gather_find(struct collect *c, struct span id)
{
	struct gather *g = NULL;
	HASH_FIND(hh, c->gathers, id.at, id.len, g);
	return g;
}

static void gather_free(struct collect *c, struct gather *g)
{
	HASH_DEL(c->gathers, g);
	for (uint32_t i = 0; i < g->entry_count; i++)
		free((void *)g->entries[i].bytes.at);
	free(g->entries);
	free(g->nodes);
	free(g);
}

static int gather_get(struct collect *c, struct span id, struct gather **ret, struct err *err)
{
	struct gather *g = gather_find(c, id);
	if (!g) {
		if (HASH_COUNT(c->gathers) >= COLLECT_OPEN_MAX)
			return err_set(err, -EMFILE, "more than %d collectives at once",
				       COLLECT_OPEN_MAX);
		g = xcalloc(1, sizeof(*g) + id.len);
		memcpy(g->id, id.at, id.len);
		g->id_len = id.len;
		HASH_ADD(hh, c->gathers, id, g->id_len, g);
	}
	*ret = g;
	return 0;
}

static int entry_add(struct gather *g, uint32_t node, struct span bytes, struct err *err)
{
	for (uint32_t i = 0; i < g->entry_count; i++)
		if (g->entries[i].node == node)
			return err_set(err, -EPROTO, "collective: node %u twice", node);
	if (g->entry_count == g->entry_cap) {
		g->entry_cap = g->entry_cap ? 2 * g->entry_cap : 8;
		g->entries = xrealloc(g->entries, g->entry_cap * sizeof(*g->entries));
	}
	uint8_t *copy = xmalloc(bytes.len + 1);
	if (bytes.len)
		memcpy(copy, bytes.at, bytes.len);
	g->entries[g->entry_count++] = (struct entry){ node, { copy, bytes.len } };
	return 0;
}

/* Participants in the subtree whose root is participant `position`. */
static uint32_t subtree_size(uint32_t position, uint32_t count)
{
	uint64_t first = position, last = position, size = 0;
	while (first < count) {
		size += MIN(last, (uint64_t)count - 1) - first + 1;
		first = first * COLLECT_ARITY + 1;
		last = last * COLLECT_ARITY + COLLECT_ARITY;
	}
	return (uint32_t)size;
}

static int entry_compare(const void *a, const void *b)
{
	const struct entry *x = a, *y = b;
	return x->node < y->node ? -1 : x->node > y->node;
}

static void gather_finish(struct collect *c, struct gather *g, struct span result)
{
	struct str message = { 0 };
	for (uint32_t i = 1; i <= COLLECT_ARITY; i++) {
		uint64_t child = (uint64_t)g->position * COLLECT_ARITY + i;
		if (child >= g->count)
			break;
		if (!message.len) {
			put_u32(&message, (uint32_t)g->id_len);
			str_add(&message, g->id, g->id_len);
			str_add(&message, result.at, result.len);
		}
		c->hooks.down(c->hooks.ctx, g->nodes[child],
			      (struct span){ (uint8_t *)message.at, message.len });
	}
	str_free(&message);
	/* done() may join the next collective of the same id: forget this one first. */
	char *id = xmemdup(g->id, g->id_len);
	size_t id_len = g->id_len;
	gather_free(c, g);
	c->hooks.done(c->hooks.ctx, (struct span){ (uint8_t *)id, id_len }, result);
	free(id);
}

static void gather_advance(struct collect *c, struct gather *g)
{
	if (!g->joined || g->sent_up || g->entry_count < g->expected)
		return;
	g->sent_up = true;
	qsort(g->entries, g->entry_count, sizeof(*g->entries), entry_compare);
	struct str message = { 0 };
	if (g->position == 0) {
		for (uint32_t i = 0; i < g->entry_count; i++)
			str_add(&message, g->entries[i].bytes.at, g->entries[i].bytes.len);
		gather_finish(c, g,
			      (struct span){ (const uint8_t *)str_text(&message), message.len });
		str_free(&message);
		return;
	}
	put_u32(&message, (uint32_t)g->id_len);
	str_add(&message, g->id, g->id_len);
	for (uint32_t i = 0; i < g->entry_count; i++) {
		put_u32(&message, g->entries[i].node);
		put_u32(&message, (uint32_t)g->entries[i].bytes.len);
		str_add(&message, g->entries[i].bytes.at, g->entries[i].bytes.len);
	}
	c->hooks.up(c->hooks.ctx, g->nodes[(g->position - 1) / COLLECT_ARITY],
		    (struct span){ (uint8_t *)message.at, message.len });
	str_free(&message);
}

int collect_join(struct collect *c, struct span id, const uint32_t *nodes, uint32_t count,
		 struct span bytes, struct err *err)
{
	uint32_t position = count;
	for (uint32_t i = 0; i < count; i++) {
		if (i && nodes[i] <= nodes[i - 1])
			return err_set(err, -EINVAL, "collective: nodes are not ascending");
		if (nodes[i] == c->self)
			position = i;
	}
	if (position == count || id.len > COLLECT_ID_MAX)
		return err_set(err, -EINVAL, "collective: this node takes no part");
	struct gather *g;
	int r = gather_get(c, id, &g, err);
	if (r < 0)
		return r;
	if (g->joined)
		return err_set(err, -EALREADY, "collective: joined twice");
	r = entry_add(g, c->self, bytes, err);
	if (r < 0)
		return r;
	g->joined = true;
	g->nodes = xmemdup(nodes, count * sizeof(*nodes));
	g->count = count;
	g->position = position;
	g->expected = subtree_size(position, count);
	gather_advance(c, g);
	return 0;
}

static bool id_take(struct span *bytes, struct span *ret)
{
	uint32_t len;
	return get_u32(bytes, &len) && len <= COLLECT_ID_MAX && get_bytes(bytes, len, ret);
}

int collect_up(struct collect *c, struct span bytes, struct err *err)
{
	struct span id, data;
	struct gather *g;
	if (!id_take(&bytes, &id))
		return err_set(err, -EPROTO, "collective: a message without id");
	int r = gather_get(c, id, &g, err);
	if (r < 0)
		return r;
	while (bytes.len) {
		uint32_t node, len;
		if (!get_u32(&bytes, &node) || !get_u32(&bytes, &len) ||
		    !get_bytes(&bytes, len, &data))
			return err_set(err, -EPROTO, "collective: a broken entry");
		r = entry_add(g, node, data, err);
		if (r < 0)
			return r;
	}
	gather_advance(c, g);
	return 0;
}

int collect_down(struct collect *c, struct span bytes, struct err *err)
{
	struct span id;
	if (!id_take(&bytes, &id))
		return err_set(err, -EPROTO, "collective: a message without id");
	struct gather *g = gather_find(c, id);
	if (!g || !g->sent_up)
		return err_set(err, -EPROTO, "collective: a result that nobody waits for");
	gather_finish(c, g, bytes);
	return 0;
}

size_t collect_open(const struct collect *c)
{
	return HASH_COUNT(c->gathers);
}

struct collect *collect_new(uint32_t self, const struct collect_hooks *hooks)
{
	struct collect *c = xcalloc(1, sizeof(*c));
	c->self = self;
	c->hooks = *hooks;
	return c;
}

struct collect *collect_free(struct collect *c)
{
	if (!c)
		return NULL;
	struct gather *g, *next;
	HASH_ITER(hh, c->gathers, g, next)
	{
		gather_free(c, g);
	}
	free(c);
	return NULL;
}
