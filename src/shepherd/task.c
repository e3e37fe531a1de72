/* SPDX-License-Identifier: Apache-2.0 */
#include "shepherd/task.h"

#include "io/child.h"
#include "io/proc.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	BUCKETS = 1024, /* a power of two */
	CLEANUP_FIRST_US = 2000,
	CLEANUP_US = 25000,
	CLEANUP_ROUNDS = 400, /* 10 s: what does not die by then hangs in the kernel */
};

void tasks_init(struct shepherd *s)
{
	s->tasks = xcalloc(BUCKETS, sizeof(*s->tasks));
	s->kill_next_us = UINT64_MAX;
}

static struct task **bucket(struct shepherd *s, const struct id *id)
{
	/* Ids are random or counted: mixing first and last bytes serves both. */
	unsigned h = id->at[0] | (unsigned)id->at[1] << 8;
	h ^= id->at[15] | (unsigned)id->at[14] << 8;
	return &s->tasks[h % BUCKETS];
}

struct task *task_find(struct shepherd *s, const struct id *id)
{
	for (struct task *t = *bucket(s, id); t; t = t->next)
		if (id_compare(&t->id, id) == 0)
			return t;
	return NULL;
}

struct task *task_by_pid(struct shepherd *s, pid_t pid)
{
	for (unsigned i = 0; i < BUCKETS; i++)
		for (struct task *t = s->tasks[i]; t; t = t->next)
			if (t->pid == pid && t->state != TASK_ENDED)
				return t;
	return NULL;
}

struct task *task_add(struct shepherd *s, const struct id *id)
{
	struct task *t = xcalloc(1, sizeof(*t)), **at = bucket(s, id);
	t->id = *id;
	t->pidfd = -1;
	t->why = "";
	t->status_watch.fd = -1;
	streams_init(&t->io);
	t->next = *at;
	*at = t;
	s->task_count++;
	return t;
}

void task_drop(struct shepherd *s, struct task *t)
{
	struct task **at = bucket(s, &t->id);
	while (*at != t)
		at = &(*at)->next;
	*at = t->next;
	s->task_count--;
	s->starting_count -= t->state == TASK_STARTING;
	int status_fd = t->status_watch.fd;
	watch_drop(s, &t->status_watch);
	close_p(&status_fd);
	streams_close(s, t);
	close_p(&t->pidfd);
	t->next = s->dropped;
	s->dropped = t;
}

void tasks_reap(struct shepherd *s)
{
	while (s->dropped) {
		struct task *t = s->dropped;
		s->dropped = t->next;
		free(t->note);
		free(t);
	}
}

void tasks_each(struct shepherd *s, void (*each)(struct shepherd *s, struct task *t, void *ctx),
		void *ctx)
{
	for (unsigned i = 0; i < BUCKETS; i++)
		for (struct task *t = s->tasks[i], *next; t; t = next) {
			next = t->next;
			each(s, t, ctx);
		}
}

bool task_is_live(const struct task *t)
{
	return t->state == TASK_STARTING || t->state == TASK_RUNNING;
}

const char *task_why(const char *text)
{
	static const char *const texts[] = { "lease ended", "asked", "daemon stopped" };
	for (size_t i = 0; i < ARRAY_LEN(texts); i++)
		if (strcmp(texts[i], text) == 0)
			return texts[i];
	return "";
}

void task_signal(struct shepherd *s, struct task *t, int signal, bool only_leader)
{
	assert(task_is_live(t));
	if (only_leader) {
		(void)kill(t->pid, signal);
		return;
	}
	/* The group where there is one, for it holds all; killing is done in every way. */
	int reached = t->isolation != CGROUP_NONE ? cgroup_signal(&s->cgroups, &t->id, signal) : 0;
	if (reached == 0 || signal == SIGKILL)
		if (kill(-t->pid, signal) < 0)
			(void)kill(t->pid, signal);
}

void task_terminate(struct shepherd *s, struct task *t, uint32_t grace_ms, const char *why)
{
	t->why = task_why(why);
	if (grace_ms == 0) {
		task_signal(s, t, SIGKILL, false);
		return;
	}
	task_signal(s, t, SIGTERM, false);
	/* A stopped process would not hear it. */
	task_signal(s, t, SIGCONT, false);
	uint64_t at_us = clock_us() + grace_ms * 1000ULL;
	t->kill_at_us = t->kill_at_us ? MIN(t->kill_at_us, at_us) : at_us;
	s->kill_next_us = MIN(s->kill_next_us, t->kill_at_us);
}

void task_exit_message(const struct task *t, Copia__Shepherd__TaskExit *ret)
{
	const struct task_exit *x = &t->exit;
	copia__shepherd__task_exit__init(ret);
	ret->task = id_view(&t->id);
	ret->status = x->status;
	ret->signal = x->signal;
	ret->core = x->core;
	ret->ended_us = x->ended_us;
	ret->user_us = x->user_us;
	ret->system_us = x->system_us;
	ret->max_rss_bytes = x->max_rss_bytes;
	ret->out_of_memory = x->out_of_memory;
	ret->why = (char *)t->why;
	ret->major_faults = x->major_faults;
	ret->read_blocks = x->read_blocks;
	ret->written_blocks = x->written_blocks;
}

static uint64_t time_us(const struct timeval *t)
{
	return (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_usec;
}

static void fill_exit(struct task_exit *x, int status, const struct rusage *u)
{
	*x = (struct task_exit){
		.status = WIFEXITED(status) ? WEXITSTATUS(status) : 0,
		.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0,
		.core = WIFSIGNALED(status) && WCOREDUMP(status),
		.ended_us = clock_us(),
		.user_us = time_us(&u->ru_utime),
		.system_us = time_us(&u->ru_stime),
		.max_rss_bytes = (uint64_t)u->ru_maxrss * 1024,
		.major_faults = (uint64_t)u->ru_majflt,
		.read_blocks = (uint64_t)u->ru_inblock,
		.written_blocks = (uint64_t)u->ru_oublock,
	};
}

/* First try at once; what is still dying is looked after by tasks_tick(). */
static void cleanup_start(struct shepherd *s, struct task *t)
{
	if (t->keep_children) {
		(void)cgroup_remove(&s->cgroups, &t->id);
		return;
	}
	if (t->isolation != CGROUP_NONE) {
		(void)cgroup_signal(&s->cgroups, &t->id, SIGKILL);
		if (cgroup_remove(&s->cgroups, &t->id) == 0)
			return;
	}
	t->cleanup = true;
	uint64_t at_us = clock_us() + CLEANUP_FIRST_US;
	s->cleanup_at_us = s->cleanup_due ? MIN(s->cleanup_at_us, at_us) : at_us;
	s->cleanup_due = true;
}

void task_ended(struct shepherd *s, struct task *t, int status, const struct rusage *usage)
{
	/* What the child said before its end comes first. */
	spawn_status(s, t);
	fill_exit(&t->exit, status, usage);
	t->exit.out_of_memory =
	    t->isolation != CGROUP_NONE && cgroup_out_of_memory(&s->cgroups, &t->id);
	cleanup_start(s, t);
	t->kill_at_us = 0;
	if (t->state == TASK_FAILED) {
		if (t->isolation == CGROUP_NONE || !t->cleanup)
			task_drop(s, t);
		return;
	}
	assert(t->state == TASK_RUNNING);
	t->state = TASK_ENDED;
	streams_pump(s, t, false);
	Copia__Shepherd__TaskExit m;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	task_exit_message(t, &m);
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_EXIT;
	e.exit = &m;
	event_send(s, &e, NULL, 0);
}

static void kill_if_due(struct shepherd *s, struct task *t, void *ctx)
{
	uint64_t *next_us = ctx;
	if (!t->kill_at_us || !task_is_live(t))
		return;
	if (t->kill_at_us > s->now_us) {
		*next_us = MIN(*next_us, t->kill_at_us);
		return;
	}
	t->kill_at_us = 0;
	task_signal(s, t, SIGKILL, false);
}

struct cleanup {
	struct id *unheld; /* ids of ended tasks without a group: found by their mark */
	unsigned unheld_count;
	bool more;
};

static void cleanup_one(struct shepherd *s, struct task *t, void *ctx)
{
	struct cleanup *c = ctx;
	if (!t->cleanup)
		return;
	if (++t->cleanup_rounds > CLEANUP_ROUNDS) {
		t->cleanup = false;
	} else if (t->isolation == CGROUP_NONE) {
		c->unheld[c->unheld_count++] = t->id;
	} else {
		(void)cgroup_signal(&s->cgroups, &t->id, SIGKILL);
		t->cleanup = cgroup_remove(&s->cgroups, &t->id) < 0;
		c->more |= t->cleanup;
	}
	if (!t->cleanup && t->state == TASK_FAILED)
		task_drop(s, t);
}

static void cleanup_done(struct shepherd *s, struct task *t, void *ctx)
{
	t->cleanup &= t->isolation != CGROUP_NONE;
	if (!t->cleanup && t->state == TASK_FAILED)
		task_drop(s, t);
}

static void cleanup_tick(struct shepherd *s)
{
	struct cleanup c = { .unheld = xcalloc(s->task_count + 1, sizeof(struct id)) };
	tasks_each(s, cleanup_one, &c);
	/* Orphans are our children (subreaper), so each pass sees all of one generation. */
	if (c.unheld_count > 0) {
		if (proc_kill_orphans(s->set.state_dir, c.unheld, c.unheld_count) > 0)
			c.more = true;
		else
			tasks_each(s, cleanup_done, NULL);
	}
	free(c.unheld);
	s->cleanup_due = c.more;
	s->cleanup_at_us = s->now_us + CLEANUP_US;
}

void tasks_tick(struct shepherd *s)
{
	if (s->kill_next_us <= s->now_us) {
		uint64_t next_us = UINT64_MAX;
		tasks_each(s, kill_if_due, &next_us);
		s->kill_next_us = next_us;
	}
	if (s->cleanup_due && s->cleanup_at_us <= s->now_us)
		cleanup_tick(s);
}

uint64_t tasks_next_us(const struct shepherd *s)
{
	return MIN(s->kill_next_us, s->cleanup_due ? s->cleanup_at_us : UINT64_MAX);
}

const char *task_isolation(const struct task *t)
{
	static const char *const names[] = {
		[CGROUP_NONE] = "none", [CGROUP_V1] = "cgroup1", [CGROUP_V2] = "cgroup2"
	};
	return names[t->isolation];
}

unsigned task_fds(const struct task *t, Copia__Shepherd__Fds *ret, int fds[5])
{
	const struct task_streams *io = &t->io;
	const int all[5] = { io->staging_write, io->out[0], io->out[1], io->terminal,
			     t->want_pidfd ? t->pidfd : -1 };
	unsigned count = 0;
	copia__shepherd__fds__init(ret);
	protobuf_c_boolean *has[5] = { &ret->staging, &ret->stdout, &ret->stderr, &ret->terminal,
				       &ret->pidfd };
	for (int i = 0; i < 5; i++) {
		*has[i] = all[i] >= 0;
		if (all[i] >= 0)
			fds[count++] = all[i];
	}
	return count;
}

static void tell_one(struct shepherd *s, struct task *t, void *ctx)
{
	if (t->state == TASK_FAILED)
		return;
	streams_reset(s, t);
	int fds[5];
	Copia__Shepherd__Fds has;
	Copia__Shepherd__TaskExit exit;
	Copia__Shepherd__TaskState m = COPIA__SHEPHERD__TASK_STATE__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	unsigned fd_count = task_fds(t, &has, fds);
	m.task = id_view(&t->id);
	m.job = id_is_none(&t->job) ? (ProtobufCBinaryData){ 0, NULL } : id_view(&t->job);
	m.pid = (uint32_t)t->pid;
	m.started_us = t->started_us;
	m.fds = &has;
	m.stdin_pumped = t->io.pumped;
	m.stdin_closed = t->io.closed || t->io.closing;
	m.stdout_consumed = t->io.consumed[0];
	m.stderr_consumed = t->io.consumed[1];
	m.lease = t->lease;
	m.isolation = (char *)task_isolation(t);
	m.starting = t->state == TASK_STARTING;
	if (t->state == TASK_ENDED) {
		task_exit_message(t, &exit);
		m.exit = &exit;
	}
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_TASK;
	e.task = &m;
	event_send(s, &e, fds, fd_count);
	(*(uint32_t *)ctx)++;
}

void tasks_tell(struct shepherd *s)
{
	Copia__Shepherd__TasksSent m = COPIA__SHEPHERD__TASKS_SENT__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	tasks_each(s, tell_one, &m.count);
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_TASKS_SENT;
	e.tasks_sent = &m;
	event_send(s, &e, NULL, 0);
}
