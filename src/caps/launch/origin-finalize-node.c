/* SPDX-License-Identifier: Apache-2.0 */
/* Ranks that hang in MPI_Finalize, at the origin: who is looked at, and what the user is told. The
 * decision is job.c's. */
#include "caps/launch/origin-impl-node.h"

#include <inttypes.h>

enum { RANKS_SHOWN = 8 };

void origin_look(struct origin_job *j)
{
	Copia__LaunchLook look = COPIA__LAUNCH_LOOK__INIT;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_LOOK);
	m.look = &look;
	for (size_t i = 0; i < j->site_count; i++) {
		struct origin_site *s = &j->sites[i];
		bool missing = false;
		for (uint32_t k = 0; !missing && k < s->place.count; k++)
			missing = job_missing(&j->job, s->place.first + k);
		if (missing && !s->lost)
			launch_send(j->l, s->place.node, &j->id, &m);
	}
}

void origin_seen(struct origin_job *j, const struct origin_site *s, const Copia__LaunchSeen *seen)
{
	static const enum job_sight sights[] = {
		[COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_NOTHING] = JOB_SIGHT_NOTHING,
		[COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_INSIDE] = JOB_SIGHT_INSIDE,
		[COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_OUTSIDE] = JOB_SIGHT_OUTSIDE,
		[COPIA__LAUNCH_SIGHT__LAUNCH_SIGHT_REFUSED] = JOB_SIGHT_REFUSED,
	};
	for (size_t i = 0; i < seen->n_ranks; i++) {
		const Copia__LaunchRankSeen *r = seen->ranks[i];
		if (r->rank - s->place.first >= s->place.count ||
		    (size_t)r->sight >= ARRAY_LEN(sights))
			continue;
		j->seen_ucx |= !strncmp(r->library, "libuc", 5);
		job_seen(&j->job, r->rank, sights[r->sight], launch_now_ms(j->l));
	}
}

/* "0, 2, 3 and 12 more" of those that are missing, or of those that wait. */
static uint32_t list_ranks(const struct origin_job *j, bool missing, struct str *ret)
{
	uint32_t count = 0;
	for (uint32_t i = 0; i < j->size; i++) {
		if (j->job.flags[i] & JOB_RANK_ENDED || job_missing(&j->job, i) != missing)
			continue;
		if (count++ >= RANKS_SHOWN)
			continue;
		str_printf(ret, "%s%u", count > 1 ? ", " : "", i);
		if (missing)
			str_printf(ret, " on %s",
				   origin_site_of_rank((struct origin_job *)j, i)->name);
	}
	if (count > RANKS_SHOWN)
		str_printf(ret, " and %u more", count - RANKS_SHOWN);
	return count;
}

void origin_finalize_note(struct origin_job *j)
{
	_cleanup_(str_free) struct str wait = { 0 }, missing = { 0 };
	bool refused = false;
	for (uint32_t i = 0; i < j->size; i++)
		refused |= job_missing(&j->job, i) && j->job.sight[i] == JOB_SIGHT_REFUSED;
	uint32_t waiting = list_ranks(j, false, &wait), left = list_ranks(j, true, &missing);
	uint64_t since_s = (launch_now_ms(j->l) - j->job.closing_ms) / 1000;
	origin_note(
	    j,
	    "note: rank%s %s wait%s in MPI_Finalize since %" PRIu64
	    " s; rank%s %s did not arrive there, and %s; --finalize-timeout T ends such jobs "
	    "after T, whatever their ranks do",
	    waiting == 1 ? "" : "s", str_text(&wait), waiting == 1 ? "s" : "", since_s,
	    left == 1 ? "" : "s", str_text(&missing),
	    refused ? "the kernel does not let Copia see what they do "
		      "(kernel.perf_event_paranoid > 2?)"
		    : "sleep, or read and write files");
}

void origin_tell_hung(struct origin_job *j)
{
	const struct job *k = &j->job;
	double time_s = (double)j->spec->finalize_ms / 1000;
	if (!k->hung)
		return;
	if (k->hung_forced)
		origin_note(j,
			    "%u ranks were ended %g s after the first waited in MPI_Finalize "
			    "(--finalize-timeout)",
			    k->hung, time_s);
	else
		origin_note(j,
			    "%u ranks hung in MPI_Finalize%s and were ended after %g s; the "
			    "program's own work was complete",
			    k->hung, j->seen_ucx ? " (a known fault of UCX over TCP)" : "", time_s);
}
