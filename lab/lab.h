/* SPDX-License-Identifier: Apache-2.0 */
/* A virtual cluster on one machine: nodes n1…nN, each with its own network, mount, pid, uts, ipc
 * and cgroup namespaces, joined by a bridge that lives in a "hub".
 *
 *   command ──(setns, netlink)──► hub: pid 1 of the lab's pid namespace, owner of the bridge
 *                                  ├── n1: pid 1 of its own pid namespace ── copiad, programs
 *                                  └── n2 …
 *
 * Invariants
 *   - Every process of a lab is inside the hub's pid namespace, so the death of this one process,
 *     however it comes, ends all of them, and with them all namespaces, links and mounts. What
 *     remains is the state folder and the control groups, whose names follow from its path.
 *   - A process is written down (pid, start time, boot) before it may do anything; it ends by
 *     itself when the command that made it dies before that.
 *   - There is no lab daemon: each command reads the folder, enters the hub, acts and goes.
 *   - One command at a time changes a lab (flock on `lock` in the folder); exec and status only
 *     read. */
#pragma once
#include "base/err.h"

#include <sys/types.h>

enum {
	LAB_NODES_MAX = 64, /* one bit each in a uint64_t */
	LAB_NODES_DEFAULT = 4,
	LAB_NAME_MAX = 32,
	LAB_SHARES_MAX = 16,
};

enum { LAB_OK = 0, LAB_FAILED = 1, LAB_USAGE = 2 }; /* exit codes */

/* One process, told apart from a later one with the same number. */
struct proc {
	pid_t pid; /* 0: none */
	uint64_t start_ticks;
};

struct lab {
	char name[LAB_NAME_MAX + 1];
	char *dir;    /* state folder, absolute and real; owned */
	int dir_fd;   /* -1: the lab does not exist */
	int lock_fd;  /* -1: not locked by us */
	unsigned net; /* 1…254: third byte of the addresses, follows from the name */
	char group[LAB_NAME_MAX + 32]; /* name of its control groups, follows from dir */

	/* from the folder */
	unsigned count;                      /* nodes n1…n(count) */
	bool bare;                           /* nodes without copiad */
	char *shares[LAB_SHARES_MAX + 1];    /* folders that stay visible in the nodes; owned */
	struct proc hub;                     /* pid 0: not running */
	struct proc node[LAB_NODES_MAX + 1]; /* [1…count]; pid 0: off */
};

/* What the command line asked for. */
struct lab_request {
	const char *lab; /* NULL: default */
	bool json, bare, one_way, verbose;
	const char *shares[LAB_SHARES_MAX + 1];
	unsigned share_count;
	char **args; /* words behind the verb, without options */
	int count;
};

/* The verb's main: argv[0] is the verb ("up", "exec", …). Returns the exit code; writes errors to
 * stderr. Not thread safe: enters namespaces of the calling process. */
int lab_main(int argc, char **argv);
