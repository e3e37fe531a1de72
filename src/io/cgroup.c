/* SPDX-License-Identifier: Apache-2.0 */
/* Where the groups are. What is done with a task's groups is in cgroup-task.c. */
#include "io/cgroup.h"

#include "io/cgroup-file.h"
#include "io/fdpass.h"
#include "io/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LINE_SIZE = 1024, PATH_SIZE = 512 };

static const struct tree_kind {
	const char *name;       /* in STATE/cgroups */
	const char *controller; /* v1; NULL = the v2 tree */
} trees[CGROUP_TREE_COUNT] = {
	[CGROUP_UNIFIED] = { "unified", NULL },   [CGROUP_FREEZER] = { "freezer", "freezer" },
	[CGROUP_MEMORY] = { "memory", "memory" }, [CGROUP_CPU] = { "cpu", "cpu" },
	[CGROUP_PIDS] = { "pids", "pids" },
};

static void detail_add(struct cgroups *g, const char *fmt, ...) _printf_(2, 3);
static void detail_add(struct cgroups *g, const char *fmt, ...)
{
	size_t len = strlen(g->detail);
	if (len > 0 && len + 2 < sizeof(g->detail)) {
		memcpy(g->detail + len, "; ", 3);
		len += 2;
	}
	va_list args;
	va_start(args, fmt);
	(void)vsnprintf(g->detail + len, sizeof(g->detail) - len, fmt, args);
	va_end(args);
}

static bool word_in(const char *list, const char *word, const char *separators)
{
	size_t len = strlen(word);
	while (*list) {
		size_t n = strcspn(list, separators);
		if (n == len && memcmp(list, word, n) == 0)
			return true;
		list += n + (list[n] ? 1 : 0);
	}
	return false;
}

/* Mount point of a tree. In /proc/self/mountinfo the part behind " - " is: type, source, options
 * (which for v1 name the controllers). The last match wins: it is mounted over the earlier ones. */
static bool tree_mount(enum cgroup_tree tree, char *ret, size_t size)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	if (!f)
		return false;
	bool found = false;
	char line[LINE_SIZE], point[PATH_SIZE], type[32], options[256];
	const char *controller = trees[tree].controller;
	while (fgets(line, sizeof(line), f)) {
		const char *tail = strstr(line, " - ");
		if (!tail || sscanf(line, "%*s %*s %*s %*s %511s", point) != 1 ||
		    sscanf(tail, " - %31s %*s %255s", type, options) != 2)
			continue;
		bool is = controller
			      ? strcmp(type, "cgroup") == 0 && word_in(options, controller, ",\n")
			      : strcmp(type, "cgroup2") == 0;
		if (is && strlen(point) < size) {
			memcpy(ret, point, strlen(point) + 1);
			found = true;
		}
	}
	(void)fclose(f);
	return found;
}

/* Path of our own group inside a tree: "/…". */
static bool tree_own(enum cgroup_tree tree, char *ret, size_t size)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	if (!f)
		return false;
	bool found = false;
	char line[LINE_SIZE];
	while (!found && fgets(line, sizeof(line), f)) {
		line[strcspn(line, "\n")] = '\0';
		char *names = strchr(line, ':');
		char *path = names ? strchr(names + 1, ':') : NULL;
		if (!path)
			continue;
		*path++ = '\0';
		names++;
		const char *controller = trees[tree].controller;
		found = controller ? word_in(names, controller, ",") : names[0] == '\0';
		if (found && strlen(path) < size)
			memcpy(ret, path, strlen(path) + 1);
	}
	(void)fclose(f);
	return found;
}

/* FNV-1a: a short name; a collision would need two state folders in one parent group. */
static uint64_t hash_text(const char *text)
{
	uint64_t h = 0xcbf29ce484222325;
	for (; *text; text++)
		h = (h ^ (uint8_t)*text) * 0x100000001b3;
	return h;
}

static void take_folder(struct cgroups *g, enum cgroup_tree tree, const char *path)
{
	g->tree[tree] = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	snprintf(g->path[tree], sizeof(g->path[tree]), "%s", path);
}

/* Let groups below `dir_fd` have these controllers; each by itself, for one may be missing. */
static void hand_down(int dir_fd)
{
	static const char *const wanted[] = { "+memory", "+cpu", "+pids" };
	for (size_t i = 0; i < ARRAY_LEN(wanted); i++)
		(void)cgroup_file_write(dir_fd, "cgroup.subtree_control", wanted[i]);
}

/* A v2 group that is not the root hands controllers down only while it has no process itself. */
static void vacate(const char *own_path, int own_fd)
{
	char list[256], path[PATH_SIZE + 16];
	if (cgroup_file_read(own_fd, "cgroup.controllers", list, sizeof(list)) <= 1 ||
	    faccessat(own_fd, "cgroup.events", F_OK, 0) < 0)
		return;
	snprintf(path, sizeof(path), "%s/copiad", own_path);
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return;
	_cleanup_(close_p) int fd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd >= 0)
		(void)cgroup_file_write(fd, "cgroup.procs", "0");
}

static void look_at_v2(struct cgroups *g)
{
	char list[256] = "";
	int fd = g->tree[CGROUP_UNIFIED];
	if (fd < 0)
		return;
	(void)cgroup_file_read(fd, "cgroup.subtree_control", list, sizeof(list));
	g->v2_memory = word_in(list, "memory", " \n");
	g->v2_cpu = word_in(list, "cpu", " \n");
	g->v2_pids = word_in(list, "pids", " \n");
	g->has_kill = faccessat(fd, "cgroup.kill", F_OK, 0) == 0;
}

static bool can_join(const char *path)
{
	char file[PATH_SIZE + 16];
	snprintf(file, sizeof(file), "%s/cgroup.procs", path);
	return faccessat(AT_FDCWD, file, W_OK, AT_EACCESS) == 0;
}

static void open_tree(struct cgroups *g, enum cgroup_tree tree, const char *name)
{
	char point[PATH_SIZE / 2], own[PATH_SIZE / 2], parent[PATH_SIZE], path[PATH_SIZE + 32];
	if (!tree_mount(tree, point, sizeof(point)) || !tree_own(tree, own, sizeof(own))) {
		if (tree == CGROUP_UNIFIED)
			detail_add(g, "no cgroup v2 tree is mounted");
		return;
	}
	snprintf(parent, sizeof(parent), "%s%s", point, strcmp(own, "/") == 0 ? "" : own);
	/* A daemon started by another one of ours, or again, in the group it moved to. */
	size_t len = strlen(parent);
	if (tree == CGROUP_UNIFIED && len > 7 && strcmp(parent + len - 7, "/copiad") == 0)
		parent[len - 7] = '\0';
	snprintf(path, sizeof(path), "%s/%s", parent, name);
	if (strlen(path) >= PATH_SIZE)
		return;
	_cleanup_(close_p) int own_fd = open(parent, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (tree == CGROUP_UNIFIED && own_fd >= 0 && access(parent, W_OK) == 0) {
		vacate(parent, own_fd);
		hand_down(own_fd);
	}
	if (mkdir(path, 0755) < 0 && errno != EEXIST) {
		detail_add(g, "%s: %s", parent, strerror(errno));
		return;
	}
	/* To put a process into a v2 group one must be allowed to write in the common ancestor. */
	if (tree == CGROUP_UNIFIED && !can_join(parent)) {
		detail_add(g, "%s/cgroup.procs is not writable (no delegation)", parent);
		(void)rmdir(path);
		return;
	}
	take_folder(g, tree, path);
	if (tree == CGROUP_UNIFIED)
		hand_down(g->tree[tree]);
}

static void reset(struct cgroups *g)
{
	*g = (struct cgroups){ 0 };
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		g->tree[i] = -1;
}

static void finish(struct cgroups *g)
{
	look_at_v2(g);
	g->kind = g->tree[CGROUP_UNIFIED] >= 0   ? CGROUP_V2
		  : g->tree[CGROUP_FREEZER] >= 0 ? CGROUP_V1
						 : CGROUP_NONE;
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		if (g->tree[i] >= 0)
			detail_add(g, "%s %s", trees[i].name, g->path[i]);
	if (g->tree[CGROUP_UNIFIED] >= 0)
		detail_add(g, "v2 controllers:%s%s%s%s", g->v2_memory ? " memory" : "",
			   g->v2_cpu ? " cpu" : "", g->v2_pids ? " pids" : "",
			   g->v2_memory || g->v2_cpu || g->v2_pids ? "" : " none");
}

static void note_write(const struct cgroups *g, const char *state_dir)
{
	char path[PATH_SIZE];
	snprintf(path, sizeof(path), "%s/cgroups", state_dir);
	FILE *f = fopen(path, "we");
	if (!f)
		return;
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		if (g->tree[i] >= 0)
			fprintf(f, "%s %s\n", trees[i].name, g->path[i]);
	(void)fclose(f);
}

void cgroups_open(struct cgroups *g, const char *state_dir)
{
	char name[32], mark[PROC_MARK_SIZE];
	reset(g);
	/* By what the folder is and not by its path: the nodes of a lab all call theirs the same.
	 */
	snprintf(name, sizeof(name), "copia-%016llx",
		 (unsigned long long)hash_text(proc_node_mark(state_dir, mark)));
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		open_tree(g, (enum cgroup_tree)i, name);
	finish(g);
	note_write(g, state_dir);
}

void cgroups_find(struct cgroups *g, const char *state_dir)
{
	char line[LINE_SIZE], name[32], path[PATH_SIZE];
	reset(g);
	snprintf(path, sizeof(path), "%s/cgroups", state_dir);
	FILE *f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f)) {
		/* Nothing but a folder of ours is ever touched, whatever the file says. */
		if (sscanf(line, "%31s %511s", name, path) != 2 || !strstr(path, "/copia-"))
			continue;
		for (int i = 0; i < CGROUP_TREE_COUNT; i++)
			if (strcmp(name, trees[i].name) == 0 && g->tree[i] < 0)
				take_folder(g, (enum cgroup_tree)i, path);
	}
	if (f)
		(void)fclose(f);
	finish(g);
}

void cgroups_close(struct cgroups *g)
{
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		close_p(&g->tree[i]);
}

void cgroups_remove(struct cgroups *g)
{
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		if (g->tree[i] >= 0)
			(void)rmdir(g->path[i]);
}
