/* SPDX-License-Identifier: Apache-2.0 */
/* The client of a job: `copia run`, and below `copia exec` and `copia copy`.
 *
 * It resolves programs with the user's own rights, sends the job to the daemon, and then carries
 * bytes and signals until the daemon says that the job is done. It remembers what a restarted
 * daemon needs to go on with the job: places, ends of ranks, offsets of all streams. */
#pragma once
#include "base/id.h"
#include "base/str.h"
#include "cli/cli.h"
#include "lib/conn.h"

#include "schema/launch.pb-c.h"

#include <signal.h>
#include <termios.h>

enum {
	RUN_OWN_FAILURE = 125,
	RUN_NOT_EXECUTABLE = 126,
	RUN_NOT_FOUND = 127,
	RUN_LINE_MAX = 64 * 1024,       /* of a line that is held back until it is whole */
	RUN_INPUT_WINDOW = 1024 * 1024, /* stdin bytes that the daemon has not taken yet */
	RUN_ACK_BYTES = 128 * 1024,     /* output is acknowledged after so much, or when idle */
	RUN_REOPEN_MS = 30 * 1000,
	RUN_PROGRAMS_MAX = 1024,
};

/* One stream of one rank. */
struct run_sink {
	uint64_t next; /* offset of the byte that comes next */
	uint64_t acked;
	struct str line; /* begun, not ended */
	int fd;          /* --output: its file; -1 */
	bool ended, dirty;
};

struct run {
	const struct verb *verb;
	Copia__RunRequest *rq; /* borrowed; spec and job are filled in */
	bool label, raw, verbose, json, quiet;
	const char *output; /* --output, or NULL */

	struct conn *conn;
	uint64_t call;
	bool begun;
	int signal_pipe[2];
	unsigned interrupts;

	/* What the daemon told. */
	Copia__RunPlaced *placed;
	Copia__LaunchRankExit **exits; /* by rank */
	uint32_t size;
	struct run_sink *sinks; /* 2 of each rank */
	uint32_t *dirty;        /* indices of sinks to be acknowledged */
	uint32_t dirty_count;
	uint64_t unacked;
	int ending_code;
	char *ending_why;
	Copia__RunDone *done;
	bool ended;   /* the call is over */
	int end_code; /* its negative errno */
	char *end_text;
	uint64_t lost_ms;        /* since when the daemon is away; 0: it is there */
	uint64_t again_until_ms; /* the daemon said that it is not ready */

	/* Standard input. */
	struct str input; /* from input_base on; what the daemon has not taken */
	uint64_t input_base, input_sent;
	bool input_open, input_ended, input_end_sent;

	bool terminal; /* ours is in raw mode */
	struct termios saved;

	/* A file that the daemon asked for. */
	int file_fd;
	uint8_t file_hash[32];
	uint64_t file_at, file_upto;
};

/* The whole life of a job; returns the exit code. */
int run_job(struct run *r);
/* "copia run: text" on stderr. */
void run_say(const struct run *r, const char *fmt, ...) _printf_(2, 3);

/* run-spec.c: fill rq->spec and rq->job. Errors: -ENOENT, -EACCES…, with the program's name. */
int run_spec(Copia__RunRequest *rq, struct err *err);
/* The environment, folder, umask and limits of the caller. */
void run_spec_caller(Copia__LaunchSpec *s, char *const *env, size_t env_count, const char *folder);
int run_spec_file(Copia__LaunchFile **ret, const char *path, struct err *err);
/* Hash of a file's content (BLAKE2b-256). Errors: those of open(2) and read(2). */
int run_hash(const char *path, uint8_t hash[32], uint64_t *ret_size, struct err *err);
/* Exit code for an error that was found before anything ran. */
int run_exit_code(int negative_errno);

/* run-file.c: several programs from a file. */
int run_read_file(const char *path, uint32_t ranks, Copia__LaunchSpec *s, struct err *err);

/* run-elf.c: which MPI library a program is linked to, and for which machine it is built. */
void run_inspect(const char *path, Copia__LaunchProgram *p);

/* run-out.c: output of ranks. */
int run_out_open(struct run *r, struct err *err);
void run_out_take(struct run *r, const Copia__LaunchOutput *o);
void run_out_flush(struct run *r);
/* Write all bytes; signals that come meanwhile are handled. */
void run_write(struct run *r, int fd, const void *at, size_t len);
void run_signals(struct run *r);
