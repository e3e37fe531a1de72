/* SPDX-License-Identifier: Apache-2.0 */
#include "stopped.h"
#include "store.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/nsfs.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SPACES_DEEP_MAX = 33, /* the kernel's limit of nesting, and ours */ TURNS_MAX = 1000 };

/* The pid namespace `fd` (closed here) is `target` or below it. */
static bool is_below(int fd, ino_t target)
{
	struct stat st;
	bool found = false;
	for (int up = 0; fd >= 0 && up < SPACES_DEEP_MAX && !found; up++) {
		found = fstat(fd, &st) == 0 && st.st_ino == target;
		int parent = found ? -1 : ioctl(fd, NS_GET_PARENT);
		(void)close(fd);
		fd = parent;
	}
	if (fd >= 0)
		(void)close(fd);
	return found;
}

static int open_space(pid_t pid)
{
	char path[64];
	(void)snprintf(path, sizeof(path), "/proc/%d/ns/pid", (int)pid);
	return open(path, O_RDONLY | O_CLOEXEC);
}

/* Calls `each` for all processes; counts those for which it says true. */
static unsigned for_all(bool (*each)(pid_t pid, char state, void *arg), void *arg)
{
	unsigned count = 0;
	DIR *dir = opendir("/proc");
	struct dirent *e;
	while (dir && (e = readdir(dir))) {
		char state = 0;
		if (!isdigit((unsigned char)e->d_name[0]))
			continue;
		pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);
		(void)proc_start_ticks(pid, &state);
		count += state && each(pid, state, arg);
	}
	if (dir)
		(void)closedir(dir);
	return count;
}

struct wish {
	ino_t space;
	bool stop;
};

static bool change(pid_t pid, char state, void *arg)
{
	const struct wish *wish = arg;
	bool is_stopped = state == 'T' || state == 't';
	if (state == 'Z' || state == 'X' || is_stopped == wish->stop ||
	    !is_below(open_space(pid), wish->space))
		return false;
	return kill(pid, wish->stop ? SIGSTOP : SIGCONT) == 0;
}

int stopped_set(const struct proc *init, bool stop, struct err *err)
{
	struct stat st;
	int fd = open_space(init->pid);
	int r = fd < 0 || fstat(fd, &st) < 0 ? -errno : 0;
	if (fd >= 0)
		(void)close(fd);
	if (r < 0)
		return err_set(err, r, "look at process %d: %s", (int)init->pid, strerror(-r));
	struct wish wish = { .space = st.st_ino, .stop = stop };
	for (int turn = 0; turn < TURNS_MAX; turn++)
		if (for_all(change, &wish) == 0)
			return 0;
	return err_set(err, -EAGAIN, "its processes multiply faster than they can be stopped");
}

bool stopped_is(const struct proc *init)
{
	char state = 0;
	(void)proc_start_ticks(init->pid, &state);
	return state == 'T';
}

static bool nudge(pid_t pid, char state, void *arg)
{
	char path[64], own[4096], other[4096], text[512];
	(void)arg;
	if (state != 'Z')
		return false;
	(void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	FILE *f = fopen(path, "re");
	size_t len = f ? fread(text, 1, sizeof(text) - 1, f) : 0;
	if (f)
		(void)fclose(f);
	text[len] = '\0';
	const char *at = strrchr(text, ')');
	int parent = 0;
	if (!at || sscanf(at, ") Z %d", &parent) != 1 || parent <= 1)
		return false;
	char parent_state = 0;
	(void)proc_start_ticks(parent, &parent_state);
	(void)snprintf(path, sizeof(path), "/proc/%d/exe", parent);
	ssize_t here = readlink("/proc/self/exe", own, sizeof(own));
	ssize_t there = readlink(path, other, sizeof(other));
	if (parent_state != 'T' || here <= 0 || here != there || memcmp(own, other, (size_t)here))
		return false;
	return kill(parent, SIGCONT) == 0;
}

void stopped_continue(void)
{
	(void)for_all(nudge, NULL);
}
