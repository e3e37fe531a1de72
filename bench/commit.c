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
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	ROUNDS = 10, /* what is compared is measured in turns, because other load comes and goes */
	SYNCS = 50,  /* in a round */
	SINGLE = 100,
	MANY = 20000,
	ETCD_SINGLE = 60,
	ETCD_MANY = 4000,
	BODY = 64,
};

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
static uint64_t sync_us(bool grow, unsigned who)
{
	static char block[1 << 20];
	uint64_t took[SYNCS];
	char name[32];
	(void)snprintf(name, sizeof(name), "sync-%u.tmp", who);
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || (!grow && write(fd, block, SYNCS * 4096) != SYNCS * 4096) || fsync(fd) < 0)
		abort();
	for (unsigned i = 0; i < SYNCS; i++) {
		uint64_t from = now_us();
		if (pwrite(fd, block, 4096, (off_t)i * 4096) != 4096 || fdatasync(fd) < 0)
			abort();
		took[i] = now_us() - from;
	}
	close(fd);
	unlink(name);
	return median(took, SYNCS);
}

/* The same by three processes at once: what three members on one disk cannot beat. */
static uint64_t three_sync_us(void)
{
	int fds[2];
	uint64_t p50[3];
	pid_t pids[3];
	if (pipe2(fds, O_CLOEXEC) < 0)
		abort();
	for (unsigned i = 0; i < 3; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			uint64_t us = sync_us(false, i + 1);
			_exit(write(fds[1], &us, sizeof(us)) != sizeof(us));
		}
	}
	for (unsigned i = 0; i < 3; i++)
		if (pids[i] < 0 || read(fds[0], &p50[i], sizeof(p50[i])) != sizeof(p50[i]) ||
		    waitpid(pids[i], NULL, 0) < 0)
			abort();
	close(fds[0]);
	close(fds[1]);
	return median(p50, 3);
}

/* ---- Copia and etcd in turns ---- */

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

enum { APPEND, OVER, THREE, LEADER, FOLLOWER, AGENT, ETCD, SERIES };

static const char *const series_names[SERIES] = {
	"one sync: append 4 KiB, fdatasync",
	"one sync: overwrite 4 KiB, fdatasync",
	"three processes at once, overwriting",
	"copia, proposed in the leader",
	"copia, proposed in a follower",
	"copia, proposed in an agent",
	"etcd",
};

/* p50 of each round (microseconds), and commands per second with 64 outstanding. */
struct results {
	uint64_t single[SERIES][ROUNDS], many[SERIES][ROUNDS];
};

static void one_round(struct cluster *c, struct etcd *e, unsigned round, struct results *r)
{
	unsigned leader = cluster_leader(c);
	const unsigned nodes[] = { [LEADER] = leader, [FOLLOWER] = leader % 3 + 1, [AGENT] = 4 };
	r->single[APPEND][round] = sync_us(true, 0);
	r->single[OVER][round] = sync_us(false, 0);
	r->single[THREE][round] = three_sync_us();
	for (unsigned s = LEADER; s <= AGENT; s++) {
		struct figures f = load(c, nodes[s], SINGLE, 1);
		r->single[s][round] = f.p50;
		f = load(c, nodes[s], MANY, 64);
		r->many[s][round] = f.count * 1000000 / f.total_us;
	}
	if (!e)
		return;
	struct etcd_figures f;
	etcd_load(e, ETCD_SINGLE, 1, BODY, &f);
	r->single[ETCD][round] = f.p50;
	etcd_load(e, ETCD_MANY, 64, BODY, &f);
	r->many[ETCD][round] = f.count * 1000000 / f.total_us;
}

static void show_speed(struct results *r, bool with_etcd)
{
	unsigned count = with_etcd ? SERIES : ETCD;
	uint64_t single[SERIES], many[SERIES];
	for (unsigned s = 0; s < count; s++) {
		single[s] = median(r->single[s], ROUNDS);
		many[s] = median(r->many[s], ROUNDS);
	}
	printf("median of %u rounds (least, most)         1 outstanding, p50 us   64 outstanding, "
	       "commands/s\n",
	       ROUNDS);
	for (unsigned s = 0; s < count; s++) {
		printf("  %-38s %5llu (%llu, %llu)", series_names[s], (unsigned long long)single[s],
		       (unsigned long long)r->single[s][0],
		       (unsigned long long)r->single[s][ROUNDS - 1]);
		if (many[s])
			printf("   %llu (%llu, %llu)", (unsigned long long)many[s],
			       (unsigned long long)r->many[s][0],
			       (unsigned long long)r->many[s][ROUNDS - 1]);
		printf("\n");
	}
	for (unsigned s = LEADER; s <= AGENT; s++)
		printf("ratio: %s: %.2f x one sync (append), %.2f x (overwrite), %.2f x (three at "
		       "once)\n",
		       series_names[s], (double)single[s] / (double)single[APPEND],
		       (double)single[s] / (double)single[OVER],
		       (double)single[s] / (double)single[THREE]);
	for (unsigned s = LEADER; with_etcd && s <= AGENT; s++)
		printf("ratio: etcd against %s: %.1f x slower with 1 outstanding, %.1f x with 64\n",
		       series_names[s], (double)single[ETCD] / (double)single[s],
		       (double)many[s] / (double)many[ETCD]);
}

static void speed(struct etcd *e)
{
	static struct results r;
	struct cluster c;
	cluster_init(&c, RAFT_LAN);
	cluster_grow(&c, 3);
	cluster_start(&c, 4, false);
	cluster_say(&c, 4, "controllers 1,2,3");
	load(&c, 4, 500, 1); /* sessions up, files warm */
	for (unsigned round = 0; round < ROUNDS; round++)
		one_round(&c, e, round, &r);
	cluster_settle(&c);
	cluster_deinit(&c);
	show_speed(&r, e);
}

/* ---- loss of the leader ---- */

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
	if (argc > 1 && chdir(argv[1]) < 0) {
		(void)fprintf(stderr, "%s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	struct etcd *e = etcd_start();
	if (!e)
		printf("etcd is not installed: no comparison\n");
	speed(e);
	copia_failover(RAFT_FAST, "fast", 15);
	copia_failover(RAFT_LAN, "lan", 15);
	if (e)
		etcd_failover(e, 5);
	etcd_stop(e);
	return 0;
}
