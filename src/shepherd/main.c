/* SPDX-License-Identifier: Apache-2.0 */
#include "shepherd/beats.h"
#include "shepherd/settings.h"
#include "shepherd/task.h"

#include "base/log.h"
#include "base/units.h"
#include "io/file.h"
#include "io/proc.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { STOP_GRACE_MS = 5000 };

extern char **environ;

static void signals_ready(struct shepherd *s, struct watch *w, uint32_t events)
{
	struct signalfd_siginfo info[16];
	ssize_t n = read(w->fd, info, sizeof(info));
	for (ssize_t i = 0; i < n / (ssize_t)sizeof(info[0]); i++) {
		switch (info[i].ssi_signo) {
		case SIGTERM:
		case SIGINT:
			stop_begin(s, STOP_GRACE_MS);
			break;
		case SIGUSR2:
			upgrade_begin(s, 0, s->set.own_path);
			break;
		default:
			break;
		}
	}
	children_ended(s);
}

static int signals_open(struct shepherd *s, struct err *err)
{
	sigset_t set;
	sigemptyset(&set);
	const int signals[] = { SIGCHLD, SIGTERM, SIGINT, SIGUSR2, SIGHUP };
	for (size_t i = 0; i < ARRAY_LEN(signals); i++)
		sigaddset(&set, signals[i]);
	(void)signal(SIGPIPE, SIG_IGN);
	(void)sigprocmask(SIG_SETMASK, &set, NULL);
	int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	s->signals.ready = signals_ready;
	int r = fd < 0 ? -errno : watch_add(s, &s->signals, fd, EPOLLIN);
	return r < 0 ? err_set(err, r, "watch signals: %s", strerror(-r)) : 0;
}

/* One instance per state folder. The lock belongs to the open file, so it survives a change of
 * program and ends with the process. */
static int lock_take(struct shepherd *s, struct err *err)
{
	char path[PATH_MAX + 16], text[32] = "";
	snprintf(path, sizeof(path), "%s/copiad.lock", s->set.state_dir);
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_set(err, -errno, "open %s: %s", path, strerror(errno));
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		int code = -errno;
		if (pread(fd, text, sizeof(text) - 1, 0) <= 0)
			snprintf(text, sizeof(text), "of unknown pid");
		text[strcspn(text, "\n")] = '\0';
		(void)close(fd);
		return err_set(
		    err, code,
		    "state folder %s is in use by copiad %s; give another one with --state",
		    s->set.state_dir, text);
	}
	int len = snprintf(text, sizeof(text), "%d\n", (int)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, text, (size_t)len, 0) != len) {
		int code = -errno;
		(void)close(fd);
		return err_set(err, code, "write %s: %s", path, strerror(-code));
	}
	s->lock_fd = fd;
	return 0;
}

/* Each start is a life of its own to the peers: their windows against replay begin anew. */
static int incarnation_next(struct shepherd *s, struct err *err)
{
	char path[PATH_MAX + 16], text[32];
	_cleanup_(str_free) struct str old = { 0 };
	uint64_t last = 0;
	snprintf(path, sizeof(path), "%s/incarnation", s->set.state_dir);
	int r = file_read(path, sizeof(text), &old, err);
	if (r < 0 && r != -ENOENT)
		return r;
	if (r == 0) {
		char *end = strchr(str_text(&old), '\n');
		if (end)
			*end = '\0';
		/* A damaged file must not keep a node down; the brain gives a number to exceed,
		 * too. */
		if (parse_u64(str_text(&old), 0, UINT64_MAX - 1, &last, NULL) < 0)
			log_warning("shepherd", "%s holds no number; it begins at 1 again", path);
	}
	s->incarnation = last + 1;
	int len = snprintf(text, sizeof(text), "%llu\n", (unsigned long long)s->incarnation);
	return file_write_atomic(path, text, (size_t)len, 0600, err);
}

static int fresh_start(struct shepherd *s, struct err *err)
{
	s->started_us = clock_us();
	int r = lock_take(s, err);
	if (r < 0)
		return r;
	r = kill_leftovers(s->set.state_dir, 0, err);
	if (r > 0)
		log_warning("shepherd",
			    "%d processes of an earlier daemon were left and are killed", r);
	/* What hangs in the kernel cannot be helped; it is no reason not to serve. */
	if (r < 0) {
		log_error("shepherd", "%s", err->msg);
		*err = (struct err){ 0 };
	}
	cgroups_open(&s->cgroups, s->set.state_dir);
	r = incarnation_next(s, err);
	return r < 0 ? r : beats_open(s, -1, -1, err);
}

static int take_over(struct shepherd *s, int fd, bool refused, struct err *err)
{
	int old_fd = -1;
	cgroups_find(&s->cgroups, s->set.state_dir);
	int r = handover_take(s, fd, &old_fd, err);
	if (r == 0) {
		close_p(&old_fd);
		(void)close(fd);
		return 0;
	}
	if (old_fd < 0 || refused)
		return r;
	log_error("shepherd", "%s; the former program goes on", err->msg);
	char number[16];
	char **argv = xcalloc((size_t)s->set.argc + 4, sizeof(char *));
	snprintf(number, sizeof(number), "%d", fd);
	memcpy(argv, s->set.argv, (size_t)s->set.argc * sizeof(char *));
	argv[s->set.argc] = "--takeover";
	argv[s->set.argc + 1] = number;
	argv[s->set.argc + 2] = "--refused";
	(void)syscall(SYS_execveat, old_fd, "", argv, environ, AT_EMPTY_PATH);
	free(argv);
	return r;
}

static int setup(struct shepherd *s, const struct options *o, struct err *err)
{
	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	s->null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (s->epoll_fd < 0 || s->null_fd < 0)
		return err_set(err, -errno, "start: %s", strerror(errno));
	static_assert(sizeof(s->node_mark) == PROC_MARK_SIZE, "holds a mark");
	(void)proc_node_mark(s->set.state_dir, s->node_mark);
	tasks_init(s);
	leases_init(s);
	int r = signals_open(s, err);
	if (r == 0)
		r = o->takeover_fd >= 0 ? take_over(s, o->takeover_fd, o->refused, err)
					: fresh_start(s, err);
	if (r < 0)
		return r;
	/* Nothing that we were given by accident goes on to children. */
	(void)syscall(SYS_close_range, 3, ~0U, 1U << 2 /* CLOSE_RANGE_CLOEXEC */);
	facts_gather(s);
	notify_init(s);
	proc_title("copiad: shepherd");
	log_info("shepherd", "%s: state %s, port %u, incarnation %llu",
		 s->upgraded ? "took over" : "started", s->set.state_dir, s->set.port,
		 (unsigned long long)s->incarnation);
	r = brain_start(s, err);
	/* A child may have ended between two programs. */
	children_ended(s);
	return r;
}

int main(int argc, char **argv)
{
	static struct shepherd s = {
		.epoll_fd = -1, .null_fd = -1, .lock_fd = -1, .signals = { .fd = -1 }
	};
	struct options o;
	struct err err = { 0 };
	proc_title_init(argc, argv);
	s.brain.link_watch.fd = -1;
	s.brain.status_fd = s.upgrade_status_fd = -1;
	int r = settings_read(&s.set, argc, argv, &o, &err);
	if (r > 0)
		return r - 1;
	if (r == 0)
		r = setup(&s, &o, &err);
	if (r < 0) {
		log_error("copiad", "%s", err.msg);
		return 1;
	}
	loop_run(&s);
	cgroups_remove(&s.cgroups);
	log_info("shepherd", "ended");
	return s.quit_code;
}
