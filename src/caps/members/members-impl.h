/* SPDX-License-Identifier: Apache-2.0 */
/* Shared inside the capability: growing protobuf arrays and the story of the cluster. */
#pragma once
#include "caps/members/members.h"

/* Append to a repeated message field; the array takes over `item`. */
#define members_push(array, count, item)                                                           \
	do {                                                                                       \
		(array) = xrealloc((array), ((count) + 1) * sizeof((array)[0]));                   \
		(array)[(count)++] = (item);                                                       \
	} while (0)

void members_set_text(char **field, const char *text);
void members_set_bytes(ProtobufCBinaryData *field, const ProtobufCBinaryData *value);
/* A deep copy by way of the wire form; never NULL for a message that we built or unpacked. */
void *members_copy(const ProtobufCMessage *message);
#define members_copy_of(p) members_copy(&(p)->base)

/* One more line of the story; the oldest goes when there are too many. */
void members_tell(struct members *m, const char *kind, const char *object, const char *text_fmt,
		  ...) _printf_(4, 5);
void members_tell_node(struct members *m, const char *kind, const Copia__Node *n,
		       const char *text_fmt, ...) _printf_(4, 5);

/* The same as members_find(), to be changed. */
Copia__Node *members_node_at(struct members *m, uint32_t number);
void members_remove_resource(Copia__MembersState *s, size_t at);
