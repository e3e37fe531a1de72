/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/brain-node.h"
#include "base/log.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

struct kept {
	struct kept *next, *prev;
	uint64_t serial;
	size_t len;
	uint8_t bytes[]; /* with the length in front */
};

struct brain {
	int epoll;
	struct source listener, link; /* fd -1: none */
	char path[108];
	struct brain_hooks hooks;
	bool greeted, stop;
	int code; /* why a link without listener ended */
	uint64_t serial;
	struct kept *kept;
	size_t kept_count;
	struct str in, out;
	size_t out_done; /* bytes of `out` that are written */
	int fds[BRAIN_FDS_MAX];
	size_t fd_count;
	struct epoll_event *batch; /* of the present turn; removed sources are struck out */
	int batch_count;
};

uint64_t brain_now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- sources ---- */

int source_add(struct brain *b, struct source *s, struct err *err)
{
	struct epoll_event e = { .events = s->events, .data.ptr = s };
	if (epoll_ctl(b->epoll, EPOLL_CTL_ADD, s->fd, &e) < 0)
		return err_set(err, -errno, "watch descriptor %d: %s", s->fd, strerror(errno));
	return 0;
}

void source_change(struct brain *b, struct source *s, uint32_t events)
{
	if (s->events == events)
		return;
	s->events = events;
	struct epoll_event e = { .events = events, .data.ptr = s };
	(void)epoll_ctl(b->epoll, EPOLL_CTL_MOD, s->fd, &e);
}

void source_remove(struct brain *b, struct source *s)
{
	(void)epoll_ctl(b->epoll, EPOLL_CTL_DEL, s->fd, NULL);
	for (int i = 0; i < b->batch_count; i++)
		if (b->batch[i].data.ptr == s)
			b->batch[i].data.ptr = NULL;
}

/* ---- the link ---- */

static void fds_drop(int *fds, size_t count)
{
	for (size_t i = 0; i < count; i++)
		close(fds[i]);
}

static void link_close(struct brain *b, int code)
{
	if (b->link.fd < 0)
		return;
	source_remove(b, &b->link);
	close(b->link.fd);
	b->link.fd = -1;
	b->greeted = false;
	str_clear(&b->in);
	str_clear(&b->out);
	b->out_done = 0;
	fds_drop(b->fds, b->fd_count);
	b->fd_count = 0;
	if (b->listener.fd < 0) { /* nobody can come back */
		b->code = code;
		b->stop = true;
	}
}

static void link_write(struct brain *b)
{
	while (b->out_done < b->out.len) {
		ssize_t n = send(b->link.fd, b->out.at + b->out_done, b->out.len - b->out_done,
				 MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno != EAGAIN) {
			link_close(b, -errno);
			return;
		}
		if (n < 0)
			break;
		b->out_done += (size_t)n;
	}
	if (b->out_done == b->out.len) {
		str_clear(&b->out);
		b->out_done = 0;
	} else if (b->out.len - b->out_done > BRAIN_OUT_MAX) {
		log_warning("wireup", "brain closed: it reads nothing");
		link_close(b, -ENOBUFS);
		return;
	}
	source_change(b, &b->link, b->out.len ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

static void bytes_put_length(uint8_t *at, size_t len)
{
	for (int i = 0; i < 4; i++)
		at[i] = (uint8_t)(len >> (8 * i));
}

/* Frames leave together at the end of the turn: one system call for all ranks of a barrier. */
void brain_send(struct brain *b, Copia__WireupFrame *frame, bool keep)
{
	if (!keep && !b->greeted)
		return;
	frame->serial = keep ? ++b->serial : 0;
	size_t len = copia__wireup_frame__get_packed_size(frame);
	if (len > BRAIN_FRAME_MAX) {
		log_error("wireup", "frame of %zu bytes dropped: larger than %d", len,
			  BRAIN_FRAME_MAX);
		return;
	}
	struct kept *k = xmalloc(sizeof(*k) + 4 + len);
	k->serial = frame->serial;
	k->len = 4 + len;
	bytes_put_length(k->bytes, len);
	copia__wireup_frame__pack(frame, k->bytes + 4);
	if (b->greeted)
		str_add(&b->out, k->bytes, k->len);
	if (!keep) {
		free(k);
		return;
	}
	DL_APPEND(b->kept, k);
	if (++b->kept_count > BRAIN_KEPT_MAX) {
		struct kept *oldest = b->kept;
		log_warning("wireup", "notice %llu lost: the brain takes none",
			    (unsigned long long)oldest->serial);
		DL_DELETE(b->kept, oldest);
		b->kept_count--;
		free(oldest);
	}
}

static void acked(struct brain *b, uint64_t serial)
{
	while (b->kept && b->kept->serial <= serial) {
		struct kept *k = b->kept;
		DL_DELETE(b->kept, k);
		b->kept_count--;
		free(k);
	}
}

static void greeted(struct brain *b)
{
	b->greeted = true;
	struct kept *k;
	b->hooks.hello(b->hooks.ctx);
	DL_FOREACH(b->kept, k)
	{
		str_add(&b->out, k->bytes, k->len);
	}
}

static int frame_take(struct brain *b, const uint8_t *bytes, size_t len, struct err *err)
{
	Copia__WireupFrame *f = copia__wireup_frame__unpack(NULL, len, bytes);
	if (!f)
		return err_set(err, -EPROTO, "brain: a frame that is none");
	int r = 0;
	if (f->fds > b->fd_count ||
	    (!b->greeted && f->body_case != COPIA__WIREUP_FRAME__BODY_HELLO))
		r = err_set(err, -EPROTO, "brain: a frame without its descriptors or before hello");
	else if (f->body_case == COPIA__WIREUP_FRAME__BODY_HELLO && f->hello->version != 1)
		r = err_set(err, -EPROTO, "brain: speaks version %u, this is 1", f->hello->version);
	else if (f->body_case == COPIA__WIREUP_FRAME__BODY_HELLO)
		greeted(b);
	else if (f->body_case == COPIA__WIREUP_FRAME__BODY_ACK)
		acked(b, f->ack->serial);
	else
		b->hooks.frame(b->hooks.ctx, f, b->fds, f->fds);
	if (r == 0 && f->fds) {
		b->fd_count -= f->fds;
		memmove(b->fds, b->fds + f->fds, b->fd_count * sizeof(*b->fds));
	}
	copia__wireup_frame__free_unpacked(f, NULL);
	return r;
}

static int frames_take(struct brain *b, struct err *err)
{
	size_t done = 0;
	int r = 0;
	while (r == 0 && b->link.fd >= 0 && b->in.len - done >= 4) {
		const uint8_t *p = (const uint8_t *)b->in.at + done;
		size_t len = p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
		if (len > BRAIN_FRAME_MAX)
			return err_set(err, -EPROTO, "brain: a frame of %zu bytes", len);
		if (b->in.len - done < 4 + len)
			break;
		done += 4 + len;
		r = frame_take(b, p + 4, len, err);
	}
	str_cut(&b->in, done);
	return r;
}

static int fds_take(struct brain *b, struct msghdr *m, struct err *err)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c; c = CMSG_NXTHDR(m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		int fds[BRAIN_FDS_MAX];
		memcpy(fds, CMSG_DATA(c), MIN(count, (size_t)BRAIN_FDS_MAX) * sizeof(int));
		if (b->fd_count + count > BRAIN_FDS_MAX) {
			fds_drop(fds, count);
			return err_set(err, -EPROTO, "brain: too many descriptors");
		}
		memcpy(b->fds + b->fd_count, fds, count * sizeof(int));
		b->fd_count += count;
	}
	return m->msg_flags & MSG_CTRUNC ? err_set(err, -EMFILE,
						   "brain: no room for its descriptors; raise the "
						   "limit of open files")
					 : 0;
}

static int link_read(struct brain *b, struct err *err)
{
	static char bytes[256 * 1024];
	union {
		char at[CMSG_SPACE(BRAIN_FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec io = { bytes, sizeof(bytes) };
	struct msghdr m = { .msg_iov = &io,
			    .msg_iovlen = 1,
			    .msg_control = &control,
			    .msg_controllen = sizeof(control) };
	ssize_t n = recvmsg(b->link.fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR
			   ? 0
			   : err_set(err, -errno, "brain: %s", strerror(errno));
	int r = fds_take(b, &m, err);
	if (r < 0)
		return r;
	if (n == 0)
		return err_set(err, -ECONNRESET, "brain: connection closed");
	str_add(&b->in, bytes, (size_t)n);
	return frames_take(b, err);
}

static void link_ready(struct source *s, uint32_t events)
{
	struct brain *b = CONTAINER(s, struct brain, link);
	struct err err = { 0 };
	int r = link_read(b, &err);
	if (r < 0) {
		if (r != -ECONNRESET)
			log_warning("wireup", "%s", err.msg);
		link_close(b, r == -ECONNRESET ? 0 : r);
	}
}

static int link_open(struct brain *b, int fd, struct err *err)
{
	link_close(b, 0);
	(void)fcntl(fd, F_SETFD, FD_CLOEXEC);
	b->link = (struct source){ fd, EPOLLIN, link_ready };
	return source_add(b, &b->link, err);
}

static void listener_ready(struct source *s, uint32_t events)
{
	struct brain *b = CONTAINER(s, struct brain, listener);
	struct ucred who = { 0 };
	socklen_t len = sizeof(who);
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0)
		return;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) < 0 ||
	    (who.uid != 0 && who.uid != geteuid())) {
		log_warning("wireup", "user %u refused: not the daemon's", who.uid);
		close(fd);
		return;
	}
	struct err err = { 0 };
	if (link_open(b, fd, &err) < 0)
		log_warning("wireup", "%s", err.msg);
}

static int listener_open(struct brain *b, const char *path, struct err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (strlen(path) >= sizeof(a.sun_path))
		return err_set(err, -ENAMETOOLONG, "socket %s: name too long", path);
	memcpy(a.sun_path, path, strlen(path) + 1);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return err_set(err, -errno, "socket %s: %s", path, strerror(errno));
	(void)unlink(path);
	mode_t old = umask(0177);
	int r = bind(fd, (struct sockaddr *)&a, sizeof(a));
	umask(old);
	if (r < 0 || listen(fd, 8) < 0) {
		r = err_set(err, -errno, "socket %s: %s", path, strerror(errno));
		close(fd);
		return r;
	}
	memcpy(b->path, path, strlen(path) + 1);
	b->listener = (struct source){ fd, EPOLLIN, listener_ready };
	return source_add(b, &b->listener, err);
}

/* ---- the loop ---- */

int brain_run(struct brain *b, struct err *err)
{
	struct epoll_event batch[128];
	while (!b->stop) {
		uint64_t now_ms = brain_now_ms();
		uint64_t due_ms = b->hooks.turn(b->hooks.ctx, now_ms);
		if (b->link.fd >= 0 && b->out.len)
			link_write(b);
		if (b->stop)
			break;
		int wait_ms = due_ms == UINT64_MAX ? -1
			      : due_ms <= now_ms   ? 0
						   : (int)MIN(due_ms - now_ms, (uint64_t)60000);
		int n = epoll_wait(b->epoll, batch, (int)ARRAY_LEN(batch), wait_ms);
		if (n < 0 && errno != EINTR)
			return err_set(err, -errno, "wait for events: %s", strerror(errno));
		b->batch = batch;
		b->batch_count = MAX(n, 0);
		for (int i = 0; i < b->batch_count; i++) {
			struct source *s = batch[i].data.ptr;
			if (s)
				s->ready(s, batch[i].events);
		}
		b->batch_count = 0;
	}
	return b->code ? err_set(err, b->code, "link to the brain: %s", strerror(-b->code)) : 0;
}

void brain_stop(struct brain *b)
{
	b->stop = true;
}

int brain_new(struct brain **ret, int fd, const char *path, const struct brain_hooks *hooks,
	      struct err *err)
{
	struct brain *b = xcalloc(1, sizeof(*b));
	b->hooks = *hooks;
	b->link.fd = b->listener.fd = -1;
	b->epoll = epoll_create1(EPOLL_CLOEXEC);
	int r = b->epoll < 0 ? err_set(err, -errno, "epoll: %s", strerror(errno)) : 0;
	if (r == 0 && path)
		r = listener_open(b, path, err);
	if (r == 0 && fd >= 0)
		r = link_open(b, fd, err);
	if (r < 0) {
		brain_free(b);
		return r;
	}
	*ret = b;
	return 0;
}

struct brain *brain_free(struct brain *b)
{
	if (!b)
		return NULL;
	link_close(b, 0);
	if (b->listener.fd >= 0) {
		close(b->listener.fd);
		(void)unlink(b->path);
	}
	if (b->epoll >= 0)
		close(b->epoll);
	acked(b, UINT64_MAX);
	str_free(&b->in);
	str_free(&b->out);
	free(b);
	return NULL;
}
