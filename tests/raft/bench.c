/* SPDX-License-Identifier: Apache-2.0 */
/* raft-bench: random runs of a cluster of Raft cores, each from one seed.
 *
 *	raft-bench --seeds 1..1000 [--nodes N] [--voters V] [--member] [--ms T]
 *	raft-bench --seed S --trace          the story of one run
 *	raft-bench --speed                   committed entries per second
 *	raft-bench --plant F --expect-failure   (a build with -DRAFT_PLANT) finds the planted fault
 *
 * Exit status: 0 nothing found, 1 an invariant broke, 2 wrong usage. */
#include "base/err.h"
#include "base/units.h"
#include "cluster/raft/plant.h"
#include "sim.h"
#include "speed.h"
#include <getopt.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

static struct sim *running; /* for the handler of SIGABRT only */

/* A failed assertion in the core is a finding like any other. */
static void on_abort(int sig)
{
	struct sim *s = running;
	signal(sig, on_abort);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, sig);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	sim_fail(s, "ASSERTION");
}

static const struct option long_options[] = {
	{ "seeds", required_argument, NULL, 's' },   { "seed", required_argument, NULL, 's' },
	{ "nodes", required_argument, NULL, 'n' },   { "voters", required_argument, NULL, 'v' },
	{ "member", no_argument, NULL, 'm' },        { "ms", required_argument, NULL, 't' },
	{ "trace", no_argument, NULL, 'T' },         { "speed", no_argument, NULL, 'S' },
	{ "plant", required_argument, NULL, 'p' },   { "expect-failure", no_argument, NULL, 'x' },
	{ "outcome-only", no_argument, NULL, 'o' },  { "help", no_argument, NULL, 'h' },
	{ "seconds", required_argument, NULL, 'l' }, { 0 },
};

struct plan {
	struct options o;
	uint64_t first, last, seconds;
	bool speed, expect_failure;
};

static void usage(FILE *to)
{
	fprintf(to, "usage: raft-bench --seeds A..B [--nodes N] [--voters V] [--member] [--ms T]\n"
		    "                  [--seconds S] [--outcome-only] [--trace]\n"
		    "       raft-bench --seed S --trace\n"
		    "       raft-bench --speed\n"
		    "       raft-bench --plant F --expect-failure --seeds A..B\n");
}

static int number(const char *text, uint64_t min, uint64_t max, uint64_t *ret)
{
	struct err err = { 0 };
	if (parse_u64(text, min, max, ret, &err) == 0)
		return 0;
	fprintf(stderr, "raft-bench: %s\n", err.msg);
	return -1;
}

static int parse_seeds(const char *text, struct plan *p)
{
	const char *dots = strstr(text, "..");
	if (!dots) {
		int bad = number(text, 0, UINT64_MAX - 1, &p->first);
		p->last = p->first;
		return bad;
	}
	char *low = xstrndup(text, (size_t)(dots - text));
	int bad = number(low, 0, UINT64_MAX - 1, &p->first);
	free(low);
	return bad ? bad : number(dots + 2, p->first, UINT64_MAX - 1, &p->last);
}

static int parse_option(int c, struct plan *p)
{
	uint64_t n = 0;
	int bad = 0;

	switch (c) {
	case 's':
		return parse_seeds(optarg, p);
	case 'n':
		bad = number(optarg, 1, NODES_MAX, &n);
		p->o.nodes = (unsigned)n;
		return bad;
	case 'v':
		bad = number(optarg, 1, NODES_MAX, &n);
		p->o.voters = (unsigned)n;
		return bad;
	case 't':
		return number(optarg, 100, 10000000, &p->o.ms);
	case 'l':
		return number(optarg, 1, 1000000, &p->seconds);
	case 'p':
		bad = number(optarg, 1, PLANT_COUNT - 1, &n);
#ifdef RAFT_PLANT
		raft_planted = (int)n;
#else
		fprintf(stderr, "raft-bench: built without -DRAFT_PLANT\n");
		bad = -1;
#endif
		return bad;
	case 'm':
		p->o.member = true;
		return 0;
	case 'T':
		p->o.trace = true;
		return 0;
	case 'S':
		p->speed = true;
		return 0;
	case 'x':
		p->expect_failure = true;
		return 0;
	case 'o':
		p->o.outcome_only = true;
		return 0;
	}
	return -1;
}

static int parse(int argc, char **argv, struct plan *p)
{
	int c;
	while ((c = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		if (c == 'h') {
			usage(stdout);
			exit(0);
		}
		if (parse_option(c, p) < 0)
			return -1;
	}
	if (p->o.voters == 0)
		p->o.voters = p->o.nodes;
	return optind == argc && p->o.voters <= p->o.nodes ? 0 : -1;
}

static double seconds_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool run_seed(struct sim *s, uint64_t seed)
{
	sim_reset(s, seed);
	bool ok = setjmp(s->out) == 0;
	if (ok)
		random_run(s);
	s->stats.runs++;
	s->stats.committed += s->committed;
	return ok;
}

static void print_stats(const struct sim *s, uint64_t bad, double took)
{
	const struct stats *t = &s->stats;
	printf("nodes %u voters %u%s, %lu ms: %lu runs, %lu failed; %lu steps, %lu messages, "
	       "%lu committed, %lu elections, %lu crashes, %lu snapshots, %lu installed, "
	       "%lu changes, %lu transfers, %lu reads (%lu by lease), "
	       "healed in %lu ms on average, %lu at most; %.1f s\n",
	       s->o.nodes, s->o.voters, s->o.member ? " member" : "", s->o.ms, t->runs, bad,
	       t->steps, t->messages, t->committed, t->elections, t->crashes, t->snapshots,
	       t->installs, t->changes, t->transfers, t->reads, t->lease_reads,
	       t->runs > bad ? t->heal_ms_sum / (t->runs - bad) : 0, t->heal_ms_max, took);
}

int main(int argc, char **argv)
{
	struct plan p = { .o = { .nodes = 5, .ms = 3000 }, .first = 1, .last = 100 };

	if (parse(argc, argv, &p) < 0) {
		usage(stderr);
		return 2;
	}
	if (p.speed)
		return speed_run(&p.o);
	struct sim *s = running = sim_new(&p.o);
	signal(SIGABRT, on_abort);
	uint64_t bad = 0;
	double began = seconds_now();
	for (uint64_t seed = p.first; seed <= p.last; seed++) {
		if (!run_seed(s, seed)) {
			if (bad++ < 20)
				printf("seed %lu at %lu ms: %s\n", seed, s->now, s->reason);
			fflush(stdout);
			if (p.expect_failure)
				break;
		}
		if (p.seconds && seconds_now() - began >= (double)p.seconds)
			break;
	}
	print_stats(s, bad, seconds_now() - began);
	sim_free(s);
	return p.expect_failure ? bad == 0 : bad > 0;
}
