/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/show.h"
#include "../test.h"

#include "schema/members.pb-c.h"

static void check_reply(const char *verb, const ProtobufCMessage *m, const struct show_style *s,
			const char *expected)
{
	_cleanup_(str_free) struct str out = { 0 };
	show_reply(&out, verb_find(verb), m, s);
	assert_string_equal(str_text(&out), expected);
}

/* Two findings: a table of text alone, with one cell that is empty. */
struct table {
	Copia__Finding rows[2];
	Copia__Finding *list[2];
	Copia__DoctorReply reply;
};

static void fill(struct table *t, const char *what)
{
	static const char *const levels[] = { "ok", "problem" };
	for (int i = 0; i < 2; i++) {
		copia__finding__init(&t->rows[i]);
		t->rows[i].level = (char *)levels[i];
		t->rows[i].what = (char *)(i ? what : "fine");
		t->rows[i].effect = (char *)(i ? "slow" : "");
		t->rows[i].remedy = (char *)"none";
		t->list[i] = &t->rows[i];
	}
	copia__doctor_reply__init(&t->reply);
	t->reply.n_findings = 2;
	t->reply.findings = t->list;
}

static void columns_stand_below_each_other(void **state)
{
	(void)state;
	struct table t;
	fill(&t, "caf\xc3\xa9");
	check_reply("doctor", &t.reply.base, &(struct show_style){ 0 },
		    "LEVEL    WHAT  EFFECT  REMEDY\n"
		    "ok       fine  -       none\n"
		    "problem  caf\xc3\xa9  slow    none\n");
	check_reply("doctor", &t.reply.base, &(struct show_style){ .no_header = true },
		    "ok       fine  -     none\n"
		    "problem  caf\xc3\xa9  slow  none\n");
	check_reply("doctor", &t.reply.base, &(struct show_style){ .names = true },
		    "ok\nproblem\n");
}

static void an_empty_table_has_its_heading(void **state)
{
	(void)state;
	Copia__DoctorReply reply = COPIA__DOCTOR_REPLY__INIT;
	check_reply("doctor", &reply.base, &(struct show_style){ 0 },
		    "LEVEL  WHAT  EFFECT  REMEDY\n");
	check_reply("doctor", &reply.base, &(struct show_style){ .names = true }, "");
}

static void wide_text_is_cut_to_the_terminal(void **state)
{
	(void)state;
	struct table t;
	fill(&t, "a rather l\xc3\xb6ng sentence that does not fit");
	check_reply("doctor", &t.reply.base, &(struct show_style){ .columns = 40 },
		    "LEVEL    WHAT             EFFECT  REMEDY\n"
		    "ok       fine             -       none\n"
		    "problem  a rather l\xc3\xb6ng \xe2\x80\xa6  slow    none\n");
}

static void states_are_coloured_on_request(void **state)
{
	(void)state;
	struct table t;
	fill(&t, "x");
	check_reply("doctor", &t.reply.base, &(struct show_style){ .colour = true },
		    "\x1b[1mLEVEL\x1b[0m    \x1b[1mWHAT\x1b[0m  \x1b[1mEFFECT\x1b[0m  "
		    "\x1b[1mREMEDY\x1b[0m\n"
		    "\x1b[32mok\x1b[0m       fine  -       none\n"
		    "\x1b[31mproblem\x1b[0m  x     slow    none\n");
}

static void nobody_commands_the_terminal(void **state)
{
	(void)state;
	struct table t;
	fill(&t, "a\x1b[2Jb\nc\td\x7f\xff\xc2\x9b");
	check_reply("doctor", &t.reply.base, &(struct show_style){ .no_header = true },
		    "ok       fine           -     none\n"
		    "problem  a?[2Jb c d???  slow  none\n");
	Copia__DoneReply done = COPIA__DONE_REPLY__INIT;
	done.text = (char *)"one\ntwo\x1b";
	check_reply("drain", &done.base, &(struct show_style){ 0 }, "one\ntwo?\n");
}

static void fields_are_labelled(void **state)
{
	(void)state;
	char *warnings[] = { (char *)"disk full", (char *)"clock odd" };
	Copia__StatusReply reply = COPIA__STATUS_REPLY__INIT;
	reply.cluster = (char *)"lab";
	reply.health = (char *)"ok";
	reply.lease_left_ms = 1500;
	reply.n_warnings = 2;
	reply.warnings = warnings;
	_cleanup_(str_free) struct str out = { 0 };
	show_reply(&out, verb_find("status"), &reply.base, &(struct show_style){ 0 });
	assert_non_null(strstr(str_text(&out), "cluster:        lab\n"));
	assert_non_null(strstr(str_text(&out), "lease left:     1 s\n"));
	assert_non_null(strstr(str_text(&out), "warnings:       disk full\n"
					       "                clock odd\n"));
	assert_null(strstr(str_text(&out), "leader:"));     /* empty */
	assert_null(strstr(str_text(&out), "in cluster:")); /* only with --wide */
}

static void nodes_show_sizes_and_load(void **state)
{
	(void)state;
	char *addresses[] = { (char *)"10.0.0.1", (char *)"fe80::1" };
	Copia__NodeLoad load = COPIA__NODE_LOAD__INIT;
	load.ut = 0.5;
	Copia__NodeRow row = COPIA__NODE_ROW__INIT, *rows[] = { &row };
	row.name = (char *)"n1";
	row.state = (char *)"up";
	row.memory_bytes = 3ULL << 30;
	row.load = &load;
	row.n_addresses = 2;
	row.addresses = addresses;
	Copia__NodesReply reply = COPIA__NODES_REPLY__INIT;
	reply.n_nodes = 1;
	reply.nodes = rows;
	_cleanup_(str_free) struct str out = { 0 };
	show_reply(&out, verb_find("nodes"), &reply.base, &(struct show_style){ .wide = true });
	assert_non_null(strstr(str_text(&out), "3.0 GiB"));
	assert_non_null(strstr(str_text(&out), " 50% "));
	assert_non_null(strstr(str_text(&out), "10.0.0.1,fe80::1"));
	row.load = NULL;
	str_clear(&out);
	show_reply(&out, verb_find("nodes"), &reply.base, &(struct show_style){ .wide = true });
	assert_null(strstr(str_text(&out), "50%"));
}

static void lines_of_a_stream_keep_their_columns(void **state)
{
	(void)state;
	const struct verb *v = verb_find("events");
	struct show_widths w = { 0 };
	Copia__Event e = COPIA__EVENT__INIT;
	_cleanup_(str_free) struct str out = { 0 };
	e.revision = 10;
	e.kind = (char *)"node-joined";
	e.object = (char *)"node n1";
	e.text = (char *)"joined";
	show_line(&out, v, &e.base, &w, &(struct show_style){ 0 });
	e.revision = 9;
	e.kind = (char *)"leader";
	show_line(&out, v, &e.base, &w, &(struct show_style){ 0 });
	assert_string_equal(str_text(&out), "10  -  node-joined  node n1  joined\n"
					    " 9  -  leader       node n1  joined\n");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(columns_stand_below_each_other),
		cmocka_unit_test(an_empty_table_has_its_heading),
		cmocka_unit_test(wide_text_is_cut_to_the_terminal),
		cmocka_unit_test(states_are_coloured_on_request),
		cmocka_unit_test(nobody_commands_the_terminal),
		cmocka_unit_test(fields_are_labelled),
		cmocka_unit_test(nodes_show_sizes_and_load),
		cmocka_unit_test(lines_of_a_stream_keep_their_columns),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
