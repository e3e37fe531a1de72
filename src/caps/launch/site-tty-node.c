/* SPDX-License-Identifier: Apache-2.0 */
/* A rank with a terminal of its own (copia exec -t). The brain reads and writes the master side
 * itself. What is under way to the user is bounded by TTY_WINDOW; then the terminal waits. */
#include "caps/launch/launch-impl-node.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

enum { TTY_WINDOW = 256 * 1024 };

struct site_terminal {
	uv_poll_t poll;
	struct site_rank *rank;
	int fd;
	uint64_t sent, taken;
	bool ended;
};

static void tty_watch(struct site_terminal *t);

static void tty_end(struct site_terminal *t)
{
	if (t->ended)
		return;
	t->ended = true;
	(void)uv_poll_stop(&t->poll);
	t->rank->out[0].end_sent = t->rank->out[1].end_sent = true;
	site_io_send(&t->rank->out[0], t->sent, NULL, 0, true);
	site_io_send(&t->rank->out[1], 0, NULL, 0, true);
}

static void tty_read(struct site_terminal *t)
{
	struct launch *l = t->rank->job->l;
	while (t->sent - t->taken < TTY_WINDOW) {
		ssize_t n = read(t->fd, l->chunk, sizeof(l->chunk));
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (n <= 0) { /* EIO: no process has the other side open any more */
			tty_end(t);
			return;
		}
		site_io_send(&t->rank->out[0], t->sent, l->chunk, (size_t)n, false);
		t->sent += (uint64_t)n;
	}
	tty_watch(t);
}

static void on_tty(uv_poll_t *p, int status, int events)
{
	struct site_terminal *t = p->data;
	if (status < 0) {
		tty_end(t);
		return;
	}
	if (events & UV_WRITABLE)
		tty_feed(t->rank);
	if (!t->ended && events & UV_READABLE)
		tty_read(t);
}

static void tty_watch(struct site_terminal *t)
{
	const struct site_rank *r = t->rank;
	int events = t->sent - t->taken < TTY_WINDOW ? UV_READABLE : 0;
	if (r->in.written < r->job->input_base + r->job->input.len)
		events |= UV_WRITABLE;
	if (t->ended)
		return;
	if (events)
		(void)uv_poll_start(&t->poll, events, on_tty);
	else
		(void)uv_poll_stop(&t->poll);
}

void tty_open(struct site_rank *r, struct task_fds *fds)
{
	struct site_terminal *t = xcalloc(1, sizeof(*t));
	t->rank = r;
	t->fd = take_fd(&fds->terminal);
	(void)fcntl(t->fd, F_SETFL, fcntl(t->fd, F_GETFL) | O_NONBLOCK);
	(void)uv_poll_init(r->job->l->node->loop, &t->poll, t->fd);
	t->poll.data = t;
	r->terminal = t;
	r->reads = true;
	r->in.closed = false;
	tty_watch(t);
	site_io_feed(r);
}

static void on_closed(uv_handle_t *h)
{
	struct site_terminal *t = h->data;
	(void)close(t->fd);
	free(t);
}

void tty_close(struct site_rank *r)
{
	struct site_terminal *t = take_ptr(r->terminal);
	if (t)
		uv_close((uv_handle_t *)&t->poll, on_closed);
}

void tty_feed(struct site_rank *r)
{
	struct site_terminal *t = r->terminal;
	struct site_job *j = r->job;
	uint64_t end = j->input_base + j->input.len;
	while (!t->ended && r->in.written < end) {
		ssize_t n = write(t->fd, j->input.at + (r->in.written - j->input_base),
				  (size_t)(end - r->in.written));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		r->in.written += (uint64_t)n;
	}
	r->in.pumped = r->in.written;
	tty_watch(t);
	site_io_given(j);
}

void tty_taken(struct site_rank *r, uint64_t offset)
{
	struct site_terminal *t = r->terminal;
	if (offset > t->taken && offset <= t->sent)
		t->taken = offset;
	tty_watch(t);
}
