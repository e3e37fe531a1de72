/* SPDX-License-Identifier: Apache-2.0 */
#include "io/proc.h"

#include "base/str.h"
#include "io/cgroup.h"
#include "io/fdpass.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	ENVIRON_MAX = 8 << 20, /* bytes of one process' environment that are looked at */
	LEFTOVER_WAIT_MS = 10000,
	ROUND_MS = 20,
};

extern char **environ;

static char *title_at;
static size_t title_size;

void proc_title_init(int argc, char **argv)
{
	/* The kernel shows the memory of argv and, when that is used up, of the environment. */
	char *end = argv[0];
	for (int i = 0; i < argc; i++)
		if (argv[i] == end)
			end = argv[i] + strlen(argv[i]) + 1;
	size_t count = 0;
	while (environ[count])
		count++;
	char **copy = xcalloc(count + 1, sizeof(char *));
	/* What carries our mark must keep it readable in /proc. */
	bool is_marked_itself = getenv(PROC_STATE_MARK) != NULL;
	for (size_t i = 0; i < count; i++) {
		if (environ[i] == end && !is_marked_itself)
			end = environ[i] + strlen(environ[i]) + 1;
		copy[i] = xstrdup(environ[i]);
	}
	title_at = argv[0];
	title_size = (size_t)(end - argv[0]);
	environ = copy;
	/* What others read of the arguments later must not change with the title. */
	for (int i = 0; i < argc; i++)
		argv[i] = xstrdup(argv[i]);
}

void proc_title(const char *title)
{
	if (title_size < 2)
		return;
	memset(title_at, 0, title_size);
	strncpy(title_at, title, title_size - 1);
	const char *name = strncmp(title, "copiad: ", 8) == 0 ? "copiad" : title;
	(void)prctl(PR_SET_NAME, name, 0, 0, 0);
}

char *proc_node_mark(const char *state_dir, char ret[PROC_MARK_SIZE])
{
	struct stat st;
	if (stat(state_dir, &st) < 0)
		snprintf(ret, PROC_MARK_SIZE, "none");
	else
		snprintf(ret, PROC_MARK_SIZE, "%llx-%llx", (unsigned long long)st.st_dev,
			 (unsigned long long)st.st_ino);
	return ret;
}

/* The whole environment of a process, NUL behind each and at the end. False: gone or not ours. */
static bool environ_read(pid_t pid, struct str *ret)
{
	char path[64];
	snprintf(path, sizeof(path), "/proc/%d/environ", (int)pid);
	_cleanup_(close_p) int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	str_clear(ret);
	ssize_t n = 0;
	do {
		str_reserve(ret, 4096);
		n = read(fd, ret->at + ret->len, 4096);
		if (n > 0)
			ret->len += (size_t)n;
	} while (n > 0 && ret->len < ENVIRON_MAX);
	if (n < 0 || ret->len == 0)
		return false;
	str_add(ret, "", 1);
	return true;
}

static const char *environ_find(const struct str *all, const char *name)
{
	size_t name_len = strlen(name);
	for (size_t at = 0; at < all->len; at += strlen(all->at + at) + 1)
		if (strncmp(all->at + at, name, name_len) == 0 && all->at[at + name_len] == '=')
			return all->at + at + name_len + 1;
	return NULL;
}

bool proc_environ(pid_t pid, const char *name, char *buf, size_t size)
{
	_cleanup_(str_free) struct str all = { 0 };
	if (!environ_read(pid, &all))
		return false;
	const char *value = environ_find(&all, name);
	if (!value || strlen(value) >= size)
		return false;
	memcpy(buf, value, strlen(value) + 1);
	return true;
}

static bool is_marked(pid_t pid, const char *state_dir, const struct id *tasks, size_t count,
		      struct str *all)
{
	if (!environ_read(pid, all))
		return false;
	const char *state = environ_find(all, PROC_STATE_MARK);
	const char *node = environ_find(all, PROC_NODE_MARK);
	const char *task = environ_find(all, PROC_TASK_MARK);
	char mark[PROC_MARK_SIZE];
	if (!state || !node || !task || strcmp(state, state_dir) != 0 ||
	    strcmp(node, proc_node_mark(state_dir, mark)) != 0)
		return false;
	if (!tasks)
		return true;
	struct id id;
	if (!id_parse(task, &id))
		return false;
	for (size_t i = 0; i < count; i++)
		if (id_compare(&tasks[i], &id) == 0)
			return true;
	return false;
}

/* A zombie has no environment any more, so it is not found again: no need to wait for its parent.
 */
static bool kill_if_marked(pid_t pid, const char *state_dir, const struct id *tasks, size_t count,
			   struct str *all)
{
	/* Held by descriptor, so that the number cannot be another process' by the time. */
	_cleanup_(close_p) int fd = (int)syscall(SYS_pidfd_open, pid, 0);
	return fd >= 0 && is_marked(pid, state_dir, tasks, count, all) &&
	       syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0) == 0;
}

static int kill_pass(const char *state_dir, const struct id *tasks, size_t count, pid_t spare,
		     pid_t *ret_last, struct err *err)
{
	DIR *dir = opendir("/proc");
	if (!dir)
		return err_set(err, -errno, "read /proc: %s", strerror(errno));
	_cleanup_(str_free) struct str all = { 0 };
	int killed = 0;
	for (struct dirent *e; (e = readdir(dir));) {
		char *end;
		pid_t pid = (pid_t)strtol(e->d_name, &end, 10);
		if (*end || pid <= 1 || pid == getpid() || pid == spare)
			continue;
		if (kill_if_marked(pid, state_dir, tasks, count, &all)) {
			*ret_last = pid;
			killed++;
		}
	}
	closedir(dir);
	return killed;
}

int proc_kill_orphans(const char *state_dir, const struct id *tasks, size_t count)
{
	assert(tasks);
	char path[64];
	pid_t last = 0;
	snprintf(path, sizeof(path), "/proc/self/task/%d/children", (int)getpid());
	FILE *f = count > 0 ? fopen(path, "re") : NULL;
	if (!f) /* a kernel without CONFIG_PROC_CHILDREN */
		return count > 0 ? kill_pass(state_dir, tasks, count, 0, &last, NULL) : 0;
	_cleanup_(str_free) struct str all = { 0 };
	int killed = 0;
	for (int pid; fscanf(f, "%d", &pid) == 1;)
		killed += kill_if_marked((pid_t)pid, state_dir, tasks, count, &all);
	(void)fclose(f);
	return killed;
}

int kill_leftovers(const char *state_dir, pid_t spare, struct err *err)
{
	struct cgroups groups;
	cgroups_find(&groups, state_dir);
	int killed = 0, round = 0, rounds = LEFTOVER_WAIT_MS / ROUND_MS;
	pid_t last = 0;
	/* Until a pass finds nothing: what is killed may have forked meanwhile. */
	for (; round < rounds; round++) {
		int in_groups = cgroups_kill_all(&groups);
		int marked = kill_pass(state_dir, NULL, 0, spare, &last, err);
		if (marked < 0)
			killed = marked;
		if (marked < 0 || (marked == 0 && in_groups == 0))
			break;
		if (round == 0)
			killed = marked + in_groups;
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		/* There is no event for the end of somebody else's child; a short nap instead. */
		(void)poll(NULL, 0, ROUND_MS);
	}
	cgroups_remove(&groups);
	cgroups_close(&groups);
	if (round == rounds)
		return err_set(err, -ETIMEDOUT,
			       "process %d of %s does not die: it hangs in the kernel, often on a "
			       "file system that does not answer",
			       (int)last, state_dir);
	return killed;
}
