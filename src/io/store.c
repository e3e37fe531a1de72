/* SPDX-License-Identifier: Apache-2.0 */
/* The loop's side of the store: jobs down, answers up. */
#include "io/store-impl.h"

#include <assert.h>
#include <errno.h>
#include <unistd.h>

void store_answer_free(struct answer *a)
{
	str_free(&a->bytes);
	free(a);
}

struct saving *store_saving_free(struct saving *v)
{
	if (v) {
		str_free(&v->bytes);
		str_free(&v->meta);
		free(v);
	}
	return NULL;
}

/* ---- the loop ---- */

static void deliver(struct store *s, struct answer *a)
{
	struct span bytes = { (uint8_t *)a->bytes.at, a->bytes.len };
	switch (a->kind) {
	case ANSWER_SAVED:
		s->events.saved(s->events.ctx, a->index);
		break;
	case ANSWER_RECEIVED:
		s->events.received(s->events.ctx, a->index, a->r, bytes, a->err.msg);
		break;
	case ANSWER_READ:
		a->done(a->ctx, a->r, bytes);
		break;
	}
}

static void on_wake(uv_async_t *wake)
{
	struct store *s = CONTAINER(wake, struct store, wake);
	pthread_mutex_lock(&s->lock);
	uint64_t written = s->written;
	int trouble = s->trouble;
	struct err err = s->trouble_err;
	struct answer *list = take_ptr(s->first_answer);
	s->answer_end = &s->first_answer;
	pthread_mutex_unlock(&s->lock);
	/* A callback may close the store. */
	if (!s->closing && trouble != s->told_trouble) {
		s->told_trouble = trouble;
		s->events.trouble(s->events.ctx, trouble, trouble ? err.msg : NULL);
	}
	if (!s->closing && written > s->told_written) {
		s->told_written = written;
		s->events.written(s->events.ctx, written);
	}
	while (list) {
		struct answer *a = list;
		list = a->next;
		if (!s->closing)
			deliver(s, a);
		store_answer_free(a);
	}
}

bool store_exists(const char *dir)
{
	struct str path = { 0 };
	str_printf(&path, "%s/log.db", dir);
	bool there = access(path.at, F_OK) == 0;
	str_free(&path);
	return there;
}

int store_create(const char *dir, const struct store_identity *who, const struct store_content *c,
		 struct err *err)
{
	static const struct store_content empty;
	if (store_exists(dir))
		return err_set(err, -EEXIST, "store %s/log.db exists already", dir);
	struct store_db *db;
	int r = store_db_open(&db, dir, who, true, err);
	if (r < 0)
		return err_wrap(err, r, "make store in %s", dir);
	c = c ? c : &empty;
	assert(!c->snapshot.index);
	struct store_write w = { .has_state = c->term != 0,
				 .term = c->term,
				 .vote = c->vote,
				 .entries = c->entries,
				 .count = c->count };
	struct store_content none = { 0 };
	r = store_db_read_all(db, &none, err);
	store_content_free(&none);
	if (r == 0)
		r = store_db_begin(db, err);
	if (r == 0)
		r = store_db_write(db, &w, err);
	if (r == 0)
		r = store_db_commit(db, err);
	if (r < 0) {
		store_db_close(db);
		return err_wrap(err, r, "make store in %s", dir);
	}
	return store_db_publish(db, dir, err);
}

void store_content_free(struct store_content *c)
{
	for (size_t i = 0; i < c->count; i++)
		free((void *)(uintptr_t)c->entries[i].data);
	free(c->entries);
	str_free(&c->bytes);
	str_free(&c->meta);
	*c = (struct store_content){ 0 };
}

int store_open(struct store **ret, uv_loop_t *loop, const char *dir,
	       const struct store_identity *who, const struct store_events *events,
	       struct store_content *ret_content, struct err *err)
{
	struct store_db *db;
	struct store_content content = { 0 };
	int r = store_db_open(&db, dir, who, false, err);
	if (r < 0)
		return r;
	r = store_db_read_all(db, &content, err);
	if (r < 0) {
		store_db_close(db);
		return r;
	}
	struct store *s = xcalloc(1, sizeof(*s));
	pthread_condattr_t attr;
	s->db = db;
	s->events = *events;
	s->loop = loop;
	s->job_end = &s->first_job;
	s->answer_end = &s->first_answer;
	s->stats.disk_bytes = store_db_disk_bytes(db);
	pthread_mutex_init(&s->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->work, &attr);
	pthread_condattr_destroy(&attr);
	r = uv_async_init(loop, &s->wake, on_wake);
	assert(r == 0);
	r = pthread_create(&s->thread, NULL, store_run, s);
	assert(r == 0);
	*ret = s;
	*ret_content = content;
	return 0;
}

static void on_closed(uv_handle_t *h)
{
	struct store *s = CONTAINER((uv_async_t *)h, struct store, wake);
	pthread_mutex_destroy(&s->lock);
	pthread_cond_destroy(&s->work);
	free(s);
}

struct store *store_close(struct store *s)
{
	if (!s)
		return NULL;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	s->closing = true;
	for (struct job *j = s->first_job, *next; j; j = next) {
		next = j->next;
		free(j);
	}
	for (struct answer *a = s->first_answer, *next; a; a = next) {
		next = a->next;
		store_answer_free(a);
	}
	s->first_answer = NULL;
	store_saving_free(s->saving);
	store_saving_free(s->current);
	store_db_close(s->db);
	uv_close((uv_handle_t *)&s->wake, on_closed);
	return NULL;
}

/* ---- jobs from the loop ---- */

static void job_add(struct store *s, struct job *j)
{
	assert(!s->closing);
	j->next = NULL;
	pthread_mutex_lock(&s->lock);
	*s->job_end = j;
	s->job_end = &j->next;
	s->waiting++;
	pthread_mutex_unlock(&s->lock);
	/* Behind the lock, or the thread would wake only to wait for it. */
	pthread_cond_signal(&s->work);
}

void store_write(struct store *s, uint64_t number, const struct store_write *w)
{
	size_t list = w->count * sizeof(*w->entries), size = list;
	for (size_t i = 0; i < w->count; i++)
		size += w->entries[i].len;
	struct job *j = xmalloc(sizeof(*j) + size);
	memset(j, 0, sizeof(*j));
	j->kind = JOB_WRITE;
	j->number = number;
	j->write = *w;
	struct store_entry *copy = (struct store_entry *)j->memory;
	uint8_t *at = j->memory + list;
	for (size_t i = 0; i < w->count; i++) {
		copy[i] = w->entries[i];
		if (copy[i].len)
			memcpy(at, copy[i].data, copy[i].len);
		copy[i].data = copy[i].len ? at : NULL;
		at += copy[i].len;
	}
	j->write.entries = copy;
	job_add(s, j);
}

void store_snapshot_save(struct store *s, const struct store_snapshot *meta, struct str *bytes)
{
	assert(meta->meta.len <= STORE_META_MAX && bytes->len == meta->size_bytes);
	struct saving *v = xcalloc(1, sizeof(*v));
	v->bytes = *bytes;
	*bytes = (struct str){ 0 };
	str_add(&v->meta, meta->meta.at, meta->meta.len);
	v->snapshot = *meta;
	v->snapshot.meta = (struct span){ (uint8_t *)v->meta.at, v->meta.len };
	pthread_mutex_lock(&s->lock);
	struct saving *old = s->saving;
	s->saving = v;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
	store_saving_free(old);
}

void store_snapshot_piece(struct store *s, const struct store_snapshot *meta, bool first, bool last,
			  uint64_t offset, struct span bytes)
{
	assert(meta->meta.len <= STORE_META_MAX);
	struct job *j = xmalloc(sizeof(*j) + bytes.len + meta->meta.len);
	memset(j, 0, sizeof(*j));
	j->kind = JOB_PIECE;
	j->first = first;
	j->last = last;
	j->offset = offset;
	j->snapshot = *meta;
	j->snapshot.meta.at = j->memory + bytes.len;
	j->bytes = (struct span){ j->memory, bytes.len };
	if (bytes.len)
		memcpy(j->memory, bytes.at, bytes.len);
	if (meta->meta.len)
		memcpy(j->memory + bytes.len, meta->meta.at, meta->meta.len);
	job_add(s, j);
}

void store_read(struct store *s, uint64_t index, uint64_t offset, uint32_t len,
		store_read_done *done, void *ctx)
{
	assert(len <= STORE_READ_MAX);
	struct job *j = xcalloc(1, sizeof(*j));
	j->kind = JOB_READ;
	j->snapshot.index = index;
	j->offset = offset;
	j->len = len;
	j->done = done;
	j->ctx = ctx;
	job_add(s, j);
}

void store_compact(struct store *s, uint64_t first, const uint64_t *keep, unsigned keep_count)
{
	assert(keep_count <= STORE_KEEP_MAX);
	pthread_mutex_lock(&s->lock);
	s->compact_first = MAX(s->compact_first, first);
	memcpy(s->keep, keep, keep_count * sizeof(*keep));
	s->keep_count = keep_count;
	s->compact_wanted = true;
	pthread_cond_signal(&s->work);
	pthread_mutex_unlock(&s->lock);
}

void store_stats(struct store *s, struct store_stats *ret)
{
	pthread_mutex_lock(&s->lock);
	*ret = s->stats;
	ret->waiting = s->waiting;
	pthread_mutex_unlock(&s->lock);
}
