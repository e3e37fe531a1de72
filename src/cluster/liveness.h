/* SPDX-License-Identifier: Apache-2.0 */
/* Who is alive, judged from heartbeats. Pure: time is a parameter (microseconds of one monotonic
 * clock), packets are events.
 *
 *              heard                     heard
 *   NEW ------------------> ALIVE <------------------+
 *    |                        | silent > dead_us     |
 *    | silent > dead_us       | and own tick on time |
 *    +----------------------> SUSPECT ---------------+
 *
 * Local lateness: when our own tick comes late by more than half of dead_us, nobody is accused;
 * every deadline moves by the time that we slept, for we could not have heard anybody. */
#pragma once
#include "base/util.h"

enum { LIVENESS_PATHS_MAX = 8 };

enum liveness_profile_name { LIVENESS_LAN, LIVENESS_FAST, LIVENESS_WAN, LIVENESS_PROFILE_COUNT };

struct liveness_profile {
	const char *name;
	uint32_t interval_ms;    /* one heartbeat on every path */
	uint32_t warn_ms;        /* a path silent for so long is down */
	uint32_t dead_ms;        /* a node silent for so long is suspect */
	uint32_t lease_ms;       /* length of a lease */
	uint32_t term_before_ms; /* at-most-one tasks get TERM so long before its end */
	uint32_t kill_before_ms; /* and KILL */
};
extern const struct liveness_profile liveness_profiles[LIVENESS_PROFILE_COUNT];
/* NULL when there is no such profile. */
const struct liveness_profile *liveness_profile_find(const char *name);

enum liveness_state { LIVENESS_NEW, LIVENESS_ALIVE, LIVENESS_SUSPECT };

struct liveness_path {
	uint64_t heard_us; /* 0 = never */
	bool up;
};

struct liveness_peer {
	enum liveness_state state;
	uint64_t heard_us;    /* 0 = never */
	uint64_t deadline_us; /* silent until then: suspect */
	uint32_t rtt_us;      /* smoothed as RFC 6298 does; 0 = not known */
	unsigned path_count;
	struct liveness_path paths[LIVENESS_PATHS_MAX];
};

/* One life of a sender's sequence numbers: each is accepted once, and only while it is among the
 * last 64 (as IPsec does, RFC 4303 §3.4.3), for paths may overtake one another. */
struct liveness_window {
	uint64_t incarnation; /* of the sender; greater replaces, less is refused */
	uint64_t newest;      /* sequence; 0 = none yet: sequences start at 1 */
	uint64_t seen;        /* bit i: newest - i was seen */
	uint64_t first;       /* the sequence that we began with */
};

void liveness_peer_init(struct liveness_peer *p, unsigned path_count,
			const struct liveness_profile *profile, uint64_t now_us);
/* A believed packet came on `path` (path_count or more: on none that we know). rtt_us 0: not
 * measured. Returns true when the peer's state or a path's state changed. */
bool liveness_heard(struct liveness_peer *p, unsigned path, uint32_t rtt_us,
		    const struct liveness_profile *profile, uint64_t now_us);
/* Time passed. `skipped_us` is what liveness_lateness() returned for this tick.
 * Returns 1 when the peer has just become suspect, 2 when only a path went down, else 0. */
int liveness_tick(struct liveness_peer *p, const struct liveness_profile *profile,
		  uint64_t skipped_us, uint64_t now_us);
/* A tick that was due at due_us runs at now_us: 0 when that is on time, else how much later. */
uint64_t liveness_lateness(const struct liveness_profile *profile, uint64_t due_us,
			   uint64_t now_us);

/* True when this packet is new; the window then contains it. False: replayed or too old. */
bool liveness_window_take(struct liveness_window *w, uint64_t incarnation, uint64_t sequence);
/* Share of the last 64 packets (or fewer, at the start) that did not come, in 1/1000. */
unsigned liveness_window_loss_permille(const struct liveness_window *w);
