/* SPDX-License-Identifier: Apache-2.0 */
#include "io/streams.h"

#include "io/fdpass.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { SCRATCH_SIZE = 1 << 20, WATCH_BATCH = 64 };

int stream_scratch_init(struct stream_scratch *s, struct err *err)
{
	s->pipe[0] = s->pipe[1] = -1;
	s->null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	if (s->null_fd < 0 || pipe2(s->pipe, O_CLOEXEC | O_NONBLOCK) < 0) {
		int code = -errno;
		stream_scratch_deinit(s);
		return err_set(err, code, "make a pipe for output: %s", strerror(-code));
	}
	/* A smaller one works too: then less is under way unacknowledged. */
	for (int size = SCRATCH_SIZE; size > 64 << 10; size /= 2)
		if (fcntl(s->pipe[1], F_SETPIPE_SZ, size) >= 0)
			break;
	return 0;
}

void stream_scratch_deinit(struct stream_scratch *s)
{
	close_p(&s->pipe[0]);
	close_p(&s->pipe[1]);
	close_p(&s->null_fd);
}

void stream_out_init(struct stream_out *s, int fd, uint64_t consumed)
{
	*s = (struct stream_out){ .fd = fd,
				  .consumed = consumed,
				  .sent = consumed,
				  .acked = consumed,
				  .finished = fd < 0,
				  .ended = fd < 0 };
}

void stream_out_deinit(struct stream_out *s)
{
	close_p(&s->fd);
}

/* Throw away `count` bytes of the scratch pipe. */
static int scratch_drop(struct stream_scratch *s, size_t count)
{
	while (count > 0) {
		ssize_t n = splice(s->pipe[0], NULL, s->null_fd, NULL, count, SPLICE_F_NONBLOCK);
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		count -= (size_t)n;
	}
	return 0;
}

static int scratch_read(struct stream_scratch *s, uint8_t *buf, size_t count)
{
	for (size_t at = 0; at < count;) {
		ssize_t n = read(s->pipe[0], buf + at, count - at);
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		at += (size_t)n;
	}
	return 0;
}

static bool writers_gone(int fd)
{
	struct pollfd p = { .fd = fd };
	return poll(&p, 1, 0) == 1 && p.revents & POLLHUP;
}

int stream_out_read(struct stream_out *s, struct stream_scratch *scratch, void *buf, size_t size,
		    size_t *ret_len, struct err *err)
{
	assert(size > 0);
	*ret_len = 0;
	if (s->fd < 0 || s->finished || s->consuming)
		return 0;
	/* Asked before counting: what is written in between is then seen as available. */
	bool gone = writers_gone(s->fd);
	int available = 0;
	if (ioctl(s->fd, FIONREAD, &available) < 0)
		return err_set(err, -errno, "look at output: %s", strerror(errno));
	size_t skip = (size_t)(s->sent - s->consumed);
	if ((size_t)available <= skip) {
		s->finished = gone;
		return 0;
	}
	ssize_t n = tee(s->fd, scratch->pipe[1], skip + size, SPLICE_F_NONBLOCK);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		return err_set(err, -errno, "copy output: %s", strerror(errno));
	size_t copied = (size_t)n;
	int r = scratch_drop(scratch, MIN(skip, copied));
	/* When the unacknowledged part fills the scratch pipe, the receiver must catch up first. */
	size_t fresh = copied > skip ? copied - skip : 0;
	if (r == 0 && fresh > 0)
		r = scratch_read(scratch, buf, fresh);
	if (r < 0)
		return err_set(err, r, "copy output: %s", strerror(-r));
	s->sent += fresh;
	*ret_len = fresh;
	return fresh > 0 ? 1 : 0;
}

bool stream_out_acked(struct stream_out *s, uint64_t upto)
{
	assert(upto <= s->sent);
	s->acked = MAX(s->acked, upto);
	if (s->consuming || s->ended)
		return false;
	bool is_last = s->finished && s->acked == s->sent;
	if (s->acked == s->consumed && !is_last)
		return false;
	s->consuming = true;
	return true;
}

void stream_out_consumed(struct stream_out *s, uint64_t consumed, bool ended)
{
	assert(consumed >= s->consumed);
	s->consuming = false;
	s->consumed = consumed;
	/* Only after an error of the shepherd can the two differ; what is gone is gone. */
	s->acked = MAX(s->acked, consumed);
	s->sent = MAX(s->sent, consumed);
	s->finished |= ended;
	s->ended |= ended;
}

void stream_in_init(struct stream_in *s, int fd, uint64_t pumped)
{
	*s = (struct stream_in){ .fd = fd, .written = pumped, .pumped = pumped, .closed = fd < 0 };
	if (fd >= 0)
		(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

void stream_in_deinit(struct stream_in *s)
{
	close_p(&s->fd);
}

ssize_t stream_in_write(struct stream_in *s, const void *buf, size_t len, struct err *err)
{
	if (s->closed)
		return err_set(err, -EPIPE, "the task takes no more input");
	ssize_t n = write(s->fd, buf, len);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		return err_set(err, -errno, "write input: %s", strerror(errno));
	s->written += (uint64_t)n;
	return n;
}

void stream_in_pumped(struct stream_in *s, uint64_t pumped, bool closed)
{
	assert(pumped >= s->pumped);
	s->pumped = pumped;
	s->closed |= closed;
}

int stream_watch_init(struct stream_watch *w, struct err *err)
{
	w->fd = epoll_create1(EPOLL_CLOEXEC);
	return w->fd >= 0 ? 0 : err_set(err, -errno, "watch streams: %s", strerror(errno));
}

void stream_watch_deinit(struct stream_watch *w)
{
	close_p(&w->fd);
}

int stream_watch_add(struct stream_watch *w, int fd, void *owner, struct err *err)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLET, .data.ptr = owner };
	if (epoll_ctl(w->fd, EPOLL_CTL_ADD, fd, &e) == 0)
		return 0;
	return err_set(err, -errno, "watch a stream: %s", strerror(errno));
}

void stream_watch_drop(struct stream_watch *w, int fd)
{
	(void)epoll_ctl(w->fd, EPOLL_CTL_DEL, fd, NULL);
}

unsigned stream_watch_next(struct stream_watch *w, void **ret_owners, unsigned max)
{
	struct epoll_event events[WATCH_BATCH];
	int n = epoll_wait(w->fd, events, (int)MIN(max, (unsigned)WATCH_BATCH), 0);
	for (int i = 0; i < n; i++)
		ret_owners[i] = events[i].data.ptr;
	return n > 0 ? (unsigned)n : 0;
}
