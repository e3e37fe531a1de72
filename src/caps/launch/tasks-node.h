/* SPDX-License-Identifier: Apache-2.0 */
/* The tasks of this node as rows of `copia ps`, with what /proc says of their processes. */
#pragma once
#include "caps/launch/launch-impl-node.h"

struct tasks {
	Copia__PsRow **rows; /* owned */
	size_t count;
};

void tasks_read(struct launch *l, struct tasks *ret);
void tasks_free(struct tasks *t); /* also for _cleanup_(tasks_free) */
/* By job, then rank. */
void tasks_sort(Copia__PsReply *r);
