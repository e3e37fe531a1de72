/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster/liveness.h"

#include <assert.h>

/* A lease must outlive a few lost heartbeats and still end soon enough for a takeover: with `fast`
 * a silent node's work may start elsewhere about 100 ms after its last heartbeat, with `lan` 500.
 */
const struct liveness_profile liveness_profiles[LIVENESS_PROFILE_COUNT] = {
	[LIVENESS_LAN] = { "lan", 50, 150, 300, 450, 200, 50 },
	[LIVENESS_FAST] = { "fast", 10, 30, 60, 90, 40, 15 },
	[LIVENESS_WAN] = { "wan", 500, 2000, 5000, 7000, 3000, 500 },
};

const struct liveness_profile *liveness_profile_find(const char *name)
{
	for (int i = 0; i < LIVENESS_PROFILE_COUNT; i++)
		if (strcmp(liveness_profiles[i].name, name) == 0)
			return &liveness_profiles[i];
	return NULL;
}

static uint64_t dead_us(const struct liveness_profile *profile)
{
	return profile->dead_ms * 1000ULL;
}

void liveness_peer_init(struct liveness_peer *p, unsigned path_count,
			const struct liveness_profile *profile, uint64_t now_us)
{
	assert(path_count <= LIVENESS_PATHS_MAX);
	*p = (struct liveness_peer){ .state = LIVENESS_NEW,
				     .path_count = path_count,
				     .deadline_us = now_us + dead_us(profile) };
}

bool liveness_heard(struct liveness_peer *p, unsigned path, uint32_t rtt_us,
		    const struct liveness_profile *profile, uint64_t now_us)
{
	assert(p->path_count <= LIVENESS_PATHS_MAX);
	bool changed = p->state != LIVENESS_ALIVE;
	p->state = LIVENESS_ALIVE;
	p->heard_us = MAX(p->heard_us, now_us);
	p->deadline_us = MAX(p->deadline_us, now_us + dead_us(profile));
	if (rtt_us > 0) /* RFC 6298 §2.3 with alpha 1/8 */
		p->rtt_us = p->rtt_us ? (uint32_t)(((uint64_t)p->rtt_us * 7 + rtt_us) / 8) : rtt_us;
	if (path < p->path_count) {
		changed |= !p->paths[path].up;
		p->paths[path].up = true;
		p->paths[path].heard_us = MAX(p->paths[path].heard_us, now_us);
	}
	assert(p->deadline_us > now_us);
	return changed;
}

static bool path_tick(struct liveness_path *path, const struct liveness_profile *profile,
		      uint64_t skipped_us, uint64_t now_us)
{
	if (!path->up)
		return false;
	path->heard_us = MIN(path->heard_us + skipped_us, now_us);
	if (now_us - path->heard_us < profile->warn_ms * 1000ULL)
		return false;
	path->up = false;
	return true;
}

int liveness_tick(struct liveness_peer *p, const struct liveness_profile *profile,
		  uint64_t skipped_us, uint64_t now_us)
{
	bool path_down = false;
	for (unsigned i = 0; i < p->path_count; i++)
		path_down |= path_tick(&p->paths[i], profile, skipped_us, now_us);
	if (p->state == LIVENESS_SUSPECT)
		return path_down ? 2 : 0;
	/* What was in flight while we slept needs a moment to be read: two intervals at least. */
	if (skipped_us > 0)
		p->deadline_us =
		    MAX(p->deadline_us + skipped_us, now_us + 2000ULL * profile->interval_ms);
	if (now_us < p->deadline_us)
		return path_down ? 2 : 0;
	p->state = LIVENESS_SUSPECT;
	return 1;
}

uint64_t liveness_lateness(const struct liveness_profile *profile, uint64_t due_us, uint64_t now_us)
{
	uint64_t late_us = now_us > due_us ? now_us - due_us : 0;
	return late_us > dead_us(profile) / 2 ? late_us : 0;
}

bool liveness_window_take(struct liveness_window *w, uint64_t incarnation, uint64_t sequence)
{
	if (sequence == 0 || incarnation == 0 || incarnation < w->incarnation)
		return false;
	if (incarnation > w->incarnation) {
		*w = (struct liveness_window){ incarnation, sequence, 1, sequence };
		return true;
	}
	if (sequence > w->newest) {
		uint64_t step = sequence - w->newest;
		w->seen = step < 64 ? w->seen << step | 1 : 1;
		w->newest = sequence;
		return true;
	}
	uint64_t age = w->newest - sequence;
	if (age >= 64 || w->seen & 1ULL << age)
		return false;
	w->seen |= 1ULL << age;
	return true;
}

unsigned liveness_window_loss_permille(const struct liveness_window *w)
{
	unsigned span = (unsigned)MIN(w->newest - w->first + 1, (uint64_t)64);
	if (w->newest == 0)
		return 0;
	unsigned got = (unsigned)__builtin_popcountll(w->seen);
	return got >= span ? 0 : (span - got) * 1000 / span;
}
