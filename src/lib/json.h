/* SPDX-License-Identifier: Apache-2.0 */
/* Any message as JSON, without code per message. Pure.
 *
 * Keys are the schema's field names. Fields at their default value are written too, so that
 * readers find every key; of a oneof only the member that is set. 64-bit numbers are numbers,
 * bytes are hexadecimal text, values of an enum are lower-case words ("node-down" for NODE_DOWN,
 * without the enum's own name in front), a message that is not there is null, and so is a number
 * that JSON cannot write. Text that is not UTF-8 gets U+FFFD for what is wrong. */
#pragma once
#include "base/str.h"

#include <protobuf-c/protobuf-c.h>

enum { JSON_DEPTH_MAX = 32 }; /* messages inside messages; deeper ones are written as null */

/* Add `m` to `out`: in one line, or (`pretty`) indented by two blanks, without a last newline. */
void json_message(struct str *out, const ProtobufCMessage *m, bool pretty);
/* Add a quoted and escaped string. */
void json_text(struct str *out, const char *text, size_t len);

/* Where a field of `m` lies, and how often it is there: repeated fields their count, others 1,
 * unset members of a oneof 0. */
const void *field_at(const ProtobufCMessage *m, const ProtobufCFieldDescriptor *f,
		     size_t *ret_count);
/* Bytes of one element of this type. */
size_t field_size(const ProtobufCFieldDescriptor *f);
/* An enum's value as a word, into `buf`; numbers that the schema does not know as numbers. */
char *enum_word(const ProtobufCEnumDescriptor *e, int value, char buf[64]);
