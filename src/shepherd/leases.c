/* SPDX-License-Identifier: Apache-2.0 */
/* The lease of this node, and what hangs on it: cluster/lease judges, here it is done. */
#include "cluster/lease.h"

#include "cluster/liveness.h"
#include "shepherd/beats.h"
#include "shepherd/task.h"

#include <errno.h>
#include <signal.h>

struct leases {
	struct lease_holder holder;
	struct lease_granter granter;
	struct lease_times times;
};

void leases_init(struct shepherd *s)
{
	const struct liveness_profile *p = &liveness_profiles[LIVENESS_LAN];
	s->leases = xcalloc(1, sizeof(*s->leases));
	s->leases->times =
	    (struct lease_times){ p->lease_ms, p->term_before_ms, p->kill_before_ms };
}

int leases_configure(struct shepherd *s, const struct lease_times *t, struct err *err)
{
	if (t->kill_before_ms >= t->term_before_ms || t->term_before_ms >= t->lease_ms)
		return err_set(
		    err, -EINVAL,
		    "lease of %u ms with TERM %u ms and KILL %u ms before its end: KILL must "
		    "come after TERM, and TERM after its begin",
		    t->lease_ms, t->term_before_ms, t->kill_before_ms);
	s->leases->times = *t;
	return 0;
}

const struct lease_times *leases_times(const struct shepherd *s)
{
	return &s->leases->times;
}

struct lease_granter *leases_granter(struct shepherd *s)
{
	return &s->leases->granter;
}

bool leases_usable(struct shepherd *s)
{
	/* Judged now, not at the last tick. */
	leases_tick(s);
	return lease_holder_usable(&s->leases->holder);
}

void leases_message(const struct shepherd *s, Copia__Shepherd__LeaseState *ret)
{
	const struct lease_holder *h = &s->leases->holder;
	ret->phase = (Copia__Shepherd__LeasePhase)h->phase;
	ret->term = h->term;
	ret->until_us = h->until_us;
}

static void tell(struct shepherd *s)
{
	Copia__Shepherd__LeaseState m = COPIA__SHEPHERD__LEASE_STATE__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	leases_message(s, &m);
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_LEASE;
	e.lease = &m;
	event_send(s, &e, NULL, 0);
}

void leases_granted(struct shepherd *s, uint64_t term, uint64_t sent_us, uint32_t duration_ms)
{
	struct leases *l = s->leases;
	enum lease_phase was = l->holder.phase;
	leases_tick(s);
	(void)lease_holder_grant(&l->holder, &l->times, term, sent_us, duration_ms, clock_us());
	if (l->holder.phase != was)
		tell(s);
}

static void stop_task(struct shepherd *s, struct task *t, void *ctx)
{
	int signal = *(int *)ctx;
	if (!t->lease || !task_is_live(t))
		return;
	t->why = task_why("lease ended");
	task_signal(s, t, signal, false);
}

void leases_tick(struct shepherd *s)
{
	struct leases *l = s->leases;
	uint64_t now_us = clock_us();
	enum lease_phase was = l->holder.phase;
	while (lease_holder_tick(&l->holder, &l->times, now_us)) {
		int signal = l->holder.phase == LEASE_STOPPED  ? SIGKILL
			     : l->holder.phase == LEASE_ENDING ? SIGTERM
							       : 0;
		if (signal)
			tasks_each(s, stop_task, &signal);
	}
	if (l->holder.phase != was)
		tell(s);
}

uint64_t leases_next_us(const struct shepherd *s)
{
	return lease_holder_next_us(&s->leases->holder, &s->leases->times);
}

void leases_takeover(struct shepherd *s, const Copia__Shepherd__LeaseState *m,
		     uint64_t granter_term)
{
	struct leases *l = s->leases;
	l->granter.term = granter_term;
	if (!m || m->phase > COPIA__SHEPHERD__LEASE_PHASE__LEASE_STOPPED)
		return;
	if ((m->until_us == 0) != (m->phase == COPIA__SHEPHERD__LEASE_PHASE__LEASE_NONE) ||
	    (m->until_us > 0 && m->term == 0))
		return;
	l->holder = (struct lease_holder){ (enum lease_phase)m->phase, m->term, m->until_us };
}
