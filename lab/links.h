/* SPDX-License-Identifier: Apache-2.0 */
/* Links and addresses of the network namespace that the caller is in, by rtnetlink. */
#pragma once
#include "base/err.h"

#include <sys/types.h>

struct links; /* one netlink socket */

int links_open(struct links **ret, struct err *err);
struct links *links_free(struct links *l);

/* A bridge without spanning tree and multicast snooping, up. */
int links_add_bridge(struct links *l, const char *name, struct err *err);
/* A pair: `port` here, up and in the bridge; `peer` with hardware address `mac` in the network
 * namespace of `pid` (as seen from the caller's pid namespace). */
int links_add_port(struct links *l, const char *port, const char *bridge, const char *peer,
		   const uint8_t mac[6], pid_t pid, struct err *err);
int links_set(struct links *l, const char *name, bool up, struct err *err);
/* `text` is an IPv4 or IPv6 address; usable at once (no duplicate detection). */
int links_add_addr(struct links *l, const char *name, const char *text, unsigned prefix,
		   struct err *err);
/* 0 also when there is no such link. */
int links_remove(struct links *l, const char *name, struct err *err);
