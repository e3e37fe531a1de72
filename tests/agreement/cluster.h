/* SPDX-License-Identifier: Apache-2.0 */
/* A cluster of real nodes of the agreement: one process each, real sessions (TLS on loopback), real
 * stores. The parent speaks to each over a socket in lines. Used by the tests and by bench/commit.
 *
 * The replicated state counts commands by their id, so that one applied twice is seen, and keeps a
 * hash over all commands in their order, so that equal states have equal hashes. */
#pragma once
#include "base/id.h"
#include "base/str.h"
#include "cluster/raft/raft.h"

#include <sys/types.h>

enum { CLUSTER_NODES_MAX = 8, CLUSTER_ID_MAX = 1 << 20 };

struct member {
	pid_t pid; /* 0: not running */
	int fd;
	uint16_t port;
	struct str in; /* read, but not taken yet */
	struct str key, cert;
};

struct cluster {
	char dir[64];
	struct id id;
	enum raft_profile profile;
	unsigned snapshot_entries, keep_entries; /* of nodes started from now on; 0: default */
	struct str authority_key, authority;
	struct member nodes[CLUSTER_NODES_MAX + 1]; /* by number; 0 is not used */
};

/* Make a cluster in a new folder below the present one; nothing runs yet. */
void cluster_init(struct cluster *c, enum raft_profile profile);
/* Kill what runs, remove the folder. */
void cluster_deinit(struct cluster *c);

/* Start a node; `first`: the first one, which makes the log. All others are told its port. */
void cluster_start(struct cluster *c, unsigned number, bool first);
/* Start and let it serve; then make 1…count the voters. Waits until that is done. */
void cluster_grow(struct cluster *c, unsigned count);
void cluster_kill(struct cluster *c, unsigned number); /* SIGKILL */
void cluster_quit(struct cluster *c, unsigned number); /* clean end */

void cluster_say(struct cluster *c, unsigned number, const char *fmt, ...) _printf_(3, 4);
/* The next line from a node that begins with `start` (without its end), or NULL when none comes for
 * `timeout_ms`; lines with other beginnings stay. Valid until the next call. Fails the program when
 * the node ended. */
const char *cluster_line(struct cluster *c, unsigned number, const char *start, int timeout_ms);
/* The same; fails the program after 20 s. */
const char *cluster_expect(struct cluster *c, unsigned number, const char *start);
/* Node that all running nodes call leader and that is ready; waits for it. */
unsigned cluster_leader(struct cluster *c);

struct cluster_status {
	unsigned role, leader, ready, peers, voters, changing;
	unsigned long long term, commit, applied, first, last, snapshot, hash, count, doubles;
	char health[600];
};
void cluster_status(struct cluster *c, unsigned number, struct cluster_status *ret);
/* Wait until all running nodes have applied the same; fails when their states differ. */
void cluster_settle(struct cluster *c);
