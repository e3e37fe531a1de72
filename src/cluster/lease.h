/* SPDX-License-Identifier: Apache-2.0 */
/* Leases of whole nodes: how "at most one" stays true without agreed clocks. Pure: time is a
 * parameter, in microseconds of the own machine's monotonic clock; the clocks of two machines share
 * nothing but their speed, which differs by at most LEASE_DRIFT_PERMILLE.
 *
 *   node (holder)                                   leader (granter)
 *   sends heartbeat at s (own clock)  ------------> receives it at r, quorum holds beyond r
 *   holds until s + duration          <------------ grant {term, echo s, duration}
 *   TERM, then KILL before that                     end = r + duration * (1 + drift) + margin
 *
 * s is earlier than r whatever the network does, so the holder has stopped when the granter's `end`
 * has come, as long as the two clocks keep within the drift.
 *
 * Holder:
 *
 *   NONE --grant--> HELD --until - term_before--> ENDING --until - kill_before--> STOPPED
 *    ^               ^  ^--------grant--------------'                                |
 *    |               '---------------------------grant-------------------------------'
 *    '---- (from STOPPED, when `until` has come)
 *
 * A grant counts only from a term not less than the highest seen. A new leader does not know what
 * its forerunner granted: it waits lease_wait_us() after its election before it hands out again
 * what somebody may hold; so does a leader whose shepherd started anew. */
#pragma once
#include "base/util.h"

enum {
	LEASE_DRIFT_PERMILLE = 10,
	LEASE_MARGIN_US = 2000, /* granularity of clocks and timers */
};

enum lease_phase { LEASE_NONE, LEASE_HELD, LEASE_ENDING, LEASE_STOPPED };

struct lease_holder {
	enum lease_phase phase;
	uint64_t term;     /* highest seen, by grant or by knowledge */
	uint64_t until_us; /* 0 in NONE */
};

struct lease_times {
	uint32_t lease_ms;
	uint32_t term_before_ms; /* kill_before_ms < term_before_ms < lease_ms */
	uint32_t kill_before_ms;
};

/* A grant arrived. sent_us: the own send time that it echoes. Returns true when it was taken (the
 * phase may be HELD or still ENDING then); false when its term is old, it echoes the future, or it
 * adds nothing. */
bool lease_holder_grant(struct lease_holder *h, const struct lease_times *t, uint64_t term,
			uint64_t sent_us, uint32_t duration_ms, uint64_t now_us);
/* Time passed: true when the phase changed. Phases are never skipped silently: after a long sleep
 * it may go from HELD to STOPPED in one call, and the caller kills at once. */
bool lease_holder_tick(struct lease_holder *h, const struct lease_times *t, uint64_t now_us);
/* When lease_holder_tick() must be called next; UINT64_MAX = not before a grant. */
uint64_t lease_holder_next_us(const struct lease_holder *h, const struct lease_times *t);
/* New at-most-one work may start. */
bool lease_holder_usable(const struct lease_holder *h);

struct lease_granter {
	uint64_t term;     /* of which this node is or was leader */
	uint64_t until_us; /* quorum holds until then; 0 = not leader */
};

/* What was granted to one node. */
struct lease_grant {
	uint64_t end_us;  /* has surely ended then; 0 = never granted */
	uint64_t sent_us; /* the holder's send time that the newest grant echoes; its clock */
	bool stopped;     /* nothing more is granted */
};

/* The brain says that it leads. False when the term is older than one it named before. */
bool lease_granter_lead(struct lease_granter *g, uint64_t term, uint64_t quorum_until_us);
bool lease_granter_active(const struct lease_granter *g, uint64_t now_us);
/* A heartbeat that the node sent at sent_us (its clock) came at now_us. True when a grant of
 * `lease_ms` echoing sent_us may be sent; it is then on record. */
bool lease_granter_grant(const struct lease_granter *g, struct lease_grant *to, uint64_t sent_us,
			 uint32_t lease_ms, uint64_t now_us);
/* Nothing more to this node; returns when its lease has surely ended (0: never had one). */
uint64_t lease_granter_stop(struct lease_grant *to);
/* How long any grant can outlive the moment at which it was made, as the granter must reckon. */
uint64_t lease_wait_us(uint32_t lease_ms);
