/* SPDX-License-Identifier: Apache-2.0 */
/* Folders: made with their parents, removed with their content. */
#pragma once
#include "base/err.h"

#include <sys/types.h>

/* mkdir -p; parents that are missing get mode 0755. */
int tree_make(const char *path, mode_t mode, struct err *err);
/* Remove all in the folder but the entry `keep` (may be NULL). Follows no symbolic link and
 * enters no other file system. */
int tree_empty(int dir_fd, const char *keep, struct err *err);
/* Remove folders only, deepest first, as control groups want it; what cannot be removed stays.
 * 0: all gone (or nothing was there), -EBUSY: something is left. */
int tree_rmdirs(const char *path);
