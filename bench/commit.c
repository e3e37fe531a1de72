/* SPDX-License-Identifier: Apache-2.0 */
/* What a replicated command costs: Copia's agreement and etcd, three members each on one machine,
 * beside one sync of the same disk, all in the same run.
 *
 *   commit [FOLDER]       disk, then both systems, latency, throughput and loss of the leader
 *
 * Copia's commands are proposed by agree_propose() in the leader, in a follower and in an agent
 * (which has no log); sessions are TLS 1.3. etcd is asked through its HTTP gateway over kept
 * connections without TLS, by a client without any library. Commands have 64 bytes. */
#include "cluster.h"
#include "etcd.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { SYNCS = 400, SINGLE = 1000, MANY = 40000, ETCD_SINGLE = 500, ETCD_MANY = 5000, BODY = 64 };

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

static uint64_t median(uint64_t *all, size_t count)
{
	qsort(all, count, sizeof(*all), compare);
	return all[count / 2];
}

/* ---- the disk ---- */

/* p50 of 4 KiB and fdatasync, in microseconds: at the end of a growing file, or over blocks that
 * are there (no file system journal needed). */
static uint64_t sync_us(bool grow)
{
	static char block[1 << 20];
	uint64_t took[SYNCS];
	int fd = open("sync.tmp", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	for (unsigned i = 0; !grow && i < SYNCS * 4096 / sizeof(block) + 1; i++)
		if (write(fd, block, sizeof(block)) != sizeof(block))
			abort();
	if (fd < 0 || fsync(fd) < 0)
		abort();
	for (unsigned i = 0; i < SYNCS; i++) {
		uint64_t from = now_us();
		if (pwrite(fd, block, 4096, (off_t)i * 4096) != 4096 || fdatasync(fd) < 0)
			abort();
		took[i] = now_us() - from;
	}
	close(fd);
	unlink("sync.tmp");
	return median(took, SYNCS);
}

struct disk {
	uint64_t append_us, over_us;
};

static struct disk measure_disk(void)
{
	struct disk d = { sync_us(true), sync_us(false) };
	printf("disk: 4 KiB + fdatasync p50: appending %llu us, overwriting %llu us\n",
	       (unsigned long long)d.append_us, (unsigned long long)d.over_us);
	return d;
}

/* ---- Copia ---- */

struct figures {
	unsigned long long count, total_us, p50, p90, p99, max, failed;
};

static struct figures load(struct cluster *c, unsigned node, unsigned count, unsigned outstanding)
{
	struct figures f;
	const char *line;
	cluster_say(c, node, "load %u %u %u", count, outstanding, BODY);
	while (!(line = cluster_line(c, node, "load ", 60000)))
		;
	if (sscanf(line, "load %llu %llu %llu %llu %llu %llu %llu", &f.count, &f.total_us, &f.p50,
		   &f.p90, &f.p99, &f.max, &f.failed) != 7 ||
	    f.failed)
		abort();
	return f;
}

static void show(const char *who, unsigned outstanding, const struct figures *f)
{
	printf("%-18s %3u outstanding: %7.0f /s  p50 %5llu us  p90 %5llu  p99 %6llu  max %6llu\n",
	       who, outstanding, (double)f->count * 1e6 / (double)f->total_us, f->p50, f->p90,
	       f->p99, f->max);
	(void)fflush(stdout);
}

/* From where: a name for each role, and the node that has it. */
static struct figures copia_speed(struct cluster *c, struct disk *ret_disk,
				  struct figures *ret_many)
{
	cluster_grow(c, 3);
	cluster_start(c, 4, false);
	cluster_say(c, 4, "controllers 1,2,3");
	unsigned leader = cluster_leader(c), follower = leader % 3 + 1;
	const struct {
		const char *name;
		unsigned node;
	} from[] = { { "copia, leader", leader },
		     { "copia, follower", follower },
		     { "copia, agent", 4 } };
	struct figures single[3], many[3];
	load(c, 4, 200, 1); /* sessions up, files grown */
	for (unsigned i = 0; i < 3; i++) {
		single[i] = load(c, from[i].node, SINGLE, 1);
		show(from[i].name, 1, &single[i]);
	}
	*ret_disk = measure_disk();
	for (unsigned i = 0; i < 3; i++) {
		many[i] = load(c, from[i].node, MANY, 64);
		show(from[i].name, 64, &many[i]);
	}
	for (unsigned i = 0; i < 3; i++)
		printf("ratio: %s, 1 outstanding, p50 / one sync: %.2f (appending), %.2f "
		       "(overwriting)\n",
		       from[i].name, (double)single[i].p50 / (double)ret_disk->append_us,
		       (double)single[i].p50 / (double)ret_disk->over_us);
	cluster_settle(c);
	*ret_many = many[2];
	return single[2];
}

/* SIGKILL of the leader until a command proposed right then on another node is committed. */
static void copia_failover(enum raft_profile profile, const char *name, unsigned rounds)
{
	struct cluster c;
	uint64_t took[64];
	cluster_init(&c, profile);
	cluster_grow(&c, 3);
	for (unsigned i = 0; i < rounds; i++) {
		unsigned leader = cluster_leader(&c), other = leader % 3 + 1;
		cluster_settle(&c);
		uint64_t from = now_us();
		cluster_kill(&c, leader);
		cluster_say(&c, other, "propose %u 0", 1000 * (i + 1));
		const char *line = cluster_expect(&c, other, "done ");
		unsigned id, fate;
		if (sscanf(line, "done %u %u", &id, &fate) != 2 || fate != 1)
			abort();
		took[i] = now_us() - from;
		cluster_start(&c, leader, false);
	}
	uint64_t p50 = median(took, rounds);
	printf("copia, %s: leader killed -> next commit, %u rounds: min %.0f median %.0f max %.0f "
	       "ms\n",
	       name, rounds, (double)took[0] / 1e3, (double)p50 / 1e3,
	       (double)took[rounds - 1] / 1e3);
	(void)fflush(stdout);
	cluster_deinit(&c);
}

/* ---- etcd ---- */

static void etcd_speed(struct etcd *e, const struct figures *one, const struct figures *many)
{
	struct etcd_figures f;
	etcd_load(e, 200, 1, BODY, &f);
	etcd_load(e, ETCD_SINGLE, 1, BODY, &f);
	struct figures s = { f.count, f.total_us, f.p50, f.p90, f.p99, f.max, 0 };
	show("etcd", 1, &s);
	etcd_load(e, ETCD_MANY, 64, BODY, &f);
	struct figures m = { f.count, f.total_us, f.p50, f.p90, f.p99, f.max, 0 };
	show("etcd", 64, &m);
	printf("ratio: etcd / copia (agent): 1 outstanding p50 %.1f; 64 outstanding, copia's "
	       "commands/s / etcd's %.1f\n",
	       (double)s.p50 / (double)one->p50,
	       (double)many->count / (double)many->total_us /
		   ((double)m.count / (double)m.total_us));
}

static void etcd_failover(struct etcd *e, unsigned rounds)
{
	uint64_t took[64];
	for (unsigned i = 0; i < rounds; i++)
		took[i] = etcd_kill_leader(e);
	uint64_t p50 = median(took, rounds);
	printf("etcd, defaults: leader killed -> next commit, %u rounds: min %.0f median %.0f max "
	       "%.0f ms\n",
	       rounds, (double)took[0] / 1e3, (double)p50 / 1e3, (double)took[rounds - 1] / 1e3);
}

int main(int argc, char **argv)
{
	struct cluster c;
	struct etcd *e;
	struct disk disk;
	struct figures one, many;
	if (argc > 1 && chdir(argv[1]) < 0) {
		(void)fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	measure_disk();
	cluster_init(&c, RAFT_LAN);
	one = copia_speed(&c, &disk, &many);
	cluster_deinit(&c);
	e = etcd_start();
	if (e)
		etcd_speed(e, &one, &many);
	else
		printf("etcd is not installed: no comparison\n");
	measure_disk();
	copia_failover(RAFT_FAST, "fast", 15);
	copia_failover(RAFT_LAN, "lan", 15);
	if (e)
		etcd_failover(e, 5);
	etcd_stop(e);
	return 0;
}
