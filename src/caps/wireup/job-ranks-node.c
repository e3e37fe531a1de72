/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/job-private.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static void rank_close(struct rank *r)
{
	if (r->source.fd < 0)
		return;
	source_remove(r->job->wireup->brain, &r->source);
	close(r->source.fd);
	r->source.fd = -1;
}

/* Write what the rank has to get. While it does not read, we do not read from it either. */
void ranks_flush_one(struct rank *r)
{
	if (r->source.fd < 0)
		return;
	struct str *out = pmi1_out(r->job->pmi1, r->at);
	while (out->len) {
		ssize_t n = send(r->source.fd, out->at, out->len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			pmi1_hangup(r->job->pmi1, r->at);
			rank_close(r);
			return;
		}
		if (n < 0)
			break;
		str_cut(out, (size_t)n);
	}
	if (r->broken && !out->len)
		rank_close(r);
	else
		source_change(r->job->wireup->brain, &r->source, out->len ? EPOLLOUT : EPOLLIN);
}

void ranks_flush(struct job *j)
{
	for (uint32_t i = 0; i < j->local_count; i++)
		if (j->ranks[i].source.fd >= 0 && pmi1_out(j->pmi1, i)->len)
			ranks_flush_one(&j->ranks[i]);
}

static void rank_ready(struct source *s, uint32_t events)
{
	struct rank *r = CONTAINER(s, struct rank, source);
	char bytes[16 * 1024];
	if (pmi1_out(r->job->pmi1, r->at)->len || r->broken) {
		ranks_flush_one(r);
		return;
	}
	ssize_t n = recv(s->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		pmi1_hangup(r->job->pmi1, r->at);
		rank_close(r);
		return;
	}
	pmi1_feed(r->job->pmi1, r->at, bytes, (size_t)n);
	ranks_flush_one(r);
}

/* The process is gone; a child of it may still hold the connection open. What it said before its
 * end counts. */
void ranks_ended(struct job *j, uint32_t at)
{
	struct rank *r = &j->ranks[at];
	char bytes[16 * 1024];
	ssize_t n;
	r->ended = true;
	while (r->source.fd >= 0 && !r->broken &&
	       (n = recv(r->source.fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
		pmi1_feed(j->pmi1, at, bytes, (size_t)n);
	if (r->source.fd < 0)
		return;
	pmi1_hangup(j->pmi1, at);
	rank_close(r);
}

static void tell(struct rank *r, Copia__WireupEvent event, const struct pmi1_event *e)
{
	Copia__WireupNotice n = COPIA__WIREUP_NOTICE__INIT;
	n.rank = r->job->local[r->at];
	n.event = event;
	n.protocol = COPIA__WIREUP_PROTOCOL__WIREUP_PMI1;
	n.code = e->code;
	n.message = (char *)(e->text ? e->text : "");
	n.ordinal = e->ordinal;
	n.closing = e->closing;
	n.arrived = pmi1_waiting(r->job->pmi1);
	job_notice(r->job, &n);
}

static void barrier_full(struct job *j, const struct pmi1_event *e)
{
	char id[32];
	struct err err = { 0 };
	int len = snprintf(id, sizeof(id), "b%u", e->ordinal);
	if (collect_join(j->collect, (struct span){ (uint8_t *)id, (size_t)len }, j->all_nodes,
			 j->all_count, e->bytes, &err) < 0)
		job_fail(j, &err);
}

static void name_op(struct rank *r, const struct pmi1_event *e, enum name_op op)
{
	struct pending *p = pending_new(r->job);
	p->at = r->at;
	char value[PMI1_VALUE_MAX + 1] = "";
	memcpy(value, e->bytes.at, MIN(e->bytes.len, sizeof(value) - 1));
	struct pmix_pair pair = { (char *)e->text, op == NAME_PUBLISH ? value : NULL };
	names_ask(r->job, p, op, &pair, 1);
}

static void on_event(void *ctx, const struct pmi1_event *e)
{
	struct job *j = ctx;
	struct rank *r = &j->ranks[e->local];
	switch (e->kind) {
	case PMI1_CONNECTED:
		r->connected = true;
		tell(r, COPIA__WIREUP_EVENT__WIREUP_CONNECTED, e);
		break;
	case PMI1_ENTERED:
		if (e->closing)
			tell(r, COPIA__WIREUP_EVENT__WIREUP_BARRIER, e);
		break;
	case PMI1_FULL:
		barrier_full(j, e);
		break;
	case PMI1_RELEASED:
		if (!r->initialised) {
			r->initialised = true;
			tell(r, COPIA__WIREUP_EVENT__WIREUP_INIT, e);
		}
		break;
	case PMI1_FINALIZED:
		r->finalized = true;
		tell(r, COPIA__WIREUP_EVENT__WIREUP_FINALIZED, e);
		break;
	case PMI1_ABORTED:
		tell(r, COPIA__WIREUP_EVENT__WIREUP_ABORTED, e);
		break;
	case PMI1_REFUSED:
		if (j->refusals++ < JOB_REFUSALS_MAX)
			tell(r, COPIA__WIREUP_EVENT__WIREUP_REFUSED, e);
		break;
	case PMI1_BROKEN:
		r->broken = true;
		/* A program that never spoke PMI-1 (Open MPI, or none) just closes: no news. */
		if (r->connected)
			tell(r,
			     e->code == -EPROTO ? COPIA__WIREUP_EVENT__WIREUP_BROKEN
						: COPIA__WIREUP_EVENT__WIREUP_LOST,
			     e);
		break;
	case PMI1_PUBLISH:
		name_op(r, e, NAME_PUBLISH);
		break;
	case PMI1_LOOKUP:
		name_op(r, e, NAME_LOOKUP);
		break;
	case PMI1_UNPUBLISH:
		name_op(r, e, NAME_UNPUBLISH);
		break;
	}
}

int ranks_release(struct job *j, struct span result, struct err *err)
{
	int r = pmi1_release(j->pmi1, result, err);
	if (r == 0)
		ranks_flush(j);
	return r;
}

int ranks_begin(struct job *j, struct err *err)
{
	struct str mapping = { 0 };
	uint32_t *apps = NULL;
	if (!pmi1_mapping(j->node_of, j->size, &mapping))
		str_clear(&mapping);
	if (j->apps) {
		apps = xcalloc(j->local_count, sizeof(*apps));
		for (uint32_t i = 0; i < j->local_count; i++)
			apps[i] = j->apps[j->local[i]];
	}
	int r = pmi1_new(&j->pmi1,
			 &(struct pmi1_setup){ .kvsname = j->id,
					       .mapping = str_text(&mapping),
					       .size = j->size,
					       .universe = j->universe,
					       .local_count = j->local_count,
					       .apps = apps,
					       .hook = on_event,
					       .ctx = j },
			 err);
	free(apps);
	str_free(&mapping);
	return r;
}

int ranks_attach(struct job *j, uint32_t rank, int fd, struct err *err)
{
	uint32_t at;
	if (!j->pmi1 || !job_local(j, rank, &at) || j->ranks[at].source.fd >= 0 ||
	    j->ranks[at].broken) {
		close(fd);
		return err_set(err, -EINVAL, "job %s: rank %u takes no connection here", j->id,
			       rank);
	}
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	struct rank *r = &j->ranks[at];
	r->source = (struct source){ fd, EPOLLIN, rank_ready };
	int code = source_add(j->wireup->brain, &r->source, err);
	if (code < 0) {
		close(fd);
		r->source.fd = -1;
	}
	return code;
}

void ranks_end(struct job *j)
{
	for (uint32_t i = 0; i < j->local_count; i++)
		rank_close(&j->ranks[i]);
	j->pmi1 = pmi1_free(j->pmi1);
}
