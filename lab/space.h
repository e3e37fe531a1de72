/* SPDX-License-Identifier: Apache-2.0 */
/* Making, entering and ending hub and nodes: everything that clones and calls setns. */
#pragma once
#include "group.h"

/* What the nodes run. */
struct space_programs {
	char *init;   /* copia-labinit; owned */
	char *copiad; /* NULL: bare */
};

/* Make the hub, with an ordinary user in a user namespace. Writes it down; sets lab->hub. */
int space_start_hub(struct lab *lab, const struct space_programs *programs, struct err *err);
/* Make the nodes in `bits` (bit i - 1: node i), which must be off. Writes them down; sets
 * lab->node[]. Those that could be made stay when another one fails. */
int space_start_nodes(struct lab *lab, uint64_t bits, const struct space_programs *programs,
		      const struct groups *g, struct err *err);

/* The calling process (single-threaded) joins hub or node. The pid namespace holds for its
 * children. There is no way back. */
int space_enter_hub(const struct lab *lab, struct err *err);
int space_enter_node(const struct lab *lab, unsigned i, struct err *err);
/* Run `work` in a child that has joined the hub; brings its result and message back. */
int space_in_hub(const struct lab *lab, int (*work)(const struct lab *lab, void *arg, struct err *),
		 void *arg, struct err *err);

/* SIGKILL and wait until the process, and with it its pid namespace, is gone. */
int space_kill(const struct proc *proc, const char *what, struct err *err);
/* Send a signal, but never to another process of the same number. -ESRCH: it is gone. */
int space_signal(const struct proc *proc, int number);
