/* SPDX-License-Identifier: Apache-2.0 */
/* Running programs: what the brain of a node does for `copia run`, `exec`, `copy`, `ps`, `kill`.
 *
 * A node plays two parts. As *origin* of a job (the node where the user typed; origin.h) it
 * places, starts, gathers and ends. As *site* (any node with ranks of the job; site.h) it prepares
 * the program, has the shepherd spawn the ranks, and carries their bytes. Both talk in
 * LaunchMessages (schema/launch.proto) over CHANNEL_LAUNCH; a message to the own node takes the
 * same way through a queue in memory. File contents travel over CHANNEL_STAGE (stage-node.h).
 *
 * Nothing here is in the replicated state. What a site must know after a restart of its brain it
 * keeps in one file for each job (run_dir/jobs/ID), what an origin must know comes back from the
 * waiting command, which attaches itself again. Task ids tell job and rank (LAUNCH_TASK). */
#pragma once
#include "base/err.h"
#include "io/peers.h"
#include "io/shepherd-link.h"

struct launch;
struct node;

/* Makes the part; `n` must live longer. Makes the folders it needs in state_dir and run_dir.
 * Errors: those of mkdir(2). */
int launch_new(struct launch **ret, struct node *n, struct err *err);
/* Registers verbs (control_on) and, when the node is in a cluster, handlers of CHANNEL_LAUNCH and
 * CHANNEL_STAGE (peers_on). Call again when n->peers came into being or was made anew. */
int launch_start(struct launch *l, struct err *err);
/* NULL is fine; returns NULL. Tasks go on: they are the shepherd's. */
struct launch *launch_free(struct launch *l);

/* Every event of the shepherd link that concerns tasks (Hello, TaskState, TasksSent, Spawned,
 * TaskExit, Consumed, Pumped, Done). Returns true when it was ours; the descriptors we keep are set
 * to -1 in `fds`. Events of tasks that others started are not ours. */
bool launch_task_event(struct launch *l, const Copia__Shepherd__Event *e, struct task_fds *fds);
/* The cluster declared a node down, or it left: its ranks are lost, jobs it is origin of end. */
void launch_node_down(struct launch *l, uint32_t number);
/* From peers_events: a session came up or ended; a channel's queue has room again. */
void launch_session(struct launch *l, uint32_t number, bool up);
void launch_drained(struct launch *l, uint32_t number, enum channel channel);

/* Tasks of jobs on this node that have not ended. */
uint32_t launch_tasks(const struct launch *l);
