/* SPDX-License-Identifier: Apache-2.0 */
/* Inside of the acting half: the part's own structures and what its files call of each other. */
#pragma once
#include "base/id.h"
#include "base/str.h"
#include "caps/launch/job.h"
#include "caps/launch/launch-node.h"
#include "io/streams.h"
#include "node/control.h"
#include "node/node.h"

#include <schema/launch.pb-c.h>
#include <uthash.h>

enum {
	LAUNCH_CHUNK = 64 * 1024,          /* output bytes of one message */
	LAUNCH_CREDIT = 4 * 1024 * 1024,   /* output of a job under way, shared by its sites… */
	LAUNCH_CREDIT_LEAST = 64 * 1024,   /* …but at least this for each */
	LAUNCH_INPUT_WINDOW = 1024 * 1024, /* stdin bytes that the command may be ahead */
	LAUNCH_ORPHAN_MS = 30 * 1000,      /* a site waits so long for its origin to come back */
	LAUNCH_AGAIN_MS = 1000,            /* an origin asks silent sites again */
	LAUNCH_ENDED_MAX = 1024,           /* ids of jobs that ended, kept against late messages */
	LAUNCH_JOBS_MAX = 4096,
	LAUNCH_EXIT_DRAIN_MS = 2000, /* after all ranks ended, output may take so long */
};

typedef Copia__LaunchMessage launch_message;

struct local_message {
	struct local_message *next;
	size_t len;
	uint8_t at[];
};

/* Messages that the queue of a session had no room for. */
struct overflow {
	uint32_t node;
	struct local_message *head, **tail;
	UT_hash_handle hh;
};

struct launch {
	struct node *node;
	struct origin_job *jobs;
	struct site_job *sites;
	struct stager *stager;
	struct wire *wire;
	struct prober *prober;
	struct asker *asker;
	struct overflow *overflows;
	struct local_message *local_head, **local_tail;
	uv_idle_t local_turn;
	uv_timer_t timer, later;
	uv_poll_t watch_poll;
	struct stream_watch watch;
	struct stream_scratch scratch;
	uint32_t next_name;
	int name_fd;
	struct id ended[LAUNCH_ENDED_MAX];
	size_t ended_at;
	bool verbs_registered;
	uint8_t chunk[LAUNCH_CHUNK];
};

/* Take over a descriptor. */
static inline int take_fd(int *fd)
{
	int taken = *fd;
	*fd = -1;
	return taken;
}

/* ---------------------------------------------------------------- launch-node.c */

uint64_t launch_now_ms(const struct launch *l);
uint32_t launch_self(const struct launch *l);
/* Name of a node for people. */
const char *launch_name(const struct launch *l, uint32_t number);
/* Send to a brain, also the own one (then it arrives in a later turn of the loop). What a broken
 * session loses is made good by the origin's LaunchStart with `again`. */
void launch_send(struct launch *l, uint32_t to, const struct id *job, launch_message *m);
void launch_init_message(launch_message *m, Copia__LaunchMessage__BodyCase what);
/* To many nodes, down the tree when there are more than SPLIT_DIRECT_MAX. */
void launch_send_all(struct launch *l, const uint32_t *nodes, size_t count, const struct id *job,
		     launch_message *m);
/* The timer fires at `at_ms` at the latest. */
void launch_wake_at(struct launch *l, uint64_t at_ms);
struct prepare;
/* A number for a job's short name: unique on this node while it is remembered. */
uint32_t launch_next_name(struct launch *l);
void launch_note_ended(struct launch *l, const struct id *job);
bool launch_has_ended(const struct launch *l, const struct id *job);
/* Task id: the first 12 bytes of the job's, then the rank. */
struct id launch_task_id(const struct id *job, uint32_t rank);
uint32_t launch_task_rank(const struct id *task);
/* A copy of any message, made by packing; free with protobuf_c_message_free_unpacked(). */
void *launch_copy(const void *message);

/* ---------------------------------------------------------------- origin-*.c */

int origin_run(struct node *n, struct call *c, const ProtobufCMessage *request, struct err *err);
/* Messages of sites. */
void origin_message(struct launch *l, uint32_t from, const struct id *id, const launch_message *m);
void origin_session(struct launch *l, uint32_t node, bool up);
void origin_node_down(struct launch *l, uint32_t node);
uint64_t origin_tick(struct launch *l, uint64_t now_ms);
/* A file's content is wanted from the command of this job. False: no such job or file. */
bool origin_file_want(struct launch *l, const struct id *job, const uint8_t hash[32],
		      uint64_t offset, uint64_t upto);
void origin_free_all(struct launch *l);

/* ---------------------------------------------------------------- site-*.c */

enum site_rank_state { RANK_NONE, RANK_SPAWNING, RANK_RUNNING, RANK_ENDED };

struct site_stream {
	struct stream_out s;
	struct site_rank *rank;
	uint32_t number; /* 1 stdout, 2 stderr */
	bool watched, waiting, end_sent;
	bool again;               /* send again from what was consumed, once Consume is answered */
	struct site_stream *next; /* while waiting: there may be more to read */
};

struct site_rank {
	struct site_job *job;
	struct id task;
	uint32_t rank;
	enum site_rank_state state;
	uint32_t pid;
	uint64_t started_us;
	struct site_stream out[2];
	struct stream_in in;
	bool reads;      /* gets standard input */
	bool in_closing; /* CloseStdin was sent */
	bool hung;       /* its end is the deadline's */
	char *why;       /* why we signalled it; owned */
	int why_signal;  /* and how, last */
	Copia__LaunchRankExit *exit;
	struct site_terminal *terminal;
	UT_hash_handle hh; /* by task */
};

struct site_job {
	struct launch *l;
	struct id id;
	Copia__LaunchStart *start;       /* owned */
	const Copia__LaunchPlace *place; /* ours, in start */
	struct site_rank *ranks;         /* place->count */
	uint32_t started, ended;
	Copia__LaunchPhase phase;
	Copia__LaunchSite *report; /* what the origin was told last; owned */
	char **exe;                /* of each program: path on this node; owned */
	bool *exe_staged;
	char *folder;            /* where the tasks start; owned */
	char *stage_folder;      /* the job's private folder, NULL while there is none; owned */
	char *record;            /* path; owned */
	struct prepare *prepare; /* under way */
	uint64_t inflight;       /* output bytes sent, not known to have arrived */
	struct site_stream *waiting_head, **waiting_tail;
	struct str input; /* bytes [input_base, input_base + input.len) */
	uint64_t input_base;
	bool input_ended;
	bool input_started;
	uint64_t given_told;
	uint64_t orphan_since_ms; /* 0: the origin is there */
	bool ending;              /* LaunchEnd came, or the origin is lost */
	bool relearned;           /* by a brain that was started after the job */
	struct site_wire *wire;
	struct site_look *look;   /* under way */
	struct path_check *check; /* under way */
	UT_hash_handle hh;
};

void site_start(struct launch *l, uint32_t from, const struct id *id, Copia__LaunchStart *start);
void site_message(struct launch *l, uint32_t from, const struct id *id, const launch_message *m);
bool site_event(struct launch *l, const Copia__Shepherd__Event *e, struct task_fds *fds);
void site_session(struct launch *l, uint32_t node, bool up);
void site_node_down(struct launch *l, uint32_t node);
uint64_t site_tick(struct launch *l, uint64_t now_ms);
void site_free_all(struct launch *l);
struct site_job *site_find(struct launch *l, const struct id *id);
struct site_rank *site_rank_find(struct site_job *j, uint32_t rank);
int site_read_records(struct launch *l, struct err *err);
/* End the job here: kill, release, forget. */
void site_end(struct site_job *j);
/* Nothing of it could be started. Takes the message of `err`. */
void site_fail(struct site_job *j, int code, const struct err *err);
void site_note(struct site_job *j, const char *fmt, ...) _printf_(2, 3);
/* The program, the folder and the files are there: spawn. */
void site_ready(struct site_job *j);
void site_spawn(struct site_job *j);
void site_report(struct site_job *j);
void site_send_exit(struct site_rank *r);
void site_record_write(struct site_job *j);
void site_record_remove(struct site_job *j);
/* Takes over `start` on success; NULL when the order makes no sense. */
struct site_job *site_new(struct launch *l, const struct id *id, Copia__LaunchStart *start,
			  uint32_t self);
struct site_job *site_free(struct site_job *j);
void site_signal(struct site_job *j, const Copia__LaunchSignal *s);

/* site-io-node.c: bytes of the ranks. */
void site_io_open(struct site_rank *r, struct task_fds *fds, uint64_t out, uint64_t err,
		  uint64_t pumped, bool closed);
void site_io_close(struct site_rank *r);
void site_io_news(struct launch *l);
void site_io_pump(struct site_job *j);
void site_io_taken(struct site_job *j, const Copia__LaunchOffsets *o);
void site_io_consumed(struct site_rank *r, const Copia__Shepherd__Consumed *e);
void site_io_pumped(struct site_rank *r, const Copia__Shepherd__Pumped *e);
void site_io_input(struct site_job *j, const Copia__LaunchInput *in);
void site_io_again(struct site_job *j);
void site_io_wait(struct site_stream *st);
void site_io_later(struct site_job *j);
void site_io_feed(struct site_rank *r);
void site_io_given(struct site_job *j);
void site_io_send(struct site_stream *st, uint64_t offset, const uint8_t *at, size_t len,
		  bool ended);
void stream_rewind(struct site_stream *st);

/* site-look-node.c: where do ranks spend their time that are not in MPI_Finalize? */
void site_look_begin(struct site_job *j);
uint64_t site_look_tick(struct launch *l, uint64_t now_ms);
void site_look_free(struct site_job *j);

/* site-tty-node.c: a rank with a terminal. Its bytes are not kept: what was read from it and is
 * under way is lost when the brain dies. */
void tty_open(struct site_rank *r, struct task_fds *fds);
void tty_close(struct site_rank *r);
void tty_feed(struct site_rank *r);
void tty_taken(struct site_rank *r, uint64_t offset);

/* site-prepare-node.c: is everything there that the ranks need? Ends in site_ready() or
 * site_fail(). */
void prepare_start(struct site_job *j);
void prepare_cancel(struct site_job *j);

/* site-bind-node.c: CPU set of a local rank as a bit mask; len 0: not to be bound. */
int bind_cpus(uint32_t local, uint8_t *mask, size_t size, size_t *ret_len, struct err *err);

/* ---------------------------------------------------------------- stage-node.c */

/* Bring a file's content into this node's cache; prepare_got() tells when it is there, also from
 * within. `bytes` of it is what travelled to this node for it. Returns < 0 when it failed at once:
 * then prepare_got() was called, and `p` is gone. */
struct file_wish;
int stage_get(struct launch *l, struct prepare *p, const struct id *job, const struct file_wish *f,
	      const uint32_t *ancestors, size_t ancestor_count, uint32_t uid);
void stage_cancel(struct launch *l, struct prepare *p);
void prepare_got(struct prepare *p, const uint8_t hash[32], int code, const char *error,
		 uint64_t bytes);
void stage_cache_path(const struct launch *l, const uint8_t hash[32], struct str *ret);
int stage_new(struct launch *l, struct err *err);
/* Remove a job's private folder with all that is in it, in the background. */
void stage_folder_remove(struct launch *l, const char *path);
void stage_free(struct launch *l);
void stage_message(struct launch *l, uint32_t from, const struct id *job, const launch_message *m);
void stage_data(struct launch *l, uint32_t from, struct span body);
/* Content that the command sent because origin_file_want() asked for it. */
void stage_from_command(struct launch *l, const Copia__FileData *d);
void stage_session(struct launch *l, uint32_t node, bool up);
void stage_drained(struct launch *l, uint32_t node);
void stage_job_ended(struct launch *l, const struct id *job); /* at its origin */

/* ---------------------------------------------------------------- wire-node.c */

void wire_new(struct launch *l);
void wire_start(struct launch *l);
uint64_t wire_tick(struct launch *l, uint64_t now_ms);
void wire_free(struct launch *l);
bool wire_event(struct launch *l, const Copia__Shepherd__Event *e, struct task_fds *fds);
void wire_session(struct launch *l, uint32_t node, bool up);
void wire_job_free(struct site_job *j);
void wire_job_again(struct site_job *j);
void wire_rank_ended(struct site_rank *r);
/* It waits in what looks like the barrier of MPI_Finalize. */
bool wire_rank_closing(const struct site_rank *r);
/* Make what the ranks' MPI needs; ends in site_spawn() or site_fail(). */
void wire_prepare(struct site_job *j);
/* Add the rank's own variables and descriptors (at most one). Returns the descriptor or -1; it
 * stays ours. */
int wire_rank(struct site_rank *r, struct str *env_out);
/* The tasks were handed over: their ends of sockets are closed here. */
void wire_spawned(struct site_job *j);

/* Goes on when the paths between the job's nodes were tried. */
void wire_checked(struct site_job *j);

/* ---------------------------------------------------------------- check-node.c */

/* Try TCP connections from this node to the others of the job; wire_checked() or site_fail() comes
 * later, within 2 s. NULL: there is nothing to try. */
struct path_check;
struct path_check *check_start(struct site_job *j);
struct path_check *check_free(struct path_check *k);
/* Another node asks for a port to try; the answer to our own question. */
void check_asked(struct launch *l, uint32_t from, const struct id *job);
void check_port(struct site_job *j, uint32_t from, const Copia__LaunchProbePort *p);
uint64_t check_tick(struct launch *l, uint64_t now_ms);
void check_free_all(struct launch *l);

/* ---------------------------------------------------------------- ps-node.c */

int ps_run(struct node *n, struct call *c, const ProtobufCMessage *request, struct err *err);
int kill_run(struct node *n, struct call *c, const ProtobufCMessage *request, struct err *err);
void ps_message(struct launch *l, uint32_t from, const launch_message *m);
uint64_t ps_tick(struct launch *l, uint64_t now_ms);
void ps_free_all(struct launch *l);
