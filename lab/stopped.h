/* SPDX-License-Identifier: Apache-2.0 */
/* Processes of a node, found through /proc: to stop them where there is no freezer, and to wake
 * a stopped "copia lab exec" whose dead child would otherwise hold up the end of the node. */
#pragma once
#include "lab.h"

/* SIGSTOP / SIGCONT to all processes in the pid namespace of `init` and in those below; stopping
 * goes on until a look finds none that runs. */
int stopped_set(const struct proc *init, bool stop, struct err *err);
bool stopped_is(const struct proc *init);
/* SIGCONT to stopped processes of this program that are parents of a dead process. */
void stopped_continue(void);
