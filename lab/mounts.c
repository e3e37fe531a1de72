/* SPDX-License-Identifier: Apache-2.0 */
#include "mounts.h"
#include "store.h"
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int mount_on(const char *what, const char *type, const char *where, unsigned long flags,
		    const char *options, struct err *err)
{
	if (mount(what, where, type, flags, options) == 0)
		return 0;
	return err_set(
	    err, -errno, "mount %s on %s: %s%s", type ? type : what, where, strerror(errno),
	    errno == EPERM ? " (inside a container that hides parts of /proc or /sys?)" : "");
}

/* Take a folder with all that is mounted in it, so that it can appear elsewhere. */
static int take(int dir_fd, const char *path)
{
	return open_tree(dir_fd, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_RECURSIVE);
}

static int put_back(int tree_fd, const char *where)
{
	return move_mount(tree_fd, "", AT_FDCWD, where, MOVE_MOUNT_F_EMPTY_PATH);
}

/* ---- hub ---- */

static int copy_entry(int old_fd, const char *dir, const struct dirent *e)
{
	char path[PATH_MAX], target[PATH_MAX];
	struct stat st;
	(void)snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
	if (fstatat(old_fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return 0; /* went away meanwhile */
	if (S_ISLNK(st.st_mode)) {
		ssize_t len = readlinkat(old_fd, e->d_name, target, sizeof(target) - 1);
		if (len < 0)
			return 0;
		target[len] = '\0';
		return symlink(target, path);
	}
	if (S_ISDIR(st.st_mode)) {
		if (mkdir(path, 0755) < 0)
			return -1;
	} else {
		int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		if (fd < 0)
			return -1;
		(void)close(fd);
	}
	int tree = take(old_fd, e->d_name);
	if (tree < 0)
		return -1;
	int r = put_back(tree, path);
	(void)close(tree);
	return r;
}

/* Replace a folder by one of ours that shows the same entries and can take new ones. */
static int make_room(const char *dir, struct err *err)
{
	int old_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *old = old_fd < 0 ? NULL : fdopendir(old_fd);
	if (!old) {
		int r = err_set(err, -errno, "open %s: %s", dir, strerror(errno));
		if (old_fd >= 0)
			(void)close(old_fd);
		return r;
	}
	int r = mount_on("copia-lab", "tmpfs", dir, MS_NOSUID | MS_NODEV, "mode=755", err);
	struct dirent *e;
	while (r == 0 && (e = readdir(old)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
		    copy_entry(old_fd, dir, e) < 0)
			r = err_set(err, -errno, "show %s/%s in the lab: %s", dir, e->d_name,
				    strerror(errno));
	(void)closedir(old);
	return r;
}

int mounts_hub(struct err *err)
{
	static const struct {
		const char *dir, *name;
		bool folder;
	} points[] = { { "/var/lib", "copia", true },
		       { "/etc", "hosts", false },
		       { "/etc", "hostname", false } };
	const char *roomy = "";
	int r = mount_on("", NULL, "/", MS_REC | MS_SLAVE, NULL, err);
	for (unsigned k = 0; r == 0 && k < ARRAY_LEN(points); k++) {
		char path[64];
		struct stat st;
		(void)snprintf(path, sizeof(path), "%s/%s", points[k].dir, points[k].name);
		if (stat(path, &st) == 0)
			continue;
		if (lstat(path, &st) == 0)
			return err_set(err, -ENOENT, "%s is a link to nowhere: remove it", path);
		if (strcmp(roomy, points[k].dir) != 0)
			r = make_room(points[k].dir, err);
		if (r < 0)
			return r;
		roomy = points[k].dir; /* from here on the folder is ours, not the machine's */
		int made = points[k].folder ? mkdir(path, 0755) : mknod(path, S_IFREG | 0644, 0);
		if (made < 0)
			r = err_set(err, -errno, "make %s: %s", path, strerror(errno));
	}
	return r;
}

/* ---- node ---- */

/* What must stay visible although a private file system covers it: program folders, mostly. */
struct covered {
	const char *path; /* borrowed */
	int tree_fd;
};

static void take_shares(const struct lab *lab, struct covered ret[LAB_SHARES_MAX])
{
	for (unsigned k = 0; k < LAB_SHARES_MAX; k++)
		ret[k] = (struct covered){
			.path = lab->shares[k],
			.tree_fd = lab->shares[k] ? take(AT_FDCWD, lab->shares[k]) : -1,
		};
}

static int give_shares(struct covered shares[LAB_SHARES_MAX], struct err *err)
{
	int r = 0;
	for (unsigned k = 0; k < LAB_SHARES_MAX; k++) {
		if (shares[k].tree_fd < 0)
			continue;
		if (r == 0 && access(shares[k].path, F_OK) < 0) {
			r = tree_make(shares[k].path, 0755, err);
			if (r == 0 && put_back(shares[k].tree_fd, shares[k].path) < 0)
				r = err_set(err, -errno, "show %s in the node: %s", shares[k].path,
					    strerror(errno));
		}
		(void)close(shares[k].tree_fd);
	}
	return r;
}

/* Mounts below /sys (bpf, debug, control groups…) that the node's own /sys would hide. */
enum { SYS_MOUNTS_MAX = 16 };

static unsigned take_sys(struct covered ret[SYS_MOUNTS_MAX], char paths[SYS_MOUNTS_MAX][256])
{
	char line[4096];
	unsigned count = 0;
	FILE *f = fopen("/proc/self/mountinfo", "re");
	while (f && count < SYS_MOUNTS_MAX && fgets(line, sizeof(line), f)) {
		char *at = paths[count];
		if (sscanf(line, "%*d %*d %*s %*s %255s", at) != 1 || strncmp(at, "/sys/", 5) != 0)
			continue;
		bool inside = false; /* of one that is taken already, with all in it */
		for (unsigned k = 0; k < count && !inside; k++)
			inside = strncmp(paths[k], at, strlen(paths[k])) == 0;
		if (inside)
			continue;
		ret[count] = (struct covered){ .path = at, .tree_fd = take(AT_FDCWD, at) };
		count += ret[count].tree_fd >= 0;
	}
	if (f)
		(void)fclose(f);
	return count;
}

/* The machine's layout, seen from the node's own groups. */
static int mount_groups(const struct groups *g, struct err *err)
{
	static const unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	int r = 0;
	if (g->count != 1 || strcmp(g->at[0].mount, "/sys/fs/cgroup") != 0)
		r = mount_on("cgroup", "tmpfs", "/sys/fs/cgroup", flags, "mode=755", err);
	for (unsigned k = 0; r == 0 && k < g->count; k++) {
		const struct group *one = &g->at[k];
		if (strncmp(one->mount, "/sys/fs/cgroup", 14) != 0)
			continue;
		r = tree_make(one->mount, 0755, err);
		if (r == 0)
			r = mount_on("cgroup", one->v2 ? "cgroup2" : "cgroup", one->mount, flags,
				     one->v2 ? NULL : one->options, err);
	}
	return r;
}

static int mount_sys(const struct groups *g, struct err *err)
{
	struct covered kept[SYS_MOUNTS_MAX];
	char paths[SYS_MOUNTS_MAX][256];
	unsigned count = take_sys(kept, paths);
	/* The machine's /sys with the machine's links does less harm than no node at all. */
	bool own = mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0;
	for (unsigned k = 0; k < count; k++) {
		bool groups = g->count && strncmp(kept[k].path, "/sys/fs/cgroup", 14) == 0;
		if (own && !groups)
			(void)put_back(kept[k].tree_fd, kept[k].path);
		(void)close(kept[k].tree_fd);
	}
	return g->count ? mount_groups(g, err) : 0;
}

static int bind_file(const struct lab *lab, const char *rest, const char *where, struct err *err)
{
	char path[PATH_MAX];
	return mount_on(store_path(lab, rest, path), NULL, where, MS_BIND, NULL, err);
}

static int mount_private(struct err *err)
{
	static const struct {
		const char *type, *where, *options;
		unsigned long flags;
		bool optional; /* the machine may not have the folder */
	} own[] = {
		{ "proc", "/proc", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, false },
		{ "tmpfs", "/tmp", "mode=1777", MS_NOSUID | MS_NODEV, false },
		{ "tmpfs", "/run", "mode=755", MS_NOSUID | MS_NODEV, false },
		{ "tmpfs", "/dev/shm", "mode=1777", MS_NOSUID | MS_NODEV, true },
		{ "mqueue", "/dev/mqueue", NULL, MS_NOSUID | MS_NODEV | MS_NOEXEC, true },
	};
	int r = 0;
	for (unsigned k = 0; r == 0 && k < ARRAY_LEN(own); k++)
		if (!own[k].optional || access(own[k].where, F_OK) == 0)
			r = mount_on(own[k].type, own[k].type, own[k].where, own[k].flags,
				     own[k].options, err);
	if (r == 0)
		r = tree_make("/run/copia", 0755, err);
	if (r == 0)
		r = tree_make("/run/lock", 01777, err);
	return r;
}

int mounts_node(const struct lab *lab, unsigned i, const struct groups *g, struct err *err)
{
	struct covered shares[LAB_SHARES_MAX];
	char rest[64];
	/* the masks of the folders here are part of what programs expect */
	mode_t mask = umask(0);
	(void)snprintf(rest, sizeof(rest), "nodes/n%u/lib", i);
	int r = bind_file(lab, rest, "/var/lib/copia", err);
	if (r == 0)
		r = bind_file(lab, "hosts", "/etc/hosts", err);
	(void)snprintf(rest, sizeof(rest), "nodes/n%u/hostname", i);
	if (r == 0)
		r = bind_file(lab, rest, "/etc/hostname", err);
	if (r < 0)
		return r;
	/* Nodes do not see each other's state. Before /tmp and others are covered, as the folder
	 * may be there. */
	r = mount_on("copia-lab", "tmpfs", lab->dir, MS_NOSUID | MS_NODEV, "mode=0,size=4k", err);
	if (r < 0)
		return r;
	take_shares(lab, shares);
	r = mount_private(err);
	if (r == 0)
		r = mount_sys(g, err);
	int shared = give_shares(shares, r == 0 ? err : NULL);
	(void)umask(mask);
	return r < 0 ? r : shared;
}
