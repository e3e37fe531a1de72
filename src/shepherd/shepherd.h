/* SPDX-License-Identifier: Apache-2.0 */
/* What the parts of the shepherd share. One thread, one loop, one instance per process.
 *
 *            signals   brain's link   UDP        pipes, exec reports
 *                 \        |          /           /
 *                  +---- loop (epoll, timers) ---+
 *                 /        |          \           \
 *             tasks      brain     heartbeats   leases ---TERM, KILL---> tasks
 *
 * The shepherd never blocks: not on a file system that a task uses, not on a brain that hangs. What
 * it must remember for the next brain or the next version of itself is in `struct shepherd` and
 * nowhere else. Clock: CLOCK_BOOTTIME in microseconds, for a lease runs on while a machine sleeps.
 */
#pragma once
#include "base/err.h"
#include "base/id.h"
#include "base/str.h"
#include "io/cgroup.h"
#include "io/fdpass.h"

#include "schema/shepherd.pb-c.h"

#include <limits.h>
#include <sys/epoll.h>
#include <sys/resource.h>

enum {
	PROTOCOL = 1,
	TASKS_MAX = 4096, /* of one node */
	FACTS_MAX = 16,
	DEFAULT_PORT = 26742,
	BRAIN_QUEUE_MAX = 1 << 20, /* bytes waiting for the brain: its requests wait then, too */
};

struct beats;
struct leases;
struct shepherd;
struct task;

/* Something that can become ready. Urgent ones are served first in each round. */
struct watch {
	int fd; /* -1 = not watched */
	uint32_t events;
	bool urgent;
	void (*ready)(struct shepherd *s, struct watch *w, uint32_t events);
};

struct settings {
	char
	    state_dir[PATH_MAX]; /* absolute, without symbolic links: it is the mark of our tasks */
	char run_dir[PATH_MAX];
	char brain_path[PATH_MAX];
	char own_path[PATH_MAX]; /* of this program, as it was started */
	char name[256];
	char bind[64]; /* heartbeats only from and to this address; "" = all */
	char log_level[16];
	uint16_t port;
	int argc; /* as given, for the next version */
	char **argv;
};

struct fact {
	const char *name;
	bool ok;
	char detail[512];
	const char *loss, *remedy;
};

/* The child that decides. */
struct brain {
	pid_t pid; /* 0 = does not run */
	struct fdlink *link;
	struct watch link_watch;
	uint32_t starts;
	char end[512]; /* how the last one ended */
	uint64_t started_us, heard_us;
	uint64_t start_at_us; /* next start; 0 = none planned */
	uint32_t failures;    /* in a row: the back-off */
	uint32_t watchdog_ms;
	bool ready;
	bool more;     /* requests were left in the link's buffer */
	int status_fd; /* says whether it could be started; -1 = known */
};

/* End of service and change of program. */
enum passage { PASSAGE_NONE, PASSAGE_STOP, PASSAGE_UPGRADE };

struct shepherd {
	struct settings set;
	int epoll_fd, null_fd, lock_fd;
	struct watch signals;
	uint64_t now_us; /* of this round */
	uint64_t started_us, incarnation;
	bool upgraded;
	char node_mark[64];       /* proc_node_mark() of the state folder */
	struct str packed;        /* reused for every event */
	struct rlimit own_nofile; /* as we found it: children get it back */

	struct brain brain;
	struct cgroups cgroups;
	struct task **tasks;  /* buckets by id */
	struct task *dropped; /* in this round; events of it may be left */
	unsigned task_count, starting_count, tasks_max, grown_pipes;
	bool cleanup_due; /* something of an ended task may be left */
	uint64_t cleanup_at_us;
	uint64_t kill_next_us; /* earliest end of a grace; UINT64_MAX = none */

	struct beats *beats;
	struct leases *leases;

	enum passage passage;
	uint64_t passage_deadline_us;
	bool quit; /* leave the loop */
	int quit_code;
	uint64_t upgrade_call;
	pid_t upgrade_probe; /* asks the next program whether it can take over */
	int upgrade_status_fd;
	char upgrade_path[PATH_MAX];

	char notify_path[108]; /* NOTIFY_SOCKET */
	uint64_t notify_period_us, notify_at_us;

	struct fact facts[FACTS_MAX];
	unsigned fact_count;
};

uint64_t clock_us(void);

/* loop.c */
int watch_add(struct shepherd *s, struct watch *w, int fd, uint32_t events);
void watch_change(struct shepherd *s, struct watch *w, uint32_t events);
void watch_drop(struct shepherd *s, struct watch *w); /* does not close */
/* Runs until s->quit. */
void loop_run(struct shepherd *s);

/* End of a round: free what was dropped in it (task.c). */
void tasks_reap(struct shepherd *s);

/* facts.c: what this machine lets us do. */
void fact_add(struct shepherd *s, const char *name, bool ok, const char *loss, const char *remedy,
	      const char *detail_fmt, ...) _printf_(6, 7);
void facts_gather(struct shepherd *s);

/* notify.c: systemd's protocol, by hand. */
void notify_init(struct shepherd *s);
void notify_send(struct shepherd *s, const char *fmt, ...) _printf_(2, 3);
void notify_tick(struct shepherd *s);

/* brain.c */
/* < 0 only when the first brain cannot be started at all. */
int brain_start(struct shepherd *s, struct err *err);
void brain_tick(struct shepherd *s);
uint64_t brain_next_us(const struct shepherd *s);
void brain_ended(struct shepherd *s, int status);
void brain_kill(struct shepherd *s, const char *why);
/* Interest in the link after a round: what waits to be sent, whether requests may come. */
void brain_interest(struct shepherd *s);
bool brain_is_there(const struct shepherd *s);
/* Send; without a brain it is dropped, for the next one is told the state. */
void event_send(struct shepherd *s, Copia__Shepherd__Event *e, const int *fds, unsigned fd_count);
void done_send(struct shepherd *s, uint64_t call, const struct id *task, int code,
	       const char *error, uint32_t count);

/* request.c */
void request_handle(struct shepherd *s, const Copia__Shepherd__Request *r, const int *fds,
		    unsigned fd_count);

/* passage.c */
void stop_begin(struct shepherd *s, uint32_t grace_ms);
void upgrade_begin(struct shepherd *s, uint64_t call, const char *path);
void upgrade_probed(struct shepherd *s, int status);
void passage_tick(struct shepherd *s);
uint64_t passage_next_us(const struct shepherd *s);

/* handover.c */
#ifndef COPIA_HANDOVER_VERSION
#define COPIA_HANDOVER_VERSION 1 /* tests build a daemon with another one */
#endif
enum { HANDOVER_VERSION = COPIA_HANDOVER_VERSION };
/* Become the other program; returns only on failure. */
int handover_exec(struct shepherd *s, const char *path, struct err *err);
/* Take over what descriptor `fd` holds. Errors: -EPROTO unknown version; *ret_old_fd is then the
 * program to go back to, or -1. */
int handover_take(struct shepherd *s, int fd, int *ret_old_fd, struct err *err);

/* Protobuf's view of an id; borrowed. */
static inline ProtobufCBinaryData id_view(const struct id *id)
{
	return (ProtobufCBinaryData){ ID_SIZE, (uint8_t *)id->at };
}
