/* SPDX-License-Identifier: Apache-2.0 */
/* The two ways out: the end of service, and becoming another program.
 *
 *   NONE --TERM, Stop--> STOP:    TERM to tasks .. KILL .. brain ends .. exit
 *   NONE --USR2, Upgrade--> UPGRADE: ask the new program .. end the brain .. execve
 *                             '-- refused --> NONE, with a new brain where it was ended */
#include "shepherd/beats.h"
#include "shepherd/task.h"

#include "base/log.h"
#include "io/child.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	BRAIN_END_MS = 3000, /* for the brain to end by itself, then TERM, then KILL */
	PROBE_MS = 5000,
	STARTING_MS = 2000, /* an exec that takes longer is not waited for */
};

extern char **environ;

static void terminate_one(struct shepherd *s, struct task *t, void *ctx)
{
	if (task_is_live(t))
		task_terminate(s, t, *(uint32_t *)ctx, "daemon stopped");
}

void stop_begin(struct shepherd *s, uint32_t grace_ms)
{
	if (s->passage == PASSAGE_STOP) /* asked twice: no more patience */
		grace_ms = 0;
	log_info("shepherd", "stopping: %u tasks get %u ms", s->task_count, grace_ms);
	notify_send(s, "STOPPING=1\nSTATUS=stopping");
	s->passage = PASSAGE_STOP;
	s->brain.start_at_us = 0;
	tasks_each(s, terminate_one, &grace_ms);
	s->passage_deadline_us = clock_us() + (grace_ms + BRAIN_END_MS) * 1000ULL;
	Copia__Shepherd__Stopping m = COPIA__SHEPHERD__STOPPING__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	m.grace_ms = grace_ms;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_STOPPING;
	e.stopping = &m;
	event_send(s, &e, NULL, 0);
}

static void count_live(struct shepherd *s, struct task *t, void *ctx)
{
	*(unsigned *)ctx += task_is_live(t);
}

static void stop_tick(struct shepherd *s)
{
	unsigned live = 0;
	tasks_each(s, count_live, &live);
	if (live == 0 && s->brain.pid == 0 && !s->cleanup_due) {
		s->quit = true;
		return;
	}
	if (s->now_us < s->passage_deadline_us)
		return;
	/* Each deadline makes the next means: TERM, then KILL, then leaving what hangs in the
	 * kernel to the next start, which looks for leftovers. */
	s->passage_deadline_us = s->now_us + BRAIN_END_MS * 1000ULL;
	if (s->brain.pid > 0)
		(void)kill(s->brain.pid, s->brain.watchdog_ms == UINT32_MAX ? SIGKILL : SIGTERM);
	else
		s->quit = true;
	s->brain.watchdog_ms = UINT32_MAX;
}

static void upgrade_refuse(struct shepherd *s, int code, const char *why)
{
	log_warning("shepherd", "upgrade to %s refused: %s", s->upgrade_path, why);
	notify_send(s, "STATUS=upgrade refused: %s", why);
	s->passage = PASSAGE_NONE;
	done_send(s, s->upgrade_call, NULL, code, why, 0);
	struct err err = { 0 };
	if (s->brain.pid == 0 && brain_start(s, &err) < 0)
		s->brain.start_at_us = clock_us() + 1000000;
}

void upgrade_begin(struct shepherd *s, uint64_t call, const char *path)
{
	if (s->passage != PASSAGE_NONE) {
		done_send(s, call, NULL, -EBUSY, "upgrade: the daemon is stopping or upgrading", 0);
		return;
	}
	struct err err = { 0 };
	struct child child;
	char version[16];
	snprintf(s->upgrade_path, sizeof(s->upgrade_path), "%s", path);
	snprintf(version, sizeof(version), "%d", HANDOVER_VERSION);
	s->upgrade_call = call;
	s->passage = PASSAGE_UPGRADE;
	s->passage_deadline_us = clock_us() + PROBE_MS * 1000ULL;
	char *argv[] = { s->upgrade_path, "--can-take", version, NULL };
	const struct child_spec spec = { .argv = argv,
					 .env = environ,
					 .exe = s->upgrade_path,
					 .exe_fd = -1,
					 .stdio = { -1, -1, STDERR_FILENO },
					 .umask = 022,
					 .cgroup_fd = -1,
					 .death_signal = SIGKILL };
	int r = child_start(&spec, &child, &err);
	if (r < 0) {
		upgrade_refuse(s, r, err.msg);
		return;
	}
	close_p(&child.pidfd);
	s->upgrade_probe = child.pid;
	s->upgrade_status_fd = child.status_fd;
}

void upgrade_probed(struct shepherd *s, int status)
{
	struct err err = { 0 };
	int r = child_result(s->upgrade_status_fd, &err);
	close_p(&s->upgrade_status_fd);
	s->upgrade_probe = 0;
	if (s->passage != PASSAGE_UPGRADE)
		return;
	if (r < 0) {
		upgrade_refuse(s, r, err.msg);
	} else if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		upgrade_refuse(s, -EPROTO,
			       "that program cannot take over the tasks of this version: stop the "
			       "daemon and start the new one instead");
	} else {
		s->passage_deadline_us = clock_us() + STARTING_MS * 1000ULL;
		brain_kill(s, "the daemon changes its program");
	}
}

static void upgrade_tick(struct shepherd *s)
{
	bool late = s->now_us >= s->passage_deadline_us;
	if (s->upgrade_probe) {
		if (late)
			(void)kill(s->upgrade_probe, SIGKILL);
		return;
	}
	if (s->brain.pid > 0 || (s->starting_count > 0 && !late))
		return;
	struct err err = { 0 };
	int r = handover_exec(s, s->upgrade_path, &err);
	upgrade_refuse(s, r, err.msg);
}

void passage_tick(struct shepherd *s)
{
	if (s->passage == PASSAGE_STOP)
		stop_tick(s);
	else if (s->passage == PASSAGE_UPGRADE)
		upgrade_tick(s);
}

uint64_t passage_next_us(const struct shepherd *s)
{
	/* Killed and not gone: there is nothing to do but wait for it. */
	bool waits = s->passage == PASSAGE_UPGRADE && !s->upgrade_probe && s->brain.pid > 0;
	return s->passage == PASSAGE_NONE || waits ? UINT64_MAX : s->passage_deadline_us;
}
