/* SPDX-License-Identifier: Apache-2.0 */
/* What /proc says of processes, and the end of those that nobody owns any more. */
#pragma once
#include "base/err.h"
#include "base/id.h"

#include <sys/types.h>

/* Marks in the environment of everything that Copia starts. */
#define PROC_TASK_MARK  "COPIA_TASK"       /* id of the task; "brain" for the brain itself */
#define PROC_STATE_MARK "COPIA_NODE_STATE" /* absolute path of the node's state folder */
#define PROC_NODE_MARK  "COPIA_NODE_MARK"  /* proc_node_mark() of it */

enum { PROC_MARK_SIZE = 64 };

/* The folder's identity beyond its path, which is the same on every node of a lab and in every
 * container: "DEVICE-INODE" in hexadecimal; "none" when there is no such folder. Returns `ret`. */
char *proc_node_mark(const char *state_dir, char ret[PROC_MARK_SIZE]);

/* Kill every process that carries the mark of this state folder, and every member of its task
 * cgroups, until none is left: after the shepherd died (the brain calls this on EOF of its link)
 * and before a new one starts work. The caller itself is spared; `spare` may name one more process
 * (0: none). Finds processes of its own user only, unless root.
 * Returns the number of processes killed. Errors: -ETIMEDOUT some would not die within 10 s (hung
 * in the kernel), named in err; -EACCES /proc cannot be read. */
int kill_leftovers(const char *state_dir, pid_t spare, struct err *err);

/* One pass over our own children: kill those that carry the mark of one of these (ended) tasks. The
 * caller is a subreaper, so orphans of its tasks are its children. Returns how many there were. */
int proc_kill_orphans(const char *state_dir, const struct id *tasks, size_t count);

/* Text after "NAME=" in /proc/PID/environ into buf; false when absent or not readable. */
bool proc_environ(pid_t pid, const char *name, char *buf, size_t size);

/* Replace what `ps` shows for this process. proc_title_init() comes once, early, with main's argv,
 * whose texts it moves to safety; threads must not run yet. */
void proc_title_init(int argc, char **argv);
void proc_title(const char *title);
