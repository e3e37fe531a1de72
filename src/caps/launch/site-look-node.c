/* SPDX-License-Identifier: Apache-2.0 */
/* A site looks at its ranks that did not arrive in MPI_Finalize, because the origin asks. */
#include "caps/launch/finalize-node.h"
#include "caps/launch/launch-impl-node.h"

struct site_look {
	struct finalize_look *look;
	uint32_t *ranks;
	size_t count;
	uint64_t end_ms;
};

void site_look_free(struct site_job *j)
{
	struct site_look *k = take_ptr(j->look);
	if (!k)
		return;
	finalize_look_end(k->look, NULL);
	free(k->ranks);
	free(k);
}

void site_look_begin(struct site_job *j)
{
	if (j->look)
		return;
	struct site_look *k = j->look = xcalloc(1, sizeof(*k));
	_cleanup_(free_p) pid_t *pids = xcalloc(j->place->count, sizeof(*pids));
	k->ranks = xcalloc(j->place->count, sizeof(*k->ranks));
	for (uint32_t i = 0; i < j->place->count; i++) {
		const struct site_rank *r = &j->ranks[i];
		if (r->state != RANK_RUNNING || !r->pid || wire_rank_closing(r))
			continue;
		pids[k->count] = (pid_t)r->pid;
		k->ranks[k->count++] = r->rank;
	}
	k->look = finalize_look_begin(pids, k->count);
	k->end_ms = launch_now_ms(j->l) + FINALIZE_LOOK_MS;
	launch_wake_at(j->l, k->end_ms);
}

static void look_end(struct site_job *j)
{
	static const Copia__LaunchSight sights[] = {
		[JOB_SIGHT_NOTHING] = COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_NOTHING,
		[JOB_SIGHT_INSIDE] = COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_INSIDE,
		[JOB_SIGHT_OUTSIDE] = COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_OUTSIDE,
		[JOB_SIGHT_REFUSED] = COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_REFUSED,
	};
	struct site_look *k = j->look;
	_cleanup_(free_p) struct finalize_seen *seen = xcalloc(k->count, sizeof(*seen));
	_cleanup_(free_p) Copia__LaunchRankSeen *at = xcalloc(k->count, sizeof(*at));
	_cleanup_(free_p) Copia__LaunchRankSeen **list = xcalloc(k->count, sizeof(*list));
	k->look = finalize_look_end(k->look, seen);
	Copia__LaunchSeen s = COPIA__LAUNCH_SEEN__INIT;
	s.ranks = list;
	for (size_t i = 0; i < k->count; i++) {
		/* A rank that ended meanwhile was no process to look at. */
		if (j->ranks[k->ranks[i] - j->place->first].state != RANK_RUNNING)
			continue;
		copia__launch_rank_seen__init(&at[i]);
		at[i].rank = k->ranks[i];
		at[i].sight = sights[seen[i].sight];
		at[i].library = seen[i].library;
		list[s.n_ranks++] = &at[i];
	}
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_SEEN);
	m.seen = &s;
	launch_send(j->l, j->start->origin, &j->id, &m);
	site_look_free(j);
}

uint64_t site_look_tick(struct launch *l, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;
	for (struct site_job *j = l->sites; j; j = j->hh.next) {
		if (!j->look)
			continue;
		if (now_ms >= j->look->end_ms)
			look_end(j);
		else
			due = MIN(due, j->look->end_ms);
	}
	return due;
}
