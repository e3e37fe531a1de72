/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/dedup.h"

#include "schema/agree.pb-c.h"

#include <assert.h>
#include <errno.h>

struct done {
	uint64_t sequence, index;
	int code;
	bool dropped;
	uint8_t *bytes;
	size_t len;
	char *text; /* NULL when empty */
};

struct proposer {
	uint32_t node;
	uint64_t epoch, low, used;
	struct done *at; /* [head, end) in order of their sequence */
	size_t head, end, cap;
	size_t bytes; /* of results and texts */
};

struct dedup {
	struct proposer **at; /* sorted by node, then epoch */
	size_t count, cap;
	uint64_t uses;
};

/* ---- one proposer ---- */

static size_t done_size(const struct done *x)
{
	return x->len + (x->text ? strlen(x->text) : 0);
}

static void done_drop(struct proposer *p, struct done *x)
{
	p->bytes -= done_size(x);
	free(take_ptr(x->bytes));
	free(take_ptr(x->text));
	x->len = 0;
}

static void proposer_free(struct proposer *p)
{
	for (size_t i = p->head; i < p->end; i++)
		done_drop(p, &p->at[i]);
	assert(p->bytes == 0);
	free(p->at);
	free(p);
}

/* First position whose sequence is >= `sequence`. */
static size_t proposer_find(const struct proposer *p, uint64_t sequence)
{
	size_t low = p->head, high = p->end;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		if (p->at[mid].sequence < sequence)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void proposer_raise(struct proposer *p, uint64_t low)
{
	if (low <= p->low)
		return;
	p->low = low;
	while (p->head < p->end && p->at[p->head].sequence < low)
		done_drop(p, &p->at[p->head++]);
	if (p->head == p->end)
		p->head = p->end = 0;
}

/* Keep results within DEDUP_BYTES: the oldest are the least likely to be asked for. */
static void proposer_bound(struct proposer *p, size_t most)
{
	for (size_t i = p->head; i < p->end && p->bytes > most; i++)
		if (p->at[i].bytes || p->at[i].text) {
			done_drop(p, &p->at[i]);
			p->at[i].dropped = true;
		}
}

static struct done *proposer_insert(struct proposer *p, uint64_t sequence)
{
	if (p->end == p->cap) {
		/* Room is made in front once half of the array is used up, so that the cost of
		 * moving stays in proportion to what is added. */
		if (p->head > p->cap / 2) {
			memmove(p->at, p->at + p->head, (p->end - p->head) * sizeof(*p->at));
			p->end -= p->head;
			p->head = 0;
		} else {
			p->cap = p->cap ? p->cap * 2 : 16;
			p->at = xrealloc(p->at, p->cap * sizeof(*p->at));
		}
	}
	size_t i = proposer_find(p, sequence);
	assert(i == p->end || p->at[i].sequence != sequence);
	memmove(p->at + i + 1, p->at + i, (p->end - i) * sizeof(*p->at));
	p->end++;
	p->at[i] = (struct done){ .sequence = sequence };
	return &p->at[i];
}

static void proposer_keep(struct proposer *p, uint64_t sequence, const struct dedup_result *r)
{
	struct done *x = proposer_insert(p, sequence);
	x->code = r->code;
	x->index = r->index;
	x->dropped = r->dropped;
	if (r->bytes.len) {
		x->bytes = xmemdup(r->bytes.at, r->bytes.len);
		x->len = r->bytes.len;
	}
	if (r->text && r->text[0])
		x->text = xstrdup(r->text);
	p->bytes += done_size(x);
	proposer_bound(p, DEDUP_BYTES);
}

/* ---- all of them ---- */

struct dedup *dedup_new(void)
{
	return xcalloc(1, sizeof(struct dedup));
}

struct dedup *dedup_free(struct dedup *d)
{
	if (!d)
		return NULL;
	for (size_t i = 0; i < d->count; i++)
		proposer_free(d->at[i]);
	free(d->at);
	free(d);
	return NULL;
}

/* First position that is >= {node, epoch}. */
static size_t find(const struct dedup *d, uint32_t node, uint64_t epoch)
{
	size_t low = 0, high = d->count;
	while (low < high) {
		size_t mid = low + (high - low) / 2;
		const struct proposer *p = d->at[mid];
		if (p->node < node || (p->node == node && p->epoch < epoch))
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static struct proposer *look_up(const struct dedup *d, uint32_t node, uint64_t epoch)
{
	size_t i = find(d, node, epoch);
	if (i < d->count && d->at[i]->node == node && d->at[i]->epoch == epoch)
		return d->at[i];
	return NULL;
}

static void remove_at(struct dedup *d, size_t i)
{
	proposer_free(d->at[i]);
	d->count--;
	memmove(d->at + i, d->at + i + 1, (d->count - i) * sizeof(*d->at));
}

/* The longest unused within [first, end). */
static size_t oldest(const struct dedup *d, size_t first, size_t end)
{
	size_t best = first;
	for (size_t i = first; i < end; i++)
		if (d->at[i]->used < d->at[best]->used)
			best = i;
	return best;
}

/* A new epoch means that the brains before it are dead: nobody waits for their results any more.
 * That they were applied is still kept, because a copy may be on its way through a leader. */
static void make_room(struct dedup *d, uint32_t node)
{
	size_t first = find(d, node, 0), end = first;
	while (end < d->count && d->at[end]->node == node) {
		proposer_bound(d->at[end], 0);
		end++;
	}
	if (end - first >= DEDUP_EPOCHS)
		remove_at(d, oldest(d, first, end));
	if (d->count >= DEDUP_PROPOSERS)
		remove_at(d, oldest(d, 0, d->count));
}

static struct proposer *add(struct dedup *d, uint32_t node, uint64_t epoch)
{
	if (d->count == d->cap) {
		d->cap = d->cap ? d->cap * 2 : 8;
		d->at = xrealloc(d->at, d->cap * sizeof(*d->at));
	}
	size_t i = find(d, node, epoch);
	memmove(d->at + i + 1, d->at + i, (d->count - i) * sizeof(*d->at));
	d->count++;
	d->at[i] = xcalloc(1, sizeof(**d->at));
	d->at[i]->node = node;
	d->at[i]->epoch = epoch;
	return d->at[i];
}

enum dedup_verdict dedup_check(struct dedup *d, const struct dedup_key *key, uint64_t low,
			       struct dedup_result *ret)
{
	struct proposer *p = look_up(d, key->node, key->epoch);
	if (!p) {
		make_room(d, key->node);
		p = add(d, key->node, key->epoch);
	}
	p->used = ++d->uses;
	/* A proposer that claims to have finished what it is just asking for only harms itself. */
	proposer_raise(p, MIN(low, key->sequence));
	if (key->sequence < p->low)
		return DEDUP_STALE;
	if (key->sequence - p->low >= DEDUP_WINDOW)
		return DEDUP_FAR;
	return dedup_find(d, key, ret) ? DEDUP_KNOWN : DEDUP_NEW;
}

bool dedup_find(const struct dedup *d, const struct dedup_key *key, struct dedup_result *ret)
{
	const struct proposer *p = look_up(d, key->node, key->epoch);
	if (!p)
		return false;
	size_t i = proposer_find(p, key->sequence);
	if (i == p->end || p->at[i].sequence != key->sequence)
		return false;
	const struct done *x = &p->at[i];
	*ret = (struct dedup_result){ .code = x->code,
				      .index = x->index,
				      .bytes = { x->bytes, x->len },
				      .text = x->text ? x->text : "",
				      .dropped = x->dropped };
	return true;
}

void dedup_record(struct dedup *d, const struct dedup_key *key, const struct dedup_result *result)
{
	struct proposer *p = look_up(d, key->node, key->epoch);
	assert(p);
	assert(key->sequence >= p->low && key->sequence - p->low < DEDUP_WINDOW);
	proposer_keep(p, key->sequence, result);
}

/* ---- snapshots ---- */

static void proposer_save(const struct proposer *p, Copia__AgreeProposer *to)
{
	copia__agree_proposer__init(to);
	to->node = p->node;
	to->epoch = p->epoch;
	to->low = p->low;
	to->used = p->used;
	to->n_done = p->end - p->head;
	to->done = xcalloc(MAX(to->n_done, 1u), sizeof(*to->done));
	Copia__AgreeDone *all = xcalloc(MAX(to->n_done, 1u), sizeof(*all));
	for (size_t i = 0; i < to->n_done; i++) {
		const struct done *x = &p->at[p->head + i];
		copia__agree_done__init(&all[i]);
		all[i].sequence = x->sequence;
		all[i].index = x->index;
		all[i].code = x->code;
		all[i].dropped = x->dropped;
		all[i].result = (ProtobufCBinaryData){ x->len, x->bytes };
		if (x->text)
			all[i].text = x->text;
		to->done[i] = &all[i];
	}
	to->done[0] = all; /* kept even when empty: proposer_saved() frees it */
}

static void proposer_saved(Copia__AgreeProposer *to)
{
	free(to->done[0]);
	free(to->done);
}

void dedup_save(const struct dedup *d, struct str *out)
{
	Copia__AgreeProposers m = COPIA__AGREE_PROPOSERS__INIT;
	Copia__AgreeProposer *all = xcalloc(MAX(d->count, 1u), sizeof(*all));
	Copia__AgreeProposer **list = xcalloc(MAX(d->count, 1u), sizeof(*list));
	for (size_t i = 0; i < d->count; i++) {
		proposer_save(d->at[i], &all[i]);
		list[i] = &all[i];
	}
	m.uses = d->uses;
	m.n_proposers = d->count;
	m.proposers = list;
	size_t len = copia__agree_proposers__get_packed_size(&m);
	str_reserve(out, len + 1);
	size_t wrote = copia__agree_proposers__pack(&m, (uint8_t *)out->at + out->len);
	assert(wrote == len);
	out->len += len;
	out->at[out->len] = '\0';
	for (size_t i = 0; i < d->count; i++)
		proposer_saved(&all[i]);
	free(all);
	free(list);
}

static int proposer_load(struct dedup *d, const Copia__AgreeProposer *m)
{
	if (look_up(d, m->node, m->epoch) || m->used > d->uses || m->n_done > DEDUP_WINDOW)
		return -EBADMSG;
	struct proposer *p = add(d, m->node, m->epoch);
	p->low = m->low;
	p->used = m->used;
	for (size_t i = 0; i < m->n_done; i++) {
		const Copia__AgreeDone *x = m->done[i];
		if (x->sequence < p->low || x->sequence - p->low >= DEDUP_WINDOW)
			return -EBADMSG;
		if (p->end > p->head && p->at[p->end - 1].sequence >= x->sequence)
			return -EBADMSG;
		struct dedup_result r = { .code = x->code,
					  .index = x->index,
					  .bytes = { x->result.data, x->result.len },
					  .text = x->text,
					  .dropped = x->dropped };
		proposer_keep(p, x->sequence, &r);
	}
	return 0;
}

int dedup_load(struct dedup **ret, struct span bytes, struct err *err)
{
	Copia__AgreeProposers *m = copia__agree_proposers__unpack(NULL, bytes.len, bytes.at);
	if (!m)
		return err_set(err, -EBADMSG, "snapshot: the list of proposers is damaged");
	struct dedup *d = dedup_new();
	d->uses = m->uses;
	int r = m->n_proposers <= DEDUP_PROPOSERS ? 0 : -EBADMSG;
	for (size_t i = 0; r == 0 && i < m->n_proposers; i++)
		r = proposer_load(d, m->proposers[i]);
	if (r < 0) {
		err_set(err, r, "snapshot: the list of proposers breaks its own rules");
		d = dedup_free(d);
	} else {
		*ret = d;
	}
	copia__agree_proposers__free_unpacked(m, NULL);
	return r;
}
