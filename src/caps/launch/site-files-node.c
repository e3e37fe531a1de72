/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/site-files-node.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/fs.h>

enum { PIECE = 256 * 1024, DEPTH_MAX = 64, CACHE_FILES_MAX = 100000 };

void file_wish_init(struct file_wish *w, const Copia__LaunchFile *f)
{
	*w = (struct file_wish){ .size = f->hash.len == 32 ? f->size_bytes : FILE_NO_HASH,
				 .mode = f->mode & 0777,
				 .name = xstrdup(f->name),
				 .path = xstrdup(f->path) };
	if (f->hash.len == 32)
		memcpy(w->hash, f->hash.data, 32);
	/* The name comes from another machine and becomes a part of paths. */
	if (!*w->name || strchr(w->name, '/') || !strcmp(w->name, ".") || !strcmp(w->name, "..")) {
		free(w->name);
		w->name = xstrdup("file");
	}
}

void file_wish_free(struct file_wish *w)
{
	free(w->name);
	free(w->path);
	str_free(&w->cached);
}

/* ---------------------------------------------------------------- becoming the user */

/* The raw calls change this thread alone; those of libc would change the whole process. */
static void become(const struct file_user *u)
{
	if (!u || !u->change)
		return;
	(void)syscall(SYS_setgroups, u->group_count, u->groups);
	(void)setfsgid(u->gid);
	(void)setfsuid(u->uid);
}

static void become_ourselves(const struct file_user *u)
{
	if (!u || !u->change)
		return;
	int saved = errno;
	(void)setfsuid(geteuid());
	(void)setfsgid(getegid());
	(void)syscall(SYS_setgroups, 0, NULL);
	errno = saved;
}

static int open_as(const struct file_user *u, const char *path, int flags, mode_t mode)
{
	become(u);
	int fd = open(path, flags | O_CLOEXEC, mode);
	become_ourselves(u);
	return fd;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

bool files_folder_usable(const struct file_user *u, const char *path)
{
	_cleanup_(str_free) struct str inside = { 0 };
	str_printf(&inside, "%s/.", path);
	int fd = open_as(u, str_text(&inside), O_PATH | O_DIRECTORY, 0);
	if (fd < 0)
		return false;
	(void)close(fd);
	return true;
}

/* ---------------------------------------------------------------- comparing */

int files_hash(const struct file_user *u, const char *path, uint8_t hash[32], uint64_t *ret_size)
{
	_cleanup_(close_fd) int fd = open_as(u, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	crypto_generichash_state state;
	(void)crypto_generichash_init(&state, NULL, 0, 32);
	_cleanup_(free_p) uint8_t *buf = xmalloc(PIECE);
	ssize_t n;
	*ret_size = 0;
	while ((n = read(fd, buf, PIECE)) > 0) {
		(void)crypto_generichash_update(&state, buf, (size_t)n);
		*ret_size += (uint64_t)n;
	}
	(void)crypto_generichash_final(&state, hash, 32);
	return n < 0 ? -errno : 0;
}

static int size_as(const struct file_user *u, const char *path, uint64_t *ret, mode_t *ret_mode)
{
	struct stat st;
	become(u);
	int r = stat(path, &st);
	become_ourselves(u);
	if (r < 0)
		return -errno;
	*ret = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : UINT64_MAX;
	*ret_mode = st.st_mode & 0777;
	return 0;
}

bool files_same(const struct file_user *u, const struct file_wish *w, const char *folder)
{
	_cleanup_(str_free) struct str path = { 0 };
	if (folder)
		str_printf(&path, "%s/%s", folder, w->name);
	else
		str_puts(&path, w->path);
	uint64_t size = 0;
	mode_t mode = 0;
	uint8_t hash[32];
	if (size_as(u, str_text(&path), &size, &mode) < 0 || size != w->size)
		return false;
	if (folder && mode != w->mode)
		return false;
	return files_hash(u, str_text(&path), hash, &size) == 0 && size == w->size &&
	       !memcmp(hash, w->hash, 32);
}

/* ---------------------------------------------------------------- copying */

static int copy_bytes(int from, int to)
{
	if (ioctl(to, FICLONE, from) == 0)
		return 0;
	for (;;) {
		ssize_t n = copy_file_range(from, NULL, to, NULL, 1 << 30, 0);
		if (n == 0)
			return 0;
		if (n < 0 &&
		    (errno == EXDEV || errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP))
			break;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
	_cleanup_(free_p) uint8_t *buf = xmalloc(PIECE);
	for (;;) {
		ssize_t n = read(from, buf, PIECE);
		if (n <= 0)
			return n < 0 ? -errno : 0;
		for (ssize_t at = 0; at < n;) {
			ssize_t done = write(to, buf + at, (size_t)(n - at));
			if (done < 0 && errno != EINTR)
				return -errno;
			at += done > 0 ? done : 0;
		}
	}
}

static int make_folder(const char *path, mode_t mode, const struct file_user *u, struct err *err)
{
	if (mkdir(path, mode) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make folder %s: %s", path, strerror(errno));
	if (u && u->change && chown(path, u->uid, u->gid) < 0)
		return err_set(err, -errno, "give folder %s to its user: %s", path,
			       strerror(errno));
	return 0;
}

/* The private folder of a job is the daemon's alone while it is filled, so that nobody can put a
 * link in our way. */
static int job_folder(const char *folder, struct err *err)
{
	int r = make_folder(folder, 0700, NULL, err);
	if (r == 0 && chmod(folder, 0700) < 0)
		r = err_set(err, -errno, "make folder %s: %s", folder, strerror(errno));
	return r;
}

int files_give(const struct file_user *u, const char *folder, struct err *err)
{
	if (u->change && chown(folder, u->uid, u->gid) < 0 && errno != ENOENT)
		return err_set(err, -errno, "give folder %s to its user: %s", folder,
			       strerror(errno));
	return 0;
}

int files_link_program(const struct file_user *u, const struct file_wish *w, const char *folder,
		       int index, struct err *err)
{
	_cleanup_(str_free) struct str path = { 0 };
	int r = job_folder(folder, err);
	str_printf(&path, "%s/bin", folder);
	if (r == 0)
		r = make_folder(str_text(&path), 0755, NULL, err);
	str_printf(&path, "/%d", index);
	if (r == 0)
		r = make_folder(str_text(&path), 0755, NULL, err);
	if (r < 0)
		return r;
	(void)u;
	str_printf(&path, "/%s", w->name);
	if (link(str_text(&w->cached), str_text(&path)) == 0 || errno == EEXIST)
		return 0;
	return err_set(err, -errno, "put the program at %s: %s", str_text(&path), strerror(errno));
}

static int copy_to_path(const struct file_user *from_user, const char *from,
			const struct file_user *to_user, const char *to, mode_t mode,
			struct err *err)
{
	_cleanup_(close_fd) int in = open_as(from_user, from, O_RDONLY | O_NONBLOCK, 0);
	if (in < 0)
		return err_set(err, -errno, "open %s: %s", from, strerror(errno));
	_cleanup_(close_fd) int out =
	    open_as(to_user, to, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode | 0200);
	if (out < 0)
		return err_set(err, -errno, "create %s: %s", to, strerror(errno));
	int r = copy_bytes(in, out);
	if (r == 0 && fchmod(out, mode) < 0)
		r = -errno;
	if (r < 0) {
		(void)unlink(to);
		return err_set(err, r, "write %s: %s", to, strerror(-r));
	}
	return 0;
}

int files_copy_staged(const struct file_user *u, const struct file_wish *w, const char *folder,
		      bool in_place, struct err *err)
{
	_cleanup_(str_free) struct str path = { 0 };
	int r = job_folder(folder, err);
	str_printf(&path, "%s/files", folder);
	if (r == 0)
		r = make_folder(str_text(&path), 0700, u, err);
	if (r < 0)
		return r;
	str_printf(&path, "/%s", w->name);
	r = copy_to_path(in_place ? u : NULL, in_place ? w->path : str_text(&w->cached), NULL,
			 str_text(&path), w->mode, err);
	if (r == 0 && u->change && lchown(str_text(&path), u->uid, u->gid) < 0)
		r = err_set(err, -errno, "give %s to its user: %s", str_text(&path),
			    strerror(errno));
	return r;
}

int files_copy_to(const struct file_user *u, const struct file_wish *w, const char *folder,
		  struct err *err)
{
	_cleanup_(str_free) struct str path = { 0 }, temp = { 0 };
	str_printf(&path, "%s/%s", folder, w->name);
	str_printf(&temp, "%s/.%.200s.%d.%ld.copia", folder, w->name, (int)getpid(),
		   syscall(SYS_gettid));
	become(u);
	(void)unlink(str_text(&temp));
	become_ourselves(u);
	int r = copy_to_path(NULL, str_text(&w->cached), u, str_text(&temp), w->mode, err);
	if (r < 0)
		return r;
	become(u);
	r = rename(str_text(&temp), str_text(&path)) < 0 ? -errno : 0;
	if (r < 0)
		(void)unlink(str_text(&temp));
	become_ourselves(u);
	return r < 0 ? err_set(err, r, "write %s: %s", str_text(&path), strerror(-r)) : 0;
}

/* ---------------------------------------------------------------- removing */

static void remove_below(int folder, int depth)
{
	DIR *d = fdopendir(folder);
	if (!d) {
		(void)close(folder);
		return;
	}
	struct dirent *e;
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		if (unlinkat(dirfd(d), e->d_name, 0) == 0 || errno != EISDIR)
			continue;
		int inner =
		    openat(dirfd(d), e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
		if (inner >= 0 && depth < DEPTH_MAX)
			remove_below(inner, depth + 1);
		else if (inner >= 0)
			(void)close(inner);
		(void)unlinkat(dirfd(d), e->d_name, AT_REMOVEDIR);
	}
	(void)closedir(d);
}

void files_remove_tree(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd >= 0)
		remove_below(fd, 0);
	(void)rmdir(path);
}

struct cached {
	char name[80];
	uint64_t bytes;
	int64_t used_s;
};

static int cached_compare(const void *a, const void *b)
{
	const struct cached *x = a, *y = b;
	return x->used_s < y->used_s ? -1 : x->used_s > y->used_s;
}

void files_trim(const char *folder, uint64_t most)
{
	DIR *d = opendir(folder);
	if (!d)
		return;
	struct cached *at = NULL;
	size_t count = 0;
	uint64_t total = 0;
	struct dirent *e;
	while ((e = readdir(d)) && count < CACHE_FILES_MAX) {
		struct stat st;
		if (strlen(e->d_name) != 64 ||
		    fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			continue;
		at = xrealloc(at, (count + 1) * sizeof(*at));
		memcpy(at[count].name, e->d_name, 65);
		at[count].bytes = (uint64_t)st.st_size;
		at[count++].used_s = st.st_mtim.tv_sec;
		total += (uint64_t)st.st_size;
	}
	if (total > most)
		qsort(at, count, sizeof(*at), cached_compare);
	for (size_t i = 0; i < count && total > most; i++) {
		(void)unlinkat(dirfd(d), at[i].name, 0);
		total -= at[i].bytes;
	}
	free(at);
	(void)closedir(d);
}
