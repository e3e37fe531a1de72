/* SPDX-License-Identifier: Apache-2.0 */
#include "enter.h"
#include "base/str.h"
#include "program.h"
#include "space.h"
#include "stopped.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OUTPUT_MAX = 64 * 1024 };

/* SIGCHLD to hear of the child; the others are passed on to it. */
static const int passed[] = { SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGUSR1,
			      SIGUSR2, SIGALRM, SIGCONT, SIGWINCH };

int enter_check(const struct lab *lab, const struct groups *g, unsigned i, struct err *err)
{
	if (!lab->node[i].pid)
		return err_set(err, -ESRCH, "node n%u is off: copia lab start n%u", i, i);
	if (groups_frozen(g, i) == 1 || stopped_is(&lab->node[i]))
		return err_set(err, -EAGAIN, "node n%u is paused: copia lab resume n%u", i, i);
	return 0;
}

static void drop_paths_of_others(void)
{
	static const char *const names[] = { "XDG_RUNTIME_DIR", "TMPDIR", "PWD", "OLDPWD" };
	for (unsigned k = 0; k < ARRAY_LEN(names); k++) {
		const char *value = getenv(names[k]);
		if (value && access(value, F_OK) < 0)
			(void)unsetenv(names[k]);
	}
	(void)unsetenv("DBUS_SESSION_BUS_ADDRESS");
}

static _Noreturn void be_program(const sigset_t *mask, const int *groups, const char *cwd,
				 char *const argv[])
{
	groups_join(groups);
	const char *home = getenv("HOME");
	if ((!cwd || chdir(cwd) < 0) && (!home || chdir(home) < 0) && chdir("/") < 0)
		_exit(126);
	drop_paths_of_others();
	(void)sigprocmask(SIG_SETMASK, mask, NULL);
	(void)execvp(argv[0], argv);
	int failed = errno;
	fprintf(stderr, "copia: %s: %s\n", argv[0],
		failed == ENOENT && !strchr(argv[0], '/') ? "no such program in PATH"
							  : strerror(failed));
	_exit(failed == ENOENT ? 127 : 126);
}

/* A child that was stopped (^Z) stops us too, so that the shell gets the terminal back. */
static bool collect(pid_t child, int *ret_code)
{
	int status;
	pid_t pid;
	while ((pid = waitpid(child, &status, WNOHANG | WUNTRACED)) > 0) {
		if (WIFSTOPPED(status)) {
			(void)raise(SIGSTOP);
			(void)kill(child, SIGCONT);
			continue;
		}
		*ret_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		return true;
	}
	return false;
}

static int attend(pid_t child, const sigset_t *set)
{
	int code = 0;
	while (!collect(child, &code)) {
		siginfo_t info;
		int number = sigwaitinfo(set, &info);
		/* what the terminal sends went to the child as well, it is in the same group */
		if (number > 0 && number != SIGCHLD && info.si_code <= 0)
			(void)kill(child, number);
	}
	return code;
}

int enter_run(const struct lab *lab, const struct groups *g, unsigned i, char *const argv[],
	      struct err *err)
{
	int groups[GROUP_MAX + 1];
	sigset_t set, before;
	int r = enter_check(lab, g, i, err);
	if (r < 0)
		return r;
	_cleanup_(free_p) char *cwd = getcwd(NULL, 0);
	_cleanup_(free_p) char *path = program_search_path();
	(void)setenv("PATH", path, 1);
	groups_open(g, i, groups);
	(void)sigemptyset(&set);
	(void)sigaddset(&set, SIGCHLD);
	for (unsigned k = 0; k < ARRAY_LEN(passed); k++)
		(void)sigaddset(&set, passed[k]);
	(void)sigprocmask(SIG_BLOCK, &set, &before);
	r = space_enter_node(lab, i, err);
	pid_t pid = r < 0 ? -1 : fork();
	if (pid == 0)
		be_program(&before, groups, cwd, argv);
	if (r == 0 && pid < 0)
		/* the kernel's word for a pid namespace whose first process is dead */
		r = err_set(err, -errno, "node n%u: %s", i,
			    errno == ENOMEM ? "it was just ended" : strerror(errno));
	for (unsigned k = 0; groups[k] >= 0; k++)
		(void)close(groups[k]);
	if (r == 0)
		r = attend(pid, &set);
	(void)sigprocmask(SIG_SETMASK, &before, NULL);
	return r;
}

int enter_start(const struct lab *lab, const struct groups *g, unsigned i, char *const argv[],
		struct enter_child *ret, struct err *err)
{
	int out[2];
	if (pipe2(out, O_CLOEXEC) < 0)
		return err_set(err, -errno, "make a pipe: %s", strerror(errno));
	pid_t pid = fork();
	if (pid == 0) {
		struct err one = { 0 };
		(void)close(lab->lock_fd);
		int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
		if (null < 0 || dup2(null, 0) < 0 || dup2(out[1], 1) < 0 || dup2(out[1], 2) < 0)
			_exit(126);
		int r = enter_run(lab, g, i, argv, &one);
		if (r < 0)
			fprintf(stderr, "%s\n", one.msg);
		_exit(r < 0 ? 1 : r);
	}
	int failed = errno;
	(void)close(out[1]);
	if (pid < 0) {
		(void)close(out[0]);
		return err_set(err, -failed, "fork: %s", strerror(failed));
	}
	*ret = (struct enter_child){ .pid = pid, .out_fd = out[0] };
	return 0;
}

int enter_finish(struct enter_child *child, char **ret_out, struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	char buf[4096];
	ssize_t len;
	while ((len = read(child->out_fd, buf, sizeof(buf))) > 0 || (len < 0 && errno == EINTR))
		if (len > 0 && text.len < OUTPUT_MAX)
			str_add(&text, buf, (size_t)len);
	(void)close(child->out_fd);
	int status = 0;
	while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
		;
	while (text.len && text.at[text.len - 1] == '\n')
		text.at[--text.len] = '\0';
	if (status != 0) {
		const char *last = text.len ? strrchr(text.at, '\n') : NULL;
		return err_set(err, -EIO, "%s",
			       last       ? last + 1
			       : text.len ? text.at
					  : "no reason given");
	}
	if (ret_out)
		*ret_out = text.len ? str_take(&text) : xstrdup("");
	return 0;
}
