/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens, frames and greetings, as texts and bytes. */
#include "wire/frame.h"
#include "wire/session.h"
#include "wire/token.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
/* cmocka wants the four above before itself. */
#include <cmocka.h>

static const struct token sample = {
	.secret = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255 },
	.authority = { 0x80, [31] = 0x7f },
};

static void assert_same(const struct token *a, const struct token *b)
{
	assert_memory_equal(a, b, sizeof(*a));
}

/* Goal: what is written is read again, also in capitals, with blanks around it, and with the
 * letters that people confuse. */
static void token_survives_people(void **state)
{
	char text[TOKEN_TEXT], other[TOKEN_TEXT + 8];
	struct token t;
	(void)token_encode(&sample, text);
	assert_int_equal(strlen(text), TOKEN_TEXT - 1);
	assert_memory_equal(text, "copia1-", 7);
	assert_int_equal(token_decode(text, &t, NULL), 0);
	assert_same(&t, &sample);

	(void)snprintf(other, sizeof(other), " \t%s\r\n", text);
	for (char *c = other; *c; c++)
		*c = *c == '0' ? 'O' : *c >= 'a' && *c <= 'z' ? (char)(*c - 32) : *c;
	memset(&t, 0, sizeof(t));
	assert_int_equal(token_decode(other, &t, NULL), 0);
	assert_same(&t, &sample);
}

/* Goal: every wrong, missing, doubled or exchanged character is called mistyped, never a wrong
 * token, and no message shows the token. */
static void mistyped_token_is_told(void **state)
{
	char text[TOKEN_TEXT], wrong[TOKEN_TEXT + 1];
	struct token t = { 0 }, none = { 0 };
	struct err err = { 0 };
	(void)token_encode(&sample, text);
	for (size_t i = 7; i < TOKEN_TEXT - 1; i++) {
		for (const char *c = "0123456789abcdefghjkmnpqrstvwxyz!-u"; *c; c++) {
			memcpy(wrong, text, sizeof(text));
			wrong[i] = *c;
			assert_int_equal(token_decode(wrong, &t, &err),
					 *c == text[i] ? 0 : -EBADMSG);
		}
		(void)snprintf(wrong, sizeof(wrong), "%.*s%s", (int)i, text, text + i + 1);
		assert_int_equal(token_decode(wrong, &t, &err), -EBADMSG);
		(void)snprintf(wrong, sizeof(wrong), "%.*s%s", (int)i + 1, text, text + i);
		assert_int_equal(token_decode(wrong, &t, &err), -EBADMSG);
		assert_non_null(strstr(err.msg, "token is mistyped"));
		assert_null(strstr(err.msg, text + TOKEN_TEXT - 9));
		if (i + 1 < TOKEN_TEXT - 1 && text[i] != text[i + 1]) {
			memcpy(wrong, text, sizeof(text));
			wrong[i] = text[i + 1];
			wrong[i + 1] = text[i];
			assert_int_equal(token_decode(wrong, &t, &err), -EBADMSG);
		}
	}
	t = none;
	text[5] = '2';
	assert_int_equal(token_decode(text, &t, &err), -EPROTONOSUPPORT);
	assert_int_equal(token_decode("", &t, &err), -EINVAL);
	assert_int_equal(token_decode("copia", &t, &err), -EINVAL);
	assert_int_equal(token_decode("copia1", &t, &err), -EINVAL);
	assert_int_equal(token_decode("copia1-", &t, &err), -EBADMSG);
	assert_same(&t, &none);
}

static const struct {
	const char *text, *host; /* host NULL: refused with `port` as the code */
	int port;
} hosts[] = {
	{ "10.0.0.1", "10.0.0.1", 7440 },
	{ "10.0.0.1:80", "10.0.0.1", 80 },
	{ "n1.example.org", "n1.example.org", 7440 },
	{ "n1:65535", "n1", 65535 },
	{ "fd00::1", "fd00::1", 7440 },
	{ "::1", "::1", 7440 },
	{ "[fd00::1]", "fd00::1", 7440 },
	{ "[fd00::1]:81", "fd00::1", 81 },
	{ "[fe80::1%eth0]:81", "fe80::1%eth0", 81 },
	{ "fe80::1%eth0", "fe80::1%eth0", 7440 },
	{ "", NULL, -EINVAL },
	{ ":80", NULL, -EINVAL },
	{ "n1:", NULL, -EINVAL },
	{ "n1:0", NULL, -ERANGE },
	{ "n1:65536", NULL, -ERANGE },
	{ "n1:8o", NULL, -EINVAL },
	{ "[::1", NULL, -EINVAL },
	{ "[::1]80", NULL, -EINVAL },
	{ "[::1]:", NULL, -EINVAL },
	{ "[n1]:80", NULL, -EINVAL },
	{ "[]:80", NULL, -EINVAL },
	{ "n1 n2", NULL, -EINVAL },
	{ "http://n1", NULL, -EINVAL },
	{ "-n1", NULL, -EINVAL },
	{ "n1@n2", NULL, -EINVAL },
};

/* Goal: TOKEN@HOST[:PORT] is split as documented for names, IPv4 and IPv6. */
static void target_is_split(void **state)
{
	char text[TOKEN_TEXT], target[TOKEN_TEXT + 600], host[TOKEN_HOST_TEXT];
	(void)token_encode(&sample, text);
	for (size_t i = 0; i < ARRAY_LEN(hosts); i++) {
		struct token t = { 0 };
		uint16_t port = 1;
		struct err err = { 0 };
		(void)snprintf(host, sizeof(host), "unchanged");
		(void)snprintf(target, sizeof(target), "%s@%s\n", text, hosts[i].text);
		int r = token_target_parse(target, 7440, &t, host, &port, &err);
		if (hosts[i].host) {
			assert_int_equal(r, 0);
			assert_string_equal(host, hosts[i].host);
			assert_int_equal(port, hosts[i].port);
			assert_same(&t, &sample);
		} else {
			assert_int_equal(r, hosts[i].port);
			assert_string_equal(host, "unchanged");
			assert_null(strstr(err.msg, text));
		}
	}
	struct token t;
	uint16_t port;
	struct err err = { 0 };
	assert_int_equal(token_target_parse(text, 1, &t, host, &port, &err), -EINVAL);
	assert_int_equal(token_target_parse("n1@n2", 1, &t, host, &port, &err), -EINVAL);
	/* Names that are too long, by a little and by a lot. */
	for (size_t len = TOKEN_HOST_TEXT - 1; len < TOKEN_HOST_TEXT + 300; len++) {
		int at = snprintf(target, sizeof(target), "%s@", text);
		memset(target + at, 'a', len);
		target[(size_t)at + len] = '\0';
		assert_int_equal(token_target_parse(target, 1, &t, host, &port, &err),
				 len < TOKEN_HOST_TEXT ? 0 : -EINVAL);
	}
}

/* ------------------------------------------------------------------------------------ frames */

struct seen {
	unsigned count;
	struct str text;
	struct frame_decoder *decoder;
	const struct frame_limits *next_limits;
	int answer;
};

static int on_message(void *ctx, uint8_t channel, struct span body)
{
	struct seen *s = ctx;
	s->count++;
	str_printf(&s->text, "%u:%.*s;", channel, (int)body.len, (const char *)body.at);
	if (s->next_limits)
		s->decoder->limits = s->next_limits;
	return s->answer;
}

static const struct frame_limits narrow = { .message_max = { [1] = 8 } };
static const struct frame_limits wide = { .message_max = { [1] = 8, [2] = 100000 } };

/* Goal: messages come out in order and whole, whatever the portions. */
static void frames_survive_any_cut(void **state)
{
	_cleanup_(str_free) struct str in = { 0 };
	frame_append(&in, 1, "one", 3);
	uint8_t header[FRAME_HEADER_SIZE];
	frame_header(header, 2, FRAME_MORE, 2);
	str_add(&in, header, sizeof(header));
	str_puts(&in, "tw");
	frame_append(&in, 1, "", 0);
	frame_append(&in, 2, "o", 1);
	for (size_t portion = 1; portion <= in.len; portion++) {
		struct frame_decoder d = { .limits = &wide };
		struct seen s = { 0 };
		for (size_t at = 0; at < in.len; at += portion)
			assert_int_equal(frame_feed(&d, in.at + at, MIN(portion, in.len - at),
						    on_message, &s, NULL),
					 0);
		assert_string_equal(str_text(&s.text), "1:one;1:;2:two;");
		assert_false(frame_is_partial(&d));
		str_free(&s.text);
		frame_decoder_free(&d);
	}
}

/* Goal: a long message is cut into frames and comes out as one. */
static void long_message_is_one(void **state)
{
	_cleanup_(str_free) struct str in = { 0 };
	char *body = xcalloc(1, 100000);
	frame_append(&in, 2, body, 100000);
	assert_int_equal(in.len, 100000 + 4 * FRAME_HEADER_SIZE);
	struct frame_decoder d = { .limits = &wide };
	struct seen s = { 0 };
	assert_int_equal(frame_feed(&d, in.at, in.len, on_message, &s, NULL), 0);
	assert_int_equal(s.count, 1);
	/* One byte more is over the limit, and seen before it has arrived. */
	frame_append(&in, 2, body, 32768);
	str_clear(&in);
	str_free(&s.text);
	for (int i = 0; i < 3; i++) {
		uint8_t header[FRAME_HEADER_SIZE];
		frame_header(header, 2, FRAME_MORE, FRAME_BODY_MAX);
		str_add(&in, header, sizeof(header));
		str_add(&in, body, FRAME_BODY_MAX);
	}
	assert_int_equal(frame_feed(&d, in.at, in.len, on_message, &s, NULL), 0);
	assert_true(frame_is_partial(&d));
	uint8_t header[FRAME_HEADER_SIZE];
	frame_header(header, 2, 0, 100000 - 3 * FRAME_BODY_MAX + 1);
	assert_int_equal(frame_feed(&d, header, sizeof(header), on_message, &s, NULL), -EMSGSIZE);
	assert_int_equal(s.count, 1);
	frame_decoder_free(&d);
	free(body);
}

/* Goal: what is not a frame is an error at its header, and the decoder takes nothing after it. */
static void bad_frames_are_errors(void **state)
{
	static const struct {
		uint8_t bytes[FRAME_HEADER_SIZE];
		int code;
	} cases[] = {
		{ { 1, 0, 0, 0, 0, 0 }, -EPROTO },           /* channel 0 is closed */
		{ { 1, 0, 0, 0, 3, 0 }, -EPROTO },           /* so is 3 */
		{ { 1, 0, 0, 0, 255, 0 }, -EPROTO },         /* there is none */
		{ { 1, 0, 0, 0, 1, 2 }, -EPROTO },           /* unknown flag */
		{ { 0, 0, 0, 0, 1, 1 }, -EPROTO },           /* nothing, and more of it */
		{ { 9, 0, 0, 0, 1, 0 }, -EMSGSIZE },         /* over its channel's limit */
		{ { 1, 128, 0, 0, 2, 0 }, -EMSGSIZE },       /* over a frame's limit */
		{ { 255, 255, 255, 255, 2, 0 }, -EMSGSIZE }, /* 4 GiB */
		{ { 'G', 'E', 'T', ' ', '/', ' ' }, -EPROTO },
	};
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		struct frame_decoder d = { .limits = &wide };
		struct seen s = { 0 };
		struct err err = { 0 };
		assert_int_equal(
		    frame_feed(&d, cases[i].bytes, FRAME_HEADER_SIZE, on_message, &s, &err),
		    cases[i].code);
		assert_true(*err.msg);
		assert_int_equal(frame_feed(&d, "\0\0\0\0\1\0", 6, on_message, &s, &err), -EPROTO);
		assert_int_equal(s.count, 0);
		frame_decoder_free(&d);
	}
}

/* Goal: limits exchanged by a message's receiver hold for the very next message. */
static void limits_change_between_messages(void **state)
{
	_cleanup_(str_free) struct str in = { 0 };
	frame_append(&in, 1, "a", 1);
	frame_append(&in, 2, "b", 1);
	struct frame_decoder d = { .limits = &narrow };
	struct seen s = { .decoder = &d, .next_limits = &wide };
	assert_int_equal(frame_feed(&d, in.at, in.len, on_message, &s, NULL), 0);
	assert_string_equal(str_text(&s.text), "1:a;2:b;");
	struct frame_decoder closed = { .limits = &narrow };
	struct seen stopped = { .answer = -ECANCELED };
	assert_int_equal(frame_feed(&closed, in.at, in.len, on_message, &stopped, NULL),
			 -ECANCELED);
	assert_int_equal(stopped.count, 1);
	str_free(&s.text);
	str_free(&stopped.text);
	frame_decoder_free(&d);
	frame_decoder_free(&closed);
}

/* Goal: greetings and refusals say the same when read, and versions are agreed on or not. */
static void greetings_are_read(void **state)
{
	struct session_message m = { .type = SESSION_HELLO,
				     .version_min = 1,
				     .version_max = 3,
				     .cluster = { { 1, 2, 3 } },
				     .node = 7,
				     .incarnation = UINT64_MAX,
				     .order = 5 },
			       got;
	struct str out = { 0 };
	session_write(&out, &m);
	for (size_t len = 0; len < out.len; len++)
		assert_int_equal(session_read((struct span){ (uint8_t *)out.at, len }, &got, NULL),
				 -EPROTO);
	str_puts(&out, "of a later version");
	assert_int_equal(session_read((struct span){ (uint8_t *)out.at, out.len }, &got, NULL), 0);
	assert_int_equal(got.node, 7);
	assert_true(got.incarnation == UINT64_MAX && got.order == 5);
	assert_int_equal(id_compare(&got.cluster, &m.cluster), 0);
	str_free(&out);

	assert_int_equal(session_version(1, 3, 2, 5), 3);
	assert_int_equal(session_version(1, 3, 3, 3), 3);
	assert_int_equal(session_version(1, 2, 3, 4), 0);
	assert_int_equal(session_version(5, 6, 3, 4), 0);
	char text[SESSION_TEXT_MAX + 1];
	assert_string_equal(session_text((struct span){ (const uint8_t *)"a\x1b[31mb\n", 8 }, text),
			    "a?[31mb?");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(token_survives_people),
		cmocka_unit_test(mistyped_token_is_told),
		cmocka_unit_test(target_is_split),
		cmocka_unit_test(frames_survive_any_cut),
		cmocka_unit_test(long_message_is_one),
		cmocka_unit_test(bad_frames_are_errors),
		cmocka_unit_test(limits_change_between_messages),
		cmocka_unit_test(greetings_are_read),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
