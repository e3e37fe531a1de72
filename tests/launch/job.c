/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/job.h"
#include "caps/launch/split.h"

#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>

#include <cmocka.h>

static struct job job_make(uint32_t size, struct job_settings s)
{
	struct job j;
	s.size = size;
	job_init(&j, &s, 1000);
	return j;
}

static void end(struct job *j, uint32_t rank, int status, int signal, uint64_t now_ms)
{
	struct job_end e = { .status = status, .signal = signal };
	job_rank_ended(j, rank, &e, "n2", now_ms);
}

/* Goal: all ranks end well: the job does, and nothing is ordered. */
static void good_job_ends_with_0(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_make(3, (struct job_settings){ 0 });
	for (uint32_t i = 0; i < 3; i++) {
		assert_int_equal(j.phase, JOB_RUNNING);
		end(&j, i, 0, 0, 1001);
	}
	assert_int_equal(j.phase, JOB_OVER);
	assert_int_equal(j.code, 0);
	struct job_orders o = job_step(&j, 1002);
	assert_false(o.term || o.kill || o.hung);
	assert_true(job_next_ms(&j) == UINT64_MAX);
}

/* Goal: the first rank that fails ends the job: TERM at once, KILL within a second, its code. */
static void first_failure_decides(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_make(3, (struct job_settings){ 0 });
	end(&j, 1, 3, 0, 1100);
	assert_true(job_next_ms(&j) == 0);
	assert_true(job_step(&j, 1100).term);
	assert_false(job_step(&j, 1100).term);
	assert_true(job_next_ms(&j) == 1100 + JOB_GRACE_MS);
	assert_false(job_step(&j, 1100 + JOB_GRACE_MS - 1).kill);
	assert_true(job_step(&j, 1100 + JOB_GRACE_MS).kill);
	end(&j, 0, 0, SIGTERM, 1601);
	end(&j, 2, 0, SIGKILL, 1601);
	assert_int_equal(j.phase, JOB_OVER);
	assert_int_equal(j.code, 3);
	assert_string_equal(j.why, "rank 1 on n2: exit code 3");
	struct job_end e = { 0 };
	assert_false(job_rank_ended(&j, 1, &e, "n2", 1700));
}

/* Goal: ranks that leave because another one died do not hide which one it was; but what dies of
 * our own signals is no cause. */
static void death_is_the_cause_of_aborts(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_make(3, (struct job_settings){ 0 });
	job_abort(&j, 1, "rank 0 on n1: called MPI_Abort with code 1", 1100);
	end(&j, 1, 1, 0, 1110);
	end(&j, 2, 0, SIGKILL, 1120);
	assert_int_equal(j.code, 128 + SIGKILL);
	assert_string_equal(j.why, "rank 2 on n2: killed by signal 9 (Killed)");

	_cleanup_(job_deinit) struct job k = job_make(3, (struct job_settings){ 0 });
	end(&k, 1, 3, 0, 1100);
	struct job_end e = { .signal = SIGTERM, .why = "the job ends" };
	job_rank_ended(&k, 2, &e, "n2", 1110);
	end(&k, 0, 0, SIGSEGV, 1100 + JOB_TELL_MS + 1);
	assert_int_equal(k.code, 3);
}

static void keep_going_goes_on(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j =
	    job_make(2, (struct job_settings){ .keep_going = true });
	end(&j, 0, 0, SIGSEGV, 1100);
	assert_int_equal(j.phase, JOB_RUNNING);
	assert_false(job_step(&j, 1100).term);
	end(&j, 1, 7, 0, 1200);
	assert_int_equal(j.code, 128 + SIGSEGV);
	assert_string_equal(j.why, "rank 0 on n2: killed by signal 11 (Segmentation fault)");
}

/* Goal: time over: TERM, KILL 5 s later, 124 whatever the ranks say. */
static void timeout_gives_124(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j =
	    job_make(1, (struct job_settings){ .timeout_ms = 2000 });
	assert_true(job_next_ms(&j) == 3000);
	assert_false(job_step(&j, 2999).term);
	assert_true(job_step(&j, 3000).term);
	assert_true(job_step(&j, 8000).kill);
	end(&j, 0, 0, SIGKILL, 8001);
	assert_int_equal(j.code, 124);
	assert_string_equal(j.why, "time is over after 2 s");
}

static void interrupts_escalate(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_make(1, (struct job_settings){ 0 });
	assert_int_equal(job_interrupt(&j, SIGINT, 1500), 1);
	struct job_orders o = job_step(&j, 1500);
	assert_true(o.term && !o.kill);
	assert_true(job_next_ms(&j) == UINT64_MAX);
	assert_int_equal(job_interrupt(&j, SIGINT, 1600), 2);
	o = job_step(&j, 1600);
	assert_true(o.kill && !o.term);
	end(&j, 0, 0, SIGKILL, 1601);
	assert_int_equal(j.code, 130);
}

/* ---------------------------------------------------------------- MPI_Finalize */

static struct job job_closing(bool forced)
{
	struct job j =
	    job_make(3, (struct job_settings){ .finalize_ms = 8000, .finalize_forced = forced });
	for (uint32_t i = 0; i < 3; i++)
		job_mpi(&j, i, JOB_RANK_CONNECTED, 0, 1100);
	job_mpi(&j, 0, JOB_RANK_CLOSING, 0, 2000);
	return j;
}

/* Time passes until `end_ms`; whenever a look is ordered, ranks 1 and 2 are seen as given. Returns
 * when the order `hung` came, or 0. */
static uint64_t pass(struct job *j, uint64_t from_ms, uint64_t end_ms, enum job_sight one,
		     enum job_sight two, unsigned *notes)
{
	for (uint64_t now = from_ms; now <= end_ms; now += 10) {
		struct job_orders o = job_step(j, now);
		if (o.hung)
			return now;
		if (o.note && notes)
			++*notes;
		if (o.look) {
			job_seen(j, 1, one, now);
			job_seen(j, 2, two, now);
		}
	}
	return 0;
}

static void hung_ranks_end(struct job *j, uint64_t now_ms)
{
	for (uint32_t i = 0; i < 3; i++) {
		struct job_end e = { .signal = SIGKILL, .hung = true };
		job_rank_ended(j, i, &e, "n1", now_ms);
	}
}

/* Goal: ranks that hang in MPI_Finalize do not hold the job, and it has not failed. */
static void finalize_hang_is_no_failure(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_closing(false);
	assert_true(job_missing(&j, 1) && !job_missing(&j, 0));
	assert_true(job_next_ms(&j) == 3000);
	unsigned notes = 0;
	uint64_t at = pass(&j, 2000, 60000, JOB_SIGHT_INSIDE, JOB_SIGHT_INSIDE, &notes);
	assert_true(at == 10000);
	assert_int_equal(notes, 0);
	hung_ranks_end(&j, 10001);
	assert_int_equal(j.phase, JOB_OVER);
	assert_int_equal(j.code, 0);
	assert_int_equal(j.hung, 3);
}

/* Goal: as long as one rank computes nobody is ended; when it stops, the time begins anew. */
static void ranks_that_compute_are_waited_for(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_closing(false);
	unsigned notes = 0;
	assert_true(pass(&j, 2000, 7200000, JOB_SIGHT_INSIDE, JOB_SIGHT_OUTSIDE, &notes) == 0);
	assert_int_equal(notes, 0);
	uint64_t at = pass(&j, 7200010, 7300000, JOB_SIGHT_INSIDE, JOB_SIGHT_INSIDE, &notes);
	assert_true(at > 7200010 + 8000 - 1000 - JOB_LOOK_WAIT_MAX_MS);
	assert_true(at <= 7200010 + 8000 + JOB_LOOK_WAIT_MAX_MS);
}

/* Goal: a rank of which nothing is known is not ended; the user is told once. */
static void unknown_ranks_are_noted_once(void **state)
{
	(void)state;
	static const enum job_sight sights[] = { JOB_SIGHT_NOTHING, JOB_SIGHT_REFUSED };
	for (size_t i = 0; i < ARRAY_LEN(sights); i++) {
		_cleanup_(job_deinit) struct job j = job_closing(false);
		unsigned notes = 0;
		assert_true(pass(&j, 2000, 600000, JOB_SIGHT_INSIDE, sights[i], &notes) == 0);
		assert_int_equal(notes, 1);
	}
}

/* Goal: a time that the user gave holds; but work that was seen is not called done. */
static void forced_time_holds(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_closing(true);
	assert_true(pass(&j, 2000, 60000, JOB_SIGHT_REFUSED, JOB_SIGHT_NOTHING, NULL) == 10000);
	assert_true(j.hung_forced);
	_cleanup_(job_deinit) struct job k = job_closing(true);
	assert_true(pass(&k, 2000, 9990, JOB_SIGHT_INSIDE, JOB_SIGHT_OUTSIDE, NULL) == 0);
	assert_int_equal(k.phase, JOB_RUNNING);
	assert_true(job_step(&k, 10000).term);
	assert_int_equal(k.code, 124);
}

/* Goal: what happens among the ranks begins the time anew: another barrier, an end, an arrival. */
static void news_begin_the_time_anew(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_closing(false);
	assert_true(pass(&j, 2000, 9000, JOB_SIGHT_INSIDE, JOB_SIGHT_INSIDE, NULL) == 0);
	job_mpi(&j, 1, JOB_RANK_CLOSING, 0, 9000);
	end(&j, 2, 0, 0, 10000);
	assert_false(job_step(&j, 17990).hung);
	assert_true(job_step(&j, 18000).hung);

	_cleanup_(job_deinit) struct job k = job_closing(false);
	job_mpi(&k, 0, 0, JOB_RANK_CLOSING, 3000); /* it was another barrier */
	assert_true(job_next_ms(&k) == UINT64_MAX);
	assert_true(pass(&k, 3000, 60000, JOB_SIGHT_INSIDE, JOB_SIGHT_INSIDE, NULL) == 0);
}

/* Goal: behind MPI_Finalize a program works for as long as it likes. */
static void after_finalize_nothing_is_ended(void **state)
{
	(void)state;
	_cleanup_(job_deinit) struct job j = job_closing(false);
	for (uint32_t i = 1; i < 3; i++)
		job_mpi(&j, i, JOB_RANK_CLOSING, 0, 2001);
	for (uint32_t i = 0; i < 3; i++)
		job_mpi(&j, i, JOB_RANK_FINALIZED, 0, 2002);
	assert_true(job_next_ms(&j) == UINT64_MAX);
	assert_false(job_step(&j, 3600000).hung);
}

static void codes_are_as_documented(void **state)
{
	(void)state;
	char buf[200];
	struct job_end e = { .code = -ENOENT, .error = "run /x: no such file" };
	assert_int_equal(job_end_code(&e), 127);
	assert_string_equal(job_end_show(&e, buf, sizeof(buf)), "run /x: no such file");
	e = (struct job_end){ .code = -EACCES };
	assert_int_equal(job_end_code(&e), 126);
	e = (struct job_end){ .code = -ENOEXEC };
	assert_int_equal(job_end_code(&e), 126);
	e = (struct job_end){ .code = -ENOSPC };
	assert_int_equal(job_end_code(&e), 125);
	e = (struct job_end){ .lost = true };
	assert_int_equal(job_end_code(&e), 125);
	assert_string_equal(job_end_show(&e, buf, sizeof(buf)), "node lost");
	e = (struct job_end){ .signal = SIGKILL, .why = "out of memory" };
	assert_int_equal(job_end_code(&e), 137);
	assert_string_equal(job_end_show(&e, buf, sizeof(buf)),
			    "killed by signal 9 (Killed; out of memory)");
}

/* Goal: every receiver gets the message once, along the parents that split_parent() names. */
static void trees_reach_all(void **state)
{
	(void)state;
	for (size_t arity = 1; arity <= SPLIT_DIRECT_MAX; arity++)
		for (size_t count = 0; count < 70; count++) {
			size_t parent[70];
			for (size_t i = 0; i < count; i++)
				parent[i] = 1000;
			/* Lists still to be cut up: owner, from, length. */
			struct {
				size_t owner, from, count;
			} todo[128] = { { SIZE_MAX, 0, count } };
			for (size_t n = 1, k = 0; k < n; k++) {
				struct split_piece p[SPLIT_DIRECT_MAX];
				size_t pieces = split(todo[k].count, arity, p);
				for (size_t i = 0; i < pieces; i++) {
					size_t child = todo[k].from + p[i].at;
					assert_true(parent[child] == 1000);
					parent[child] = todo[k].owner;
					todo[n].owner = child;
					todo[n].from = child + 1;
					todo[n++].count = p[i].rest;
				}
			}
			for (size_t i = 0; i < count; i++)
				assert_true(parent[i] == split_parent(count, arity, i));
		}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_job_ends_with_0),
		cmocka_unit_test(first_failure_decides),
		cmocka_unit_test(death_is_the_cause_of_aborts),
		cmocka_unit_test(keep_going_goes_on),
		cmocka_unit_test(timeout_gives_124),
		cmocka_unit_test(interrupts_escalate),
		cmocka_unit_test(finalize_hang_is_no_failure),
		cmocka_unit_test(ranks_that_compute_are_waited_for),
		cmocka_unit_test(unknown_ranks_are_noted_once),
		cmocka_unit_test(forced_time_holds),
		cmocka_unit_test(news_begin_the_time_anew),
		cmocka_unit_test(after_finalize_nothing_is_ended),
		cmocka_unit_test(codes_are_as_documented),
		cmocka_unit_test(trees_reach_all),
	};
	return cmocka_run_group_tests_name("job", tests, NULL, NULL);
}
