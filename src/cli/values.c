/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/values.h"

#include "base/str.h"
#include "base/units.h"
#include "lib/json.h"

#include <assert.h>
#include <errno.h>
#include <float.h>
#include <stdio.h>

enum { BYTES_MAX = 64 }; /* ids and hashes are the only bytes that people type */

/* Room for one element of any type. */
union value {
	int32_t i32;
	uint32_t u32;
	int64_t i64;
	uint64_t u64;
	float f32;
	double f64;
	protobuf_c_boolean flag;
	char *text;
	ProtobufCBinaryData bytes;
};

bool value_is_among(const char *word, const char *allowed)
{
	size_t len = strlen(word);
	for (const char *at = allowed; at; at = strchr(at, '|')) {
		at += *at == '|';
		if (strcspn(at, "|") == len && !strncmp(at, word, len))
			return true;
	}
	return false;
}

static int not_among(const char *text, const char *allowed, struct err *err)
{
	_cleanup_(str_free) struct str list = { 0 };
	for (const char *at = allowed; *at; at++)
		if (*at == '|')
			str_puts(&list, ", ");
		else
			str_add(&list, at, 1);
	return err_set(err, -EINVAL, "\"%.60s\" is not one of %s", text, str_text(&list));
}

static int read_enum(const ProtobufCEnumDescriptor *e, const char *text, int32_t *ret,
		     struct err *err)
{
	_cleanup_(str_free) struct str all = { 0 };
	for (unsigned i = 0; i < e->n_values; i++) {
		char word[64];
		if (!strcmp(enum_word(e, e->values[i].value, word), text)) {
			*ret = e->values[i].value;
			return 0;
		}
		str_printf(&all, "%s%s", i ? "|" : "", word);
	}
	return not_among(text, str_text(&all), err);
}

/* Ranges of quantities are told in the unit that people type. */
static void show_quantity(const struct verb_arg *a, uint64_t value, char buf[32])
{
	if (!strcmp(a->unit, "ms"))
		(void)show_duration(value, buf);
	else
		(void)show_size(value, buf);
}

static int read_unsigned(const struct verb_arg *a, const char *text, uint64_t type_most,
			 uint64_t *ret, struct err *err)
{
	uint64_t most = a->most ? MIN(a->most, type_most) : type_most;
	if (!*a->unit)
		return parse_u64(text, a->least, most, ret, err);
	int r =
	    !strcmp(a->unit, "ms") ? parse_duration_ms(text, ret, err) : parse_size(text, ret, err);
	if (r < 0)
		return r;
	if (*ret >= a->least && *ret <= most)
		return 0;
	char low[32], high[32];
	show_quantity(a, a->least, low);
	show_quantity(a, most, high);
	return err_set(err, -ERANGE, "%.40s is not between %s and %s", text, low, high);
}

static int read_signed(const struct verb_arg *a, const char *text, int64_t type_least,
		       int64_t type_most, int64_t *ret, struct err *err)
{
	bool limited = a->least || a->most;
	int64_t least = limited ? (int64_t)a->least : type_least;
	int64_t most = a->most ? (int64_t)MIN(a->most, (uint64_t)type_most) : type_most;
	return parse_i64(text, least, most, ret, err);
}

static int read_double(const struct verb_arg *a, const char *text, double *ret, struct err *err)
{
	char *end;
	errno = 0;
	double value = strtod(text, &end);
	/* strtod also takes blanks in front, "inf" and hexadecimal: none of that is meant. */
	if (end == text || *end || strspn(text, "+-0123456789.eE") != strlen(text))
		return err_set(err, -EINVAL, "\"%.40s\" is not a number", text);
	if (errno == ERANGE)
		return err_set(err, -ERANGE, "\"%.40s\" is too large", text);
	if ((a->most && value > (double)a->most) || (a->least && value < (double)a->least))
		return err_set(err, -ERANGE, "%.40s is not between %llu and %llu", text,
			       (unsigned long long)a->least, (unsigned long long)a->most);
	*ret = value;
	return 0;
}

static int hex_digit(char c)
{
	const char *digits = "0123456789abcdef0123456789ABCDEF", *found = strchr(digits, c);
	return c && found ? (int)(found - digits) % 16 : -1;
}

static int read_bytes(const char *text, ProtobufCBinaryData *ret, struct err *err)
{
	size_t len = strlen(text);
	if (len % 2 || len > 2 * BYTES_MAX)
		return err_set(err, -EINVAL,
			       "\"%.80s\" is not an even number of digits 0…f, at "
			       "most %d",
			       text, 2 * BYTES_MAX);
	_cleanup_(free_p) uint8_t *at = xmalloc(len / 2 + 1);
	for (size_t i = 0; i < len / 2; i++) {
		int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
		if (high < 0 || low < 0)
			return err_set(err, -EINVAL, "\"%.80s\" is not hexadecimal", text);
		at[i] = (uint8_t)(high << 4 | low);
	}
	*ret = (ProtobufCBinaryData){ len / 2, take_ptr(at) };
	return 0;
}

static int read_text(const struct verb_arg *a, const char *text, char **ret, struct err *err)
{
	if (a->required && !*text)
		return err_set(err, -EINVAL, "must not be empty");
	*ret = xstrdup(text);
	return 0;
}

static int read_flag(const char *text, protobuf_c_boolean *ret, struct err *err)
{
	if (!value_is_among(text, "true|false|yes|no|on|off"))
		return not_among(text, "yes|no", err);
	*ret = value_is_among(text, "true|yes|on");
	return 0;
}

static int read_value(const struct verb_arg *a, const ProtobufCFieldDescriptor *f, const char *text,
		      union value *ret, struct err *err)
{
	int r;
	switch (f->type) {
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32: {
		int64_t wide = 0;
		r = read_signed(a, text, INT32_MIN, INT32_MAX, &wide, err);
		ret->i32 = (int32_t)wide;
		return r;
	}
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		return read_signed(a, text, INT64_MIN, INT64_MAX, &ret->i64, err);
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_FIXED32: {
		uint64_t wide = 0;
		r = read_unsigned(a, text, UINT32_MAX, &wide, err);
		ret->u32 = (uint32_t)wide;
		return r;
	}
	case PROTOBUF_C_TYPE_UINT64:
	case PROTOBUF_C_TYPE_FIXED64:
		return read_unsigned(a, text, UINT64_MAX, &ret->u64, err);
	case PROTOBUF_C_TYPE_FLOAT: {
		double wide = 0;
		r = read_double(a, text, &wide, err);
		ret->f32 = (float)wide;
		return r;
	}
	case PROTOBUF_C_TYPE_DOUBLE:
		return read_double(a, text, &ret->f64, err);
	case PROTOBUF_C_TYPE_BOOL:
		return read_flag(text, &ret->flag, err);
	case PROTOBUF_C_TYPE_ENUM:
		return read_enum(f->descriptor, text, &ret->i32, err);
	case PROTOBUF_C_TYPE_STRING:
		return read_text(a, text, &ret->text, err);
	case PROTOBUF_C_TYPE_BYTES:
		return read_bytes(text, &ret->bytes, err);
	case PROTOBUF_C_TYPE_MESSAGE:
		break;
	}
	assert(!"messages are hidden: tools/copia_schema.py sees to it");
	return -EINVAL;
}

/* Another member of the same oneof is set. */
static bool excluded(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
	if (!(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF))
		return false;
	uint32_t which = *(const uint32_t *)((const char *)m + f->quantifier_offset);
	return which && which != f->id;
}

/* Free what a field owns before it is set again. */
static void drop_old(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f, void *at)
{
	size_t set;
	(void)field_at(m, f, &set);
	if (set && f->type == PROTOBUF_C_TYPE_STRING && *(char **)at != f->default_value)
		free(*(char **)at);
	if (set && f->type == PROTOBUF_C_TYPE_BYTES)
		free(((ProtobufCBinaryData *)at)->data);
}

/* Make room behind the last element. The counts are of words typed, so growing by one is fine. */
static void *append(ProtobufCMessage *m, const ProtobufCFieldDescriptor *f)
{
	size_t *count = (size_t *)((char *)m + f->quantifier_offset);
	char **list = (char **)((char *)m + f->offset);
	size_t size = field_size(f);
	*list = xrealloc(*list, (*count + 1) * size);
	return *list + size * (*count)++;
}

int args_set(ProtobufCMessage *m, const struct verb_arg *a, const char *text, struct err *err)
{
	const ProtobufCFieldDescriptor *f = &m->descriptor->fields[a->field];
	if (*a->allowed && !value_is_among(text, a->allowed))
		return not_among(text, a->allowed, err);
	if (excluded(m, f))
		return err_set(err, -EINVAL, "cannot be combined with another option of its kind");
	union value value = { 0 };
	int r = read_value(a, f, text, &value, err);
	if (r < 0)
		return r;
	void *at = (char *)m + f->offset;
	if (f->label == PROTOBUF_C_LABEL_REPEATED)
		at = append(m, f);
	else
		drop_old(m, f, at);
	if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
		*(uint32_t *)((char *)m + f->quantifier_offset) = f->id;
	memcpy(at, &value, field_size(f));
	return 0;
}
