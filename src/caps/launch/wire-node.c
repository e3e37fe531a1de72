/* SPDX-License-Identifier: Apache-2.0 */
/* How ranks of parallel programs find each other: the brain's side of `copia-wireup`
 * (schema/wireup.proto). The helper is a task of the shepherd, so it outlives the brain, like the
 * ranks. Every rank gets a PMI-1 socket; the helper is started, and the sockets are handed to it,
 * when the first rank speaks, or at once when the program is linked to an MPI library. PMIx needs
 * the helper before the ranks start. */
#include "caps/launch/launch-impl-node.h"
#include "caps/launch/wire-link-node.h"

#include "base/log.h"
#include "caps/members/members.h"
#include "io/addr.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READY_MS = 10 * 1000 };

struct wire_rank {
	uv_poll_t poll;
	struct site_wire *wire; /* NULL: only the closing of `poll` is left */
	int ours, theirs;       /* ends of the PMI-1 socket; -1 */
	char **env;             /* from JobReady */
	size_t env_count;
	bool polled;
};

struct site_wire {
	struct site_job *job;
	struct wire_rank **ranks;
	bool pmix, pmi1, forced;
	bool added;    /* JobAdd was sent */
	bool spawning; /* JobReady makes the ranks start */
	bool ready;    /* JobReady came */
	uint64_t deadline_ms;
	bool *closing; /* by local rank */
};

struct wire {
	struct launch *l;
	struct wire_link *link;
};

static bool wire_wanted(const struct site_job *j)
{
	const char *mpi = j->start->spec->mpi;
	return *mpi && strcmp(mpi, "none") != 0 && !j->start->spec->exec;
}

static Copia__MpiLibrary library_of(const struct site_job *j)
{
	Copia__MpiLibrary found = COPIA__MPI_LIBRARY__MPI_LIBRARY_NONE;
	for (size_t i = 0; i < j->start->spec->n_programs; i++)
		if (j->start->spec->programs[i]->library > found)
			found = j->start->spec->programs[i]->library;
	return found;
}

/* ---------------------------------------------------------------- telling the helper */

static void id_text(const struct site_job *j, char text[ID_TEXT])
{
	(void)id_show(&j->id, text);
}

static void fill_places(const struct site_job *j, Copia__WireupNode *at, Copia__WireupNode **list,
			uint32_t *ranks)
{
	for (size_t i = 0; i < j->start->n_places; i++) {
		const Copia__LaunchPlace *p = j->start->places[i];
		copia__wireup_node__init(&at[i]);
		at[i].name = p->name;
		at[i].ranks = ranks + p->first;
		at[i].n_ranks = p->count;
		list[i] = &at[i];
	}
}

/* The network over which the nodes' own sessions run, so that an MPI library does not try others.
 */
static void find_network(const struct site_job *j, char cidr[ADDR_TEXT],
			 char device[ADDR_INTERFACE_TEXT])
{
	*cidr = *device = '\0';
	const Copia__Node *n = members_find(j->l->node->members, launch_self(j->l));
	struct addr_own *own = NULL;
	size_t count = 0;
	if (j->start->n_places < 2 || !n || !n->n_addresses ||
	    addr_own_list(true, &own, &count, NULL) < 0)
		return;
	union addr want;
	for (size_t i = 0; i < count && !*cidr; i++) {
		char text[ADDR_TEXT];
		if (addr_parse(n->addresses[0], 0, &want, NULL) < 0 ||
		    !addr_equal(&own[i].addr, &want))
			continue;
		(void)snprintf(cidr, ADDR_TEXT, "%s/%u", addr_show_host(&own[i].addr, text),
			       own[i].prefix_len);
		(void)snprintf(device, ADDR_INTERFACE_TEXT, "%s", own[i].interface);
	}
	free(own);
}

static void fill_apps(const struct site_job *j, uint32_t *apps)
{
	const Copia__LaunchSpec *s = j->start->spec;
	uint32_t rank = 0;
	for (uint32_t i = 0; i < s->n_programs; i++)
		for (uint32_t k = 0; k < s->programs[i]->ranks && rank < j->start->size; k++)
			apps[rank++] = i;
}

static void send_job_add(struct site_wire *w)
{
	struct site_job *j = w->job;
	size_t places = j->start->n_places;
	_cleanup_(free_p) Copia__WireupNode *nodes = xcalloc(places, sizeof(*nodes));
	_cleanup_(free_p) Copia__WireupNode **list = xcalloc(places, sizeof(*list));
	_cleanup_(free_p) uint32_t *ranks = xcalloc(j->start->size, sizeof(*ranks));
	_cleanup_(free_p) uint32_t *apps = xcalloc(j->start->size, sizeof(*apps));
	char id[ID_TEXT], cidr[ADDR_TEXT], device[ADDR_INTERFACE_TEXT];
	char *networks[] = { cidr }, *devices[] = { device };
	for (uint32_t i = 0; i < j->start->size; i++)
		ranks[i] = i;
	id_text(j, id);
	fill_places(j, nodes, list, ranks);
	find_network(j, cidr, device);
	Copia__WireupJobAdd a = COPIA__WIREUP_JOB_ADD__INIT;
	a.job = id;
	a.nspace = (char *)"";
	a.size = j->start->size;
	for (uint32_t i = 0; i < places; i++)
		if (j->start->places[i] == j->place)
			a.node = i;
	a.nodes = list;
	a.n_nodes = places;
	a.uid = j->start->spec->uid;
	a.gid = j->start->spec->gid;
	a.pmix = w->pmix;
	a.pmi1 = w->pmi1;
	if (j->start->spec->n_programs > 1) {
		fill_apps(j, apps);
		a.apps = apps;
		a.n_apps = j->start->size;
	}
	if (*cidr) {
		a.networks = networks;
		a.devices = devices;
		a.n_networks = a.n_devices = 1;
	}
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	f.body_case = COPIA__WIREUP_FRAME__BODY_JOB_ADD;
	f.job_add = &a;
	wire_link_send(j->l->wire->link, &f, -1);
}

static void on_poll_closed(uv_handle_t *h)
{
	struct wire_rank *r = h->data;
	if (r->ours >= 0)
		(void)close(r->ours);
	if (r->theirs >= 0)
		(void)close(r->theirs);
	for (size_t i = 0; i < r->env_count; i++)
		free(r->env[i]);
	free(r->env);
	free(r);
}

static void rank_attach(struct site_wire *w, uint32_t i)
{
	struct wire_rank *r = w->ranks[i];
	if (r->ours < 0)
		return;
	if (r->polled)
		(void)uv_poll_stop(&r->poll);
	char id[ID_TEXT];
	id_text(w->job, id);
	Copia__WireupAttach a = COPIA__WIREUP_ATTACH__INIT;
	a.job = id;
	a.rank = w->job->place->first + i;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	f.body_case = COPIA__WIREUP_FRAME__BODY_ATTACH;
	f.attach = &a;
	/* The queue keeps a duplicate; ours stays open until the handle is closed. */
	wire_link_send(w->job->l->wire->link, &f, r->ours);
}

/* From now on the helper has the job. */
static void job_hand_over(struct site_wire *w)
{
	if (w->added)
		return;
	w->added = true;
	wire_link_need(w->job->l->wire->link);
	send_job_add(w);
	for (uint32_t i = 0; i < w->job->place->count; i++)
		rank_attach(w, i);
}

static void on_first_word(uv_poll_t *p, int status, int events)
{
	struct wire_rank *r = p->data;
	(void)status;
	(void)events;
	/* Also when the rank has gone: then the helper sees the end of its stream. */
	char byte;
	if (recv(r->ours, &byte, 1, MSG_PEEK | MSG_DONTWAIT) <= 0) {
		(void)uv_poll_stop(p);
		return;
	}
	job_hand_over(r->wire);
}

/* ---------------------------------------------------------------- jobs */

static struct wire_rank *rank_new(struct site_wire *w, bool socket)
{
	struct wire_rank *r = xcalloc(1, sizeof(*r));
	int pair[2] = { -1, -1 };
	if (socket)
		(void)socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair);
	r->wire = w;
	r->ours = pair[0];
	r->theirs = pair[1];
	return r;
}

void wire_prepare(struct site_job *j)
{
	if (!wire_wanted(j)) {
		site_spawn(j);
		return;
	}
	const char *mpi = j->start->spec->mpi;
	Copia__MpiLibrary library = library_of(j);
	struct site_wire *w = xcalloc(1, sizeof(*w));
	w->job = j;
	j->wire = w;
	w->forced = !strcmp(mpi, "pmix");
	w->pmi1 = !w->forced;
	w->pmix = w->forced ||
		  (!strcmp(mpi, "auto") && (library == COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX ||
					    library == COPIA__MPI_LIBRARY__MPI_LIBRARY_UNKNOWN));
	w->ranks = xcalloc(j->place->count, sizeof(struct wire_rank *));
	w->closing = xcalloc(j->place->count, sizeof(*w->closing));
	for (uint32_t i = 0; i < j->place->count; i++)
		w->ranks[i] = rank_new(w, w->pmi1);
	if (!w->pmix && library != COPIA__MPI_LIBRARY__MPI_LIBRARY_PMI1) {
		site_spawn(j);
		return;
	}
	/* The helper says which network the ranks shall use: in their environment, so first. */
	w->spawning = true;
	w->deadline_ms = launch_now_ms(j->l) + READY_MS;
	job_hand_over(w);
	launch_wake_at(j->l, w->deadline_ms);
	if (j->start->n_places > 1 && !j->start->spec->no_check)
		j->check = check_start(j);
}

void wire_checked(struct site_job *j)
{
	if (j->wire && j->wire->ready)
		site_spawn(j);
}

int wire_rank(struct site_rank *r, struct str *env_out)
{
	struct site_wire *w = r->job->wire;
	if (!w || !w->ranks) /* relearned: a rank that is started only now goes without */
		return -1;
	struct wire_rank *k = w->ranks[r->rank - r->job->place->first];
	bool has_rank = false;
	for (size_t i = 0; i < k->env_count; i++) {
		/* The descriptor's number is the shepherd's to choose. */
		if (!strncmp(k->env[i], "PMI_FD=", 7))
			continue;
		has_rank |= !strncmp(k->env[i], "PMI_RANK=", 9);
		str_add(env_out, k->env[i], strlen(k->env[i]) + 1);
	}
	if (k->theirs >= 0 && !has_rank) {
		str_printf(env_out, "PMI_RANK=%u%c", r->rank, 0);
		str_printf(env_out, "PMI_SIZE=%u%c", r->job->start->size, 0);
	}
	return k->theirs;
}

void wire_spawned(struct site_job *j)
{
	struct site_wire *w = j->wire;
	for (uint32_t i = 0; w && w->ranks && i < j->place->count; i++) {
		struct wire_rank *r = w->ranks[i];
		if (r->theirs < 0)
			continue;
		(void)close(take_fd(&r->theirs));
		if (w->added || r->polled)
			continue;
		r->polled = true;
		(void)uv_poll_init(j->l->node->loop, &r->poll, r->ours);
		r->poll.data = r;
		(void)uv_poll_start(&r->poll, UV_READABLE, on_first_word);
	}
}

void wire_job_free(struct site_job *j)
{
	struct site_wire *w = take_ptr(j->wire);
	if (!w)
		return;
	if (w->added) {
		char id[ID_TEXT];
		id_text(j, id);
		Copia__WireupJobEnd e = COPIA__WIREUP_JOB_END__INIT;
		e.job = id;
		Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
		f.body_case = COPIA__WIREUP_FRAME__BODY_JOB_END;
		f.job_end = &e;
		wire_link_send(j->l->wire->link, &f, -1);
	}
	for (uint32_t i = 0; w->ranks && i < j->place->count; i++) {
		struct wire_rank *r = w->ranks[i];
		r->wire = NULL;
		r->poll.data = r;
		if (r->polled)
			uv_close((uv_handle_t *)&r->poll, on_poll_closed);
		else
			on_poll_closed((uv_handle_t *)&r->poll);
	}
	free(w->ranks);
	free(w->closing);
	free(w);
}

void wire_rank_ended(struct site_rank *r)
{
	struct site_wire *w = r->job->wire;
	if (!w || !w->added || !r->exit)
		return;
	char id[ID_TEXT];
	id_text(r->job, id);
	Copia__WireupRankEnded e = COPIA__WIREUP_RANK_ENDED__INIT;
	e.job = id;
	e.rank = r->rank;
	e.status = r->exit->signal ? r->exit->signal : (r->exit->status & 255) << 8;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	f.body_case = COPIA__WIREUP_FRAME__BODY_RANK_ENDED;
	f.rank_ended = &e;
	wire_link_send(r->job->l->wire->link, &f, -1);
}

bool wire_rank_closing(const struct site_rank *r)
{
	const struct site_wire *w = r->job->wire;
	return w && w->closing && w->closing[r->rank - r->job->place->first];
}

/* ---------------------------------------------------------------- what the helper says */

static struct site_job *job_of(struct launch *l, const char *text)
{
	struct id id;
	return id_parse(text, &id) ? site_find(l, &id) : NULL;
}

static void job_ready(struct site_job *j, const Copia__WireupJobReady *r)
{
	struct site_wire *w = j->wire;
	if (!w || !w->spawning || !w->ranks)
		return;
	w->spawning = false;
	if (r->code < 0 && w->forced) {
		struct err err = { 0 };
		(void)err_set(&err, r->code, "node %s: %s", j->place->name, r->error);
		site_fail(j, r->code, &err);
		return;
	}
	if (r->code < 0)
		site_note(j, "%s: no PMIx: %s", j->place->name, r->error);
	if (r->warning[0] && w->forced)
		site_note(j, "%s: %s", j->place->name, r->warning);
	for (size_t i = 0; i < r->n_ranks; i++) {
		const Copia__WireupRankReady *k = r->ranks[i];
		if (k->rank - j->place->first >= j->place->count)
			continue;
		struct wire_rank *to = w->ranks[k->rank - j->place->first];
		if (to->env)
			continue;
		to->env = xcalloc(r->n_environment + k->n_environment, sizeof(*to->env));
		for (size_t e = 0; e < r->n_environment; e++)
			to->env[to->env_count++] = xstrdup(r->environment[e]);
		for (size_t e = 0; e < k->n_environment; e++)
			to->env[to->env_count++] = xstrdup(k->environment[e]);
	}
	w->ready = true;
	if (!j->check)
		site_spawn(j);
}

static void tell_origin(struct site_job *j, uint32_t rank, Copia__LaunchWireupEvent event, int code,
			const char *text)
{
	Copia__LaunchWireup w = COPIA__LAUNCH_WIREUP__INIT;
	w.event = event;
	w.ranks = &rank;
	w.n_ranks = 1;
	w.code = code;
	w.text = (char *)text;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_WIREUP);
	m.wireup = &w;
	launch_send(j->l, j->start->origin, &j->id, &m);
}

static void on_barrier(struct site_job *j, const Copia__WireupNotice *n)
{
	uint32_t i = n->rank - j->place->first;
	if (!j->wire || !j->wire->closing || i >= j->place->count)
		return;
	bool was = j->wire->closing[i];
	j->wire->closing[i] = n->closing;
	if (n->closing && !was)
		tell_origin(j, n->rank, COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_CLOSING, 0, "");
	else if (was && !n->closing)
		tell_origin(j, n->rank, COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_BARRIER, 0, "");
}

static void job_notice(struct site_job *j, const Copia__WireupNotice *n)
{
	switch (n->event) {
	case COPIA__WIREUP_EVENT__WIREUP_CONNECTED:
		tell_origin(j, n->rank, COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_CONNECTED, 0, "");
		break;
	case COPIA__WIREUP_EVENT__WIREUP_BARRIER:
		on_barrier(j, n);
		break;
	case COPIA__WIREUP_EVENT__WIREUP_FINALIZED:
		if (j->wire && j->wire->closing && n->rank - j->place->first < j->place->count)
			j->wire->closing[n->rank - j->place->first] = false;
		tell_origin(j, n->rank, COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_FINALIZED, 0, "");
		break;
	case COPIA__WIREUP_EVENT__WIREUP_ABORTED: {
		char text[300];
		(void)snprintf(text, sizeof(text), "called MPI_Abort with code %d%s%s", n->code,
			       n->message[0] ? ": " : "", n->message);
		tell_origin(j, n->rank, COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_ABORTED, n->code,
			    text);
		break;
	}
	case COPIA__WIREUP_EVENT__WIREUP_FAILED:
		tell_origin(j, n->rank, COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_FAILED, 0,
			    n->message);
		break;
	case COPIA__WIREUP_EVENT__WIREUP_BROKEN:
	case COPIA__WIREUP_EVENT__WIREUP_REFUSED:
		tell_origin(j, n->rank, COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_NOTE, 0,
			    n->message);
		break;
	default:
		break;
	}
}

static void forward_exchange(struct launch *l, Copia__WireupFrame *f)
{
	struct site_job *j = job_of(l, f->exchange->job);
	if (!j || f->exchange->to >= j->start->n_places || !l->node->peers)
		return;
	size_t len = copia__wireup_frame__get_packed_size(f);
	_cleanup_(free_p) uint8_t *at = xmalloc(len);
	(void)copia__wireup_frame__pack(f, at);
	/* What does not get through is sent again by the helper. */
	(void)peers_send(l->node->peers, j->start->places[f->exchange->to]->node, CHANNEL_WIREUP,
			 at, len);
}

static void jobs_known(struct launch *l, const Copia__WireupState *s)
{
	for (size_t i = 0; i < s->n_jobs; i++) {
		struct site_job *j = job_of(l, s->jobs[i]);
		if (!j || j->wire)
			continue;
		/* Of a brain before us; its sockets are with the helper. */
		j->wire = xcalloc(1, sizeof(*j->wire));
		j->wire->job = j;
		j->wire->added = true;
		j->wire->closing = xcalloc(j->place->count, sizeof(bool));
	}
}

void wire_frame(struct launch *l, Copia__WireupFrame *f)
{
	struct site_job *j;
	switch (f->body_case) {
	case COPIA__WIREUP_FRAME__BODY_STATE:
		jobs_known(l, f->state);
		break;
	case COPIA__WIREUP_FRAME__BODY_JOB_READY:
		if ((j = job_of(l, f->job_ready->job)))
			job_ready(j, f->job_ready);
		break;
	case COPIA__WIREUP_FRAME__BODY_NOTICE:
		if ((j = job_of(l, f->notice->job)))
			job_notice(j, f->notice);
		break;
	case COPIA__WIREUP_FRAME__BODY_EXCHANGE:
		forward_exchange(l, f);
		break;
	default:
		break;
	}
}

/* The helper died, and with it what the ranks of these jobs talk through. */
void wire_lost(struct launch *l, const char *why)
{
	struct site_job *j, *next;
	HASH_ITER(hh, l->sites, j, next)
	{
		if (!j->wire || !j->wire->added || j->ending)
			continue;
		struct err err = { 0 };
		if (j->wire->spawning) {
			(void)err_set(&err, -EIO, "node %s: %s", j->place->name, why);
			j->wire->spawning = false;
			site_fail(j, -EIO, &err);
		} else {
			tell_origin(j, j->place->first,
				    COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_FAILED, 0, why);
		}
	}
}

static void on_peer(void *ctx, uint32_t from, struct span body)
{
	struct launch *l = ctx;
	Copia__WireupFrame *f = copia__wireup_frame__unpack(NULL, body.len, body.at);
	(void)from;
	if (f && f->body_case == COPIA__WIREUP_FRAME__BODY_EXCHANGE) {
		struct site_job *j = job_of(l, f->exchange->job);
		if (j && j->wire) {
			/* The ranks of another node were faster than ours to speak. */
			if (!j->wire->added)
				job_hand_over(j->wire);
			wire_link_send(l->wire->link, f, -1);
		}
	}
	if (f)
		copia__wireup_frame__free_unpacked(f, NULL);
}

uint64_t wire_tick(struct launch *l, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;
	struct site_job *j, *next;
	HASH_ITER(hh, l->sites, j, next)
	{
		if (!j->wire || !j->wire->spawning)
			continue;
		if (now_ms < j->wire->deadline_ms) {
			due = MIN(due, j->wire->deadline_ms);
			continue;
		}
		struct err err = { 0 };
		(void)err_set(&err, -ETIMEDOUT,
			      "node %s: copia-wireup did not get ready for PMIx in "
			      "%d s; --mpi pmi1 or none goes without it",
			      j->place->name, READY_MS / 1000);
		j->wire->spawning = false;
		site_fail(j, -ETIMEDOUT, &err);
	}
	return due;
}

void wire_new(struct launch *l)
{
	l->wire = xcalloc(1, sizeof(*l->wire));
	l->wire->l = l;
	l->wire->link = wire_link_new(l);
}

void wire_start(struct launch *l)
{
	peers_on(l->node->peers, CHANNEL_WIREUP, on_peer, l);
}

void wire_free(struct launch *l)
{
	wire_link_free(l->wire->link);
	free(l->wire);
	l->wire = NULL;
}

bool wire_event(struct launch *l, const Copia__Shepherd__Event *e, struct task_fds *fds)
{
	return wire_link_event(l->wire->link, e, fds);
}

void wire_session(struct launch *l, uint32_t node, bool up)
{
	/* The helpers send again by themselves after a second. */
	(void)l;
	(void)node;
	(void)up;
}

void wire_job_again(struct site_job *j)
{
	(void)j; /* unacknowledged notices come again from the helper */
}
