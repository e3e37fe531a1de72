/* SPDX-License-Identifier: Apache-2.0 */
/* One job on this node, shared by the job-*-node.c files.
 *
 * Invariants: `local` is ascending; every rank has a node in `node_of`; `exchange` and `collect`
 * exist as long as the job does. A job that failed stays until the brain ends it. */
#pragma once
#include "caps/wireup/collect.h"
#include "caps/wireup/exchange.h"
#include "caps/wireup/job-node.h"
#include "caps/wireup/pmi1.h"
#include "caps/wireup/pmix-node.h"
#include <uthash.h>

struct job;

struct rank {
	struct source source; /* fd -1: no PMI-1 connection */
	struct job *job;
	uint32_t at; /* index in job->ranks */
	bool broken; /* write what is left, then close */
	bool connected, initialised, finalized, ended;
};

/* A question to another node, or to libpmix, that waits for its answer. */
struct pending {
	struct pending *next, *prev;
	uint64_t token;
	struct pmix_request *request; /* PMIx asked; else local rank `at` by PMI-1 */
	uint32_t at;
	uint32_t from; /* a node asked us for data of our rank */
	uint32_t from_token;
	bool serves;
};

/* A fence that waits for its collective, or how often its participants have met. */
struct fence {
	UT_hash_handle hh;
	uint32_t count;
	struct pmix_request *request; /* of the one now under way, or NULL */
	size_t len;
	char signature[];
};

struct name {
	UT_hash_handle hh;
	char *value;
	char key[];
};

struct job {
	UT_hash_handle hh;
	char *id, *nspace;
	struct wireup *wireup;
	uint32_t size, universe, node, node_count;
	uint32_t uid, gid;
	uint32_t *node_of;   /* of each rank */
	uint32_t *all_nodes; /* 0, 1, … with ranks: who takes part when all do */
	uint32_t all_count;
	char **node_names;
	uint32_t *apps; /* NULL: all 0 */
	uint32_t *local;
	uint32_t local_count;
	struct rank *ranks;
	char **networks, **devices;
	size_t network_count, device_count;
	char warning[256];
	bool pmix, failed;
	struct pmi1 *pmi1; /* NULL: not offered */
	struct exchange *exchange;
	struct collect *collect;
	struct pending *pending;
	uint64_t token;
	struct fence *fences;
	struct name *names; /* on node 0 */
	uint32_t name_count, refusals;
};

struct wireup {
	struct brain *brain;
	const char *folder;
	struct job *jobs;
	struct early *early; /* exchanges that came before their job */
	size_t early_bytes;
	uint64_t idle_ms, idle_since_ms;
	struct source pmix;
	bool pmix_watched;
};

/* job-node.c */
struct job *job_find(struct wireup *w, const char *id);
void job_notice(struct job *j, const Copia__WireupNotice *notice);
void job_fail(struct job *j, const struct err *err);
bool job_local(const struct job *j, uint32_t rank, uint32_t *ret_at);
struct pending *pending_new(struct job *j);
struct pending *pending_find(struct job *j, uint64_t token);
void pending_free(struct job *j, struct pending *p);

/* job-parse-node.c: a job from what the brain said. On failure nothing is left. */
int job_parse(struct wireup *w, const Copia__WireupJobAdd *m, struct job **ret, struct err *err);
void job_parse_free(struct job *j);

/* job-ranks-node.c: PMI-1 connections */
int ranks_begin(struct job *j, struct err *err);
int ranks_attach(struct job *j, uint32_t rank, int fd, struct err *err); /* owns fd */
void ranks_ended(struct job *j, uint32_t at);
void ranks_end(struct job *j);
void ranks_flush(struct job *j);
void ranks_flush_one(struct rank *r);
/* The collective of a PMI-1 barrier is over. */
int ranks_release(struct job *j, struct span result, struct err *err);

/* job-pmix-node.c */
int fences_begin(struct job *j, struct err *err);
void fences_end(struct job *j);
void pmix_events(struct wireup *w);
int fence_done(struct job *j, struct span id, struct span result, struct err *err);

/* job-names-node.c: published names and questions between nodes */
enum name_op { NAME_PUBLISH, NAME_LOOKUP, NAME_UNPUBLISH };
void names_ask(struct job *j, struct pending *p, enum name_op op, const struct pmix_pair *pairs,
	       uint32_t count);
int names_asked(struct job *j, uint32_t from, struct span bytes, struct err *err);
int names_answered(struct job *j, struct span bytes, struct err *err);
void data_ask(struct job *j, struct pmix_request *request, uint32_t rank);
int data_asked(struct job *j, uint32_t from, struct span bytes, struct err *err);
void data_served(struct job *j, uint64_t token, int code, struct span bytes);
int data_answered(struct job *j, struct span bytes, struct err *err);
void names_end(struct job *j);

/* job-env-node.c: what each rank needs in its environment. */
int ready_fill(struct job *j, Copia__WireupJobReady *ready, struct err *err);
void ready_clear(Copia__WireupJobReady *ready);
