/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/exchange.h"
#include <assert.h>
#include <errno.h>
#include <utlist.h>

struct piece {
	struct piece *next, *prev;
	uint64_t sequence;
	uint32_t kind;
	bool more;
	size_t len;
	uint8_t bytes[];
};

struct link {
	uint64_t sent;  /* highest number given to a piece */
	uint64_t out;   /* highest number handed to the carrier */
	uint64_t acked; /* highest number that the other side has taken */
	uint64_t taken; /* highest number taken from the other side */
	bool owes;      /* an acknowledgement */
	uint64_t again_at_ms, again_ms;
	struct piece *queue;
	struct str partial; /* pieces of a message that is not whole yet */
	bool linked;        /* is in `used` */
};

struct exchange {
	uint32_t self, count;
	struct exchange_hooks hooks;
	struct link *links;
	uint32_t *used; /* links that ever carried something: trees use few of many */
	uint32_t used_count;
};

static struct link *link_of(struct exchange *x, uint32_t node)
{
	assert(node < x->count && node != x->self);
	struct link *l = &x->links[node];
	if (!l->linked) {
		l->linked = true;
		x->used[x->used_count++] = node;
	}
	return l;
}

static bool invariant(const struct link *l)
{
	return l->acked <= l->out && l->out <= l->sent &&
	       (l->queue ? l->queue->sequence == l->acked + 1 : l->acked == l->sent);
}

static void piece_out(struct exchange *x, uint32_t to, const struct piece *p)
{
	struct link *l = &x->links[to];
	l->owes = false;
	x->hooks.send(x->hooks.ctx, &(struct exchange_piece){ .to = to,
							      .sequence = p->sequence,
							      .acked = l->taken,
							      .kind = p->kind,
							      .more = p->more,
							      .data = { p->bytes, p->len } });
}

static void window_fill(struct exchange *x, uint32_t to, uint64_t now_ms)
{
	struct link *l = &x->links[to];
	struct piece *p;
	if (l->out == l->sent)
		return;
	DL_FOREACH(l->queue, p)
	{
		if (p->sequence > l->acked + EXCHANGE_WINDOW)
			break;
		if (p->sequence <= l->out)
			continue;
		if (l->out == l->acked) {
			l->again_ms = EXCHANGE_AGAIN_MS;
			l->again_at_ms = now_ms + l->again_ms;
		}
		l->out = p->sequence;
		piece_out(x, to, p);
	}
	assert(invariant(l));
}

void exchange_send(struct exchange *x, uint32_t to, uint32_t kind, struct span bytes,
		   uint64_t now_ms)
{
	struct link *l = link_of(x, to);
	do {
		size_t len = MIN(bytes.len, (size_t)EXCHANGE_PIECE_MAX);
		struct piece *p = xmalloc(sizeof(*p) + len);
		*p = (struct piece){
			.sequence = ++l->sent, .kind = kind, .more = len < bytes.len, .len = len
		};
		if (len)
			memcpy(p->bytes, bytes.at, len);
		DL_APPEND(l->queue, p);
		bytes.at += len;
		bytes.len -= len;
	} while (bytes.len);
	window_fill(x, to, now_ms);
}

static void acked_take(struct exchange *x, uint32_t from, uint64_t acked, uint64_t now_ms)
{
	struct link *l = &x->links[from];
	if (acked <= l->acked || acked > l->out)
		return; /* old news, or of pieces that were never sent */
	l->acked = acked;
	while (l->queue && l->queue->sequence <= acked) {
		struct piece *p = l->queue;
		DL_DELETE(l->queue, p);
		free(p);
	}
	l->again_ms = EXCHANGE_AGAIN_MS;
	l->again_at_ms = now_ms + l->again_ms;
	assert(invariant(l));
	window_fill(x, from, now_ms);
}

int exchange_receive(struct exchange *x, uint32_t from, const struct exchange_piece *piece,
		     uint64_t now_ms, struct err *err)
{
	if (from >= x->count || from == x->self)
		return err_set(err, -EPROTO, "exchange from node %u of %u", from, x->count);
	struct link *l = link_of(x, from);
	acked_take(x, from, piece->acked, now_ms);
	if (!piece->sequence)
		return 0;
	l->owes = true;
	if (piece->sequence != l->taken + 1)
		return 0; /* seen already, or after a gap: it comes again */
	if (l->partial.len + piece->data.len > EXCHANGE_MESSAGE_MAX)
		return err_set(err, -EPROTO, "exchange from node %u: more than %d bytes", from,
			       EXCHANGE_MESSAGE_MAX);
	l->taken++;
	if (piece->more || l->partial.len)
		str_add(&l->partial, piece->data.at, piece->data.len);
	if (piece->more)
		return 0;
	struct str whole = l->partial;
	l->partial = (struct str){ 0 };
	struct span bytes =
	    whole.len ? (struct span){ (uint8_t *)whole.at, whole.len } : piece->data;
	x->hooks.deliver(x->hooks.ctx, from, piece->kind, bytes);
	str_free(&whole);
	return 0;
}

static void link_again(struct exchange *x, uint32_t to)
{
	struct link *l = &x->links[to];
	struct piece *p;
	DL_FOREACH(l->queue, p)
	{
		if (p->sequence > l->out)
			break;
		piece_out(x, to, p);
	}
}

void exchange_again(struct exchange *x, uint64_t now_ms)
{
	for (uint32_t i = 0; i < x->used_count; i++) {
		struct link *l = &x->links[x->used[i]];
		l->owes = l->taken > 0; /* the acknowledgement may have been lost as well */
		l->again_ms = EXCHANGE_AGAIN_MS;
		l->again_at_ms = now_ms + l->again_ms;
		link_again(x, x->used[i]);
	}
	exchange_flush(x);
}

void exchange_flush(struct exchange *x)
{
	for (uint32_t i = 0; i < x->used_count; i++) {
		struct link *l = &x->links[x->used[i]];
		if (!l->owes)
			continue;
		l->owes = false;
		x->hooks.send(x->hooks.ctx,
			      &(struct exchange_piece){ .to = x->used[i], .acked = l->taken });
	}
}

uint64_t exchange_tick(struct exchange *x, uint64_t now_ms)
{
	uint64_t next_ms = UINT64_MAX;
	for (uint32_t i = 0; i < x->used_count; i++) {
		struct link *l = &x->links[x->used[i]];
		if (l->acked == l->out)
			continue;
		if (l->again_at_ms <= now_ms) {
			l->again_ms = MIN(2 * l->again_ms, (uint64_t)EXCHANGE_AGAIN_MOST_MS);
			l->again_at_ms = now_ms + l->again_ms;
			link_again(x, x->used[i]);
		}
		next_ms = MIN(next_ms, l->again_at_ms);
	}
	return next_ms;
}

size_t exchange_pending(const struct exchange *x)
{
	size_t count = 0;
	for (uint32_t i = 0; i < x->used_count; i++)
		count += (size_t)(x->links[x->used[i]].sent - x->links[x->used[i]].acked);
	return count;
}

struct exchange *exchange_new(uint32_t self, uint32_t count, const struct exchange_hooks *hooks)
{
	assert(self < count);
	struct exchange *x = xcalloc(1, sizeof(*x));
	x->self = self;
	x->count = count;
	x->hooks = *hooks;
	x->links = xcalloc(count, sizeof(*x->links));
	x->used = xcalloc(count, sizeof(*x->used));
	return x;
}

struct exchange *exchange_free(struct exchange *x)
{
	if (!x)
		return NULL;
	for (uint32_t i = 0; i < x->count; i++) {
		struct piece *p, *next;
		DL_FOREACH_SAFE(x->links[i].queue, p, next)
		{
			free(p);
		}
		str_free(&x->links[i].partial);
	}
	free(x->links);
	free(x->used);
	free(x);
	return NULL;
}
