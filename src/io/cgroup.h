/* SPDX-License-Identifier: Apache-2.0 */
/* One cgroup per task, in whatever this machine offers: the v2 tree when writable (with or without
 * controllers; cgroup.kill ends a task's processes at once), else v1 freezer; v1 memory, cpu and
 * pids groups when limits are asked for. Nothing at all is a valid answer: `kind` says so.
 *
 * Groups lie below the group that the daemon was started in, in a folder named after the state
 * folder: NAME = "copia-" + 16 hex digits (of proc_node_mark()); tasks in NAME/ID. */
#pragma once
#include "base/err.h"
#include "base/id.h"

enum cgroup_kind { CGROUP_NONE, CGROUP_V1, CGROUP_V2 };
enum cgroup_tree {
	CGROUP_UNIFIED,
	CGROUP_FREEZER,
	CGROUP_MEMORY,
	CGROUP_CPU,
	CGROUP_PIDS,
	CGROUP_TREE_COUNT
};

struct cgroup_limits {
	uint64_t memory_bytes; /* 0 = none, in each */
	uint32_t cpu_weight;   /* 1…10000 */
	uint32_t pids;
};

/* Where the daemon may make groups. */
struct cgroups {
	enum cgroup_kind kind;
	int tree[CGROUP_TREE_COUNT]; /* our folder in each tree, O_PATH; -1 = cannot be used */
	char path[CGROUP_TREE_COUNT][512]; /* the same as text, for people */
	bool has_kill;                     /* cgroup.kill (Linux 5.14) */
	bool v2_memory, v2_cpu, v2_pids;   /* controllers that v2 groups of ours have */
	char detail[512];                  /* for `copia doctor`: what was found, why not better */
};

/* Find and make our folders, and note them in STATE/cgroups. Never fails: the worst case is kind
 * CGROUP_NONE. May move the calling process into a group next to the tasks' folder, for a v2 group
 * with processes of its own cannot hand controllers down. */
void cgroups_open(struct cgroups *g, const char *state_dir);
/* Only find what STATE/cgroups names, as left by an earlier cgroups_open(). */
void cgroups_find(struct cgroups *g, const char *state_dir);
void cgroups_close(struct cgroups *g);
/* Remove our folders where they are empty. */
void cgroups_remove(struct cgroups *g);

/* A task's groups while it is being started. */
struct cgroup {
	int fd[CGROUP_TREE_COUNT]; /* folder; -1 = none. [CGROUP_UNIFIED] for CLONE_INTO_CGROUP */
	int join_fd[CGROUP_TREE_COUNT]; /* v1: the child writes "0" here before exec; -1 = none */
};
/* Make the groups of a task. With limits that cannot be enforced: 1, groups made without them and
 * err says which. Errors: those of mkdir(2). */
int cgroup_make(struct cgroups *g, const struct id *task, const struct cgroup_limits *limits,
		struct cgroup *ret, struct err *err);
void cgroup_close(struct cgroup *c);

/* By task from here on, so that a successor needs no descriptors. */
/* Signal every process of the group. With SIGKILL it is atomic where the kernel can.
 * Returns the number of processes (1 when not counted), 0 when there are none. */
int cgroup_signal(struct cgroups *g, const struct id *task, int signal);
/* 0 removed (or never there), -EBUSY processes are still inside: try again later. */
int cgroup_remove(struct cgroups *g, const struct id *task);
/* True when the kernel killed one of its processes for memory. */
bool cgroup_out_of_memory(struct cgroups *g, const struct id *task);
/* Kill and remove every task group below our folders, whoever made it. Returns processes killed. */
int cgroups_kill_all(struct cgroups *g);
