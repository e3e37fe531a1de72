/* SPDX-License-Identifier: Apache-2.0 */
/* Commands of a running cluster, asked for as a program asks: over the unix socket of a node. The
 * command is `resume NODE` of a node that is not drained: it is proposed, written to the disks of a
 * majority and applied like any other, and changes nothing that people see.
 *
 *   client commands NODE   over this node's socket; by a line of input "COUNT OUTSTANDING" prints
 *                          p50 in microseconds and commands per second; by "once" tries until one
 *                          command is done, and prints the monotonic time and the number of tries
 *   client disk            by a line: p50 of one sync (appending, overwriting, three at once), in
 *                          microseconds, of the disk of the present folder
 *   client etcd            three members below the present folder; by "COUNT OUTSTANDING" the same
 *                          as above, by "kill" microseconds from SIGKILL of the leader to the next
 * put
 *
 * Prints "ready" when it is. Who may change the cluster is told by the process number, so a client
 * runs inside its node. bench/agreement drives several of them in turns. etcd is asked through its
 * HTTP gateway, over kept connections without TLS, by a client without any library. */
#include "disk.h"
#include "etcd.h"
#include "lib/conn.h"
#include "schema/members.pb-c.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
	SINGLE = 100,
	BODY = 64, /* of an etcd value */
	TIMEOUT_MS = 30000,
};

static void die(const char *what, const char *why)
{
	(void)fprintf(stderr, "client: %s: %s\n", what, why);
	exit(1);
}

static void begin(struct conn *c, const char *node)
{
	Copia__ResumeRequest q = COPIA__RESUME_REQUEST__INIT;
	q.node = (char *)node;
	(void)conn_begin(c, "resume", &q.base, true);
}

struct figures {
	uint64_t p50, per_second;
};

/* Calls are answered in any order; with one at a time its latency is the time since the last. */
static struct figures load(struct conn *c, const char *node, unsigned count, unsigned outstanding)
{
	uint64_t *took = calloc(count, sizeof(*took)), from = bench_now_us(), last = from;
	unsigned sent = 0, done = 0;
	struct err err = { 0 };
	if (!took)
		die("load", "no memory");
	for (; sent < outstanding && sent < count; sent++)
		begin(c, node);
	while (done < count) {
		struct conn_frame f;
		if (conn_wait(c, TIMEOUT_MS, &err) < 0)
			die("load", err.msg);
		while (conn_next(c, &f, &err) == 1) {
			if (!f.last)
				continue;
			if (f.code)
				die("resume", f.error);
			uint64_t now = bench_now_us();
			took[done++] = now - last;
			last = now;
			if (sent++ < count)
				begin(c, node);
		}
	}
	uint64_t total_us = bench_now_us() - from;
	struct figures f = { bench_median(took, count), count * 1000000ull / total_us };
	free(took);
	return f;
}

/* One try after the other, as a person would who sees an error. Waiting for a new leader is the
 * daemon's work, so one is the rule. */
static unsigned until_done(struct conn *c, const char *node)
{
	struct err err = { 0 };
	for (unsigned tries = 1;; tries++) {
		struct conn_frame f = { .last = false };
		begin(c, node);
		while (!f.last) {
			int r = conn_next(c, &f, &err);
			if (r < 0 || (r == 0 && conn_wait(c, TIMEOUT_MS, &err) < 0))
				die("resume", err.msg);
		}
		if (f.code == 0)
			return tries;
	}
}

static bool line(unsigned *ret_count, unsigned *ret_outstanding)
{
	char text[64];
	*ret_count = *ret_outstanding = 0;
	if (!fgets(text, sizeof(text), stdin))
		return false;
	(void)sscanf(text, "%u %u", ret_count, ret_outstanding);
	return true;
}

static void say(uint64_t a, uint64_t b, uint64_t c)
{
	printf("%llu %llu %llu\n", (unsigned long long)a, (unsigned long long)b,
	       (unsigned long long)c);
}

static int commands(const char *node)
{
	unsigned count, outstanding;
	struct conn *c;
	struct err err = { 0 };
	if (conn_open(&c, NULL, &err) < 0)
		die("socket", err.msg);
	(void)load(c, node, SINGLE, 1); /* sessions up, files warm */
	puts("ready");
	while (line(&count, &outstanding)) {
		if (count) {
			struct figures f = load(c, node, count, outstanding);
			say(f.p50, f.per_second, 0);
			continue;
		}
		unsigned tries = until_done(c, node);
		say(bench_now_us(), tries, 0);
	}
	conn_close(c);
	return 0;
}

static int disk(const char *unused)
{
	unsigned count, outstanding;
	puts("ready");
	while (line(&count, &outstanding)) {
		uint64_t append = disk_sync_us(true, 0), over = disk_sync_us(false, 0);
		say(append, over, disk_three_sync_us());
	}
	return 0;
}

static int etcd(const char *unused)
{
	unsigned count, outstanding;
	struct etcd *e = etcd_start();
	if (!e)
		die("etcd", "not installed");
	puts("ready");
	while (line(&count, &outstanding)) {
		struct etcd_figures f;
		if (count) {
			etcd_load(e, count, outstanding, BODY, &f);
			say(f.p50, f.count * 1000000 / f.total_us, 0);
		} else {
			say(etcd_kill_leader(e), 0, 0);
		}
	}
	etcd_stop(e);
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		int (*run)(const char *word);
		int words;
	} verbs[] = { { "commands", commands, 1 }, { "disk", disk, 0 }, { "etcd", etcd, 0 } };
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (size_t i = 0; argc > 1 && i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (!strcmp(argv[1], verbs[i].name) && argc - 2 == verbs[i].words)
			return verbs[i].run(argv[2]);
	(void)fprintf(stderr, "usage: client commands NODE | disk | etcd\n");
	return 2;
}
