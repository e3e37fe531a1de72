/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/wire-link-node.h"

#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef COPIA_LIBEXEC
#define COPIA_LIBEXEC "/usr/libexec/copia"
#endif

enum { FRAME_MAX = 1 << 20, READ_PIECE = 64 * 1024 };

extern char **environ;

struct out_frame {
	struct out_frame *next;
	int fd;
	size_t len, at;
	uint8_t bytes[];
};

struct wire_link {
	struct launch *l;
	char *path; /* socket at which the helper listens */
	struct id task;
	uint64_t call; /* of the Spawn under way */
	int fd;
	bool spawning, greeted;
	uv_poll_t *poll;
	struct str in;
	struct out_frame *head, **tail;
};

static void on_ready(uv_poll_t *p, int status, int events);

static void link_watch(struct wire_link *w)
{
	if (w->poll)
		(void)uv_poll_start(w->poll, UV_READABLE | (w->head ? UV_WRITABLE : 0), on_ready);
}

static void on_poll_closed(uv_handle_t *h)
{
	free(h);
}

static void drop_queue(struct wire_link *w)
{
	while (w->head) {
		struct out_frame *f = w->head;
		w->head = f->next;
		if (f->fd >= 0)
			(void)close(f->fd);
		free(f);
	}
	w->tail = &w->head;
}

static void link_close(struct wire_link *w)
{
	if (w->poll) {
		(void)uv_poll_stop(w->poll);
		uv_close((uv_handle_t *)w->poll, on_poll_closed);
		w->poll = NULL;
	}
	if (w->fd >= 0)
		(void)close(w->fd);
	w->fd = -1;
	w->greeted = false;
	str_clear(&w->in);
	drop_queue(w);
}

static void link_lost(struct wire_link *w, const char *why)
{
	log_warning("launch", "copia-wireup: %s", why);
	link_close(w);
	wire_lost(w->l, why);
}

/* ---------------------------------------------------------------- bytes */

/* One frame at a time, so that descriptors lie with their bytes. */
static int send_some(struct wire_link *w)
{
	while (w->head) {
		struct out_frame *f = w->head;
		struct iovec part = { f->bytes + f->at, f->len - f->at };
		union {
			struct cmsghdr header;
			char space[CMSG_SPACE(sizeof(int))];
		} control = { 0 };
		struct msghdr m = { .msg_iov = &part, .msg_iovlen = 1 };
		if (f->fd >= 0) {
			m.msg_control = &control;
			m.msg_controllen = sizeof(control);
			struct cmsghdr *c = CMSG_FIRSTHDR(&m);
			c->cmsg_level = SOL_SOCKET;
			c->cmsg_type = SCM_RIGHTS;
			c->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(c), &f->fd, sizeof(int));
		}
		ssize_t n = sendmsg(w->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR || errno == ETOOMANYREFS))
			return 0;
		if (n < 0)
			return -errno;
		if (f->fd >= 0)
			(void)close(take_fd(&f->fd));
		f->at += (size_t)n;
		if (f->at < f->len)
			continue;
		w->head = f->next;
		if (!w->head)
			w->tail = &w->head;
		free(f);
	}
	return 0;
}

void wire_link_send(struct wire_link *w, Copia__WireupFrame *f, int fd)
{
	f->fds = fd >= 0;
	uint32_t size = (uint32_t)copia__wireup_frame__get_packed_size(f);
	struct out_frame *o = xmalloc(sizeof(*o) + 4 + size);
	*o = (struct out_frame){ .fd = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1,
				 .len = 4 + (size_t)size };
	for (int i = 0; i < 4; i++)
		o->bytes[i] = (uint8_t)(size >> 8 * i);
	(void)copia__wireup_frame__pack(f, o->bytes + 4);
	*w->tail = o;
	w->tail = &o->next;
	if (w->fd >= 0 && send_some(w) == 0)
		link_watch(w);
}

static void send_ack(struct wire_link *w, uint64_t serial)
{
	Copia__WireupAck ack = COPIA__WIREUP_ACK__INIT;
	ack.serial = serial;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	f.body_case = COPIA__WIREUP_FRAME__BODY_ACK;
	f.ack = &ack;
	wire_link_send(w, &f, -1);
}

/* All whole frames. Returns -EBADMSG for nonsense. */
static int take_frames(struct wire_link *w)
{
	size_t at = 0;
	while (w->fd >= 0 && w->in.len - at >= 4) {
		uint32_t size = 0;
		for (int i = 0; i < 4; i++)
			size |= (uint32_t)(uint8_t)w->in.at[at + (size_t)i] << 8 * i;
		if (size > FRAME_MAX)
			return -EBADMSG;
		if (w->in.len - at - 4 < size)
			break;
		Copia__WireupFrame *f =
		    copia__wireup_frame__unpack(NULL, size, (const uint8_t *)w->in.at + at + 4);
		if (!f)
			return -EBADMSG;
		uint64_t serial = f->serial;
		at += 4 + (size_t)size;
		wire_frame(w->l, f);
		copia__wireup_frame__free_unpacked(f, NULL);
		if (serial && w->fd >= 0)
			send_ack(w, serial);
	}
	if (w->fd >= 0)
		str_cut(&w->in, at);
	return 0;
}

static void on_ready(uv_poll_t *p, int status, int events)
{
	struct wire_link *w = p->data;
	if (status < 0 || (events & UV_WRITABLE && send_some(w) < 0)) {
		link_lost(w, "its connection broke");
		return;
	}
	if (events & UV_READABLE) {
		str_reserve(&w->in, READ_PIECE);
		ssize_t n = recv(w->fd, w->in.at + w->in.len, READ_PIECE, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			link_lost(w, "it ended");
			return;
		}
		if (n > 0) {
			w->in.len += (size_t)n;
			if (take_frames(w) < 0) {
				link_lost(w, "it sent nonsense");
				return;
			}
		}
	}
	if (w->fd >= 0)
		link_watch(w);
}

/* ---------------------------------------------------------------- finding or starting it */

/* Hello goes before everything that waits. */
static void link_up(struct wire_link *w, int fd)
{
	struct out_frame *waiting = take_ptr(w->head), **waiting_tail = w->tail;
	w->tail = &w->head;
	w->fd = fd;
	w->poll = xcalloc(1, sizeof(*w->poll));
	(void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
	(void)uv_poll_init(w->l->node->loop, w->poll, fd);
	w->poll->data = w;
	Copia__WireupHello hello = COPIA__WIREUP_HELLO__INIT;
	hello.version = 1;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	f.body_case = COPIA__WIREUP_FRAME__BODY_HELLO;
	f.hello = &hello;
	wire_link_send(w, &f, -1);
	if (waiting) {
		*w->tail = waiting;
		w->tail = waiting_tail;
	}
	if (send_some(w) == 0)
		link_watch(w);
}

static bool link_find(struct wire_link *w)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	if (strlen(w->path) >= sizeof(a.sun_path))
		return false;
	memcpy(a.sun_path, w->path, strlen(w->path));
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		(void)close(fd);
		return false;
	}
	link_up(w, fd);
	return true;
}

/* Next to this program (installed, or in the tree it was built in). */
static bool find_helper(struct str *ret)
{
	char self[4096];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	self[n > 0 ? n : 0] = '\0';
	char *slash = strrchr(self, '/');
	if (slash)
		*slash = '\0';
	static const char *const places[] = { "%s/copia-wireup", "%s/../caps/wireup/copia-wireup",
					      "%s/src/caps/wireup/copia-wireup" };
	for (size_t i = 0; i < ARRAY_LEN(places); i++) {
		str_clear(ret);
		const char *rest = places[i] + 2;
		str_printf(ret, "%s%s", self, rest);
		if (access(str_text(ret), X_OK) == 0)
			return true;
	}
	str_clear(ret);
	str_puts(ret, COPIA_LIBEXEC "/copia-wireup");
	return access(str_text(ret), X_OK) == 0;
}

static int link_spawn(struct wire_link *w, struct err *err)
{
	int pair[2];
	_cleanup_(str_free) struct str exe = { 0 }, log = { 0 };
	if (!find_helper(&exe))
		return err_set(err, -ENOENT, "%s is missing; install Copia's programs completely",
			       str_text(&exe));
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return err_set(err, -errno, "socketpair: %s", strerror(errno));
	node_random(w->task.at, sizeof(w->task.at));
	str_printf(&log, "%s/wireup.log", w->l->node->settings.run_dir);
	char *argv[] = { exe.at,
			 (char *)"--fd",
			 (char *)"3",
			 (char *)"--listen",
			 w->path,
			 (char *)"--tmpdir",
			 w->l->node->settings.run_dir };
	Copia__Shepherd__Spawn s = COPIA__SHEPHERD__SPAWN__INIT;
	Copia__Shepherd__Spawn *list[] = { &s };
	Copia__Shepherd__Out out = COPIA__SHEPHERD__OUT__INIT, both = COPIA__SHEPHERD__OUT__INIT;
	Copia__Shepherd__Pass pass = COPIA__SHEPHERD__PASS__INIT, *passes[] = { &pass };
	s.task = (ProtobufCBinaryData){ ID_SIZE, w->task.at };
	s.argv = argv;
	s.n_argv = ARRAY_LEN(argv);
	s.exe = exe.at;
	s.env = environ;
	while (environ[s.n_env])
		s.n_env++;
	out.mode = COPIA__SHEPHERD__OUT_MODE__OUT_FILE;
	out.path = log.at;
	out.append = true;
	both.mode = COPIA__SHEPHERD__OUT_MODE__OUT_STDOUT;
	s.stdout = &out;
	s.stderr = &both;
	s.pass = passes;
	s.n_pass = 1;
	w->call = shepherd_link_call(w->l->node->shepherd);
	int r = shepherd_spawn(w->l->node->shepherd, w->call, list, 1, &pair[1], 1, err);
	(void)close(pair[1]);
	if (r < 0) {
		(void)close(pair[0]);
		return r;
	}
	w->spawning = true;
	link_up(w, pair[0]);
	return 0;
}

void wire_link_need(struct wire_link *w)
{
	struct err err = { 0 };
	if (w->fd >= 0 || link_find(w))
		return;
	if (link_spawn(w, &err) < 0)
		link_lost(w, err.msg);
}

static bool is_task(const struct wire_link *w, const ProtobufCBinaryData *task)
{
	return task->len == ID_SIZE && !id_is_none(&w->task) &&
	       !memcmp(task->data, w->task.at, ID_SIZE);
}

bool wire_link_event(struct wire_link *w, const Copia__Shepherd__Event *e, struct task_fds *fds)
{
	(void)fds;
	switch (e->tell_case) {
	case COPIA__SHEPHERD__EVENT__TELL_SPAWNED:
		if (!is_task(w, &e->spawned->task))
			return false;
		w->spawning = false;
		if (e->spawned->code < 0)
			link_lost(w, e->spawned->error);
		return true;
	case COPIA__SHEPHERD__EVENT__TELL_EXIT:
		if (!is_task(w, &e->exit->task))
			return false;
		(void)shepherd_release(w->l->node->shepherd, &w->task);
		return true;
	case COPIA__SHEPHERD__EVENT__TELL_TASKS_SENT:
		(void)link_find(w); /* one that a brain before us started */
		return false;
	default:
		return false;
	}
}

struct wire_link *wire_link_new(struct launch *l)
{
	struct wire_link *w = xcalloc(1, sizeof(*w));
	struct str path = { 0 };
	w->l = l;
	w->fd = -1;
	w->tail = &w->head;
	str_printf(&path, "%s/wireup.sock", l->node->settings.run_dir);
	w->path = str_take(&path);
	return w;
}

void wire_link_free(struct wire_link *w)
{
	link_close(w);
	str_free(&w->in);
	free(w->path);
	free(w);
}
