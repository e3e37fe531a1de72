/* SPDX-License-Identifier: Apache-2.0 */
/* The jobs of this node: what the brain says of them, their ranks' connections, and the exchange
 * with the other nodes of each job. One struct wireup is the whole program but for its loop. */
#pragma once
#include "caps/wireup/brain-node.h"

enum {
	JOB_RANKS_MAX = 1 << 20, /* of a job */
	JOB_NODES_MAX = 1 << 16,
	JOB_NAMES_MAX = 4096,           /* published by a job */
	JOB_REFUSALS_MAX = 16,          /* notices of refusals per job */
	JOB_EARLY_BYTES_MAX = 16 << 20, /* exchanges of jobs that are not here yet */
	JOB_EARLY_MS = 60000,
};

struct wireup;

/* `folder` for the PMIx server's files, borrowed for good; `idle_ms` 0: never end for idleness. */
struct wireup *wireup_new(const char *folder, uint64_t idle_ms);
struct wireup *wireup_free(struct wireup *w); /* ends all jobs; returns NULL */
/* The hooks for brain_new(); tell wireup_start() what came of it. */
struct brain_hooks wireup_hooks(struct wireup *w);
void wireup_start(struct wireup *w, struct brain *brain);
