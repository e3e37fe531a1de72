/* SPDX-License-Identifier: Apache-2.0 */
/* The disk of a node. Writes are queued and become durable in order, some of them slowly; a crash
 * keeps a random number of those under way, and of the next one a part. */
#include "sim.h"

uint64_t disk_last(const struct disk *d)
{
	uint64_t log = d->count ? d->first + d->count - 1 : 0;
	return MAX(log, d->snap.meta.index);
}

const struct raft_entry *disk_entry(const struct disk *d, uint64_t index)
{
	if (d->count == 0 || index < d->first || index >= d->first + d->count)
		return NULL;
	return &d->entries[index - d->first];
}

static void truncate_log(struct disk *d, uint64_t from)
{
	while (d->count && d->first + d->count - 1 >= from)
		raft_data_drop(d->entries[--d->count].data);
}

static void append(struct sim *s, struct node *n, const struct raft_entry *e)
{
	struct disk *d = &n->disk;

	if (d->count == 0)
		d->first = e->index;
	if (e->index != d->first + d->count)
		sim_fail(s, "GAP node %lu writes entry %lu behind %lu", n->id, e->index,
			 d->first + d->count - 1);
	if (d->count == d->cap) {
		d->cap = d->cap ? d->cap * 2 : 64;
		d->entries = xrealloc(d->entries, d->cap * sizeof(*d->entries));
	}
	raft_data_hold(e->data);
	d->entries[d->count++] = *e;
}

void disk_trim(struct node *n, uint64_t first)
{
	struct disk *d = &n->disk;
	size_t gone = 0;
	while (gone < d->count && d->first + gone < first)
		raft_data_drop(d->entries[gone++].data);
	memmove(d->entries, d->entries + gone, (d->count - gone) * sizeof(*d->entries));
	d->count -= gone;
	d->first += gone;
}

static void op_free(struct disk_op *op)
{
	for (size_t i = 0; i < op->count; i++)
		raft_data_drop(op->entries[i].data);
	free(op->entries);
	free(op);
}

/* The first `steps` parts of a write: term and vote, deletion, then each entry. */
static void op_apply(struct sim *s, struct node *n, const struct disk_op *op, size_t steps)
{
	if (op->has_state && steps > 0) {
		n->disk.term = op->term;
		n->disk.vote = op->vote;
	}
	if (op->truncate_from && steps > 1)
		truncate_log(&n->disk, op->truncate_from);
	for (size_t i = 0; i < op->count && i + 2 < steps; i++)
		append(s, n, &op->entries[i]);
}

static uint64_t write_time(struct sim *s)
{
	if (s->instant)
		return 0;
	return 1 + rng_below(&s->rng, rng_chance(&s->rng, s->rates.slow_disk) ? 120 : 8);
}

void disk_write(struct sim *s, struct node *n, const struct raft_write *w)
{
	struct disk_op *op = xcalloc(1, sizeof(*op));

	op->number = w->number;
	op->has_state = w->has_state;
	op->term = w->term;
	op->vote = w->vote;
	op->truncate_from = w->truncate_from;
	op->count = w->count;
	if (w->count)
		op->entries = xmemdup(w->entries, w->count * sizeof(*w->entries));
	for (size_t i = 0; i < w->count; i++)
		raft_data_hold(op->entries[i].data);
	op->due = n->op_due = MAX(n->op_due, s->now + write_time(s));
	if (!n->ops)
		n->ops_tail = &n->ops;
	*n->ops_tail = op;
	n->ops_tail = &op->next;
}

/* Writes that are due; one event for each, or one for all of them. */
void disk_complete(struct sim *s, struct node *n)
{
	uint64_t number = 0;

	if (s->now < n->frozen_disk)
		return;
	bool together = rng_chance(&s->rng, 500);
	while (n->r && n->ops && n->ops->due <= s->now) {
		struct disk_op *op = n->ops;
		n->ops = op->next;
		op_apply(s, n, op, op->count + 2);
		number = op->number;
		op_free(op);
		if (together && n->ops && n->ops->due <= s->now)
			continue;
		struct raft_event ev = { .type = RAFT_PERSISTED, .persisted = number };
		node_step(s, n, &ev);
	}
}

void disk_crash(struct sim *s, struct node *n)
{
	bool lost = false;

	while (n->ops) {
		struct disk_op *op = n->ops;
		n->ops = op->next;
		if (!lost && (s->now < n->frozen_disk || rng_chance(&s->rng, 500))) {
			lost = true;
			if (s->now >= n->frozen_disk)
				op_apply(s, n, op, rng_below(&s->rng, op->count + 3));
		} else if (!lost) {
			op_apply(s, n, op, op->count + 2);
		}
		op_free(op);
	}
	n->op_due = 0;
	/* A snapshot is renamed into place: there or not. */
	if (n->taking_due && rng_chance(&s->rng, 300) &&
	    n->taking.meta.index > n->disk.snap.meta.index)
		n->disk.snap = n->taking;
	if (n->installing_due && rng_chance(&s->rng, 300))
		n->disk.snap = n->installing;
	n->taking_due = n->installing_due = 0;
}

void disk_free(struct node *n)
{
	while (n->ops) {
		struct disk_op *op = n->ops;
		n->ops = op->next;
		op_free(op);
	}
	truncate_log(&n->disk, 0);
	free(n->disk.entries);
	n->disk = (struct disk){ 0 };
}

/* The bytes of a snapshot follow from hash and salt, so that a mixture of two is found out. */
uint8_t snap_byte(const struct snap *snap, uint64_t at)
{
	if (at < 8)
		return (uint8_t)(snap->hash >> (8 * at));
	uint8_t salt = (uint8_t)(snap->salt >> (8 * (at % 8)));
	return at < 16 ? salt : (uint8_t)(salt ^ at);
}

/* Read hash and salt out of the received bytes; false when they do not fit together. */
bool snap_read(struct node *n, struct snap *ret)
{
	if (n->incoming_len < 16)
		return false;
	ret->hash = ret->salt = 0;
	for (unsigned i = 0; i < 8; i++) {
		ret->hash |= (uint64_t)n->incoming[i] << (8 * i);
		ret->salt |= (uint64_t)n->incoming[8 + i] << (8 * i);
	}
	for (size_t i = 0; i < n->incoming_len; i++)
		if (n->incoming[i] != snap_byte(ret, i))
			return false;
	return true;
}
