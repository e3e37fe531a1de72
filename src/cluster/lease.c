/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/lease.h"

#include <assert.h>

#define TO(phase) (1u << (phase))

static const unsigned allowed[] = {
	[LEASE_NONE] = TO(LEASE_HELD),
	[LEASE_HELD] = TO(LEASE_HELD) | TO(LEASE_ENDING) | TO(LEASE_STOPPED),
	[LEASE_ENDING] = TO(LEASE_HELD) | TO(LEASE_ENDING) | TO(LEASE_STOPPED),
	[LEASE_STOPPED] = TO(LEASE_HELD) | TO(LEASE_NONE),
};

static void check(const struct lease_holder *h)
{
	assert(h->phase <= LEASE_STOPPED);
	assert((h->until_us == 0) == (h->phase == LEASE_NONE));
	assert(h->phase == LEASE_NONE || h->term > 0);
}

static void move(struct lease_holder *h, enum lease_phase to)
{
	assert(allowed[h->phase] & TO(to));
	h->phase = to;
	if (to == LEASE_NONE)
		h->until_us = 0;
	check(h);
}

static uint64_t before(uint64_t until_us, uint32_t ms)
{
	uint64_t us = ms * 1000ULL;
	return until_us > us ? until_us - us : 0;
}

static enum lease_phase phase_at(uint64_t until_us, const struct lease_times *t, uint64_t now_us)
{
	if (now_us >= before(until_us, t->kill_before_ms))
		return LEASE_STOPPED;
	return now_us >= before(until_us, t->term_before_ms) ? LEASE_ENDING : LEASE_HELD;
}

bool lease_holder_grant(struct lease_holder *h, const struct lease_times *t, uint64_t term,
			uint64_t sent_us, uint32_t duration_ms, uint64_t now_us)
{
	check(h);
	assert(t->kill_before_ms < t->term_before_ms);
	if (term == 0 || term < h->term || sent_us > now_us || sent_us == 0)
		return false;
	h->term = term;
	/* A longer grant of an earlier term stays in force: whoever made it reckons with it. */
	uint64_t until_us = sent_us + duration_ms * 1000ULL;
	if (until_us <= h->until_us)
		return false;
	enum lease_phase to = phase_at(until_us, t, now_us);
	/* What comes too late to be of use revives nothing; what ends stays ended. */
	if (to == LEASE_STOPPED || (to == LEASE_ENDING && h->phase != LEASE_ENDING))
		return false;
	h->until_us = until_us;
	/* Tasks that were told to end go on ending; with more time, new ones may start. */
	move(h, to);
	return true;
}

bool lease_holder_tick(struct lease_holder *h, const struct lease_times *t, uint64_t now_us)
{
	check(h);
	enum lease_phase was = h->phase;
	if (was == LEASE_NONE)
		return false;
	enum lease_phase to = phase_at(h->until_us, t, now_us);
	if (was != LEASE_STOPPED && to > was)
		move(h, to);
	else if (was == LEASE_STOPPED && now_us >= h->until_us)
		move(h, LEASE_NONE);
	return h->phase != was;
}

uint64_t lease_holder_next_us(const struct lease_holder *h, const struct lease_times *t)
{
	switch (h->phase) {
	case LEASE_NONE:
		return UINT64_MAX;
	case LEASE_HELD:
		return before(h->until_us, t->term_before_ms);
	case LEASE_ENDING:
		return before(h->until_us, t->kill_before_ms);
	case LEASE_STOPPED:
		break;
	}
	return h->until_us;
}

bool lease_holder_usable(const struct lease_holder *h)
{
	return h->phase == LEASE_HELD;
}

bool lease_granter_lead(struct lease_granter *g, uint64_t term, uint64_t quorum_until_us)
{
	if (term == 0) {
		g->until_us = 0;
		return true;
	}
	if (term < g->term)
		return false;
	g->term = term;
	g->until_us = quorum_until_us;
	return true;
}

bool lease_granter_active(const struct lease_granter *g, uint64_t now_us)
{
	return g->term > 0 && now_us < g->until_us;
}

bool lease_granter_grant(const struct lease_granter *g, struct lease_grant *to, uint64_t sent_us,
			 uint32_t lease_ms, uint64_t now_us)
{
	if (to->stopped || sent_us == 0 || !lease_granter_active(g, now_us))
		return false;
	uint64_t end_us = now_us + lease_wait_us(lease_ms);
	assert(end_us > now_us);
	to->end_us = MAX(to->end_us, end_us);
	to->sent_us = sent_us;
	return true;
}

uint64_t lease_granter_stop(struct lease_grant *to)
{
	to->stopped = true;
	return to->end_us;
}

uint64_t lease_wait_us(uint32_t lease_ms)
{
	uint64_t us = lease_ms * 1000ULL;
	return us + us * LEASE_DRIFT_PERMILLE / 1000 + LEASE_MARGIN_US;
}
