/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of the ranks of a site. Output stays in the rank's pipe until the user's command has
 * written it; what is under way is bounded by the pipes and by the job's credit. Input is kept here
 * until every rank that reads has it; the command may be LAUNCH_INPUT_WINDOW ahead. */
#include "caps/launch/launch-impl-node.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { NEWS_BATCH = 64, PUMP_CHUNKS = 16 };

void site_io_open(struct site_rank *r, struct task_fds *fds, uint64_t out, uint64_t err,
		  uint64_t pumped, bool closed)
{
	struct launch *l = r->job->l;
	struct err e = { 0 };
	if (fds->terminal >= 0) {
		tty_open(r, fds);
		return;
	}
	stream_out_init(&r->out[0].s, take_fd(&fds->out), out);
	stream_out_init(&r->out[1].s, take_fd(&fds->err), err);
	for (int i = 0; i < 2; i++) {
		struct site_stream *st = &r->out[i];
		if (st->s.fd < 0)
			continue;
		if (stream_watch_add(&l->watch, st->s.fd, st, &e) < 0)
			log_error("launch", "%s", e.msg);
		else
			st->watched = true;
		site_io_wait(st); /* something may be there already */
	}
	stream_in_init(&r->in, take_fd(&fds->staging), pumped);
	r->in.closed |= closed;
	site_io_feed(r);
}

static void stream_close(struct site_stream *st)
{
	struct launch *l = st->rank->job->l;
	if (st->watched)
		stream_watch_drop(&l->watch, st->s.fd);
	st->watched = false;
	stream_out_deinit(&st->s);
}

void site_io_close(struct site_rank *r)
{
	tty_close(r);
	stream_close(&r->out[0]);
	stream_close(&r->out[1]);
	stream_in_deinit(&r->in);
}

/* ---------------------------------------------------------------- output */

void site_io_wait(struct site_stream *st)
{
	struct site_job *j = st->rank->job;
	if (st->waiting)
		return;
	st->waiting = true;
	st->next = NULL;
	*j->waiting_tail = st;
	j->waiting_tail = &st->next;
}

void site_io_send(struct site_stream *st, uint64_t offset, const uint8_t *at, size_t len,
		  bool ended)
{
	struct site_job *j = st->rank->job;
	Copia__LaunchOutput o = COPIA__LAUNCH_OUTPUT__INIT;
	o.rank = st->rank->rank;
	o.stream = st->number;
	o.offset = offset;
	o.data = (ProtobufCBinaryData){ len, (uint8_t *)at };
	o.ended = ended;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_OUTPUT);
	m.output = &o;
	launch_send(j->l, j->start->origin, &j->id, &m);
}

static void consume_if(struct site_stream *st, bool wanted)
{
	if (wanted)
		(void)shepherd_consume(st->rank->job->l->node->shepherd, &st->rank->task,
				       (Copia__Shepherd__Stream)st->number, st->s.acked);
}

/* One chunk of a stream. Returns true when there may be more at once. */
static bool stream_pump(struct site_stream *st)
{
	struct site_job *j = st->rank->job;
	struct launch *l = j->l;
	struct err err = { 0 };
	size_t len = 0;
	int r = stream_out_read(&st->s, &l->scratch, l->chunk, sizeof(l->chunk), &len, &err);
	if (r > 0) {
		j->inflight += len;
		site_io_send(st, st->s.sent - len, l->chunk, len, false);
		return true;
	}
	if (r < 0) {
		log_error("launch", "rank %u of job %s: %s", st->rank->rank, j->start->name,
			  err.msg);
		st->s.finished = true;
	}
	if (st->s.finished && !st->end_sent) {
		st->end_sent = true;
		site_io_send(st, st->s.sent, NULL, 0, true);
		consume_if(st, stream_out_acked(&st->s, st->s.acked));
	}
	return false;
}

void site_io_pump(struct site_job *j)
{
	for (int n = 0; j->waiting_head && n < PUMP_CHUNKS; n++) {
		if (j->inflight >= j->start->credit_bytes)
			return; /* taken output calls again */
		struct site_stream *st = j->waiting_head;
		j->waiting_head = st->next;
		if (!j->waiting_head)
			j->waiting_tail = &j->waiting_head;
		st->waiting = false;
		if (stream_pump(st))
			site_io_wait(st); /* at the end: streams take turns */
	}
	if (j->waiting_head)
		site_io_later(j);
}

/* Other work of the loop comes between two rounds. */
static void on_later(uv_timer_t *t)
{
	struct launch *l = t->data;
	for (struct site_job *j = l->sites; j; j = j->hh.next)
		if (j->waiting_head && j->inflight < j->start->credit_bytes)
			site_io_pump(j);
}

void site_io_later(struct site_job *j)
{
	struct launch *l = j->l;
	if (!uv_is_active((uv_handle_t *)&l->later))
		(void)uv_timer_start(&l->later, on_later, 0, 0);
}

void site_io_news(struct launch *l)
{
	void *owners[NEWS_BATCH];
	unsigned n;
	while ((n = stream_watch_next(&l->watch, owners, NEWS_BATCH)) > 0)
		for (unsigned i = 0; i < n; i++) {
			struct site_stream *st = owners[i];
			site_io_wait(st);
			site_io_pump(st->rank->job);
		}
}

static void stream_taken(struct site_stream *st, uint64_t offset)
{
	struct site_job *j = st->rank->job;
	offset = MIN(offset, st->s.sent);
	if (offset > st->s.acked)
		j->inflight -= MIN(j->inflight, offset - st->s.acked);
	consume_if(st, stream_out_acked(&st->s, offset));
}

void site_io_taken(struct site_job *j, const Copia__LaunchOffsets *o)
{
	for (size_t i = 0; i < o->n_offsets; i++) {
		const Copia__LaunchOffset *at = o->offsets[i];
		struct site_rank *r = site_rank_find(j, at->rank);
		if (!r || at->stream < 1 || at->stream > 2)
			continue;
		if (r->terminal)
			tty_taken(r, at->offset);
		else
			stream_taken(&r->out[at->stream - 1], at->offset);
	}
	site_io_pump(j);
}

void site_io_consumed(struct site_rank *r, const Copia__Shepherd__Consumed *e)
{
	if (e->stream != COPIA__SHEPHERD__STREAM__STREAM_STDOUT &&
	    e->stream != COPIA__SHEPHERD__STREAM__STREAM_STDERR)
		return;
	struct site_stream *st = &r->out[e->stream - 1];
	stream_out_consumed(&st->s, e->consumed, e->ended);
	if (st->again) {
		st->again = false;
		stream_rewind(st);
	}
	consume_if(st, stream_out_acked(&st->s, st->s.acked));
	site_io_wait(st);
	site_io_pump(r->job);
}

/* Send again what is not known to have arrived: the receiver drops what it has. */
void stream_rewind(struct site_stream *st)
{
	struct site_job *j = st->rank->job;
	if (st->s.consuming) {
		st->again = true; /* the head of the pipe is not known now */
		return;
	}
	j->inflight -= MIN(j->inflight, st->s.sent - st->s.acked);
	st->s.sent = st->s.acked = st->s.consumed;
	if (!st->s.ended)
		st->s.finished = st->s.fd < 0;
	st->end_sent = false;
	site_io_wait(st);
}

void site_io_again(struct site_job *j)
{
	for (uint32_t i = 0; i < j->place->count; i++) {
		struct site_rank *r = &j->ranks[i];
		for (int s = 0; s < 2; s++)
			if (r->state == RANK_RUNNING || r->state == RANK_ENDED)
				stream_rewind(&r->out[s]);
	}
	j->given_told = UINT64_MAX;
	site_io_given(j);
	site_io_pump(j);
}

/* ---------------------------------------------------------------- input */

/* Bytes that every rank has which reads here; UINT64_MAX when none reads any more. */
static uint64_t given_min(const struct site_job *j)
{
	uint64_t least = UINT64_MAX;
	for (uint32_t i = 0; i < j->place->count; i++) {
		const struct site_rank *r = &j->ranks[i];
		if (!r->reads || r->state == RANK_ENDED)
			continue;
		if (r->state == RANK_NONE || r->state == RANK_SPAWNING)
			return j->input_base;
		if (!r->in.closed)
			least = MIN(least, r->in.pumped);
	}
	return least;
}

void site_io_given(struct site_job *j)
{
	uint64_t given = given_min(j);
	if (given > j->input_base) {
		size_t cut = (size_t)MIN(given - j->input_base, (uint64_t)j->input.len);
		str_cut(&j->input, cut);
		j->input_base += cut;
	}
	if (given == j->given_told)
		return;
	j->given_told = given;
	Copia__LaunchOffset o = COPIA__LAUNCH_OFFSET__INIT;
	Copia__LaunchOffset *list[] = { &o };
	Copia__LaunchOffsets all = COPIA__LAUNCH_OFFSETS__INIT;
	o.rank = j->place->first;
	o.offset = given;
	o.ended = given == UINT64_MAX;
	all.n_offsets = 1;
	all.offsets = list;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_GIVEN);
	m.given = &all;
	launch_send(j->l, j->start->origin, &j->id, &m);
}

void site_io_feed(struct site_rank *r)
{
	struct site_job *j = r->job;
	struct err err = { 0 };
	if (r->terminal) {
		tty_feed(r);
		return;
	}
	if (!r->reads || r->in.closed || r->in.fd < 0 || r->state != RANK_RUNNING)
		return;
	uint64_t end = j->input_base + j->input.len, before = r->in.written;
	if (r->in.written < j->input_base) {
		log_error("launch", "rank %u of job %s: input is missing", r->rank, j->start->name);
		return;
	}
	while (r->in.written < end) {
		size_t at = (size_t)(r->in.written - j->input_base);
		ssize_t n = stream_in_write(&r->in, j->input.at + at, j->input.len - at, &err);
		if (n < 0)
			r->in.closed = true;
		if (n <= 0)
			break;
	}
	if (r->in.written > before)
		(void)shepherd_pump(j->l->node->shepherd, &r->task, r->in.written);
	if (j->input_ended && r->in.written == end && !r->in_closing) {
		r->in_closing = true;
		(void)shepherd_close_stdin(j->l->node->shepherd, &r->task);
	}
}

void site_io_pumped(struct site_rank *r, const Copia__Shepherd__Pumped *e)
{
	stream_in_pumped(&r->in, e->pumped, e->closed);
	site_io_feed(r);
	site_io_given(r->job);
}

void site_io_input(struct site_job *j, const Copia__LaunchInput *in)
{
	uint64_t end = j->input_base + j->input.len;
	if (!j->input.len && in->offset > end && j->relearned && !j->input_started) {
		/* A new brain: what came before has reached the ranks. */
		j->input_base = end = in->offset;
	}
	j->input_started = true;
	if (in->offset > end || j->input_ended)
		return; /* a gap: the origin sends again after it is asked */
	if (in->offset + in->data.len > end) {
		size_t skip = (size_t)(end - in->offset);
		if (j->input.len + in->data.len - skip > 2 * LAUNCH_INPUT_WINDOW) {
			log_error("launch", "job %s: more input than was allowed", j->start->name);
			return;
		}
		str_add(&j->input, in->data.data + skip, in->data.len - skip);
	}
	j->input_ended |= in->ended;
	for (uint32_t i = 0; i < j->place->count; i++)
		site_io_feed(&j->ranks[i]);
	site_io_given(j);
}
