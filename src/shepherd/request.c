/* SPDX-License-Identifier: Apache-2.0 */
/* What the brain asks for: one handler per kind of request. */
#include "shepherd/beats.h"
#include "shepherd/task.h"

#include "cluster/lease.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>

typedef Copia__Shepherd__Request request;

/* Returns 0, or a negative errno with err set: then Done says so. Handlers that answer themselves
 * set *ret_answered. */
typedef int handler(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		    bool *ret_answered, struct err *err);

static int find(struct shepherd *s, const ProtobufCBinaryData *id, struct task **ret,
		struct err *err)
{
	struct id key;
	if (id->len != ID_SIZE)
		return err_set(err, -EINVAL, "ids have 16 bytes");
	memcpy(key.at, id->data, ID_SIZE);
	struct task *t = task_find(s, &key);
	if (!t || t->state == TASK_FAILED)
		return err_set(err, -ENOENT, "no such task on this node");
	*ret = t;
	return 0;
}

static int on_ready(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		    bool *ret_answered, struct err *err)
{
	s->brain.ready = true;
	s->brain.watchdog_ms = r->ready->watchdog_ms;
	notify_send(s, "READY=1\nSTATUS=%s", r->ready->status[0] ? r->ready->status : "running");
	return 0;
}

static int on_alive(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		    bool *ret_answered, struct err *err)
{
	if (r->alive->status[0])
		notify_send(s, "STATUS=%s", r->alive->status);
	return 0;
}

static int on_spawn(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		    bool *ret_answered, struct err *err)
{
	for (size_t i = 0; i < r->spawn->n_tasks; i++)
		spawn_request(s, r->call, r->spawn->tasks[i], fds, fd_count);
	*ret_answered = true;
	return 0;
}

struct kill_order {
	const Copia__Shepherd__Kill *m;
	struct id job;
	uint32_t count;
};

static void kill_one(struct shepherd *s, struct task *t, void *ctx)
{
	struct kill_order *k = ctx;
	if (!task_is_live(t) || (k->m->task.len == 0 && id_compare(&t->job, &k->job) != 0))
		return;
	k->count++;
	if (k->m->signal == 0) {
		task_terminate(s, t, k->m->grace_ms, "asked");
		return;
	}
	if (k->m->signal == SIGKILL || k->m->signal == SIGTERM)
		t->why = task_why("asked");
	task_signal(s, t, k->m->signal, k->m->only_leader);
}

static int on_kill(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		   bool *ret_answered, struct err *err)
{
	const Copia__Shepherd__Kill *m = r->kill;
	struct kill_order k = { .m = m };
	struct task *t = NULL;
	if (m->signal < 0 || m->signal >= NSIG)
		return err_set(err, -EINVAL, "signal %d does not exist", m->signal);
	if (m->task.len > 0) {
		int e = find(s, &m->task, &t, err);
		if (e < 0)
			return e;
		kill_one(s, t, &k);
	} else if (m->job.len == ID_SIZE) {
		memcpy(k.job.at, m->job.data, ID_SIZE);
		if (id_is_none(&k.job))
			return err_set(err, -EINVAL, "kill names neither task nor job");
		tasks_each(s, kill_one, &k);
	} else {
		return err_set(err, -EINVAL, "kill names neither task nor job");
	}
	if (k.count == 0)
		return err_set(err, -ESRCH, "no task of that name runs");
	done_send(s, r->call, t ? &t->id : NULL, 0, NULL, k.count);
	*ret_answered = true;
	return 0;
}

static int on_consume(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		      bool *ret_answered, struct err *err)
{
	const Copia__Shepherd__Consume *m = r->consume;
	struct task *t = NULL;
	bool ended = false;
	int e = find(s, &m->task, &t, err);
	if (e == 0 && m->stream != COPIA__SHEPHERD__STREAM__STREAM_STDOUT &&
	    m->stream != COPIA__SHEPHERD__STREAM__STREAM_STDERR)
		e = err_set(err, -EINVAL, "stream %d is no output", (int)m->stream);
	if (e < 0)
		return e;
	int which = m->stream == COPIA__SHEPHERD__STREAM__STREAM_STDERR;
	e = streams_consume(s, t, which, m->upto, &ended, err);
	if (e < 0)
		return e;
	Copia__Shepherd__Consumed reply = COPIA__SHEPHERD__CONSUMED__INIT;
	Copia__Shepherd__Event event = COPIA__SHEPHERD__EVENT__INIT;
	reply.task = id_view(&t->id);
	reply.stream = m->stream;
	reply.consumed = t->io.consumed[which];
	reply.ended = ended;
	event.call = r->call;
	event.tell_case = COPIA__SHEPHERD__EVENT__TELL_CONSUMED;
	event.consumed = &reply;
	event_send(s, &event, NULL, 0);
	*ret_answered = true;
	return 0;
}

static int on_pump(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		   bool *ret_answered, struct err *err)
{
	struct task *t = NULL;
	int e = find(s, &r->pump->task, &t, err);
	if (e < 0)
		return e;
	int staged = 0;
	if (!t->io.closed)
		(void)ioctl(t->io.staging_read, FIONREAD, &staged);
	if (!t->io.closed && r->pump->upto > t->io.pumped + (uint64_t)staged)
		return err_set(err, -ERANGE, "pump up to %llu, but only %llu bytes were staged",
			       (unsigned long long)r->pump->upto,
			       (unsigned long long)t->io.pumped + (unsigned)staged);
	t->io.pump_upto = MAX(t->io.pump_upto, r->pump->upto);
	streams_pump(s, t, true);
	*ret_answered = true;
	return 0;
}

static int on_close_stdin(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
			  bool *ret_answered, struct err *err)
{
	struct task *t = NULL;
	int e = find(s, &r->close_stdin->task, &t, err);
	if (e < 0)
		return e;
	t->io.closing = true;
	streams_pump(s, t, true);
	return 0;
}

static int on_winsize(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		      bool *ret_answered, struct err *err)
{
	struct task *t = NULL;
	int e = find(s, &r->winsize->task, &t, err);
	if (e < 0)
		return e;
	struct winsize size = { .ws_row = (unsigned short)MIN(r->winsize->rows, 65535U),
				.ws_col = (unsigned short)MIN(r->winsize->cols, 65535U) };
	if (t->io.terminal < 0)
		return err_set(err, -ENOTTY, "the task has no terminal");
	if (ioctl(t->io.terminal, TIOCSWINSZ, &size) < 0)
		return err_set(err, -errno, "set the size of the terminal: %s", strerror(errno));
	return 0;
}

static int on_release(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		      bool *ret_answered, struct err *err)
{
	struct task *t = NULL;
	int e = find(s, &r->release->task, &t, err);
	if (e < 0)
		return e;
	if (task_is_live(t))
		return err_set(err, -EBUSY, "the task still runs: kill it first");
	done_send(s, r->call, &t->id, 0, NULL, 0);
	*ret_answered = true;
	if (!t->cleanup) {
		task_drop(s, t);
		return 0;
	}
	/* Gone for the brain; its record stays until nothing of it is left on the machine. */
	streams_close(s, t);
	t->state = TASK_FAILED;
	t->pid = 0;
	return 0;
}

static int on_heartbeats(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
			 bool *ret_answered, struct err *err)
{
	return beats_configure(s, r->heartbeats, err);
}

static int on_leader(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		     bool *ret_answered, struct err *err)
{
	if (lease_granter_lead(leases_granter(s), r->leader->term, r->leader->quorum_until_us))
		return 0;
	return err_set(err, -ESTALE, "term %llu is older than one named before",
		       (unsigned long long)r->leader->term);
}

static int on_grant_stop(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
			 bool *ret_answered, struct err *err)
{
	Copia__Shepherd__GrantStopped m = COPIA__SHEPHERD__GRANT_STOPPED__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	m.number = r->grant_stop->number;
	int code = beats_grant_stop(s, m.number, &m.ended_us, err);
	if (code < 0)
		return code;
	e.call = r->call;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_GRANT_STOPPED;
	e.grant_stopped = &m;
	event_send(s, &e, NULL, 0);
	*ret_answered = true;
	return 0;
}

static int on_upgrade(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		      bool *ret_answered, struct err *err)
{
	*ret_answered = true;
	upgrade_begin(s, r->call, r->upgrade->path[0] ? r->upgrade->path : s->set.own_path);
	return 0;
}

static int on_stop(struct shepherd *s, const request *r, const int *fds, unsigned fd_count,
		   bool *ret_answered, struct err *err)
{
	stop_begin(s, r->stop->grace_ms);
	return 0;
}

static handler *const handlers[] = {
	[COPIA__SHEPHERD__REQUEST__ASK_READY] = on_ready,
	[COPIA__SHEPHERD__REQUEST__ASK_SPAWN] = on_spawn,
	[COPIA__SHEPHERD__REQUEST__ASK_KILL] = on_kill,
	[COPIA__SHEPHERD__REQUEST__ASK_CONSUME] = on_consume,
	[COPIA__SHEPHERD__REQUEST__ASK_PUMP] = on_pump,
	[COPIA__SHEPHERD__REQUEST__ASK_CLOSE_STDIN] = on_close_stdin,
	[COPIA__SHEPHERD__REQUEST__ASK_WINSIZE] = on_winsize,
	[COPIA__SHEPHERD__REQUEST__ASK_RELEASE] = on_release,
	[COPIA__SHEPHERD__REQUEST__ASK_HEARTBEATS] = on_heartbeats,
	[COPIA__SHEPHERD__REQUEST__ASK_LEADER] = on_leader,
	[COPIA__SHEPHERD__REQUEST__ASK_GRANT_STOP] = on_grant_stop,
	[COPIA__SHEPHERD__REQUEST__ASK_UPGRADE] = on_upgrade,
	[COPIA__SHEPHERD__REQUEST__ASK_ALIVE] = on_alive,
	[COPIA__SHEPHERD__REQUEST__ASK_STOP] = on_stop,
};

/* Which task a failed request was about, so that the answer can say it. */
static const ProtobufCBinaryData *task_of(const request *r)
{
	switch (r->ask_case) {
	case COPIA__SHEPHERD__REQUEST__ASK_KILL:
		return &r->kill->task;
	case COPIA__SHEPHERD__REQUEST__ASK_CONSUME:
		return &r->consume->task;
	case COPIA__SHEPHERD__REQUEST__ASK_PUMP:
		return &r->pump->task;
	case COPIA__SHEPHERD__REQUEST__ASK_CLOSE_STDIN:
		return &r->close_stdin->task;
	case COPIA__SHEPHERD__REQUEST__ASK_WINSIZE:
		return &r->winsize->task;
	case COPIA__SHEPHERD__REQUEST__ASK_RELEASE:
		return &r->release->task;
	default:
		return NULL;
	}
}

void request_handle(struct shepherd *s, const Copia__Shepherd__Request *r, const int *fds,
		    unsigned fd_count)
{
	struct err err = { 0 };
	bool answered = false;
	unsigned which = (unsigned)r->ask_case;
	handler *h = which < ARRAY_LEN(handlers) ? handlers[which] : NULL;
	int code = h ? h(s, r, fds, fd_count, &answered, &err)
		     : err_set(&err, -ENOSYS, "copiad %s does not know this request: upgrade it",
			       COPIA_VERSION);
	if (answered && code == 0)
		return;
	const ProtobufCBinaryData *task = task_of(r);
	struct id id;
	bool has_id = task && task->len == ID_SIZE;
	if (has_id)
		memcpy(id.at, task->data, ID_SIZE);
	done_send(s, r->call, has_id ? &id : NULL, code, err.msg, 0);
}
