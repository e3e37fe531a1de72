/* SPDX-License-Identifier: Apache-2.0 */
/* The process of one node of cluster.h. */
#pragma once
#include "cluster.h"

/* Serve `fd` until it is closed; never returns. */
_Noreturn void node_run(const struct cluster *c, unsigned number, bool first, int fd);
