/* SPDX-License-Identifier: Apache-2.0 */
/* copia-wireup: lets the ranks of parallel programs on this node find each other. Started by the
 * node's daemon; see schema/wireup.proto for what is said between them. */
#include "base/log.h"
#include "base/units.h"
#include "caps/wireup/job-node.h"
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

struct options {
	int fd; /* -1: listen at `path` */
	const char *path, *folder;
	uint64_t idle_ms;
};

static const char usage[] =
    "copia-wireup: lets the ranks of parallel programs on this node find each other\n"
    "  --fd N         descriptor of the connection to the daemon\n"
    "  --listen PATH  socket to which the daemon connects, again after a crash of its own\n"
    "  --tmpdir DIR   folder for the files of the PMIx server (default: $TMPDIR or /tmp)\n"
    "  --idle TIME    end after this time without a job (default: never)\n"
    "  --debug        say more\n";

static int options_read(int argc, char **argv, struct options *ret, struct err *err)
{
	static const struct option longs[] = {
		{ "fd", required_argument, NULL, 'f' },
		{ "listen", required_argument, NULL, 'l' },
		{ "tmpdir", required_argument, NULL, 't' },
		{ "idle", required_argument, NULL, 'i' },
		{ "debug", no_argument, NULL, 'd' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	int c, r = 0;
	uint64_t n = 0;
	while (r == 0 && (c = getopt_long(argc, argv, "", longs, NULL)) != -1) {
		switch (c) {
		case 'f':
			r = parse_u64(optarg, 0, 1 << 20, &n, err);
			ret->fd = (int)n;
			break;
		case 'l':
			ret->path = optarg;
			break;
		case 't':
			ret->folder = optarg;
			break;
		case 'i':
			r = parse_duration_ms(optarg, &ret->idle_ms, err);
			break;
		case 'd':
			log_set(NULL, LOG_DEBUG);
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			return err_set(err, -EINVAL, "see copia-wireup --help");
		}
	}
	if (r == 0 && ((ret->fd < 0 && !ret->path) || optind < argc))
		r = err_set(err, -EINVAL, "--fd or --listen or both; see copia-wireup --help");
	return r;
}

struct signals {
	struct source source;
	struct brain *brain;
};

static void signals_ready(struct source *s, uint32_t events)
{
	struct signals *all = CONTAINER(s, struct signals, source);
	struct signalfd_siginfo which;
	if (read(s->fd, &which, sizeof(which)) == sizeof(which))
		brain_stop(all->brain);
}

static int signals_watch(struct signals *s, struct err *err)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	s->source = (struct source){ signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), EPOLLIN,
				     signals_ready };
	if (s->source.fd < 0)
		return err_set(err, -errno, "signalfd: %s", strerror(errno));
	return source_add(s->brain, &s->source, err);
}

int main(int argc, char **argv)
{
	const char *tmp = getenv("TMPDIR");
	struct options o = { .fd = -1, .folder = tmp && *tmp ? tmp : "/tmp" };
	struct err err = { 0 };
	struct signals signals = { .source.fd = -1 };
	int r = options_read(argc, argv, &o, &err);
	if (r < 0) {
		fprintf(stderr, "copia-wireup: %s\n", err.msg);
		return 2;
	}
	/* Ranks spin while they wait. With automatic scheduling groups (sched(7), "autogroup") a
	 * session of our own keeps us from sharing one group's time with them: MPI_Init of 64 ranks
	 * on 2 cores took 3 s instead of 6 s. */
	(void)setsid();
	struct wireup *w = wireup_new(o.folder, o.idle_ms);
	struct brain_hooks hooks = wireup_hooks(w);
	struct brain *brain = NULL;
	r = brain_new(&brain, o.fd, o.path, &hooks, &err);
	if (r == 0) {
		wireup_start(w, brain);
		signals.brain = brain;
		r = signals_watch(&signals, &err);
	}
	if (r == 0)
		r = brain_run(brain, &err);
	if (r < 0)
		log_error("wireup", "%s", err.msg);
	wireup_free(w);
	if (signals.source.fd >= 0)
		close(signals.source.fd);
	brain_free(brain);
	return r < 0 ? 1 : 0;
}
