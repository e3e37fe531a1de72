/* SPDX-License-Identifier: Apache-2.0 */
/* The engines `local` and `raft` of agree.h: the Raft core with its store, timers and messages.
 *
 * `local` is the Raft core with one voter: a commit needs this node's disk and nobody else. Adding
 * voters makes `raft` of it, with the same log and without a pause. */
#pragma once
#include "base/id.h"
#include "base/rng.h"
#include "cluster/agree.h"
#include "cluster/raft/raft.h"

#include <uv.h>

struct peers;

struct agreement_settings {
	uv_loop_t *loop;     /* borrowed; everything happens on its thread */
	struct peers *peers; /* borrowed; NULL: a cluster of one node without a network */
	const char *dir;     /* folder of the store (made when missing, mode 0700); copied */
	struct id cluster;
	uint32_t self; /* number of this node, not 0 */
	enum raft_profile profile;
	uint64_t epoch; /* random per start of the brain, not 0 */
	struct rng rng; /* copied */
	/* 0: the default. Entries applied since the last snapshot when the next one is taken, and
	 * entries kept behind it for those who lag a little. */
	unsigned snapshot_entries, keep_entries;
};

/* For `init`: make the store of a new cluster whose only voter is `self`. The first commands are
 * proposed after agreement_open() and agree_serve().
 * Errors: -EEXIST there is a log already; as agree_serve(). */
int agreement_bootstrap(const struct agreement_settings *s, struct err *err);

/* An agent at first; agree_serve() makes a controller of it. The caller owns *ret: agree_close(),
 * before the peers and the loop are closed. `events` is copied, its ctx borrowed. While serving,
 * load() is called from agree_serve() itself, before it returns.
 * Errors: -EINVAL settings without loop, cluster, number or epoch. */
int agreement_open(struct agree **ret, const struct agreement_settings *s,
		   const struct agree_events *events, struct err *err);

/* To be called when a session with another node comes up or ends (peers_events.state): commands are
 * sent again at once, and a leader that vanished is missed sooner. Only a hint. `a` may be NULL. */
void agreement_session(struct agree *a, uint32_t node, bool up);

/* Is there a log in `dir` (a controller's, now or once)? */
bool agreement_exists(const char *dir);
