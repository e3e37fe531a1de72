/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/json.h"

#include "lib/utf8.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>

static void add_hex(struct str *out, const uint8_t *at, size_t len)
{
	static const char digits[] = "0123456789abcdef";
	for (size_t i = 0; i < len; i++) {
		char two[2] = { digits[at[i] >> 4], digits[at[i] & 15] };
		str_add(out, two, 2);
	}
}

static void add_escaped(struct str *out, char c)
{
	static const char plain[] = "\"\\\b\f\n\r\t", letter[] = "\"\\bfnrt";
	const char *found = c ? strchr(plain, c) : NULL;
	if (found)
		str_printf(out, "\\%c", letter[found - plain]);
	else
		str_printf(out, "\\u%04x", (unsigned)(unsigned char)c);
}

void json_text(struct str *out, const char *text, size_t len)
{
	str_puts(out, "\"");
	for (size_t i = 0; i < len;) {
		size_t n = utf8_sequence(text + i, len - i);
		if (!n)
			str_puts(out, "\\ufffd");
		else if (n == 1 && ((unsigned char)text[i] < 0x20 || text[i] == 0x7f ||
				    text[i] == '"' || text[i] == '\\'))
			add_escaped(out, text[i]);
		else if (n == 2 && text[i] == '\xc2' && (unsigned char)text[i + 1] < 0xa0)
			add_escaped(out, text[i + 1]); /* U+0080…9F: terminals obey some */
		else
			str_add(out, text + i, n);
		i += n ? n : 1;
	}
	str_puts(out, "\"");
}

/* The shortest digits that read back as the same number. */
static void add_double(struct str *out, double value, int most)
{
	if (!isfinite(value)) {
		str_puts(out, "null");
		return;
	}
	char text[40];
	for (int digits = 1; digits <= most; digits++) {
		(void)snprintf(text, sizeof(text), "%.*g", digits, value);
		double back = strtod(text, NULL);
		if (most > 9 ? back == value : (float)back == (float)value)
			break;
	}
	str_puts(out, text);
}

char *enum_word(const ProtobufCEnumDescriptor *e, int value, char buf[64])
{
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(e, value);
	if (!v) {
		(void)snprintf(buf, 64, "%d", value);
		return buf;
	}
	/* NodeState with NODE_STATE_UP says "up": letters are compared, underscores are not. */
	const char *name = v->name, *own = e->short_name;
	while (*own && *name && (*name == '_' || toupper((unsigned char)*own) == *name)) {
		own += *name != '_';
		name++;
	}
	if (*own || *name != '_' || !name[1])
		name = v->name - 1;
	size_t len = 0;
	for (name++; *name && len < 63; name++)
		buf[len++] = *name == '_' ? '-' : (char)tolower((unsigned char)*name);
	buf[len] = '\0';
	return buf;
}

size_t field_size(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
	case PROTOBUF_C_TYPE_FLOAT:
	case PROTOBUF_C_TYPE_ENUM:
		return 4;
	case PROTOBUF_C_TYPE_BOOL:
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_BYTES:
		return sizeof(ProtobufCBinaryData);
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_MESSAGE:
		return sizeof(void *);
	default:
		return 8;
	}
}

const void *field_at(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
		     size_t *ret_count)
{
	const char *base = (const char *)m;
	if (f->label == PROTOBUF_C_LABEL_REPEATED) {
		*ret_count = *(const size_t *)(base + f->quantifier_offset);
		return *(void *const *)(base + f->offset);
	}
	*ret_count = 1;
	if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
		*ret_count = *(const uint32_t *)(base + f->quantifier_offset) == f->id;
	return base + f->offset;
}

struct writer {
	struct str *out;
	bool pretty;
	unsigned depth;
};

static void add_message(struct writer *w, const ProtobufCMessage *m);

static void new_line(struct writer *w)
{
	if (w->pretty)
		str_printf(w->out, "\n%*s", (int)(2 * w->depth), "");
}

static void add_value(struct writer *w, const ProtobufCFieldDescriptor *f, const void *at)
{
	const ProtobufCBinaryData *bytes = at;
	const char *text;
	char word[64];
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		str_printf(w->out, "%d", (int)*(const int32_t *)at);
		break;
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32:
		str_printf(w->out, "%u", (unsigned)*(const uint32_t *)at);
		break;
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		str_printf(w->out, "%lld", (long long)*(const int64_t *)at);
		break;
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		str_printf(w->out, "%llu", (unsigned long long)*(const uint64_t *)at);
		break;
	case PROTOBUF_C_TYPE_FLOAT:
		add_double(w->out, (double)*(const float *)at, 9);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		add_double(w->out, *(const double *)at, 17);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		str_puts(w->out, *(const protobuf_c_boolean *)at ? "true" : "false");
		break;
	case PROTOBUF_C_TYPE_ENUM:
		(void)enum_word(f->descriptor, *(const int *)at, word);
		json_text(w->out, word, strlen(word));
		break;
	case PROTOBUF_C_TYPE_STRING:
		text = *(char *const *)at ? *(char *const *)at : "";
		json_text(w->out, text, strlen(text));
		break;
	case PROTOBUF_C_TYPE_BYTES:
		str_puts(w->out, "\"");
		add_hex(w->out, bytes->data, bytes->len);
		str_puts(w->out, "\"");
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		add_message(w, *(ProtobufCMessage *const *)at);
		break;
	}
}

static void add_list(struct writer *w, const ProtobufCFieldDescriptor *f, const char *at,
		     size_t count)
{
	str_puts(w->out, "[");
	w->depth++;
	for (size_t i = 0; i < count; i++) {
		if (i)
			str_puts(w->out, ",");
		new_line(w);
		add_value(w, f, at + i * field_size(f));
	}
	w->depth--;
	if (count)
		new_line(w);
	str_puts(w->out, "]");
}

static void add_message(struct writer *w, const ProtobufCMessage *m)
{
	if (!m || w->depth / 2 >= JSON_DEPTH_MAX) {
		str_puts(w->out, "null");
		return;
	}
	str_puts(w->out, "{");
	w->depth++;
	bool first = true;
	for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
		const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
		size_t count;
		const void *at = field_at(m, f, &count);
		bool repeated = f->label == PROTOBUF_C_LABEL_REPEATED;
		if (!count && !repeated)
			continue;
		str_puts(w->out, first ? "" : ",");
		first = false;
		new_line(w);
		str_printf(w->out, "\"%s\":%s", f->name, w->pretty ? " " : "");
		if (repeated)
			add_list(w, f, at, count);
		else
			add_value(w, f, at);
	}
	w->depth--;
	if (!first)
		new_line(w);
	str_puts(w->out, "}");
}

void json_message(struct str *out, const ProtobufCMessage *m, bool pretty)
{
	struct writer w = { .out = out, .pretty = pretty };
	add_message(&w, m);
}
