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
			   .started_ms = now_ms };
	if (!s->size)
		j->phase = JOB_OVER;
}

void job_deinit(struct job *j)
{
	free(j->flags);
	j->flags = NULL;
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

/* All that run are in their last barrier (and at least one is, and nobody has failed). */
static void closing_check(struct job *j, uint64_t now_ms)
{
	uint32_t closing = 0;
	for (uint32_t i = 0; i < j->settings.size; i++) {
		if (j->flags[i] & JOB_RANK_ENDED)
			continue;
		if (!(j->flags[i] & (JOB_RANK_CLOSING | JOB_RANK_FINALIZED))) {
			j->closing_ms = 0;
			return;
		}
		closing++;
	}
	if (!closing)
		j->closing_ms = 0;
	else if (!j->closing_ms)
		j->closing_ms = now_ms ? now_ms : 1;
}

bool job_rank_ended(struct job *j, uint32_t rank, const struct job_end *end, const char *where,
		    uint64_t now_ms)
{
	assert(rank < j->settings.size);
	if (j->flags[rank] & JOB_RANK_ENDED)
		return false;
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
		if (j->phase == JOB_RUNNING)
			cause(j, code, line);
		if (!j->settings.keep_going)
			to_term(j, JOB_GRACE_MS, now_ms);
	}
	if (j->ended == j->settings.size)
		j->phase = JOB_OVER;
	else if (j->flags[rank] & JOB_RANK_CONNECTED || j->closing_ms)
		closing_check(j, now_ms);
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
	j->flags[rank] = (uint8_t)((j->flags[rank] & ~clear) | set);
	closing_check(j, now_ms);
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
	if (j->phase == JOB_RUNNING && j->closing_ms && j->settings.finalize_ms &&
	    now_ms - j->closing_ms >= j->settings.finalize_ms) {
		j->hung_due = true;
		j->closing_ms = 0;
		j->settings.finalize_ms = 0; /* once */
	}
	struct job_orders o = { .term = j->term_due, .kill = j->kill_due, .hung = j->hung_due };
	j->term_due = j->kill_due = j->hung_due = false;
	return o;
}

uint64_t job_next_ms(const struct job *j)
{
	uint64_t next = UINT64_MAX;
	if (j->term_due || j->kill_due || j->hung_due)
		return 0;
	if (j->phase == JOB_RUNNING && j->settings.timeout_ms)
		next = j->started_ms + j->settings.timeout_ms;
	if (j->phase == JOB_TERM && j->kill_at_ms)
		next = j->kill_at_ms;
	if (j->phase == JOB_RUNNING && j->closing_ms && j->settings.finalize_ms) {
		uint64_t at = j->closing_ms + j->settings.finalize_ms;
		next = MIN(next, at);
	}
	return next;
}
