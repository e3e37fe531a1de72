/* SPDX-License-Identifier: Apache-2.0 */
/* The PMIx server of this node: one for all jobs, made when the first job wants it. libpmix is
 * loaded at run time and never linked, so that a machine without it still runs MPICH's programs.
 *
 * libpmix calls us from its own thread. What it says is queued and taken over by our loop:
 * when pmix_fd() is readable, pmix_turn() gives the events in order. Answers go back by
 * pmix_answer_*(), from our thread; libpmix shifts them to its own. Everything else here is
 * called from our thread only.
 *
 * The server keeps its files in a folder of its own below `folder`, removed by pmix_end(). */
#pragma once
#include "base/err.h"
#include "base/str.h"
#include <sys/types.h>

enum {
	PMIX_EVENT_BYTES_MAX = 256 * 1024 * 1024,
	PMIX_TEXT_MAX = 512,
	PMIX_NSPACE_MAX = 255,
	PMIX_PAIRS_MAX = 256, /* names in one publish or look-up */
};

enum pmix_event_kind {
	PMIX_CONNECTED,
	PMIX_FINALIZED,
	PMIX_ABORTED, /* code, text */
	PMIX_FENCE,   /* ranks, bytes, request: pmix_answer_fence() */
	PMIX_MODEX,   /* rank of another node, request: pmix_answer_modex() */
	PMIX_SERVED,  /* code, bytes, token: what pmix_ask() wanted */
	PMIX_PUBLISH, /* pairs, request: pmix_answer_names() */
	PMIX_LOOKUP,
	PMIX_UNPUBLISH,
	PMIX_REFUSED, /* text */
};

struct pmix_pair {
	char *key, *value; /* value NULL in look-ups and withdrawals */
};

struct pmix_request; /* an answer that libpmix waits for */

struct pmix_event {
	struct pmix_event *next, *prev;
	enum pmix_event_kind kind;
	char nspace[PMIX_NSPACE_MAX + 1];
	uint32_t rank;
	int code;
	char text[PMIX_TEXT_MAX];
	uint32_t *ranks; /* of a fence, ascending; NULL: all of the name space */
	uint32_t rank_count;
	uint8_t *bytes;
	size_t len;
	uint64_t token;
	struct pmix_pair *pairs;
	uint32_t pair_count;
	struct pmix_request *request;
};

/* All is borrowed for the call. */
struct pmix_job {
	const char *nspace, *host; /* host: this node's name in `nodes` */
	const char *nodes;         /* "n1,n2" */
	const char *ranks;         /* "0,1;2,3" in the order of `nodes` */
	const uint32_t *node_of;   /* node index of each rank */
	const char *const *node_names;
	const uint32_t *apps; /* program number of each rank, or NULL */
	uint32_t size, universe, node_count, node;
	const uint32_t *local; /* local ranks, ascending */
	uint32_t local_count;
	uid_t uid;
	gid_t gid;
};

/* Load libpmix and start the server, once; later calls return what the first found.
 * Errors: -ENOTSUP (no libpmix, or one that we cannot use), -EIO. */
int pmix_begin(const char *folder, const char *host, struct err *err);
void pmix_end(void);
/* Version text of the loaded library, "" before. */
const char *pmix_version(void);
bool pmix_runs(void);
/* Readable when pmix_turn() has something to do; -1 before pmix_begin(). */
int pmix_fd(void);
/* The events are the hook's until it returns; a request lives until it is answered. */
void pmix_turn(void (*hook)(void *ctx, struct pmix_event *event), void *ctx);

/* Make the job known. Errors: -EIO with libpmix's words. */
int pmix_job_add(const struct pmix_job *job, struct err *err);
void pmix_job_end(const char *nspace, const uint32_t *local, uint32_t local_count);
/* Call `each` with "NAME=value" for what a rank needs in its environment. */
int pmix_environment(const char *nspace, uint32_t rank,
		     void (*each)(void *ctx, const char *assignment), void *ctx, struct err *err);
/* Data of a local rank for another node; comes as PMIX_SERVED with `token`, sooner or later. */
void pmix_ask(const char *nspace, uint32_t rank, uint64_t token);

/* Each answers and frees the request. `status` 0 or a negative errno. */
void pmix_answer_fence(struct pmix_request *r, int status, struct span bytes);
void pmix_answer_modex(struct pmix_request *r, int status, struct span bytes);
void pmix_answer_names(struct pmix_request *r, int status, const struct pmix_pair *pairs,
		       uint32_t count);
/* Whatever was asked: nothing, for the reason `status`. */
void pmix_answer_none(struct pmix_request *r, int status);
