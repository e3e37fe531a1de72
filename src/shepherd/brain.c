/* SPDX-License-Identifier: Apache-2.0 */
/* The child that decides: started, watched, restarted, and talked to. */
#include "shepherd/beats.h"
#include "shepherd/task.h"

#include "base/log.h"
#include "io/child.h"
#include "io/proc.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
	BACKOFF_FIRST_MS = 100,
	BACKOFF_MOST_MS = 5000,
	GOOD_LIFE_US = 10000000, /* after so long a crash counts as the first one again */
	REQUESTS_PER_ROUND = 64,
	STUCK_US = 5000,
	OOM_SCORE = -800,
};

extern char **environ;

bool brain_is_there(const struct shepherd *s)
{
	/* Being restarted within its budget counts; dying again and again does not. */
	return s->brain.pid > 0 || s->brain.failures <= 3;
}

void event_send(struct shepherd *s, Copia__Shepherd__Event *e, const int *fds, unsigned fd_count)
{
	if (!s->brain.link || s->brain.link_watch.fd < 0)
		return;
	struct err err = { 0 };
	size_t size = copia__shepherd__event__get_packed_size(e);
	str_clear(&s->packed);
	str_reserve(&s->packed, size);
	(void)copia__shepherd__event__pack(e, (uint8_t *)s->packed.at);
	if (fdlink_send(s->brain.link, s->packed.at, size, fds, fd_count, &err) < 0)
		brain_kill(s, err.msg);
}

void done_send(struct shepherd *s, uint64_t call, const struct id *task, int code,
	       const char *error, uint32_t count)
{
	if (call == 0 && code == 0)
		return;
	Copia__Shepherd__Done m = COPIA__SHEPHERD__DONE__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	m.code = code;
	m.error = (char *)(error ? error : "");
	m.count = count;
	if (task)
		m.task = id_view(task);
	e.call = call;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_DONE;
	e.done = &m;
	event_send(s, &e, NULL, 0);
}

static void link_close(struct shepherd *s)
{
	watch_drop(s, &s->brain.link_watch);
	s->brain.link = fdlink_free(s->brain.link);
	s->brain.more = false;
}

void brain_kill(struct shepherd *s, const char *why)
{
	log_warning("brain", "brain %d is ended: %s", (int)s->brain.pid, why);
	/* The link stays until the end is known: whoever calls may be using it. */
	watch_drop(s, &s->brain.link_watch);
	if (s->brain.pid > 0)
		(void)kill(s->brain.pid, SIGKILL);
}

static void take_requests(struct shepherd *s)
{
	struct brain *b = &s->brain;
	struct err err = { 0 };
	b->more = false;
	for (int i = 0; b->link_watch.fd >= 0; i++) {
		if (i == REQUESTS_PER_ROUND || fdlink_queued(b->link) > BRAIN_QUEUE_MAX) {
			b->more = true;
			return;
		}
		struct fdframe frame;
		int r = fdlink_receive(b->link, &frame, &err);
		if (r == 0)
			return;
		Copia__Shepherd__Request *m =
		    r > 0 ? copia__shepherd__request__unpack(NULL, frame.len, frame.at) : NULL;
		if (!m) {
			brain_kill(s, r > 0 ? "its request cannot be read" : err.msg);
			return;
		}
		b->heard_us = s->now_us;
		request_handle(s, m, frame.fds, frame.fd_count);
		copia__shepherd__request__free_unpacked(m, NULL);
	}
}

static void link_ready(struct shepherd *s, struct watch *w, uint32_t events)
{
	struct err err = { 0 };
	if (events & EPOLLOUT && fdlink_flush(s->brain.link, &err) < 0) {
		brain_kill(s, err.msg);
		return;
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		take_requests(s);
}

void brain_interest(struct shepherd *s)
{
	struct brain *b = &s->brain;
	if (b->link_watch.fd < 0)
		return;
	size_t queued = fdlink_queued(b->link);
	uint32_t events = queued > BRAIN_QUEUE_MAX ? 0 : EPOLLIN;
	if (queued > 0 && !fdlink_stuck(b->link))
		events |= EPOLLOUT;
	watch_change(s, &b->link_watch, events);
}

static void hello_send(struct shepherd *s)
{
	Copia__Shepherd__Hello m = COPIA__SHEPHERD__HELLO__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	Copia__Shepherd__LeaseState lease = COPIA__SHEPHERD__LEASE_STATE__INIT;
	Copia__Shepherd__Fact facts[FACTS_MAX], *list[FACTS_MAX];
	for (unsigned i = 0; i < s->fact_count; i++) {
		copia__shepherd__fact__init(&facts[i]);
		facts[i].name = (char *)s->facts[i].name;
		facts[i].ok = s->facts[i].ok;
		facts[i].detail = s->facts[i].detail;
		facts[i].loss = (char *)s->facts[i].loss;
		facts[i].remedy = (char *)s->facts[i].remedy;
		list[i] = &facts[i];
	}
	leases_message(s, &lease);
	m.version = COPIA_VERSION;
	m.protocol = PROTOCOL;
	m.incarnation = s->incarnation;
	m.pid = (uint32_t)getpid();
	m.started_us = s->started_us;
	m.brain_starts = s->brain.starts;
	m.brain_end = s->brain.end;
	m.n_facts = s->fact_count;
	m.facts = list;
	m.tasks_max = s->tasks_max;
	m.port = s->set.port;
	m.upgraded = s->upgraded;
	m.lease = &lease;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_HELLO;
	e.hello = &m;
	event_send(s, &e, NULL, 0);
}

/* Our environment without what is between systemd and us, and with the marks. NULL-terminated;
 * the strings are borrowed but for the last two. */
static char **brain_env(const struct shepherd *s)
{
	static const char *const hidden[] = { "NOTIFY_SOCKET=",    "WATCHDOG_PID=",
					      "WATCHDOG_USEC=",    PROC_TASK_MARK "=",
					      PROC_STATE_MARK "=", PROC_NODE_MARK "=" };
	size_t count = 0, at = 0;
	while (environ[count])
		count++;
	char mark_text[PROC_MARK_SIZE];
	char **env = xcalloc(count + 4, sizeof(char *));
	for (size_t i = 0; i < count; i++) {
		bool hide = false;
		for (size_t k = 0; k < ARRAY_LEN(hidden); k++)
			hide |= strncmp(environ[i], hidden[k], strlen(hidden[k])) == 0;
		if (!hide)
			env[at++] = environ[i];
	}
	struct str state = { 0 }, mark = { 0 };
	str_printf(&state, PROC_STATE_MARK "=%s", s->set.state_dir);
	str_printf(&mark, PROC_NODE_MARK "=%s", proc_node_mark(s->set.state_dir, mark_text));
	env[at++] = (char *)PROC_TASK_MARK "=brain";
	env[at++] = str_take(&state);
	env[at] = str_take(&mark);
	return env;
}

static int launch(struct shepherd *s, int theirs, struct child *ret, struct err *err)
{
	char port[16];
	snprintf(port, sizeof(port), "%u", s->set.port);
	char *argv[] = { s->set.brain_path,
			 "--state",
			 s->set.state_dir,
			 "--run",
			 s->set.run_dir,
			 "--port",
			 port,
			 "--log-level",
			 s->set.log_level,
			 s->set.name[0] ? "--name" : NULL,
			 s->set.name,
			 NULL };
	char **env = brain_env(s);
	const struct child_spec spec = {
		.argv = argv,
		.env = env,
		.exe = s->set.brain_path,
		.exe_fd = -1,
		.stdio = { -1, STDOUT_FILENO, STDERR_FILENO },
		.keep = &theirs,
		.keep_count = 1,
		.oom_score = geteuid() == 0 ? OOM_SCORE : 0,
		.umask = 022,
		.cgroup_fd = -1,
	};
	int r = child_start(&spec, ret, err);
	size_t last = 0;
	while (env[last])
		last++;
	free(env[last - 1]);
	free(env[last - 2]);
	free(env);
	return r;
}

int brain_start(struct shepherd *s, struct err *err)
{
	struct brain *b = &s->brain;
	struct child child;
	int ends[2];
	assert(b->pid == 0 && !b->link);
	b->start_at_us = 0;
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
		return err_set(err, -errno, "start the brain: %s", strerror(errno));
	int r = launch(s, ends[1], &child, err);
	close_p(&ends[1]);
	if (r < 0) {
		close_p(&ends[0]);
		return r;
	}
	close_p(&child.pidfd);
	b->link = fdlink_new(ends[0]);
	b->pid = child.pid;
	b->status_fd = child.status_fd;
	b->starts++;
	b->ready = false;
	b->watchdog_ms = 0;
	b->started_us = b->heard_us = clock_us();
	b->link_watch.ready = link_ready;
	r = watch_add(s, &b->link_watch, ends[0], EPOLLIN);
	if (r < 0)
		brain_kill(s, strerror(-r));
	hello_send(s);
	tasks_tell(s);
	if (beats_next_us(s) != UINT64_MAX)
		beats_report(s);
	return 0;
}

static void plan_restart(struct shepherd *s)
{
	struct brain *b = &s->brain;
	uint64_t now_us = clock_us(), delay_ms = 0;
	b->failures = now_us - b->started_us > GOOD_LIFE_US ? 0 : b->failures;
	if (b->failures > 0)
		delay_ms = BACKOFF_FIRST_MS << MIN(b->failures - 1, 6U);
	b->failures++;
	delay_ms = MIN(delay_ms, (uint64_t)BACKOFF_MOST_MS);
	b->start_at_us = now_us + delay_ms * 1000;
	log_warning("brain", "brain ended (%s); restarted in %llu ms, tasks go on", b->end,
		    (unsigned long long)delay_ms);
	notify_send(s, "STATUS=brain ended (%s), restarting", b->end);
}

void brain_ended(struct shepherd *s, int status)
{
	struct brain *b = &s->brain;
	struct err err = { 0 };
	int r = b->status_fd >= 0 ? child_result(b->status_fd, &err) : 1;
	if (r < 0)
		snprintf(b->end, sizeof(b->end), "%s", err.msg);
	else if (WIFSIGNALED(status))
		snprintf(b->end, sizeof(b->end), "killed by signal %d", WTERMSIG(status));
	else
		snprintf(b->end, sizeof(b->end), "exit code %d", WEXITSTATUS(status));
	close_p(&b->status_fd);
	link_close(s);
	b->pid = 0;
	if (s->passage != PASSAGE_NONE)
		return;
	if (r < 0 && b->starts == 1 && !s->upgraded) {
		log_error("brain", "the brain cannot be started: %s", err.msg);
		s->quit = true;
		s->quit_code = 1;
		return;
	}
	plan_restart(s);
}

static bool watchdog_bites(const struct shepherd *s)
{
	const struct brain *b = &s->brain;
	return b->pid > 0 && b->watchdog_ms > 0 && b->link_watch.fd >= 0 &&
	       s->now_us >= b->heard_us + b->watchdog_ms * 1000ULL;
}

void brain_tick(struct shepherd *s)
{
	struct brain *b = &s->brain;
	struct err err = { 0 };
	if (b->pid == 0 && b->start_at_us && b->start_at_us <= s->now_us) {
		if (brain_start(s, &err) < 0) {
			snprintf(b->end, sizeof(b->end), "%s", err.msg);
			plan_restart(s);
		}
		return;
	}
	if (b->link && fdlink_stuck(b->link) && fdlink_flush(b->link, &err) < 0)
		brain_kill(s, err.msg);
	if (b->more && fdlink_queued(b->link) <= BRAIN_QUEUE_MAX)
		take_requests(s);
	if (watchdog_bites(s))
		brain_kill(s, "it gave no sign of life");
}

uint64_t brain_next_us(const struct shepherd *s)
{
	const struct brain *b = &s->brain;
	if (b->pid == 0)
		return b->start_at_us ? b->start_at_us : UINT64_MAX;
	if (b->link_watch.fd < 0)
		return UINT64_MAX;
	if (b->more && fdlink_queued(b->link) <= BRAIN_QUEUE_MAX)
		return 0;
	uint64_t next_us = b->watchdog_ms ? b->heard_us + b->watchdog_ms * 1000ULL : UINT64_MAX;
	return fdlink_stuck(b->link) ? MIN(next_us, s->now_us + STUCK_US) : next_us;
}
