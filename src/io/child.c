/* SPDX-License-Identifier: Apache-2.0 */
/* The parent's half: preparation, clone, and what the child reported. The child's half is in
 * child-run.c. */
#include "io/child.h"

#include "io/child-run.h"
#include "io/fdpass.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Like fork(), with a pidfd and the new process born in its cgroup. The child gets a copy of our
 * memory, so nothing it does can harm us. */
static pid_t fork_into(int cgroup_fd, int *ret_pidfd)
{
	int pidfd = -1;
	struct clone_args args = {
		.flags = CLONE_PIDFD | (cgroup_fd >= 0 ? CLONE_INTO_CGROUP : 0),
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = cgroup_fd >= 0 ? (uint64_t)cgroup_fd : 0,
	};
	pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof(args));
	if (pid > 0)
		*ret_pidfd = pidfd;
	return pid;
}

/* Where clone3 is forbidden (old container run times answer ENOSYS). */
static pid_t fork_plain(int *ret_pidfd)
{
	pid_t pid = fork();
	if (pid <= 0)
		return pid;
	*ret_pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (*ret_pidfd >= 0)
		return pid;
	int code = errno;
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	errno = code;
	return -1;
}

static pid_t fork_any(struct child_run *run, int *ret_pidfd)
{
	int cgroup_fd = run->spec->cgroup_fd;
	pid_t pid = fork_into(cgroup_fd, ret_pidfd);
	if (pid < 0 && cgroup_fd >= 0 && errno != EAGAIN && errno != ENOMEM) {
		run->join_late = true; /* the child moves itself */
		pid = fork_into(-1, ret_pidfd);
	}
	if (pid < 0 && (errno == ENOSYS || errno == EPERM))
		pid = fork_plain(ret_pidfd);
	return pid;
}

static int spec_check(const struct child_spec *spec, struct err *err)
{
	assert(spec->argv && spec->env);
	if (!spec->argv[0])
		return err_set(err, -EINVAL, "no program named: the argument list is empty");
	if (spec->keep_count > CHILD_KEEP_MAX)
		return err_set(err, -EINVAL, "%u descriptors to pass, at most %d", spec->keep_count,
			       CHILD_KEEP_MAX);
	if (spec->limit_count > CHILD_LIMITS_MAX)
		return err_set(err, -EINVAL, "%u limits, at most %d", spec->limit_count,
			       CHILD_LIMITS_MAX);
	return 0;
}

int child_start(const struct child_spec *spec, struct child *ret, struct err *err)
{
	int r = spec_check(spec, err);
	if (r < 0)
		return r;
	int status[2];
	if (pipe2(status, O_CLOEXEC | O_NONBLOCK) < 0)
		return err_set(err, -errno, "start %s: make a pipe: %s", spec->argv[0],
			       strerror(errno));

	struct child_run run = { .spec = spec, .status_fd = status[1], .parent = getpid() };
	sigset_t all, old;
	sigfillset(&all);
	(void)sigprocmask(SIG_SETMASK, &all, &old);
	int pidfd = -1;
	pid_t pid = fork_any(&run, &pidfd);
	if (pid == 0)
		child_run(&run);
	int code = -errno;
	(void)sigprocmask(SIG_SETMASK, &old, NULL);
	(void)close(status[1]);
	if (pid < 0) {
		(void)close(status[0]);
		return err_set(err, code, "start %s: make a process: %s", spec->argv[0],
			       code == -EAGAIN ? "the limit of processes is reached"
					       : strerror(-code));
	}
	*ret = (struct child){ .pid = pid, .pidfd = pidfd, .status_fd = status[0] };
	return 0;
}

static int explain(const struct child_report *b, struct err *err)
{
	static const char *const what[CHILD_STAGE_COUNT] = {
		[CHILD_GROUP] = "enter the task's cgroup",
		[CHILD_SESSION] = "begin a session",
		[CHILD_TERMINAL] = "take the terminal",
		[CHILD_LIMIT] = "set the resource limit",
		[CHILD_CPUS] = "bind to the wanted CPUs (is one of them switched off?)",
		[CHILD_NICE] = "set the nice value",
		[CHILD_USER] = "become the task's user",
		[CHILD_CWD] = "enter the working folder",
		[CHILD_OUTPUT] = "open the output file",
		[CHILD_FDS] = "set up its descriptors",
		[CHILD_EXEC] = "run",
	};
	int code = b->code < 0 ? b->code : -EIO;
	/* "Not found" and "not executable" are said of the program alone: a missing working folder
	 * is no missing program. */
	int ret = b->stage == CHILD_EXEC ? code : -EIO;
	const char *stage = b->stage < CHILD_STAGE_COUNT ? what[b->stage] : "start";
	if (b->detail[0])
		return err_set(err, ret, "%s %.*s: %.*s", stage, (int)sizeof(b->path), b->path,
			       (int)sizeof(b->detail), b->detail);
	if (b->stage == CHILD_LIMIT)
		return err_set(err, ret, "%s %u: %s", stage, b->resource, strerror(-code));
	return err_set(err, ret, "%s%s%.*s: %s", stage, b->path[0] ? " " : "", (int)sizeof(b->path),
		       b->path, strerror(-code));
}

int child_result(int status_fd, struct err *err)
{
	struct child_report report = { 0 };
	ssize_t n;
	do
		n = read(status_fd, &report, sizeof(report));
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n == 0)
		return 1;
	report.path[sizeof(report.path) - 1] = '\0';
	report.detail[sizeof(report.detail) - 1] = '\0';
	if (n != sizeof(report))
		return err_set(err, -EIO, "start a program: its report was cut short");
	return explain(&report, err);
}
