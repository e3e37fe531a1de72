/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/job.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>

void job_init(struct job *j, const struct job_settings *s, uint64_t now_ms)
{
	*j = (struct job){ .settings = *s,
			   .flags = xcalloc(s->size, sizeof(*j->flags)),
			   .inside = xcalloc(s->size, sizeof(*j->inside)),
			   .sight = xcalloc(s->size, sizeof(*j->sight)),
			   .started_ms = now_ms };
	if (!s->size)
		j->phase = JOB_OVER;
}

void job_deinit(struct job *j)
{
	free(j->flags);
	free(j->inside);
	free(j->sight);
	j->flags = j->inside = j->sight = NULL;
}

static bool given(const char *text)
{
	return text && text[0];
}

int job_end_code(const struct job_end *end)
{
	if (end->lost)
		return JOB_CODE_COPIA;
	switch (end->code) {
	case 0:
		return end->signal ? 128 + end->signal : end->status & 255;
	case -ENOENT:
	case -ENOTDIR:
		return JOB_CODE_NOT_FOUND;
	case -EACCES:
	case -EPERM:
	case -ENOEXEC:
	case -EISDIR:
	case -ELIBBAD:
		return JOB_CODE_NOT_EXECUTABLE;
	default:
		return JOB_CODE_COPIA;
	}
}

char *job_end_show(const struct job_end *end, char *buf, size_t size)
{
	const char *why = given(end->why) ? end->why : NULL;
	if (end->lost)
		(void)snprintf(buf, size, "node lost%s%s", why ? ": " : "", why ? why : "");
	else if (end->code)
		(void)snprintf(buf, size, "%s",
			       given(end->error) ? end->error : strerror(-end->code));
	else if (end->signal)
		(void)snprintf(buf, size, "killed by signal %d (%s%s%s)", end->signal,
			       sigdescr_np(end->signal) ? sigdescr_np(end->signal) : "unknown",
			       why ? "; " : "", why ? why : "");
	else
		(void)snprintf(buf, size, "exit code %d%s%s", end->status, why ? ": " : "",
			       why ? why : "");
	return buf;
}

static void to_term(struct job *j, uint64_t grace_ms, uint64_t now_ms)
{
	if (j->phase != JOB_RUNNING)
		return;
	j->phase = JOB_TERM;
	j->term_due = true;
	j->kill_at_ms = grace_ms ? now_ms + grace_ms : 0;
}

static void to_kill(struct job *j)
{
	if (j->phase == JOB_OVER || j->phase == JOB_KILL)
		return;
	j->phase = JOB_KILL;
	j->term_due = false;
	j->kill_due = true;
}

/* The first cause is the one that counts. */
static void cause(struct job *j, int code, const char *why)
{
	if (j->code)
		return;
	j->code = code;
	(void)snprintf(j->why, sizeof(j->why), "%s", why);
}

void job_fail(struct job *j, int code, const char *why, uint64_t now_ms)
{
	assert(code > 0 && code < 256);
	if (j->phase == JOB_OVER)
		return;
	cause(j, code, why);
	to_term(j, JOB_GRACE_MS, now_ms);
}

void job_abort(struct job *j, int code, const char *why, uint64_t now_ms)
{
	bool first = !j->code && j->phase == JOB_RUNNING;
	job_fail(j, code, why, now_ms);
	j->weak |= first;
	if (first)
		j->cause_ms = now_ms;
}

/* ---------------------------------------------------------------- MPI_Finalize */

/* After PMI's finalize a program may work on for as long as it likes. */
static bool is_closing(const struct job *j, uint32_t rank)
{
	return (j->flags[rank] & (JOB_RANK_ENDED | JOB_RANK_CLOSING | JOB_RANK_FINALIZED)) ==
	       JOB_RANK_CLOSING;
}

bool job_missing(const struct job *j, uint32_t rank)
{
	return !(j->flags[rank] & JOB_RANK_ENDED) && !is_closing(j, rank);
}

static bool all_closing(const struct job *j)
{
	return j->closing + j->ended == j->settings.size;
}

static void quiet_begin(struct job *j, uint64_t now_ms)
{
	memset(j->inside, 0, j->settings.size * sizeof(*j->inside));
	j->quiet_ms = now_ms;
	j->decide_at_ms = now_ms + j->settings.finalize_ms;
}

static uint64_t look_every_ms(const struct job *j)
{
	return MAX(j->settings.finalize_ms / JOB_LOOKS, (uint64_t)1);
}

/* The rank's flags have changed; `was`: it was in its last barrier before. */
static void closing_changed(struct job *j, uint32_t rank, bool was, uint64_t now_ms)
{
	bool is = is_closing(j, rank);
	j->closing += (uint32_t)is - (uint32_t)was;
	if (!j->closing) {
		j->closing_ms = 0;
		return;
	}
	if (!j->closing_ms) {
		j->closing_ms = MAX(now_ms, (uint64_t)1);
		j->look_wait_ms = look_every_ms(j);
		j->look_at_ms = now_ms + j->look_wait_ms;
	}
	quiet_begin(j, now_ms);
}

void job_seen(struct job *j, uint32_t rank, enum job_sight sight, uint64_t now_ms)
{
	assert(rank < j->settings.size);
	if (!j->closing_ms || !job_missing(j, rank))
		return;
	j->sight[rank] = (uint8_t)sight;
	if (sight == JOB_SIGHT_OUTSIDE) {
		quiet_begin(j, now_ms);
		j->look_wait_ms = MIN(2 * j->look_wait_ms, (uint64_t)JOB_LOOK_WAIT_MAX_MS);
		return;
	}
	if (j->look_wait_ms > look_every_ms(j)) {
		j->look_wait_ms = look_every_ms(j);
		j->look_at_ms = MIN(j->look_at_ms, now_ms + j->look_wait_ms);
	}
	if (sight == JOB_SIGHT_INSIDE && j->inside[rank] < UINT8_MAX)
		j->inside[rank]++;
}

/* All that are missing were seen in MPI often enough. */
static bool hang_established(const struct job *j)
{
	for (uint32_t i = 0; i < j->settings.size; i++)
		if (job_missing(j, i) && j->inside[i] < JOB_LOOKS_LEAST)
			return false;
	return true;
}

static uint64_t forced_at_ms(const struct job *j)
{
	uint64_t at = j->closing_ms + j->settings.finalize_ms;
	uint64_t settled = j->quiet_ms + MIN(j->settings.finalize_ms, (uint64_t)JOB_SETTLE_MS);
	for (uint32_t i = 0; i < j->settings.size; i++)
		if (job_missing(j, i) && j->sight[i] == JOB_SIGHT_OUTSIDE)
			return at; /* it is they who moved quiet_ms */
	return MAX(at, settled);
}

static bool finalize_matters(const struct job *j)
{
	return j->phase == JOB_RUNNING && j->closing_ms && j->settings.finalize_ms && !j->hung_due;
}

/* Time is over for ranks that the user wants to be ended whatever they do. Work that was seen is
 * not called done. */
static void finalize_force(struct job *j, uint64_t now_ms)
{
	char line[160];
	for (uint32_t i = 0; i < j->settings.size; i++) {
		if (!job_missing(j, i) || j->sight[i] != JOB_SIGHT_OUTSIDE)
			continue;
		(void)snprintf(line, sizeof(line),
			       "rank %u still computed when --finalize-timeout was over", i);
		cause(j, JOB_CODE_TIMEOUT, line);
		to_term(j, JOB_GRACE_MS, now_ms);
		return;
	}
	j->hung_due = j->hung_forced = true;
}

static void finalize_step(struct job *j, uint64_t now_ms)
{
	if (now_ms >= j->look_at_ms) {
		j->look_due = !all_closing(j);
		j->look_at_ms = now_ms + j->look_wait_ms;
	}
	if (now_ms - j->quiet_ms >= j->settings.finalize_ms && hang_established(j)) {
		j->hung_due = true;
	} else if (j->settings.finalize_forced && now_ms >= forced_at_ms(j)) {
		finalize_force(j, now_ms);
	} else if (now_ms >= j->decide_at_ms) {
		/* Nobody computes, but nobody was seen in MPI either. */
		j->note_due = !j->decided && !j->settings.finalize_forced;
		j->decided |= j->note_due;
		j->decide_at_ms = now_ms + look_every_ms(j);
	}
	if (j->hung_due)
		j->settings.finalize_ms = 0; /* once */
}

/* ---------------------------------------------------------------- news */

bool job_rank_ended(struct job *j, uint32_t rank, const struct job_end *end, const char *where,
		    uint64_t now_ms)
{
	assert(rank < j->settings.size);
	if (j->flags[rank] & JOB_RANK_ENDED)
		return false;
	bool was = is_closing(j, rank);
	j->flags[rank] |= JOB_RANK_ENDED;
	j->ended++;
	int code = end->hung ? 0 : job_end_code(end);
	if (end->hung)
		j->hung++;
	if (code) {
		j->flags[rank] |= JOB_RANK_FAILED;
		char what[300], line[400];
		job_end_show(end, what, sizeof(what));
		if (j->settings.nodes)
			(void)snprintf(line, sizeof(line), "%s: %s", where, what);
		else
			(void)snprintf(line, sizeof(line), "rank %u on %s: %s", rank, where, what);
		/* What we signal has a reason; what dies without one died by itself. */
		bool died = end->signal && !given(end->why) && !end->lost;
		if (j->phase == JOB_RUNNING && !j->code) {
			j->weak = !died && !end->code && !end->lost && !j->settings.keep_going;
			j->cause_ms = now_ms;
		} else if (j->weak && died && now_ms - j->cause_ms <= JOB_TELL_MS) {
			j->weak = false;
			j->code = 0;
		}
		if (j->phase == JOB_RUNNING || !j->code)
			cause(j, code, line);
		if (!j->settings.keep_going)
			to_term(j, JOB_GRACE_MS, now_ms);
	}
	if (j->ended == j->settings.size)
		j->phase = JOB_OVER;
	closing_changed(j, rank, was, now_ms);
	return true;
}

uint32_t job_interrupt(struct job *j, int signal, uint64_t now_ms)
{
	if (j->phase == JOB_OVER)
		return j->signals;
	j->signals++;
	char line[80];
	(void)snprintf(line, sizeof(line), "ended by the user's signal %d", signal);
	cause(j, 128 + signal, line);
	if (j->signals == 1)
		to_term(j, 0, now_ms);
	else
		to_kill(j);
	return j->signals;
}

void job_mpi(struct job *j, uint32_t rank, unsigned set, unsigned clear, uint64_t now_ms)
{
	assert(rank < j->settings.size);
	assert(!((set | clear) & (JOB_RANK_ENDED | JOB_RANK_FAILED)));
	bool was = is_closing(j, rank);
	j->flags[rank] = (uint8_t)((j->flags[rank] & ~clear) | set);
	closing_changed(j, rank, was, now_ms);
}

static bool timeout_due(const struct job *j, uint64_t now_ms)
{
	return j->phase == JOB_RUNNING && j->settings.timeout_ms &&
	       now_ms - j->started_ms >= j->settings.timeout_ms;
}

struct job_orders job_step(struct job *j, uint64_t now_ms)
{
	if (timeout_due(j, now_ms)) {
		char line[80];
		(void)snprintf(line, sizeof(line), "time is over after %llu s",
			       (unsigned long long)(j->settings.timeout_ms / 1000));
		cause(j, JOB_CODE_TIMEOUT, line);
		to_term(j, JOB_TIMEOUT_GRACE_MS, now_ms);
	}
	if (j->phase == JOB_TERM && j->kill_at_ms && now_ms >= j->kill_at_ms)
		to_kill(j);
	if (finalize_matters(j))
		finalize_step(j, now_ms);
	struct job_orders o = { .term = j->term_due,
				.kill = j->kill_due,
				.hung = j->hung_due,
				.look = j->look_due,
				.note = j->note_due };
	j->term_due = j->kill_due = j->hung_due = j->look_due = j->note_due = false;
	return o;
}

uint64_t job_next_ms(const struct job *j)
{
	uint64_t next = UINT64_MAX;
	if (j->term_due || j->kill_due || j->hung_due || j->look_due || j->note_due)
		return 0;
	if (j->phase == JOB_RUNNING && j->settings.timeout_ms)
		next = j->started_ms + j->settings.timeout_ms;
	if (j->phase == JOB_TERM && j->kill_at_ms)
		next = j->kill_at_ms;
	if (finalize_matters(j)) {
		next = MIN(next, j->decide_at_ms);
		if (!all_closing(j))
			next = MIN(next, j->look_at_ms);
		if (j->settings.finalize_forced) {
			uint64_t at = forced_at_ms(j);
			next = MIN(next, at);
		}
	}
	return next;
}
