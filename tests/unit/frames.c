/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/frames.h"
#include "../test.h"
#include "lib/conn.h"

#include "schema/members.pb-c.h"

#include <errno.h>

static void put(struct str *out, uint64_t call, const char *text, bool last)
{
	Copia__ControlFrame head = COPIA__CONTROL_FRAME__INIT;
	Copia__DoneReply body = COPIA__DONE_REPLY__INIT;
	head.call = call;
	head.last = last;
	body.text = (char *)text;
	assert_int_equal(frame_put(out, &head, &body.base, NULL), 0);
}

static void frames_come_out_as_they_went_in(void **state)
{
	(void)state;
	_cleanup_(str_free) struct str bytes = { 0 };
	static const size_t sizes[] = { 1, 119, 120, 16376, 16377, 16378, 70000 };
	char *text = xmalloc(70001);
	for (size_t i = 0; i < ARRAY_LEN(sizes); i++) {
		memset(text, 'x', sizes[i]);
		text[sizes[i]] = '\0';
		put(&bytes, i + 1, text, i % 2);
	}
	/* Byte by byte: a frame is there with its last byte, not before. */
	struct frame_reader r = { 0 };
	size_t found = 0;
	for (size_t i = 0; i < bytes.len; i++) {
		str_add(&r.in, bytes.at + i, 1);
		Copia__ControlFrame *f = NULL;
		struct err err = { 0 };
		if (frame_take(&r, &f, &err) == 0)
			continue;
		Copia__DoneReply *body = copia__done_reply__unpack(NULL, f->body.len, f->body.data);
		assert_non_null(body);
		assert_int_equal(strlen(body->text), sizes[found]);
		assert_int_equal(f->call, found + 1);
		assert_int_equal(f->last, found % 2);
		found++;
		copia__done_reply__free_unpacked(body, NULL);
		copia__control_frame__free_unpacked(f, NULL);
	}
	assert_int_equal(found, ARRAY_LEN(sizes));
	assert_int_equal(r.in.len, r.at);
	str_free(&r.in);
	free(text);
}

static void a_frame_without_body_is_as_small_as_it_can_be(void **state)
{
	(void)state;
	_cleanup_(str_free) struct str bytes = { 0 };
	Copia__ControlFrame head = COPIA__CONTROL_FRAME__INIT;
	head.call = 1;
	assert_int_equal(frame_put(&bytes, &head, NULL, NULL), 0);
	assert_int_equal(bytes.len, 6);
	assert_memory_equal(bytes.at, "\x02\0\0\0\x08\x01", 6);
}

static void too_large_is_refused_on_both_ways(void **state)
{
	(void)state;
	_cleanup_(str_free) struct str bytes = { 0 };
	Copia__ControlFrame head = COPIA__CONTROL_FRAME__INIT;
	Copia__DoneReply body = COPIA__DONE_REPLY__INIT;
	struct err err = { 0 };
	body.text = xcalloc(1, CONN_FRAME_MAX + 1);
	memset(body.text, 'x', CONN_FRAME_MAX);
	assert_int_equal(frame_put(&bytes, &head, &body.base, &err), -EMSGSIZE);
	assert_int_equal(bytes.len, 0);
	free(body.text);

	struct frame_reader r = { 0 };
	Copia__ControlFrame *f = NULL;
	str_add(&r.in, "\x01\x00\x10\x00", 4); /* 1 MiB and one byte */
	assert_int_equal(frame_take(&r, &f, &err), -EPROTO);
	assert_string_equal(err.msg, "the daemon sent a frame of 1048577 bytes (at most 1048576)");
	str_free(&r.in);
}

static void nonsense_is_an_error(void **state)
{
	(void)state;
	struct frame_reader r = { 0 };
	Copia__ControlFrame *f = NULL;
	struct err err = { 0 };
	str_add(&r.in, "\x03\0\0\0\xff\xff\xff", 7);
	assert_int_equal(frame_take(&r, &f, &err), -EPROTO);
	assert_string_equal(err.msg, "the daemon sent 3 bytes that are no frame");
	str_free(&r.in);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(frames_come_out_as_they_went_in),
		cmocka_unit_test(a_frame_without_body_is_as_small_as_it_can_be),
		cmocka_unit_test(too_large_is_refused_on_both_ways),
		cmocka_unit_test(nonsense_is_an_error),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
