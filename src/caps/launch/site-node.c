/* SPDX-License-Identifier: Apache-2.0 */
/* A node with ranks of a job: from the order to start them to their ends. */
#include "caps/launch/launch-impl-node.h"

#include "base/log.h"
#include "caps/members/members.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

/* Task ids and job ids share these bytes. */
enum { SITE_KEY = 12 };

struct site_job *site_find(struct launch *l, const struct id *id)
{
	struct site_job *j;
	HASH_FIND(hh, l->sites, id->at, SITE_KEY, j);
	return j;
}

struct site_rank *site_rank_find(struct site_job *j, uint32_t rank)
{
	uint32_t first = j->place->first;
	return rank >= first && rank - first < j->place->count ? &j->ranks[rank - first] : NULL;
}

static struct site_rank *rank_of_task(struct launch *l, const ProtobufCBinaryData *task)
{
	if (task->len != ID_SIZE)
		return NULL;
	struct id id;
	memcpy(id.at, task->data, ID_SIZE);
	struct site_job *j = site_find(l, &id);
	return j ? site_rank_find(j, launch_task_rank(&id)) : NULL;
}

/* ---------------------------------------------------------------- telling the origin */

void site_report(struct site_job *j)
{
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_SITE);
	j->report->phase = j->phase;
	m.site = j->report;
	launch_send(j->l, j->start->origin, &j->id, &m);
	for (size_t i = 0; i < j->report->n_notes; i++)
		free(j->report->notes[i]);
	free(j->report->notes);
	j->report->notes = NULL;
	j->report->n_notes = 0;
}

void site_note(struct site_job *j, const char *fmt, ...)
{
	struct str s = { 0 };
	va_list args;
	va_start(args, fmt);
	str_vprintf(&s, fmt, args);
	va_end(args);
	Copia__LaunchSite *r = j->report;
	r->notes = xrealloc(r->notes, (r->n_notes + 1) * sizeof(*r->notes));
	r->notes[r->n_notes++] = str_take(&s);
}

void site_send_exit(struct site_rank *r)
{
	Copia__LaunchExits e = COPIA__LAUNCH_EXITS__INIT;
	e.n_exits = 1;
	e.exits = &r->exit;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_EXITS);
	m.exits = &e;
	launch_send(r->job->l, r->job->start->origin, &r->job->id, &m);
}

/* ---------------------------------------------------------------- jobs */

static bool rank_reads(const struct site_job *j, uint32_t rank)
{
	const char *who = j->start->spec->stdin;
	if (!strcmp(who, "all"))
		return true;
	if (!*who || !strcmp(who, "none"))
		return false;
	return strtoul(who, NULL, 10) == rank;
}

static const Copia__LaunchPlace *own_place(const Copia__LaunchStart *s, uint32_t self)
{
	for (size_t i = 0; i < s->n_places; i++)
		if (s->places[i]->node == self)
			return s->places[i];
	return NULL;
}

struct site_job *site_new(struct launch *l, const struct id *id, Copia__LaunchStart *start,
			  uint32_t self)
{
	const Copia__LaunchPlace *place = own_place(start, self);
	if (!place || !start->spec || place->count > 1024 ||
	    (uint64_t)place->first + place->count > start->size)
		return NULL;
	struct site_job *j = xcalloc(1, sizeof(*j));
	j->l = l;
	j->id = *id;
	j->start = start;
	j->place = place;
	j->report = xcalloc(1, sizeof(*j->report));
	copia__launch_site__init(j->report);
	j->waiting_tail = &j->waiting_head;
	j->exe = xcalloc(start->spec->n_programs, sizeof(*j->exe));
	j->exe_staged = xcalloc(start->spec->n_programs, sizeof(*j->exe_staged));
	j->ranks = xcalloc(place->count, sizeof(*j->ranks));
	for (uint32_t i = 0; i < place->count; i++) {
		struct site_rank *r = &j->ranks[i];
		r->job = j;
		r->rank = place->first + i;
		r->task = launch_task_id(id, r->rank);
		r->reads = rank_reads(j, r->rank);
		stream_in_init(&r->in, -1, 0);
		for (uint32_t s = 0; s < 2; s++) {
			stream_out_init(&r->out[s].s, -1, 0);
			r->out[s].rank = r;
			r->out[s].number = s + 1;
		}
	}
	HASH_ADD_KEYPTR(hh, l->sites, j->id.at, SITE_KEY, j);
	return j;
}

struct site_job *site_free(struct site_job *j)
{
	prepare_cancel(j);
	site_look_free(j);
	j->check = check_free(j->check);
	wire_job_free(j);
	for (uint32_t i = 0; i < j->place->count; i++) {
		struct site_rank *r = &j->ranks[i];
		site_io_close(r);
		free(r->why);
		if (r->exit)
			copia__launch_rank_exit__free_unpacked(r->exit, NULL);
	}
	for (size_t i = 0; i < j->start->spec->n_programs; i++)
		free(j->exe[i]);
	HASH_DEL(j->l->sites, j);
	free(j->exe);
	free(j->exe_staged);
	free(j->ranks);
	free(j->folder);
	free(j->stage_folder);
	free(j->record);
	str_free(&j->input);
	copia__launch_site__free_unpacked(j->report, NULL);
	copia__launch_start__free_unpacked(j->start, NULL);
	free(j);
	return NULL;
}

/* Refuse what this node's daemon may or shall not run. */
static int check_user(struct launch *l, const Copia__LaunchSpec *spec, struct err *err)
{
	const char *node = launch_name(l, launch_self(l));
	if (!l->node->settings.root && spec->uid != getuid())
		return err_set(
		    err, -EPERM,
		    "node %s: copiad runs as user %u and starts only this user's tasks, not "
		    "those of %s (uid %u); have root start copiad there",
		    node, (unsigned)getuid(), spec->user, spec->uid);
	if (l->node->settings.root && spec->uid == 0 && !l->node->members->state->root_tasks) {
		log_warning("audit", "refused a task of root");
		return err_set(
		    err, -EPERM,
		    "node %s: tasks of root are not allowed in this cluster; run as another "
		    "user, or: copia set root-tasks on",
		    node);
	}
	return 0;
}

void site_fail(struct site_job *j, int code, const struct err *err)
{
	prepare_cancel(j);
	j->check = check_free(j->check);
	j->phase = COPIA__LAUNCH_PHASE__LAUNCH_FAILED;
	j->report->code = code;
	if (j->report->error != protobuf_c_empty_string)
		free(j->report->error);
	j->report->error = xstrdup(err->msg);
	site_report(j);
}

static void site_again(struct site_job *j, Copia__LaunchStart *start)
{
	j->orphan_since_ms = 0;
	j->start->origin = start->origin;
	if (j->relearned) {
		/* What was never started, and did not end as far as the user knows. */
		free(j->start->skip);
		j->start->skip = take_ptr(start->skip);
		j->start->n_skip = start->n_skip;
		start->n_skip = 0;
		site_spawn(j);
	}
	site_report(j);
	for (uint32_t i = 0; i < j->place->count; i++)
		if (j->ranks[i].exit)
			site_send_exit(&j->ranks[i]);
	wire_job_again(j);
	site_io_again(j);
}

void site_start(struct launch *l, uint32_t from, const struct id *id, Copia__LaunchStart *start)
{
	struct site_job *j = site_find(l, id);
	struct err err = { 0 };
	if (j) {
		if (start->again && !j->ending)
			site_again(j, start);
		copia__launch_start__free_unpacked(start, NULL);
		return;
	}
	if (launch_has_ended(l, id) || HASH_COUNT(l->sites) >= LAUNCH_JOBS_MAX) {
		copia__launch_start__free_unpacked(start, NULL);
		return;
	}
	j = site_new(l, id, start, launch_self(l));
	if (!j) {
		log_warning("launch", "order of %s to start a job makes no sense",
			    launch_name(l, from));
		copia__launch_start__free_unpacked(start, NULL);
		return;
	}
	int r = check_user(l, start->spec, &err);
	if (r < 0) {
		site_fail(j, r, &err);
		return;
	}
	prepare_start(j);
}

static void release_all(struct site_job *j)
{
	for (uint32_t i = 0; i < j->place->count; i++)
		if (j->ranks[i].state == RANK_ENDED && j->ranks[i].pid)
			(void)shepherd_release(j->l->node->shepherd, &j->ranks[i].task);
}

void site_end(struct site_job *j)
{
	if (!j->ending)
		launch_note_ended(j->l, &j->id);
	j->ending = true;
	prepare_cancel(j);
	j->check = check_free(j->check);
	bool busy = false;
	for (uint32_t i = 0; i < j->place->count; i++) {
		struct site_rank *r = &j->ranks[i];
		if (r->state != RANK_SPAWNING && r->state != RANK_RUNNING)
			continue;
		(void)shepherd_kill(j->l->node->shepherd, 0, &r->task, SIGKILL);
		busy = true;
	}
	if (busy)
		return; /* the last exit calls again */
	release_all(j);
	site_record_remove(j);
	site_free(j);
}

static void rank_ended(struct site_rank *r)
{
	struct site_job *j = r->job;
	r->state = RANK_ENDED;
	j->ended++;
	r->in.closed = true;
	if (j->ending) {
		site_end(j);
		return;
	}
	site_send_exit(r);
	wire_rank_ended(r);
	site_io_pump(j);
}

/* ---------------------------------------------------------------- signals */

static void rank_signal(struct site_rank *r, const Copia__LaunchSignal *s)
{
	bool deadly = s->signal == SIGKILL || s->signal == SIGTERM || s->signal == SIGINT ||
		      s->signal == SIGHUP;
	r->hung |= s->hung;
	if (deadly && s->why[0] && !r->why)
		r->why = xstrdup(s->why);
	if (deadly)
		r->why_signal = s->signal;
	if (r->state == RANK_RUNNING || r->state == RANK_SPAWNING) {
		(void)shepherd_kill(r->job->l->node->shepherd, 0, &r->task, s->signal);
		return;
	}
	if (r->state != RANK_NONE || !deadly)
		return;
	/* Not started yet, and never will be: no output of it has to be waited for. */
	struct str why = { 0 };
	str_printf(&why, "ended before it was started%s%s", s->why[0] ? ": " : "", s->why);
	r->exit = xcalloc(1, sizeof(*r->exit));
	copia__launch_rank_exit__init(r->exit);
	r->exit->rank = r->rank;
	r->exit->code = -ECANCELED;
	r->exit->error = str_take(&why);
	rank_ended(r);
}

void site_signal(struct site_job *j, const Copia__LaunchSignal *s)
{
	if (j->phase == COPIA__LAUNCH_PHASE__LAUNCH_PREPARING && !s->n_ranks &&
	    (s->signal == SIGTERM || s->signal == SIGKILL))
		prepare_cancel(j);
	/* The job may be freed by the last rank that ends, but only while `ending`. */
	bool ending = j->ending;
	uint32_t count = j->place->count;
	for (uint32_t i = 0; !ending && i < count; i++) {
		struct site_rank *r = &j->ranks[i];
		bool meant = !s->n_ranks;
		for (size_t k = 0; !meant && k < s->n_ranks; k++)
			meant = s->ranks[k] == r->rank;
		if (meant)
			rank_signal(r, s);
	}
}

void site_message(struct launch *l, uint32_t from, const struct id *id, const launch_message *m)
{
	struct site_job *j = site_find(l, id);
	if (!j || j->ending)
		return;
	switch (m->body_case) {
	case COPIA__LAUNCH_MESSAGE__BODY_TAKEN:
		site_io_taken(j, m->taken);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_INPUT:
		site_io_input(j, m->input);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_SIGNAL:
		site_signal(j, m->signal);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_LOOK:
		site_look_begin(j);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_PROBE_PORT:
		check_port(j, from, m->probe_port);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_END:
		site_end(j);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_WINSIZE:
		for (uint32_t i = 0; i < j->place->count; i++)
			if (j->ranks[i].state == RANK_RUNNING)
				(void)shepherd_winsize(l->node->shepherd, &j->ranks[i].task,
						       m->winsize->rows, m->winsize->columns);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_UNKNOWN:
		/* The origin was restarted; the command has LAUNCH_ORPHAN_MS to come back to it. */
		if (!j->orphan_since_ms)
			j->orphan_since_ms = launch_now_ms(l);
		launch_wake_at(l, j->orphan_since_ms + LAUNCH_ORPHAN_MS);
		break;
	default:
		break;
	}
}

/* ---------------------------------------------------------------- the shepherd's news */

static void fill_exit(struct site_rank *r, const Copia__Shepherd__TaskExit *e)
{
	Copia__LaunchRankExit *x = xcalloc(1, sizeof(*x));
	copia__launch_rank_exit__init(x);
	x->rank = r->rank;
	x->status = e->status;
	x->signal = e->signal;
	x->user_us = e->user_us;
	x->system_us = e->system_us;
	x->max_rss_bytes = e->max_rss_bytes;
	x->hung = r->hung;
	/* Killed by another signal than ours: it was dead before ours came. */
	bool ours = !e->signal || e->signal == r->why_signal || e->signal == SIGTERM;
	const char *why = e->out_of_memory ? "out of memory" : r->why && ours ? r->why : e->why;
	if (why && why[0] && strcmp(why, "asked") != 0)
		x->why = xstrdup(why);
	if (r->exit)
		copia__launch_rank_exit__free_unpacked(r->exit, NULL);
	r->exit = x;
}

static void on_spawned(struct site_rank *r, const Copia__Shepherd__Spawned *e, struct task_fds *fds)
{
	struct site_job *j = r->job;
	if (r->state != RANK_SPAWNING)
		return;
	if (e->code < 0) {
		r->exit = xcalloc(1, sizeof(*r->exit));
		copia__launch_rank_exit__init(r->exit);
		r->exit->rank = r->rank;
		r->exit->code = e->code;
		r->exit->error = xstrdup(e->error);
		rank_ended(r);
		return;
	}
	r->state = RANK_RUNNING;
	r->pid = e->pid;
	r->started_us = e->started_us;
	j->started++;
	site_io_open(r, fds, 0, 0, 0, !r->reads);
	if (j->ending)
		return;
	if (j->started + j->ended >= j->place->count &&
	    j->phase == COPIA__LAUNCH_PHASE__LAUNCH_PREPARING) {
		j->phase = COPIA__LAUNCH_PHASE__LAUNCH_RUNNING;
		site_report(j);
	}
	site_io_pump(j);
}

static void on_exit_event(struct site_rank *r, const Copia__Shepherd__TaskExit *e)
{
	if (r->state == RANK_ENDED)
		return;
	fill_exit(r, e);
	rank_ended(r);
}

/* After a restart of the brain: a task that goes on, or ended meanwhile. */
static void on_task_state(struct site_rank *r, const Copia__Shepherd__TaskState *e,
			  struct task_fds *fds)
{
	struct site_job *j = r->job;
	if (r->state != RANK_NONE)
		return;
	r->pid = e->pid;
	r->started_us = e->started_us;
	j->started++;
	r->state = e->starting ? RANK_SPAWNING : RANK_RUNNING;
	if (e->starting)
		j->started--;
	site_io_open(r, fds, e->stdout_consumed, e->stderr_consumed, e->stdin_pumped,
		     e->stdin_closed);
	if (e->exit) {
		fill_exit(r, e->exit);
		r->state = RANK_ENDED;
		j->ended++;
	}
}

static void on_tasks_sent(struct launch *l)
{
	uint64_t now = launch_now_ms(l);
	for (struct site_job *j = l->sites; j; j = j->hh.next) {
		log_info("launch", "job %s found again: %u of its tasks run here", j->start->name,
			 j->started - j->ended);
		/* Until the origin is heard of again. */
		j->orphan_since_ms = now ? now : 1;
		launch_wake_at(l, now + LAUNCH_ORPHAN_MS);
	}
}

bool site_event(struct launch *l, const Copia__Shepherd__Event *e, struct task_fds *fds)
{
	struct site_rank *r = NULL;
	switch (e->tell_case) {
	case COPIA__SHEPHERD__EVENT__TELL_SPAWNED:
		if ((r = rank_of_task(l, &e->spawned->task)))
			on_spawned(r, e->spawned, fds);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_TASK:
		if ((r = rank_of_task(l, &e->task->task)))
			on_task_state(r, e->task, fds);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_EXIT:
		if ((r = rank_of_task(l, &e->exit->task)))
			on_exit_event(r, e->exit);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_CONSUMED:
		if ((r = rank_of_task(l, &e->consumed->task)))
			site_io_consumed(r, e->consumed);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_PUMPED:
		if ((r = rank_of_task(l, &e->pumped->task)))
			site_io_pumped(r, e->pumped);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_DONE:
		r = rank_of_task(l, &e->done->task);
		if (r && e->done->code < 0 && e->done->code != -ESRCH)
			log_debug("launch", "task of rank %u: %s", r->rank, e->done->error);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_TASKS_SENT:
		on_tasks_sent(l);
		return false;
	default:
		break;
	}
	return r != NULL;
}

/* ---------------------------------------------------------------- the origin comes and goes */

static void ask_origin(struct site_job *j)
{
	Copia__LaunchAsk ask = COPIA__LAUNCH_ASK__INIT;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_ASK);
	m.ask = &ask;
	launch_send(j->l, j->start->origin, &j->id, &m);
}

void site_session(struct launch *l, uint32_t node, bool up)
{
	for (struct site_job *j = l->sites; j; j = j->hh.next)
		if (up && j->start->origin == node && !j->ending)
			ask_origin(j);
}

static void orphan_end(struct site_job *j, const char *why)
{
	log_warning("launch", "job %s ended: %s", j->start->name, why);
	site_end(j);
}

void site_node_down(struct launch *l, uint32_t node)
{
	struct site_job *j, *next;
	HASH_ITER(hh, l->sites, j, next)
	if (j->start->origin == node && !j->ending)
		orphan_end(j, "the node it was started from is down");
}

uint64_t site_tick(struct launch *l, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;
	struct site_job *j, *next;
	HASH_ITER(hh, l->sites, j, next)
	{
		if (!j->orphan_since_ms || j->ending)
			continue;
		uint64_t at = j->orphan_since_ms + LAUNCH_ORPHAN_MS;
		if (now_ms >= at)
			orphan_end(j, "its origin was restarted and the command did not come back");
		else
			due = MIN(due, at);
	}
	return due;
}

void site_free_all(struct launch *l)
{
	struct site_job *j, *next;
	HASH_ITER(hh, l->sites, j, next)
	site_free(j);
}
