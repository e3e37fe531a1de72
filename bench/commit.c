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
#include "disk.h"
#include "etcd.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

enum {
	ROUNDS = 10, /* what is compared is measured in turns, because other load comes and goes */
	SINGLE = 100,
	MANY = 20000,
	ETCD_SINGLE = 60,
	ETCD_MANY = 4000,
	BODY = 64,
};

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
	r->single[APPEND][round] = disk_sync_us(true, 0);
	r->single[OVER][round] = disk_sync_us(false, 0);
	r->single[THREE][round] = disk_three_sync_us();
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
		single[s] = bench_median(r->single[s], ROUNDS);
		many[s] = bench_median(r->many[s], ROUNDS);
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
		uint64_t from = bench_now_us();
		cluster_kill(&c, leader);
		cluster_say(&c, other, "propose %u 0", 1000 * (i + 1));
		const char *line = cluster_expect(&c, other, "done ");
		unsigned id, fate;
		if (sscanf(line, "done %u %u", &id, &fate) != 2 || fate != 1)
			abort();
		took[i] = bench_now_us() - from;
		cluster_start(&c, leader, false);
	}
	uint64_t p50 = bench_median(took, rounds);
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
	uint64_t p50 = bench_median(took, rounds);
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
