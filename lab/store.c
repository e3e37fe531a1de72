/* SPDX-License-Identifier: Apache-2.0 */
#include "store.h"
#include "addr.h"
#include "base/units.h"
#include "tree.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_MAX_BYTES = 64 * 1024, BOOT_ID_LEN = 36, HELPERS_S = 10 };

/* ---- processes ---- */

uint64_t proc_start_ticks(pid_t pid, char *ret_state)
{
	char path[64], text[1024];
	(void)snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t len = read(fd, text, sizeof(text) - 1);
	(void)close(fd);
	if (len <= 0)
		return 0;
	text[len] = '\0';
	/* the name is in brackets and may itself hold brackets and blanks: count from the last */
	const char *at = strrchr(text, ')');
	if (!at || at[1] != ' ')
		return 0;
	char state = at[2];
	if (ret_state)
		*ret_state = state;
	if (state == 'Z' || state == 'X')
		return 0;
	for (int field = 2; field < 22 && at; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at + 1, NULL, 10) : 0;
}

bool proc_alive(const struct proc *proc)
{
	return proc->pid > 0 && proc_start_ticks(proc->pid, NULL) == proc->start_ticks;
}

static void boot_id(char buf[BOOT_ID_LEN + 1])
{
	memset(buf, 0, BOOT_ID_LEN + 1);
	int fd = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, buf, BOOT_ID_LEN) != BOOT_ID_LEN)
		(void)snprintf(buf, BOOT_ID_LEN + 1, "unknown");
	if (fd >= 0)
		(void)close(fd);
}

/* ---- small files ---- */

char *store_path(const struct lab *lab, const char *rest, char buf[4096])
{
	(void)snprintf(buf, 4096, "%s/%s", lab->dir, rest);
	return buf;
}

int store_get(struct lab *lab, const char *path, struct str *ret, struct err *err)
{
	str_clear(ret);
	int fd = openat(lab->dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 && errno == ENOENT)
		return 0;
	if (fd < 0)
		return err_set(err, -errno, "open %s/%s: %s", lab->dir, path, strerror(errno));
	char buf[4096];
	ssize_t len;
	while ((len = read(fd, buf, sizeof(buf))) > 0 && ret->len <= FILE_MAX_BYTES)
		str_add(ret, buf, (size_t)len);
	int failed = errno;
	(void)close(fd);
	if (len < 0)
		return err_set(err, -failed, "read %s/%s: %s", lab->dir, path, strerror(failed));
	if (ret->len > FILE_MAX_BYTES)
		return err_set(err, -EFBIG, "%s/%s is too large to be ours", lab->dir, path);
	return 0;
}

int store_put(struct lab *lab, const char *path, const char *text, struct err *err)
{
	char part[256];
	(void)snprintf(part, sizeof(part), "%s.new", path);
	int fd =
	    openat(lab->dir_fd, part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (fd < 0)
		return err_set(err, -errno, "create %s/%s: %s", lab->dir, part, strerror(errno));
	size_t len = strlen(text);
	ssize_t put = write(fd, text, len);
	int failed = put < 0 ? errno : ENOSPC;
	(void)close(fd);
	if (put != (ssize_t)len) {
		(void)unlinkat(lab->dir_fd, part, 0);
		return err_set(err, -failed, "write %s/%s: %s", lab->dir, part, strerror(failed));
	}
	if (renameat(lab->dir_fd, part, lab->dir_fd, path) < 0)
		return err_set(err, -errno, "rename %s/%s: %s", lab->dir, part, strerror(errno));
	return 0;
}

int store_put_proc(struct lab *lab, const char *path, const struct proc *proc, struct err *err)
{
	char boot[BOOT_ID_LEN + 1], line[128];
	boot_id(boot);
	(void)snprintf(line, sizeof(line), "%d %llu %s\n", (int)proc->pid,
		       (unsigned long long)proc->start_ticks, boot);
	return store_put(lab, path, line, err);
}

/* What is written down and still runs; anything else reads as "none". */
static int get_proc(struct lab *lab, const char *path, struct proc *ret, struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	*ret = (struct proc){ 0 };
	int r = store_get(lab, path, &text, err);
	if (r < 0 || !text.len)
		return r;
	int pid = 0;
	unsigned long long start = 0;
	char boot[BOOT_ID_LEN + 1], then[BOOT_ID_LEN + 1];
	if (sscanf(str_text(&text), "%d %llu %36s", &pid, &start, then) != 3)
		return 0; /* torn by a power failure of the machine: nothing of then is alive */
	boot_id(boot);
	struct proc proc = { .pid = pid, .start_ticks = start };
	if (strcmp(boot, then) == 0 && proc_alive(&proc))
		*ret = proc;
	return 0;
}

/* ---- the folder ---- */

static void forget(struct lab *lab)
{
	for (unsigned i = 0; i < LAB_SHARES_MAX; i++) {
		free(lab->shares[i]);
		lab->shares[i] = NULL;
	}
	lab->count = 0;
	lab->bare = false;
	lab->hub = (struct proc){ 0 };
	memset(lab->node, 0, sizeof(lab->node));
}

static int read_config(struct lab *lab, struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	int r = store_get(lab, "config", &text, err);
	if (r < 0)
		return r;
	unsigned shares = 0;
	char *rest = text.at, *line;
	while (rest && (line = strsep(&rest, "\n"))) {
		char *value = strchr(line, ' ');
		uint64_t number;
		if (!value)
			continue;
		*value++ = '\0';
		if (strcmp(line, "nodes") == 0) {
			r = parse_u64(value, 0, LAB_NODES_MAX, &number, err);
			if (r < 0)
				return err_wrap(err, r, "%s/config", lab->dir);
			lab->count = (unsigned)number;
		} else if (strcmp(line, "bare") == 0) {
			lab->bare = strcmp(value, "1") == 0;
		} else if (strcmp(line, "share") == 0 && shares < LAB_SHARES_MAX) {
			lab->shares[shares++] = xstrdup(value);
		}
	}
	return 0;
}

static int read_all(struct lab *lab, struct err *err)
{
	forget(lab);
	int r = read_config(lab, err);
	if (r == 0)
		r = get_proc(lab, "hub", &lab->hub, err);
	for (unsigned i = 1; r == 0 && i <= lab->count; i++) {
		char path[64];
		(void)snprintf(path, sizeof(path), "nodes/n%u/pid", i);
		r = get_proc(lab, path, &lab->node[i], err);
		if (!lab->hub.pid) /* cannot outlive the hub; may be on the way out */
			lab->node[i] = (struct proc){ 0 };
	}
	return r;
}

static int check_name(const char *name, struct err *err)
{
	size_t len = strlen(name);
	if (len && len <= LAB_NAME_MAX && name[0] != '-' &&
	    strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == len)
		return 0;
	return err_set(err, -EINVAL,
		       "lab name \"%.40s\": use 1 to %d of a-z, 0-9 and -, not - first", name,
		       LAB_NAME_MAX);
}

static int base_folder(char buf[PATH_MAX], struct err *err)
{
	const char *set = getenv("COPIA_LAB_DIR"), *home = getenv("HOME");
	const char *state = getenv("XDG_STATE_HOME");
	int len;
	if (set && *set) {
		if (set[0] != '/')
			return err_set(err, -EINVAL, "COPIA_LAB_DIR=%.200s: must start with /",
				       set);
		len = snprintf(buf, PATH_MAX, "%s", set);
	} else if (geteuid() == 0) {
		len = snprintf(buf, PATH_MAX, "/var/lib/copia-lab");
	} else if (state && state[0] == '/') {
		len = snprintf(buf, PATH_MAX, "%s/copia-lab", state);
	} else if (home && home[0] == '/') {
		len = snprintf(buf, PATH_MAX, "%s/.local/state/copia-lab", home);
	} else {
		return err_set(err, -ENOENT,
			       "no place for the lab's state: set HOME or COPIA_LAB_DIR");
	}
	if (len >= PATH_MAX - LAB_NAME_MAX - 64)
		return err_set(err, -ENAMETOOLONG, "the path of the lab's state is too long");
	return 0;
}

/* The real path, so that the name of the control groups does not depend on how one came here. The
 * folder itself may not exist yet. */
static char *real_folder(const char *base, const char *name)
{
	char real[PATH_MAX], *ret = NULL;
	const char *root = realpath(base, real) ? real : base;
	if (asprintf(&ret, "%s/%s", root, name) < 0)
		abort();
	return ret;
}

static void set_folder(struct lab *lab, const char *base)
{
	free(lab->dir);
	lab->dir = real_folder(base, lab->name);
	uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */
	for (const char *c = lab->dir; *c; c++)
		hash = (hash ^ (uint8_t)*c) * 0x100000001b3;
	(void)snprintf(lab->group, sizeof(lab->group), "copia-lab-%s-%08x", lab->name,
		       (unsigned)(hash ^ hash >> 32));
}

int store_open(struct lab *lab, const char *name, struct err *err)
{
	char base[PATH_MAX];
	*lab = (struct lab){ .dir_fd = -1, .lock_fd = -1 };
	int r = check_name(name, err);
	if (r == 0)
		r = base_folder(base, err);
	if (r < 0)
		return r;
	(void)snprintf(lab->name, sizeof(lab->name), "%s", name);
	lab->net = addr_lab(name);
	set_folder(lab, base);
	lab->dir_fd = open(lab->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lab->dir_fd < 0 && errno == ENOENT)
		return 0;
	if (lab->dir_fd < 0)
		return err_set(err, -errno, "open %s: %s", lab->dir, strerror(errno));
	return read_all(lab, err);
}

static int make_folder(struct lab *lab, struct err *err)
{
	char base[PATH_MAX];
	int r = base_folder(base, err);
	if (r == 0)
		r = tree_make(base, 0755, err);
	if (r < 0)
		return r;
	set_folder(lab, base);
	if (mkdir(lab->dir, 0711) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make %s: %s", lab->dir, strerror(errno));
	if (lab->dir_fd >= 0)
		(void)close(lab->dir_fd);
	lab->dir_fd = open(lab->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (lab->dir_fd < 0)
		return err_set(err, -errno, "open %s: %s", lab->dir, strerror(errno));
	return 0;
}

static void on_alarm(int number)
{
	(void)number; /* interrupts flock() */
}

/* The one who holds the lock is written in it. When that process is dead, its helpers are about to
 * follow it, and the lock is worth waiting for. Returns errno, 0 when it is ours. */
static int take_lock(int fd, char who[32])
{
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return 0;
	if (errno != EWOULDBLOCK)
		return errno;
	ssize_t len = pread(fd, who, 31, 0);
	who[len > 0 ? strcspn(who, "\n") : 0] = '\0';
	struct proc holder = { 0 };
	unsigned long long start;
	if (sscanf(who, "%d %llu", &holder.pid, &start) != 2)
		return EWOULDBLOCK;
	holder.start_ticks = start;
	who[strcspn(who, " ")] = '\0';
	if (proc_alive(&holder))
		return EWOULDBLOCK;
	struct sigaction action = { .sa_handler = on_alarm }, before;
	(void)sigaction(SIGALRM, &action, &before);
	(void)alarm(HELPERS_S);
	int failed = flock(fd, LOCK_EX) < 0 ? errno : 0;
	(void)alarm(0);
	(void)sigaction(SIGALRM, &before, NULL);
	return failed == EINTR ? EWOULDBLOCK : failed;
}

/* > 0: the folder went away while we took the lock, try again. */
static int try_lock(struct lab *lab, bool create, struct err *err)
{
	int fd = openat(lab->dir_fd, "lock", O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_CREAT, 0644);
	if (fd < 0 && errno == ENOENT)
		return create ? 1 : err_set(err, -ENOENT, "there is no lab %s", lab->name);
	if (fd < 0)
		return err_set(err, -errno, "open %s/lock: %s", lab->dir, strerror(errno));
	char who[32] = "";
	int failed = take_lock(fd, who);
	if (failed) {
		(void)close(fd);
		if (failed != EWOULDBLOCK)
			return err_set(err, -failed, "lock %s/lock: %s", lab->dir,
				       strerror(failed));
		return err_set(err, -EBUSY,
			       "lab %s is being changed by another command (pid %s): wait for it",
			       lab->name, who[0] ? who : "unknown");
	}
	char path[4096], mine[64];
	struct stat here, there;
	if (fstat(fd, &here) < 0 || stat(store_path(lab, "lock", path), &there) < 0 ||
	    here.st_ino != there.st_ino || here.st_dev != there.st_dev) {
		(void)close(fd);
		return 1;
	}
	int len = snprintf(mine, sizeof(mine), "%d %llu\n", (int)getpid(),
			   (unsigned long long)proc_start_ticks(getpid(), NULL));
	if (ftruncate(fd, 0) < 0 || pwrite(fd, mine, (size_t)len, 0) != len) {
		failed = errno;
		(void)close(fd);
		return err_set(err, -failed, "write %s/lock: %s", lab->dir, strerror(failed));
	}
	lab->lock_fd = fd;
	return 0;
}

int store_lock(struct lab *lab, bool create, struct err *err)
{
	int r = 1;
	for (int turn = 0; r > 0 && turn < 100; turn++) {
		if (create) {
			r = make_folder(lab, err);
			if (r < 0)
				return r;
		} else if (lab->dir_fd < 0) {
			return err_set(err, -ENOENT, "there is no lab %s", lab->name);
		}
		r = try_lock(lab, create, err);
		if (r > 0 && !create)
			return err_set(err, -ENOENT, "there is no lab %s any more", lab->name);
	}
	if (r > 0)
		return err_set(err, -EBUSY, "lab %s is made and removed all the time", lab->name);
	return r < 0 ? r : read_all(lab, err);
}

void store_close(struct lab *lab)
{
	forget(lab);
	free(take_ptr(lab->dir));
	if (lab->lock_fd >= 0)
		(void)close(lab->lock_fd);
	if (lab->dir_fd >= 0)
		(void)close(lab->dir_fd);
	lab->dir_fd = lab->lock_fd = -1;
}

int store_save(struct lab *lab, struct err *err)
{
	_cleanup_(str_free) struct str text = { 0 };
	str_printf(&text, "nodes %u\nbare %d\n", lab->count, lab->bare);
	for (unsigned i = 0; lab->shares[i]; i++)
		str_printf(&text, "share %s\n", lab->shares[i]);
	return store_put(lab, "config", str_text(&text), err);
}

int store_make_node(struct lab *lab, unsigned i, struct err *err)
{
	static const struct {
		const char *rest;
		mode_t mode;
	} dirs[] = { { "", 0755 }, { "/lib", 0700 } };
	char path[64], name[16];
	if (mkdirat(lab->dir_fd, "nodes", 0755) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make %s/nodes: %s", lab->dir, strerror(errno));
	for (unsigned d = 0; d < ARRAY_LEN(dirs); d++) {
		(void)snprintf(path, sizeof(path), "nodes/n%u%s", i, dirs[d].rest);
		if (mkdirat(lab->dir_fd, path, dirs[d].mode) < 0 && errno != EEXIST)
			return err_set(err, -errno, "make %s/%s: %s", lab->dir, path,
				       strerror(errno));
	}
	(void)snprintf(path, sizeof(path), "nodes/n%u/hostname", i);
	(void)snprintf(name, sizeof(name), "n%u\n", i);
	return store_put(lab, path, name, err);
}

int store_remove(struct lab *lab, struct err *err)
{
	int r = tree_empty(lab->dir_fd, "lock", err);
	if (r < 0)
		return err_wrap(err, r, "remove %s", lab->dir);
	/* the lock goes last: whoever waits for it sees that its folder is gone */
	if (unlinkat(lab->dir_fd, "lock", 0) < 0 && errno != ENOENT)
		return err_set(err, -errno, "remove %s/lock: %s", lab->dir, strerror(errno));
	if (rmdir(lab->dir) < 0 && errno != ENOENT)
		return err_set(err, -errno, "remove %s: %s", lab->dir, strerror(errno));
	char *slash = strrchr(lab->dir, '/');
	*slash = '\0';
	(void)rmdir(lab->dir); /* the folder of all labs, if this was the last one */
	*slash = '/';
	return 0;
}
