/* SPDX-License-Identifier: Apache-2.0 */
#include "io/cgroup.h"

#include "io/cgroup-file.h"
#include "io/fdpass.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NEST_MAX = 8, KILL_ROUNDS = 16 };

ssize_t cgroup_file_read(int dir_fd, const char *name, char *buf, size_t size)
{
	_cleanup_(close_p) int fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t n = read(fd, buf, size - 1);
	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return n;
}

int cgroup_file_write(int dir_fd, const char *name, const char *text)
{
	_cleanup_(close_p) int fd = openat(dir_fd, name, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		return -errno;
	return 0;
}

static int group_open(const struct cgroups *g, enum cgroup_tree tree, const struct id *task)
{
	char name[ID_TEXT];
	if (g->tree[tree] < 0)
		return -1;
	return openat(g->tree[tree], id_show(task, name), O_PATH | O_DIRECTORY | O_CLOEXEC);
}

/* One kind of limit: which file holds it in either version. */
struct bound {
	const char *what;
	uint64_t value; /* 0 = not asked for */
	bool in_v2;
	const char *v2_file, *v1_file;
	enum cgroup_tree v1_tree;
	uint64_t v1_value;
};

static bool set_bound(const struct cgroup *c, const struct bound *b)
{
	char text[32];
	if (b->in_v2 && c->fd[CGROUP_UNIFIED] >= 0) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)b->value);
		if (cgroup_file_write(c->fd[CGROUP_UNIFIED], b->v2_file, text) == 0)
			return true;
	}
	if (c->fd[b->v1_tree] < 0)
		return false;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)b->v1_value);
	return cgroup_file_write(c->fd[b->v1_tree], b->v1_file, text) == 0;
}

static int make_in(struct cgroups *g, enum cgroup_tree tree, const char *name, struct cgroup *c)
{
	if (mkdirat(g->tree[tree], name, 0755) < 0 && errno != EEXIST)
		return -errno;
	c->fd[tree] = openat(g->tree[tree], name, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (c->fd[tree] < 0)
		return -errno;
	/* "tasks" and not "cgroup.procs": a single thread that moves itself needs no lock of all
	 * processes of the machine, which costs milliseconds. */
	if (tree != CGROUP_UNIFIED)
		c->join_fd[tree] = openat(c->fd[tree], "tasks", O_WRONLY | O_CLOEXEC);
	return 0;
}

void cgroup_close(struct cgroup *c)
{
	for (int i = 0; i < CGROUP_TREE_COUNT; i++) {
		close_p(&c->fd[i]);
		close_p(&c->join_fd[i]);
	}
}

int cgroup_make(struct cgroups *g, const struct id *task, const struct cgroup_limits *limits,
		struct cgroup *ret, struct err *err)
{
	char name[ID_TEXT];
	id_show(task, name);
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		ret->fd[i] = ret->join_fd[i] = -1;
	const struct bound bounds[] = {
		{ "memory", limits->memory_bytes, g->v2_memory, "memory.max",
		  "memory.limit_in_bytes", CGROUP_MEMORY, limits->memory_bytes },
		{ "cpu weight", limits->cpu_weight, g->v2_cpu, "cpu.weight", "cpu.shares",
		  CGROUP_CPU, MAX(limits->cpu_weight * 1024ULL / 100, 2ULL) },
		{ "pids", limits->pids, g->v2_pids, "pids.max", "pids.max", CGROUP_PIDS,
		  limits->pids },
	};
	bool want[CGROUP_TREE_COUNT] = {
		[CGROUP_UNIFIED] = true, [CGROUP_FREEZER] = g->kind == CGROUP_V1
	};
	for (size_t i = 0; i < ARRAY_LEN(bounds); i++)
		if (bounds[i].value && !bounds[i].in_v2)
			want[bounds[i].v1_tree] = true;
	for (int i = 0; i < CGROUP_TREE_COUNT; i++) {
		int r = want[i] && g->tree[i] >= 0 ? make_in(g, (enum cgroup_tree)i, name, ret) : 0;
		if (r < 0) {
			cgroup_close(ret);
			(void)cgroup_remove(g, task);
			return err_set(err, r, "make the task's group in %s: %s", g->path[i],
				       strerror(-r));
		}
	}
	/* The whole task goes when one of its processes would have to. */
	if (limits->memory_bytes && ret->fd[CGROUP_UNIFIED] >= 0 && g->v2_memory)
		(void)cgroup_file_write(ret->fd[CGROUP_UNIFIED], "memory.oom.group", "1");
	int lacking = 0;
	for (size_t i = 0; i < ARRAY_LEN(bounds); i++)
		if (bounds[i].value && !set_bound(ret, &bounds[i]) && !lacking++)
			(void)err_set(err, 1, "this node cannot limit %s of a task: %s",
				      bounds[i].what, g->detail);
	return lacking > 0 ? 1 : 0;
}

/* Signal what cgroup.procs lists, once. */
static int signal_listed(int fd, int signal)
{
	char buf[4096];
	_cleanup_(close_p) int list = openat(fd, "cgroup.procs", O_RDONLY | O_CLOEXEC);
	if (list < 0)
		return 0;
	int count = 0;
	pid_t pid = 0;
	ssize_t n;
	while ((n = read(list, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < n; i++) {
			if (buf[i] >= '0' && buf[i] <= '9') {
				pid = pid * 10 + (buf[i] - '0');
				continue;
			}
			if (pid > 0 && kill(pid, signal) == 0)
				count++;
			pid = 0;
		}
	return count;
}

static bool is_populated(int fd)
{
	char text[128];
	return cgroup_file_read(fd, "cgroup.events", text, sizeof(text)) > 0 &&
	       strstr(text, "populated 1") != NULL;
}

static int signal_v2(const struct cgroups *g, int fd, int signal)
{
	if (signal != SIGKILL || !g->has_kill)
		return signal_listed(fd, signal);
	if (!is_populated(fd))
		return 0;
	/* Reaches processes in groups that the task made below its own, too. */
	return cgroup_file_write(fd, "cgroup.kill", "1") == 0 ? 1 : signal_listed(fd, signal);
}

/* Frozen, nobody can fork while we go through the list. */
static int kill_v1(int fd)
{
	(void)cgroup_file_write(fd, "freezer.state", "FROZEN");
	int count = signal_listed(fd, SIGKILL);
	(void)cgroup_file_write(fd, "freezer.state", "THAWED");
	return count;
}

int cgroup_signal(struct cgroups *g, const struct id *task, int signal)
{
	_cleanup_(close_p) int v2 = group_open(g, CGROUP_UNIFIED, task);
	if (v2 >= 0)
		return signal_v2(g, v2, signal);
	_cleanup_(close_p) int v1 = group_open(g, CGROUP_FREEZER, task);
	if (v1 < 0)
		return 0;
	return signal == SIGKILL ? kill_v1(v1) : signal_listed(v1, signal);
}

/* Groups that the task made inside its own go first; deeper than NEST_MAX nobody nests. */
static int remove_nested(int parent_fd, const char *name, int depth)
{
	if (unlinkat(parent_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT)
		return 0;
	if (depth >= NEST_MAX)
		return -EBUSY;
	int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	if (!dir) {
		close_p(&fd);
		return -EBUSY;
	}
	for (struct dirent *e; (e = readdir(dir));)
		if (e->d_type == DT_DIR && e->d_name[0] != '.')
			(void)remove_nested(fd, e->d_name, depth + 1);
	closedir(dir);
	return unlinkat(parent_fd, name, AT_REMOVEDIR) == 0 || errno == ENOENT ? 0 : -EBUSY;
}

int cgroup_remove(struct cgroups *g, const struct id *task)
{
	char name[ID_TEXT];
	int result = 0;
	id_show(task, name);
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		if (g->tree[i] >= 0 && remove_nested(g->tree[i], name, 0) < 0)
			result = -EBUSY;
	return result;
}

static bool counts_kill(int fd, const char *file)
{
	char text[512];
	if (fd < 0 || cgroup_file_read(fd, file, text, sizeof(text)) <= 0)
		return false;
	const char *at = strstr(text, "oom_kill ");
	return at && at[9] != '0';
}

bool cgroup_out_of_memory(struct cgroups *g, const struct id *task)
{
	_cleanup_(close_p) int v2 = group_open(g, CGROUP_UNIFIED, task);
	_cleanup_(close_p) int v1 = group_open(g, CGROUP_MEMORY, task);
	return counts_kill(v2, "memory.events") || counts_kill(v1, "memory.oom_control");
}

int cgroups_kill_all(struct cgroups *g)
{
	enum cgroup_tree tree = g->tree[CGROUP_UNIFIED] >= 0 ? CGROUP_UNIFIED : CGROUP_FREEZER;
	int killed = 0;
	struct id id;
	int fd =
	    g->tree[tree] < 0 ? -1 : openat(g->tree[tree], ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *dir = fd >= 0 ? fdopendir(fd) : NULL;
	if (!dir) {
		close_p(&fd);
		return 0;
	}
	for (struct dirent *e; (e = readdir(dir));) {
		if (!id_parse(e->d_name, &id))
			continue;
		killed += cgroup_signal(g, &id, SIGKILL);
		(void)cgroup_remove(g, &id);
	}
	closedir(dir);
	return killed;
}
