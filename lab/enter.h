/* SPDX-License-Identifier: Apache-2.0 */
/* Running programs in a node. */
#pragma once
#include "group.h"

/* Run argv (NULL-terminated) in node `i` with the caller's terminal, descriptors, environment and
 * folder (as far as the node has it) and wait for it. Joins the node for good, so call it last or
 * in a child. Signals sent to this process go on to the program. Returns its exit code, 128 + n
 * when signal n ended it, 126 or 127 when it could not be started; < 0: the node cannot be
 * entered. */
int enter_run(const struct lab *lab, const struct groups *g, unsigned i, char *const argv[],
	      struct err *err);

struct enter_child {
	pid_t pid;
	int out_fd; /* its standard output and error */
};

/* The same in the background, with no input; collect with enter_finish(). */
int enter_start(const struct lab *lab, const struct groups *g, unsigned i, char *const argv[],
		struct enter_child *ret, struct err *err);
/* Wait for the end. 0: exit code 0, *ret_out (may be NULL, owned by the caller) is what it wrote,
 * at most 64 KiB. -EIO: another exit code, the message holds the end of what it wrote. */
int enter_finish(struct enter_child *child, char **ret_out, struct err *err);

/* 0 when the node runs and is not paused. */
int enter_check(const struct lab *lab, const struct groups *g, unsigned i, struct err *err);
