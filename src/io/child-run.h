/* SPDX-License-Identifier: Apache-2.0 */
/* The child between clone and exec: only async-signal-safe calls, nothing is allocated. */
#pragma once
#include "io/child.h"

struct child_run {
	const struct child_spec *spec;
	int status_fd;
	pid_t parent;
	bool join_late; /* not born in spec->cgroup_fd: go there */
};

/* Ends in the program or, after a report, in _exit(127). */
_Noreturn void child_run(struct child_run *run);

/* Why exec of `path` (or of `fd`, when not negative) failed with `code`, as far as the file itself
 * tells; leaves `ret` empty when it does not. */
void child_explain(const char *path, int fd, int code, char *ret, size_t size);
