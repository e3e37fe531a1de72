/* SPDX-License-Identifier: Apache-2.0 */
/* Output of many ranks on two streams: whole lines, so that they never mix. A line longer than
 * RUN_LINE_MAX is passed on in pieces. Writing blocks when the reader is slow; then nothing is
 * acknowledged, and in the end the ranks wait. */
#include "cli/run.h"

#include "lib/json.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

void run_write(struct run *r, int fd, const void *at, size_t len)
{
	const char *p = at;
	while (len > 0) {
		ssize_t n = write(fd, p, len);
		if (n > 0) {
			p += n;
			len -= (size_t)n;
		} else if (n < 0 && errno == EINTR) {
			run_signals(r);
		} else if (n < 0 && errno == EAGAIN) {
			struct pollfd w = { .fd = fd, .events = POLLOUT };
			if (poll(&w, 1, -1) < 0)
				run_signals(r);
		} else {
			/* The reader has gone, or the disk is full. As a program of its own would
			 * end by SIGPIPE, so does the job. */
			if (errno != EPIPE)
				run_say(r, "write: %s", strerror(errno));
			exit(errno == EPIPE ? 128 + SIGPIPE : RUN_OWN_FAILURE);
		}
	}
}

/* ---------------------------------------------------------------- files of ranks */

static int file_open(const struct run *r, uint32_t rank, int stream, int flags)
{
	_cleanup_(str_free) struct str path = { 0 };
	int width = snprintf(NULL, 0, "%u", r->size - 1);
	str_printf(&path, "%s/%0*u.%s", r->output, width < 3 ? 3 : width, rank,
		   stream == 1 ? "out" : "err");
	return open(str_text(&path), O_WRONLY | O_CREAT | O_CLOEXEC | O_APPEND | flags, 0666);
}

int run_out_open(struct run *r, struct err *err)
{
	if (!r->output)
		return 0;
	if (mkdir(r->output, 0777) < 0 && errno != EEXIST)
		return err_set(err, -errno, "--output %s: %s", r->output, strerror(errno));
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
	}
	for (uint32_t i = 0; i < 2 * r->size; i++) {
		int fd = file_open(r, i / 2, 1 + (int)(i & 1), O_TRUNC);
		if (fd < 0)
			return err_set(err, -errno, "--output %s: open the files of rank %u: %s",
				       r->output, i / 2, strerror(errno));
		if (i < 2 * 256) /* the others are opened when they are written */
			r->sinks[i].fd = fd;
		else
			(void)close(fd);
	}
	return 0;
}

static void file_write(struct run *r, uint32_t i, const char *at, size_t len)
{
	int fd = r->sinks[i].fd;
	if (fd < 0)
		fd = file_open(r, i / 2, 1 + (int)(i & 1), 0);
	if (fd < 0) {
		run_say(r, "--output %s: %s", r->output, strerror(errno));
		exit(RUN_OWN_FAILURE);
	}
	run_write(r, fd, at, len);
	if (r->sinks[i].fd < 0)
		(void)close(fd);
}

/* ---------------------------------------------------------------- lines */

static void label(const struct run *r, uint32_t rank, struct str *out)
{
	if (r->rq->spec->exec) {
		const Copia__RunPlaced *p = r->placed;
		for (size_t i = 0; i < p->n_places; i++)
			if (rank - p->places[i]->first < p->places[i]->count)
				str_printf(out, "%s: ", p->places[i]->name);
		return;
	}
	str_printf(out, "[%u] ", rank);
}

static void json_line(const struct run *r, uint32_t i, const char *at, size_t len, struct str *out)
{
	(void)r;
	str_printf(out, "{\"rank\":%u,\"stream\":\"%s\",\"text\":", i / 2,
		   i & 1 ? "stderr" : "stdout");
	json_text(out, at, len);
	str_puts(out, "}\n");
}

/* Whole lines, or a last piece without its end. */
static void emit(struct run *r, uint32_t i, const char *at, size_t len)
{
	int fd = i & 1 && !r->json ? STDERR_FILENO : STDOUT_FILENO;
	if (!len)
		return;
	if (r->output) {
		file_write(r, i, at, len);
		return;
	}
	if (!r->label && !r->json) {
		run_write(r, fd, at, len);
		return;
	}
	_cleanup_(str_free) struct str out = { 0 };
	while (len > 0) {
		const char *end = memchr(at, '\n', len);
		size_t piece = end ? (size_t)(end - at) + 1 : len;
		if (r->json) {
			json_line(r, i, at, piece, &out);
		} else {
			label(r, i / 2, &out);
			str_add(&out, at, piece);
			if (!end)
				str_puts(&out, "\n");
		}
		at += piece;
		len -= piece;
	}
	run_write(r, fd, out.at, out.len);
}

static void take_lines(struct run *r, uint32_t i, const char *at, size_t len)
{
	struct run_sink *s = &r->sinks[i];
	if (r->raw || (r->output && !r->json)) {
		emit(r, i, at, len);
		return;
	}
	const char *last = memrchr(at, '\n', len);
	size_t whole = last ? (size_t)(last - at) + 1 : 0;
	if (whole && s->line.len) {
		const char *first = memchr(at, '\n', len);
		size_t head = (size_t)(first - at) + 1;
		str_add(&s->line, at, head);
		emit(r, i, s->line.at, s->line.len);
		str_clear(&s->line);
		at += head;
		len -= head;
		whole -= head;
	}
	emit(r, i, at, whole);
	str_add(&s->line, at + whole, len - whole);
	if (s->line.len >= RUN_LINE_MAX) {
		emit(r, i, s->line.at, s->line.len);
		str_clear(&s->line);
	}
}

void run_out_take(struct run *r, const Copia__LaunchOutput *o)
{
	if (o->rank >= r->size || o->stream < 1 || o->stream > 2)
		return;
	uint32_t i = 2 * o->rank + o->stream - 1;
	struct run_sink *s = &r->sinks[i];
	uint64_t end = o->offset + o->data.len;
	if (o->offset > s->next)
		return; /* a gap: what comes again after a break will fill it */
	if (end > s->next) {
		size_t skip = (size_t)(s->next - o->offset);
		take_lines(r, i, (const char *)o->data.data + skip, o->data.len - skip);
		r->unacked += end - s->next;
		s->next = end;
	}
	if (o->ended && !s->ended) {
		s->ended = true;
		emit(r, i, str_text(&s->line), s->line.len);
		str_free(&s->line);
	}
	if (!s->dirty && s->acked < s->next) {
		s->dirty = true;
		r->dirty[r->dirty_count++] = i;
	}
}

void run_out_flush(struct run *r)
{
	for (uint32_t i = 0; i < 2 * r->size; i++) {
		emit(r, i, str_text(&r->sinks[i].line), r->sinks[i].line.len);
		str_free(&r->sinks[i].line);
	}
}
