/* SPDX-License-Identifier: Apache-2.0 */
/* One heartbeat on the wire: 112 bytes, little-endian, the last 16 a MAC (BLAKE2b keyed with the 32
 * bytes that the two nodes share, RFC 7693) over all before them.
 *
 *   0 "CPHB"  4 version  5 zero×3  8 sender  12 receiver  16 key epoch  20 grant_ms
 *   24 incarnation of the sender   32 of the receiver, as the sender knows it   40 sequence
 *   48 sent_us   56 echo_us   64 echo_delay_us  72 grant_term   80 grant_sent_us  88 reserved  96
 * MAC
 *
 * sent_us is the sender's clock. echo_us is the newest sent_us that the sender got from the
 * receiver, echo_delay_us how long ago that was: now - echo_us - echo_delay_us is the round trip. A
 * packet that does not name the receiver's present incarnation proves nothing: it may be a
 * recording. */
#pragma once
#include "base/util.h"

enum { PACKET_SIZE = 112, PACKET_KEY_SIZE = 32, PACKET_MAC_SIZE = 16, PACKET_VERSION = 1 };

struct packet {
	uint32_t sender, receiver, key_epoch;
	uint64_t incarnation, receiver_incarnation, sequence;
	uint64_t sent_us, echo_us, echo_delay_us;
	uint32_t grant_ms; /* 0 = no grant */
	uint64_t grant_term, grant_sent_us;
};

void packet_write(const struct packet *p, const uint8_t key[PACKET_KEY_SIZE],
		  uint8_t ret[PACKET_SIZE]);
/* False: not a heartbeat of this version. The MAC is not looked at. */
bool packet_read(const uint8_t *at, size_t len, struct packet *ret);
bool packet_is_authentic(const uint8_t at[PACKET_SIZE], const uint8_t key[PACKET_KEY_SIZE]);
