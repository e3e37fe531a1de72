/* SPDX-License-Identifier: Apache-2.0 */
/* Where do processes spend their time? For ranks that do not arrive in MPI_Finalize: a look takes
 * samples of the user-space instruction pointer of every thread (perf_event_open with the kernel's
 * software clock, no hardware and no tools needed), and for a first thread that sleeps the place of
 * its system call. A rank is inside MPI when it was seen in MPI's own libraries, and nowhere but
 * in them, in the C library, the loader and the vdso. The last three alone prove nothing: a
 * program that writes a large file is seen there, too. */
#pragma once
#include "caps/launch/job.h"

#include <sys/types.h>

enum {
	FINALIZE_LOOK_MS = 200,     /* between begin and end of a look */
	FINALIZE_THREADS_MAX = 256, /* of all processes of a look */
	FINALIZE_LIBRARY = 64,
};

struct finalize_look;

struct finalize_seen {
	enum job_sight sight;
	char library[FINALIZE_LIBRARY]; /* of INSIDE and OUTSIDE: file name of one; else "" */
};

/* Begin to sample; never fails, what cannot be sampled is told at the end. */
struct finalize_look *finalize_look_begin(const pid_t *pids, size_t count);
/* Stop; fills `seen` (one for each pid, in their order; may be NULL) and frees the look. Returns
 * NULL. */
struct finalize_look *finalize_look_end(struct finalize_look *k, struct finalize_seen *seen);
