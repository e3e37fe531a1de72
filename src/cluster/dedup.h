/* SPDX-License-Identifier: Apache-2.0 */
/* Who proposed what, so that a command that stands in the log twice is applied once.
 *
 * A proposer is one start of a node's brain: {node, epoch}. It numbers its commands 1, 2, 3… and
 * says with each the lowest one that has no outcome yet (`low`); results below that are forgotten,
 * and a command below it is never applied any more. Replicated state: every controller does the
 * same calls in the same order. Pure.
 *
 * Bounds: DEDUP_WINDOW commands of a proposer, of which DEDUP_BYTES of results are kept (the oldest
 * results go first; that a command was applied is never forgotten within the window);
 * DEDUP_EPOCHS proposers of one node and DEDUP_PROPOSERS in total, the longest unused go first. */
#pragma once
#include "base/err.h"
#include "base/str.h"

enum {
	DEDUP_WINDOW = 8192,
	DEDUP_BYTES = 4 << 20,
	DEDUP_EPOCHS = 8,
	DEDUP_PROPOSERS = 65536,
};

struct dedup_key {
	uint32_t node;
	uint64_t epoch, sequence;
};

/* The outcome of an applied command; borrowed until the next call that is not const. */
struct dedup_result {
	int code;
	uint64_t index; /* entry in which it was applied */
	struct span bytes;
	const char *text; /* never NULL */
	bool dropped;     /* `bytes` and `text` were too much to keep */
};

enum dedup_verdict {
	DEDUP_NEW = 1, /* apply it, then dedup_record() */
	DEDUP_KNOWN,   /* applied before: *ret is its outcome */
	DEDUP_STALE,   /* below `low`: its proposer has given it up or has its outcome */
	DEDUP_FAR,     /* more than DEDUP_WINDOW above `low`: against the rules, not applied */
};

struct dedup;

struct dedup *dedup_new(void);
struct dedup *dedup_free(struct dedup *d); /* takes NULL, returns NULL */

/* What to do with a command that is being applied. */
enum dedup_verdict dedup_check(struct dedup *d, const struct dedup_key *key, uint64_t low,
			       struct dedup_result *ret);
/* Keep the outcome of a command for which dedup_check() just said DEDUP_NEW; copies. */
void dedup_record(struct dedup *d, const struct dedup_key *key, const struct dedup_result *result);

/* Was it applied? Then *ret is its outcome. Changes nothing, so any node may ask at any time. */
bool dedup_find(const struct dedup *d, const struct dedup_key *key, struct dedup_result *ret);

/* Append everything to *out. Equal contents give equal bytes. */
void dedup_save(const struct dedup *d, struct str *out);
/* Errors: -EBADMSG (not what dedup_save() writes, or over a bound). */
int dedup_load(struct dedup **ret, struct span bytes, struct err *err);
