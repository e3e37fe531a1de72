/* SPDX-License-Identifier: Apache-2.0 */
/* Frames: how messages of several channels share one byte stream. Pure: bytes in, messages out.
 *
 *   u32 length of body, little endian | u8 channel | u8 flags | body
 *
 * A message of a channel is one frame, or several of which all but the last carry FRAME_MORE. No
 * frame is longer than FRAME_BODY_MAX, so that a long message of one channel never holds up a short
 * one of another; frames of different channels may alternate, those of one channel are in order.
 *
 * The decoder believes nothing: channels without a limit, unknown flags, frames and messages over
 * their limit and empty frames that promise more are errors after which the connection must be
 * closed. It allocates for bytes that have arrived, never for a length that was announced. */
#pragma once
#include "base/err.h"
#include "base/str.h"

enum {
	FRAME_HEADER_SIZE = 6,
	FRAME_BODY_MAX = 32 * 1024,
	FRAME_CHANNEL_COUNT = 16 /* channels are 0..15 */
};

enum { FRAME_MORE = 1 }; /* flag: the message goes on in the channel's next frame */

/* Limits in bytes of one whole message by channel; 0: the channel is closed. */
struct frame_limits {
	size_t message_max[FRAME_CHANNEL_COUNT];
};

/* Zero-initialised apart from `limits` it is ready. `limits` is borrowed and may be exchanged
 * between two calls of frame_feed(), also from within the message callback. */
struct frame_decoder {
	const struct frame_limits *limits;
	uint8_t header[FRAME_HEADER_SIZE];
	size_t header_len; /* how much of the header is there */
	size_t body_left;  /* of the present frame, once its header is complete */
	uint8_t channel, flags;
	bool failed;
	struct str message[FRAME_CHANNEL_COUNT]; /* what has arrived of unfinished messages */
};

/* Called for each whole message; `body` is borrowed and valid during the call only. Anything but 0
 * stops the decoding, and frame_feed() returns it. */
typedef int frame_message(void *ctx, uint8_t channel, struct span body);

/* Write a frame's header. `len` at most FRAME_BODY_MAX. */
void frame_header(uint8_t buf[FRAME_HEADER_SIZE], uint8_t channel, uint8_t flags, size_t len);

/* Append a whole message as frames to `out`. For short messages; peers.c cuts long ones itself. */
void frame_append(struct str *out, uint8_t channel, const void *body, size_t len);

/* Decode bytes in portions of any size. After an error (or a stop by the callback) the decoder
 * takes nothing more.
 * Errors: -EPROTO (not a frame), -EMSGSIZE (over a limit), whatever the callback returned. */
int frame_feed(struct frame_decoder *d, const void *bytes, size_t len, frame_message *cb, void *ctx,
	       struct err *err);

/* True in the middle of a frame or a message: an end of the stream here is a loss. */
bool frame_is_partial(const struct frame_decoder *d);

void frame_decoder_free(struct frame_decoder *d); /* frees the content, not `d` */
