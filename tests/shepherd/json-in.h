/* SPDX-License-Identifier: Apache-2.0 */
/* JSON to a message, for tests: errors are assertions. Bytes are hexadecimal text. */
#pragma once
#include <jansson.h>
#include <protobuf-c/protobuf-c.h>

/* Free with protobuf_c_message_free_unpacked(). */
ProtobufCMessage *json_in(const ProtobufCMessageDescriptor *d, json_t *o);

/* The value, leaving -1. */
int take_fd(int *fd);
