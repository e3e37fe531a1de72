/* SPDX-License-Identifier: Apache-2.0 */
#include "io/peers-internal.h"

#include <assert.h>
#include <errno.h>

/* Bytes queued for one node on one channel before -EAGAIN. A queue that is below takes one more
 * message of any size. */
static const size_t queue_max[CHANNEL_COUNT] = {
	[CHANNEL_AGREE] = 16 << 20,  [CHANNEL_MEMBERS] = 8 << 20, [CHANNEL_LAUNCH] = 4 << 20,
	[CHANNEL_WIREUP] = 16 << 20, [CHANNEL_STAGE] = 8 << 20,
};

/* These go first, in this order; the others take turns, frame by frame. */
static const enum channel urgent[] = { CHANNEL_AGREE, CHANNEL_MEMBERS };
static const enum channel bulk[] = { CHANNEL_WIREUP, CHANNEL_LAUNCH, CHANNEL_STAGE };

static_assert(ARRAY_LEN(urgent) + ARRAY_LEN(bulk) + 2 == CHANNEL_COUNT, "every channel once");

void peers_queue_init(struct peer *peer)
{
	for (size_t i = 0; i < CHANNEL_COUNT; i++)
		STAILQ_INIT(&peer->queues[i].messages);
}

int peers_queue_add(struct peer *peer, enum channel channel, const void *bytes, size_t len)
{
	struct queue *q = &peer->queues[channel];
	if (len > peers_message_max(channel))
		return -EMSGSIZE;
	if (q->bytes >= queue_max[channel]) {
		q->full = true;
		return -EAGAIN;
	}
	struct message *m = malloc(sizeof(*m) + len);
	if (!m)
		return -ENOMEM;
	m->len = len;
	m->done = 0;
	if (len)
		memcpy(m->bytes, bytes, len);
	STAILQ_INSERT_TAIL(&q->messages, m, entry);
	/* The header counts: empty messages must not be free of charge. */
	q->bytes += len + sizeof(*m);
	return 0;
}

static void remove_first(struct queue *q)
{
	struct message *m = STAILQ_FIRST(&q->messages);
	STAILQ_REMOVE_HEAD(&q->messages, entry);
	q->bytes -= m->len + sizeof(*m);
	free(m);
}

bool peers_queue_any(const struct peer *peer)
{
	for (size_t i = 0; i < CHANNEL_COUNT; i++)
		if (!STAILQ_EMPTY(&peer->queues[i].messages))
			return true;
	return false;
}

void peers_queue_drop(struct peer *peer)
{
	for (size_t i = 0; i < CHANNEL_COUNT; i++) {
		while (!STAILQ_EMPTY(&peer->queues[i].messages))
			remove_first(&peer->queues[i]);
		peer->queues[i].full = false; /* the state event says that all is void */
	}
}

/* Pumped before the loop waits, so that messages sent by one event leave together. */
void peers_queue_dirty(struct peer *peer)
{
	struct peers *p = peer->p;
	if (peer->dirty)
		return;
	peer->dirty = true;
	TAILQ_INSERT_TAIL(&p->dirty, peer, dirty_entry);
	(void)uv_prepare_start(&p->pump, peers_on_pump);
}

static void tell_drained(struct peer *peer)
{
	const struct peers_events *events = &peer->p->settings.events;
	for (unsigned i = 0; i < CHANNEL_COUNT; i++) {
		struct queue *q = &peer->queues[i];
		if (!q->full || q->bytes > queue_max[i] / 2)
			continue;
		q->full = false;
		if (events->drained && !peer->p->closing)
			events->drained(events->ctx, peer->number, (enum channel)i);
		if (peer->forgotten)
			return;
	}
}

/* Which channel is next: CHANNEL_COUNT when all queues are empty. */
static enum channel choose(struct peer *peer)
{
	for (size_t i = 0; i < ARRAY_LEN(urgent); i++)
		if (!STAILQ_EMPTY(&peer->queues[urgent[i]].messages))
			return urgent[i];
	for (size_t i = 0; i < ARRAY_LEN(bulk); i++) {
		enum channel channel = bulk[peer->turn++ % ARRAY_LEN(bulk)];
		if (!STAILQ_EMPTY(&peer->queues[channel].messages))
			return channel;
	}
	return CHANNEL_COUNT;
}

/* Cut the next frame into the scratch space at `at`; 0: nothing left, or no room for it. */
static size_t cut_frame(struct peer *peer, size_t at)
{
	struct peers *p = peer->p;
	if (sizeof(p->scratch) - at < FRAME_HEADER_SIZE + FRAME_BODY_MAX)
		return 0;
	enum channel channel = choose(peer);
	if (channel == CHANNEL_COUNT)
		return 0;
	struct queue *q = &peer->queues[channel];
	struct message *m = STAILQ_FIRST(&q->messages);
	size_t part = MIN(m->len - m->done, (size_t)FRAME_BODY_MAX);
	bool more = m->done + part < m->len;
	frame_header(p->scratch + at, channel, more ? FRAME_MORE : 0, part);
	memcpy(p->scratch + at + FRAME_HEADER_SIZE, m->bytes + m->done, part);
	m->done += part;
	if (!more)
		remove_first(q);
	return FRAME_HEADER_SIZE + part;
}

void peers_queue_pump(struct peer *peer)
{
	struct session *s = peer->session;
	if (peer->pumping)
		return; /* an event below sent more: the loop further up sees it */
	if (!s) {
		peers_dial(peer);
		return;
	}
	peer->pumping = true;
	while (peer->session == s && s->conn.inflight < PEERS_BATCH_BYTES) {
		size_t len = 0, part;
		while ((part = cut_frame(peer, len)) > 0)
			len += part;
		if (!len)
			break;
		tls_conn_write(&s->conn, peer->p->scratch, len);
		tell_drained(peer);
	}
	peer->pumping = false;
}

void peers_on_pump(uv_prepare_t *prepare)
{
	struct peers *p = prepare->data;
	while (!TAILQ_EMPTY(&p->dirty)) {
		struct peer *peer = TAILQ_FIRST(&p->dirty);
		TAILQ_REMOVE(&p->dirty, peer, dirty_entry);
		peer->dirty = false;
		peers_queue_pump(peer);
	}
	(void)uv_prepare_stop(prepare);
}

/* Messages to ourselves: those that are there now; what they cause comes in the next round. */
void peers_on_deliver(uv_idle_t *idle)
{
	struct peers *p = idle->data;
	size_t count = 0;
	struct message *m;
	for (size_t i = 0; i < CHANNEL_COUNT; i++)
		STAILQ_FOREACH(m, &p->self->queues[i].messages, entry) count++;
	for (; count && !p->closing; count--) {
		enum channel channel = choose(p->self);
		if (channel == CHANNEL_COUNT)
			break;
		struct queue *q = &p->self->queues[channel];
		m = STAILQ_FIRST(&q->messages);
		STAILQ_REMOVE_HEAD(&q->messages, entry);
		q->bytes -= m->len + sizeof(*m);
		if (p->handlers[channel].call)
			p->handlers[channel].call(p->handlers[channel].ctx, p->settings.node,
						  (struct span){ m->bytes, m->len });
		free(m);
		if (!p->closing)
			tell_drained(p->self);
	}
	if (!p->closing && !peers_queue_any(p->self))
		(void)uv_idle_stop(idle);
}
