/* SPDX-License-Identifier: Apache-2.0 */
/* Own commands and reads until their outcome.
 *
 * A command is kept until it has one, and sent again when another leader is known, when the session
 * it went over ended, or when nobody answered for AGREE_RETRY_MS. Copies do no harm: the state
 * applies one of them. */
#include "node/agreement/agree-impl.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

static struct proposal **slot(struct agreement *a, uint64_t sequence)
{
	return &a->proposals[sequence % DEDUP_WINDOW];
}

/* The own command with that number that has no outcome, or NULL. */
static struct proposal *find(struct agreement *a, uint64_t sequence)
{
	struct proposal *p = *slot(a, sequence);
	return p && p->sequence == sequence ? p : NULL;
}

static void tick_start(struct agreement *a)
{
	if (!uv_is_active((uv_handle_t *)&a->tick)) {
		uv_update_time(a->s.loop);
		uv_timer_start(&a->tick, agree_on_tick, AGREE_TICK_MS, AGREE_TICK_MS);
	}
}

int agree_propose_new(struct agreement *a, struct span command, uint64_t deadline_ms,
		      agree_done *done, void *ctx, struct err *err)
{
	if (command.len > AGREE_COMMAND_MAX)
		return err_set(err, -EMSGSIZE, "command of %zu bytes: at most %d are possible",
			       command.len, AGREE_COMMAND_MAX);
	if (a->outstanding >= AGREE_OUTSTANDING_MAX || a->next - a->low >= DEDUP_WINDOW)
		return err_set(
		    err, -EAGAIN,
		    "%u commands of this node have no outcome yet: try again in a moment",
		    a->outstanding);
	struct proposal *p = xmalloc(sizeof(*p) + command.len);
	*p = (struct proposal){ .sequence = a->next++,
				.deadline_ms = agree_clock_ms() +
					       (deadline_ms ? deadline_ms : AGREE_DEADLINE_MS),
				.done = done,
				.ctx = ctx,
				.len = command.len };
	if (command.len)
		memcpy(p->bytes, command.at, command.len);
	assert(!*slot(a, p->sequence));
	*slot(a, p->sequence) = p;
	a->outstanding++;
	a->unsent = true;
	tick_start(a);
	agree_wake(a);
	return 0;
}

/* ---- outcomes ---- */

void agree_outcome(struct agreement *a, uint64_t sequence, enum agree_fate fate,
		   const struct dedup_result *r)
{
	struct proposal *p = find(a, sequence);
	if (!p)
		return; /* it had one before */
	*slot(a, sequence) = NULL;
	struct agree_outcome o = { .fate = fate,
				   .code = r->code,
				   .index = r->index,
				   .result = r->bytes,
				   .text = r->text ? r->text : "" };
	a->outstanding--;
	while (a->low < a->next && !find(a, a->low))
		a->low++;
	if (p->done)
		p->done(p->ctx, &o);
	free(p);
}

static void outcome_text(struct agreement *a, uint64_t sequence, enum agree_fate fate, int code,
			 const char *text)
{
	struct dedup_result r = { .code = code, .text = text };
	agree_outcome(a, sequence, fate, &r);
}

/* A refusal proves that it is not in the log only if this was its only copy. */
static void refused(struct agreement *a, uint64_t sequence, const struct dedup_result *r)
{
	struct proposal *p = find(a, sequence);
	if (p && p->sends == 1)
		agree_outcome(a, sequence, AGREE_REFUSED, r);
}

void agree_on_answers(struct agreement *a, uint32_t from, const Copia__AgreeAnswers *m)
{
	if (m->epoch != a->s.epoch)
		return; /* for the brain before this one */
	for (size_t i = 0; i < m->n_answers; i++) {
		const Copia__AgreeAnswer *x = m->answers[i];
		struct dedup_result r = { .code = x->code,
					  .index = x->index,
					  .bytes = { x->result.data, x->result.len },
					  .text = x->text };
		if (x->refused)
			refused(a, x->sequence, &r);
		else
			agree_outcome(a, x->sequence, AGREE_APPLIED, &r);
	}
}

/* ---- sending ---- */

static void mark_unsent(struct agreement *a, struct proposal *p)
{
	p->sent_to = 0;
	a->unsent = true;
}

void agree_resend_to(struct agreement *a, uint32_t node)
{
	for (uint64_t s = a->low; s < a->next; s++) {
		struct proposal *p = find(a, s);
		if (p && p->sent_to && (!node || p->sent_to == node))
			mark_unsent(a, p);
	}
	for (struct barrier *b = a->barriers; b; b = b->next)
		if (!b->index)
			b->asked_ms = 0;
	if (a->unsent || a->barriers)
		agree_wake(a);
}

void agree_resend_all(struct agreement *a)
{
	agree_resend_to(a, 0);
}

void agree_on_leader(struct agreement *a, uint32_t from, const Copia__AgreeLeader *m)
{
	/* On a controller the core knows better. */
	if (m->leader && m->term >= a->hint_term) {
		a->hint_term = m->term;
		a->hint = m->leader;
		a->asked_leader_ms = 0;
	} else if (!m->leader && a->hint == from) {
		a->hint = 0;
	}
	agree_resend_to(a, from);
	/* It would be asked again at once and answer the same: only who leads is asked at once. */
	if (agree_known_leader(a) == 0 || agree_known_leader(a) == from)
		a->asked_leader_ms = agree_clock_ms();
}

/* To whom commands go now; 0: nobody just now. Without a known leader the controllers are asked in
 * turn: whoever does not lead answers who does. */
static uint32_t target(struct agreement *a)
{
	uint32_t leader = agree_known_leader(a);
	uint64_t now = agree_clock_ms();
	if (leader)
		return now - a->asked_leader_ms < AGREE_ASK_MS ? 0 : leader;
	if (a->core || !a->controller_count || now - a->asked_leader_ms < AGREE_ASK_MS)
		return 0;
	a->asked_leader_ms = now;
	for (unsigned i = 0; i < a->controller_count; i++) {
		uint32_t node = a->controllers[a->controller_next++ % a->controller_count];
		if (node != a->s.self && a->s.peers && peers_up(a->s.peers, node))
			return node;
	}
	/* No session with any: sending dials. */
	uint32_t node = a->controllers[a->controller_next++ % a->controller_count];
	return node == a->s.self ? 0 : node;
}

static void send_own(struct agreement *a, struct proposal *p)
{
	struct dedup_key key = { a->s.self, a->s.epoch, p->sequence };
	struct err err = { 0 };
	struct span bytes = { p->bytes, p->len };
	int r = agree_enqueue(a, &key, a->low, bytes, &err);
	p->sends++;
	p->sent_to = a->s.self;
	p->sent_ms = agree_clock_ms();
	if (r < 0) {
		struct dedup_result refusal = { .code = r, .text = err.msg };
		refused(a, p->sequence, &refusal);
	}
}

/* As many unsent commands as fit into one message, from *at on. */
static int send_some(struct agreement *a, uint32_t to, uint64_t *at)
{
	enum { MOST = 512 };
	Copia__AgreeCommand all[MOST];
	Copia__AgreeCommand *list[MOST];
	Copia__AgreeMessage m = COPIA__AGREE_MESSAGE__INIT;
	Copia__AgreeForward f = COPIA__AGREE_FORWARD__INIT;
	size_t count = 0, bytes = 0;
	uint64_t s = *at, now = agree_clock_ms();
	for (; s < a->next && count < MOST; s++) {
		struct proposal *p = find(a, s);
		if (!p || p->sent_to)
			continue;
		if (count && bytes + p->len > AGREE_COMMAND_MAX)
			break;
		copia__agree_command__init(&all[count]);
		all[count].node = a->s.self;
		all[count].epoch = a->s.epoch;
		all[count].sequence = p->sequence;
		all[count].low = a->low;
		all[count].body = (ProtobufCBinaryData){ p->len, p->bytes };
		list[count] = &all[count];
		bytes += p->len;
		count++;
	}
	*at = s;
	if (!count)
		return 0;
	f.n_commands = count;
	f.commands = list;
	m.body_case = COPIA__AGREE_MESSAGE__BODY_FORWARD;
	m.forward = &f;
	int r = agree_send(a, to, &m);
	for (size_t i = 0; r == 0 && i < count; i++) {
		struct proposal *p = find(a, all[i].sequence);
		p->sends++;
		p->sent_to = to;
		p->sent_ms = now;
	}
	return r;
}

static void ask_read(struct agreement *a, struct barrier *b)
{
	uint32_t leader = agree_known_leader(a);
	uint64_t now = agree_clock_ms();
	if (b->index || !leader || (b->asked_ms && now - b->asked_ms < AGREE_RETRY_MS))
		return;
	b->asked_ms = now;
	if (agree_leads(a)) {
		/* Without the lease when something is wrong with this node's own clock or disk. */
		struct raft_event ev = { .type = RAFT_READ,
					 .read = { .id = b->id, .lease = !a->mute } };
		(void)agree_step(a, &ev, NULL, NULL); /* refused: asked again with a tick */
		return;
	}
	Copia__AgreeMessage m = COPIA__AGREE_MESSAGE__INIT;
	Copia__AgreeReadAsk ask = COPIA__AGREE_READ_ASK__INIT;
	ask.id = b->id;
	m.body_case = COPIA__AGREE_MESSAGE__BODY_READ_ASK;
	m.read_ask = &ask;
	if (agree_send(a, leader, &m) < 0)
		b->asked_ms = 0;
}

void agree_propose_send(struct agreement *a)
{
	for (struct barrier *b = a->barriers; b; b = b->next)
		ask_read(a, b);
	if (!a->unsent)
		return;
	if (agree_leads(a) && !a->mute && (!a->trouble || agree_only_voter(a))) {
		a->unsent = false;
		for (uint64_t s = a->low; s < a->next; s++) {
			struct proposal *p = find(a, s);
			if (p && !p->sent_to)
				send_own(a, p);
		}
		return;
	}
	uint32_t to = agree_leads(a) ? 0 : target(a);
	if (!to)
		return; /* the tick comes back to it */
	a->unsent = false;
	for (uint64_t at = a->low; at < a->next;)
		if (send_some(a, to, &at) < 0) {
			a->unsent = true; /* again with the next tick */
			if (a->hint == to)
				a->hint = 0;
			break;
		}
}

/* ---- reads ---- */

int agree_barrier_new(struct agreement *a, uint64_t deadline_ms, agree_done *done, void *ctx,
		      struct err *err)
{
	if (!a->core)
		return err_set(err, -EOPNOTSUPP,
			       "this node is no controller: it has no state to read");
	if (a->barrier_count >= AGREE_READS_MAX)
		return err_set(err, -EAGAIN, "%u reads wait already: try again in a moment",
			       a->barrier_count);
	struct barrier *b = xcalloc(1, sizeof(*b));
	*b = (struct barrier){ .next = a->barriers,
			       .id = ++a->next_read,
			       .deadline_ms = agree_clock_ms() +
					      (deadline_ms ? deadline_ms : AGREE_DEADLINE_MS),
			       .done = done,
			       .ctx = ctx };
	a->barriers = b;
	a->barrier_count++;
	tick_start(a);
	agree_wake(a);
	return 0;
}

void agree_barrier_index(struct agreement *a, uint64_t id, bool ok, uint64_t index)
{
	for (struct barrier *b = a->barriers; b; b = b->next)
		if (b->id == id && !b->index) {
			b->index = ok ? MAX(index, UINT64_C(1)) : 0;
			agree_wake(a);
			return;
		}
}

void agree_on_read_reply(struct agreement *a, const Copia__AgreeReadReply *m)
{
	agree_barrier_index(a, m->id, m->ok, m->index);
}

static void barrier_end(struct agreement *a, struct barrier **at, enum agree_fate fate, int code,
			const char *text)
{
	struct barrier *b = *at;
	struct agree_outcome o = { .fate = fate, .code = code, .index = b->index, .text = text };
	*at = b->next;
	a->barrier_count--;
	b->done(b->ctx, &o);
	free(b);
}

void agree_barriers_done(struct agreement *a)
{
	for (struct barrier **at = &a->barriers; *at;)
		if ((*at)->index && (*at)->index <= a->applied)
			barrier_end(a, at, AGREE_APPLIED, 0, "");
		else
			at = &(*at)->next;
}

/* ---- time ---- */

/* Whoever did not answer may not lead (any more); a controller's core finds out by itself. */
static void retry(struct agreement *a, struct proposal *p)
{
	if (a->hint == p->sent_to)
		a->hint = 0;
	mark_unsent(a, p);
}

static const char late[] =
    "nobody answered in time: whether it was done is not known; look before trying again";

void agree_on_tick(uv_timer_t *timer)
{
	struct agreement *a = CONTAINER(timer, struct agreement, tick);
	uint64_t now = agree_clock_ms();
	for (uint64_t s = a->low; s < a->next; s++) {
		struct proposal *p = find(a, s);
		if (!p)
			continue;
		if (now >= p->deadline_ms && p->sends == 0)
			outcome_text(a, s, AGREE_REFUSED, -ETIMEDOUT,
				     "no leader was found in time: nothing was done");
		else if (now >= p->deadline_ms)
			outcome_text(a, s, AGREE_UNKNOWN, -ETIMEDOUT, late);
		else if (p->sent_to && now - p->sent_ms >= AGREE_RETRY_MS &&
			 !(p->sent_to == a->s.self && agree_leads(a)))
			retry(a, p);
	}
	for (struct barrier **at = &a->barriers; *at;)
		if (now >= (*at)->deadline_ms)
			barrier_end(a, at, AGREE_UNKNOWN, -ETIMEDOUT,
				    "no leader confirmed the read in time");
		else
			at = &(*at)->next;
	if (a->unsent || a->barriers)
		agree_wake(a);
	if (!a->outstanding && !a->barriers)
		uv_timer_stop(&a->tick);
}

void agree_cancel_all(struct agreement *a)
{
	static const char text[] = "this node stops: whether it was done is not known";
	for (uint64_t s = a->low; s < a->next; s++)
		outcome_text(a, s, AGREE_UNKNOWN, -ECANCELED, text);
	while (a->barriers)
		barrier_end(a, &a->barriers, AGREE_UNKNOWN, -ECANCELED, text);
}
