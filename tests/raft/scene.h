/* SPDX-License-Identifier: Apache-2.0 */
/* A stage for scenarios: messages take 1 ms, disks nothing, and only the nodes that the scenario
 * names have a running timer. All invariants of the bench are checked as well. */
#pragma once
#include "../test.h"
#include "sim.h"

/* A test body runs in a scene; a broken invariant fails the test with its reason. */
#define SCENE(s, nodes, voters)                                                                    \
	struct sim *s = scene_new(nodes, voters);                                                  \
	if (setjmp(s->out) != 0)                                                                   \
		fail_msg("%s", s->reason);                                                         \
	scene_start(s, voters)

struct sim *scene_new(unsigned nodes, unsigned voters);
void scene_start(struct sim *s, unsigned voters);
/* Let time pass; timers run only for leaders and for the nodes in `timer`. */
void scene_run(struct sim *s, unsigned ms);
/* Let only this node's timer run until it leads. */
struct node *scene_elect(struct sim *s, uint64_t id);
/* Propose one command; returns its index. */
uint64_t scene_put(struct sim *s, struct node *n);
void scene_groups(struct sim *s, const char *digits); /* and lose what is on its way */
void scene_crash(struct sim *s, struct node *n);      /* and lose what is on its way */
/* Deliver a message that this test made. */
void scene_deliver(struct sim *s, const struct raft_message *m);
/* Is a message of this type on its way from one node to another? The first one. */
const struct raft_message *scene_on_way(const struct sim *s, uint64_t from, uint64_t to,
					enum raft_message_type type);
uint64_t scene_commit(const struct node *n);
