/* SPDX-License-Identifier: Apache-2.0 */
/* PMI-1, the line protocol by which MPICH's ranks find each other (Flux RFC 13 describes it).
 * Pure: bytes of ranks in, bytes for ranks out; no descriptors, no clock.
 *
 * One `struct pmi1` serves the ranks of one job on one node. Ranks put keys, enter a barrier, and
 * after it get what all others have put. When all local ranks are in, the engine hands out their
 * puts as one contribution (PMI1_FULL); the owner brings the contributions of all nodes together
 * and gives the result back with pmi1_release(), on every node the same bytes.
 *
 *   NEW --init--> READY --barrier_in--> BARRIER --release--> READY --finalize--> FINAL
 *   any --nonsense, a limit, end of the connection before finalize--> BROKEN
 *
 * Invariants: `waiting` counts the ranks in BARRIER; keys keep the order in which they became
 * known (local ranks ascending within a node, nodes ascending), so every node has the same list. */
#pragma once
#include "base/err.h"
#include "base/str.h"

enum {
	PMI1_LINE_MAX = 8192,       /* bytes of a line, newline included */
	PMI1_SPAWN_MAX = 64 * 1024, /* bytes of a spawn command of many lines */
	PMI1_KVSNAME_MAX = 256,     /* as MPICH's own launcher answers get_maxes */
	PMI1_KEY_MAX = 64,
	PMI1_VALUE_MAX = 1024,
	PMI1_RANK_BYTES_MAX = 256 * 1024, /* keys and values put by one rank */
	PMI1_JOB_BYTES_MAX = 256 * 1024 * 1024,
	PMI1_OUT_MAX = 256 * 1024, /* replies that a rank did not read */
	PMI1_MAPPING_MAX = PMI1_VALUE_MAX,
	PMI1_TEXT_MAX = 512, /* of an abort's message */
};

enum pmi1_event_kind {
	PMI1_CONNECTED, /* first command of a rank */
	PMI1_ENTERED,   /* a rank entered barrier `ordinal` */
	PMI1_FULL,      /* all local ranks are in the barrier; `bytes` is the contribution */
	PMI1_RELEASED,  /* a rank left barrier `ordinal` */
	PMI1_FINALIZED,
	PMI1_ABORTED, /* `code`, `text` */
	PMI1_REFUSED, /* `text` says what */
	PMI1_BROKEN,  /* `text` says why, `code` -EPROTO, or -ECONNRESET when the connection ended;
		       * write what is left in pmi1_out(), then close */
	PMI1_PUBLISH, /* `text` = service, `bytes` = port; answer with pmi1_named() */
	PMI1_LOOKUP,  /* `text` = service */
	PMI1_UNPUBLISH, /* `text` = service */
};

struct pmi1_event {
	enum pmi1_event_kind kind;
	uint32_t local; /* index of the rank on this node */
	int code;
	uint32_t ordinal;
	bool closing;     /* see wireup.proto, WireupNotice.closing */
	const char *text; /* borrowed for the call */
	struct span bytes;
};

/* Called from within the functions below; may call pmi1_release() and pmi1_named(). */
typedef void pmi1_hook(void *ctx, const struct pmi1_event *event);

struct pmi1_setup {
	const char *kvsname; /* copied, at most PMI1_KVSNAME_MAX - 1 bytes without spaces */
	const char *mapping; /* PMI_process_mapping; copied */
	uint32_t size;       /* ranks of the job */
	uint32_t universe;
	uint32_t local_count;
	const uint32_t *apps; /* program number of each local rank, or NULL for all 0; copied */
	pmi1_hook *hook;
	void *ctx;
};

struct pmi1;

/* A fresh engine; the caller owns *ret (pmi1_free). Errors: -EINVAL for an unfit setup. */
int pmi1_new(struct pmi1 **ret, const struct pmi1_setup *setup, struct err *err);
struct pmi1 *pmi1_free(struct pmi1 *p); /* returns NULL */

/* Bytes that local rank `local` sent. After BROKEN all further bytes are ignored. */
void pmi1_feed(struct pmi1 *p, uint32_t local, const void *bytes, size_t len);
/* The rank's connection ended. Gives PMI1_BROKEN unless it had finalized, or never said anything:
 * then it may have another one. */
void pmi1_hangup(struct pmi1 *p, uint32_t local);
/* Replies for the rank; the owner writes them and cuts what was written. Borrowed. */
struct str *pmi1_out(struct pmi1 *p, uint32_t local);
/* The contributions of all nodes, in node order, one behind the other. All local ranks leave the
 * barrier. Errors: -EPROTO when the bytes are no list of keys or no barrier is full; -E2BIG
 * beyond PMI1_JOB_BYTES_MAX. */
int pmi1_release(struct pmi1 *p, struct span merged, struct err *err);
/* The answer to PMI1_PUBLISH, _LOOKUP or _UNPUBLISH; `port` only for a successful look-up. */
void pmi1_named(struct pmi1 *p, uint32_t local, bool ok, const char *port);

uint32_t pmi1_waiting(const struct pmi1 *p);
uint32_t pmi1_ordinal(const struct pmi1 *p, uint32_t local);
bool pmi1_connected(const struct pmi1 *p, uint32_t local);
bool pmi1_finalized(const struct pmi1 *p, uint32_t local);
/* Value of a key, or NULL. Borrowed until the next call. */
const char *pmi1_value(const struct pmi1 *p, const char *key);

/* Text of PMI_process_mapping for nodes whose ranks are consecutive blocks or dealt round, in the
 * form MPICH reads: "(vector,(node,nodes,ranks),…)". `node_of` gives the node of each rank.
 * Returns false when it does not fit PMI1_MAPPING_MAX; then MPICH takes every rank as remote. */
bool pmi1_mapping(const uint32_t *node_of, uint32_t size, struct str *ret);
