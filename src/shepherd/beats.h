/* SPDX-License-Identifier: Apache-2.0 */
/* Heartbeats over UDP: sent to each peer on every path each interval, judged by cluster/liveness.
 */
#pragma once
#include "shepherd/shepherd.h"

struct lease_granter;
struct lease_times;

int beats_open(struct shepherd *s, int udp4_fd, int udp6_fd, struct err *err);
void beats_close(struct shepherd *s);
/* A new table. Errors: -EINVAL, -E2BIG; the former table then stays. */
int beats_configure(struct shepherd *s, const Copia__Shepherd__Heartbeats *m, struct err *err);
void beats_tick(struct shepherd *s);
uint64_t beats_next_us(const struct shepherd *s);
/* To a new brain, and on demand. */
void beats_report(struct shepherd *s);
/* Errors: -ENOENT. */
int beats_grant_stop(struct shepherd *s, uint32_t number, uint64_t *ret_end_us, struct err *err);
/* For the next program; freed with Handover. */
void beats_handover(struct shepherd *s, Copia__Shepherd__Handover *h);
int beats_takeover(struct shepherd *s, const Copia__Shepherd__Handover *h, struct err *err);

/* leases.c */
void leases_init(struct shepherd *s);
/* 0 in each = the profile's. Errors: -EINVAL when they do not fit together. */
int leases_configure(struct shepherd *s, const struct lease_times *t, struct err *err);
const struct lease_times *leases_times(const struct shepherd *s);
struct lease_granter *leases_granter(struct shepherd *s);
void leases_granted(struct shepherd *s, uint64_t term, uint64_t sent_us, uint32_t duration_ms);
bool leases_usable(struct shepherd *s);
void leases_tick(struct shepherd *s);
uint64_t leases_next_us(const struct shepherd *s);
void leases_message(const struct shepherd *s, Copia__Shepherd__LeaseState *ret);
void leases_takeover(struct shepherd *s, const Copia__Shepherd__LeaseState *m,
		     uint64_t granter_term);
