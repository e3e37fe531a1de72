/* SPDX-License-Identifier: Apache-2.0 */
/* The brain of one node: what its parts share. One loop, one thread; parts are found here and
 * nowhere else, there are no globals. Set up in node.c, in the order of the members. */
#pragma once
#include "base/err.h"
#include "base/id.h"
#include "base/rng.h"

#include <uv.h>

struct agree;
struct control;
struct launch;
struct members;
struct members_node;
struct peers;
struct shepherd_link;

struct node_settings {
	char *state_dir; /* /var/lib/copia or the user's own */
	char *run_dir;   /* holds copia.sock */
	uint16_t port;   /* TCP and UDP */
	bool root;       /* the daemon runs as root and may become other users */
};

struct node {
	uv_loop_t *loop;
	struct node_settings settings;
	struct rng rng;       /* choices and jitter; seeded from the kernel */
	uint64_t incarnation; /* random per start of the daemon */
	uint32_t number;      /* 0 while in no cluster */
	struct shepherd_link *shepherd;
	struct control *control;
	struct members *members;   /* what this node knows of the cluster: one of the next two */
	struct members *from_log;  /* controllers: the replicated state; only the log changes it */
	struct members *from_view; /* others: what the leader told */
	struct members_node *members_node;
	struct peers *peers; /* NULL while in no cluster */
	struct agree *agree; /* NULL while in no cluster */
	struct launch *launch;
};

/* Monotonic milliseconds and wall clock milliseconds of the loop (uv_now, kept per iteration). */
uint64_t node_now_ms(const struct node *n);
/* Cryptographic random bytes from the kernel. */
void node_random(void *at, size_t len);
