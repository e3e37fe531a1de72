/* SPDX-License-Identifier: Apache-2.0 */
/* Control groups of a lab: in each hierarchy of the machine, v2 or v1, where this user may make
 * one, a group for the lab and in it one per node. A node sees its own group as the root (cgroup
 * namespace); in v2 its processes start in the leaf "init" of it, so that the node may hand
 * controllers down. Where there is none, nodes work without, and are paused by signals.
 *
 * The file `groups` in the state folder names the groups before they are made. */
#pragma once
#include "lab.h"

enum { GROUP_MAX = 24, GROUP_TEXT = 512 };

struct group {
	bool v2;
	char options[64];       /* of the mount, v1: "cpu,cpuacct", "name=systemd" */
	char mount[GROUP_TEXT]; /* where the hierarchy is mounted on the machine */
	char path[GROUP_TEXT];  /* the lab's group, below mount */
};

struct groups {
	struct group at[GROUP_MAX];
	unsigned count;
};

/* Find where groups can be made, write that down, make the lab's. */
int groups_make(struct lab *lab, struct groups *ret, struct err *err);
int groups_load(struct lab *lab, struct groups *ret, struct err *err);

/* Put the calling process into groups of node `i`, new ones, and into a cgroup namespace whose
 * root they are. Hierarchies in which that fails are taken from `g`. */
void groups_enter_new(struct groups *g, unsigned i);
/* For a process that will join the running node `i`: open what groups_join() needs, because after
 * setns() the paths are others. ret_fds[GROUP_MAX], -1 behind the last. */
void groups_open(const struct groups *g, unsigned i, int ret_fds[GROUP_MAX + 1]);
void groups_join(const int fds[GROUP_MAX + 1]);

/* Stop or continue all processes of the node; returns when it is so. 1: no freezer here. */
int groups_freeze(const struct groups *g, unsigned i, bool freeze, struct err *err);
/* 1 frozen, 0 not, -1 no freezer here. */
int groups_frozen(const struct groups *g, unsigned i);

/* The groups of a node or of the whole lab, after their processes have ended. */
int groups_remove_node(const struct groups *g, unsigned i, struct err *err);
int groups_remove(const struct groups *g, struct err *err);
