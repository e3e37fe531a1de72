/* SPDX-License-Identifier: Apache-2.0 */
/* Where Copia's programs are: next to the running one, in the build tree it came from, then where
 * they were installed. */
#pragma once
#include "lab.h"

/* Absolute path of the program `name`; the caller owns *ret. -ENOENT names the places. */
int program_find(const char *name, char **ret, struct err *err);
/* Folders that must stay visible in nodes for the programs to work: that of the running one, or
 * the whole tree around it: build tree or installed tree. Owned by the caller; NULL when it cannot
 * be told. */
char *program_root(void);
/* PATH with the folder of the running program in front, if it is not in it. Owned by the caller. */
char *program_search_path(void);
