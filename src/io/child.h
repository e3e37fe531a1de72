/* SPDX-License-Identifier: Apache-2.0 */
/* Start one program. The starter never waits: the child reports through `status_fd`, which reads
 * end-of-file after a successful exec and a struct child_report when something failed before. (So a
 * program on a hung file system hangs its own process and not the starter's heartbeats; and many
 * programs start side by side on all cores. A fork of a small process costs as little as vfork.) */
#pragma once
#include "base/err.h"

#include <sys/resource.h>
#include <sys/types.h>

enum {
	CHILD_LIMITS_MAX = 16,
	CHILD_KEEP_MAX = 64, /* descriptors from 3 on */
};

struct child_limit {
	int resource;
	struct rlimit value;
};

/* All pointers borrowed for the time of child_start(). */
struct child_spec {
	char *const *argv; /* NULL-terminated, at least one */
	char *const *env;  /* NULL-terminated, all of it */
	const char *exe;   /* path; NULL = argv[0], searched in PATH of `env` */
	int exe_fd;        /* program as descriptor, or -1 */
	const char *cwd;   /* NULL = / */
	int stdio[3];      /* become 0, 1, 2; -1 = /dev/null */
	const char
	    *out_path[3]; /* [1], [2]: opened by the child in cwd, as its user, when not NULL */
	bool out_append[3];
	bool err_to_out; /* 2 is a duplicate of 1 */
	bool terminal;   /* stdio[0] is a pty's slave: becomes the controlling terminal */
	const int *keep; /* become 3, 4, … */
	unsigned keep_count;
	bool set_user;
	uid_t uid;
	gid_t gid;
	const gid_t *groups;
	size_t group_count;
	const struct child_limit *limits;
	unsigned limit_count;
	const uint8_t *cpus; /* bit mask, NULL = all */
	size_t cpus_len;
	int nice;
	int oom_score; /* oom_score_adj of the child */
	mode_t umask;
	int death_signal;    /* when the starter dies; 0 = none */
	int cgroup_fd;       /* v2 group to be born in, or -1 */
	const int *join_fds; /* files that the child writes "0" to */
	unsigned join_count;
	bool no_session; /* stay in the starter's session and group (the brain) */
};

struct child {
	pid_t pid;
	int pidfd;     /* close-on-exec */
	int status_fd; /* close-on-exec, non-blocking */
};

enum child_stage {
	CHILD_GROUP,
	CHILD_SESSION,
	CHILD_TERMINAL,
	CHILD_LIMIT,
	CHILD_CPUS,
	CHILD_NICE,
	CHILD_USER,
	CHILD_CWD,
	CHILD_OUTPUT,
	CHILD_FDS,
	CHILD_EXEC,
	CHILD_STAGE_COUNT
};

struct child_report {
	uint32_t stage;
	int32_t code;      /* negative errno */
	uint32_t resource; /* CHILD_LIMIT */
	char path[256];    /* what could not be found, opened or run */
	char detail[128];  /* CHILD_EXEC: "built for aarch64", missing interpreter… */
};

/* On success the caller owns the descriptors of *ret and reaps the pid. Errors: -EAGAIN, -ENOMEM,
 * -EINVAL (a limit of this header), -EMFILE. */
int child_start(const struct child_spec *spec, struct child *ret, struct err *err);
/* Read the report when status_fd is readable: 1 the program runs, 0 not known yet, < 0 it does not
 * and err says why, with object, cause and remedy. */
int child_result(int status_fd, struct err *err);
