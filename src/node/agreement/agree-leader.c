/* SPDX-License-Identifier: Apache-2.0 */
/* The leader's part: commands wait here until they get an entry.
 *
 * Group commit: while a write of this node is on its way to the disk, the next batch gathers; an
 * idle disk takes a batch of one at once. Several entries may be on their way to the followers. */
#include "node/agreement/agree-impl.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <time.h>

static size_t pending_count(const struct agreement *a)
{
	return a->pending_end - a->pending_head;
}

static void pending_add(struct agreement *a, struct pending *p)
{
	if (a->pending_end == a->pending_cap) {
		if (a->pending_head > a->pending_cap / 2) {
			memmove(a->pending, a->pending + a->pending_head,
				pending_count(a) * sizeof(*a->pending));
			a->pending_end -= a->pending_head;
			a->pending_head = 0;
		} else {
			a->pending_cap = a->pending_cap ? a->pending_cap * 2 : 256;
			a->pending = xrealloc(a->pending, a->pending_cap * sizeof(*a->pending));
		}
	}
	a->pending[a->pending_end++] = p;
	a->pending_bytes += p->len;
}

static void pending_drop(struct agreement *a, size_t count)
{
	assert(count <= pending_count(a));
	while (count--) {
		struct pending *p = a->pending[a->pending_head++];
		a->pending_bytes -= p->len;
		free(p);
	}
	if (a->pending_head == a->pending_end)
		a->pending_head = a->pending_end = 0;
}

int agree_enqueue(struct agreement *a, const struct dedup_key *key, uint64_t low, struct span bytes,
		  struct err *err)
{
	if (a->trouble)
		return err_set(err, -ENOSPC, "%s", a->health);
	if (pending_count(a) >= AGREE_PENDING_COUNT || a->pending_bytes >= AGREE_PENDING_BYTES)
		return err_set(err, -EBUSY,
			       "the cluster's log has too much to do: try again in a moment");
	struct pending *p = xmalloc(sizeof(*p) + bytes.len);
	*p = (struct pending){ .node = key->node,
			       .epoch = key->epoch,
			       .sequence = key->sequence,
			       .low = low,
			       .len = bytes.len };
	memcpy(p->bytes, bytes.at, bytes.len);
	pending_add(a, p);
	return 0;
}

/* ---- batches ---- */

/* Cluster time: this clock, but never back. When a leader before had a clock that is ahead of ours,
 * it goes on from there at the pace of real time: were it to stand, nothing would ever expire. */
static uint64_t stamp(struct agreement *a)
{
	struct timespec t;
	uint64_t clock_ms = agree_clock_ms(), past_ms = a->now_ms;
	if (a->stamp_ms >= a->now_ms && a->stamp_ms)
		past_ms = a->stamp_ms + (clock_ms - a->stamped_at_ms);
	a->stamped_at_ms = clock_ms;
	clock_gettime(CLOCK_REALTIME, &t);
	uint64_t now_ms = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
	a->stamp_ms = MAX(past_ms, now_ms);
	return a->stamp_ms;
}

/* Pack the first commands that fit into one entry; returns how many. */
static size_t pack_batch(struct agreement *a, struct str *out)
{
	size_t most = MIN(pending_count(a), (size_t)AGREE_BATCH_COUNT), count = 0, bytes = 0;
	Copia__AgreeBatch m = COPIA__AGREE_BATCH__INIT;
	Copia__AgreeCommand *all = xcalloc(most, sizeof(*all));
	Copia__AgreeCommand **list = xcalloc(most, sizeof(*list));
	while (count < most) {
		struct pending *p = a->pending[a->pending_head + count];
		if (count && bytes + p->len > AGREE_BATCH_BYTES)
			break;
		copia__agree_command__init(&all[count]);
		all[count].node = p->node;
		all[count].epoch = p->epoch;
		all[count].sequence = p->sequence;
		all[count].low = p->low;
		all[count].body = (ProtobufCBinaryData){ p->len, p->bytes };
		list[count] = &all[count];
		bytes += p->len;
		count++;
	}
	m.now_ms = stamp(a);
	m.n_commands = count;
	m.commands = list;
	str_clear(&a->out);
	agree_pack(&m.base, out);
	free(all);
	free(list);
	return count;
}

/* Is it time for another entry? While a write is under way only when a whole batch waits. */
static bool batch_due(const struct agreement *a)
{
	if (!pending_count(a) || a->full || a->trouble)
		return false;
	return a->written >= a->submitted || a->pending_bytes >= AGREE_BATCH_BYTES ||
	       pending_count(a) >= AGREE_BATCH_COUNT;
}

void agree_lead(struct agreement *a)
{
	while (a->core && agree_leads(a) && batch_due(a)) {
		struct str out = { 0 };
		size_t count = pack_batch(a, &out);
		struct span command = { (uint8_t *)out.at, out.len };
		struct raft_event ev = { .type = RAFT_PROPOSE,
					 .propose = { .commands = &command, .count = 1 } };
		int r = agree_step(a, &ev, NULL, NULL);
		str_free(&out);
		if (r == 0) {
			pending_drop(a, count);
			continue;
		}
		/* Full or handing over: they wait for a commit, or for the new leader. */
		assert(r > 0 && r != RAFT_TOO_LARGE);
		a->full = r == RAFT_FULL;
		break;
	}
}

void agree_lead_end(struct agreement *a)
{
	/* Proposers send again to whoever leads next. */
	pending_drop(a, pending_count(a));
	for (struct asked_read *r = a->asked, *next; r; r = next) {
		next = r->next;
		free(r);
	}
	a->asked = NULL;
	a->asked_count = 0;
	a->full = false;
}

/* ---- answers ---- */

static struct answers *answers_to(struct agreement *a, uint32_t node, uint64_t epoch)
{
	for (size_t i = 0; i < a->answers_count; i++)
		if (a->answers[i].node == node && a->answers[i].epoch == epoch)
			return &a->answers[i];
	if (a->answers_count == a->answers_cap) {
		a->answers_cap = a->answers_cap ? a->answers_cap * 2 : 8;
		a->answers = xrealloc(a->answers, a->answers_cap * sizeof(*a->answers));
	}
	struct answers *to = &a->answers[a->answers_count++];
	*to = (struct answers){ .node = node, .epoch = epoch };
	return to;
}

static void send_answers(struct agreement *a, struct answers *to)
{
	Copia__AgreeMessage m = COPIA__AGREE_MESSAGE__INIT;
	Copia__AgreeAnswers all = COPIA__AGREE_ANSWERS__INIT;
	all.epoch = to->epoch;
	all.n_answers = to->count;
	all.answers = xcalloc(to->count + 1, sizeof(*all.answers));
	for (size_t i = 0; i < to->count; i++)
		all.answers[i] = &to->at[i];
	m.body_case = COPIA__AGREE_MESSAGE__BODY_ANSWERS;
	m.answers = &all;
	/* A lost answer is asked for again, and found in the window of results. */
	if (to->count)
		(void)agree_send(a, to->node, &m);
	free(all.answers);
	for (size_t i = 0; i < to->count; i++) {
		free(to->at[i].result.data);
		if (to->at[i].text != protobuf_c_empty_string)
			free(to->at[i].text);
	}
	to->count = to->bytes = 0;
}

void agree_answer(struct agreement *a, const struct dedup_key *key, bool refused,
		  const struct dedup_result *r)
{
	struct answers *to = answers_to(a, key->node, key->epoch);
	if (to->count == to->cap) {
		to->cap = to->cap ? to->cap * 2 : 64;
		to->at = xrealloc(to->at, to->cap * sizeof(*to->at));
	}
	Copia__AgreeAnswer *x = &to->at[to->count++];
	copia__agree_answer__init(x);
	x->sequence = key->sequence;
	x->refused = refused;
	x->code = r->code;
	x->index = r->index;
	if (r->bytes.len)
		x->result =
		    (ProtobufCBinaryData){ r->bytes.len, xmemdup(r->bytes.at, r->bytes.len) };
	if (r->text && r->text[0])
		x->text = xstrndup(r->text, AGREE_TEXT_MAX - 1);
	to->bytes += r->bytes.len + 64;
	if (to->bytes >= AGREE_BATCH_BYTES)
		send_answers(a, to);
}

void agree_answers_send(struct agreement *a)
{
	for (size_t i = 0; i < a->answers_count; i++) {
		send_answers(a, &a->answers[i]);
		free(a->answers[i].at);
	}
	a->answers_count = 0;
}

/* ---- commands and reads of other nodes ---- */

static void tell_leader(struct agreement *a, uint32_t to)
{
	Copia__AgreeMessage m = COPIA__AGREE_MESSAGE__INIT;
	Copia__AgreeLeader l = COPIA__AGREE_LEADER__INIT;
	l.leader = agree_known_leader(a);
	l.term = a->core ? raft_term(a->core) : 0;
	/* Not one who cannot write either. */
	if (l.leader == a->s.self)
		l.leader = 0;
	m.body_case = COPIA__AGREE_MESSAGE__BODY_LEADER;
	m.leader = &l;
	(void)agree_send(a, to, &m);
}

static void take_forwarded(struct agreement *a, const Copia__AgreeCommand *c)
{
	struct dedup_key key = { c->node, c->epoch, c->sequence };
	struct dedup_result known;
	struct err err = { 0 };
	if (dedup_find(a->dedup, &key, &known)) {
		if (known.dropped)
			known.text = "it was done; what it answered is no longer kept";
		agree_answer(a, &key, false, &known);
		return;
	}
	struct span bytes = { c->body.data, c->body.len };
	int r = bytes.len > AGREE_COMMAND_MAX
		    ? err_set(&err, -EMSGSIZE, "the command has %zu bytes", bytes.len)
		    : agree_enqueue(a, &key, c->low, bytes, &err);
	if (r < 0) {
		struct dedup_result refusal = { .code = r, .text = err.msg };
		agree_answer(a, &key, true, &refusal);
	}
}

void agree_on_forward(struct agreement *a, uint32_t from, const Copia__AgreeForward *m)
{
	/* A leader that cannot write is none for those who could go elsewhere. */
	if (!agree_leads(a) || a->mute || (a->trouble && !agree_only_voter(a))) {
		tell_leader(a, from);
		return;
	}
	for (size_t i = 0; i < m->n_commands; i++) {
		const Copia__AgreeCommand *c = m->commands[i];
		/* Nobody speaks for another node. */
		if (c->node == from && c->sequence && c->epoch)
			take_forwarded(a, c);
	}
	agree_answers_send(a);
	agree_wake(a);
}

static void reply_read(struct agreement *a, uint32_t to, uint64_t id, bool ok, uint64_t index)
{
	Copia__AgreeMessage m = COPIA__AGREE_MESSAGE__INIT;
	Copia__AgreeReadReply reply = COPIA__AGREE_READ_REPLY__INIT;
	reply.id = id;
	reply.ok = ok;
	reply.index = index;
	m.body_case = COPIA__AGREE_MESSAGE__BODY_READ_REPLY;
	m.read_reply = &reply;
	(void)agree_send(a, to, &m);
}

void agree_on_read_ask(struct agreement *a, uint32_t from, uint64_t id)
{
	if (!agree_leads(a) || a->mute || a->asked_count >= AGREE_READS_MAX) {
		reply_read(a, from, id, false, 0);
		return;
	}
	struct asked_read *read = xcalloc(1, sizeof(*read));
	*read = (struct asked_read){ a->asked, ++a->next_read, from, id };
	a->asked = read;
	a->asked_count++;
	struct raft_event ev = { .type = RAFT_READ, .read = { .id = read->id, .lease = true } };
	struct raft_read failed = { .id = read->id };
	if (agree_step(a, &ev, NULL, NULL) != 0)
		agree_on_core_read(a, &failed);
}

void agree_on_core_read(struct agreement *a, const struct raft_read *r)
{
	for (struct asked_read **at = &a->asked; *at; at = &(*at)->next)
		if ((*at)->id == r->id) {
			struct asked_read *read = *at;
			*at = read->next;
			a->asked_count--;
			reply_read(a, read->node, read->their_id, r->ok, r->index);
			free(read);
			return;
		}
	agree_barrier_index(a, r->id, r->ok, r->index);
}
