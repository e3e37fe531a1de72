/* SPDX-License-Identifier: Apache-2.0 */
#include "io/child-run.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	PATH_SIZE = 4096,
	HIGH_FD = 3 + CHILD_KEEP_MAX, /* sources are moved up here before the targets are set */
};

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

static _Noreturn void fail(struct child_run *run, enum child_stage stage, const char *path)
{
	struct child_report report = { .stage = stage, .code = -errno };
	if (path)
		strncpy(report.path, path, sizeof(report.path) - 1);
	if (stage == CHILD_EXEC)
		child_explain(path, run->spec->exe_fd, -report.code, report.detail,
			      sizeof(report.detail));
	(void)!write(run->status_fd, &report, sizeof(report));
	_exit(127);
}

static _Noreturn void fail_limit(struct child_run *run, int resource)
{
	struct child_report report = { .stage = CHILD_LIMIT,
				       .code = -errno,
				       .resource = (uint32_t)resource };
	(void)!write(run->status_fd, &report, sizeof(report));
	_exit(127);
}

static bool write_zero(int dir_fd, const char *name)
{
	int fd = name ? openat(dir_fd, name, O_WRONLY | O_CLOEXEC) : dir_fd;
	return fd >= 0 && write(fd, "0", 1) == 1;
}

static void enter_groups(struct child_run *run)
{
	const struct child_spec *s = run->spec;
	if (run->join_late && !write_zero(s->cgroup_fd, "cgroup.procs"))
		fail(run, CHILD_GROUP, NULL);
	for (unsigned i = 0; i < s->join_count; i++)
		if (s->join_fds[i] >= 0 && !write_zero(s->join_fds[i], NULL))
			fail(run, CHILD_GROUP, NULL);
}

static void reset_signals(void)
{
	for (int sig = 1; sig < NSIG; sig++)
		if (sig != SIGKILL && sig != SIGSTOP)
			(void)signal(sig, SIG_DFL);
}

static void set_bounds(struct child_run *run)
{
	const struct child_spec *s = run->spec;
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", s->oom_score);
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		/* Lowering one's own chance to be killed needs a privilege; not having it is no
		 * reason not to run. */
		(void)!write(fd, text, (size_t)len);
		(void)close(fd);
	}
	for (unsigned i = 0; i < s->limit_count; i++)
		if (setrlimit((__rlimit_resource_t)s->limits[i].resource, &s->limits[i].value) < 0)
			fail_limit(run, s->limits[i].resource);
	if (s->cpus && syscall(SYS_sched_setaffinity, 0, s->cpus_len, s->cpus) < 0)
		fail(run, CHILD_CPUS, NULL);
	if (setpriority(PRIO_PROCESS, 0, s->nice) < 0)
		fail(run, CHILD_NICE, NULL);
}

static int raise_fd(struct child_run *run, int fd)
{
	int high = fcntl(fd, F_DUPFD_CLOEXEC, HIGH_FD);
	if (high < 0)
		fail(run, CHILD_FDS, NULL);
	return high;
}

/* Two rounds, for a source may have the number of another one's target. */
static void set_fds(struct child_run *run, int *ret_exe_fd)
{
	const struct child_spec *s = run->spec;
	int stdio[3], keep[CHILD_KEEP_MAX];
	run->status_fd = raise_fd(run, run->status_fd);
	*ret_exe_fd = s->exe_fd >= 0 ? raise_fd(run, s->exe_fd) : -1;
	for (int i = 0; i < 3; i++) {
		int fd = s->stdio[i];
		if (fd < 0)
			fd = open("/dev/null", i == 0 ? O_RDONLY : O_WRONLY);
		if (fd < 0)
			fail(run, CHILD_FDS, "/dev/null");
		stdio[i] = raise_fd(run, fd);
	}
	for (unsigned i = 0; i < s->keep_count; i++)
		keep[i] = raise_fd(run, s->keep[i]);
	for (int i = 0; i < 3; i++)
		if (dup2(stdio[i], i) < 0)
			fail(run, CHILD_FDS, NULL);
	for (unsigned i = 0; i < s->keep_count; i++)
		if (dup2(keep[i], 3 + (int)i) < 0)
			fail(run, CHILD_FDS, NULL);
	(void)syscall(SYS_close_range, 3 + s->keep_count, ~0U, CLOSE_RANGE_CLOEXEC);
}

static void become_user(struct child_run *run)
{
	const struct child_spec *s = run->spec;
	if (!s->set_user || (geteuid() != 0 && s->uid == geteuid() && s->gid == getegid()))
		return;
	if (setgroups(s->group_count, s->groups) < 0 || setresgid(s->gid, s->gid, s->gid) < 0 ||
	    setresuid(s->uid, s->uid, s->uid) < 0)
		fail(run, CHILD_USER, NULL);
}

static void open_outputs(struct child_run *run)
{
	const struct child_spec *s = run->spec;
	for (int i = 1; i < 3; i++) {
		if (!s->out_path[i])
			continue;
		/* Not blocking: a FIFO without a reader is an error and not a hang. */
		int fd = open(s->out_path[i],
			      O_WRONLY | O_CREAT | O_NOCTTY | O_NONBLOCK | O_CLOEXEC |
				  (s->out_append[i] ? O_APPEND : O_TRUNC),
			      0666);
		if (fd < 0 || fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK) < 0 ||
		    dup2(fd, i) < 0)
			fail(run, CHILD_OUTPUT, s->out_path[i]);
	}
	if (s->err_to_out && dup2(1, 2) < 0)
		fail(run, CHILD_FDS, NULL);
}

static const char *path_of(char *const *env)
{
	for (; *env; env++)
		if (strncmp(*env, "PATH=", 5) == 0)
			return *env + 5;
	return "/usr/local/bin:/usr/bin:/bin";
}

/* As execvpe() does, without its habit of feeding unknown files to a shell. */
static _Noreturn void exec_searched(struct child_run *run, const char *name)
{
	const struct child_spec *s = run->spec;
	char path[PATH_SIZE], denied[PATH_SIZE] = "";
	for (const char *dir = path_of(s->env);;) {
		size_t len = strcspn(dir, ":");
		int n = len == 0 ? snprintf(path, sizeof(path), "./%s", name)
				 : snprintf(path, sizeof(path), "%.*s/%s", (int)len, dir, name);
		if (n > 0 && n < PATH_SIZE) {
			(void)execve(path, s->argv, s->env);
			bool exists = errno == ENOENT && access(path, F_OK) == 0;
			errno = exists ? ENOENT : errno;
			if (errno == EACCES && !denied[0])
				memcpy(denied, path, (size_t)n + 1);
			if (exists || (errno != ENOENT && errno != ENOTDIR && errno != EACCES))
				fail(run, CHILD_EXEC, path);
		}
		if (!dir[len])
			break;
		dir += len + 1;
	}
	errno = denied[0] ? EACCES : ENOENT;
	fail(run, CHILD_EXEC, denied[0] ? denied : name);
}

static _Noreturn void exec_program(struct child_run *run, int exe_fd)
{
	const struct child_spec *s = run->spec;
	const char *name = s->exe ? s->exe : s->argv[0];
	if (exe_fd >= 0) {
		char head[2] = { 0 };
		/* A script's interpreter opens it again by descriptor. */
		if (pread(exe_fd, head, 2, 0) == 2 && head[0] == '#' && head[1] == '!')
			(void)fcntl(exe_fd, F_SETFD, 0);
		(void)syscall(SYS_execveat, exe_fd, "", s->argv, s->env, AT_EMPTY_PATH);
		fail(run, CHILD_EXEC, s->argv[0]);
	}
	if (!s->exe && !strchr(name, '/'))
		exec_searched(run, name);
	(void)execve(name, s->argv, s->env);
	fail(run, CHILD_EXEC, name);
}

_Noreturn void child_run(struct child_run *run)
{
	const struct child_spec *s = run->spec;
	int exe_fd;
	reset_signals();
	enter_groups(run);
	if (!s->no_session && setsid() < 0)
		fail(run, CHILD_SESSION, NULL);
	if (s->terminal && ioctl(s->stdio[0], TIOCSCTTY, 0) < 0)
		fail(run, CHILD_TERMINAL, NULL);
	set_fds(run, &exe_fd);
	set_bounds(run);
	become_user(run);
	umask(s->umask);
	if (chdir(s->cwd ? s->cwd : "/") < 0)
		fail(run, CHILD_CWD, s->cwd ? s->cwd : "/");
	open_outputs(run);
	/* After the change of user, which clears it. */
	if (s->death_signal) {
		(void)prctl(PR_SET_PDEATHSIG, s->death_signal, 0, 0, 0);
		if (getppid() != run->parent)
			_exit(127);
	}
	sigset_t none;
	sigemptyset(&none);
	(void)sigprocmask(SIG_SETMASK, &none, NULL);
	exec_program(run, exe_fd);
}
