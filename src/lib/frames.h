/* SPDX-License-Identifier: Apache-2.0 */
/* ControlFrames as bytes: a little-endian u32 length and that many bytes of one packed frame.
 * Pure; both directions obey CONN_FRAME_MAX. */
#pragma once
#include "base/err.h"
#include "base/str.h"

#include "schema/control.pb-c.h"

/* Bytes received and not yet taken; `at` counts those of them that were. */
struct frame_reader {
	struct str in;
	size_t at;
};

/* Add a frame to `out`: the fields of `head`, whose body must be empty, and as its body `message`
 * packed in place (NULL: no body). Errors: -EMSGSIZE; `out` is as it was. */
int frame_put(struct str *out, const Copia__ControlFrame *head, const ProtobufCMessage *message,
	      struct err *err);

/* Take the next whole frame: 1 with *ret (the caller frees it with
 * copia__control_frame__free_unpacked), 0 when more bytes are needed.
 * Errors: -EPROTO (too long, or not a frame); the stream cannot be read any further then. */
int frame_take(struct frame_reader *r, Copia__ControlFrame **ret, struct err *err);
