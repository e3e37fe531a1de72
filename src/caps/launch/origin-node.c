/* SPDX-License-Identifier: Apache-2.0 */
/* A job at its origin: news of the sites go to the command, the command's bytes and signals to the
 * sites, until all ranks have ended and all their output has been passed on. */
#include "caps/launch/origin-impl-node.h"

#include "base/log.h"
#include "caps/members/members.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>

enum { FAILURE_LINES_MAX = 20 };

struct origin_job *origin_find(struct launch *l, const struct id *id)
{
	struct origin_job *j;
	HASH_FIND(hh, l->jobs, id, sizeof(*id), j);
	return j;
}

struct origin_site *origin_site_of(struct origin_job *j, uint32_t node)
{
	for (size_t i = 0; i < j->site_count; i++)
		if (j->sites[i].place.node == node)
			return &j->sites[i];
	return NULL;
}

/* Sites lie in the order of ranks. */
struct origin_site *origin_site_of_rank(struct origin_job *j, uint32_t rank)
{
	size_t from = 0, to = j->site_count;
	while (to - from > 1) {
		size_t middle = from + (to - from) / 2;
		if (j->sites[middle].place.first <= rank)
			from = middle;
		else
			to = middle;
	}
	return &j->sites[from];
}

struct origin_job *origin_free(struct origin_job *j)
{
	if (origin_find(j->l, &j->id) == j)
		HASH_DEL(j->l->jobs, j);
	for (size_t i = 0; i < j->site_count; i++) {
		free(j->sites[i].name);
		if (j->sites[i].report)
			copia__launch_site__free_unpacked(j->sites[i].report, NULL);
	}
	free(j->sites);
	free(j->streams);
	job_deinit(&j->job);
	str_free(&j->input);
	if (j->spec)
		copia__launch_spec__free_unpacked(j->spec, NULL);
	free(j);
	return NULL;
}

void origin_free_all(struct launch *l)
{
	struct origin_job *j, *next;
	HASH_ITER(hh, l->jobs, j, next)
	{
		if (j->call)
			call_finish(j->call, -ESHUTDOWN, "copiad is being stopped");
		origin_free(j);
	}
}

/* ---------------------------------------------------------------- to the command */

void origin_update(struct origin_job *j, Copia__RunUpdate *u)
{
	if (j->call)
		call_reply(j->call, &u->base);
}

void origin_note(struct origin_job *j, const char *fmt, ...)
{
	struct str s = { 0 };
	va_list args;
	va_start(args, fmt);
	str_vprintf(&s, fmt, args);
	va_end(args);
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_NOTE;
	u.note = s.at;
	origin_update(j, &u);
	str_free(&s);
}

static void tell_ending(struct origin_job *j)
{
	bool ends = j->job.phase == JOB_TERM || j->job.phase == JOB_KILL;
	if (j->ending_told || !ends || !j->job.code)
		return;
	uint64_t tell_ms = j->job.cause_ms + JOB_TELL_MS;
	if (j->job.weak && launch_now_ms(j->l) < tell_ms) {
		launch_wake_at(j->l, tell_ms);
		return;
	}
	j->ending_told = true;
	Copia__RunEnding e = COPIA__RUN_ENDING__INIT;
	e.code = j->job.code;
	e.why = j->job.why;
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_ENDING;
	u.ending = &e;
	origin_update(j, &u);
}

/* Parallel programs that came up as so many single ones. */
static void warn_singletons(struct origin_job *j)
{
	bool linked = false;
	for (size_t i = 0; i < j->spec->n_programs; i++) {
		Copia__MpiLibrary lib = j->spec->programs[i]->library;
		linked |= lib == COPIA__MPI_LIBRARY__MPI_LIBRARY_PMI1 ||
			  lib == COPIA__MPI_LIBRARY__MPI_LIBRARY_PMIX;
	}
	uint32_t connected = 0;
	for (uint32_t i = 0; i < j->size; i++)
		connected += (j->job.flags[i] & JOB_RANK_CONNECTED) != 0;
	if (!linked || j->size < 2 || connected == j->size || j->job.code)
		return;
	origin_note(
	    j,
	    "warning: %u of %u ranks of this MPI program never asked for their partners: each "
	    "of them ran alone; look at --mpi (now %s)",
	    j->size - connected, j->size, *j->spec->mpi ? j->spec->mpi : "auto");
}

static void tell_done(struct origin_job *j)
{
	Copia__RunDone d = COPIA__RUN_DONE__INIT;
	d.code = j->job.code;
	d.why = j->spec->keep_going ? (char *)"" : j->job.why;
	d.job = j->name;
	d.ranks = j->size;
	d.nodes = (uint32_t)j->site_count;
	for (size_t i = 0; i < j->site_count; i++) {
		const Copia__LaunchSite *r = j->sites[i].report;
		if (!r)
			continue;
		d.file_bytes += r->file_bytes;
		d.files_sent += r->files_sent;
		d.files_cached += r->files_cached;
		d.files_in_place += r->files_in_place;
	}
	d.wall_ms = launch_now_ms(j->l) - j->job.started_ms;
	d.user_us = j->user_us;
	d.system_us = j->system_us;
	d.max_rss_bytes = j->max_rss_bytes;
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_DONE;
	u.done = &d;
	origin_update(j, &u);
}

/* ---------------------------------------------------------------- to the sites */

static void all_sites(struct origin_job *j, launch_message *m)
{
	_cleanup_(free_p) uint32_t *nodes = xcalloc(j->site_count, sizeof(*nodes));
	size_t count = 0;
	for (size_t i = 0; i < j->site_count; i++)
		if (!j->sites[i].lost)
			nodes[count++] = j->sites[i].place.node;
	launch_send_all(j->l, nodes, count, &j->id, m);
}

static void send_signal(struct origin_job *j, int signal, bool hung, const char *why)
{
	Copia__LaunchSignal s = COPIA__LAUNCH_SIGNAL__INIT;
	s.signal = signal;
	s.hung = hung;
	s.why = (char *)why;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_SIGNAL);
	m.signal = &s;
	if (j->started)
		all_sites(j, &m);
}

void origin_input_send(struct origin_job *j, const struct origin_site *only, uint64_t from)
{
	uint64_t end = j->input_base + j->input.len;
	from = MAX(from, j->input_base);
	if (!j->started || (from >= end && !j->input_ended))
		return;
	Copia__LaunchInput in = COPIA__LAUNCH_INPUT__INIT;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_INPUT);
	m.input = &in;
	do {
		size_t len = (size_t)MIN(end - from, (uint64_t)256 * 1024);
		in.offset = from;
		in.data =
		    (ProtobufCBinaryData){ len, (uint8_t *)j->input.at + (from - j->input_base) };
		from += len;
		in.ended = from == end && j->input_ended;
		bool to_all = !strcmp(j->spec->stdin, "all");
		for (size_t i = 0; i < j->site_count; i++) {
			struct origin_site *s = &j->sites[i];
			bool reads =
			    to_all || s == origin_site_of_rank(
					       j, (uint32_t)strtoul(j->spec->stdin, NULL, 10));
			if (reads && !s->lost && s->given != UINT64_MAX && (!only || only == s))
				launch_send(j->l, s->place.node, &j->id, &m);
		}
	} while (from < end);
}

/* ---------------------------------------------------------------- news of ranks */

void origin_stream_ended(struct origin_job *j, uint32_t rank, uint32_t stream)
{
	if (stream < 1 || stream > 2 || j->streams[rank] & stream)
		return;
	j->streams[rank] |= (uint8_t)stream;
	j->streams_ended++;
}

static void tell_failure(struct origin_job *j, const Copia__LaunchRankExit *x,
			 const struct job_end *end, const char *where)
{
	char what[300];
	if (!j->spec->keep_going || x->hung || !job_end_code(end) || j->call == NULL)
		return;
	if (++j->failure_lines > FAILURE_LINES_MAX)
		return;
	job_end_show(end, what, sizeof(what));
	if (j->spec->exec)
		origin_note(j, "%s: %s", where, what);
	else
		origin_note(j, "rank %u on %s: %s", x->rank, where, what);
}

void origin_exit(struct origin_job *j, const Copia__LaunchRankExit *x, bool tell)
{
	struct origin_site *s = origin_site_of_rank(j, x->rank);
	struct job_end end = { .status = x->status,
			       .signal = x->signal,
			       .code = x->code,
			       .hung = x->hung,
			       .lost = x->lost,
			       .error = x->error,
			       .why = x->why };
	if (!job_rank_ended(&j->job, x->rank, &end, s->name, launch_now_ms(j->l)))
		return;
	if (x->lost || x->code < 0) {
		origin_stream_ended(j, x->rank, 1);
		origin_stream_ended(j, x->rank, 2);
	}
	j->user_us += x->user_us;
	j->system_us += x->system_us;
	j->max_rss_bytes = MAX(j->max_rss_bytes, x->max_rss_bytes);
	if (!tell)
		return;
	tell_failure(j, x, &end, s->name);
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_EXIT;
	u.exit = (Copia__LaunchRankExit *)x;
	origin_update(j, &u);
}

static void site_lost(struct origin_job *j, struct origin_site *s, const char *why)
{
	if (s->lost)
		return;
	s->lost = true;
	for (uint32_t i = 0; i < s->place.count; i++) {
		Copia__LaunchRankExit x = COPIA__LAUNCH_RANK_EXIT__INIT;
		x.rank = s->place.first + i;
		x.lost = true;
		x.why = (char *)why;
		origin_exit(j, &x, true);
		origin_stream_ended(j, x.rank, 1);
		origin_stream_ended(j, x.rank, 2);
	}
	origin_given(j, s, UINT64_MAX);
}

static void site_failed(struct origin_job *j, struct origin_site *s, const Copia__LaunchSite *r)
{
	for (uint32_t i = 0; i < s->place.count; i++) {
		Copia__LaunchRankExit x = COPIA__LAUNCH_RANK_EXIT__INIT;
		x.rank = s->place.first + i;
		/* 126 and 127 are for programs; there is none when files are copied. */
		x.code = r->code < 0 && j->spec->n_programs ? r->code : -EIO;
		x.error = r->error;
		origin_exit(j, &x, true);
	}
}

static void on_site(struct origin_job *j, struct origin_site *s, Copia__LaunchSite *r)
{
	for (size_t i = 0; i < r->n_notes; i++)
		origin_note(j, "%s", r->notes[i]);
	bool again = s->answered;
	s->answered = true;
	if (s->report)
		copia__launch_site__free_unpacked(s->report, NULL);
	s->report = launch_copy(r);
	if (r->phase == COPIA__LAUNCH_PHASE__LAUNCH_FAILED) {
		site_failed(j, s, r);
	} else if (r->phase == COPIA__LAUNCH_PHASE__LAUNCH_DONE) {
		for (uint32_t i = 0; i < s->place.count; i++) {
			Copia__LaunchRankExit x = COPIA__LAUNCH_RANK_EXIT__INIT;
			x.rank = s->place.first + i;
			origin_exit(j, &x, false);
			origin_stream_ended(j, x.rank, 1);
			origin_stream_ended(j, x.rank, 2);
		}
	} else if (again && j->job.phase != JOB_RUNNING) {
		/* It may have missed the order to end. */
		send_signal(j, j->job.phase == JOB_TERM ? SIGTERM : SIGKILL, false, "the job ends");
	}
}

/* Input that has reached the ranks of one site. */
void origin_given(struct origin_job *j, struct origin_site *s, uint64_t offset)
{
	bool to_all = !strcmp(j->spec->stdin, "all");
	uint64_t least = UINT64_MAX, before = j->input_base;
	bool rewound = s->given != UINT64_MAX && offset < s->given;
	s->given = offset;
	for (size_t i = 0; i < j->site_count; i++) {
		struct origin_site *k = &j->sites[i];
		if (to_all ||
		    k == origin_site_of_rank(j, (uint32_t)strtoul(j->spec->stdin, NULL, 10)))
			least = MIN(least, k->given);
	}
	if (rewound)
		origin_input_send(j, s, offset);
	if (least != UINT64_MAX && least <= before)
		return;
	size_t cut = (size_t)MIN(least - before, (uint64_t)j->input.len);
	str_cut(&j->input, cut);
	j->input_base += cut;
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_INPUT_TAKEN;
	u.input_taken = least;
	if (least != j->input_told)
		origin_update(j, &u);
	j->input_told = least;
}

static void on_output(struct origin_job *j, Copia__LaunchOutput *o)
{
	if (o->rank >= j->size || o->stream < 1 || o->stream > 2 || !j->call)
		return;
	if (o->ended)
		origin_stream_ended(j, o->rank, o->stream);
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_OUTPUT;
	u.output = o;
	origin_update(j, &u);
}

static void on_wireup(struct origin_job *j, const Copia__LaunchWireup *w)
{
	uint64_t now = launch_now_ms(j->l);
	static const struct {
		uint8_t set, clear;
	} flags[] = {
		[COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_CONNECTED] = { JOB_RANK_CONNECTED, 0 },
		[COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_CLOSING] = { JOB_RANK_CLOSING, 0 },
		[COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_BARRIER] = { 0, JOB_RANK_CLOSING },
		[COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_FINALIZED] = { JOB_RANK_FINALIZED, 0 },
	};
	if ((size_t)w->event < ARRAY_LEN(flags)) {
		for (size_t i = 0; i < w->n_ranks; i++)
			if (w->ranks[i] < j->size)
				job_mpi(&j->job, w->ranks[i], flags[w->event].set,
					flags[w->event].clear, now);
		return;
	}
	uint32_t rank = w->n_ranks && w->ranks[0] < j->size ? w->ranks[0] : 0;
	char line[400];
	(void)snprintf(line, sizeof(line), "rank %u on %s: %s", rank,
		       origin_site_of_rank(j, rank)->name, w->text);
	if (w->event == COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_NOTE)
		origin_note(j, "%s", w->text);
	else if (w->event == COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_ABORTED)
		job_abort(&j->job, w->code > 0 && w->code < 256 ? w->code : 1, line, now);
	else
		job_fail(&j->job, JOB_CODE_COPIA, line, now);
}

void origin_message(struct launch *l, uint32_t from, const struct id *id, const launch_message *m)
{
	struct origin_job *j = origin_find(l, id);
	if (!j) {
		if (m->body_case != COPIA__LAUNCH_MESSAGE__BODY_ASK)
			return;
		Copia__LaunchUnknown unknown = COPIA__LAUNCH_UNKNOWN__INIT;
		launch_message answer;
		launch_init_message(&answer, COPIA__LAUNCH_MESSAGE__BODY_UNKNOWN);
		answer.unknown = &unknown;
		launch_send(l, from, id, &answer);
		return;
	}
	struct origin_site *s = origin_site_of(j, from);
	if (!s || s->lost)
		return;
	switch (m->body_case) {
	case COPIA__LAUNCH_MESSAGE__BODY_SITE:
		on_site(j, s, m->site);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_OUTPUT:
		on_output(j, m->output);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_EXITS:
		for (size_t i = 0; i < m->exits->n_exits; i++)
			if (m->exits->exits[i]->rank - s->place.first < s->place.count)
				origin_exit(j, m->exits->exits[i], true);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_GIVEN:
		if (m->given->n_offsets)
			origin_given(j, s, m->given->offsets[0]->offset);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_WIREUP:
		on_wireup(j, m->wireup);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_SEEN:
		origin_seen(j, s, m->seen);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_ASK:
		origin_send_start(j, s, true);
		break;
	default:
		break;
	}
	origin_step(j);
}

/* ---------------------------------------------------------------- the command's frames */

static void forward_taken(struct origin_job *j, Copia__RunInput *in)
{
	/* Offsets of one site go in one message. */
	for (size_t i = 0; i < j->site_count; i++) {
		struct origin_site *s = &j->sites[i];
		_cleanup_(free_p) Copia__LaunchOffset **list = xcalloc(in->n_taken, sizeof(*list));
		Copia__LaunchOffsets o = COPIA__LAUNCH_OFFSETS__INIT;
		o.offsets = list;
		for (size_t k = 0; k < in->n_taken; k++)
			if (in->taken[k]->rank - s->place.first < s->place.count)
				list[o.n_offsets++] = in->taken[k];
		if (!o.n_offsets || s->lost)
			continue;
		launch_message m;
		launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_TAKEN);
		m.taken = &o;
		launch_send(j->l, s->place.node, &j->id, &m);
	}
}

static void take_input(struct origin_job *j, const Copia__LaunchInput *in)
{
	uint64_t end = j->input_base + j->input.len;
	if (j->input_ended || in->offset > end || in->offset + in->data.len < end)
		return;
	size_t skip = (size_t)(end - in->offset);
	if (j->input.len + in->data.len - skip > 2 * LAUNCH_INPUT_WINDOW) {
		origin_note(j,
			    "the command sends more input than was allowed; the rest is ignored");
		return;
	}
	if (in->data.len > skip)
		str_add(&j->input, in->data.data + skip, in->data.len - skip);
	j->input_ended = in->ended;
	origin_input_send(j, NULL, end);
}

static void set_hash(Copia__LaunchFile *to, const Copia__LaunchFile *from)
{
	free(to->hash.data);
	to->hash.len = from->hash.len;
	to->hash.data = from->hash.len ? xmemdup(from->hash.data, from->hash.len) : NULL;
	to->size_bytes = from->size_bytes;
}

/* Hashes come in the order of programs with a file, then of --stage files. */
static void take_hashes(struct origin_job *j, Copia__LaunchFile **files, size_t count)
{
	size_t at = 0;
	for (size_t i = 0; i < j->spec->n_programs; i++) {
		Copia__LaunchFile *f = j->spec->programs[i]->file;
		if (f && f->path[0] && at < count)
			set_hash(f, files[at++]);
	}
	for (size_t i = 0; i < j->spec->n_stage && at < count; i++)
		set_hash(j->spec->stage[i], files[at++]);
	j->wants_hashes = false;
	origin_start_sites(j);
	origin_input_send(j, NULL, 0);
}

static void take_signal(struct origin_job *j, int signal)
{
	if (signal == SIGINT || signal == SIGTERM)
		(void)job_interrupt(&j->job, signal, launch_now_ms(j->l));
	else if (signal > 0 && signal < 65)
		send_signal(j, signal, false, "");
}

void origin_frame(void *ctx, struct call *c, const uint8_t *body, size_t len, bool last)
{
	struct origin_job *j = ctx;
	(void)c;
	(void)last;
	if (!len)
		return;
	Copia__RunInput *in = copia__run_input__unpack(NULL, len, body);
	if (!in)
		return;
	if (in->input)
		take_input(j, in->input);
	if (in->n_taken)
		forward_taken(j, in);
	if (in->n_files && j->wants_hashes && j->job.phase == JOB_RUNNING)
		take_hashes(j, in->files, in->n_files);
	if (in->data)
		stage_from_command(j->l, in->data);
	if (in->signal)
		take_signal(j, in->signal);
	if (in->winsize) {
		launch_message m;
		launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_WINSIZE);
		m.winsize = in->winsize;
		all_sites(j, &m);
	}
	copia__run_input__free_unpacked(in, NULL);
	origin_step(j);
}

bool origin_file_want(struct launch *l, const struct id *job, const uint8_t hash[32],
		      uint64_t offset, uint64_t upto)
{
	struct origin_job *j = origin_find(l, job);
	if (!j || !j->call)
		return false;
	Copia__RunNeed need = COPIA__RUN_NEED__INIT;
	need.hash = (ProtobufCBinaryData){ 32, (uint8_t *)hash };
	need.offset = offset;
	need.upto = upto;
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	u.body_case = COPIA__RUN_UPDATE__BODY_NEED;
	u.need = &need;
	origin_update(j, &u);
	return true;
}

/* ---------------------------------------------------------------- what follows */

static void finish(struct origin_job *j)
{
	if (j->call) {
		if (j->failure_lines > FAILURE_LINES_MAX)
			origin_note(j, "…and %u more", j->failure_lines - FAILURE_LINES_MAX);
		warn_singletons(j);
		origin_tell_hung(j);
		tell_done(j);
		struct call *c = take_ptr(j->call);
		call_finish(c, 0, NULL);
	}
	Copia__LaunchEnd end = COPIA__LAUNCH_END__INIT;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_END);
	m.end = &end;
	if (j->started)
		all_sites(j, &m);
	struct launch *l = j->l;
	struct id id = j->id;
	origin_free(j);
	stage_job_ended(l, &id);
}

void origin_step(struct origin_job *j)
{
	uint64_t now = launch_now_ms(j->l);
	struct job_orders o = job_step(&j->job, now);
	if (o.term)
		send_signal(j, SIGTERM, false, "the job ends");
	if (o.kill)
		send_signal(j, SIGKILL, false, "the job ends");
	if (o.hung)
		send_signal(j, SIGKILL, true, "hung in MPI_Finalize");
	if (o.look)
		origin_look(j);
	if (o.note)
		origin_finalize_note(j);
	tell_ending(j);
	bool over = j->job.phase == JOB_OVER || (!j->started && j->job.phase != JOB_RUNNING);
	if (over && !j->over_ms)
		j->over_ms = now;
	bool drained = j->streams_ended == 2 * j->size || !j->started || !j->call;
	if (over && !drained && now - j->over_ms >= LAUNCH_EXIT_DRAIN_MS) {
		origin_note(j,
			    "note: something still holds the output of ended ranks open; what it "
			    "writes from now on is not shown");
		drained = true;
	}
	if (over && drained) {
		finish(j);
		return;
	}
	uint64_t next = over ? j->over_ms + LAUNCH_EXIT_DRAIN_MS : job_next_ms(&j->job);
	if (next != UINT64_MAX)
		launch_wake_at(j->l, next);
}

/* Sites that say nothing are asked again: an order may have been lost with a session. */
static bool ask_silent(struct origin_job *j, uint64_t now_ms)
{
	bool silent = false;
	for (size_t i = 0; j->started && i < j->site_count; i++) {
		struct origin_site *s = &j->sites[i];
		if (s->answered || s->lost)
			continue;
		silent = true;
		if (now_ms - s->asked_ms >= LAUNCH_AGAIN_MS)
			origin_send_start(j, s, j->attached || s->asked_before);
	}
	return silent;
}

uint64_t origin_tick(struct launch *l, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;
	struct origin_job *j, *next;
	HASH_ITER(hh, l->jobs, j, next)
	{
		if (ask_silent(j, now_ms))
			due = MIN(due, now_ms + LAUNCH_AGAIN_MS);
		uint64_t at = job_next_ms(&j->job);
		due = MIN(due, at > now_ms ? at : UINT64_MAX);
		origin_step(j);
	}
	return due;
}

void origin_session(struct launch *l, uint32_t node, bool up)
{
	struct origin_job *j, *next;
	HASH_ITER(hh, l->jobs, j, next)
	{
		struct origin_site *s = origin_site_of(j, node);
		if (!s || s->lost || !j->started)
			continue;
		/* What was on its way is lost: begin again from what is known. */
		s->answered = false;
		s->asked_before = true;
		if (up)
			origin_send_start(j, s, true);
		else
			launch_wake_at(l, launch_now_ms(l) + LAUNCH_AGAIN_MS);
	}
}

void origin_node_down(struct launch *l, uint32_t node)
{
	struct origin_job *j, *next;
	HASH_ITER(hh, l->jobs, j, next)
	{
		struct origin_site *s = origin_site_of(j, node);
		if (!s)
			continue;
		site_lost(j, s, "");
		origin_step(j);
	}
}
