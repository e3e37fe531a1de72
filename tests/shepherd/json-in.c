/* SPDX-License-Identifier: Apache-2.0 */
#include "json-in.h"

#include "base/util.h"

#include <assert.h>
#include <stdio.h>

int take_fd(int *fd)
{
	int was = *fd;
	*fd = -1;
	return was;
}

static ProtobufCBinaryData bytes_in(const char *text)
{
	ProtobufCBinaryData b = { strlen(text) / 2, xmalloc(strlen(text) / 2 + 1) };
	for (size_t i = 0; i < b.len; i++) {
		unsigned v = 0;
		int n = sscanf(text + 2 * i, "%2x", &v);
		assert(n == 1);
		b.data[i] = (uint8_t)v;
	}
	return b;
}

static size_t value_in(const ProtobufCFieldDescriptor *f, json_t *v, void *at)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_UINT64:
		*(uint64_t *)at = (uint64_t)json_integer_value(v);
		return sizeof(uint64_t);
	case PROTOBUF_C_TYPE_UINT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_ENUM:
		*(uint32_t *)at = (uint32_t)json_integer_value(v);
		return sizeof(uint32_t);
	case PROTOBUF_C_TYPE_BOOL:
		*(protobuf_c_boolean *)at = json_is_true(v);
		return sizeof(protobuf_c_boolean);
	case PROTOBUF_C_TYPE_STRING:
		*(char **)at = xstrdup(json_string_value(v));
		return sizeof(char *);
	case PROTOBUF_C_TYPE_BYTES:
		*(ProtobufCBinaryData *)at = bytes_in(json_string_value(v));
		return sizeof(ProtobufCBinaryData);
	case PROTOBUF_C_TYPE_MESSAGE:
		*(ProtobufCMessage **)at = json_in(f->descriptor, v);
		return sizeof(void *);
	default:
		assert(!"a type that the schema of the shepherd does not use");
		return 0;
	}
}

ProtobufCMessage *json_in(const ProtobufCMessageDescriptor *d, json_t *o)
{
	ProtobufCMessage *m = xcalloc(1, d->sizeof_message);
	const char *key;
	json_t *v;
	d->message_init(m);
	json_object_foreach(o, key, v)
	{
		const ProtobufCFieldDescriptor *f =
		    protobuf_c_message_descriptor_get_field_by_name(d, key);
		if (!f)
			fprintf(stderr, "%s has no field %s\n", d->short_name, key);
		assert(f);
		char *at = (char *)m + f->offset;
		if (f->label != PROTOBUF_C_LABEL_REPEATED) {
			(void)value_in(f, v, at);
			if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
				*(uint32_t *)((char *)m + f->quantifier_offset) = f->id;
			continue;
		}
		size_t i, step = 0;
		json_t *part;
		char *list = xcalloc(json_array_size(v) + 1, sizeof(ProtobufCBinaryData));
		json_array_foreach(v, i, part) step += value_in(f, part, list + step);
		*(char **)at = list;
		*(size_t *)((char *)m + f->quantifier_offset) = json_array_size(v);
	}
	return m;
}
