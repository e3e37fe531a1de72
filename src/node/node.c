/* SPDX-License-Identifier: Apache-2.0 */
/* copiad-brain: everything of a node but its tasks, addresses and leases, which the shepherd owns.
 * Started by copiad with the link to it as descriptor 3; may crash and be restarted at any time. */
#include "node/node.h"

#include "base/log.h"
#include "base/units.h"
#include "caps/launch/launch-node.h"
#include "caps/members/members-impl-node.h"
#include "io/proc.h"
#include "io/shepherd-link.h"
#include "node/brain.h"
#include "node/control-impl.h"

#include <errno.h>
#include <getopt.h>
#include <malloc.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <unistd.h>

enum { WATCHDOG_MS = 30 * 1000, ALIVE_MS = 10 * 1000 };

struct brain {
	struct node node;
	uv_loop_t loop;
	uv_poll_t link_poll;
	uv_prepare_t before_sleep;
	uv_timer_t alive;
	int watching; /* events that link_poll is armed for */
	char *name;
	bool helloed, stopping;
};

uint64_t node_now_ms(const struct node *n)
{
	return uv_now(n->loop);
}

void node_random(void *at, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t got = getrandom((char *)at + done, len - done, 0);
		if (got > 0)
			done += (size_t)got;
		else if (errno != EINTR)
			abort(); /* no kernel of this century lacks it */
	}
}

/* ---------------------------------------------------------------- logging */

static void to_stderr(enum log_level level, const char *area, const char *line)
{
	static const int priorities[] = { 3, 4, 6, 7 }; /* of syslog; journald reads "<N>" */
	static int journal = -1;
	if (journal < 0)
		journal = getenv("JOURNAL_STREAM") != NULL;
	if (journal)
		fprintf(stderr, "<%d>%s: %s\n", priorities[level], area, line);
	else
		fprintf(stderr, "copiad[%d]: %s: %s: %s\n", (int)getpid(), log_level_name(level),
			area, line);
}

/* ---------------------------------------------------------------- the shepherd */

static void die_with_shepherd(struct brain *b)
{
	struct err err = { 0 };
	log_error("brain", "the shepherd is gone; ending its tasks");
	int killed = kill_leftovers(b->node.settings.state_dir, 0, &err);
	if (killed < 0)
		log_error("brain", "%s", err.msg);
	exit(1);
}

static int start_serving(struct brain *b, struct err *err)
{
	struct node *n = &b->node;
	int r = members_node_start(n->members_node, err);
	if (r == 0)
		r = control_listen(n->control, err);
	if (r < 0)
		return r;
	(void)shepherd_ready(n->shepherd, WATCHDOG_MS,
			     members_in_cluster(n->members)
				 ? "in a cluster"
				 : "waiting for copia init or copia join");
	log_info("brain", "serves, socket %s/copia.sock", n->settings.run_dir);
	return 0;
}

static void stop_all(struct brain *b)
{
	if (b->stopping)
		return;
	b->stopping = true;
	node_leave(&b->node);
	uv_stop(&b->loop);
}

static void on_shepherd(void *ctx, const Copia__Shepherd__Event *e, struct task_fds *fds)
{
	struct brain *b = ctx;
	struct node *n = &b->node;
	struct err err = { 0 };
	switch (e->tell_case) {
	case COPIA__SHEPHERD__EVENT__TELL_HELLO:
		n->incarnation = e->hello->incarnation;
		members_node_hello(n->members_node, e->hello);
		if (e->hello->brain_starts > 1)
			log_warning("brain", "started again: the one before ended: %s",
				    e->hello->brain_end);
		break;
	case COPIA__SHEPHERD__EVENT__TELL_TASKS_SENT:
		(void)launch_task_event(n->launch, e, fds);
		if (!b->helloed && start_serving(b, &err) < 0) {
			log_error("brain", "%s", err.msg);
			exit(1);
		}
		b->helloed = true;
		break;
	case COPIA__SHEPHERD__EVENT__TELL_STOPPING:
		log_info("brain", "told to stop");
		stop_all(b);
		break;
	default:
		members_node_shepherd(n->members_node, e);
		(void)launch_task_event(n->launch, e, fds);
	}
}

static void dispatch_link(struct brain *b)
{
	struct err err = { 0 };
	int r;
	while ((r = shepherd_link_dispatch(b->node.shepherd, &err)) > 0)
		;
	if (r == -EPIPE)
		die_with_shepherd(b);
	if (r < 0) {
		log_error("brain", "link to the shepherd: %s", err.msg);
		exit(1);
	}
}

static void on_link(uv_poll_t *p, int status, int events)
{
	dispatch_link(p->data);
}

/* Requests are queued while the loop turns; what the socket did not take waits for it here. */
static void on_before_sleep(uv_prepare_t *p)
{
	struct brain *b = p->data;
	int wanted = UV_READABLE;
	if (shepherd_link_wants_write(b->node.shepherd))
		wanted |= UV_WRITABLE;
	if (wanted == b->watching)
		return;
	b->watching = wanted;
	(void)uv_poll_start(&b->link_poll, wanted, on_link);
}

static void on_alive(uv_timer_t *t)
{
	struct brain *b = t->data;
	(void)shepherd_alive(b->node.shepherd);
}

/* ---------------------------------------------------------------- start and end */

/* Texts are copied: the title of the process takes the place of the arguments. */
static int read_options(struct brain *b, int argc, char **argv, struct err *err)
{
	static const struct option options[] = { { "state", required_argument, NULL, 's' },
						 { "run", required_argument, NULL, 'r' },
						 { "port", required_argument, NULL, 'p' },
						 { "name", required_argument, NULL, 'n' },
						 { "log-level", required_argument, NULL, 'l' },
						 { NULL, 0, NULL, 0 } };
	enum log_level most = LOG_INFO;
	uint64_t port = 26742;
	int r = 0;
	for (int o; r == 0 && (o = getopt_long(argc, argv, "", options, NULL)) >= 0;) {
		if (o == 's')
			b->node.settings.state_dir = xstrdup(optarg);
		else if (o == 'r')
			b->node.settings.run_dir = xstrdup(optarg);
		else if (o == 'n')
			b->name = xstrdup(optarg);
		else if (o == 'p')
			r = parse_u64(optarg, 1, 65535, &port, err);
		else if (o == 'l')
			while (most < LOG_DEBUG && strcmp(log_level_name(most), optarg))
				most++;
		else
			return err_set(err, -EINVAL,
				       "unknown option; copiad-brain is started by copiad");
	}
	b->node.settings.port = (uint16_t)port;
	b->node.settings.root = geteuid() == 0;
	if (!b->node.settings.state_dir || !b->node.settings.run_dir)
		return err_set(err, -EINVAL, "copiad-brain is started by copiad, not by hand");
	log_set(to_stderr, most);
	return r;
}

static int set_up(struct brain *b, struct err *err)
{
	struct node *n = &b->node;
	(void)uv_loop_init(&b->loop);
	n->loop = &b->loop;
	uint64_t seed;
	node_random(&seed, sizeof(seed));
	rng_seed(&n->rng, seed);
	n->from_log = members_new();
	n->members = n->from_view = members_new();
	int r = control_new(&n->control, n, err);
	if (r == 0)
		r = members_node_new(&n->members_node, n, b->name, err);
	if (r < 0)
		return r;
	r = launch_new(&n->launch, n, err);
	if (r == 0)
		r = launch_start(n->launch, err);
	if (r < 0)
		return r;
	n->shepherd = shepherd_link_new(SHEPHERD_LINK_FD, on_shepherd, b);
	(void)uv_poll_init(&b->loop, &b->link_poll, shepherd_link_fd(n->shepherd));
	b->link_poll.data = b;
	(void)uv_prepare_init(&b->loop, &b->before_sleep);
	b->before_sleep.data = b;
	(void)uv_prepare_start(&b->before_sleep, on_before_sleep);
	(void)uv_timer_init(&b->loop, &b->alive);
	b->alive.data = b;
	(void)uv_timer_start(&b->alive, on_alive, ALIVE_MS, ALIVE_MS);
	return 0;
}

/* It lives as long as the process and ends with it, all at once. Known from here, so that a search
 * for lost memory reports only what nobody points to. */
static struct brain *volatile brain;

int main(int argc, char **argv)
{
	struct err err = { 0 };
	struct brain *b = xcalloc(1, sizeof(*b));
	brain = b;
	if (read_options(b, argc, argv, &err) < 0) {
		fprintf(stderr, "copiad-brain: %s\n", err.msg);
		return 2;
	}
	proc_title_init(argc, argv);
	proc_title("copiad: brain");
	(void)signal(SIGPIPE, SIG_IGN);
	(void)mallopt(M_ARENA_MAX, 2); /* the threads of the store and the loop are few */
	if (set_up(b, &err) < 0) {
		log_error("brain", "%s", err.msg);
		return 1;
	}
	(void)uv_run(&b->loop, UV_RUN_DEFAULT);
	return 0;
}
