/* SPDX-License-Identifier: Apache-2.0 */
/* Three members of etcd on loopback, and a client for their HTTP gateway: the peer of bench/commit.
 */
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct etcd;

struct etcd_figures {
	uint64_t count, total_us, p50, p90, p99, max;
};

/* In a folder made below the present one. NULL when etcd is not installed. */
struct etcd *etcd_start(void);
void etcd_stop(struct etcd *e); /* takes NULL */
/* Put `count` values of `body` bytes over `outstanding` kept connections to one member. */
void etcd_load(struct etcd *e, unsigned count, unsigned outstanding, unsigned body,
	       struct etcd_figures *ret);
/* SIGKILL the leader; microseconds until a put at another member succeeds. Starts it again. */
uint64_t etcd_kill_leader(struct etcd *e);
