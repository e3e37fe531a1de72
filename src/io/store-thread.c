/* SPDX-License-Identifier: Apache-2.0 */
/* The store's thread: transactions, then work in the background, then checkpoints. */
#include "io/store-impl.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <time.h>

enum {
	PIECE_BYTES = 256 << 10,  /* of an own snapshot, in one transaction */
	GROUP_BYTES = 8 << 20,    /* put into one transaction at most (and one job more) */
	RETRY_MS = 500,           /* after a failed write */
	QUIET_MS = 20,            /* nothing to do for so long: time for a checkpoint */
	WAL_QUIET_PAGES = 256,    /* … when there is as much to gain */
	WAL_FORCE_PAGES = 3600,   /* checkpoint though there is work: less than what is prepared,
				   * because a growing WAL doubles the cost of a sync */
	BACKGROUND_EVERY_MS = 10, /* under load: a step of the background work so often */
};

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static void answer_add(struct store *s, struct answer *a)
{
	pthread_mutex_lock(&s->lock);
	*s->answer_end = a;
	s->answer_end = &a->next;
	pthread_mutex_unlock(&s->lock);
	uv_async_send(&s->wake);
}

static struct answer *answer_new(enum answer_kind kind, uint64_t index)
{
	struct answer *a = xcalloc(1, sizeof(*a));
	a->kind = kind;
	a->index = index;
	return a;
}

/* ---- the thread: jobs ---- */

/* Wait after a failure, or until the store is closed. Returns false when it is. */
static bool pause_retry(struct store *s)
{
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += RETRY_MS * 1000000L;
	until.tv_sec += until.tv_nsec / 1000000000L;
	until.tv_nsec %= 1000000000L;
	pthread_mutex_lock(&s->lock);
	while (!s->stop && pthread_cond_timedwait(&s->work, &s->lock, &until) != ETIMEDOUT)
		;
	bool go_on = !s->stop;
	pthread_mutex_unlock(&s->lock);
	return go_on;
}

static void set_trouble(struct store *s, int code, const struct err *err)
{
	pthread_mutex_lock(&s->lock);
	bool changed = s->trouble != code;
	s->trouble = code;
	if (err)
		s->trouble_err = *err;
	pthread_mutex_unlock(&s->lock);
	if (changed)
		uv_async_send(&s->wake);
}

static int do_piece(struct store *s, const struct job *j, struct err *err)
{
	int r = 0;
	if (j->first) {
		s->incoming_row = 0;
		s->incoming_next = 0;
		r = store_db_snapshot_begin(s->db, &j->snapshot, true, &s->incoming_row, err);
	}
	if (r < 0 || !s->incoming_row)
		return r;
	if (j->offset != s->incoming_next)
		return err_set(err, -EBADMSG,
			       "snapshot at %" PRIu64 ": piece at %" PRIu64 " instead of %" PRIu64,
			       j->snapshot.index, j->offset, s->incoming_next);
	r = store_db_snapshot_piece(s->db, s->incoming_row, j->offset, j->bytes, err);
	if (r == 0 && j->last)
		r = store_db_snapshot_end(s->db, s->incoming_row, &j->snapshot, true, err);
	s->incoming_next = j->offset + j->bytes.len;
	return r;
}

/* A piece that breaks the rules spoils the snapshot, not the store. */
static bool is_bad_input(int r)
{
	return r == -EBADMSG || r == -EMSGSIZE;
}

static void drop_incoming(struct store *s)
{
	if (s->incoming_row && store_db_begin(s->db, NULL) == 0 &&
	    (store_db_snapshot_drop(s->db, s->incoming_row, NULL) < 0 ||
	     store_db_commit(s->db, NULL) < 0))
		store_db_rollback(s->db);
	s->incoming_row = 0;
}

static int do_transaction(struct store *s, struct job *first, const struct job *end,
			  struct err *err)
{
	int64_t row = s->incoming_row;
	uint64_t next = s->incoming_next;
	int r = store_db_begin(s->db, err);
	for (struct job *j = first; r == 0 && j != end; j = j->next)
		r = j->kind == JOB_WRITE ? store_db_write(s->db, &j->write, err)
					 : do_piece(s, j, err);
	if (r == 0)
		r = store_db_commit(s->db, err);
	if (r < 0) {
		store_db_rollback(s->db);
		s->incoming_row = row;
		s->incoming_next = next;
	}
	return r;
}

static void piece_done(struct store *s, const struct job *j, int r, struct err *err)
{
	if (!j->last && r == 0)
		return;
	struct answer *a = answer_new(ANSWER_RECEIVED, j->snapshot.index);
	if (r == 0 && !s->incoming_row)
		r = err_set(err, -ECANCELED, "snapshot at %" PRIu64 ": an earlier piece is missing",
			    j->snapshot.index);
	if (r == 0)
		r = store_db_snapshot_read(s->db, j->snapshot.index, 0, j->snapshot.size_bytes,
					   &a->bytes, err);
	s->incoming_row = 0;
	a->r = r;
	if (r < 0)
		a->err = *err;
	answer_add(s, a);
}

static void jobs_done(struct store *s, struct job *first, const struct job *end, uint64_t us)
{
	uint64_t number = 0, writes = 0, entries = 0;
	struct err err = { 0 };
	for (struct job *j = first; j != end; j = j->next)
		if (j->kind == JOB_WRITE) {
			number = j->number;
			writes++;
			entries += j->write.count;
		} else {
			piece_done(s, j, 0, &err);
		}
	pthread_mutex_lock(&s->lock);
	s->written = MAX(s->written, number);
	s->stats.commits++;
	s->stats.writes += writes;
	s->stats.entries += entries;
	s->stats.commit_us = us;
	pthread_mutex_unlock(&s->lock);
	uv_async_send(&s->wake);
}

/* Make jobs durable, however long it takes. False: the store is being closed and they are not. */
static bool do_jobs(struct store *s, struct job *first, const struct job *end)
{
	for (;;) {
		struct err err = { 0 };
		uint64_t from = now_us();
		int r = do_transaction(s, first, end, &err);
		if (r == 0) {
			set_trouble(s, 0, NULL);
			jobs_done(s, first, end, now_us() - from);
			store_db_mark(s->db);
			return true;
		}
		if (is_bad_input(r) && first->kind == JOB_PIECE && first->next == end) {
			drop_incoming(s);
			piece_done(s, first, r, &err);
			return true;
		}
		if (is_bad_input(r) && first->next != end) {
			/* Find it by doing them one by one. */
			for (struct job *j = first; j != end; j = j->next)
				if (!do_jobs(s, j, j->next))
					return false;
			return true;
		}
		set_trouble(s, r, &err);
		if (r == -EUCLEAN || is_bad_input(r) || !pause_retry(s))
			return false;
	}
}

static void do_read(struct store *s, const struct job *j)
{
	struct answer *a = answer_new(ANSWER_READ, j->snapshot.index);
	a->done = j->done;
	a->ctx = j->ctx;
	a->r =
	    store_db_snapshot_read(s->db, j->snapshot.index, j->offset, j->len, &a->bytes, &a->err);
	answer_add(s, a);
}

/* Take jobs from the list one transaction at a time. */
static bool do_list(struct store *s, struct job *list)
{
	bool go_on = true;
	while (list) {
		struct job *end = list;
		size_t bytes = 0;
		if (list->kind == JOB_READ) {
			end = list->next;
			do_read(s, list);
		} else {
			while (end && end->kind != JOB_READ && bytes < GROUP_BYTES) {
				for (size_t i = 0; i < end->write.count; i++)
					bytes += end->write.entries[i].len;
				bytes += end->bytes.len;
				end = end->next;
			}
			go_on = go_on && do_jobs(s, list, end);
		}
		while (list != end) {
			struct job *next = list->next;
			free(list);
			list = next;
		}
	}
	return go_on;
}

/* ---- the thread: background work ---- */

static int save_step(struct store *s, struct err *err)
{
	struct saving *v = s->current;
	int r = store_db_begin(s->db, err);
	uint64_t offset = v->offset, row = (uint64_t)v->row;
	if (r == 0 && !v->row)
		r = store_db_snapshot_begin(s->db, &v->snapshot, false, &v->row, err);
	uint64_t take = MIN(v->bytes.len - offset, (uint64_t)PIECE_BYTES);
	struct span piece = { (uint8_t *)v->bytes.at + offset, take };
	if (r == 0)
		r = store_db_snapshot_piece(s->db, v->row, offset, piece, err);
	bool last = offset + take == v->bytes.len;
	if (r == 0 && last)
		r = store_db_snapshot_end(s->db, v->row, &v->snapshot, false, err);
	if (r == 0)
		r = store_db_commit(s->db, err);
	if (r < 0) {
		store_db_rollback(s->db);
		v->row = (int64_t)row;
		return r;
	}
	store_db_mark(s->db);
	v->offset = offset + take;
	if (last) {
		answer_add(s, answer_new(ANSWER_SAVED, v->snapshot.index));
		s->current = store_saving_free(v);
	}
	return 0;
}

static int compact_step(struct store *s, struct err *err)
{
	uint64_t keep[STORE_KEEP_MAX];
	pthread_mutex_lock(&s->lock);
	uint64_t first = s->compact_first;
	unsigned count = s->keep_count;
	memcpy(keep, s->keep, sizeof(keep));
	s->compact_wanted = false;
	pthread_mutex_unlock(&s->lock);
	s->compacting = true;
	int r = store_db_begin(s->db, err);
	int more = 0;
	if (r == 0)
		r = more = store_db_compact(s->db, first, keep, count, err);
	if (r >= 0)
		r = store_db_commit(s->db, err);
	if (r < 0)
		store_db_rollback(s->db);
	else
		s->compacting = more > 0;
	store_db_mark(s->db);
	return r;
}

static void checkpoint(struct store *s)
{
	struct err err = { 0 };
	int r = store_db_checkpoint(s->db, &err);
	/* Tried again until it works: with trouble told, nobody may send a commit that ends it. */
	set_trouble(s, r, &err);
	pthread_mutex_lock(&s->lock);
	s->stats.checkpoints++;
	s->stats.disk_bytes = store_db_disk_bytes(s->db);
	pthread_mutex_unlock(&s->lock);
}

static bool has_background(struct store *s)
{
	return s->current || s->saving || s->compact_wanted || s->compacting;
}

/* One step. False: nothing was done. Failures are tried again later: nobody waits. */
static bool background(struct store *s)
{
	struct err err = { 0 };
	int r = 0;
	s->background_ms = now_us() / 1000;
	pthread_mutex_lock(&s->lock);
	if (s->saving) {
		/* A newer snapshot makes an unfinished older one superfluous. */
		store_saving_free(s->current);
		s->current = take_ptr(s->saving);
	}
	bool compact = s->compact_wanted || s->compacting;
	pthread_mutex_unlock(&s->lock);
	if (s->current)
		r = save_step(s, &err);
	else if (compact)
		r = compact_step(s, &err);
	else
		return false;
	set_trouble(s, r, &err);
	return r == 0;
}

static bool checkpoint_due(const struct store *s, bool quiet)
{
	return store_db_wal_pages(s->db) >= (quiet ? WAL_QUIET_PAGES : WAL_FORCE_PAGES);
}

/* Wait for jobs; does what can be done meanwhile. Returns NULL when the store is closed. */
static struct job *next_jobs(struct store *s)
{
	bool waited = false;
	for (;;) {
		pthread_mutex_lock(&s->lock);
		struct job *list = take_ptr(s->first_job);
		s->job_end = &s->first_job;
		s->waiting = 0;
		bool stop = s->stop, busy = has_background(s);
		if (!list && !stop && (!busy || (s->trouble && !waited))) {
			struct timespec t;
			bool timed = s->trouble || (!waited && checkpoint_due(s, true));
			clock_gettime(CLOCK_MONOTONIC, &t);
			t.tv_nsec += (s->trouble ? RETRY_MS : QUIET_MS) * 1000000L;
			t.tv_sec += t.tv_nsec / 1000000000L;
			t.tv_nsec %= 1000000000L;
			if (timed)
				waited =
				    pthread_cond_timedwait(&s->work, &s->lock, &t) == ETIMEDOUT;
			else
				pthread_cond_wait(&s->work, &s->lock);
			pthread_mutex_unlock(&s->lock);
			if (waited && checkpoint_due(s, true))
				checkpoint(s);
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		if (list || stop)
			return list;
		waited = false;
		background(s);
	}
}

void *store_run(void *ctx)
{
	struct store *s = ctx;
	sigset_t all;
	sigfillset(&all); /* signals are the loop's */
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	struct job *list;
	while ((list = next_jobs(s))) {
		if (!do_list(s, list))
			break;
		if (checkpoint_due(s, false))
			checkpoint(s);
		if (now_us() / 1000 - s->background_ms >= BACKGROUND_EVERY_MS)
			background(s);
	}
	return NULL;
}
