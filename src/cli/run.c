/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/run.h"

#include "lib/json.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { FILE_PIECE = 256 * 1024, REOPEN_EVERY_MS = 20 };

void run_say(const struct run *r, const char *fmt, ...)
{
	struct str s = { 0 };
	str_printf(&s, "copia %s: ", r->verb->words);
	va_list args;
	va_start(args, fmt);
	str_vprintf(&s, fmt, args);
	va_end(args);
	str_puts(&s, r->terminal ? "\r\n" : "\n");
	if (write(STDERR_FILENO, s.at, s.len) < 0)
		errno = 0; /* nobody reads: then nobody wants to know */
	str_free(&s);
}

/* ---------------------------------------------------------------- signals */

/* Only this table is touched by the handler. */
static volatile sig_atomic_t pending[65];
static int pending_pipe = -1;

static void on_signal(int number)
{
	int saved = errno;
	pending[number] = 1;
	if (write(pending_pipe, "", 1) < 0)
		errno = 0; /* full: it is readable already */
	errno = saved;
}

static const int forwarded[] = { SIGHUP,  SIGINT,  SIGQUIT, SIGTERM, SIGUSR1,
				 SIGUSR2, SIGCONT, SIGTSTP, SIGWINCH };

static void signals_begin(struct run *r)
{
	if (pipe2(r->signal_pipe, O_CLOEXEC | O_NONBLOCK) < 0)
		return;
	pending_pipe = r->signal_pipe[1];
	(void)signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < ARRAY_LEN(forwarded); i++) {
		struct sigaction a, old;
		(void)sigaction(forwarded[i], NULL, &old);
		/* nohup and shells that ignore signals for us know why. */
		if (old.sa_handler == SIG_IGN && forwarded[i] != SIGCONT)
			continue;
		a = (struct sigaction){ .sa_handler = on_signal };
		(void)sigaction(forwarded[i], &a, NULL);
	}
}

static void send_input(struct run *r, Copia__RunInput *in)
{
	struct err err = { 0 };
	if (r->conn && r->begun && !r->ended)
		(void)conn_send(r->conn, r->call, &in->base, false, &err);
}

static void terminal_restore(struct run *r)
{
	if (r->terminal)
		(void)tcsetattr(STDIN_FILENO, TCSADRAIN, &r->saved);
	r->terminal = false;
}

static void leave(struct run *r)
{
	terminal_restore(r);
	run_say(r, "left; job %s is being ended by the daemon",
		r->placed ? r->placed->name : "(not started)");
	_exit(130);
}

static void send_winsize(struct run *r)
{
	struct winsize size;
	if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) < 0)
		return;
	Copia__LaunchWinsize w = COPIA__LAUNCH_WINSIZE__INIT;
	w.rows = size.ws_row;
	w.columns = size.ws_col;
	Copia__RunInput in = COPIA__RUN_INPUT__INIT;
	in.winsize = &w;
	send_input(r, &in);
}

static void one_signal(struct run *r, int number)
{
	if ((number == SIGINT || number == SIGTERM) && ++r->interrupts >= 3)
		leave(r);
	if (number == SIGWINCH && r->rq->spec->terminal) {
		send_winsize(r);
		return;
	}
	Copia__RunInput in = COPIA__RUN_INPUT__INIT;
	in.signal = number;
	send_input(r, &in);
	if (number == SIGTSTP) {
		struct err err = { 0 };
		while (r->conn && conn_queued(r->conn) && conn_work(r->conn, &err) == 0)
			;
		(void)raise(SIGSTOP);
	}
}

void run_signals(struct run *r)
{
	char drain[64];
	while (r->signal_pipe[0] >= 0 && read(r->signal_pipe[0], drain, sizeof(drain)) > 0)
		;
	for (int i = 1; i < 65; i++)
		if (pending[i]) {
			pending[i] = 0;
			one_signal(r, i);
		}
	struct err err = { 0 };
	if (r->conn && conn_fd(r->conn) >= 0)
		(void)conn_work(r->conn, &err);
}

/* ---------------------------------------------------------------- standard input */

static bool input_wanted(const struct run *r)
{
	return r->input_open && !r->input_ended && r->placed && !r->ended &&
	       r->input.len < RUN_INPUT_WINDOW && conn_queued(r->conn) < CONN_QUEUE_HIGH;
}

/* A job in the background of a terminal must not read from it: it would be stopped. */
static bool input_allowed(void)
{
	return !isatty(STDIN_FILENO) || tcgetpgrp(STDIN_FILENO) == getpgrp();
}

static void input_send(struct run *r)
{
	uint64_t end = r->input_base + r->input.len;
	while (r->input_sent < end || (r->input_ended && !r->input_end_sent)) {
		size_t len = (size_t)MIN(end - r->input_sent, (uint64_t)FILE_PIECE);
		Copia__LaunchInput data = COPIA__LAUNCH_INPUT__INIT;
		data.offset = r->input_sent;
		data.data.len = len;
		data.data.data = (uint8_t *)r->input.at + (r->input_sent - r->input_base);
		r->input_sent += len;
		data.ended = r->input_ended && r->input_sent == end;
		r->input_end_sent |= data.ended;
		Copia__RunInput in = COPIA__RUN_INPUT__INIT;
		in.input = &data;
		send_input(r, &in);
	}
}

static void input_read(struct run *r)
{
	size_t want = MIN(RUN_INPUT_WINDOW - r->input.len, (size_t)FILE_PIECE);
	str_reserve(&r->input, want);
	ssize_t n = read(STDIN_FILENO, r->input.at + r->input.len, want);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n > 0) {
		r->input.len += (size_t)n;
		r->input.at[r->input.len] = '\0';
	} else {
		r->input_ended = true;
	}
	input_send(r);
}

static void input_taken(struct run *r, uint64_t offset)
{
	if (offset == UINT64_MAX) { /* nobody reads any more */
		r->input_open = false;
		return;
	}
	if (offset <= r->input_base)
		return;
	size_t cut = (size_t)MIN(offset - r->input_base, (uint64_t)r->input.len);
	str_cut(&r->input, cut);
	r->input_base += cut;
}

/* ---------------------------------------------------------------- files that must travel */

static void add_hash(Copia__RunInput *in, Copia__LaunchFile *f, struct err *err)
{
	uint8_t hash[32];
	uint64_t size;
	if (err->code || run_hash(f->path, hash, &size, err) < 0)
		return;
	free(f->hash.data);
	f->hash.data = xmemdup(hash, sizeof(hash));
	f->hash.len = sizeof(hash);
	f->size_bytes = size;
	in->files = xrealloc(in->files, (in->n_files + 1) * sizeof(*in->files));
	in->files[in->n_files++] = f;
}

static int send_hashes(struct run *r, struct err *err)
{
	Copia__LaunchSpec *s = r->rq->spec;
	Copia__RunInput in = COPIA__RUN_INPUT__INIT;
	for (size_t i = 0; i < s->n_programs; i++)
		if (s->programs[i]->file && s->programs[i]->file->path[0])
			add_hash(&in, s->programs[i]->file, err);
	for (size_t i = 0; i < s->n_stage; i++)
		add_hash(&in, s->stage[i], err);
	if (!err->code)
		send_input(r, &in);
	free(in.files);
	return err->code;
}

static Copia__LaunchFile *file_of_hash(struct run *r, const ProtobufCBinaryData *hash)
{
	Copia__LaunchSpec *s = r->rq->spec;
	for (size_t i = 0; i < s->n_programs + s->n_stage; i++) {
		Copia__LaunchFile *f =
		    i < s->n_programs ? s->programs[i]->file : s->stage[i - s->n_programs];
		if (f && f->hash.len == 32 && hash->len == 32 &&
		    !memcmp(f->hash.data, hash->data, 32))
			return f;
	}
	return NULL;
}

static void send_file(struct run *r, const Copia__RunNeed *need)
{
	Copia__LaunchFile *f = file_of_hash(r, &need->hash);
	Copia__FileData d = COPIA__FILE_DATA__INIT;
	Copia__RunInput in = COPIA__RUN_INPUT__INIT;
	in.data = &d;
	d.hash = need->hash;
	d.offset = need->offset;
	d.job = r->rq->job;
	int fd = f ? open(f->path, O_RDONLY | O_CLOEXEC) : -1;
	_cleanup_(free_p) uint8_t *buf = xmalloc(FILE_PIECE);
	char text[300] = "";
	while (fd >= 0 && d.offset < need->upto) {
		size_t want = (size_t)MIN(need->upto - d.offset, (uint64_t)FILE_PIECE);
		ssize_t n = pread(fd, buf, want, (off_t)d.offset);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			(void)snprintf(text, sizeof(text), "read %s: %s", f->path,
				       n ? strerror(errno) : "it became shorter meanwhile");
			d.code = n ? -errno : -ESTALE;
			d.error = text;
			break;
		}
		d.data = (ProtobufCBinaryData){ (size_t)n, buf };
		send_input(r, &in);
		d.offset += (uint64_t)n;
	}
	if (fd < 0) {
		(void)snprintf(text, sizeof(text), "open %s: %s", f ? f->path : "a file",
			       strerror(f ? errno : ENOENT));
		d.code = -(f ? errno : ENOENT);
		d.error = text;
	}
	if (d.code) {
		d.data.len = 0;
		send_input(r, &in);
	}
	if (fd >= 0)
		(void)close(fd);
}

/* ---------------------------------------------------------------- what the daemon says */

static void show_places(const struct run *r)
{
	for (size_t i = 0; i < r->placed->n_places; i++) {
		const Copia__LaunchPlace *p = r->placed->places[i];
		if (p->count == 1)
			run_say(r, "job %s: rank %u on %s", r->placed->name, p->first, p->name);
		else
			run_say(r, "job %s: ranks %u-%u on %s", r->placed->name, p->first,
				p->first + p->count - 1, p->name);
	}
}

static int on_placed(struct run *r, Copia__RunUpdate *u, struct err *err)
{
	if (r->placed)
		return 0; /* after a restart: nothing new */
	r->placed = u->placed;
	u->body_case = COPIA__RUN_UPDATE__BODY__NOT_SET;
	for (size_t i = 0; i < r->placed->n_places; i++)
		r->size += r->placed->places[i]->count;
	r->sinks = xcalloc(2 * (size_t)r->size, sizeof(*r->sinks));
	r->dirty = xcalloc(2 * (size_t)r->size, sizeof(*r->dirty));
	r->exits = xcalloc(r->size, sizeof(*r->exits));
	for (uint32_t i = 0; i < 2 * r->size; i++)
		r->sinks[i].fd = -1;
	r->raw = r->size == 1 && !r->label && !r->json;
	if (r->rq->spec->exec && r->size > 1 && !r->quiet)
		r->label = true;
	if (r->verbose)
		show_places(r);
	return run_out_open(r, err);
}

static void on_exit_update(struct run *r, Copia__RunUpdate *u)
{
	uint32_t rank = u->exit->rank;
	if (rank >= r->size || r->exits[rank])
		return;
	r->exits[rank] = u->exit;
	u->body_case = COPIA__RUN_UPDATE__BODY__NOT_SET;
}

static int on_update(struct run *r, Copia__RunUpdate *u, struct err *err)
{
	switch (u->body_case) {
	case COPIA__RUN_UPDATE__BODY_PLACED:
		return on_placed(r, u, err);
	case COPIA__RUN_UPDATE__BODY_OUTPUT:
		run_out_take(r, u->output);
		break;
	case COPIA__RUN_UPDATE__BODY_EXIT:
		on_exit_update(r, u);
		break;
	case COPIA__RUN_UPDATE__BODY_NEED:
		if (u->need->hashes)
			return send_hashes(r, err);
		send_file(r, u->need);
		break;
	case COPIA__RUN_UPDATE__BODY_NOTE:
		run_say(r, "%s", u->note);
		break;
	case COPIA__RUN_UPDATE__BODY_INPUT_TAKEN:
		input_taken(r, u->input_taken);
		break;
	case COPIA__RUN_UPDATE__BODY_ENDING:
		if (!r->ending_code && !r->interrupts)
			run_say(r, "%s", u->ending->why);
		r->ending_code = u->ending->code;
		free(r->ending_why);
		r->ending_why = xstrdup(u->ending->why);
		break;
	case COPIA__RUN_UPDATE__BODY_DONE:
		r->done = u->done;
		u->body_case = COPIA__RUN_UPDATE__BODY__NOT_SET;
		break;
	default:
		break;
	}
	return 0;
}

/* Tell what was written: all of it when `all`, else when it is worth a message. */
static void send_taken(struct run *r, bool all)
{
	if (!r->dirty_count || (!all && r->unacked < RUN_ACK_BYTES))
		return;
	_cleanup_(free_p) Copia__LaunchOffset *at = xcalloc(r->dirty_count, sizeof(*at));
	_cleanup_(free_p) Copia__LaunchOffset **list = xcalloc(r->dirty_count, sizeof(*list));
	for (uint32_t i = 0; i < r->dirty_count; i++) {
		struct run_sink *s = &r->sinks[r->dirty[i]];
		copia__launch_offset__init(&at[i]);
		at[i].rank = r->dirty[i] / 2;
		at[i].stream = 1 + (r->dirty[i] & 1);
		at[i].offset = s->acked = s->next;
		s->dirty = false;
		list[i] = &at[i];
	}
	Copia__RunInput in = COPIA__RUN_INPUT__INIT;
	in.taken = list;
	in.n_taken = r->dirty_count;
	send_input(r, &in);
	r->dirty_count = 0;
	r->unacked = 0;
}

/* All frames that are here. */
static int take_frames(struct run *r, struct err *err)
{
	struct conn_frame f;
	int got;
	while ((got = conn_next(r->conn, &f, err)) > 0) {
		if (f.call != r->call)
			continue;
		if (f.body.len) {
			Copia__RunUpdate *u =
			    copia__run_update__unpack(NULL, f.body.len, f.body.at);
			if (!u)
				return err_set(err, -EPROTO,
					       "the daemon's answer is not understood: "
					       "daemon and command are of different "
					       "versions");
			if (u->body_case != COPIA__RUN_UPDATE__BODY_PLACED)
				r->lost_ms = 0;
			int code = on_update(r, u, err);
			copia__run_update__free_unpacked(u, NULL);
			if (code < 0)
				return code;
			send_taken(r, false);
		}
		if (f.last) {
			r->ended = true;
			r->end_code = f.code;
			r->end_text = f.code < 0 ? xstrdup(f.error) : NULL;
			return 0;
		}
	}
	if (got == 0)
		send_taken(r, true);
	return got;
}

/* ---------------------------------------------------------------- begin, and begin again */

static void attach_fill(struct run *r, Copia__RunAttach *a)
{
	uint32_t n = 0;
	a->name = r->placed->name;
	a->places = r->placed->places;
	a->n_places = r->placed->n_places;
	a->started_ms = r->placed->started_ms;
	a->input_taken = r->input_base;
	a->ending_code = r->ending_code;
	a->ending_why = r->ending_why ? r->ending_why : (char *)"";
	a->exits = xcalloc(r->size, sizeof(*a->exits));
	for (uint32_t i = 0; i < r->size; i++)
		if (r->exits[i])
			a->exits[a->n_exits++] = r->exits[i];
	Copia__LaunchOffset *at = xcalloc(2 * (size_t)r->size, sizeof(*at));
	a->taken = xcalloc(2 * (size_t)r->size, sizeof(*a->taken));
	for (uint32_t i = 0; i < 2 * r->size; i++) {
		if (!r->sinks[i].next && !r->sinks[i].ended)
			continue;
		copia__launch_offset__init(&at[n]);
		at[n].rank = i / 2;
		at[n].stream = 1 + (i & 1);
		at[n].offset = r->sinks[i].next;
		at[n].ended = r->sinks[i].ended;
		a->taken[a->n_taken++] = &at[n++];
	}
	if (!n)
		free(at);
}

static void attach_free(Copia__RunAttach *a)
{
	free(a->exits);
	if (a->n_taken)
		free(a->taken[0]);
	free(a->taken);
}

static void begin(struct run *r)
{
	Copia__RunAttach a = COPIA__RUN_ATTACH__INIT;
	if (r->placed) {
		attach_fill(r, &a);
		r->rq->attach = &a;
	}
	r->call = conn_begin(r->conn, "run", &r->rq->base, false);
	r->begun = true;
	if (!r->placed)
		return;
	r->rq->attach = NULL;
	attach_free(&a);
	/* Input that the daemon had not taken, and acknowledgements that it may not have had. */
	r->input_sent = r->input_base;
	r->input_end_sent = false;
	input_send(r);
	r->dirty_count = 0;
	for (uint32_t i = 0; i < 2 * r->size; i++) {
		r->sinks[i].dirty = r->sinks[i].next > 0;
		if (r->sinks[i].dirty)
			r->dirty[r->dirty_count++] = i;
	}
	for (unsigned i = 0; i < r->interrupts; i++) {
		Copia__RunInput in = COPIA__RUN_INPUT__INIT;
		in.signal = SIGTERM;
		send_input(r, &in);
	}
}

static uint64_t now_ms(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* The daemon's brain was restarted: the ranks go on meanwhile. There is nothing to wait on but
 * time, see conn.h. */
static int come_back(struct run *r, struct err *err)
{
	int code = -ECONNRESET;
	r->begun = false;
	/* A daemon that comes back and dies again, over and over, is not back. */
	if (!r->lost_ms) {
		r->lost_ms = now_ms();
		if (r->verbose)
			run_say(r, "the daemon went away; the ranks go on; waiting for it");
	}
	while (now_ms() - r->lost_ms < RUN_REOPEN_MS) {
		code = conn_reopen(r->conn, err);
		if (code == 0) {
			begin(r);
			return 0;
		}
		struct pollfd p = { .fd = r->signal_pipe[0], .events = POLLIN };
		if (poll(&p, 1, REOPEN_EVERY_MS) > 0)
			run_signals(r);
	}
	return err_wrap(err, code, "the daemon went away and did not come back within %d s",
			RUN_REOPEN_MS / 1000);
}

/* The daemon is there, but does not know its cluster yet. */
static int begin_later(struct run *r, struct err *err)
{
	if (!r->again_until_ms)
		r->again_until_ms = now_ms() + RUN_REOPEN_MS;
	if (now_ms() > r->again_until_ms)
		return err_set(err, -EAGAIN, "%s", r->end_text);
	r->ended = false;
	r->begun = false;
	r->end_code = 0;
	free(take_ptr(r->end_text));
	struct pollfd p = { .fd = r->signal_pipe[0], .events = POLLIN };
	if (poll(&p, 1, REOPEN_EVERY_MS) > 0)
		run_signals(r);
	begin(r);
	return 0;
}

static int turn(struct run *r, struct err *err)
{
	bool reads = input_wanted(r) && input_allowed();
	struct pollfd p[3] = {
		{ .fd = conn_fd(r->conn), .events = conn_events(r->conn) },
		{ .fd = r->signal_pipe[0], .events = POLLIN },
		{ .fd = reads ? STDIN_FILENO : -1, .events = POLLIN },
	};
	/* A terminal may come to the foreground without telling. */
	int wait_ms = input_wanted(r) && !reads ? 500 : -1;
	if (poll(p, ARRAY_LEN(p), wait_ms) < 0 && errno != EINTR)
		return err_set(err, -errno, "wait: %s", strerror(errno));
	if (p[1].revents)
		run_signals(r);
	int code = 0;
	if (p[0].revents || conn_fd(r->conn) < 0)
		code = conn_work(r->conn, err);
	int taken = take_frames(r, err);
	if (taken == 0 && r->ended && r->end_code == -EAGAIN)
		return begin_later(r, err);
	if (taken < 0 || r->ended)
		return taken;
	if (code == -ECONNRESET)
		return come_back(r, err);
	if (code < 0)
		return code;
	if (p[2].revents)
		input_read(r);
	return 0;
}

static void terminal_raw(struct run *r)
{
	if (!r->rq->spec->terminal || tcgetattr(STDIN_FILENO, &r->saved) < 0)
		return;
	struct termios raw = r->saved;
	cfmakeraw(&raw);
	if (tcsetattr(STDIN_FILENO, TCSADRAIN, &raw) == 0)
		r->terminal = true;
}

/* ---------------------------------------------------------------- the end */

static void show_summary(const struct run *r)
{
	const Copia__RunDone *d = r->done;
	if (r->json) {
		_cleanup_(str_free) struct str out = { 0 };
		json_message(&out, &d->base, false);
		str_puts(&out, "\n");
		(void)!write(STDOUT_FILENO, out.at, out.len);
	} else if (r->verbose) {
		run_say(r,
			"job %s ended with %d after %llu ms; files: %u sent, %u from the nodes' "
			"caches, "
			"%u in place; %llu bytes of files sent",
			d->job, d->code, (unsigned long long)d->wall_ms, d->files_sent,
			d->files_cached, d->files_in_place, (unsigned long long)d->file_bytes);
	}
}

static int finish(struct run *r, int code, struct err *err)
{
	if (r->sinks)
		run_out_flush(r);
	terminal_restore(r);
	if (code < 0) {
		run_say(r, "%s", err->msg);
		return RUN_OWN_FAILURE;
	}
	if (r->end_code < 0) {
		run_say(r, "%s", r->end_text);
		return r->end_code == -ENOEXEC ? RUN_NOT_EXECUTABLE : RUN_OWN_FAILURE;
	}
	if (!r->done) {
		run_say(r, "the daemon ended the call without a word");
		return RUN_OWN_FAILURE;
	}
	show_summary(r);
	if (r->done->why[0] && !r->ending_code && !r->interrupts)
		run_say(r, "%s", r->done->why);
	return r->done->code;
}

static void run_free(struct run *r)
{
	r->conn = conn_close(r->conn);
	for (uint32_t i = 0; r->sinks && i < 2 * r->size; i++) {
		str_free(&r->sinks[i].line);
		if (r->sinks[i].fd >= 0)
			(void)close(r->sinks[i].fd);
	}
	for (uint32_t i = 0; r->exits && i < r->size; i++)
		if (r->exits[i])
			copia__launch_rank_exit__free_unpacked(r->exits[i], NULL);
	free(r->sinks);
	free(r->dirty);
	free(r->exits);
	free(r->ending_why);
	free(r->end_text);
	str_free(&r->input);
	if (r->placed)
		copia__run_placed__free_unpacked(r->placed, NULL);
	if (r->done)
		copia__run_done__free_unpacked(r->done, NULL);
}

int run_job(struct run *r)
{
	struct err err = { 0 };
	r->signal_pipe[0] = r->signal_pipe[1] = -1;
	r->rq->job.len = ID_SIZE;
	r->rq->job.data = xcalloc(1, ID_SIZE);
	if (getrandom(r->rq->job.data, ID_SIZE, 0) != ID_SIZE)
		abort(); /* cannot fail for so few bytes */
	int code = conn_open(&r->conn, NULL, &err);
	if (code == 0) {
		signals_begin(r);
		r->input_open = strcmp(r->rq->spec->stdin, "none") != 0 && *r->rq->spec->stdin;
		terminal_raw(r);
		begin(r);
	}
	while (code == 0 && !r->ended)
		code = turn(r, &err);
	int result = finish(r, code, &err);
	run_free(r);
	return result;
}

/* The default waits for proof that nobody computes any more; who names a time wants just that. */
static bool finalize_given(const struct cli *c, const Copia__RunRequest *rq)
{
	static const char option[] = "--finalize-timeout";
	for (int i = 0; i + (int)rq->n_argv < c->word_count; i++)
		if (!strncmp(c->words[i], option, sizeof(option) - 1))
			return true;
	return false;
}

int run_main(struct cli *c)
{
	Copia__RunRequest *rq = (void *)c->request;
	struct run r = { .verb = c->verb,
			 .rq = rq,
			 .label = rq->label,
			 .verbose = rq->verbose,
			 .json = c->common.json,
			 .output = rq->output && *rq->output ? rq->output : NULL };
	struct err err = { 0 };
	int code = run_spec(rq, &err);
	if (code < 0) {
		run_say(&r, "%s", err.msg);
		return code == -EINVAL ? EXIT_USAGE : run_exit_code(code);
	}
	rq->spec->finalize_forced = finalize_given(c, rq);
	return run_job(&r);
}
