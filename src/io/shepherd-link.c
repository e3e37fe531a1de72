/* SPDX-License-Identifier: Apache-2.0 */
#include "io/shepherd-link.h"

#include "base/str.h"
#include "io/fdpass.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <time.h>

enum {
	EVENTS_PER_DISPATCH = 256,
	BATCH_BYTES = 256 << 10, /* a frame of a split batch holds about so much */
};

struct shepherd_link {
	struct fdlink *wire;
	shepherd_event *on_event;
	void *ctx;
	uint64_t last_call;
	struct str packed; /* reused */
};

struct shepherd_link *shepherd_link_new(int fd, shepherd_event *on_event, void *ctx)
{
	assert(on_event);
	struct shepherd_link *l = xcalloc(1, sizeof(*l));
	l->wire = fdlink_new(fd);
	l->on_event = on_event;
	l->ctx = ctx;
	return l;
}

struct shepherd_link *shepherd_link_free(struct shepherd_link *l)
{
	if (!l)
		return NULL;
	fdlink_free(l->wire);
	str_free(&l->packed);
	free(l);
	return NULL;
}

int shepherd_link_fd(const struct shepherd_link *l)
{
	return fdlink_fd(l->wire);
}

bool shepherd_link_wants_write(const struct shepherd_link *l)
{
	return fdlink_queued(l->wire) > 0;
}

static void take_fds(const Copia__Shepherd__Fds *has, struct fdframe *frame, struct task_fds *ret)
{
	struct {
		bool is;
		int *to;
	} const order[] = {
		{ has->staging, &ret->staging }, { has->stdout, &ret->out },
		{ has->stderr, &ret->err },      { has->terminal, &ret->terminal },
		{ has->pidfd, &ret->pidfd },
	};
	unsigned at = 0;
	for (size_t i = 0; i < ARRAY_LEN(order); i++)
		if (order[i].is && at < frame->fd_count) {
			*order[i].to = frame->fds[at];
			frame->fds[at++] = -1;
		}
}

static int deliver(struct shepherd_link *l, struct fdframe *frame, struct err *err)
{
	Copia__Shepherd__Event *e = copia__shepherd__event__unpack(NULL, frame->len, frame->at);
	if (!e)
		return err_set(err, -EBADMSG, "a message of the shepherd cannot be read");
	struct task_fds fds = { -1, -1, -1, -1, -1 };
	if (e->tell_case == COPIA__SHEPHERD__EVENT__TELL_SPAWNED && e->spawned->fds)
		take_fds(e->spawned->fds, frame, &fds);
	else if (e->tell_case == COPIA__SHEPHERD__EVENT__TELL_TASK && e->task->fds)
		take_fds(e->task->fds, frame, &fds);
	l->on_event(l->ctx, e, &fds);
	close_p(&fds.staging);
	close_p(&fds.out);
	close_p(&fds.err);
	close_p(&fds.terminal);
	close_p(&fds.pidfd);
	copia__shepherd__event__free_unpacked(e, NULL);
	return 0;
}

int shepherd_link_dispatch(struct shepherd_link *l, struct err *err)
{
	struct err flush_err = { 0 };
	/* When the shepherd is gone, reading says so after what it still sent. */
	(void)fdlink_flush(l->wire, &flush_err);
	for (int i = 0; i < EVENTS_PER_DISPATCH; i++) {
		struct fdframe frame;
		int r = fdlink_receive(l->wire, &frame, err);
		if (r > 0)
			r = deliver(l, &frame, err);
		else
			return r;
		if (r < 0)
			return r;
	}
	return 1;
}

uint64_t shepherd_link_call(struct shepherd_link *l)
{
	return ++l->last_call;
}

int shepherd_link_send(struct shepherd_link *l, const Copia__Shepherd__Request *request,
		       const int *fds, unsigned fd_count, struct err *err)
{
	size_t size = copia__shepherd__request__get_packed_size(request);
	if (size > FDLINK_FRAME_MAX)
		return err_set(err, -EMSGSIZE, "request of %zu bytes is too large, at most %d",
			       size, FDLINK_FRAME_MAX);
	str_clear(&l->packed);
	str_reserve(&l->packed, size);
	(void)copia__shepherd__request__pack(request, (uint8_t *)l->packed.at);
	return fdlink_send(l->wire, l->packed.at, size, fds, fd_count, err);
}

/* One line per kind of request: the envelope with one member set. */
#define SEND(l, call_, CASE, member, message)                                                      \
	({                                                                                         \
		Copia__Shepherd__Request request_ = COPIA__SHEPHERD__REQUEST__INIT;                \
		request_.call = (call_);                                                           \
		request_.ask_case = COPIA__SHEPHERD__REQUEST__ASK_##CASE;                          \
		request_.member = (message);                                                       \
		shepherd_link_send((l), &request_, NULL, 0, NULL);                                 \
	})

static ProtobufCBinaryData id_bytes(const struct id *id)
{
	return (ProtobufCBinaryData){ ID_SIZE, (uint8_t *)id->at };
}

int shepherd_ready(struct shepherd_link *l, uint32_t watchdog_ms, const char *status)
{
	Copia__Shepherd__Ready m = COPIA__SHEPHERD__READY__INIT;
	m.watchdog_ms = watchdog_ms;
	m.status = (char *)(status ? status : "");
	return SEND(l, 0, READY, ready, &m);
}

int shepherd_alive(struct shepherd_link *l)
{
	Copia__Shepherd__Alive m = COPIA__SHEPHERD__ALIVE__INIT;
	return SEND(l, 0, ALIVE, alive, &m);
}

static int send_batch(struct shepherd_link *l, uint64_t call, Copia__Shepherd__Spawn **tasks,
		      size_t count, const int *fds, unsigned fd_count, struct err *err)
{
	Copia__Shepherd__SpawnBatch batch = COPIA__SHEPHERD__SPAWN_BATCH__INIT;
	Copia__Shepherd__Request request = COPIA__SHEPHERD__REQUEST__INIT;
	batch.n_tasks = count;
	batch.tasks = tasks;
	request.call = call;
	request.ask_case = COPIA__SHEPHERD__REQUEST__ASK_SPAWN;
	request.spawn = &batch;
	return shepherd_link_send(l, &request, fds, fd_count, err);
}

int shepherd_spawn(struct shepherd_link *l, uint64_t call, Copia__Shepherd__Spawn **tasks,
		   size_t count, const int *fds, unsigned fd_count, struct err *err)
{
	if (fd_count > 0)
		return send_batch(l, call, tasks, count, fds, fd_count, err);
	size_t from = 0, bytes = 0;
	for (size_t i = 0; i < count; i++) {
		size_t size = copia__shepherd__spawn__get_packed_size(tasks[i]);
		if (i > from && bytes + size > BATCH_BYTES) {
			int r = send_batch(l, call, tasks + from, i - from, NULL, 0, err);
			if (r < 0)
				return r;
			from = i;
			bytes = 0;
		}
		bytes += size;
	}
	return from < count ? send_batch(l, call, tasks + from, count - from, NULL, 0, err) : 0;
}

int shepherd_kill(struct shepherd_link *l, uint64_t call, const struct id *task, int signal)
{
	Copia__Shepherd__Kill m = COPIA__SHEPHERD__KILL__INIT;
	m.task = id_bytes(task);
	m.signal = signal;
	return SEND(l, call, KILL, kill, &m);
}

int shepherd_kill_job(struct shepherd_link *l, uint64_t call, const struct id *job, int signal)
{
	Copia__Shepherd__Kill m = COPIA__SHEPHERD__KILL__INIT;
	m.job = id_bytes(job);
	m.signal = signal;
	return SEND(l, call, KILL, kill, &m);
}

int shepherd_terminate(struct shepherd_link *l, uint64_t call, const struct id *task,
		       uint32_t grace_ms)
{
	Copia__Shepherd__Kill m = COPIA__SHEPHERD__KILL__INIT;
	m.task = id_bytes(task);
	m.grace_ms = grace_ms;
	return SEND(l, call, KILL, kill, &m);
}

int shepherd_consume(struct shepherd_link *l, const struct id *task, Copia__Shepherd__Stream stream,
		     uint64_t upto)
{
	Copia__Shepherd__Consume m = COPIA__SHEPHERD__CONSUME__INIT;
	m.task = id_bytes(task);
	m.stream = stream;
	m.upto = upto;
	return SEND(l, 0, CONSUME, consume, &m);
}

int shepherd_pump(struct shepherd_link *l, const struct id *task, uint64_t upto)
{
	Copia__Shepherd__Pump m = COPIA__SHEPHERD__PUMP__INIT;
	m.task = id_bytes(task);
	m.upto = upto;
	return SEND(l, 0, PUMP, pump, &m);
}

int shepherd_close_stdin(struct shepherd_link *l, const struct id *task)
{
	Copia__Shepherd__CloseStdin m = COPIA__SHEPHERD__CLOSE_STDIN__INIT;
	m.task = id_bytes(task);
	return SEND(l, 0, CLOSE_STDIN, close_stdin, &m);
}

int shepherd_winsize(struct shepherd_link *l, const struct id *task, uint32_t rows, uint32_t cols)
{
	Copia__Shepherd__Winsize m = COPIA__SHEPHERD__WINSIZE__INIT;
	m.task = id_bytes(task);
	m.rows = rows;
	m.cols = cols;
	return SEND(l, 0, WINSIZE, winsize, &m);
}

int shepherd_release(struct shepherd_link *l, const struct id *task)
{
	Copia__Shepherd__Release m = COPIA__SHEPHERD__RELEASE__INIT;
	m.task = id_bytes(task);
	return SEND(l, 0, RELEASE, release, &m);
}

int shepherd_leader(struct shepherd_link *l, uint64_t term, uint64_t quorum_until_us)
{
	Copia__Shepherd__Leader m = COPIA__SHEPHERD__LEADER__INIT;
	m.term = term;
	m.quorum_until_us = quorum_until_us;
	return SEND(l, 0, LEADER, leader, &m);
}

uint64_t shepherd_now_us(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}
