/* SPDX-License-Identifier: Apache-2.0 */
/* Looks at real processes. Where the kernel forbids sampling, the test says so and is skipped. */
#include "caps/launch/finalize-node.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static pid_t start(const char *where, const char *library)
{
	int pipes[2];
	char byte;
	assert_int_equal(pipe(pipes), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		(void)dup2(pipes[1], STDOUT_FILENO);
		(void)execl(SPINNER, "spinner", where, library, (char *)NULL);
		_exit(127);
	}
	(void)close(pipes[1]);
	assert_int_equal(read(pipes[0], &byte, 1), 1);
	(void)close(pipes[0]);
	return pid;
}

static void stop(pid_t pid)
{
	(void)kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* On a busy machine one look may find a process, or one of its threads, that had no turn: then it
 * finds less than there is, never more. */
static struct finalize_seen look(pid_t pid, enum job_sight less)
{
	struct finalize_seen seen = { 0 };
	struct timespec wait = { .tv_nsec = FINALIZE_LOOK_MS * 1000000L };
	for (int i = 0; i < 20 && (!i || seen.sight == JOB_SIGHT_NOTHING || seen.sight == less);
	     i++) {
		struct finalize_look *k = finalize_look_begin(&pid, 1);
		(void)nanosleep(&wait, NULL);
		assert_null(finalize_look_end(k, &seen));
	}
	return seen;
}

static void expect(const char *where, const char *library, enum job_sight sight, const char *name)
{
	pid_t pid = start(where, library);
	struct finalize_seen seen =
	    look(pid, !strcmp(where, "thread") ? JOB_SIGHT_INSIDE : JOB_SIGHT_NOTHING);
	stop(pid);
	if (seen.sight == JOB_SIGHT_REFUSED) {
		print_message("sampling is refused here (kernel.perf_event_paranoid)\n");
		skip();
	}
	assert_int_equal(seen.sight, sight);
	assert_string_equal(seen.library, name);
}

static void program_is_outside(void **state)
{
	(void)state;
	expect("main", SPIN_MPI, JOB_SIGHT_OUTSIDE, "test-launch-spinner");
}

static void mpi_library_is_inside(void **state)
{
	(void)state;
	expect("library", SPIN_MPI, JOB_SIGHT_INSIDE, "libmpi_spin.so");
}

static void another_library_is_outside(void **state)
{
	(void)state;
	expect("library", SPIN_OWN, JOB_SIGHT_OUTSIDE, "libown_spin.so");
}

/* A rank whose first thread waits in MPI while another one computes is not done. */
static void other_threads_count(void **state)
{
	(void)state;
	expect("thread", SPIN_MPI, JOB_SIGHT_OUTSIDE, "test-launch-spinner");
}

static void sleep_proves_nothing(void **state)
{
	(void)state;
	expect("sleep", SPIN_MPI, JOB_SIGHT_NOTHING, "");
}

static void a_process_that_has_gone_is_not_seen(void **state)
{
	(void)state;
	pid_t pid = start("main", SPIN_MPI);
	stop(pid);
	struct finalize_seen seen;
	assert_null(finalize_look_end(finalize_look_begin(&pid, 1), &seen));
	assert_int_equal(seen.sight, JOB_SIGHT_REFUSED);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(program_is_outside),
		cmocka_unit_test(mpi_library_is_inside),
		cmocka_unit_test(another_library_is_outside),
		cmocka_unit_test(other_threads_count),
		cmocka_unit_test(sleep_proves_nothing),
		cmocka_unit_test(a_process_that_has_gone_is_not_seen),
	};
	return cmocka_run_group_tests_name("finalize", tests, NULL, NULL);
}
