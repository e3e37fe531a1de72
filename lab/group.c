/* SPDX-License-Identifier: Apache-2.0 */
#include "group.h"
#include "store.h"
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FREEZE_MS = 10000, TEXT = GROUP_TEXT + 64 };

/* ---- files of a group ---- */

static int put(const char *path, const char *file, const char *text)
{
	char name[TEXT];
	(void)snprintf(name, sizeof(name), "%s/%s", path, file);
	int fd = open(name, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int r = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	(void)close(fd);
	return r;
}

static int get(const char *path, const char *file, char *buf, size_t size)
{
	char name[TEXT];
	(void)snprintf(name, sizeof(name), "%s/%s", path, file);
	int fd = open(name, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ssize_t len = read(fd, buf, size - 1);
	(void)close(fd);
	if (len < 0)
		return -EIO;
	buf[len] = '\0';
	return 0;
}

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

static const char *node_path(const struct group *g, unsigned i, char buf[TEXT])
{
	(void)snprintf(buf, TEXT, "%s/n%u", g->path, i);
	return buf;
}

/* A new v1 cpuset takes nobody in before it has these two from its parent. */
static void copy_cpuset(const char *path)
{
	static const char *const files[] = { "cpuset.cpus", "cpuset.mems" };
	char parent[TEXT], value[1024];
	(void)snprintf(parent, sizeof(parent), "%s/..", path);
	for (unsigned f = 0; f < ARRAY_LEN(files); f++)
		if (get(parent, files[f], value, sizeof(value)) == 0)
			(void)put(path, files[f], value);
}

/* v2: let the groups below use all controllers that this one has. One by one: each may be refused
 * for a reason of its own. */
static void hand_down(const char *path)
{
	char have[512], word[64];
	if (get(path, "cgroup.controllers", have, sizeof(have)) < 0)
		return;
	char *rest = have, *name;
	while ((name = strsep(&rest, " \n")))
		if (*name) {
			(void)snprintf(word, sizeof(word), "+%s", name);
			(void)put(path, "cgroup.subtree_control", word);
		}
}

static int make_group(const struct group *g, const char *path)
{
	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		return -errno;
	if (!g->v2 && strstr(g->options, "cpuset"))
		copy_cpuset(path);
	return 0;
}

/* ---- which hierarchies there are ---- */

/* The group that this process is in, in the hierarchy with these options; "" when unknown. */
static void own_group(const struct group *g, char buf[GROUP_TEXT])
{
	char line[1024];
	buf[0] = '\0';
	FILE *f = fopen("/proc/self/cgroup", "re");
	while (f && fgets(line, sizeof(line), f)) {
		char *controllers = strchr(line, ':');
		char *path = controllers ? strchr(controllers + 1, ':') : NULL;
		if (!path)
			continue;
		*controllers++ = '\0';
		*path++ = '\0';
		path[strcspn(path, "\n")] = '\0';
		if (g->v2 ? strcmp(line, "0") == 0 : strcmp(controllers, g->options) == 0)
			(void)snprintf(buf, GROUP_TEXT, "%s", strcmp(path, "/") == 0 ? "" : path);
	}
	if (f)
		(void)fclose(f);
}

/* One line of mountinfo: false when it is no cgroup mount of ours to use. */
static bool read_mount(const char *line, struct group *ret)
{
	char root[GROUP_TEXT], type[32], options[256];
	const char *dash = strstr(line, " - ");
	if (!dash || sscanf(line, "%*d %*d %*s %511s %511s", root, ret->mount) != 2 ||
	    sscanf(dash, " - %31s %*s %255s", type, options) != 2)
		return false;
	ret->v2 = strcmp(type, "cgroup2") == 0;
	if ((!ret->v2 && strcmp(type, "cgroup") != 0) || strcmp(root, "/") != 0 ||
	    strchr(ret->mount, '\\') || strncmp(options, "ro", 2) == 0)
		return false;
	ret->options[0] = '\0';
	char *rest = options, *word;
	while (!ret->v2 && (word = strsep(&rest, ","))) {
		static const char *const not_ours[] = { "rw", "xattr", "clone_children",
							"noprefix" };
		bool skip = strncmp(word, "release_agent", 13) == 0;
		for (unsigned k = 0; k < ARRAY_LEN(not_ours); k++)
			skip |= strcmp(word, not_ours[k]) == 0;
		size_t used = strlen(ret->options);
		if (!skip && used + strlen(word) + 2 < sizeof(ret->options))
			(void)snprintf(ret->options + used, sizeof(ret->options) - used, "%s%s",
				       used ? "," : "", word);
	}
	return true;
}

static void find_mounts(struct groups *ret)
{
	char line[4096];
	ret->count = 0;
	FILE *f = fopen("/proc/self/mountinfo", "re");
	while (f && ret->count < GROUP_MAX && fgets(line, sizeof(line), f)) {
		struct group *g = &ret->at[ret->count];
		bool known = !read_mount(line, g) || !exists(g->mount);
		for (unsigned k = 0; k < ret->count && !known; k++)
			known =
			    ret->at[k].v2 == g->v2 && strcmp(ret->at[k].options, g->options) == 0;
		ret->count += !known;
	}
	if (f)
		(void)fclose(f);
}

/* Root makes a top-level group in v2, because only there the lab can have controllers: a group
 * with processes in it, as that of a login session is, hands none down. Otherwise below the
 * caller's own group, which is also the only place where an ordinary user may have the right. */
static int place(const struct lab *lab, struct group *g)
{
	char own[GROUP_TEXT];
	own_group(g, own);
	if (g->v2 && geteuid() == 0)
		own[0] = '\0';
	int len = snprintf(g->path, sizeof(g->path), "%s%s/%s", g->mount, own, lab->group);
	if (len >= (int)sizeof(g->path))
		return -ENAMETOOLONG;
	char parent[TEXT];
	(void)snprintf(parent, sizeof(parent), "%s%s", g->mount, own);
	return access(parent, W_OK) < 0 ? -errno : 0;
}

int groups_make(struct lab *lab, struct groups *ret, struct err *err)
{
	struct groups all;
	_cleanup_(str_free) struct str text = { 0 };
	find_mounts(&all);
	ret->count = 0;
	for (unsigned k = 0; k < all.count; k++) {
		struct group *g = &all.at[k];
		if (place(lab, g) < 0)
			continue;
		str_printf(&text, "%s %s %s %s\n", g->v2 ? "v2" : "v1", g->v2 ? "-" : g->options,
			   g->mount, g->path);
		ret->at[ret->count++] = *g;
	}
	int r = store_put(lab, "groups", str_text(&text), err);
	if (r < 0)
		return r;
	for (unsigned k = 0; k < ret->count; k++) {
		struct group *g = &ret->at[k];
		if (make_group(g, g->path) == 0 && g->v2)
			hand_down(g->path);
	}
	return 0;
}

int groups_load(struct lab *lab, struct groups *ret, struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	ret->count = 0;
	int r = store_get(lab, "groups", &text, err);
	char *rest = text.at, *line;
	while (r == 0 && rest && (line = strsep(&rest, "\n")) && ret->count < GROUP_MAX) {
		struct group *g = &ret->at[ret->count];
		char version[8];
		if (sscanf(line, "%7s %63s %511s %511s", version, g->options, g->mount, g->path) !=
		    4)
			continue;
		g->v2 = strcmp(version, "v2") == 0;
		const char *end = strrchr(g->path, '/');
		if (end && strcmp(end + 1, lab->group) == 0) /* never touch another's group */
			ret->count++;
	}
	return r;
}

/* ---- going in ---- */

void groups_enter_new(struct groups *g, unsigned i)
{
	unsigned kept = 0;
	char path[TEXT];
	for (unsigned k = 0; k < g->count; k++) {
		node_path(&g->at[k], i, path);
		if (make_group(&g->at[k], path) == 0 && put(path, "cgroup.procs", "0") == 0)
			g->at[kept++] = g->at[k];
	}
	g->count = kept;
	if (unshare(CLONE_NEWCGROUP) < 0)
		g->count = 0;
	for (unsigned k = 0; k < g->count; k++) {
		if (!g->at[k].v2)
			continue;
		char leaf[TEXT + 8];
		(void)snprintf(leaf, sizeof(leaf), "%s/init", node_path(&g->at[k], i, path));
		if (mkdir(leaf, 0755) < 0 && errno != EEXIST)
			continue;
		if (put(leaf, "cgroup.procs", "0") == 0)
			hand_down(path);
	}
}

void groups_open(const struct groups *g, unsigned i, int ret_fds[GROUP_MAX + 1])
{
	unsigned count = 0;
	for (unsigned k = 0; k < g->count; k++) {
		char path[TEXT], procs[TEXT + 32];
		node_path(&g->at[k], i, path);
		(void)snprintf(procs, sizeof(procs), "%s%s/cgroup.procs", path,
			       g->at[k].v2 ? "/init" : "");
		int fd = open(procs, O_WRONLY | O_CLOEXEC);
		if (fd >= 0)
			ret_fds[count++] = fd;
	}
	ret_fds[count] = -1;
}

void groups_join(const int fds[GROUP_MAX + 1])
{
	for (; *fds >= 0; fds++)
		if (write(*fds, "0", 1) < 0)
			continue; /* then the process stays in its own group of this hierarchy */
}

/* ---- freezing ---- */

static const struct group *freezer_of(const struct groups *g, unsigned i, char path[TEXT])
{
	for (int v2 = 1; v2 >= 0; v2--)
		for (unsigned k = 0; k < g->count; k++) {
			char file[TEXT + 32];
			if (g->at[k].v2 != v2)
				continue;
			(void)snprintf(file, sizeof(file), "%s/%s", node_path(&g->at[k], i, path),
				       v2 ? "cgroup.freeze" : "freezer.state");
			if (access(file, W_OK) == 0)
				return &g->at[k];
		}
	return NULL;
}

static bool is_frozen(const struct group *g, const char *path)
{
	char text[256];
	if (get(path, g->v2 ? "cgroup.events" : "freezer.state", text, sizeof(text)) < 0)
		return false;
	return g->v2 ? strstr(text, "frozen 1") != NULL : strncmp(text, "FROZEN", 6) == 0;
}

int groups_frozen(const struct groups *g, unsigned i)
{
	char path[TEXT];
	const struct group *freezer = freezer_of(g, i, path);
	return freezer ? is_frozen(freezer, path) : -1;
}

int groups_freeze(const struct groups *g, unsigned i, bool freeze, struct err *err)
{
	char path[TEXT], events[TEXT + 32];
	const struct group *freezer = freezer_of(g, i, path);
	if (!freezer)
		return 1;
	(void)snprintf(events, sizeof(events), "%s/cgroup.events", path);
	int fd = freezer->v2 ? open(events, O_RDONLY | O_CLOEXEC) : -1;
	for (int waited_ms = 0; waited_ms < FREEZE_MS;) {
		/* v1 wants to be told again while a process of the group was forking */
		int r = freezer->v2 ? put(path, "cgroup.freeze", freeze ? "1" : "0")
				    : put(path, "freezer.state", freeze ? "FROZEN" : "THAWED");
		if (r < 0) {
			if (fd >= 0)
				(void)close(fd);
			return err_set(err, r, "write to the freezer %s: %s", path, strerror(-r));
		}
		if (is_frozen(freezer, path) == freeze) {
			if (fd >= 0)
				(void)close(fd);
			return 0;
		}
		/* v2 reports the change of cgroup.events; v1 offers no event, so look again */
		char skip[256];
		if (fd >= 0 && pread(fd, skip, sizeof(skip), 0) < 0)
			continue;
		int step_ms = fd >= 0 ? 500 : 2;
		(void)poll(&(struct pollfd){ .fd = fd, .events = POLLPRI }, 1, step_ms);
		waited_ms += step_ms;
	}
	if (fd >= 0)
		(void)close(fd);
	return err_set(err, -ETIMEDOUT, "node n%u: a process does not %s (in %s)", i,
		       freeze ? "freeze" : "thaw", path);
}

/* ---- removing ---- */

/* A process that has ended leaves its group a moment later than its pidfd says. */
static int remove_group(const char *path)
{
	int r = tree_rmdirs(path);
	for (int turn = 0; r == -EBUSY && turn < 1000; turn++) {
		(void)poll(NULL, 0, 2);
		r = tree_rmdirs(path);
	}
	return r;
}

int groups_remove_node(const struct groups *g, unsigned i, struct err *err)
{
	char path[TEXT];
	for (unsigned k = 0; k < g->count; k++) {
		int r = remove_group(node_path(&g->at[k], i, path));
		if (r < 0)
			return err_set(err, r, "remove control group %s: %s", path, strerror(-r));
	}
	return 0;
}

int groups_remove(const struct groups *g, struct err *err)
{
	for (unsigned k = 0; k < g->count; k++) {
		int r = remove_group(g->at[k].path);
		if (r < 0)
			return err_set(err, r, "remove control group %s: %s", g->at[k].path,
				       strerror(-r));
	}
	return 0;
}
