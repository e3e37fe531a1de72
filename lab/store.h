/* SPDX-License-Identifier: Apache-2.0 */
/* The state folder of one lab, and the lock on it.
 *
 *   lock            flock()ed by the command that changes the lab; holds its pid
 *   config          nodes, bare, shares
 *   hub             pid, start time, boot of the lab's first process
 *   hosts           /etc/hosts of all nodes (one inode, only grows)
 *   faults          cuts and losses
 *   nodes/nI/pid    as hub; lib/ is the node's /var/lib/copia; log, daemon, hostname, joined
 *
 * Folders: root /var/lib/copia-lab/NAME, others $XDG_STATE_HOME/copia-lab/NAME or
 * ~/.local/state/copia-lab/NAME; $COPIA_LAB_DIR/NAME if set. */
#pragma once
#include "base/str.h"
#include "lab.h"

/* Find the lab `name` and read its folder. A lab that does not exist is no error (dir_fd < 0).
 * The caller ends with store_close(). Errors: bad name, unreadable or damaged folder. */
int store_open(struct lab *lab, const char *name, struct err *err);
/* Take the lock; with `create` the folder is made first. Afterwards the folder was read anew.
 * Errors: -EBUSY (another command changes the lab), -ENOENT. */
int store_lock(struct lab *lab, bool create, struct err *err);
void store_close(struct lab *lab);
/* Write lab->count, bare and shares. */
int store_save(struct lab *lab, struct err *err);
/* Remove the folder with everything in it; the lab must be locked and off. */
int store_remove(struct lab *lab, struct err *err);

/* Write down who runs; `path` is "hub" or "nodes/nI/pid". */
int store_put_proc(struct lab *lab, const char *path, const struct proc *proc, struct err *err);
/* Replace a small file in one step. */
int store_put(struct lab *lab, const char *path, const char *text, struct err *err);
/* Read a file of at most 64 KiB; a missing one is empty. */
int store_get(struct lab *lab, const char *path, struct str *ret, struct err *err);
/* The folders and files of node `i`, made if missing. */
int store_make_node(struct lab *lab, unsigned i, struct err *err);
/* Absolute path inside the folder; returns `buf`. */
char *store_path(const struct lab *lab, const char *rest, char buf[4096]);

/* Start time of a live process, in clock ticks since boot; 0 when there is none (or a zombie). */
uint64_t proc_start_ticks(pid_t pid, char *ret_state);
bool proc_alive(const struct proc *proc);
