/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/pmi1.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>
#include <errno.h>

enum { NODES = 2, LOCAL = 2 };

/* Two nodes of two ranks; what node n has to say is in at[n]. */
struct world {
	struct pmi1 *at[NODES];
	struct str full[NODES]; /* contribution of the node, once it is full */
	bool is_full[NODES];
	struct str log; /* events, one line each */
	struct world_node {
		struct world *world;
		unsigned index;
	} nodes[NODES];
};

static const char *const event_names[] = {
	[PMI1_CONNECTED] = "connected", [PMI1_ENTERED] = "entered",     [PMI1_FULL] = "full",
	[PMI1_RELEASED] = "released",   [PMI1_FINALIZED] = "finalized", [PMI1_ABORTED] = "aborted",
	[PMI1_REFUSED] = "refused",     [PMI1_BROKEN] = "broken",       [PMI1_PUBLISH] = "publish",
	[PMI1_LOOKUP] = "lookup",       [PMI1_UNPUBLISH] = "unpublish",
};

static void on_event(void *ctx, const struct pmi1_event *e)
{
	struct world_node *n = ctx;
	str_printf(&n->world->log, "%u.%u %s", n->index, e->local, event_names[e->kind]);
	if (e->kind == PMI1_ABORTED || e->kind == PMI1_BROKEN)
		str_printf(&n->world->log, " %d %s", e->code, e->text);
	if (e->kind == PMI1_ENTERED && e->closing)
		str_puts(&n->world->log, " closing");
	str_puts(&n->world->log, "\n");
	if (e->kind == PMI1_FULL) {
		str_add(&n->world->full[n->index], e->bytes.at, e->bytes.len);
		n->world->is_full[n->index] = true;
	}
}

static int setup(void **state)
{
	struct world *w = xcalloc(1, sizeof(*w));
	static const uint32_t apps[] = { 0, 3 };
	for (unsigned i = 0; i < NODES; i++) {
		w->nodes[i] = (struct world_node){ w, i };
		struct pmi1_setup s = { .kvsname = "job.1",
					.mapping = "(vector,(0,2,2))",
					.size = NODES * LOCAL,
					.universe = 8,
					.local_count = LOCAL,
					.apps = apps,
					.hook = on_event,
					.ctx = &w->nodes[i] };
		assert_int_equal(pmi1_new(&w->at[i], &s, NULL), 0);
	}
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct world *w = *state;
	for (unsigned i = 0; i < NODES; i++) {
		pmi1_free(w->at[i]);
		str_free(&w->full[i]);
	}
	str_free(&w->log);
	free(w);
	return 0;
}

/* Say it byte by byte or at once, get the reply. */
static const char *say(struct world *w, unsigned node, unsigned local, const char *text)
{
	static char reply[PMI1_OUT_MAX];
	struct str *out = pmi1_out(w->at[node], local);
	pmi1_feed(w->at[node], local, text, strlen(text));
	snprintf(reply, sizeof(reply), "%s", str_text(out));
	str_clear(out);
	return reply;
}

static void init_all(struct world *w)
{
	for (unsigned n = 0; n < NODES; n++)
		for (unsigned l = 0; l < LOCAL; l++)
			assert_string_equal(
			    say(w, n, l, "cmd=init pmi_version=1 pmi_subversion=1\n"),
			    "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n");
}

/* Bring the nodes' contributions together, as the exchange does. */
static void exchange(struct world *w)
{
	struct str all = { 0 };
	struct err err = { 0 };
	for (unsigned n = 0; n < NODES; n++) {
		assert_true(w->is_full[n]);
		str_add(&all, str_text(&w->full[n]), w->full[n].len);
		str_clear(&w->full[n]);
		w->is_full[n] = false;
	}
	for (unsigned n = 0; n < NODES; n++)
		assert_int_equal(
		    pmi1_release(w->at[n],
				 (struct span){ (const uint8_t *)str_text(&all), all.len }, &err),
		    0);
	str_free(&all);
}

/* Goal: every question of MPICH's start is answered as its own launcher does. */
static void questions_are_answered(void **state)
{
	struct world *w = *state;
	init_all(w);
	assert_string_equal(say(w, 0, 0, "cmd=get_maxes\n"),
			    "cmd=maxes kvsname_max=256 keylen_max=64 vallen_max=1024 rc=0\n");
	assert_string_equal(say(w, 0, 0, "cmd=get_appnum\n"), "cmd=appnum appnum=0 rc=0\n");
	assert_string_equal(say(w, 0, 1, "cmd=get_appnum\n"), "cmd=appnum appnum=3 rc=0\n");
	assert_string_equal(say(w, 0, 0, "cmd=get_my_kvsname\n"),
			    "cmd=my_kvsname kvsname=job.1 rc=0\n");
	assert_string_equal(say(w, 0, 0, "cmd=get_universe_size\n"),
			    "cmd=universe_size size=8 rc=0\n");
	assert_string_equal(say(w, 0, 0, "cmd=get kvsname=job.1 key=PMI_process_mapping\n"),
			    "cmd=get_result rc=0 msg=success value=(vector,(0,2,2))\n");
	assert_string_equal(say(w, 0, 0, "cmd=getbyidx kvsname=job.1 idx=0\n"),
			    "cmd=getbyidx_results rc=0 nextidx=1 key=PMI_process_mapping "
			    "val=(vector,(0,2,2))\n");
	assert_string_equal(say(w, 0, 0, "cmd=getbyidx kvsname=job.1 idx=1\n"),
			    "cmd=getbyidx_results rc=-2 reason=no_more_keyvals\n");
	assert_string_equal(say(w, 0, 0, "cmd=finalize\n"), "cmd=finalize_ack rc=0\n");
	assert_true(pmi1_finalized(w->at[0], 0));
}

/* Goal: what one rank puts, all ranks of all nodes get after the barrier, in the same order. */
static void barrier_spreads_keys(void **state)
{
	struct world *w = *state;
	init_all(w);
	for (unsigned n = 0; n < NODES; n++)
		for (unsigned l = LOCAL; l-- > 0;) {
			char line[128];
			snprintf(line, sizeof(line),
				 "cmd=put kvsname=job.1 key=k%u%u value=v%u%u\n", n, l, n, l);
			assert_string_equal(say(w, n, l, line),
					    "cmd=put_result rc=0 msg=success\n");
		}
	assert_string_equal(say(w, 0, 0, "cmd=get kvsname=job.1 key=k01\n"),
			    "cmd=get_result rc=-1 msg=key_not_found value=unknown\n");
	for (unsigned n = 0; n < NODES; n++)
		for (unsigned l = 0; l < LOCAL; l++)
			assert_string_equal(say(w, n, l, "cmd=barrier_in\n"), "");
	assert_int_equal(pmi1_waiting(w->at[0]), LOCAL);
	exchange(w);
	for (unsigned n = 0; n < NODES; n++) {
		for (unsigned l = 0; l < LOCAL; l++) {
			assert_string_equal(say(w, n, l, ""), "cmd=barrier_out rc=0\n");
			assert_string_equal(say(w, n, l, "cmd=get kvsname=job.1 key=k10\n"),
					    "cmd=get_result rc=0 msg=success value=v10\n");
		}
		assert_string_equal(say(w, n, 0, "cmd=getbyidx kvsname=job.1 idx=2\n"),
				    "cmd=getbyidx_results rc=0 nextidx=3 key=k01 val=v01\n");
	}
}

/* Goal: a barrier that exchanges nothing, after one that did, is told as the closing one. */
static void last_barrier_is_told(void **state)
{
	struct world *w = *state;
	init_all(w);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned n = 0; n < NODES; n++)
			for (unsigned l = 0; l < LOCAL; l++) {
				if (!round)
					say(w, n, l, "cmd=put kvsname=job.1 key=a value=b\n");
				str_clear(&w->log);
				say(w, n, l, "cmd=barrier_in\n");
				assert_int_equal(strstr(str_text(&w->log), "closing") != NULL,
						 round);
			}
		exchange(w);
	}
}

/* Goal: commands may arrive in any pieces, and several at once. */
static void pieces_are_joined(void **state)
{
	struct world *w = *state;
	static const char text[] = "cmd=init pmi_version=1 pmi_subversion=1\ncmd=get_appnum\n";
	for (size_t i = 0; i < sizeof(text) - 1; i++)
		pmi1_feed(w->at[0], 1, text + i, 1);
	assert_string_equal(str_text(pmi1_out(w->at[0], 1)),
			    "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=0\n"
			    "cmd=appnum appnum=3 rc=0\n");
}

/* Goal: puts beyond the limits are refused, and nothing of them stays. */
static void limits_hold(void **state)
{
	struct world *w = *state;
	char line[4096];
	init_all(w);
	snprintf(line, sizeof(line), "cmd=put kvsname=job.1 key=%0*d value=v\n", PMI1_KEY_MAX, 0);
	assert_string_equal(say(w, 0, 0, line), "cmd=put_result rc=0 msg=success\n");
	snprintf(line, sizeof(line), "cmd=put kvsname=job.1 key=%0*d value=v\n", PMI1_KEY_MAX + 1,
		 0);
	assert_string_equal(say(w, 0, 0, line), "cmd=put_result rc=-1 msg=key_too_long\n");
	snprintf(line, sizeof(line), "cmd=put kvsname=job.1 key=k value=%0*d\n", PMI1_VALUE_MAX + 1,
		 0);
	assert_string_equal(say(w, 0, 0, line), "cmd=put_result rc=-1 msg=value_too_long\n");
	assert_string_equal(say(w, 0, 0, "cmd=put kvsname=other key=k value=v\n"),
			    "cmd=put_result rc=-1 msg=kvs_not_found\n");
	assert_string_equal(say(w, 0, 0, "cmd=put kvsname=job.1 value=v\n"),
			    "cmd=put_result rc=-1 msg=incomplete_put\n");
	assert_string_equal(say(w, 0, 0, "cmd=get kvsname=other key=k\n"),
			    "cmd=get_result rc=-1 msg=kvs_not_found value=unknown\n");
	snprintf(line, sizeof(line), "cmd=put kvsname=job.1 key=k value=%0*d\n", PMI1_VALUE_MAX, 0);
	unsigned puts = 0;
	while (strstr(say(w, 0, 0, line), "rc=0"))
		puts++;
	assert_in_range(puts, PMI1_RANK_BYTES_MAX / (PMI1_VALUE_MAX + 1) - 1,
			PMI1_RANK_BYTES_MAX / PMI1_VALUE_MAX);
}

/* Goal: nonsense gets an error and ends this rank's connection, not its neighbour's. */
static void nonsense_breaks_one_rank(void **state)
{
	static const char *const lines[] = {
		"\n",
		"hello\n",
		"cmd\n",
		"=x\n",
		"cmd=put kvsname=a b=1 c=1 d=1 e=1 f=1 g=1 h=1 i=1 j=1 k=1 l=1 m=1 n=1 o=1 p=1\n",
		"cmd=init\n",
		"cmd=init pmi_version=x pmi_subversion=1\n",
		"cmd=get_appnum\n", /* before init */
		"cmd=\n",
		"mcmd=spawn\n",
		"cmd=nothing_known\n",
	};
	for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
		void *fresh;
		setup(&fresh);
		struct world *w = fresh;
		say(w, 0, 0, lines[i]);
		assert_non_null(strstr(str_text(&w->log), "0.0 broken"));
		assert_string_equal(say(w, 0, 0, "cmd=init pmi_version=1 pmi_subversion=1\n"), "");
		assert_non_null(
		    strstr(say(w, 0, 1, "cmd=init pmi_version=1 pmi_subversion=1\n"), "rc=0"));
		teardown(&fresh);
	}
	(void)state;
}

/* Goal: a line without end, a zero byte, a command inside a barrier break the rank. */
static void hostile_bytes_break_the_rank(void **state)
{
	struct world *w = *state;
	static char endless[PMI1_LINE_MAX];
	memset(endless, 'x', sizeof(endless));
	init_all(w);
	pmi1_feed(w->at[0], 0, endless, sizeof(endless) - 1);
	assert_null(strstr(str_text(&w->log), "broken"));
	pmi1_feed(w->at[0], 0, "x", 1);
	assert_non_null(strstr(str_text(&w->log), "0.0 broken -71 a line that is too long"));
	pmi1_feed(w->at[0], 1, "cmd=get_\0appnum\n", 16);
	assert_non_null(strstr(str_text(&w->log), "0.1 broken -71 a line with a zero byte"));
	say(w, 1, 0, "cmd=barrier_in\ncmd=get_appnum\n");
	assert_non_null(strstr(str_text(&w->log), "1.0 broken"));
	assert_int_equal(pmi1_waiting(w->at[1]), 0);
}

/* Goal: a rank that asks and never reads is cut off at a limit. */
static void unread_replies_are_bounded(void **state)
{
	struct world *w = *state;
	init_all(w);
	for (unsigned i = 0; i < 10000; i++)
		pmi1_feed(w->at[0], 0, "cmd=get_maxes\n", 14);
	assert_non_null(strstr(str_text(&w->log), "0.0 broken -71 replies are not read"));
	assert_in_range(pmi1_out(w->at[0], 0)->len, PMI1_OUT_MAX, PMI1_OUT_MAX + 256);
}

/* Goal: abort carries code and words; end without finalize is told, with finalize not. */
static void ends_are_told(void **state)
{
	struct world *w = *state;
	init_all(w);
	say(w, 0, 0, "cmd=abort exitcode=7 error_msg=it went wrong\n");
	assert_non_null(strstr(str_text(&w->log), "0.0 aborted 7 it went wrong"));
	say(w, 0, 1, "cmd=abort\n");
	assert_non_null(strstr(str_text(&w->log), "0.1 aborted 1 the program called MPI_Abort"));
	say(w, 1, 0, "cmd=finalize\n");
	pmi1_hangup(w->at[1], 0);
	assert_null(strstr(str_text(&w->log), "1.0 broken"));
	pmi1_hangup(w->at[1], 1);
	assert_non_null(strstr(str_text(&w->log), "1.1 broken -104"));
}

/* Goal: a connection that ended without a word (the daemon died with it) can be replaced. */
static void silent_end_is_no_end(void **state)
{
	struct world *w = *state;
	pmi1_feed(w->at[0], 0, "cmd=in", 6);
	pmi1_hangup(w->at[0], 0);
	assert_string_equal(str_text(&w->log), "");
	init_all(w);
}

/* Goal: spawn is refused by its own reply, and the rank goes on. */
static void spawn_is_refused(void **state)
{
	struct world *w = *state;
	init_all(w);
	assert_string_equal(say(w, 0, 0,
				"mcmd=spawn\nnprocs=2\nexecname=/bin/x\ntotspawns=1\n"
				"spawnssofar=1\nargcnt=0\npreput_num=0\ninfo_num=0\nendcmd\n"),
			    "cmd=spawn_result rc=-1 msg=not_supported\n");
	assert_string_equal(say(w, 0, 0, "cmd=create_kvs\n"),
			    "cmd=newkvs rc=-1 msg=not_supported\n");
	assert_string_equal(say(w, 0, 0, "cmd=get_appnum\n"), "cmd=appnum appnum=0 rc=0\n");
	pmi1_feed(w->at[0], 0, "mcmd=spawn\n", 11);
	for (unsigned i = 0; i < PMI1_SPAWN_MAX / 8 + 1; i++)
		pmi1_feed(w->at[0], 0, "arg1=abcdefg\n", 13);
	assert_non_null(strstr(str_text(&w->log), "0.0 broken -71 a spawn command without end"));
}

/* Goal: names are asked for outside, and the answer takes the words of the question. */
static void names_are_passed_on(void **state)
{
	struct world *w = *state;
	init_all(w);
	assert_string_equal(say(w, 0, 0, "cmd=publish_name service=s port=p\n"), "");
	pmi1_named(w->at[0], 0, true, NULL);
	assert_string_equal(say(w, 0, 0, ""), "cmd=publish_result info=ok rc=0\n");
	say(w, 0, 0, "cmd=lookup_name service=s\n");
	pmi1_named(w->at[0], 0, true, "p");
	assert_string_equal(say(w, 0, 0, ""), "cmd=lookup_result info=ok rc=0 port=p\n");
	say(w, 0, 0, "cmd=unpublish_name service=s\n");
	pmi1_named(w->at[0], 0, false, NULL);
	assert_string_equal(say(w, 0, 0, ""), "cmd=unpublish_result info=not_ok rc=-1\n");
	pmi1_named(w->at[0], 0, true, NULL); /* nobody asked */
	assert_string_equal(say(w, 0, 0, ""), "");
	assert_string_equal(say(w, 0, 0, "cmd=publish_name service=s\n"),
			    "cmd=publish_result info=unfit rc=-1\n");
}

/* Goal: a result that is no list of keys, or that nobody waits for, is an error. */
static void broken_results_are_errors(void **state)
{
	struct world *w = *state;
	static const uint8_t broken[][6] = { { 1, 0, 9, 0, 'k', 'v' }, { 0, 0, 1, 0, 'v', 0 } };
	init_all(w);
	assert_int_equal(pmi1_release(w->at[0], (struct span){ 0 }, NULL), -EPROTO);
	say(w, 0, 0, "cmd=barrier_in\n");
	assert_int_equal(pmi1_release(w->at[0], (struct span){ 0 }, NULL), -EPROTO);
	say(w, 0, 1, "cmd=barrier_in\n");
	for (size_t i = 0; i < ARRAY_LEN(broken); i++)
		assert_int_equal(pmi1_release(w->at[0], (struct span){ broken[i], 6 }, NULL),
				 -EPROTO);
	assert_int_equal(pmi1_release(w->at[0], (struct span){ 0 }, NULL), 0);
}

/* Goal: the mapping is what MPICH reads: node, nodes, ranks per node. */
static void mapping_is_compact(void **state)
{
	static const struct {
		const char *want;
		uint32_t size, node_of[12];
	} cases[] = {
		{ "(vector,(0,1,4))", 4, { 0, 0, 0, 0 } },
		{ "(vector,(0,2,2))", 4, { 0, 0, 1, 1 } },
		{ "(vector,(0,4,1))", 4, { 0, 1, 2, 3 } },
		{ "(vector,(0,1,1),(1,1,3))", 4, { 0, 1, 1, 1 } },
		{ "(vector,(0,1,3),(1,1,1))", 4, { 0, 0, 0, 1 } },
		{ "(vector,(0,2,1),(0,2,1))", 4, { 0, 1, 0, 1 } },
		{ "(vector,(2,1,2),(0,2,2))", 6, { 2, 2, 0, 0, 1, 1 } },
		{ "(vector,(0,1,2),(1,1,3))", 5, { 0, 0, 1, 1, 1 } },
		{ "(vector,(0,1,1))", 1, { 0 } },
	};
	struct str s = { 0 };
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		assert_true(pmi1_mapping(cases[i].node_of, cases[i].size, &s));
		assert_string_equal(str_text(&s), cases[i].want);
	}
	static uint32_t wild[4096];
	for (uint32_t i = 0; i < ARRAY_LEN(wild); i++)
		wild[i] = i * 7919 % 4099;
	assert_false(pmi1_mapping(wild, ARRAY_LEN(wild), &s));
	str_free(&s);
	(void)state;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(questions_are_answered),
		TEST(barrier_spreads_keys),
		TEST(last_barrier_is_told),
		TEST(pieces_are_joined),
		TEST(limits_hold),
		TEST(hostile_bytes_break_the_rank),
		TEST(unread_replies_are_bounded),
		TEST(ends_are_told),
		TEST(silent_end_is_no_end),
		TEST(spawn_is_refused),
		TEST(names_are_passed_on),
		TEST(broken_results_are_errors),
		cmocka_unit_test(nonsense_breaks_one_rank),
		cmocka_unit_test(mapping_is_compact),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
