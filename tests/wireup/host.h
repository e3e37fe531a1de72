/* SPDX-License-Identifier: Apache-2.0 */
/* Pretended hosts for tests: each is a process that holds its own network, IPC, UTS and mount
 * namespaces (own /dev/shm), all in one network "10.77.0.0/24" by veth pairs and a bridge in
 * the first host. They end with the process that made them. */
#pragma once
#include "base/err.h"
#include <sys/types.h>

enum { HOSTS_MAX = 8 };

struct host {
	pid_t pid; /* 0: this very machine, nothing pretended */
	char name[16];
};

/* Make `count` hosts "h0", "h1"…; with `bridge` the first one's own interface is the bridge, as on
 * machines that hold virtual machines. Errors: -EPERM (no right to make namespaces), -ENOENT (no
 * ip). */
int hosts_make(struct host *hosts, unsigned count, bool bridge, struct err *err);
/* Also give each host an interface that leads nowhere, with the same address on every host. */
int hosts_mislead(struct host *hosts, unsigned count, struct err *err);
void hosts_end(struct host *hosts, unsigned count);
/* In a child before exec: become part of the host. Returns 0 or a negative errno. */
int host_enter(const struct host *host);
