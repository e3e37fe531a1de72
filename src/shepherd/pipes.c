/* SPDX-License-Identifier: Apache-2.0 */
/* Our side of the tasks' pipes: bytes are moved by splice() inside the kernel, never read. The
 * offsets here are the truth that outlives the brain. */
#include "shepherd/task.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
	PIPE_SIZE = 1 << 20,
	/* An ordinary user has 64 MiB of pipes (pipe-user-pages-soft), and pipes beyond that shrink
	 * to two pages: large ones for the first tasks only. */
	GROWN_MAX = 24,
};

void streams_init(struct task_streams *io)
{
	*io = (struct task_streams){ .in = -1,
				     .staging_read = -1,
				     .staging_write = -1,
				     .out = { -1, -1 },
				     .terminal = -1,
				     .closed = true };
	io->in_watch.fd = -1;
}

void streams_close(struct shepherd *s, struct task *t)
{
	struct task_streams *io = &t->io;
	watch_drop(s, &io->in_watch);
	close_p(&io->in);
	close_p(&io->staging_read);
	close_p(&io->staging_write);
	close_p(&io->out[0]);
	close_p(&io->out[1]);
	close_p(&io->terminal);
}

int streams_pipe(struct shepherd *s, int keep, int *ret_ours, int *ret_theirs, bool grow)
{
	int fds[2];
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	(void)fcntl(fds[keep], F_SETFL, fcntl(fds[keep], F_GETFL) | O_NONBLOCK);
	bool may = grow && (geteuid() == 0 || s->grown_pipes < GROWN_MAX);
	for (int size = PIPE_SIZE; may && size > 64 << 10; size /= 4)
		if (fcntl(fds[0], F_SETPIPE_SZ, size) >= 0) {
			s->grown_pipes++;
			break;
		}
	*ret_ours = fds[keep];
	*ret_theirs = fds[!keep];
	return 0;
}

static bool no_writer_left(int fd)
{
	struct pollfd p = { .fd = fd };
	return poll(&p, 1, 0) == 1 && p.revents & POLLHUP;
}

int streams_consume(struct shepherd *s, struct task *t, int which, uint64_t upto, bool *ret_ended,
		    struct err *err)
{
	int fd = t->io.out[which];
	uint64_t *at = &t->io.consumed[which];
	if (fd < 0)
		return err_set(err, -EBADF, "the task has no such output pipe");
	bool gone = no_writer_left(fd);
	int waiting = 0;
	if (ioctl(fd, FIONREAD, &waiting) < 0)
		return err_set(err, -errno, "look at the pipe: %s", strerror(errno));
	uint64_t end = *at + (uint64_t)waiting;
	if (upto > end)
		return err_set(err, -ERANGE, "consume up to %llu, but only %llu bytes were written",
			       (unsigned long long)upto, (unsigned long long)end);
	while (*at < upto) {
		ssize_t n =
		    splice(fd, NULL, s->null_fd, NULL, (size_t)(upto - *at), SPLICE_F_NONBLOCK);
		if (n <= 0)
			return err_set(err, n < 0 ? -errno : -EIO, "drop from the pipe: %s",
				       strerror(n < 0 ? errno : EIO));
		*at += (uint64_t)n;
	}
	*ret_ended = gone && *at == end;
	return 0;
}

static void close_input(struct shepherd *s, struct task *t)
{
	struct task_streams *io = &t->io;
	watch_drop(s, &io->in_watch);
	close_p(&io->in);
	close_p(&io->staging_read);
	close_p(&io->staging_write);
	io->closed = true;
}

static void tell_pumped(struct shepherd *s, struct task *t)
{
	Copia__Shepherd__Pumped m = COPIA__SHEPHERD__PUMPED__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	m.task = id_view(&t->id);
	m.pumped = t->io.pumped;
	m.closed = t->io.closed;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_PUMPED;
	e.pumped = &m;
	event_send(s, &e, NULL, 0);
}

static void input_ready(struct shepherd *s, struct watch *w, uint32_t events)
{
	struct task *t = CONTAINER(w, struct task, io.in_watch);
	streams_pump(s, t, false);
}

/* 1 all ordered bytes moved, 0 the task's pipe is full, < 0 the task takes no more. */
static int move_input(struct task_streams *io)
{
	int staged = 0;
	while (io->pumped < io->pump_upto || io->closing) {
		if (ioctl(io->staging_read, FIONREAD, &staged) < 0 || staged == 0)
			return 1;
		uint64_t most = io->closing ? (uint64_t)staged : io->pump_upto - io->pumped;
		ssize_t n =
		    splice(io->staging_read, NULL, io->in, NULL, (size_t)most, SPLICE_F_NONBLOCK);
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0)
			return n < 0 ? -errno : -EPIPE;
		io->pumped += (uint64_t)n;
	}
	return 1;
}

void streams_pump(struct shepherd *s, struct task *t, bool tell)
{
	struct task_streams *io = &t->io;
	if (io->closed) {
		if (tell)
			tell_pumped(s, t);
		return;
	}
	uint64_t before = io->pumped;
	int r = move_input(io);
	if (r < 0 || (r == 1 && io->closing))
		close_input(s, t);
	else if (r == 1)
		watch_drop(s, &io->in_watch);
	else if (io->in_watch.fd < 0) {
		io->in_watch.ready = input_ready;
		(void)watch_add(s, &io->in_watch, io->in, EPOLLOUT);
	}
	if (tell || io->pumped != before || io->closed)
		tell_pumped(s, t);
}

void streams_reset(struct shepherd *s, struct task *t)
{
	struct task_streams *io = &t->io;
	/* CloseStdin said that all of it was meant: that order stands. */
	if (io->closed || io->closing)
		return;
	watch_drop(s, &io->in_watch);
	while (splice(io->staging_read, NULL, s->null_fd, NULL, PIPE_SIZE, SPLICE_F_NONBLOCK) > 0)
		;
	io->pump_upto = io->pumped;
}
