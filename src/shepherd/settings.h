/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of copiad. */
#pragma once
#include "shepherd/shepherd.h"

/* What only the daemon itself says to its next version. */
struct options {
	int takeover_fd; /* -1 = a fresh start */
	bool refused;    /* the other program gave the word back */
};

/* Fill `ret` and make the folders. 0; or 1 + exit code when all was said (--help, --version,
 * --can-take). Errors: -EINVAL, and those of mkdir(2). */
int settings_read(struct settings *ret, int argc, char **argv, struct options *ret_options,
		  struct err *err);
