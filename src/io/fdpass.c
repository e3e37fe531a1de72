/* SPDX-License-Identifier: Apache-2.0 */
#include "io/fdpass.h"

#include "base/str.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	HEAD = 8,                  /* two u32 */
	READ_CHUNK = 64 << 10,     /* least room offered to recvmsg */
	KEPT_CAPACITY = 256 << 10, /* a buffer larger than this is given back when empty */
};

/* A frame, or what is left of it, that the socket did not take. */
struct queued {
	struct queued *next;
	size_t at, len;    /* sent so far, all */
	unsigned fd_count; /* not sent yet; they go with the first byte */
	int *fds;
	uint8_t bytes[];
};

struct fdlink {
	int fd;
	bool stuck;
	struct queued *first, **last;
	size_t queued_bytes;

	uint8_t *in; /* received: [in_at, in_len) not yet handed out */
	size_t in_at, in_len, in_cap;
	int *in_fds; /* received, in order, not yet handed out */
	unsigned in_fd_count, in_fd_cap;
	bool eof;

	int given_fds[FDLINK_FDS_MAX]; /* of the frame that the user has now */
	unsigned given_count;
};

void close_p(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
	*fd = -1;
}

static void put_u32(uint8_t *at, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(v >> 8 * i);
}

static uint32_t get_u32(const uint8_t *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
	       (uint32_t)at[3] << 24;
}

struct fdlink *fdlink_new(int fd)
{
	assert(fd >= 0);
	struct fdlink *l = xcalloc(1, sizeof(*l));
	l->fd = fd;
	l->last = &l->first;
	(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	return l;
}

static void queued_free(struct queued *q)
{
	for (unsigned i = 0; i < q->fd_count; i++)
		close_p(&q->fds[i]);
	free(q->fds);
	free(q);
}

static void given_close(struct fdlink *l)
{
	for (unsigned i = 0; i < l->given_count; i++)
		close_p(&l->given_fds[i]);
	l->given_count = 0;
}

struct fdlink *fdlink_free(struct fdlink *l)
{
	if (!l)
		return NULL;
	while (l->first) {
		struct queued *q = l->first;
		l->first = q->next;
		queued_free(q);
	}
	given_close(l);
	for (unsigned i = 0; i < l->in_fd_count; i++)
		close_p(&l->in_fds[i]);
	free(l->in_fds);
	free(l->in);
	close_p(&l->fd);
	free(l);
	return NULL;
}

int fdlink_fd(const struct fdlink *l)
{
	return l->fd;
}

size_t fdlink_queued(const struct fdlink *l)
{
	return l->queued_bytes;
}

bool fdlink_stuck(const struct fdlink *l)
{
	return l->stuck;
}

/* Bytes taken by the socket, or a negative errno (-EAGAIN: none now, -ETOOMANYREFS: later). */
static ssize_t send_some(int fd, struct iovec *iov, size_t iov_count, const int *fds,
			 unsigned fd_count)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(FDLINK_FDS_MAX * sizeof(int))];
	} control;
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = iov_count };
	if (fd_count > 0) {
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
		memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
	}
	ssize_t n;
	do
		n = sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

/* Keep the rest of a frame; its descriptors are duplicated when they did not go yet. */
static int queue_rest(struct fdlink *l, const uint8_t head[HEAD], const void *at, size_t len,
		      size_t sent, const int *fds, unsigned fd_count, struct err *err)
{
	struct queued *q = malloc(sizeof(*q) + HEAD + len);
	if (!q)
		return err_set(err, -ENOMEM, "send to the other process: out of memory");
	*q = (struct queued){ .at = sent, .len = HEAD + len };
	memcpy(q->bytes, head, HEAD);
	if (len > 0)
		memcpy(q->bytes + HEAD, at, len);
	if (sent == 0 && fd_count > 0) {
		q->fds = xcalloc(fd_count, sizeof(int));
		for (; q->fd_count < fd_count; q->fd_count++) {
			q->fds[q->fd_count] = fcntl(fds[q->fd_count], F_DUPFD_CLOEXEC, 3);
			if (q->fds[q->fd_count] >= 0)
				continue;
			int code = -errno;
			queued_free(q);
			return err_set(err, code, "duplicate a descriptor to send: %s",
				       strerror(-code));
		}
	}
	*l->last = q;
	l->last = &q->next;
	l->queued_bytes += q->len - q->at;
	return 0;
}

int fdlink_send(struct fdlink *l, const void *at, size_t len, const int *fds, unsigned fd_count,
		struct err *err)
{
	if (len > FDLINK_FRAME_MAX || fd_count > FDLINK_FDS_MAX)
		return err_set(
		    err, -EMSGSIZE,
		    "message of %zu bytes with %u descriptors is too large (at most %d and %d)",
		    len, fd_count, FDLINK_FRAME_MAX, FDLINK_FDS_MAX);
	uint8_t head[HEAD];
	put_u32(head, (uint32_t)len);
	put_u32(head + 4, fd_count);
	ssize_t n = 0;
	if (!l->first) {
		struct iovec iov[2] = { { head, HEAD }, { (void *)at, len } };
		n = send_some(l->fd, iov, 2, fds, fd_count);
		l->stuck = n == -ETOOMANYREFS;
		if (n == -EAGAIN || n == -ETOOMANYREFS)
			n = 0;
		if (n < 0)
			return err_set(err, (int)n, "send to the other process: %s",
				       strerror((int)-n));
		if ((size_t)n == HEAD + len)
			return 0;
	}
	return queue_rest(l, head, at, len, (size_t)n, fds, fd_count, err);
}

int fdlink_flush(struct fdlink *l, struct err *err)
{
	l->stuck = false;
	while (l->first) {
		struct queued *q = l->first;
		struct iovec iov = { q->bytes + q->at, q->len - q->at };
		ssize_t n = send_some(l->fd, &iov, 1, q->fds, q->fd_count);
		l->stuck = n == -ETOOMANYREFS;
		if (n == -EAGAIN || n == -ETOOMANYREFS)
			return 0;
		if (n < 0)
			return err_set(err, (int)n, "send to the other process: %s",
				       strerror((int)-n));
		for (; q->fd_count > 0; q->fd_count--)
			close_p(&q->fds[q->fd_count - 1]);
		q->at += (size_t)n;
		l->queued_bytes -= (size_t)n;
		if (q->at < q->len)
			continue;
		l->first = q->next;
		if (!l->first)
			l->last = &l->first;
		queued_free(q);
	}
	return 0;
}

static void take_fds(struct fdlink *l, struct msghdr *m)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		unsigned count = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		if (l->in_fd_count + count > l->in_fd_cap) {
			l->in_fd_cap = l->in_fd_count + count;
			l->in_fds = xrealloc(l->in_fds, l->in_fd_cap * sizeof(int));
		}
		memcpy(l->in_fds + l->in_fd_count, CMSG_DATA(c), count * sizeof(int));
		l->in_fd_count += count;
	}
}

/* One recvmsg: 1 something came, 0 nothing now. */
static int receive_some(struct fdlink *l, size_t want, struct err *err)
{
	if (l->in_at > 0) {
		memmove(l->in, l->in + l->in_at, l->in_len - l->in_at);
		l->in_len -= l->in_at;
		l->in_at = 0;
	}
	size_t need = MAX(want, l->in_len + READ_CHUNK);
	if (l->in_len == 0 && l->in_cap > KEPT_CAPACITY && need <= KEPT_CAPACITY) {
		free(l->in);
		l->in = NULL;
		l->in_cap = 0;
	}
	if (need > l->in_cap) {
		l->in_cap = need;
		l->in = xrealloc(l->in, l->in_cap);
	}
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(253 * sizeof(int))]; /* what the kernel sends at most */
	} control;
	struct iovec iov = { l->in + l->in_len, l->in_cap - l->in_len };
	struct msghdr m = { .msg_iov = &iov,
			    .msg_iovlen = 1,
			    .msg_control = &control,
			    .msg_controllen = sizeof(control) };
	ssize_t n;
	do
		n = recvmsg(l->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0 && errno != ECONNRESET)
		return err_set(err, -errno, "receive from the other process: %s", strerror(errno));
	if (n <= 0)
		return err_set(err, -EPIPE, "the other process closed its end");
	take_fds(l, &m);
	if (m.msg_flags & MSG_CTRUNC)
		return err_set(
		    err, -EMFILE,
		    "receive descriptors: too many open files; raise the limit of open files");
	l->in_len += (size_t)n;
	return 1;
}

/* The first descriptors that came go with the frame that is handed out. */
static void fds_give(struct fdlink *l, uint32_t count)
{
	l->given_count = count;
	if (!count)
		return; /* and the arrays may not be there */
	memcpy(l->given_fds, l->in_fds, count * sizeof(int));
	l->in_fd_count -= count;
	memmove(l->in_fds, l->in_fds + count, l->in_fd_count * sizeof(int));
}

int fdlink_receive(struct fdlink *l, struct fdframe *ret, struct err *err)
{
	given_close(l);
	for (;;) {
		size_t have = l->in_len - l->in_at, want = HEAD;
		if (have >= HEAD) {
			uint32_t len = get_u32(l->in + l->in_at);
			uint32_t fd_count = get_u32(l->in + l->in_at + 4);
			if (len > FDLINK_FRAME_MAX || fd_count > FDLINK_FDS_MAX)
				return err_set(err, -EBADMSG,
					       "frame of %u bytes with %u descriptors is too large",
					       len, fd_count);
			want = HEAD + (size_t)len;
			/* Descriptors come with the first byte of their frame. */
			if (have >= want && l->in_fd_count < fd_count)
				return err_set(err, -EBADMSG, "frame came without its descriptors");
			if (have >= want) {
				fds_give(l, fd_count);
				*ret = (struct fdframe){ l->in + l->in_at + HEAD, len, l->given_fds,
							 fd_count };
				l->in_at += want;
				return 1;
			}
		}
		int r = receive_some(l, want, err);
		if (r <= 0)
			return r;
	}
}
