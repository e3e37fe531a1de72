/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/json.h"
#include "../test.h"

#include "schema/launch.pb-c.h"
#include "schema/members.pb-c.h"

#include <jansson.h>
#include <math.h>

static void check(const ProtobufCMessage *m, const char *expected)
{
	_cleanup_(str_free) struct str out = { 0 };
	json_message(&out, m, false);
	assert_string_equal(str_text(&out), expected);
}

static void defaults_are_written(void **state)
{
	(void)state;
	Copia__NodesRequest q = COPIA__NODES_REQUEST__INIT;
	check(&q.base, "{\"names\":false,\"nodes\":\"\",\"all\":false}");
}

static void numbers_are_numbers(void **state)
{
	(void)state;
	Copia__LaunchLimit l = COPIA__LAUNCH_LIMIT__INIT;
	l.resource = UINT32_MAX;
	l.soft = UINT64_MAX;
	check(&l.base, "{\"resource\":4294967295,\"soft\":18446744073709551615,\"hard\":0}");
}

static void doubles_read_back_the_same(void **state)
{
	(void)state;
	static const double values[] = { 0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, -2.5, 1e15 };
	for (size_t i = 0; i < ARRAY_LEN(values); i++) {
		Copia__NodeLoad load = COPIA__NODE_LOAD__INIT;
		load.r15s = values[i];
		_cleanup_(str_free) struct str out = { 0 };
		json_message(&out, &load.base, false);
		json_t *back = json_loads(str_text(&out), 0, NULL);
		assert_non_null(back);
		assert_true(json_number_value(json_object_get(back, "r15s")) == values[i]);
		json_decref(back);
	}
	Copia__NodeLoad load = COPIA__NODE_LOAD__INIT;
	load.r15s = NAN;
	load.r1m = INFINITY;
	_cleanup_(str_free) struct str out = { 0 };
	json_message(&out, &load.base, false);
	assert_non_null(strstr(str_text(&out), "\"r15s\":null,\"r1m\":null,"));
}

static void text_is_escaped_and_mended(void **state)
{
	(void)state;
	Copia__DoneReply reply = COPIA__DONE_REPLY__INIT;
	reply.text = (char *)"a\"b\\\n\t\x01\x7f\xc3\xa9";
	check(&reply.base, "{\"text\":\"a\\\"b\\\\\\n\\t\\u0001\\u007f\xc3\xa9\"}");
	reply.text = (char *)"x\xffy\xc0\x80\xed\xa0\x80\xc2\x9b";
	check(&reply.base, "{\"text\":\"x\\ufffdy\\ufffd\\ufffd\\ufffd\\ufffd\\ufffd\\u009b\"}");
}

static void enums_are_words_without_their_name(void **state)
{
	(void)state;
	char word[64];
	assert_string_equal(
	    enum_word(&copia__node_state__descriptor, COPIA__NODE_STATE__DOWN, word), "down");
	assert_string_equal(
	    enum_word(&copia__mpi_library__descriptor, COPIA__MPI_LIBRARY__MPI_LIBRARY_PMI1, word),
	    "pmi1");
	assert_string_equal(enum_word(&copia__launch_wireup_event__descriptor,
				      COPIA__LAUNCH_WIREUP_EVENT__LAUNCH_WIREUP_CLOSING, word),
			    "launch-wireup-closing");
	assert_string_equal(enum_word(&copia__node_state__descriptor, 77, word), "77");
}

static void only_the_set_member_of_a_oneof_is_written(void **state)
{
	(void)state;
	Copia__RunUpdate u = COPIA__RUN_UPDATE__INIT;
	check(&u.base, "{}");
	u.body_case = COPIA__RUN_UPDATE__BODY_INPUT_TAKEN;
	u.input_taken = 7;
	check(&u.base, "{\"input_taken\":7}");
}

static void messages_lists_and_bytes_nest(void **state)
{
	(void)state;
	uint8_t hash[] = { 0x00, 0xab };
	Copia__LaunchFile file = COPIA__LAUNCH_FILE__INIT;
	file.hash = (ProtobufCBinaryData){ sizeof(hash), hash };
	file.name = (char *)"p";
	char *argv[] = { (char *)"p", (char *)"-x" };
	Copia__LaunchProgram p = COPIA__LAUNCH_PROGRAM__INIT;
	p.file = &file;
	p.n_argv = 2;
	p.argv = argv;
	check(&p.base,
	      "{\"argv\":[\"p\",\"-x\"],\"file\":{\"hash\":\"00ab\",\"size_bytes\":0,"
	      "\"mode\":0,\"name\":\"p\",\"path\":\"\"},\"machine\":0,\"library\":\"none\","
	      "\"ranks\":0}");
	p.file = NULL;
	p.n_argv = 0;
	check(&p.base,
	      "{\"argv\":[],\"file\":null,\"machine\":0,\"library\":\"none\",\"ranks\":0}");
}

static void pretty_is_indented(void **state)
{
	(void)state;
	char *argv[] = { (char *)"p" };
	Copia__LaunchProgram p = COPIA__LAUNCH_PROGRAM__INIT;
	p.n_argv = 1;
	p.argv = argv;
	_cleanup_(str_free) struct str out = { 0 };
	json_message(&out, &p.base, true);
	assert_string_equal(str_text(&out),
			    "{\n  \"argv\": [\n    \"p\"\n  ],\n  \"file\": null,\n"
			    "  \"machine\": 0,\n  \"library\": \"none\",\n  \"ranks\": 0\n}");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(defaults_are_written),
		cmocka_unit_test(numbers_are_numbers),
		cmocka_unit_test(doubles_read_back_the_same),
		cmocka_unit_test(text_is_escaped_and_mended),
		cmocka_unit_test(enums_are_words_without_their_name),
		cmocka_unit_test(only_the_set_member_of_a_oneof_is_written),
		cmocka_unit_test(messages_lists_and_bytes_nest),
		cmocka_unit_test(pretty_is_indented),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
