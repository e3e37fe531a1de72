/* SPDX-License-Identifier: Apache-2.0 */
/* Makes one cluster of the lab's nodes: init on n1, a token and join for each other one. A node
 * that was admitted has the file `joined` in its part of the state folder. */
#pragma once
#include "group.h"

/* Waits until the daemons in `bits` answer and the nodes are members. */
int cluster_make(struct lab *lab, uint64_t bits, const struct groups *g, const char *copia,
		 struct err *err);
