/* SPDX-License-Identifier: Apache-2.0 */
/* From the request of `copia run` to orders for the sites. */
#include "base/log.h"
#include "caps/launch/origin-impl-node.h"
#include "caps/launch/place.h"
#include "caps/launch/split.h"
#include "caps/members/members.h"

#include <elf.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* ---------------------------------------------------------------- who asks */

static void fill_user(const struct launch *l, const struct call *c, Copia__LaunchSpec *spec)
{
	spec->uid = call_uid(c);
	spec->gid = call_gid(c);
	if (spec->user != protobuf_c_empty_string)
		free(spec->user);
	spec->user = xstrdup(call_user(c));
	free(spec->groups);
	spec->groups = NULL;
	spec->n_groups = 0;
	if (!l->node->settings.root)
		return;
	/* Those of the asking process: it may have given some up, or been lent some. */
	gid_t *groups = NULL;
	size_t count = 0;
	if (!call_groups(c, &groups, &count))
		log_warning("launch", "the groups of user %s are not known; its tasks get none",
			    spec->user);
	static_assert(sizeof(gid_t) == sizeof(uint32_t), "groups are copied as they are");
	spec->groups = groups;
	spec->n_groups = count;
}

static int check_root(const struct launch *l, const struct call *c, struct err *err)
{
	if (call_uid(c) != 0 || !l->node->settings.root || l->node->members->state->root_tasks)
		return 0;
	log_warning("audit", "refused a job of root");
	return err_set(err, -EPERM,
		       "tasks of root are not allowed in this cluster; run as another "
		       "user, or: copia set root-tasks on");
}

/* ---------------------------------------------------------------- places */

static const struct {
	const char *name;
	uint32_t machine;
} machines[] = { { "x86_64", EM_X86_64 }, { "aarch64", EM_AARCH64 }, { "i686", EM_386 },
		 { "i386", EM_386 },      { "armv7l", EM_ARM },      { "riscv64", EM_RISCV },
		 { "ppc64le", EM_PPC64 }, { "s390x", EM_S390 } };

static const char *machine_name(uint32_t machine)
{
	for (size_t i = 0; i < ARRAY_LEN(machines); i++)
		if (machines[i].machine == machine)
			return machines[i].name;
	return "another architecture";
}

/* A program for another architecture is refused before anything starts. 32-bit programs run on
 * 64-bit machines of the same family. */
static int check_machine(const Copia__LaunchSpec *spec, const Copia__Node *n, struct err *err)
{
	for (size_t i = 0; n->facts && i < spec->n_programs; i++) {
		const Copia__LaunchProgram *p = spec->programs[i];
		if (!p->machine)
			continue;
		for (size_t k = 0; k < ARRAY_LEN(machines); k++) {
			if (strcmp(machines[k].name, n->facts->architecture) != 0)
				continue;
			bool older = (machines[k].machine == EM_X86_64 && p->machine == EM_386) ||
				     (machines[k].machine == EM_AARCH64 && p->machine == EM_ARM);
			if (machines[k].machine != p->machine && !older)
				return err_set(
				    err, -ENOEXEC,
				    "%s is built for %s, but node %s is %s; build it for "
				    "that, or choose nodes with --on",
				    p->file->path, machine_name(p->machine), n->name,
				    n->facts->architecture);
		}
	}
	return 0;
}

static void add_site(struct origin_job *j, uint32_t node, const char *name, uint32_t first,
		     uint32_t count)
{
	struct origin_site *s = &j->sites[j->site_count++];
	s->name = xstrdup(name);
	copia__launch_place__init(&s->place);
	s->place.node = node;
	s->place.name = s->name;
	s->place.first = first;
	s->place.count = count;
}

static int place_job(struct origin_job *j, const Copia__RunRequest *rq, struct err *err)
{
	const Copia__MembersState *st = j->l->node->members->state;
	struct place_wish w = { .ranks = rq->ranks,
				.nodes = rq->nodes,
				.per_node = rq->per_node,
				.on = rq->on,
				.exclude = rq->exclude,
				.features = rq->features,
				.origin = launch_self(j->l) };
	uint32_t wanted = 0;
	for (size_t i = 0; i < j->spec->n_programs; i++)
		wanted += j->spec->programs[i]->ranks;
	if (wanted && w.ranks && wanted != w.ranks)
		return err_set(err, -EINVAL, "-n %u, but the file of programs has %u ranks",
			       w.ranks, wanted);
	if (wanted)
		w.ranks = wanted;
	_cleanup_(placement_free) struct placement p = { 0 };
	int r = place(st->nodes, st->n_nodes, &w, &p, err);
	if (r < 0)
		return r;
	j->sites = xcalloc(p.count, sizeof(*j->sites));
	for (size_t i = 0; r == 0 && i < p.count; i++) {
		const Copia__Node *n = st->nodes[p.at[i].node];
		add_site(j, n->number, n->name, p.at[i].first, p.at[i].count);
		r = check_machine(j->spec, n, err);
	}
	j->size = p.ranks;
	if (r == 0 && j->spec->terminal && p.ranks != 1)
		r = err_set(err, -EINVAL, "a terminal (-t) is for one node, not for %u", p.ranks);
	unsigned long reader = strtoul(j->spec->stdin, NULL, 10); /* 0 for "all" and "none" */
	if (r == 0 && reader >= j->size)
		r = err_set(err, -EINVAL, "--stdin %lu: the last rank of this job is %u", reader,
			    j->size - 1);
	return r;
}

static int place_again(struct origin_job *j, const Copia__RunAttach *a, struct err *err)
{
	uint32_t next = 0;
	j->sites = xcalloc(a->n_places, sizeof(*j->sites));
	for (size_t i = 0; i < a->n_places; i++) {
		const Copia__LaunchPlace *p = a->places[i];
		if (p->first != next || !p->count || p->count > PLACE_NODE_RANKS_MAX ||
		    next > PLACE_RANKS_MAX)
			return err_set(err, -EINVAL, "the places of job %s make no sense", a->name);
		next += p->count;
		add_site(j, p->node, p->name, p->first, p->count);
	}
	j->size = next;
	return next ? 0 : err_set(err, -EINVAL, "job %s has no ranks", a->name);
}

/* ---------------------------------------------------------------- orders to sites */

static void fill_ancestors(struct origin_job *j, size_t i, uint32_t **ret, size_t *ret_count)
{
	/* The tree for contents is made of the sites other than the origin itself. */
	_cleanup_(free_p) size_t *others = xcalloc(j->site_count, sizeof(*others));
	size_t count = 0, at = SIZE_MAX;
	for (size_t k = 0; k < j->site_count; k++) {
		if (j->sites[k].place.node == launch_self(j->l))
			continue;
		if (k == i)
			at = count;
		others[count++] = k;
	}
	*ret = xcalloc(count + 1, sizeof(**ret));
	*ret_count = 0;
	while (at != SIZE_MAX) {
		at = split_parent(count, SPLIT_FILE_ARITY, at);
		(*ret)[(*ret_count)++] =
		    at == SIZE_MAX ? launch_self(j->l) : j->sites[others[at]].place.node;
	}
}

static void start_fill(struct origin_job *j, Copia__LaunchStart *st, Copia__LaunchPlace **places)
{
	for (size_t i = 0; i < j->site_count; i++)
		places[i] = &j->sites[i].place;
	st->origin = launch_self(j->l);
	st->name = j->name;
	st->size = j->size;
	st->spec = j->spec;
	st->places = places;
	st->n_places = j->site_count;
	st->started_ms = j->started_ms;
	st->credit_bytes = MAX(LAUNCH_CREDIT / j->site_count, (size_t)LAUNCH_CREDIT_LEAST);
}

void origin_send_start(struct origin_job *j, struct origin_site *s, bool again)
{
	_cleanup_(free_p) Copia__LaunchPlace **places = xcalloc(j->site_count, sizeof(*places));
	_cleanup_(free_p) uint32_t *skip = xcalloc(s->place.count, sizeof(*skip));
	_cleanup_(free_p) uint32_t *ancestors = NULL;
	Copia__LaunchStart st = COPIA__LAUNCH_START__INIT;
	start_fill(j, &st, places);
	st.again = again;
	for (uint32_t i = 0; again && i < s->place.count; i++)
		if (j->job.flags[s->place.first + i] & JOB_RANK_ENDED)
			skip[st.n_skip++] = s->place.first + i;
	st.skip = skip;
	fill_ancestors(j, (size_t)(s - j->sites), &ancestors, &st.n_ancestors);
	st.ancestors = ancestors;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_START);
	m.start = &st;
	s->asked_ms = launch_now_ms(j->l);
	launch_send(j->l, s->place.node, &j->id, &m);
}

/* Without files that may travel, all sites get the same order, so it can go down a tree; an order
 * that a broken link swallowed is repeated to the site itself (origin_tick). */
void origin_start_sites(struct origin_job *j)
{
	bool files = j->spec->n_stage > 0;
	for (size_t i = 0; i < j->spec->n_programs; i++)
		files |= j->spec->programs[i]->file && j->spec->programs[i]->file->hash.len > 0;
	j->started = true;
	launch_wake_at(j->l, launch_now_ms(j->l) + LAUNCH_AGAIN_MS);
	if (files || j->attached || j->site_count <= SPLIT_DIRECT_MAX) {
		for (size_t i = 0; i < j->site_count; i++)
			origin_send_start(j, &j->sites[i], j->attached);
		return;
	}
	_cleanup_(free_p) Copia__LaunchPlace **places = xcalloc(j->site_count, sizeof(*places));
	_cleanup_(free_p) uint32_t *nodes = xcalloc(j->site_count, sizeof(*nodes));
	Copia__LaunchStart st = COPIA__LAUNCH_START__INIT;
	start_fill(j, &st, places);
	for (size_t i = 0; i < j->site_count; i++) {
		nodes[i] = j->sites[i].place.node;
		j->sites[i].asked_ms = launch_now_ms(j->l);
	}
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_START);
	m.start = &st;
	launch_send_all(j->l, nodes, j->site_count, &j->id, &m);
}

/* ---------------------------------------------------------------- the request */

static void tell_placed(struct origin_job *j)
{
	_cleanup_(free_p) Copia__LaunchPlace **places = xcalloc(j->site_count, sizeof(*places));
	for (size_t i = 0; i < j->site_count; i++)
		places[i] = &j->sites[i].place;
	Copia__RunPlaced p = COPIA__RUN_PLACED__INIT;
	p.name = j->name;
	p.places = places;
	p.n_places = j->site_count;
	p.started_ms = j->started_ms;
	p.node = (char *)launch_name(j->l, launch_self(j->l));
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_PLACED;
	u.placed = &p;
	origin_update(j, &u);
}

/* Files travel, or are compared, as soon as a node other than ours takes part, or --stage asks. */
static bool needs_hashes(const struct origin_job *j)
{
	if (j->spec->n_stage)
		return true;
	bool far = false, files = false;
	for (size_t i = 0; i < j->site_count; i++)
		far |= j->sites[i].place.node != launch_self(j->l);
	for (size_t i = 0; i < j->spec->n_programs; i++)
		files |= j->spec->programs[i]->file && j->spec->programs[i]->file->path[0];
	return far && files;
}

static void ask_hashes(struct origin_job *j)
{
	Copia__RunNeed need = COPIA__RUN_NEED__INIT;
	need.hashes = true;
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_NEED;
	u.need = &need;
	j->wants_hashes = true;
	origin_update(j, &u);
}

static void on_closed(void *ctx, struct call *c)
{
	struct origin_job *j = ctx;
	(void)c;
	j->call = NULL;
	job_fail(&j->job, JOB_CODE_COPIA, "the command has gone", launch_now_ms(j->l));
	origin_step(j);
}

static int check_request(struct launch *l, const struct call *c, const Copia__RunRequest *rq,
			 struct err *err)
{
	if (!launch_self(l) || !l->node->peers)
		return err_set(
		    err, -ENOTCONN,
		    "this node is in no cluster; make one: copia init, or join one: copia "
		    "join TOKEN@HOST");
	/* After a restart the brain listens before it has read the cluster's state. */
	if (!members_find(l->node->members, launch_self(l)))
		return err_set(err, -EAGAIN, "this node is just starting; try again in a moment");
	if (rq->job.len != ID_SIZE || !rq->spec)
		return err_set(err, -EINVAL, "the request is incomplete; use `copia run`");
	for (size_t i = 0; i < rq->spec->n_programs; i++)
		if (!rq->spec->programs[i]->n_argv)
			return err_set(err, -EINVAL, "program %zu has no name", i);
	if (HASH_COUNT(l->jobs) >= LAUNCH_JOBS_MAX)
		return err_set(err, -EAGAIN,
			       "%d jobs were started on this node and still run; wait",
			       LAUNCH_JOBS_MAX);
	if (!rq->spec->n_programs && !rq->spec->copy_to[0])
		return err_set(err, -EINVAL, "nothing to run");
	return rq->attach ? 0 : check_root(l, c, err);
}

static void init_state(struct origin_job *j, const Copia__RunAttach *a)
{
	struct job_settings s = { .size = j->size,
				  .keep_going = j->spec->keep_going,
				  .nodes = j->spec->exec,
				  .timeout_ms = j->spec->timeout_ms,
				  .finalize_ms = j->spec->finalize_ms,
				  .finalize_forced = j->spec->finalize_forced };
	uint64_t now = launch_now_ms(j->l);
	job_init(&j->job, &s, now);
	j->streams = xcalloc(j->size, 1);
	uv_timeval64_t wall;
	(void)uv_gettimeofday(&wall);
	j->started_ms = (uint64_t)wall.tv_sec * 1000 + (uint64_t)wall.tv_usec / 1000;
	if (!a)
		return;
	/* The clock of the job goes on across a restart of the brain. */
	uint64_t ago = j->started_ms > a->started_ms ? j->started_ms - a->started_ms : 0;
	j->job.started_ms = now > ago ? now - ago : 0;
	j->started_ms = a->started_ms;
	j->input_base = a->input_taken;
}

static void attach_state(struct origin_job *j, const Copia__RunAttach *a)
{
	uint64_t now = launch_now_ms(j->l);
	if (a->ending_code > 0 && a->ending_code < 256)
		job_fail(&j->job, a->ending_code, a->ending_why, now);
	for (size_t i = 0; i < a->n_exits; i++)
		if (a->exits[i]->rank < j->size)
			origin_exit(j, a->exits[i], false);
	for (size_t i = 0; i < a->n_taken; i++)
		if (a->taken[i]->ended && a->taken[i]->rank < j->size)
			origin_stream_ended(j, a->taken[i]->rank, a->taken[i]->stream);
}

static int job_make(struct origin_job *j, struct call *c, const Copia__RunRequest *rq,
		    struct err *err)
{
	j->spec = launch_copy(rq->spec);
	fill_user(j->l, c, j->spec);
	memcpy(j->id.at, rq->job.data, ID_SIZE);
	if (origin_find(j->l, &j->id))
		return err_set(err, -EALREADY, "this job is known already and is ending");
	int r = rq->attach ? place_again(j, rq->attach, err) : place_job(j, rq, err);
	if (r < 0)
		return r;
	j->attached = rq->attach != NULL;
	if (j->attached)
		(void)snprintf(j->name, sizeof(j->name), "%s", rq->attach->name);
	else
		(void)snprintf(j->name, sizeof(j->name), "%.64s.%u",
			       launch_name(j->l, launch_self(j->l)), launch_next_name(j->l));
	return 0;
}

int origin_run(struct node *n, struct call *c, const ProtobufCMessage *request, struct err *err)
{
	static const struct call_hooks hooks = { .frame = origin_frame, .closed = on_closed };
	const Copia__RunRequest *rq = (const Copia__RunRequest *)request;
	struct launch *l = n->launch;
	int r = check_request(l, c, rq, err);
	if (r < 0)
		return r;
	struct origin_job *j = xcalloc(1, sizeof(*j));
	j->l = l;
	r = job_make(j, c, rq, err);
	if (r < 0) {
		origin_free(j);
		return r;
	}
	j->call = c;
	init_state(j, rq->attach);
	HASH_ADD(hh, l->jobs, id, sizeof(j->id), j);
	call_keep(c, &hooks, j);
	tell_placed(j);
	if (rq->attach)
		attach_state(j, rq->attach);
	if (!rq->attach && needs_hashes(j))
		ask_hashes(j);
	else
		origin_start_sites(j);
	origin_step(j);
	return 0;
}
