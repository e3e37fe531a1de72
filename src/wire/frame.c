/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/frame.h"

#include <assert.h>
#include <errno.h>

void frame_header(uint8_t buf[FRAME_HEADER_SIZE], uint8_t channel, uint8_t flags, size_t len)
{
	assert(len <= FRAME_BODY_MAX && channel < FRAME_CHANNEL_COUNT);
	buf[0] = (uint8_t)len;
	buf[1] = (uint8_t)(len >> 8);
	buf[2] = (uint8_t)(len >> 16);
	buf[3] = (uint8_t)(len >> 24);
	buf[4] = channel;
	buf[5] = flags;
}

void frame_append(struct str *out, uint8_t channel, const void *body, size_t len)
{
	const uint8_t *at = body;
	do {
		size_t part = MIN(len, (size_t)FRAME_BODY_MAX);
		uint8_t header[FRAME_HEADER_SIZE];
		frame_header(header, channel, part < len ? FRAME_MORE : 0, part);
		str_add(out, header, sizeof(header));
		str_add(out, at, part);
		at += part;
		len -= part;
	} while (len);
}

static int fail(struct frame_decoder *d, int code)
{
	d->failed = true;
	return code;
}

/* Judge a complete header, before anything of its body is taken. */
static int take_header(struct frame_decoder *d, struct err *err)
{
	const uint8_t *h = d->header;
	uint32_t len = h[0] | (uint32_t)h[1] << 8 | (uint32_t)h[2] << 16 | (uint32_t)h[3] << 24;
	d->channel = h[4];
	d->flags = h[5];
	if (d->channel >= FRAME_CHANNEL_COUNT || !d->limits->message_max[d->channel])
		return fail(
		    d, err_set(err, -EPROTO, "frame on channel %u, which is not open", d->channel));
	if (d->flags & ~FRAME_MORE)
		return fail(d, err_set(err, -EPROTO, "frame with unknown flags 0x%02x", d->flags));
	if (len == 0 && (d->flags & FRAME_MORE))
		return fail(d, err_set(err, -EPROTO, "empty frame that promises more"));
	size_t max = d->limits->message_max[d->channel], have = d->message[d->channel].len;
	if (len > FRAME_BODY_MAX)
		return fail(d, err_set(err, -EMSGSIZE, "frame of %u bytes is longer than %d", len,
				       FRAME_BODY_MAX));
	if (have > max || len > max - have)
		return fail(d, err_set(err, -EMSGSIZE,
				       "message on channel %u is longer than %zu bytes", d->channel,
				       max));
	d->body_left = len;
	return 0;
}

/* The end of a frame is reached. `whole` is the body if it lies unbroken in the input. */
static int end_frame(struct frame_decoder *d, struct span whole, frame_message *cb, void *ctx)
{
	d->header_len = 0;
	if (d->flags & FRAME_MORE)
		return 0;
	/* Taken out first: the callback may change limits, and must not see half a state. */
	struct str message = d->message[d->channel];
	d->message[d->channel] = (struct str){ 0 };
	if (message.len)
		whole = (struct span){ (const uint8_t *)message.at, message.len };
	int r = cb(ctx, d->channel, whole);
	str_free(&message);
	return r ? fail(d, r) : 0;
}

int frame_feed(struct frame_decoder *d, const void *bytes, size_t len, frame_message *cb, void *ctx,
	       struct err *err)
{
	assert(d->limits);
	if (d->failed)
		return err_set(err, -EPROTO, "the stream has failed before");
	const uint8_t *at = bytes;
	while (len) {
		int r;
		if (d->header_len < FRAME_HEADER_SIZE) {
			size_t part = MIN(len, FRAME_HEADER_SIZE - d->header_len);
			memcpy(d->header + d->header_len, at, part);
			d->header_len += part;
			at += part;
			len -= part;
			if (d->header_len < FRAME_HEADER_SIZE)
				return 0;
			r = take_header(d, err);
			if (r)
				return r;
		}
		struct str *message = &d->message[d->channel];
		size_t part = MIN(len, d->body_left);
		struct span whole = { at, part };
		bool unbroken = part == d->body_left && !message->len && !(d->flags & FRAME_MORE);
		if (!unbroken && part)
			str_add(message, at, part);
		at += part;
		len -= part;
		d->body_left -= part;
		if (d->body_left)
			return 0;
		r = end_frame(d, whole, cb, ctx);
		if (r)
			return r;
	}
	return 0;
}

bool frame_is_partial(const struct frame_decoder *d)
{
	if (d->header_len)
		return true;
	for (size_t i = 0; i < FRAME_CHANNEL_COUNT; i++)
		if (d->message[i].len)
			return true;
	return false;
}

void frame_decoder_free(struct frame_decoder *d)
{
	for (size_t i = 0; i < FRAME_CHANNEL_COUNT; i++)
		str_free(&d->message[i]);
	d->header_len = 0;
	d->failed = true;
}
