/* SPDX-License-Identifier: Apache-2.0 */
/* Gather and broadcast over a tree of nodes: each participating node gives some bytes, each gets
 * the bytes of all, one behind the other in the order of the participants. Pure.
 *
 * The participants (node indices, ascending) form a tree of COLLECT_ARITY children: participant i
 * has the parent (i-1)/COLLECT_ARITY. A node sends the entries of its whole subtree up once they
 * are complete; the root sends the result down. Many collectives may run at once, told apart by
 * `id`, which all participants must derive alike and use once only.
 *
 * Messages: u32 length of the id, the id, then (up) entries u32 node, u32 length, bytes, or
 * (down) the result. Integers are little-endian. */
#pragma once
#include "base/err.h"
#include "base/str.h"

enum {
	COLLECT_ARITY = 16,
	COLLECT_ID_MAX = 1024 * 1024,
	COLLECT_OPEN_MAX = 4096, /* collectives of a job at once */
};

struct collect_hooks {
	void (*up)(void *ctx, uint32_t to, struct span bytes);
	void (*down)(void *ctx, uint32_t to, struct span bytes);
	/* The collective is over here; both borrowed for the call. */
	void (*done)(void *ctx, struct span id, struct span result);
	void *ctx;
};

struct collect;

struct collect *collect_new(uint32_t self, const struct collect_hooks *hooks);
struct collect *collect_free(struct collect *c); /* returns NULL */

/* Take part. `nodes` ascending, `self` among them. With one participant done() comes at once.
 * Errors: -EINVAL (not a participant, unsorted), -EALREADY (joined), -EMFILE (too many). */
int collect_join(struct collect *c, struct span id, const uint32_t *nodes, uint32_t count,
		 struct span bytes, struct err *err);
/* A message that another node's up() or down() sent. Errors: -EPROTO, -EMFILE. */
int collect_up(struct collect *c, struct span bytes, struct err *err);
int collect_down(struct collect *c, struct span bytes, struct err *err);
size_t collect_open(const struct collect *c);
