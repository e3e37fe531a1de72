/* SPDX-License-Identifier: Apache-2.0 */
/* The mount trees of hub and nodes. Both start as copies of the machine's, receive its later
 * mounts, and give nothing back.
 *
 * A node has its own /proc, /sys (of its network), /dev/shm, /dev/mqueue, /tmp, /run,
 * /var/lib/copia, /etc/hosts and /etc/hostname; the rest is the machine's. */
#pragma once
#include "group.h"

/* In the hub's new mount namespace: cut it off, and make room for mount points that the machine
 * does not have (/var/lib/copia, /etc/hosts), so that nothing has to be made on the machine. */
int mounts_hub(struct err *err);
/* In the new mount, pid, network and cgroup namespaces of node `i`. The state folder is out of
 * sight afterwards. */
int mounts_node(const struct lab *lab, unsigned i, const struct groups *g, struct err *err);
