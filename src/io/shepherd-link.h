/* SPDX-License-Identifier: Apache-2.0 */
/* The brain's end of its link to the shepherd (descriptor 3 of the brain).
 *
 * Belongs to no event loop: the user watches shepherd_link_fd() for reading, and for writing while
 * shepherd_link_wants_write(), and calls shepherd_link_dispatch(). When that returns -EPIPE the
 * shepherd is gone: the brain must call kill_leftovers() (io/proc.h) and exit. */
#pragma once
#include "base/err.h"
#include "base/id.h"

#include "schema/shepherd.pb-c.h"

enum { SHEPHERD_LINK_FD = 3 };

struct shepherd_link;

/* Descriptors that came with Spawned or TaskState; -1 = none. What the receiver keeps it sets to
 * -1, the rest is closed when the callback returns. */
struct task_fds {
	int staging; /* write end: what goes to the task's stdin (struct stream_in) */
	int out;     /* read ends (struct stream_out) */
	int err;
	int terminal; /* master of its pty */
	int pidfd;
};

/* `fds` is never NULL; all -1 for events without descriptors. The event is freed afterwards. */
typedef void shepherd_event(void *ctx, const Copia__Shepherd__Event *event, struct task_fds *fds);

/* Takes over `fd`. */
struct shepherd_link *shepherd_link_new(int fd, shepherd_event *on_event, void *ctx);
struct shepherd_link *shepherd_link_free(struct shepherd_link *l);
int shepherd_link_fd(const struct shepherd_link *l);
bool shepherd_link_wants_write(const struct shepherd_link *l);
/* Read and write what is possible now; calls on_event for each event, at most 256 per call: returns
 * 1 when there may be more at once, else 0. Errors: -EPIPE the shepherd is gone, -EBADMSG. */
int shepherd_link_dispatch(struct shepherd_link *l, struct err *err);

/* A number for Request.call that was not used before on this link; never 0. */
uint64_t shepherd_link_call(struct shepherd_link *l);
/* Send any request; descriptors stay the caller's. Errors: -EMSGSIZE, -EPIPE. */
int shepherd_link_send(struct shepherd_link *l, const Copia__Shepherd__Request *request,
		       const int *fds, unsigned fd_count, struct err *err);

/* The common ones. `call` 0: no Done wanted. */
int shepherd_ready(struct shepherd_link *l, uint32_t watchdog_ms, const char *status);
int shepherd_alive(struct shepherd_link *l);
/* Tasks of one batch share the descriptors. Split into several frames as limits demand, but
 * descriptors force a batch to be one frame. */
int shepherd_spawn(struct shepherd_link *l, uint64_t call, Copia__Shepherd__Spawn **tasks,
		   size_t count, const int *fds, unsigned fd_count, struct err *err);
int shepherd_kill(struct shepherd_link *l, uint64_t call, const struct id *task, int signal);
int shepherd_kill_job(struct shepherd_link *l, uint64_t call, const struct id *job, int signal);
/* TERM now, KILL after grace_ms. */
int shepherd_terminate(struct shepherd_link *l, uint64_t call, const struct id *task,
		       uint32_t grace_ms);
int shepherd_consume(struct shepherd_link *l, const struct id *task, Copia__Shepherd__Stream stream,
		     uint64_t upto);
int shepherd_pump(struct shepherd_link *l, const struct id *task, uint64_t upto);
int shepherd_close_stdin(struct shepherd_link *l, const struct id *task);
int shepherd_winsize(struct shepherd_link *l, const struct id *task, uint32_t rows, uint32_t cols);
int shepherd_release(struct shepherd_link *l, const struct id *task);
int shepherd_leader(struct shepherd_link *l, uint64_t term, uint64_t quorum_until_us);

/* CLOCK_BOOTTIME in microseconds: the clock of every *_us of the schema. */
uint64_t shepherd_now_us(void);
