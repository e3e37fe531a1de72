/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/job-private.h"
#include <errno.h>
#include <stdio.h>

enum { FENCE_KINDS_MAX = 4096 }; /* groups of ranks of one job that meet */

static void tell(struct job *j, uint32_t at, Copia__WireupEvent event, int code, const char *text)
{
	Copia__WireupNotice n = COPIA__WIREUP_NOTICE__INIT;
	n.rank = j->local[at];
	n.event = event;
	n.protocol = COPIA__WIREUP_PROTOCOL__WIREUP_PMIX;
	n.code = code;
	n.message = (char *)text;
	job_notice(j, &n);
}

/* ---- fences ---- */

/* Who takes part: ascending node indices into `ret`, as many as the job has nodes. */
static uint32_t fence_nodes(const struct job *j, const struct pmix_event *e, uint32_t *ret)
{
	bool *in = xcalloc(j->node_count, sizeof(*in));
	uint32_t count = 0;
	for (uint32_t i = 0; i < e->rank_count; i++)
		if (e->ranks[i] < j->size)
			in[j->node_of[e->ranks[i]]] = true;
	for (uint32_t n = 0; n < j->node_count; n++)
		if (in[n])
			ret[count++] = n;
	free(in);
	return count;
}

/* The same on every participating node: what is done and by whom. */
static void fence_signature(const struct pmix_event *e, struct str *ret)
{
	str_puts(ret, e->text);
	if (!e->ranks)
		str_puts(ret, ":*");
	for (uint32_t i = 0; i < e->rank_count; i++)
		str_printf(ret, "%c%u", i ? ',' : ':', e->ranks[i]);
}

static struct fence *fence_get(struct job *j, const struct str *signature)
{
	struct fence *f = NULL;
	HASH_FIND(hh, j->fences, str_text(signature), signature->len, f);
	if (f || HASH_COUNT(j->fences) >= FENCE_KINDS_MAX)
		return f;
	f = xcalloc(1, sizeof(*f) + signature->len + 1);
	memcpy(f->signature, str_text(signature), signature->len);
	f->len = signature->len;
	HASH_ADD(hh, j->fences, signature, f->len, f);
	return f;
}

/* Ids: 'f', u32 how often these have met before, the signature. */
static int fence_join(struct job *j, struct pmix_event *e, struct fence *f, struct err *err)
{
	struct str id = { 0 };
	uint32_t *nodes = xcalloc(j->node_count, sizeof(*nodes));
	uint32_t count = e->ranks ? fence_nodes(j, e, nodes) : j->all_count;
	uint8_t head[5] = { 'f', (uint8_t)f->count, (uint8_t)(f->count >> 8),
			    (uint8_t)(f->count >> 16), (uint8_t)(f->count >> 24) };
	str_add(&id, head, sizeof(head));
	str_add(&id, f->signature, f->len);
	f->count++;
	f->request = take_ptr(e->request);
	int r = collect_join(j->collect, (struct span){ (uint8_t *)id.at, id.len },
			     e->ranks ? nodes : j->all_nodes, count,
			     (struct span){ e->bytes, e->len }, err);
	str_free(&id);
	free(nodes);
	return r;
}

static void on_fence(struct job *j, struct pmix_event *e)
{
	struct str signature = { 0 };
	struct err err = { 0 };
	fence_signature(e, &signature);
	struct fence *f = fence_get(j, &signature);
	str_free(&signature);
	if (!f || f->request) {
		/* libpmix itself keeps equal fences apart; more groups than we hold are refused. */
		pmix_answer_fence(take_ptr(e->request), -ENOTSUP, (struct span){ 0 });
		return;
	}
	if (fence_join(j, e, f, &err) < 0) {
		if (f->request)
			pmix_answer_fence(take_ptr(f->request), err.code, (struct span){ 0 });
		job_fail(j, &err);
	}
}

int fence_done(struct job *j, struct span id, struct span result, struct err *err)
{
	struct fence *f = NULL;
	if (id.len >= 5)
		HASH_FIND(hh, j->fences, id.at + 5, id.len - 5, f);
	if (!f || !f->request)
		return err_set(err, -EPROTO, "job %s: result of a fence that nobody waits for",
			       j->id);
	pmix_answer_fence(take_ptr(f->request), 0, result);
	for (uint32_t i = 0; i < j->local_count; i++) {
		struct rank *r = &j->ranks[i];
		if (!r->connected || r->initialised)
			continue;
		r->initialised = true;
		tell(j, i, COPIA__WIREUP_EVENT__WIREUP_INIT, 0, "");
	}
	return 0;
}

void fences_end(struct job *j)
{
	struct fence *f, *next;
	HASH_ITER(hh, j->fences, f, next)
	{
		if (f->request)
			pmix_answer_fence(f->request, -ETIMEDOUT, (struct span){ 0 });
		HASH_DEL(j->fences, f);
		free(f);
	}
	if (j->pmix)
		pmix_job_end(j->nspace, j->local, j->local_count);
}

/* ---- events ---- */

static void on_names(struct job *j, struct pmix_event *e)
{
	struct pending *p = pending_new(j);
	p->request = e->request;
	names_ask(j, p,
		  e->kind == PMIX_PUBLISH  ? NAME_PUBLISH
		  : e->kind == PMIX_LOOKUP ? NAME_LOOKUP
					   : NAME_UNPUBLISH,
		  e->pairs, e->pair_count);
}

static void on_rank(struct job *j, struct pmix_event *e)
{
	uint32_t at;
	if (!job_local(j, e->rank, &at))
		return;
	struct rank *r = &j->ranks[at];
	switch (e->kind) {
	case PMIX_CONNECTED:
		r->connected = true;
		tell(j, at, COPIA__WIREUP_EVENT__WIREUP_CONNECTED, 0, "");
		break;
	case PMIX_FINALIZED:
		r->finalized = true;
		tell(j, at, COPIA__WIREUP_EVENT__WIREUP_FINALIZED, 0, "");
		break;
	case PMIX_ABORTED:
		tell(j, at, COPIA__WIREUP_EVENT__WIREUP_ABORTED, e->code, e->text);
		break;
	default:
		if (j->refusals++ < JOB_REFUSALS_MAX)
			tell(j, at, COPIA__WIREUP_EVENT__WIREUP_REFUSED, e->code, e->text);
		break;
	}
}

static void on_event(void *ctx, struct pmix_event *e)
{
	struct wireup *w = ctx;
	struct job *j = NULL;
	for (j = w->jobs; j; j = j->hh.next)
		if (j->pmix && !strcmp(j->nspace, e->nspace))
			break;
	if (!j) {
		if (e->request)
			pmix_answer_none(e->request, -ENOENT);
		return;
	}
	switch (e->kind) {
	case PMIX_FENCE:
		on_fence(j, e);
		break;
	case PMIX_MODEX:
		data_ask(j, e->request, e->rank);
		break;
	case PMIX_SERVED:
		data_served(j, e->token, e->code, (struct span){ e->bytes, e->len });
		break;
	case PMIX_PUBLISH:
	case PMIX_LOOKUP:
	case PMIX_UNPUBLISH:
		on_names(j, e);
		break;
	default:
		on_rank(j, e);
		break;
	}
}

void pmix_events(struct wireup *w)
{
	pmix_turn(on_event, w);
}

static void pmix_ready(struct source *s, uint32_t events)
{
	pmix_events(CONTAINER(s, struct wireup, pmix));
}

static int server_begin(struct job *j, struct err *err)
{
	struct wireup *w = j->wireup;
	int r = pmix_begin(w->folder, j->node_names[j->node], err);
	if (r < 0 || w->pmix_watched)
		return r;
	w->pmix = (struct source){ pmix_fd(), 1 /* EPOLLIN */, pmix_ready };
	r = source_add(w->brain, &w->pmix, err);
	w->pmix_watched = r == 0;
	return r;
}

/* "n1,n2" and "0,1;2,3": only the nodes that have ranks. */
static void maps_write(const struct job *j, struct str *nodes, struct str *ranks)
{
	struct str *of = xcalloc(j->node_count, sizeof(*of));
	for (uint32_t rank = 0; rank < j->size; rank++) {
		struct str *s = &of[j->node_of[rank]];
		str_printf(s, "%s%u", s->len ? "," : "", rank);
	}
	for (uint32_t n = 0; n < j->node_count; n++) {
		if (!of[n].len)
			continue;
		str_printf(nodes, "%s%s", nodes->len ? "," : "", j->node_names[n]);
		str_printf(ranks, "%s%s", ranks->len ? ";" : "", str_text(&of[n]));
		str_free(&of[n]);
	}
	free(of);
}

int fences_begin(struct job *j, struct err *err)
{
	int r = server_begin(j, err);
	if (r < 0)
		return r;
	struct str nodes = { 0 }, ranks = { 0 };
	maps_write(j, &nodes, &ranks);
	j->pmix = true; /* so that job's end takes away what a failure leaves */
	r = pmix_job_add(&(struct pmix_job){ .nspace = j->nspace,
					     .host = j->node_names[j->node],
					     .nodes = str_text(&nodes),
					     .ranks = str_text(&ranks),
					     .node_of = j->node_of,
					     .node_names = (const char *const *)j->node_names,
					     .apps = j->apps,
					     .size = j->size,
					     .universe = j->universe,
					     .node_count = j->node_count,
					     .node = j->node,
					     .local = j->local,
					     .local_count = j->local_count,
					     .uid = j->uid,
					     .gid = j->gid },
			 err);
	str_free(&nodes);
	str_free(&ranks);
	return r;
}
