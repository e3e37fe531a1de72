/* SPDX-License-Identifier: Apache-2.0 */
#include "tree.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DEPTH_MAX = 256 };

int tree_make(const char *path, mode_t mode, struct err *err)
{
	char part[PATH_MAX];
	if (snprintf(part, sizeof(part), "%s", path) >= (int)sizeof(part))
		return err_set(err, -ENAMETOOLONG, "make %.200s…: too long", path);
	for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(part, 0755) < 0 && errno != EEXIST)
			return err_set(err, -errno, "make %s: %s", part, strerror(errno));
		*slash = '/';
	}
	if (mkdir(part, mode) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make %s: %s", part, strerror(errno));
	return 0;
}

static int empty(int dir_fd, const char *keep, dev_t dev, int depth, struct err *err);

static int remove_entry(int dir_fd, const char *name, dev_t dev, int depth, struct err *err)
{
	if (unlinkat(dir_fd, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return err_set(err, -errno, "%s: %s", name, strerror(errno));
	int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0 && errno == EACCES && fchmodat(dir_fd, name, 0700, 0) == 0)
		fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, -errno, "%s: %s", name, strerror(errno));
	int r = empty(fd, NULL, dev, depth + 1, err);
	(void)close(fd);
	if (r < 0)
		return err_wrap(err, r, "%s", name);
	if (unlinkat(dir_fd, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		return err_set(err, -errno, "%s: %s", name, strerror(errno));
	return 0;
}

static int empty(int dir_fd, const char *keep, dev_t dev, int depth, struct err *err)
{
	struct stat st;
	if (fstat(dir_fd, &st) < 0)
		return err_set(err, -errno, "%s", strerror(errno));
	if (st.st_dev != dev)
		return err_set(err, -EXDEV, "something is mounted there");
	if (depth > DEPTH_MAX)
		return err_set(err, -ELOOP, "deeper than %d folders", DEPTH_MAX);
	(void)fchmod(dir_fd, 0700); /* a program may have left folders without the right to write */
	int copy = fcntl(dir_fd, F_DUPFD_CLOEXEC, 3);
	DIR *dir = copy < 0 ? NULL : fdopendir(copy);
	if (!dir) {
		if (copy >= 0)
			(void)close(copy);
		return err_set(err, -errno, "%s", strerror(errno));
	}
	int r = 0;
	struct dirent *e;
	rewinddir(dir);
	while (r == 0 && (e = readdir(dir)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 &&
		    (!keep || strcmp(e->d_name, keep) != 0))
			r = remove_entry(dir_fd, e->d_name, dev, depth, err);
	(void)closedir(dir);
	return r;
}

int tree_empty(int dir_fd, const char *keep, struct err *err)
{
	struct stat st;
	if (fstat(dir_fd, &st) < 0)
		return err_set(err, -errno, "%s", strerror(errno));
	return empty(dir_fd, keep, st.st_dev, 0, err);
}

static void rmdirs_in(int dir_fd, int depth)
{
	int copy = fcntl(dir_fd, F_DUPFD_CLOEXEC, 3);
	DIR *dir = copy < 0 || depth > DEPTH_MAX ? NULL : fdopendir(copy);
	if (!dir) {
		if (copy >= 0)
			(void)close(copy);
		return;
	}
	struct dirent *e;
	while ((e = readdir(dir))) {
		if (e->d_type != DT_DIR || e->d_name[0] == '.')
			continue;
		int fd = openat(dir_fd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (fd < 0)
			continue;
		rmdirs_in(fd, depth + 1);
		(void)close(fd);
		(void)unlinkat(dir_fd, e->d_name, AT_REMOVEDIR);
	}
	(void)closedir(dir);
}

int tree_rmdirs(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	rmdirs_in(fd, 0);
	(void)close(fd);
	return rmdir(path) == 0 || errno == ENOENT ? 0 : -EBUSY;
}
