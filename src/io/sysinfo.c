/* SPDX-License-Identifier: Apache-2.0 */
#include "io/sysinfo.h"

#include "base/str.h"
#include "base/units.h"

#include <dirent.h>
#include <fcntl.h>
#include <hwloc.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <utmpx.h>

/* ---------------------------------------------------------------- small files of /proc and /sys */

static size_t read_text(const char *path, char *buf, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, buf, size - 1);
	if (fd >= 0)
		close(fd);
	buf[got > 0 ? got : 0] = '\0';
	return got > 0 ? (size_t)got : 0;
}

/* Value of "KEY: 123 kB" or "KEY 123" at the beginning of a line. */
static uint64_t value_of(const char *text, const char *key)
{
	size_t len = strlen(key);
	for (const char *line = text; line && *line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, key, len))
			return strtoull(line + len, NULL, 10);
	}
	return 0;
}

/* ---------------------------------------------------------------- facts */

static char *system_name(void)
{
	char text[4096];
	(void)read_text("/etc/os-release", text, sizeof(text));
	char *at = strstr(text, "PRETTY_NAME=\"");
	if (!at)
		return xstrdup("Linux");
	at += strlen("PRETTY_NAME=\"");
	return xstrndup(at, strcspn(at, "\"\n"));
}

static char *cpu_model(void)
{
	char text[8192];
	(void)read_text("/proc/cpuinfo", text, sizeof(text));
	char *at = strstr(text, "model name");
	at = at ? strchr(at, ':') : NULL;
	return at ? xstrndup(at + 2, strcspn(at + 2, "\n")) : xstrdup("");
}

static void fill_topology(Copia__NodeFacts *f)
{
	struct str text = { 0 };
	char size[32];
	hwloc_topology_t t;
	long online = sysconf(_SC_NPROCESSORS_ONLN);
	f->cores = f->threads = online > 0 ? (uint32_t)online : 1;
	if (hwloc_topology_init(&t) == 0) {
		if (hwloc_topology_load(t) == 0) {
			int packages = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_PACKAGE);
			int nodes = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_NUMANODE);
			int cores = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_CORE);
			int threads = hwloc_get_nbobjs_by_type(t, HWLOC_OBJ_PU);
			if (threads > 0)
				f->threads = (uint32_t)threads;
			f->cores = cores > 0 ? (uint32_t)cores : f->threads;
			str_printf(&text, "%d package%s, %d NUMA node%s, ", packages,
				   packages == 1 ? "" : "s", nodes, nodes == 1 ? "" : "s");
		}
		hwloc_topology_destroy(t);
	}
	str_printf(&text, "%u core%s, %u thread%s, %s", f->cores, f->cores == 1 ? "" : "s",
		   f->threads, f->threads == 1 ? "" : "s", show_size(f->memory_bytes, size));
	f->topology = str_take(&text);
}

static bool exists(const char *path)
{
	return access(path, F_OK) == 0;
}

static bool has_cgroup2(void)
{
	return exists("/sys/fs/cgroup/cgroup.controllers") ||
	       exists("/sys/fs/cgroup/unified/cgroup.procs");
}

static bool has_userns(void)
{
	char text[32];
	if (read_text("/proc/sys/kernel/unprivileged_userns_clone", text, sizeof(text)) &&
	    text[0] == '0')
		return false;
	return read_text("/proc/sys/user/max_user_namespaces", text, sizeof(text)) &&
	       strtoull(text, NULL, 10) > 0;
}

static bool has_cgroup1_freezer(void)
{
	return exists("/sys/fs/cgroup/freezer/cgroup.procs");
}

static bool has_bpf(void)
{
	return exists("/sys/kernel/btf/vmlinux");
}

static bool has_fuse(void)
{
	return exists("/dev/fuse");
}

static bool has_watchdog(void)
{
	return exists("/dev/watchdog");
}

static bool has_userfaultfd(void)
{
	return exists("/dev/userfaultfd") || exists("/proc/sys/vm/unprivileged_userfaultfd");
}

static void fill_features(Copia__NodeFacts *f)
{
	static const struct {
		const char *name;
		bool (*test)(void);
	} features[] = {
		{ "bpf", has_bpf },
		{ "cgroup1-freezer", has_cgroup1_freezer },
		{ "cgroup2", has_cgroup2 },
		{ "fuse", has_fuse },
		{ "userfaultfd", has_userfaultfd },
		{ "userns", has_userns },
		{ "watchdog", has_watchdog },
	};
	f->features = xcalloc(ARRAY_LEN(features) + 1, sizeof(*f->features));
	for (size_t i = 0; i < ARRAY_LEN(features); i++)
		if (features[i].test())
			f->features[f->n_features++] = xstrdup(features[i].name);
	if (f->root)
		f->features[f->n_features++] = xstrdup("root");
}

Copia__NodeFacts *sysinfo_facts(void)
{
	Copia__NodeFacts *f = xmalloc(sizeof(*f));
	copia__node_facts__init(f);
	struct utsname u;
	if (uname(&u) == 0) {
		f->kernel = xstrdup(u.release);
		f->architecture = xstrdup(u.machine);
	}
	char meminfo[4096];
	(void)read_text("/proc/meminfo", meminfo, sizeof(meminfo));
	f->memory_bytes = value_of(meminfo, "MemTotal:") * 1024;
	f->system = system_name();
	f->cpu_model = cpu_model();
	f->version = xstrdup(COPIA_VERSION);
	f->root = geteuid() == 0;
	f->uid = geteuid();
	fill_topology(f);
	fill_features(f);
	return f;
}

/* ---------------------------------------------------------------- load */

void sysinfo_load_init(struct sysinfo_load *l, unsigned threads)
{
	*l = (struct sysinfo_load){ .threads = threads ? threads : 1 };
}

/* Tasks that run or wait for a processor now, without ourselves. */
static double run_queue(unsigned threads)
{
	char text[128];
	unsigned running = 0;
	(void)read_text("/proc/loadavg", text, sizeof(text));
	(void)sscanf(text, "%*s %*s %*s %u/", &running);
	return running > 1 ? (double)(running - 1) / threads : 0;
}

static void cpu_counters(uint64_t *ret_busy, uint64_t *ret_total)
{
	char text[4096];
	unsigned long long v[8] = { 0 };
	(void)read_text("/proc/stat", text, sizeof(text));
	(void)sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2],
		     &v[3], &v[4], &v[5], &v[6], &v[7]);
	*ret_total = 0;
	for (int i = 0; i < 8; i++)
		*ret_total += v[i];
	*ret_busy = *ret_total - v[3] - v[4]; /* all but idle and waiting for disks */
}

static double rate(uint64_t now, uint64_t before, double seconds)
{
	return seconds > 0 && now >= before ? (double)(now - before) / seconds : 0;
}

static uint32_t count_sessions(void)
{
	uint32_t count = 0;
	setutxent();
	for (const struct utmpx *u; (u = getutxent());)
		count += u->ut_type == USER_PROCESS;
	endutxent();
	return count;
}

/* Minutes since somebody typed: the terminals' access times tell. */
static uint32_t idle_minutes(void)
{
	time_t newest = 0, now = time(NULL);
	DIR *d = opendir("/dev/pts");
	for (const struct dirent *e; d && (e = readdir(d));) {
		struct stat s;
		if (fstatat(dirfd(d), e->d_name, &s, 0) == 0 && S_ISCHR(s.st_mode) &&
		    strcmp(e->d_name, "ptmx"))
			newest = MAX(newest, s.st_atime);
	}
	if (d)
		closedir(d);
	return newest && now > newest ? (uint32_t)((now - newest) / 60) : newest ? 0 : 1440;
}

static double average(double old, double now, double seconds, double over)
{
	double keep = exp(-seconds / over);
	return old * keep + now * (1 - keep);
}

void sysinfo_load_read(struct sysinfo_load *l, uint64_t now_ms, Copia__NodeLoad *ret)
{
	char text[8192];
	double seconds = l->last_ms ? (double)(now_ms - l->last_ms) / 1000.0 : 0;
	double queue = run_queue(l->threads);
	uint64_t busy, total;
	cpu_counters(&busy, &total);
	(void)read_text("/proc/vmstat", text, sizeof(text));
	uint64_t kib = value_of(text, "pgpgin ") + value_of(text, "pgpgout ");
	uint64_t pages = value_of(text, "pswpin ") + value_of(text, "pswpout ");
	if (l->last_ms) {
		l->r15s = average(l->r15s, queue, seconds, 15);
		l->r1m = average(l->r1m, queue, seconds, 60);
		l->r15m = average(l->r15m, queue, seconds, 900);
		l->ut = total > l->cpu_total
			    ? (double)(busy - l->cpu_busy) / (double)(total - l->cpu_total)
			    : l->ut;
		l->pg = rate(pages, l->pages, seconds);
		l->io = rate(kib, l->kib, seconds);
	} else {
		l->r15s = l->r1m = l->r15m = queue;
	}
	l->last_ms = now_ms;
	l->cpu_busy = busy;
	l->cpu_total = total;
	l->pages = pages;
	l->kib = kib;
	ret->r15s = l->r15s;
	ret->r1m = l->r1m;
	ret->r15m = l->r15m;
	ret->ut = l->ut;
	ret->pg = l->pg;
	ret->io = l->io;
	ret->ls = count_sessions();
	ret->it = idle_minutes();
	(void)read_text("/proc/meminfo", text, sizeof(text));
	ret->mem_bytes = value_of(text, "MemAvailable:") * 1024;
	ret->swp_bytes = value_of(text, "SwapFree:") * 1024;
	struct statvfs fs;
	ret->tmp_bytes = statvfs("/tmp", &fs) == 0 ? (uint64_t)fs.f_bavail * fs.f_frsize : 0;
}
