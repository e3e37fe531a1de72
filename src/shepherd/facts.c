/* SPDX-License-Identifier: Apache-2.0 */
#include "shepherd/shepherd.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum {
	/* Six of an ordinary task, and four that may be on their way to a slow brain. */
	FDS_PER_TASK = 10,
	FDS_OWN = 64,
	OOM_SCORE = -900,
};

void fact_add(struct shepherd *s, const char *name, bool ok, const char *loss, const char *remedy,
	      const char *detail_fmt, ...)
{
	assert(s->fact_count < FACTS_MAX);
	struct fact *f = &s->facts[s->fact_count++];
	*f = (struct fact){ .name = name, .ok = ok, .loss = loss, .remedy = remedy };
	va_list args;
	va_start(args, detail_fmt);
	(void)vsnprintf(f->detail, sizeof(f->detail), detail_fmt, args);
	va_end(args);
}

static void gather_realtime(struct shepherd *s)
{
	struct sched_param p = { .sched_priority = 1 };
	int code = sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &p) < 0 ? errno : 0;
	fact_add(s, "realtime", code == 0,
		 "on a busy machine heartbeats may be late by hundreds of milliseconds: use the "
		 "profile lan or wan",
		 "run copiad as root, or set LimitRTPRIO=1 for its user", "SCHED_FIFO 1: %s",
		 code ? strerror(code) : "in force");
}

static void gather_mlock(struct shepherd *s)
{
	int code = mlockall(MCL_CURRENT | MCL_FUTURE) < 0 ? errno : 0;
	/* Locking what will come later may break allocation when the limit is small. */
	if (code)
		(void)munlockall();
	fact_add(s, "mlock", code == 0, "when memory is short, heartbeats may wait for the disk",
		 "run copiad as root, or set LimitMEMLOCK=infinity for its user",
		 "memory locked: %s", code ? strerror(code) : "yes");
}

static void gather_files(struct shepherd *s)
{
	struct rlimit r;
	(void)getrlimit(RLIMIT_NOFILE, &s->own_nofile);
	r = s->own_nofile;
	r.rlim_cur = r.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &r) < 0)
		r = s->own_nofile;
	uint64_t files = r.rlim_cur;
	uint64_t tasks = files > FDS_OWN ? (files - FDS_OWN) / FDS_PER_TASK : 1;
	s->tasks_max = (unsigned)MIN(tasks, (uint64_t)TASKS_MAX);
	fact_add(s, "nofile", s->tasks_max == TASKS_MAX, "fewer tasks at once on this node",
		 "set LimitNOFILE=65536 for copiad", "%llu open files: at most %u tasks",
		 (unsigned long long)files, s->tasks_max);
}

static void gather_oom(struct shepherd *s)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", OOM_SCORE);
	_cleanup_(close_p) int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	bool ok = fd >= 0 && write(fd, text, (size_t)len) == len;
	fact_add(s, "oom", ok,
		 "when memory runs out the kernel may kill copiad, and with it all tasks",
		 "run copiad as root, or set OOMScoreAdjust=-900 for its unit",
		 "oom_score_adj %d: %s", OOM_SCORE, ok ? "in force" : "refused");
}

static void gather_cgroup(struct shepherd *s)
{
	const struct cgroups *g = &s->cgroups;
	bool is_v1 = g->kind == CGROUP_V1;
	fact_add(
	    s, "cgroup", g->kind != CGROUP_NONE,
	    "the processes of a task are found by session and environment: one that hides from "
	    "both outlives its task",
	    "run copiad as root, or under systemd with Delegate=yes", "%s", g->detail);
	fact_add(
	    s, "cgroup-kill", g->has_kill,
	    is_v1 ? "tasks are killed by freezer and list" : "tasks are killed process by process",
	    "Linux 5.14 with the unified hierarchy", "cgroup.kill: %s", g->has_kill ? "yes" : "no");
	bool memory = g->v2_memory || g->tree[CGROUP_MEMORY] >= 0;
	bool cpu = g->v2_cpu || g->tree[CGROUP_CPU] >= 0;
	fact_add(s, "cgroup-limits", memory && cpu,
		 "memory limits and CPU weights of tasks cannot be enforced",
		 "run copiad as root, or under systemd with Delegate=yes",
		 "memory %s, cpu %s, pids %s", memory ? "yes" : "no", cpu ? "yes" : "no",
		 g->v2_pids || g->tree[CGROUP_PIDS] >= 0 ? "yes" : "no");
}

void facts_gather(struct shepherd *s)
{
	gather_files(s);
	gather_realtime(s);
	gather_mlock(s);
	gather_oom(s);
	gather_cgroup(s);
	bool is_root = geteuid() == 0;
	fact_add(s, "users", is_root, "this daemon starts tasks of its own user only",
		 "run copiad as root", "runs as user %u", (unsigned)geteuid());
	int code = prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0 ? errno : 0;
	fact_add(s, "subreaper", code == 0, "orphans of tasks go to init", "Linux 3.4",
		 "orphans of tasks come to the daemon: %s", code ? strerror(code) : "yes");
}
