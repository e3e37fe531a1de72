/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/raft/log.h"
#include <assert.h>
#include <errno.h>
#include <stdatomic.h>

/* Entry data stands behind its reference count. The count is atomic only so that a writer in
 * another thread may hold data; the core itself knows no threads. */
struct blob {
	atomic_uint refs;
	uint8_t at[];
};

static struct blob *blob_of(const uint8_t *data)
{
	return (struct blob *)(uintptr_t)(data - offsetof(struct blob, at));
}

int data_copy(const uint8_t *data, size_t len, const uint8_t **ret)
{
	*ret = NULL;
	if (len == 0)
		return 0;
	struct blob *b = malloc(sizeof(*b) + len);
	if (!b)
		return -ENOMEM;
	atomic_init(&b->refs, 1);
	memcpy(b->at, data, len);
	*ret = b->at;
	return 0;
}

void raft_data_hold(const uint8_t *data)
{
	if (data)
		atomic_fetch_add_explicit(&blob_of(data)->refs, 1, memory_order_relaxed);
}

void raft_data_drop(const uint8_t *data)
{
	if (data && atomic_fetch_sub_explicit(&blob_of(data)->refs, 1, memory_order_acq_rel) == 1)
		free(blob_of(data));
}

void log_init(struct raft_log *l, uint64_t base_index, uint64_t base_term)
{
	*l = (struct raft_log){ .base_index = base_index,
				.base_term = base_term,
				.durable = base_index };
}

static void drop_range(struct raft_log *l, size_t at, size_t count)
{
	for (size_t i = 0; i < count; i++)
		raft_data_drop(l->entries[at + i].data);
}

void log_deinit(struct raft_log *l)
{
	drop_range(l, l->head, l->count);
	free(l->entries);
	free(l->writes);
	*l = (struct raft_log){ 0 };
}

uint64_t log_first(const struct raft_log *l)
{
	return l->base_index + 1;
}

uint64_t log_last(const struct raft_log *l)
{
	return l->base_index + l->count;
}

struct raft_entry *log_at(const struct raft_log *l, uint64_t index)
{
	if (index <= l->base_index || index > log_last(l))
		return NULL;
	return &l->entries[l->head + (index - l->base_index - 1)];
}

uint64_t log_term(const struct raft_log *l, uint64_t index)
{
	if (index == l->base_index)
		return l->base_term;
	const struct raft_entry *e = log_at(l, index);
	return e ? e->term : 0;
}

bool log_is_covered_by(const struct raft_log *l, uint64_t index, uint64_t term)
{
	uint64_t last = log_last(l), last_term = log_term(l, last);
	return term > last_term || (term == last_term && index >= last);
}

int log_reserve(struct raft_log *l, size_t more)
{
	if (l->head + l->count + more <= l->cap)
		return 0;
	/* Compaction leaves a hole in front: use it when it is at least half, so that moving costs
	 * constant time per entry, else grow. */
	if (l->head >= l->count && l->count + more <= l->cap) {
		memmove(l->entries, l->entries + l->head, l->count * sizeof(*l->entries));
		memmove(l->writes, l->writes + l->head, l->count * sizeof(*l->writes));
		l->head = 0;
		return 0;
	}
	size_t cap = MAX((l->head + l->count + more) * 2, (size_t)64);
	struct raft_entry *entries = malloc(cap * sizeof(*entries));
	uint64_t *writes = malloc(cap * sizeof(*writes));
	if (!entries || !writes) {
		free(entries);
		free(writes);
		return -ENOMEM;
	}
	if (l->count) {
		memcpy(entries, l->entries + l->head, l->count * sizeof(*entries));
		memcpy(writes, l->writes + l->head, l->count * sizeof(*writes));
	}
	free(l->entries);
	free(l->writes);
	l->entries = entries;
	l->writes = writes;
	l->head = 0;
	l->cap = cap;
	return 0;
}

void log_append(struct raft_log *l, const struct raft_entry *e, uint64_t write)
{
	assert(l->head + l->count < l->cap);
	assert(e->index == log_last(l) + 1);
	assert(e->term >= log_term(l, log_last(l)));
	l->entries[l->head + l->count] = *e;
	l->writes[l->head + l->count] = write;
	l->count++;
}

void log_truncate(struct raft_log *l, uint64_t from)
{
	assert(from > l->base_index);
	if (from > log_last(l))
		return;
	size_t keep = from - l->base_index - 1;
	drop_range(l, l->head + keep, l->count - keep);
	l->count = keep;
	l->durable = MIN(l->durable, from - 1);
}

void log_compact(struct raft_log *l, uint64_t to)
{
	if (to <= l->base_index)
		return;
	assert(to <= log_last(l) && to <= l->durable);
	size_t gone = to - l->base_index;
	l->base_term = log_term(l, to);
	drop_range(l, l->head, gone);
	l->head += gone;
	l->count -= gone;
	l->base_index = to;
}

void log_reset(struct raft_log *l, uint64_t index, uint64_t term)
{
	drop_range(l, l->head, l->count);
	l->head = l->count = 0;
	l->base_index = l->durable = index;
	l->base_term = term;
}

void log_persisted(struct raft_log *l, uint64_t number)
{
	while (l->durable < log_last(l) &&
	       l->writes[l->head + (l->durable - l->base_index)] <= number)
		l->durable++;
}

void log_covered(struct raft_log *l, uint64_t index)
{
	assert(index <= log_last(l));
	l->durable = MAX(l->durable, index);
}
