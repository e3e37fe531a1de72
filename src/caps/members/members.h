/* SPDX-License-Identifier: Apache-2.0 */
/* What a node knows of its cluster: the nodes with names, states, roles, addresses, settings and
 * recent events. Controllers hold the whole replicated state and change it only by
 * members_apply(); other nodes hold a view of it that the leader keeps fresh by members_merge().
 * Reading is the same for both.
 *
 * Invariants (members_check): numbers ascend and are never used twice, names of nodes that have
 * not left are unique, exactly the nodes that have not left may have a role above agent, revisions
 * never go back. Pure: no I/O, no clock, no random numbers. */
#pragma once
#include "base/err.h"
#include "base/id.h"
#include "base/str.h"

#include <schema/members.pb-c.h>

enum {
	MEMBERS_NODES_MAX = 10000,
	MEMBERS_EVENTS_MAX = 1000,
	MEMBERS_TOKENS_MAX = 1000,
	MEMBERS_NAME_MAX = 63,
	MEMBERS_ADDRESSES_MAX = 16,
	MEMBERS_LABELS_MAX = 32,
	MEMBERS_RESOURCES_MAX = 256,
};

struct members {
	Copia__MembersState *state; /* owned; complete on controllers */
	uint64_t revision;          /* of the last change applied or merged */
	uint32_t leader;            /* 0 while unknown; not part of the replicated state */
	uint64_t term;
	uint64_t time_ms; /* cluster time of the last change */
};

/* Empty: in no cluster. */
struct members *members_new(void);
struct members *members_free(struct members *m);
void members_reset(struct members *m); /* empty again */
bool members_in_cluster(const struct members *m);

/* Borrowed until the next apply, merge or load. NULL when there is none. Nodes that left are found
 * by number only. */
const Copia__Node *members_find(const struct members *m, uint32_t number);
const Copia__Node *members_find_name(const struct members *m, const char *name);
/* "n3", or "node 7" when the number is not known; the text lives until the eighth next call. */
const char *members_name(const struct members *m, uint32_t number);
/* Up, not drained. */
bool members_takes_work(const Copia__Node *n);
size_t members_count_up(const struct members *m);
/* Neither left nor leaving. */
size_t members_staying(const struct members *m);

/* Apply one committed command. `index` is its log index, `time_ms` cluster time. Returns 0 or a
 * negative errno with the reason; a refused command changes nothing. Bytes for the proposer (the
 * number of a joined node…) go to `result`. */
int members_apply(struct members *m, uint64_t index, uint64_t time_ms,
		  const Copia__MembersCommand *cmd, struct str *result, struct err *err);

/* Snapshot of the whole state, and back. Errors of load: -EBADMSG. */
void members_save(const struct members *m, struct str *out);
int members_load(struct members *m, const uint8_t *bytes, size_t len, struct err *err);

/* View for a node that knows all up to `since` (0: nothing); without secrets. The caller frees it
 * with copia__view__free_unpacked(). */
Copia__View *members_view(const struct members *m, uint64_t since);
/* Take over what the leader says. Returns > 0 when something changed, 0 when not, -EBADMSG when it
 * cannot be right, -ESTALE when the view does not follow on what we have (ask for a complete one).
 */
int members_merge(struct members *m, const Copia__View *view, struct err *err);

/* Asserts the invariants; cheap enough to be called after each change in tests. */
void members_check(const struct members *m);
