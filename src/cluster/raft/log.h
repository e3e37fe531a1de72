/* SPDX-License-Identifier: Apache-2.0 */
/* The entries in memory: those after a base (index, term), without a gap.
 *
 *	base | base+1 … durable … last
 *
 * Invariant: base <= durable <= last. `durable` is the end of the prefix that is on the disk: a
 * completed write counts for an entry only if no later write put another one in its place. */
#pragma once
#include "cluster/raft/raft.h"

struct raft_log {
	uint64_t base_index, base_term;
	uint64_t durable;
	struct raft_entry *entries; /* whole allocation; the log begins at `head` */
	uint64_t *writes;           /* number of the write that carries the entry */
	size_t head, count, cap;
};

void log_init(struct raft_log *l, uint64_t base_index, uint64_t base_term);
void log_deinit(struct raft_log *l);

uint64_t log_first(const struct raft_log *l);
uint64_t log_last(const struct raft_log *l);
/* Term of an entry or of the base; 0 when not known here. */
uint64_t log_term(const struct raft_log *l, uint64_t index);
/* NULL when not in the log. */
struct raft_entry *log_at(const struct raft_log *l, uint64_t index);
/* True when a log that ends with (index, term) is at least as complete as this one (§3.6.1). */
bool log_is_covered_by(const struct raft_log *l, uint64_t index, uint64_t term);

/* Make room for `more` entries. Errors: -ENOMEM. */
int log_reserve(struct raft_log *l, size_t more);
/* Append one entry that fits the end, after log_reserve(); takes over one hold of its data. */
void log_append(struct raft_log *l, const struct raft_entry *e, uint64_t write);
/* Remove entries with index >= from. */
void log_truncate(struct raft_log *l, uint64_t from);
/* Remove entries with index <= to, which becomes the base. */
void log_compact(struct raft_log *l, uint64_t to);
/* Remove everything; the log continues after (index, term), which a durable snapshot covers. */
void log_reset(struct raft_log *l, uint64_t index, uint64_t term);
/* All writes up to `number` are durable. */
void log_persisted(struct raft_log *l, uint64_t number);
/* Entries up to `index` are covered by a durable snapshot. */
void log_covered(struct raft_log *l, uint64_t index);

/* A held copy of borrowed bytes; *ret is NULL for none. Errors: -ENOMEM. */
int data_copy(const uint8_t *data, size_t len, const uint8_t **ret);
