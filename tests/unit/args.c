/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/args.h"
#include "../test.h"
#include "base/str.h"

#include "schema/launch.pb-c.h"
#include "schema/members.pb-c.h"

#include <errno.h>

/* Reads the words behind `verb` up to NULL. */
static int read_words(const char *verb, const char *const *words, ProtobufCMessage **ret,
		      struct args_common *common, struct err *err)
{
	const struct verb *v = verb_find(verb);
	assert_non_null(v);
	size_t count = 0;
	while (words[count])
		count++;
	*err = (struct err){ 0 };
	return args_read(v, (char *const *)words, count, ret, common, err);
}

#define WORDS(...) ((const char *const[]){ __VA_ARGS__, NULL })

static void *must_read(const char *verb, const char *const *words)
{
	struct err err;
	struct args_common common;
	ProtobufCMessage *m = NULL;
	if (read_words(verb, words, &m, &common, &err) < 0)
		fail_msg("%s", err.msg);
	return m;
}

static void must_fail(const char *verb, const char *const *words, const char *text)
{
	struct err err;
	struct args_common common;
	ProtobufCMessage *m = (void *)1;
	int r = read_words(verb, words, &m, &common, &err);
	assert_true(r == -EINVAL || r == -ERANGE);
	assert_null(m);
	assert_string_equal(err.msg, text);
}

static void done(void *m)
{
	protobuf_c_message_free_unpacked(m, NULL);
}

static void values_come_behind_blank_equals_or_letter(void **state)
{
	(void)state;
	Copia__RunRequest *q =
	    must_read("run", WORDS("--timeout=3s", "-n", "4", "-N2", "--on", "n[1-2]", "-k"));
	assert_int_equal(q->timeout_ms, 3000);
	assert_int_equal(q->ranks, 4);
	assert_int_equal(q->nodes, 2);
	assert_string_equal(q->on, "n[1-2]");
	assert_true(q->keep_going);
	done(q);
}

static void fallbacks_fill_what_was_not_given(void **state)
{
	(void)state;
	Copia__TokenRequest *q = must_read("token", (const char *const[]){ NULL });
	assert_int_equal(q->expires_ms, 3600000);
	done(q);
	Copia__InitRequest *i = must_read("init", WORDS("--profile", "fast"));
	assert_string_equal(i->profile, "fast");
	assert_string_equal(i->name, "copia");
	assert_string_equal(i->node, "");
	done(i);
}

static void last_of_two_counts_and_lists_collect(void **state)
{
	(void)state;
	Copia__InitRequest *q =
	    must_read("init", WORDS("--name", "a", "--address", "h1", "--name=b", "--address=h2"));
	assert_string_equal(q->name, "b");
	assert_int_equal(q->n_address, 2);
	assert_string_equal(q->address[0], "h1");
	assert_string_equal(q->address[1], "h2");
	done(q);
}

static void a_command_line_is_taken_as_it_stands(void **state)
{
	(void)state;
	Copia__RunRequest *q =
	    must_read("run", WORDS("-n", "2", "prog", "-n", "9", "--", "--json"));
	assert_int_equal(q->ranks, 2);
	assert_int_equal(q->n_argv, 5);
	assert_string_equal(q->argv[0], "prog");
	assert_string_equal(q->argv[1], "-n");
	assert_string_equal(q->argv[3], "--");
	assert_string_equal(q->argv[4], "--json");
	done(q);
	Copia__ExecRequest *e = must_read("exec", WORDS("n1", "--", "-x", "y"));
	assert_string_equal(e->nodes, "n1");
	assert_int_equal(e->n_argv, 2);
	assert_string_equal(e->argv[0], "-x");
	done(e);
}

static void double_dash_ends_options(void **state)
{
	(void)state;
	Copia__DrainRequest *q = must_read("drain", WORDS("--", "--odd"));
	assert_string_equal(q->node, "--odd");
	done(q);
}

static void a_dash_alone_is_a_word(void **state)
{
	(void)state;
	Copia__JoinVerbRequest *q = must_read("join", WORDS("-"));
	assert_string_equal(q->token, "-");
	done(q);
}

static void kill_takes_signals_with_a_dash(void **state)
{
	(void)state;
	static const char *const forms[][4] = {
		{ "-9", "n1.17" },
		{ "n1.17", "-9" },
		{ "-s", "9", "n1.17" },
		{ "-s9", "n1.17" },
	};
	for (size_t i = 0; i < ARRAY_LEN(forms); i++) {
		Copia__KillRequest *q = must_read("kill", forms[i]);
		assert_string_equal(q->signal, "9");
		assert_int_equal(q->n_what, 1);
		done(q);
	}
	Copia__KillRequest *q = must_read("kill", WORDS("-HUP", "a", "b"));
	assert_string_equal(q->signal, "HUP");
	assert_int_equal(q->n_what, 2);
	done(q);
}

static void common_options_are_seen(void **state)
{
	(void)state;
	struct err err;
	struct args_common common;
	ProtobufCMessage *m = NULL;
	assert_int_equal(
	    read_words("nodes", WORDS("--json", "n1", "--wide", "--no-header"), &m, &common, &err),
	    0);
	assert_true(common.json && common.wide && common.no_header && !common.help);
	done(m);
	assert_int_equal(read_words("drain", WORDS("-h"), &m, &common, &err), 0);
	assert_true(common.help);
	assert_null(m);
}

static void mistakes_are_named(void **state)
{
	(void)state;
	static const char *const none[] = { NULL };
	must_fail("nodes", WORDS("--nmes"), "unknown option --nmes; did you mean --names?");
	must_fail("nodes", WORDS("--frobnicate=1"), "unknown option --frobnicate");
	must_fail("nodes", WORDS("-q"), "unknown option -q");
	must_fail("nodes", WORDS("--names=yes"), "--names takes no value");
	must_fail("nodes", WORDS("--json=yes"), "--json takes no value");
	must_fail("events", WORDS("-fn"), "unknown option -fn; write -f and what follows apart");
	must_fail("events", WORDS("-n"), "--lines needs a value: N");
	must_fail("events", WORDS("-n", "many"), "--lines: \"many\" is not a number");
	must_fail("events", WORDS("-n", "1001"), "--lines: 1001 is not between 0 and 1000");
	must_fail("events", WORDS("--since", "99999999999999999999"),
		  "--since: \"99999999999999999999\" is too large");
	must_fail("token", WORDS("--expires", "500ms"),
		  "--expires: 500ms is not between 1 s and 365 d 0 h");
	must_fail("token", WORDS("--expires", "5 s"),
		  "--expires: \"5 s\" does not end in one of: ms s m h d");
	must_fail("init", WORDS("--profile", "slow"),
		  "--profile: \"slow\" is not one of fast, lan, wan");
	must_fail("drain", none, "NODE is missing; usage: copia drain [OPTIONS] NODE");
	must_fail("drain", WORDS(""), "NODE: must not be empty");
	must_fail("drain", WORDS("n1", "n2"),
		  "unexpected argument \"n2\"; usage: copia drain [OPTIONS] NODE");
	must_fail("status", WORDS("x"), "unexpected argument \"x\"; usage: copia status");
}

/* Types that no verb of today has, on messages that have them. */
static struct verb_arg row(const ProtobufCMessageDescriptor *d, const char *field)
{
	const ProtobufCFieldDescriptor *f =
	    protobuf_c_message_descriptor_get_field_by_name(d, field);
	assert_non_null(f);
	return (struct verb_arg){ .field = (unsigned)(f - d->fields),
				  .name = field,
				  .value = "X",
				  .description = "",
				  .unit = "",
				  .complete = "",
				  .fallback = "",
				  .allowed = "" };
}

static void check_set(ProtobufCMessage *m, const char *field, const char *text, int code,
		      const char *message)
{
	struct err err = { 0 };
	struct verb_arg a = row(m->descriptor, field);
	assert_int_equal(args_set(m, &a, text, &err), code);
	assert_string_equal(err.msg, message);
}

static void every_type_is_read(void **state)
{
	(void)state;
	Copia__NodeLoad load = COPIA__NODE_LOAD__INIT;
	check_set(&load.base, "ut", "0.25", 0, "");
	assert_true(load.ut == 0.25);
	check_set(&load.base, "ut", "nan", -EINVAL, "\"nan\" is not a number");
	check_set(&load.base, "ut", " 1", -EINVAL, "\" 1\" is not a number");
	check_set(&load.base, "ut", "1e999", -ERANGE, "\"1e999\" is too large");
	check_set(&load.base, "ls", "4294967296", -ERANGE,
		  "4294967296 is not between 0 and 4294967295");

	Copia__Node *node = xcalloc(1, sizeof(*node));
	copia__node__init(node);
	check_set(&node->base, "fingerprint", "00fF10", 0, "");
	check_set(&node->base, "fingerprint", "a1b2", 0, "");
	assert_int_equal(node->fingerprint.len, 2);
	assert_int_equal(node->fingerprint.data[1], 0xb2);
	check_set(&node->base, "fingerprint", "0g", -EINVAL, "\"0g\" is not hexadecimal");
	check_set(&node->base, "drained", "yes", 0, "");
	assert_true(node->drained);
	check_set(&node->base, "drained", "perhaps", -EINVAL, "\"perhaps\" is not one of yes, no");
	check_set(&node->base, "state", "down", 0, "");
	assert_int_equal(node->state, COPIA__NODE_STATE__DOWN);
	check_set(&node->base, "state", "gone", -EINVAL,
		  "\"gone\" is not one of unknown, up, down, left");
	done(node);

	Copia__LaunchRankExit end = COPIA__LAUNCH_RANK_EXIT__INIT;
	check_set(&end.base, "status", "-7", 0, "");
	assert_int_equal(end.status, -7);
	check_set(&end.base, "status", "2147483648", -ERANGE,
		  "2147483648 is not between -2147483648 and 2147483647");
}

static void members_of_a_oneof_exclude_each_other(void **state)
{
	(void)state;
	Copia__RunUpdate *m = xcalloc(1, sizeof(*m));
	copia__run_update__init(m);
	check_set(&m->base, "note", "one", 0, "");
	check_set(&m->base, "note", "two", 0, "");
	assert_int_equal(m->body_case, COPIA__RUN_UPDATE__BODY_NOTE);
	assert_string_equal(m->note, "two");
	check_set(&m->base, "input_taken", "1", -EINVAL,
		  "cannot be combined with another option of its kind");
	done(m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(values_come_behind_blank_equals_or_letter),
		cmocka_unit_test(fallbacks_fill_what_was_not_given),
		cmocka_unit_test(last_of_two_counts_and_lists_collect),
		cmocka_unit_test(a_command_line_is_taken_as_it_stands),
		cmocka_unit_test(double_dash_ends_options),
		cmocka_unit_test(a_dash_alone_is_a_word),
		cmocka_unit_test(kill_takes_signals_with_a_dash),
		cmocka_unit_test(common_options_are_seen),
		cmocka_unit_test(mistakes_are_named),
		cmocka_unit_test(every_type_is_read),
		cmocka_unit_test(members_of_a_oneof_exclude_each_other),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
