/* SPDX-License-Identifier: Apache-2.0 */
/* A task: one program that we started, and everything that belongs to it.
 *
 *   STARTING --exec--> RUNNING --exit--> ENDED --Release--> (gone)
 *       |                 '-- TERM … KILL --^
 *       '--exec failed--> FAILED --reaped--> (gone)
 *
 * ENDED tasks are kept until the brain releases them, with their exit and what is left in their
 * pipes. A FAILED one was reported by Spawned and is unknown to the brain. */
#pragma once
#include "shepherd/shepherd.h"

enum task_state { TASK_STARTING, TASK_RUNNING, TASK_ENDED, TASK_FAILED };

struct task_exit {
	int status, signal;
	bool core, out_of_memory;
	uint64_t ended_us, user_us, system_us, max_rss_bytes;
	uint64_t major_faults, read_blocks, written_blocks;
};

/* Our ends of the task's pipes; -1 = none. */
struct task_streams {
	int in; /* write end of the task's stdin */
	int staging_read, staging_write;
	int out[2]; /* read ends of stdout and stderr */
	int terminal;
	uint64_t pumped, pump_upto; /* bytes since the start */
	bool closing, closed;       /* of stdin */
	uint64_t consumed[2];
	struct watch in_watch; /* while the task's stdin is full */
};

struct task {
	struct task *next; /* in its bucket */
	struct id id, job;
	enum task_state state;
	pid_t pid;
	int pidfd;
	bool want_pidfd, lease, keep_children;
	enum cgroup_kind isolation;
	bool cleanup; /* processes or groups of it may be left */
	unsigned cleanup_rounds;
	uint64_t started_us;
	uint64_t kill_at_us; /* end of a grace; 0 = none */
	uint64_t call;       /* to be answered by Spawned */
	const char *why;     /* of a fixed set of texts: what ended it; "" = itself */
	char *note;          /* told with Spawned: a limit that cannot be enforced; or NULL */
	struct watch status_watch;
	struct task_streams io;
	struct task_exit exit;
};

/* task.c */
void tasks_init(struct shepherd *s);
struct task *task_find(struct shepherd *s, const struct id *id);
struct task *task_by_pid(struct shepherd *s, pid_t pid);
struct task *task_add(struct shepherd *s, const struct id *id);
/* Closes everything; the process is no concern any more. Freed by tasks_reap(). */
void task_drop(struct shepherd *s, struct task *t);
/* Calls `each` for every task; it may drop the one that it is given. */
void tasks_each(struct shepherd *s, void (*each)(struct shepherd *s, struct task *t, void *ctx),
		void *ctx);
bool task_is_live(const struct task *t);
/* The canonical one of the texts that `why` may be. */
const char *task_why(const char *text);
void task_signal(struct shepherd *s, struct task *t, int signal, bool only_leader);
/* TERM now, KILL after grace_ms. */
void task_terminate(struct shepherd *s, struct task *t, uint32_t grace_ms, const char *why);
void task_ended(struct shepherd *s, struct task *t, int status, const struct rusage *usage);
void tasks_tick(struct shepherd *s);
uint64_t tasks_next_us(const struct shepherd *s);
/* Tell the brain everything. */
void tasks_tell(struct shepherd *s);
void task_exit_message(const struct task *t, Copia__Shepherd__TaskExit *ret);
const char *task_isolation(const struct task *t);
unsigned task_fds(const struct task *t, Copia__Shepherd__Fds *ret, int fds[5]);

/* children.c: SIGCHLD. */
void children_ended(struct shepherd *s);

/* spawn.c */
void spawn_request(struct shepherd *s, uint64_t call, const Copia__Shepherd__Spawn *m,
		   const int *fds, unsigned fd_count);
/* Read what the starting child says; nothing when it says nothing yet. */
void spawn_status(struct shepherd *s, struct task *t);

/* pipes.c */
void streams_init(struct task_streams *io);
void streams_close(struct shepherd *s, struct task *t);
/* Make a pipe whose end `keep` (0 or 1) is ours and non-blocking. Grown where the machine lets us.
 */
int streams_pipe(struct shepherd *s, int keep, int *ret_ours, int *ret_theirs, bool grow);
int streams_consume(struct shepherd *s, struct task *t, int which, uint64_t upto, bool *ret_ended,
		    struct err *err);
/* Move on with the task's stdin; tells the brain when something moved or it was asked. */
void streams_pump(struct shepherd *s, struct task *t, bool tell);
/* A new brain: what its forerunner staged and did not order to be moved never was. */
void streams_reset(struct shepherd *s, struct task *t);
