/* SPDX-License-Identifier: Apache-2.0 */
/* Frames from a hostile stream. The first byte says in what portions the rest arrives. However it
 * is cut, the same messages come out and the same verdict, no message is over its limit, and
 * nothing is held that has not arrived. */
#include "wire/frame.h"

#include <assert.h>
#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static const struct frame_limits limits = {
	.message_max = { [1] = 16, [2] = 100000, [3] = FRAME_BODY_MAX, [15] = 1 },
};

struct seen {
	uint64_t hash;
	size_t count, bytes;
};

static int on_message(void *ctx, uint8_t channel, struct span body)
{
	struct seen *s = ctx;
	assert(channel < FRAME_CHANNEL_COUNT && limits.message_max[channel]);
	assert(body.len <= limits.message_max[channel]);
	s->hash = (s->hash ^ channel) * 1099511628211u;
	for (size_t i = 0; i < body.len; i++)
		s->hash = (s->hash ^ body.at[i]) * 1099511628211u;
	s->count++;
	s->bytes += body.len;
	return s->count == 1000 ? -ECANCELED : 0;
}

static int run(const uint8_t *bytes, size_t len, size_t portion, struct seen *seen, bool *partial)
{
	struct frame_decoder d = { .limits = &limits };
	int r = 0;
	for (size_t at = 0; at < len && !r; at += portion) {
		r = frame_feed(&d, bytes + at, MIN(portion, len - at), on_message, seen, NULL);
		size_t held = 0;
		for (size_t i = 0; i < FRAME_CHANNEL_COUNT; i++) {
			held += d.message[i].len;
			assert(d.message[i].cap <= 2 * MAX(len, (size_t)64));
		}
		assert(held + seen->bytes <= len);
	}
	assert(r == 0 || r == -EPROTO || r == -EMSGSIZE || r == -ECANCELED);
	if (r)
		assert(frame_feed(&d, bytes, 1, on_message, seen, NULL) == -EPROTO);
	*partial = frame_is_partial(&d);
	frame_decoder_free(&d);
	return r;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	if (!len)
		return 0;
	struct seen whole = { 0 }, cut = { 0 };
	bool partial_whole, partial_cut;
	size_t portion = bytes[0] ? bytes[0] : 1;
	int a = run(bytes + 1, len - 1, MAX(len, (size_t)1), &whole, &partial_whole);
	int b = run(bytes + 1, len - 1, portion, &cut, &partial_cut);
	assert(a == b && whole.hash == cut.hash && whole.count == cut.count);
	assert(a || partial_whole == partial_cut);
	return 0;
}
