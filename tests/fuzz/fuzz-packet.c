/* SPDX-License-Identifier: Apache-2.0 */
/* Heartbeats from anybody: a packet that is read says the same when it is written again, and one
 * that was not made with the key is never authentic. */
#include "shepherd/packet.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	static const uint8_t key[PACKET_KEY_SIZE] = "thirty-two bytes of a test's key";
	struct packet p, q;
	uint8_t again[PACKET_SIZE];
	if (!packet_read(bytes, len, &p))
		return 0;
	packet_write(&p, key, again);
	assert(packet_is_authentic(again, key));
	assert(packet_read(again, sizeof(again), &q));
	assert(p.sender == q.sender && p.sequence == q.sequence && p.sent_us == q.sent_us);
	if (memcmp(bytes + PACKET_SIZE - PACKET_MAC_SIZE, again + PACKET_SIZE - PACKET_MAC_SIZE,
		   PACKET_MAC_SIZE))
		assert(!packet_is_authentic(bytes, key) ||
		       memcmp(bytes, again, PACKET_SIZE - PACKET_MAC_SIZE));
	return 0;
}
