/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "caps/wireup/job-private.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#include <utlist.h>

struct early {
	struct early *next, *prev;
	uint64_t at_ms;
	size_t len;
	uint8_t bytes[]; /* a packed WireupExchange */
};

/* ---- small things ---- */

struct job *job_find(struct wireup *w, const char *id)
{
	struct job *j = NULL;
	HASH_FIND(hh, w->jobs, id, strlen(id), j);
	return j;
}

bool job_local(const struct job *j, uint32_t rank, uint32_t *ret_at)
{
	uint32_t low = 0, high = j->local_count;
	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (j->local[middle] < rank)
			low = middle + 1;
		else
			high = middle;
	}
	*ret_at = low;
	return low < j->local_count && j->local[low] == rank;
}

void job_notice(struct job *j, const Copia__WireupNotice *notice)
{
	Copia__WireupNotice n = *notice;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	n.job = j->id;
	f.body_case = COPIA__WIREUP_FRAME__BODY_NOTICE;
	f.notice = &n;
	/* Barriers repeat without end; a later one says more than an earlier one. */
	brain_send(j->wireup->brain, &f, n.event != COPIA__WIREUP_EVENT__WIREUP_BARRIER);
}

void job_fail(struct job *j, const struct err *err)
{
	log_error("wireup", "job %s failed: %s", j->id, err->msg);
	if (j->failed)
		return;
	j->failed = true;
	Copia__WireupNotice n = COPIA__WIREUP_NOTICE__INIT;
	n.event = COPIA__WIREUP_EVENT__WIREUP_FAILED;
	n.code = err->code;
	n.message = (char *)err->msg;
	job_notice(j, &n);
}

struct pending *pending_new(struct job *j)
{
	struct pending *p = xcalloc(1, sizeof(*p));
	p->token = ++j->token;
	DL_APPEND(j->pending, p);
	return p;
}

struct pending *pending_find(struct job *j, uint64_t token)
{
	struct pending *p;
	DL_FOREACH(j->pending, p)
	{
		if (p->token == token)
			return p;
	}
	return NULL;
}

void pending_free(struct job *j, struct pending *p)
{
	DL_DELETE(j->pending, p);
	free(p);
}

/* ---- exchange with the other nodes ---- */

static void piece_send(void *ctx, const struct exchange_piece *piece)
{
	struct job *j = ctx;
	Copia__WireupExchange x = COPIA__WIREUP_EXCHANGE__INIT;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	x.job = j->id;
	x.from = j->node;
	x.to = piece->to;
	x.sequence = piece->sequence;
	x.acked = piece->acked;
	x.kind = (Copia__WireupKind)piece->kind;
	x.more = piece->more;
	x.data.data = (uint8_t *)piece->data.at;
	x.data.len = piece->data.len;
	f.body_case = COPIA__WIREUP_FRAME__BODY_EXCHANGE;
	f.exchange = &x;
	brain_send(j->wireup->brain, &f, false);
}

static void message_take(void *ctx, uint32_t from, uint32_t kind, struct span bytes)
{
	struct job *j = ctx;
	struct err err = { 0 };
	int r = 0;
	switch ((Copia__WireupKind)kind) {
	case COPIA__WIREUP_KIND__WIREUP_UP:
		r = collect_up(j->collect, bytes, &err);
		break;
	case COPIA__WIREUP_KIND__WIREUP_DOWN:
		r = collect_down(j->collect, bytes, &err);
		break;
	case COPIA__WIREUP_KIND__WIREUP_DATA_ASK:
		r = data_asked(j, from, bytes, &err);
		break;
	case COPIA__WIREUP_KIND__WIREUP_DATA:
		r = data_answered(j, bytes, &err);
		break;
	case COPIA__WIREUP_KIND__WIREUP_NAME_ASK:
		r = names_asked(j, from, bytes, &err);
		break;
	case COPIA__WIREUP_KIND__WIREUP_NAME:
		r = names_answered(j, bytes, &err);
		break;
	default:
		r = err_set(&err, -EPROTO, "job %s: node %u sent message %u", j->id, from, kind);
		break;
	}
	if (r < 0)
		job_fail(j, &err);
}

static void collect_send_up(void *ctx, uint32_t to, struct span bytes)
{
	struct job *j = ctx;
	exchange_send(j->exchange, to, COPIA__WIREUP_KIND__WIREUP_UP, bytes, brain_now_ms());
}

static void collect_send_down(void *ctx, uint32_t to, struct span bytes)
{
	struct job *j = ctx;
	exchange_send(j->exchange, to, COPIA__WIREUP_KIND__WIREUP_DOWN, bytes, brain_now_ms());
}

static void collect_over(void *ctx, struct span id, struct span result)
{
	struct job *j = ctx;
	struct err err = { 0 };
	int r = id.len && id.at[0] == 'b' && j->pmi1 ? ranks_release(j, result, &err)
						     : fence_done(j, id, result, &err);
	if (r < 0)
		job_fail(j, &err);
}

static void exchange_take(struct job *j, const Copia__WireupExchange *x)
{
	struct err err = { 0 };
	if (x->to != j->node || x->data.len > EXCHANGE_PIECE_MAX) {
		log_warning("wireup", "job %s: exchange for node %u refused", j->id, x->to);
		return;
	}
	struct exchange_piece piece = { .sequence = x->sequence,
					.acked = x->acked,
					.kind = x->kind,
					.more = x->more,
					.data = { x->data.data, x->data.len } };
	if (exchange_receive(j->exchange, x->from, &piece, brain_now_ms(), &err) < 0)
		job_fail(j, &err);
}

/* ---- exchanges before their job ---- */

static void early_free(struct wireup *w, struct early *e)
{
	DL_DELETE(w->early, e);
	w->early_bytes -= e->len;
	free(e);
}

static void early_keep(struct wireup *w, const Copia__WireupExchange *x)
{
	size_t len = copia__wireup_exchange__get_packed_size(x);
	if (!x->sequence || w->early_bytes + len > JOB_EARLY_BYTES_MAX)
		return; /* it comes again */
	struct early *e = xmalloc(sizeof(*e) + len);
	*e = (struct early){ .at_ms = brain_now_ms(), .len = len };
	copia__wireup_exchange__pack(x, e->bytes);
	DL_APPEND(w->early, e);
	w->early_bytes += len;
}

static void early_take(struct job *j)
{
	struct early *e, *next;
	DL_FOREACH_SAFE(j->wireup->early, e, next)
	{
		Copia__WireupExchange *x = copia__wireup_exchange__unpack(NULL, e->len, e->bytes);
		if (x && !strcmp(x->job, j->id)) {
			early_free(j->wireup, e);
			exchange_take(j, x);
		}
		copia__wireup_exchange__free_unpacked(x, NULL);
	}
}

/* ---- jobs ---- */

static void job_free(struct job *j)
{
	struct wireup *w = j->wireup;
	struct pending *p, *next;
	HASH_DEL(w->jobs, j);
	DL_FOREACH_SAFE(j->pending, p, next)
	{
		if (p->request)
			pmix_answer_none(p->request, -ETIMEDOUT);
		pending_free(j, p);
	}
	fences_end(j);
	ranks_end(j);
	names_end(j);
	j->exchange = exchange_free(j->exchange);
	j->collect = collect_free(j->collect);
	job_parse_free(j);
	if (!w->jobs)
		w->idle_since_ms = brain_now_ms();
}

static void job_ready_send(struct wireup *w, const char *id, struct job *j, int code,
			   const struct err *why)
{
	Copia__WireupJobReady ready = COPIA__WIREUP_JOB_READY__INIT;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	struct err err = { 0 };
	if (why)
		err = *why;
	if (j && !code)
		code = ready_fill(j, &ready, &err);
	ready.job = (char *)id;
	ready.code = code;
	ready.error = err.msg;
	ready.warning = j ? j->warning : (char *)"";
	f.body_case = COPIA__WIREUP_FRAME__BODY_JOB_READY;
	f.job_ready = &ready;
	brain_send(w->brain, &f, true);
	ready_clear(&ready);
	if (j && code)
		job_free(j);
}

static int job_start(struct job *j, const Copia__WireupJobAdd *m, struct err *err)
{
	j->exchange = exchange_new(
	    j->node, j->node_count,
	    &(struct exchange_hooks){ .send = piece_send, .deliver = message_take, .ctx = j });
	j->collect = collect_new(j->node, &(struct collect_hooks){ .up = collect_send_up,
								   .down = collect_send_down,
								   .done = collect_over,
								   .ctx = j });
	int r = m->pmi1 ? ranks_begin(j, err) : 0;
	if (r == 0 && m->pmix)
		r = fences_begin(j, err);
	/* A node without libpmix still runs MPICH's programs; the brain hears of it. */
	if (r == -ENOTSUP && m->pmi1) {
		snprintf(j->warning, sizeof(j->warning), "%.255s", err->msg);
		r = 0;
	}
	return r;
}

static int fds_attach(struct job *j, const Copia__WireupJobAdd *m, int *fds, size_t fd_count,
		      struct err *err)
{
	int r = 0;
	if (fd_count != m->n_attached)
		r = err_set(err, -EPROTO, "job %s: %zu descriptors for %zu ranks", j->id, fd_count,
			    m->n_attached);
	for (size_t i = 0; i < fd_count; i++) {
		if (r == 0)
			r = ranks_attach(j, m->attached[i], fds[i], err);
		else
			close(fds[i]);
	}
	return r;
}

static void fds_close(int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++)
		close(fds[i]);
}

static void job_add(struct wireup *w, const Copia__WireupJobAdd *m, int *fds, size_t fd_count)
{
	struct err err = { 0 };
	struct job *j = job_find(w, m->job);
	if (j) { /* the brain asks again after its crash; connections may be new */
		for (size_t i = 0; i < fd_count; i++)
			if (i < m->n_attached)
				(void)ranks_attach(j, m->attached[i], fds[i], NULL);
			else
				close(fds[i]);
		job_ready_send(w, m->job, j, 0, NULL);
		return;
	}
	int r = job_parse(w, m, &j, &err);
	if (r < 0) {
		fds_close(fds, fd_count);
		job_ready_send(w, m->job, NULL, r, &err);
		return;
	}
	HASH_ADD_KEYPTR(hh, w->jobs, j->id, strlen(j->id), j);
	r = job_start(j, m, &err);
	if (r == 0)
		r = fds_attach(j, m, fds, fd_count, &err);
	else
		fds_close(fds, fd_count);
	job_ready_send(w, m->job, j, r, r ? &err : NULL);
	j = job_find(w, m->job);
	if (j)
		early_take(j);
}

static void attach(struct wireup *w, const Copia__WireupAttach *m, int *fds, size_t fd_count)
{
	struct err err = { 0 };
	struct job *j = job_find(w, m->job);
	if (!j || fd_count != 1) {
		fds_close(fds, fd_count);
		log_warning("wireup", "connection of rank %u of unknown job %s refused", m->rank,
			    m->job);
		return;
	}
	if (ranks_attach(j, m->rank, fds[0], &err) < 0)
		log_warning("wireup", "%s", err.msg);
}

static void rank_ended(struct wireup *w, const Copia__WireupRankEnded *m)
{
	uint32_t at;
	struct job *j = job_find(w, m->job);
	if (j && job_local(j, m->rank, &at))
		ranks_ended(j, at);
}

static void on_frame(void *ctx, const Copia__WireupFrame *f, int *fds, size_t fd_count)
{
	struct wireup *w = ctx;
	struct job *j;
	switch (f->body_case) {
	case COPIA__WIREUP_FRAME__BODY_JOB_ADD:
		job_add(w, f->job_add, fds, fd_count);
		return;
	case COPIA__WIREUP_FRAME__BODY_ATTACH:
		attach(w, f->attach, fds, fd_count);
		return;
	case COPIA__WIREUP_FRAME__BODY_RANK_ENDED:
		rank_ended(w, f->rank_ended);
		break;
	case COPIA__WIREUP_FRAME__BODY_JOB_END:
		j = job_find(w, f->job_end->job);
		if (j)
			job_free(j);
		break;
	case COPIA__WIREUP_FRAME__BODY_EXCHANGE:
		j = job_find(w, f->exchange->job);
		if (j)
			exchange_take(j, f->exchange);
		else
			early_keep(w, f->exchange);
		break;
	default:
		log_warning("wireup", "frame %d of the brain not understood", (int)f->body_case);
		break;
	}
	fds_close(fds, fd_count);
}

static void on_hello(void *ctx)
{
	struct wireup *w = ctx;
	Copia__WireupState s = COPIA__WIREUP_STATE__INIT;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	struct job *j;
	s.version = 1;
	s.jobs = xcalloc(HASH_COUNT(w->jobs) + 1, sizeof(*s.jobs));
	for (j = w->jobs; j; j = j->hh.next)
		s.jobs[s.n_jobs++] = j->id;
	s.pmix = pmix_runs();
	s.pmix_version = (char *)pmix_version();
	f.body_case = COPIA__WIREUP_FRAME__BODY_STATE;
	f.state = &s;
	brain_send(w->brain, &f, false);
	free(s.jobs);
	for (j = w->jobs; j; j = j->hh.next)
		exchange_again(j->exchange, brain_now_ms());
}

static uint64_t on_turn(void *ctx, uint64_t now_ms)
{
	struct wireup *w = ctx;
	uint64_t due_ms = UINT64_MAX;
	for (struct job *j = w->jobs; j; j = j->hh.next) {
		exchange_flush(j->exchange);
		due_ms = MIN(due_ms, exchange_tick(j->exchange, now_ms));
	}
	while (w->early && w->early->at_ms + JOB_EARLY_MS <= now_ms)
		early_free(w, w->early);
	if (w->early)
		due_ms = MIN(due_ms, w->early->at_ms + JOB_EARLY_MS);
	if (w->jobs || !w->idle_ms)
		return due_ms;
	if (w->idle_since_ms + w->idle_ms <= now_ms)
		brain_stop(w->brain);
	return MIN(due_ms, w->idle_since_ms + w->idle_ms);
}

struct wireup *wireup_new(const char *folder, uint64_t idle_ms)
{
	struct wireup *w = xcalloc(1, sizeof(*w));
	w->folder = folder;
	w->idle_ms = idle_ms;
	w->idle_since_ms = brain_now_ms();
	w->pmix.fd = -1;
	return w;
}

struct brain_hooks wireup_hooks(struct wireup *w)
{
	return (
	    struct brain_hooks){ .frame = on_frame, .hello = on_hello, .turn = on_turn, .ctx = w };
}

void wireup_start(struct wireup *w, struct brain *brain)
{
	w->brain = brain;
}

struct wireup *wireup_free(struct wireup *w)
{
	if (!w)
		return NULL;
	while (w->jobs)
		job_free(w->jobs);
	while (w->early)
		early_free(w, w->early);
	pmix_end();
	free(w);
	return NULL;
}
