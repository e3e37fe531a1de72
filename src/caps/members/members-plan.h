/* SPDX-License-Identifier: Apache-2.0 */
/* Which nodes should be controllers. Pure: state and time in, one step out; asked again after every
 * change, so a lost step is simply planned again.
 *
 *   agent --learn--> learner --vote (it has nearly all of the log)--> controller
 *   controller, down for too long, and a better one is there --drop--> agent
 *
 * An even number of voters tolerates no more losses than the odd one below it, so the number grows
 * from 1 to 3 to 5 in steps of two: with two nodes there is one controller. */
#pragma once
#include "caps/members/members.h"

enum { PLAN_VOTERS_MAX = 7 };

struct plan_controller {
	uint32_t number;
	bool voter, learner;
	uint64_t match;
};

struct plan_input {
	const struct members *members;
	uint32_t self;                         /* the leader */
	const struct plan_controller *present; /* what the log's configuration says */
	size_t present_count;
	uint64_t last;             /* last entry of the leader's log */
	uint64_t now_ms;           /* cluster time */
	uint64_t replace_after_ms; /* a voter down for so long is replaced */
};

struct plan_controllers {
	bool change; /* voters and learners differ from what is present */
	uint32_t voters[PLAN_VOTERS_MAX], learners[PLAN_VOTERS_MAX];
	size_t voter_count, learner_count;
};

void members_plan_controllers(const struct plan_input *in, struct plan_controllers *out);

/* Where a test resource goes: an up, undrained node with the fewest of them; 0: nowhere. */
uint32_t members_plan_place(const struct members *m, const Copia__Resource *r);

/* Is `node`, silent for a majority of the `voters`, lost? `missed_by` are those who miss it. */
bool members_plan_lost(const uint32_t *voters, size_t voter_count, const uint32_t *missed_by,
		       size_t missed_count);
