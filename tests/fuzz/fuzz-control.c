/* SPDX-License-Identifier: Apache-2.0 */
/* What a daemon gone mad says: frames in any pieces, and their bodies shown in every way. JSON is
 * read back by another implementation, and what is shown holds no control characters. */
#include "base/str.h"
#include "cli/show.h"
#include "lib/frames.h"
#include "lib/json.h"

#include <assert.h>
#include <jansson.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void check_harmless(const struct str *shown)
{
	for (size_t i = 0; i < shown->len; i++) {
		unsigned char c = (unsigned char)shown->at[i];
		assert(c >= 0x20 || c == '\n' || c == '\t');
		assert(c != 0x7f);
	}
}

static void check_json(const ProtobufCMessage *m)
{
	for (int pretty = 0; pretty < 2; pretty++) {
		_cleanup_(str_free) struct str text = { 0 };
		json_message(&text, m, pretty);
		json_error_t error;
		/* Numbers over 2^63 are more than this reader's integers hold. */
		json_t *back = json_loadb(text.at, text.len, JSON_DECODE_INT_AS_REAL, &error);
		assert(back);
		json_decref(back);
	}
}

static void check_body(const struct verb *v, const ProtobufCBinaryData *body, unsigned look)
{
	ProtobufCMessage *m = protobuf_c_message_unpack(v->reply, NULL, body->len, body->data);
	if (!m)
		return;
	_cleanup_(str_free) struct str shown = { 0 };
	struct show_style style = { .columns = look & 1 ? 60 : 0,
				    .wide = look & 2,
				    .no_header = look & 4,
				    .names = look & 8 };
	struct show_widths widths = { 0 };
	check_json(m);
	show_reply(&shown, v, m, &style);
	if (v->view == VERB_LINES)
		show_line(&shown, v, m, &widths, &style);
	check_harmless(&shown);
	protobuf_c_message_free_unpacked(m, NULL);
}

/* A frame put again says the same. */
static void check_again(Copia__ControlFrame *f)
{
	Copia__ControlFrame head = *f;
	head.body = (ProtobufCBinaryData){ 0 };
	head.base.n_unknown_fields = 0;
	struct frame_reader r = { 0 };
	if (frame_put(&r.in, &head, NULL, NULL) < 0)
		return;
	Copia__ControlFrame *back = NULL;
	int taken = frame_take(&r, &back, NULL);
	assert(taken == 1 && r.at == r.in.len);
	assert(back->call == f->call && back->code == f->code && back->last == f->last);
	assert(!strcmp(back->verb, f->verb) && !strcmp(back->error, f->error));
	copia__control_frame__free_unpacked(back, NULL);
	str_free(&r.in);
}

/* First byte: how it is shown and in how large pieces it comes. */
int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	if (!len)
		return 0;
	struct frame_reader r = { 0 };
	size_t piece = (bytes[0] >> 4) * 7 + 1;
	bool good = true;
	for (size_t at = 1; at < len && good; at += piece) {
		str_add(&r.in, bytes + at, MIN(piece, len - at));
		Copia__ControlFrame *f = NULL;
		int taken;
		while ((taken = frame_take(&r, &f, NULL)) > 0) {
			const struct verb *v = verb_find(f->verb);
			if (!v)
				v = &verbs[f->call % verb_count];
			check_body(v, &f->body, bytes[0]);
			check_again(f);
			copia__control_frame__free_unpacked(f, NULL);
		}
		good = taken == 0;
	}
	str_free(&r.in);
	return 0;
}
