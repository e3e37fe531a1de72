/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/finalize-node.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	PERIOD_NS = 1000 * 1000,
	RING_PAGES =
	    1, /* holds FINALIZE_LOOK_MS of samples; ordinary users may lock little memory */
	SAMPLES_MAX = 4096,
	MAPS_MAX = 8192,
};

struct sampler {
	pid_t thread;
	size_t process; /* index */
	int fd;
	void *ring;
};

struct finalize_look {
	pid_t *pids;
	size_t count;
	bool *refused; /* of each process */
	struct sampler samplers[FINALIZE_THREADS_MAX];
	size_t sampler_count;
	size_t ring_bytes;
};

/* ---------------------------------------------------------------- what a mapping means */

static const struct {
	const char *prefix;
	enum job_sight sight;
} libraries[] = {
	{ "libmpi.", JOB_SIGHT_INSIDE },     { "libmpi_", JOB_SIGHT_INSIDE },
	{ "libmpich", JOB_SIGHT_INSIDE },    { "libmpifort", JOB_SIGHT_INSIDE },
	{ "libmpicxx", JOB_SIGHT_INSIDE },   { "libmpl.", JOB_SIGHT_INSIDE },
	{ "libopa.", JOB_SIGHT_INSIDE },     { "libucp.", JOB_SIGHT_INSIDE },
	{ "libuct.", JOB_SIGHT_INSIDE },     { "libuct_", JOB_SIGHT_INSIDE },
	{ "libucs.", JOB_SIGHT_INSIDE },     { "libucs_", JOB_SIGHT_INSIDE },
	{ "libucm.", JOB_SIGHT_INSIDE },     { "libucm_", JOB_SIGHT_INSIDE },
	{ "libfabric", JOB_SIGHT_INSIDE },   { "libopen-pal", JOB_SIGHT_INSIDE },
	{ "libopen-rte", JOB_SIGHT_INSIDE }, { "libmca_", JOB_SIGHT_INSIDE },
	{ "mca_", JOB_SIGHT_INSIDE },        { "libpmi", JOB_SIGHT_INSIDE },
	{ "libpsm", JOB_SIGHT_INSIDE },      { "libibverbs", JOB_SIGHT_INSIDE },
	{ "librdmacm", JOB_SIGHT_INSIDE },   { "libc.so", JOB_SIGHT_NOTHING },
	{ "libc-", JOB_SIGHT_NOTHING },      { "ld-", JOB_SIGHT_NOTHING },
	{ "libpthread", JOB_SIGHT_NOTHING }, { "librt.", JOB_SIGHT_NOTHING },
	{ "librt-", JOB_SIGHT_NOTHING },     { "libdl", JOB_SIGHT_NOTHING },
	{ "libevent", JOB_SIGHT_NOTHING },   { "[vdso]", JOB_SIGHT_NOTHING },
	{ "[vsyscall]", JOB_SIGHT_NOTHING },
};

static enum job_sight sight_of(const char *name)
{
	for (size_t i = 0; i < ARRAY_LEN(libraries); i++)
		if (!strncmp(name, libraries[i].prefix, strlen(libraries[i].prefix)))
			return libraries[i].sight;
	return JOB_SIGHT_OUTSIDE;
}

struct mapping {
	uint64_t from, to;
	char name[FINALIZE_LIBRARY];
};

/* Mappings with code. Returns their number; 0: the process has gone, or is not ours to read. */
static size_t read_maps(pid_t pid, struct mapping **ret)
{
	char path[64], line[4400];
	(void)snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	FILE *f = fopen(path, "re");
	*ret = NULL;
	if (!f)
		return 0;
	size_t count = 0, room = 0;
	while (count < MAPS_MAX && fgets(line, sizeof(line), f)) {
		struct mapping m = { 0 };
		char mode[5] = "";
		int at = 0;
		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %*s %*s %*s %n", &m.from, &m.to, mode,
			   &at) < 3 ||
		    mode[2] != 'x')
			continue;
		char *name = line + at, *slash = strrchr(name, '/');
		name[strcspn(name, "\n")] = '\0';
		/* Code that a program made by itself has no name. */
		(void)snprintf(m.name, sizeof(m.name), "%.*s", FINALIZE_LIBRARY - 1,
			       slash ? slash + 1 : name);
		if (count == room) {
			room = MAX(2 * room, (size_t)64);
			*ret = xrealloc(*ret, room * sizeof(**ret));
		}
		(*ret)[count++] = m;
	}
	(void)fclose(f);
	return count;
}

/* ---------------------------------------------------------------- sampling */

static void sampler_open(struct finalize_look *k, size_t process, pid_t thread)
{
	struct perf_event_attr a = {
		.type = PERF_TYPE_SOFTWARE,
		.size = sizeof(a),
		.config = PERF_COUNT_SW_CPU_CLOCK,
		.sample_period = PERIOD_NS,
		.sample_type = PERF_SAMPLE_IP,
		.exclude_kernel = 1,
		.exclude_hv = 1,
	};
	int fd = (int)syscall(SYS_perf_event_open, &a, thread, -1, -1, PERF_FLAG_FD_CLOEXEC);
	if (fd < 0) {
		k->refused[process] |= errno != ESRCH;
		return;
	}
	void *ring = mmap(NULL, k->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ring == MAP_FAILED) {
		k->refused[process] = true;
		(void)close(fd);
		return;
	}
	k->samplers[k->sampler_count++] =
	    (struct sampler){ .thread = thread, .process = process, .fd = fd, .ring = ring };
}

static void process_begin(struct finalize_look *k, size_t process)
{
	char path[64];
	(void)snprintf(path, sizeof(path), "/proc/%d/task", (int)k->pids[process]);
	DIR *d = opendir(path);
	struct dirent *e;
	while (d && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		if (k->sampler_count == FINALIZE_THREADS_MAX) {
			/* Threads that nobody looked at may compute. */
			k->refused[process] = true;
			break;
		}
		sampler_open(k, process, (pid_t)strtol(e->d_name, NULL, 10));
	}
	if (d)
		(void)closedir(d);
}

struct finalize_look *finalize_look_begin(const pid_t *pids, size_t count)
{
	struct finalize_look *k = xcalloc(1, sizeof(*k));
	k->pids = xmemdup(pids, count * sizeof(*pids));
	k->count = count;
	k->refused = xcalloc(count, sizeof(*k->refused));
	k->ring_bytes = (size_t)(1 + RING_PAGES) * (size_t)sysconf(_SC_PAGESIZE);
	for (size_t i = 0; i < count; i++)
		process_begin(k, i);
	return k;
}

/* ---------------------------------------------------------------- what was seen */

/* Outside outweighs inside, and inside outweighs nothing. */
static void add_sight(struct finalize_seen *s, uint64_t pc, const struct mapping *maps,
		      size_t count)
{
	const struct mapping *m = NULL;
	for (size_t i = 0; i < count && !m; i++)
		if (pc >= maps[i].from && pc < maps[i].to)
			m = &maps[i];
	/* Mapped after the list was read, or no more: of no library that is there all the time. */
	enum job_sight sight = m ? sight_of(m->name) : JOB_SIGHT_OUTSIDE;
	if (sight == JOB_SIGHT_NOTHING || s->sight == JOB_SIGHT_OUTSIDE)
		return;
	s->sight = sight;
	(void)snprintf(s->library, sizeof(s->library), "%s", m ? m->name : "");
}

/* Copy bytes out of the ring, which may wrap anywhere. */
static void ring_copy(const uint8_t *data, uint64_t size, uint64_t at, void *to, size_t len)
{
	for (size_t i = 0; i < len; i++)
		((uint8_t *)to)[i] = data[(at + i) % size];
}

/* Returns how many samples there were. */
static size_t sampler_read(const struct sampler *s, size_t data_bytes, struct finalize_seen *seen,
			   const struct mapping *maps, size_t count)
{
	const struct perf_event_mmap_page *head = s->ring;
	const uint8_t *data = (const uint8_t *)s->ring + sysconf(_SC_PAGESIZE);
	uint64_t end = __atomic_load_n(&head->data_head, __ATOMIC_ACQUIRE);
	uint64_t at = head->data_tail;
	size_t samples = 0;
	while (at < end && samples < SAMPLES_MAX) {
		struct perf_event_header h;
		uint64_t pc;
		ring_copy(data, data_bytes, at, &h, sizeof(h));
		if (h.size < sizeof(h))
			break;
		if (h.type == PERF_RECORD_SAMPLE && h.size >= sizeof(h) + sizeof(pc)) {
			ring_copy(data, data_bytes, at + sizeof(h), &pc, sizeof(pc));
			add_sight(seen, pc, maps, count);
			samples++;
		}
		at += h.size;
	}
	return samples;
}

/* Where the first thread sleeps; its pc is the last word of the file. */
static void add_sleep(pid_t pid, struct finalize_seen *seen, const struct mapping *maps,
		      size_t count)
{
	char path[64], line[300] = "";
	(void)snprintf(path, sizeof(path), "/proc/%d/syscall", (int)pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return;
	const char *pc = fgets(line, sizeof(line), f) ? strrchr(line, ' ') : NULL;
	if (pc)
		add_sight(seen, strtoull(pc, NULL, 16), maps, count);
	(void)fclose(f);
}

static void process_end(const struct finalize_look *k, size_t process, struct finalize_seen *seen)
{
	_cleanup_(free_p) struct mapping *maps = NULL;
	size_t count = read_maps(k->pids[process], &maps), samples = 0;
	*seen = (struct finalize_seen){ 0 };
	if (!count) {
		seen->sight = JOB_SIGHT_REFUSED;
		return;
	}
	for (size_t i = 0; i < k->sampler_count; i++) {
		const struct sampler *s = &k->samplers[i];
		if (s->process != process)
			continue;
		size_t got = sampler_read(s, k->ring_bytes - (size_t)sysconf(_SC_PAGESIZE), seen,
					  maps, count);
		samples += s->thread == k->pids[process] ? got : 0;
	}
	if (!samples)
		add_sleep(k->pids[process], seen, maps, count);
	if (k->refused[process] && seen->sight != JOB_SIGHT_OUTSIDE)
		seen->sight = JOB_SIGHT_REFUSED;
}

struct finalize_look *finalize_look_end(struct finalize_look *k, struct finalize_seen *seen)
{
	if (!k)
		return NULL;
	for (size_t i = 0; seen && i < k->count; i++)
		process_end(k, i, &seen[i]);
	for (size_t i = 0; i < k->sampler_count; i++) {
		(void)munmap(k->samplers[i].ring, k->ring_bytes);
		(void)close(k->samplers[i].fd);
	}
	free(k->pids);
	free(k->refused);
	free(k);
	return NULL;
}
