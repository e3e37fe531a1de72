/* SPDX-License-Identifier: Apache-2.0 */
/* Which rank runs on which node. Pure: the same nodes and wishes give the same places.
 *
 * Candidates are the nodes that are up and not drained, restricted by lists and features: in the
 * order of the list where one was typed, else the node of the user first and the others by number.
 * Ranks lie in blocks, one for each node:
 *   - all ranks fit on cores: the first node's cores are filled, then the next node's;
 *   - more ranks than cores: each node gets its share in proportion to its cores;
 *   - -N: exactly so many nodes, each with at least one rank, in proportion to cores;
 *   - --per-node K: at most K on a node; without -n exactly K on each.
 * Without -n, and with -N or --on: one rank for each node. With nothing: one rank. */
#pragma once
#include "base/err.h"

#include <schema/members.pb-c.h>

enum {
	PLACE_NODE_RANKS_MAX = 1024,
	PLACE_RANKS_MAX = 1 << 20,
};

struct place_wish {
	uint32_t ranks; /* 0: not said, in each */
	uint32_t nodes;
	uint32_t per_node;
	const char *on; /* NULL or "": not said, in each */
	const char *exclude;
	const char *features; /* all of them are needed */
	uint32_t origin;      /* number of the user's node */
	bool all;             /* without `on`: all nodes, one task for each (never used by run) */
};

struct place {
	uint32_t node;  /* index into the nodes given */
	uint32_t first; /* rank */
	uint32_t count;
};

struct placement {
	struct place *at; /* owned */
	size_t count;
	uint32_t ranks;
};

/* `nodes` in ascending number. Errors: -ENOENT (unknown node, label or feature; the message names
 * the nearest), -EHOSTDOWN (a node named is down, drained or left), -ERANGE (more nodes or ranks
 * than there can be; the message has the numbers), -EINVAL (list cannot be read). */
int place(Copia__Node *const *nodes, size_t count, const struct place_wish *w,
	  struct placement *ret, struct err *err);
void placement_free(struct placement *p); /* also for _cleanup_(placement_free) */

/* The nodes that a list means, as indices in its order, without repeats; *ret is the caller's.
 * Nodes that left are not found; others are taken in any state. Errors: as place(). */
int place_resolve(Copia__Node *const *nodes, size_t count, const char *list, uint32_t **ret,
		  size_t *ret_count, struct err *err);
