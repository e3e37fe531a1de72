/* SPDX-License-Identifier: Apache-2.0 */
/* The life of labs and nodes: up, start, kill, pause, resume, down. All but `verb_*` details of
 * the command line is in main.c. The lab is locked by the caller. */
#pragma once
#include "group.h"

/* Make or complete the lab: at least `count` nodes (0: as many as it has, or the default). */
int life_up(struct lab *lab, unsigned count, const struct lab_request *req, struct err *err);
/* Start the nodes in `bits`; those that run are left alone. */
int life_start(struct lab *lab, uint64_t bits, struct err *err);
/* Power loss: nothing leaves the node any more, then all in it is killed. */
int life_kill(struct lab *lab, uint64_t bits, struct err *err);
int life_pause(struct lab *lab, uint64_t bits, bool pause, struct err *err);
/* End everything and remove every trace. */
int life_down(struct lab *lab, struct err *err);
