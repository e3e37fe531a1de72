/* SPDX-License-Identifier: Apache-2.0 */
#include "io/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

static void wipe(struct str *s)
{
	if (s->at)
		explicit_bzero(s->at, s->cap);
	str_free(s);
}

int file_read(const char *path, size_t max, struct str *ret, struct err *err)
{
	_cleanup_(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return err_set(err, -errno, "open %s: %s", path, strerror(errno));
	/* Reserved at once: growing would leave copies of a key in freed memory. */
	struct stat st;
	if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size >= 0 &&
	    (uint64_t)st.st_size <= max)
		str_reserve(ret, (size_t)st.st_size + 1);
	char part[4096];
	int r = 0;
	for (;;) {
		ssize_t got = read(fd, part, sizeof(part));
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			r = err_set(err, -errno, "read %s: %s", path, strerror(errno));
		if (got <= 0)
			break;
		if ((size_t)got > max - ret->len) {
			r = err_set(err, -EFBIG, "read %s: it has more than %zu bytes", path, max);
			break;
		}
		str_add(ret, part, (size_t)got);
	}
	explicit_bzero(part, sizeof(part));
	if (r < 0)
		wipe(ret);
	return r;
}

static int write_all(int fd, const char *at, size_t len)
{
	while (len) {
		ssize_t done = write(fd, at, len);
		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return -errno;
		at += done;
		len -= (size_t)done;
	}
	return 0;
}

static int explain(struct err *err, int code, const char *path, const char *doing, size_t len)
{
	if (code == -ENOSPC || code == -EDQUOT)
		return err_set(err, code,
			       "%s %s: %s; %zu bytes are needed: free some space and try again, "
			       "the old file is unchanged",
			       doing, path, strerror(-code), len);
	return err_set(err, code, "%s %s: %s", doing, path, strerror(-code));
}

/* The folder's entry must survive power loss as well as the file's bytes. */
static int sync_folder(const char *path)
{
	const char *slash = strrchr(path, '/');
	_cleanup_(free_p) char *folder = !slash          ? xstrdup(".")
					 : slash == path ? xstrdup("/")
							 : xstrndup(path, (size_t)(slash - path));
	_cleanup_(close_fd) int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return fsync(fd) < 0 ? -errno : 0;
}

int file_write_atomic(const char *path, const void *bytes, size_t len, mode_t mode, struct err *err)
{
	_cleanup_(str_free) struct str temp = { 0 };
	str_printf(&temp, "%s.XXXXXX", path);
	_cleanup_(close_fd) int fd = mkostemp(temp.at, O_CLOEXEC); /* 0600 */
	if (fd < 0)
		return explain(err, -errno, path, "create a file next to", len);

	const char *doing = "write";
	int r = write_all(fd, bytes, len);
	if (!r && fchmod(fd, mode) < 0)
		r = -errno;
	if (!r && fsync(fd) < 0) {
		doing = "sync";
		r = -errno;
	}
	if (!r && rename(temp.at, path) < 0) {
		doing = "replace";
		r = -errno;
	}
	if (r < 0) {
		(void)unlink(temp.at);
		return explain(err, r, path, doing, len);
	}
	r = sync_folder(path);
	return r < 0 ? explain(err, r, path, "sync the folder of", len) : 0;
}
