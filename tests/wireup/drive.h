/* SPDX-License-Identifier: Apache-2.0 */
/* Plays the brains of one or two nodes to real copia-wireup processes and starts a real program's
 * ranks, as the launcher will. One run = one `struct drive`: fill in the wishes, drive_run(), look
 * at what came of it, drive_free(). */
#pragma once
#include "base/str.h"
#include "host.h"
#include "schema/wireup.pb-c.h"

enum { DRIVE_RANKS_MAX = 256 };

struct drive_rank {
	pid_t pid;
	int out; /* read end of its standard output and error */
	int pmi; /* its end of the PMI-1 socket pair, until it is started */
	unsigned node;
	bool connected, initialised, finalized, ended;
	int status;
	int protocol; /* of the first notice; -1: none */
	int abort_code, aborts, refused;
	bool closing; /* in its last barrier */
	struct str text;
};

struct drive_node {
	pid_t pid; /* of copia-wireup */
	int fd;
	char socket[108], folder[96];
	struct str in, out;
	bool ready;
	unsigned states;        /* answers to hello */
	struct str environment; /* "NAME=value\0" for all its ranks */
	struct str *own;        /* the same for each */
};

struct drive {
	/* wishes */
	const char *wireup;   /* path of copia-wireup */
	char *const *program; /* with arguments, NULL at the end */
	unsigned nodes, per_node;
	bool pretend; /* nodes are hosts of their own */
	bool bridge; /* the first host's own interface is the bridge; the job is told the network */
	bool mislead; /* with an interface that leads nowhere; the job is told the right network */
	bool cut;     /* break each link once, with the frame that was just read lost */
	bool lose;    /* lose every seventh exchange */
	bool no_pmix, no_pmi1;
	uid_t user; /* 0: as we are */
	unsigned limit_ms;
	unsigned closing_ms; /* patience after the first rank in its last barrier; 0: none */
	const char *apps;    /* "0011": program number of each rank */
	bool lazy; /* fences without data: Open MPI then asks for each rank's when it needs it */
	const char *extra; /* "NAME=value" in every rank's environment */

	/* what came of it */
	struct drive_rank ranks[DRIVE_RANKS_MAX];
	struct drive_node at[HOSTS_MAX];
	struct host hosts[HOSTS_MAX];
	unsigned cuts, exchanges, lost, data_asks;
	bool hung; /* ranks were in MPI_Finalize for `closing_ms` and were killed */
	bool timed_out;
	char failed[256]; /* job failed or was refused, with its words */
	char warning[256];
	double seconds; /* from first rank started to last ended */
};

/* Errors: -EPERM (no right to make hosts), -ENOENT, -EIO (the wire-up broke its protocol). */
int drive_run(struct drive *d, struct err *err);
/* Returns 0 when each copia-wireup ended well, else how the last bad one ended (as of waitpid). */
int drive_free(struct drive *d);
