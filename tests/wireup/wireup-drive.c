/* SPDX-License-Identifier: Apache-2.0 */
/* Unmodified MPI programs through real copia-wireup processes.
 *
 *   wireup-drive COPIA-WIREUP MPI PROGRAM CASE     one case of the table below; MPI: mpich, openmpi
 *   wireup-drive COPIA-WIREUP run NODES PER-NODE PROGRAM ARGS…     any program, output shown
 *
 * Exit code 77 with a reason: this machine cannot run the case. */
#include "drive.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SKIP = 77, ROUNDS = 3 };

struct mpi {
	const char *name;
	int protocol;
};
static const struct mpi mpis[] = {
	{ "mpich", COPIA__WIREUP_PROTOCOL__WIREUP_PMI1 },
	{ "openmpi", COPIA__WIREUP_PROTOCOL__WIREUP_PMIX },
};

static int failures;

#define CHECK(condition, ...)                                                                      \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			failures++;                                                                \
			fprintf(stderr, "FAILED: %s: ", #condition);                               \
			fprintf(stderr, __VA_ARGS__);                                              \
			fputc('\n', stderr);                                                       \
		}                                                                                  \
	} while (0)

static unsigned size_of(const struct drive *d)
{
	return d->nodes * d->per_node;
}

static void show(const struct drive *d)
{
	for (unsigned i = 0; i < size_of(d); i++)
		if (d->ranks[i].text.len)
			fprintf(stderr, "[%u] %s", i, str_text(&d->ranks[i].text));
}

/* Each rank said the right things, through the right protocol. */
static void check_met(const struct drive *d, const struct mpi *mpi, const char *more)
{
	unsigned size = size_of(d);
	int sum = (int)(size * (size - 1) / 2);
	for (unsigned i = 0; i < size; i++) {
		const struct drive_rank *r = &d->ranks[i];
		char want[128], tail[160];
		snprintf(want, sizeof(want), "rank %u/%u local %u/%u app %c ", i, size,
			 i % d->per_node, d->per_node, d->apps ? d->apps[i] : '0');
		snprintf(tail, sizeof(tail), "sum %d %s\n", sum, more);
		CHECK(strstr(str_text(&r->text), want) && strstr(str_text(&r->text), tail),
		      "rank %u: wanted '%s… %s', got '%s'", i, want, tail, str_text(&r->text));
		CHECK(r->protocol == mpi->protocol, "rank %u spoke protocol %d", i, r->protocol);
		/* libpmix keeps fences within one node to itself. */
		bool told = d->nodes > 1 || mpi->protocol == COPIA__WIREUP_PROTOCOL__WIREUP_PMI1;
		CHECK(r->connected && r->initialised == told, "rank %u: no notice of its start", i);
		if (d->hung)
			continue;
		CHECK(r->finalized, "rank %u: no notice of its end", i);
		CHECK(r->ended && WIFEXITED(r->status) && !WEXITSTATUS(r->status),
		      "rank %u: status 0x%x", i, (unsigned)r->status);
	}
	CHECK(!d->timed_out, "limit of %u ms reached", d->limit_ms);
	CHECK(!*d->failed, "%s", d->failed);
}

static void check_cut(const struct drive *d, const struct mpi *mpi)
{
	check_met(d, mpi, "-");
	CHECK(d->cuts == d->nodes, "%u cuts", d->cuts);
}

static void check_lost(const struct drive *d, const struct mpi *mpi)
{
	check_met(d, mpi, "-");
	CHECK(d->lost > 0, "%u of %u exchanges lost", d->lost, d->exchanges);
}

static void check_modex(const struct drive *d, const struct mpi *mpi)
{
	check_met(d, mpi, "-");
	CHECK(d->data_asks > 0, "%u questions for data", d->data_asks);
}

static void check_plain(const struct drive *d, const struct mpi *mpi)
{
	check_met(d, mpi, "-");
}

static void check_abort(const struct drive *d, const struct mpi *mpi)
{
	const struct drive_rank *last = &d->ranks[size_of(d) - 1];
	CHECK(last->aborts == 1 && last->abort_code == 7, "%d aborts, code %d", last->aborts,
	      last->abort_code);
	CHECK(!d->timed_out, "limit of %u ms reached", d->limit_ms);
}

static void check_alone(const struct drive *d, const struct mpi *mpi)
{
	for (unsigned i = 0; i < size_of(d); i++)
		CHECK(!d->ranks[i].connected && !strcmp(str_text(&d->ranks[i].text), "alone\n"),
		      "rank %u: connected %d, '%s'", i, d->ranks[i].connected,
		      str_text(&d->ranks[i].text));
}

static void check_names(const struct drive *d, const struct mpi *mpi)
{
	check_met(d, mpi, "port-of-zero");
}

static void check_spawn(const struct drive *d, const struct mpi *mpi)
{
	/* Open MPI asks us and then returns the error or aborts; MPICH over UCX does not even ask.
	 */
	CHECK(d->ranks[0].refused > 0 || strstr(str_text(&d->ranks[0].text), "sum 1 refused"),
	      "spawn was not refused: '%s'", str_text(&d->ranks[0].text));
	CHECK(!d->timed_out, "limit of %u ms reached", d->limit_ms);
}

static const struct test {
	const char *name, *mode, *only; /* only: the one MPI that has it */
	struct drive wish;
	void (*check)(const struct drive *d, const struct mpi *mpi);
} tests[] = {
	{ "one-node", "", NULL, { .nodes = 1, .per_node = 4 }, check_plain },
	{ "single-rank", "", NULL, { .nodes = 1, .per_node = 1 }, check_plain },
	{ "two-nodes", "", NULL, { .nodes = 2, .per_node = 2, .pretend = true }, check_plain },
	{ "three-nodes", "", NULL, { .nodes = 3, .per_node = 1, .pretend = true }, check_plain },
	{ "two-programs", "", NULL, { .nodes = 1, .per_node = 4, .apps = "0011" }, check_plain },
	{ "networks",
	  "",
	  NULL,
	  { .nodes = 2, .per_node = 1, .pretend = true, .mislead = true },
	  check_plain },
	{ "bridge",
	  "",
	  NULL,
	  { .nodes = 2, .per_node = 1, .pretend = true, .bridge = true },
	  check_plain },
	{ "cut", "", NULL, { .nodes = 2, .per_node = 2, .pretend = true, .cut = true }, check_cut },
	{ "lost",
	  "",
	  NULL,
	  { .nodes = 2, .per_node = 2, .pretend = true, .lose = true },
	  check_lost },
	{ "other-user",
	  "",
	  NULL,
	  { .nodes = 2, .per_node = 2, .pretend = true, .user = 65534 },
	  check_plain },
	{ "direct-modex",
	  "",
	  "openmpi",
	  { .nodes = 2,
	    .per_node = 2,
	    .pretend = true,
	    .extra = "OMPI_MCA_pmix_base_async_modex=1",
	    .lazy = true },
	  check_modex },
	{ "only-its-own", "", NULL, { .nodes = 1, .per_node = 2 }, check_plain },
	{ "abort", "abort", NULL, { .nodes = 2, .per_node = 2, .pretend = true }, check_abort },
	{ "names", "names", NULL, { .nodes = 2, .per_node = 1, .pretend = true }, check_names },
	{ "spawn", "spawn", NULL, { .nodes = 1, .per_node = 2 }, check_spawn },
	{ "alone", "alone", NULL, { .nodes = 1, .per_node = 2 }, check_alone },
};

static int once(const struct test *t, const struct mpi *mpi, const char *wireup, char *program,
		bool *hung)
{
	char *argv[] = { program, (char *)t->mode, NULL };
	struct drive d = t->wish;
	struct err err = { 0 };
	d.wireup = wireup;
	d.program = argv;
	d.limit_ms = 40000;
	d.closing_ms = 5000;
	if (!strcmp(t->name, "only-its-own")) {
		d.no_pmix = mpi->protocol != COPIA__WIREUP_PROTOCOL__WIREUP_PMIX;
		d.no_pmi1 = !d.no_pmix;
	}
	failures = 0;
	int r = drive_run(&d, &err);
	if (r == 0)
		t->check(&d, mpi);
	else if (r != -EPERM && r != -ENOENT)
		CHECK(r == 0, "%s", err.msg);
	else
		printf("skipped: %s\n", err.msg);
	if (failures)
		show(&d);
	*hung = d.hung;
	printf("%s %s: %u exchanges, %.2f s%s\n", mpi->name, t->name, d.exchanges, d.seconds,
	       d.hung ? ", hung in MPI_Finalize" : "");
	char folders[HOSTS_MAX][96];
	for (unsigned i = 0; i < d.nodes; i++)
		memcpy(folders[i], d.at[i].folder, sizeof(folders[i]));
	int ended = drive_free(&d);
	CHECK(r < 0 || !ended, "copia-wireup ended with status 0x%x", (unsigned)ended);
	for (unsigned i = 0; i < t->wish.nodes; i++)
		CHECK(access(folders[i], F_OK) < 0, "%s was left behind", folders[i]);
	return r == -EPERM || r == -ENOENT ? SKIP : failures ? 1 : 0;
}

/* MPICH over UCX's TCP may hang in MPI_Finalize under any launcher (openucx/ucx#8738): results
 * were checked, the hang is named, and another round may show a clean end. */
static int run_case(const struct test *t, const struct mpi *mpi, const char *wireup, char *program)
{
	bool hung = false;
	int r = 0;
	for (int round = 0; round < ROUNDS; round++) {
		r = once(t, mpi, wireup, program, &hung);
		if (r || !hung)
			return r;
	}
	printf("every round hung in MPI_Finalize after correct results\n");
	return mpi->protocol == COPIA__WIREUP_PROTOCOL__WIREUP_PMI1 && t->wish.nodes > 1 ? 0 : 1;
}

static int run_any(int argc, char **argv)
{
	struct drive d = { .wireup = argv[1], .limit_ms = 120000, .closing_ms = 8000 };
	struct err err = { 0 };
	d.nodes = (unsigned)atoi(argv[3]);
	d.per_node = (unsigned)atoi(argv[4]);
	d.pretend = d.nodes > 1;
	d.program = argv + 5;
	d.no_pmix = getenv("DRIVE_NO_PMIX") != NULL;
	d.no_pmi1 = getenv("DRIVE_NO_PMI1") != NULL;
	int r = drive_run(&d, &err);
	if (r < 0)
		fprintf(stderr, "%s\n", err.msg);
	show(&d);
	printf("%.3f s, %u exchanges%s%s %s %s\n", d.seconds, d.exchanges, d.hung ? ", hung" : "",
	       d.timed_out ? ", timed out" : "", d.failed, d.warning);
	drive_free(&d);
	return r < 0;
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	/* Hosts have working folders of their own. */
	if (argc > 1 && (argv[1] = realpath(argv[1], NULL)) == NULL)
		argc = 0;
	if (argc == 5 && strcmp(argv[3], "-") && (argv[3] = realpath(argv[3], NULL)) == NULL)
		argc = 0;
	if (argc >= 6 && !strcmp(argv[2], "run"))
		return run_any(argc, argv);
	for (size_t m = 0; argc == 5 && m < ARRAY_LEN(mpis); m++)
		for (size_t i = 0; i < ARRAY_LEN(tests) && !strcmp(mpis[m].name, argv[2]); i++) {
			if (strcmp(tests[i].name, argv[4]))
				continue;
			if (!strcmp(argv[3], "-")) {
				printf("skipped: mpicc.%s is not installed\n", argv[2]);
				return SKIP;
			}
			return run_case(&tests[i], &mpis[m], argv[1], argv[3]);
		}
	fprintf(stderr, "usage: wireup-drive COPIA-WIREUP mpich|openmpi PROGRAM|- CASE\n");
	return 2;
}
