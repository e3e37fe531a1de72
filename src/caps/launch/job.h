/* SPDX-License-Identifier: Apache-2.0 */
/* A job as its origin sees it: which ranks have ended, whether the job must be ended, and with what
 * exit code. Pure; time is a parameter (monotonic milliseconds, never goes back).
 *
 *   RUNNING --a rank fails, time is over, user's signal, abort--> TERM --grace--> KILL
 *   any --all ranks have ended--> OVER
 *
 * The first cause decides code and line; what follows from it (ranks that die of our TERM) does
 * not. Exit codes: that of the first rank that failed, 128 + its signal, 124 time over, 125 Copia's
 * own failure or a lost node, 126 not executable, 127 not found, 128 + signal of the user. */
#pragma once
#include "base/err.h"

enum {
	JOB_GRACE_MS = 500,          /* TERM to KILL when a rank has failed */
	JOB_TIMEOUT_GRACE_MS = 5000, /* TERM to KILL when time is over */
	JOB_CODE_TIMEOUT = 124,
	JOB_CODE_COPIA = 125,
	JOB_CODE_NOT_EXECUTABLE = 126,
	JOB_CODE_NOT_FOUND = 127,
	JOB_NEVER = -1,
	JOB_TELL_MS = 100,   /* so long another cause may be found behind one that is weak */
	JOB_LOOKS = 8,       /* looks at ranks within the time for MPI_Finalize… */
	JOB_LOOKS_LEAST = 5, /* …of which so many must have found a rank in MPI */
	JOB_LOOK_WAIT_MAX_MS = 30 * 1000, /* between looks at ranks that compute */
	JOB_SETTLE_MS = 1000,             /* after the last news, before an end that is forced */
};

enum job_phase { JOB_RUNNING, JOB_TERM, JOB_KILL, JOB_OVER };

enum job_rank_flags {
	JOB_RANK_ENDED = 1,
	JOB_RANK_CONNECTED = 2, /* spoke PMI or PMIx */
	JOB_RANK_CLOSING = 4,   /* waits in its last barrier */
	JOB_RANK_FINALIZED = 8,
	JOB_RANK_FAILED = 16,
};

/* Where a rank spent its time when it was looked at. */
enum job_sight {
	JOB_SIGHT_NOTHING, /* asleep, or only in libraries that serve programs and MPI alike */
	JOB_SIGHT_INSIDE,  /* in MPI's own libraries, and nowhere else */
	JOB_SIGHT_OUTSIDE, /* in the program, or in another library of it */
	JOB_SIGHT_REFUSED, /* the kernel does not let us look */
};

struct job_end {
	int32_t status; /* exit code; meaningless when signal is not 0 */
	int32_t signal;
	int32_t code;      /* negative errno: could not be started */
	bool lost;         /* its node is lost */
	bool hung;         /* ended by the deadline for MPI_Finalize */
	const char *error; /* of code; NULL or "" when there is none, in each */
	const char *why;
};

struct job_settings {
	uint32_t size;
	bool keep_going;
	bool nodes;          /* ranks are shown as nodes (exec) */
	uint64_t timeout_ms; /* 0: none, in each */
	uint64_t finalize_ms;
	bool finalize_forced; /* whatever the ranks do that are not in MPI_Finalize */
};

struct job {
	struct job_settings settings;
	uint8_t *flags; /* by rank */
	uint32_t ended;
	enum job_phase phase;
	int code;
	char why[400]; /* one line for the user; "" while all is well */
	/* A rank left by itself. It may have done so because its MPI saw another rank die, of which
	 * we are told a moment later: that one's signal is the cause then. */
	bool weak;
	uint64_t cause_ms;
	uint64_t started_ms;
	uint64_t kill_at_ms; /* in TERM: when KILL follows; 0: not by itself */

	/* Ranks in their last barrier wait for the others, which either work, or hang inside
	 * MPI_Finalize. They hang when for finalize_ms nothing happened, and none of them was seen
	 * anywhere but in MPI. */
	uint32_t closing;    /* ranks that run and are in their last barrier */
	uint64_t closing_ms; /* since when there are any; 0: there are none */
	uint64_t quiet_ms;   /* since when nothing happened and nobody computed */
	uint64_t look_at_ms, look_wait_ms, decide_at_ms;
	uint8_t *inside; /* by rank: looks since quiet_ms that found it in MPI */
	uint8_t *sight;  /* by rank: the last enum job_sight */
	bool decided;    /* ended for it, or noted */
	bool hung_forced;

	uint32_t signals; /* INT and TERM of the user, so far */
	uint32_t hung;
	bool term_due, kill_due, hung_due, look_due, note_due;
};

/* What must be sent to the sites now; each is told once. */
struct job_orders {
	bool term, kill;
	bool hung; /* end all that run: they hang in MPI_Finalize, and this is no failure */
	bool look; /* look where the ranks are for which job_missing() is true */
	bool note; /* tell that some wait in MPI_Finalize, and that nothing is known of the rest */
};

void job_init(struct job *j, const struct job_settings *s, uint64_t now_ms);
void job_deinit(struct job *j);

/* A rank has ended; `where` names its node. A second report of the same rank changes nothing:
 * returns false then. */
bool job_rank_ended(struct job *j, uint32_t rank, const struct job_end *end, const char *where,
		    uint64_t now_ms);
/* INT or TERM of the user: TERM, then KILL. Returns how many there were, with this one. */
uint32_t job_interrupt(struct job *j, int signal, uint64_t now_ms);
/* End the job for a cause of its own: MPI_Abort, a site that failed… `code` is an exit code. */
void job_fail(struct job *j, int code, const char *why, uint64_t now_ms);
/* A rank called MPI_Abort. */
void job_abort(struct job *j, int code, const char *why, uint64_t now_ms);
/* What the ranks' MPI did: set and clear JOB_RANK_* flags. */
void job_mpi(struct job *j, uint32_t rank, unsigned set, unsigned clear, uint64_t now_ms);
/* A rank was looked at, because of orders.look. */
void job_seen(struct job *j, uint32_t rank, enum job_sight sight, uint64_t now_ms);
/* It runs and is not in its last barrier. */
bool job_missing(const struct job *j, uint32_t rank);
/* Time passes. */
struct job_orders job_step(struct job *j, uint64_t now_ms);
/* When job_step() is due at the latest; UINT64_MAX: never by itself. */
uint64_t job_next_ms(const struct job *j);

/* Exit code for a rank's end, and for an errno of starting it. */
int job_end_code(const struct job_end *end);
/* "exit code 3", "killed by signal 9 (Killed)"…; into buf, which is returned. */
char *job_end_show(const struct job_end *end, char *buf, size_t size);
