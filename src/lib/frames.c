/* SPDX-License-Identifier: Apache-2.0 */
#include "lib/frames.h"

#include "lib/conn.h"

#include <assert.h>
#include <errno.h>

enum { LENGTH_SIZE = 4, BODY_TAG = 3 << 3 | 2 }; /* field 3, length-delimited */

static void put_length(uint8_t at[LENGTH_SIZE], uint32_t len)
{
	for (int i = 0; i < LENGTH_SIZE; i++)
		at[i] = (uint8_t)(len >> (8 * i));
}

static uint32_t get_length(const uint8_t at[LENGTH_SIZE])
{
	uint32_t len = 0;
	for (int i = 0; i < LENGTH_SIZE; i++)
		len |= (uint32_t)at[i] << (8 * i);
	return len;
}

/* Tag and length of the body as protobuf writes them; returns their size. */
static size_t put_body_head(uint8_t at[6], size_t len)
{
	size_t size = 0;
	at[size++] = BODY_TAG;
	for (; len >= 0x80; len >>= 7)
		at[size++] = (uint8_t)(len | 0x80);
	at[size++] = (uint8_t)len;
	return size;
}

int frame_put(struct str *out, const Copia__ControlFrame *head, const ProtobufCMessage *message,
	      struct err *err)
{
	assert(!head->body.len);
	size_t head_size = copia__control_frame__get_packed_size(head);
	size_t body_size = message ? protobuf_c_message_get_packed_size(message) : 0;
	if (head_size + body_size > CONN_FRAME_MAX - 6)
		return err_set(err, -EMSGSIZE,
			       "message of %zu bytes is too large for the daemon (at most %d)",
			       body_size, CONN_FRAME_MAX);

	/* The body is packed into the queue itself: streams are not copied twice. */
	uint8_t body_head[6];
	size_t body_head_size = body_size ? put_body_head(body_head, body_size) : 0;
	size_t size = head_size + body_head_size + body_size;
	str_reserve(out, LENGTH_SIZE + size);
	uint8_t *at = (uint8_t *)out->at + out->len;
	put_length(at, (uint32_t)size);
	at += LENGTH_SIZE;
	at += copia__control_frame__pack(head, at);
	if (body_size) {
		memcpy(at, body_head, body_head_size);
		at += body_head_size;
		at += protobuf_c_message_pack(message, at);
	}
	out->len += LENGTH_SIZE + size;
	assert((uint8_t *)out->at + out->len == at);
	*at = '\0';
	return 0;
}

int frame_take(struct frame_reader *r, Copia__ControlFrame **ret, struct err *err)
{
	assert(r->at <= r->in.len);
	size_t left = r->in.len - r->at;
	const uint8_t *at = (const uint8_t *)r->in.at + r->at;
	uint32_t len = left >= LENGTH_SIZE ? get_length(at) : 0;
	if (len > CONN_FRAME_MAX)
		return err_set(err, -EPROTO, "the daemon sent a frame of %u bytes (at most %d)",
			       len, CONN_FRAME_MAX);
	if (left < LENGTH_SIZE || left < LENGTH_SIZE + len) {
		str_cut(&r->in, r->at);
		r->at = 0;
		return 0;
	}
	*ret = copia__control_frame__unpack(NULL, len, at + LENGTH_SIZE);
	if (!*ret)
		return err_set(err, -EPROTO, "the daemon sent %u bytes that are no frame", len);
	r->at += LENGTH_SIZE + len;
	return 1;
}
