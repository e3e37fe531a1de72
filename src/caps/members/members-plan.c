/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/members/members-plan.h"

/* Entries that a learner may lack and still be made a voter. */
enum { PLAN_NEAR = 64 };

static bool contains(const uint32_t *list, size_t count, uint32_t number)
{
	for (size_t i = 0; i < count; i++)
		if (list[i] == number)
			return true;
	return false;
}

static const struct plan_controller *present(const struct plan_input *in, uint32_t number)
{
	for (size_t i = 0; i < in->present_count; i++)
		if (in->present[i].number == number)
			return &in->present[i];
	return NULL;
}

static bool is_voter(const struct plan_input *in, uint32_t number)
{
	const struct plan_controller *p = present(in, number);
	return p && p->voter;
}

/* 0: must not be one; more is better. Present voters stay unless they are lost for long. */
static int merit(const struct plan_input *in, const Copia__Node *n)
{
	bool voter = is_voter(in, n->number);
	if (n->state == COPIA__NODE_STATE__LEFT || n->leaving)
		return 0;
	if (n->number == in->self)
		return 6;
	if (n->state == COPIA__NODE_STATE__DOWN)
		return !voter ? 0 : in->now_ms - n->since_ms < in->replace_after_ms ? 4 : 1;
	if (voter)
		return 5;
	if (n->drained)
		return 0;
	return present(in, n->number) ? 3 : 2;
}

static size_t target(const struct plan_input *in)
{
	const Copia__MembersState *s = in->members->state;
	size_t able = 0;
	for (size_t i = 0; i < s->n_nodes; i++)
		able += merit(in, s->nodes[i]) > 0;
	size_t wanted = s->controllers_wanted ? s->controllers_wanted : 1;
	size_t count = wanted < able ? wanted : able;
	if (count % 2 == 0)
		count--;
	return count < 1 ? 1 : count > PLAN_VOTERS_MAX ? PLAN_VOTERS_MAX : count;
}

/* The best `count` nodes; the lower number wins among equals. */
static size_t choose(const struct plan_input *in, size_t count, uint32_t chosen[PLAN_VOTERS_MAX])
{
	const Copia__MembersState *s = in->members->state;
	size_t have = 0;
	for (int m = 6; m > 0; m--)
		for (size_t i = 0; i < s->n_nodes && have < count; i++)
			if (merit(in, s->nodes[i]) == m)
				chosen[have++] = s->nodes[i]->number;
	return have;
}

static bool caught_up(const struct plan_input *in, uint32_t number)
{
	const struct plan_controller *p = present(in, number);
	return p && (p->voter || (p->learner && p->match + PLAN_NEAR >= in->last && p->match > 0));
}

static bool differs(const struct plan_input *in, const struct plan_controllers *out)
{
	size_t voters = 0, learners = 0;
	for (size_t i = 0; i < in->present_count; i++) {
		const struct plan_controller *p = &in->present[i];
		voters += p->voter;
		learners += p->learner;
		if (p->voter && !contains(out->voters, out->voter_count, p->number))
			return true;
		if (p->learner && !contains(out->learners, out->learner_count, p->number))
			return true;
	}
	return voters != out->voter_count || learners != out->learner_count;
}

void members_plan_controllers(const struct plan_input *in, struct plan_controllers *out)
{
	*out = (struct plan_controllers){ 0 };
	uint32_t chosen[PLAN_VOTERS_MAX];
	size_t count = choose(in, target(in), chosen);
	bool ready = true;
	for (size_t i = 0; i < count; i++)
		ready = ready && caught_up(in, chosen[i]);
	for (size_t i = 0; i < count; i++) {
		if (ready || is_voter(in, chosen[i]))
			out->voters[out->voter_count++] = chosen[i];
		else
			out->learners[out->learner_count++] = chosen[i];
	}
	/* Until the newcomers have the log, the present voters stay, also those to be replaced. */
	for (size_t i = 0; !ready && i < in->present_count; i++) {
		uint32_t number = in->present[i].number;
		const Copia__Node *n = members_find(in->members, number);
		if (in->present[i].voter && n && n->state != COPIA__NODE_STATE__LEFT &&
		    !contains(out->voters, out->voter_count, number) &&
		    out->voter_count < PLAN_VOTERS_MAX)
			out->voters[out->voter_count++] = number;
	}
	out->change = differs(in, out);
}

uint32_t members_plan_place(const struct members *m, const Copia__Resource *r)
{
	const Copia__MembersState *s = m->state;
	uint32_t best = 0;
	size_t best_load = SIZE_MAX;
	for (size_t i = 0; i < s->n_nodes; i++) {
		if (!members_takes_work(s->nodes[i]))
			continue;
		size_t load = 0;
		for (size_t k = 0; k < s->n_resources; k++)
			load +=
			    s->resources[k] != r && s->resources[k]->node == s->nodes[i]->number;
		if (load < best_load) {
			best = s->nodes[i]->number;
			best_load = load;
		}
	}
	return best;
}

bool members_plan_lost(const uint32_t *voters, size_t voter_count, const uint32_t *missed_by,
		       size_t missed_count)
{
	size_t miss = 0;
	for (size_t i = 0; i < voter_count; i++)
		miss += contains(missed_by, missed_count, voters[i]);
	return voter_count > 0 && miss * 2 > voter_count;
}
