/* SPDX-License-Identifier: Apache-2.0 */
#include "../test.h"

#include "base/rng.h"
#include "shepherd/packet.h"

#include <string.h>

static const uint8_t key[PACKET_KEY_SIZE] = "an example key of 32 bytes......";

static const struct packet sample = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 450, 11, 12 };

/* Goal: what is written is read, and is authentic with its key alone. */
static void a_packet_survives_the_wire(void **state)
{
	uint8_t bytes[PACKET_SIZE], other[PACKET_KEY_SIZE];
	struct packet p;
	memset(&p, 0, sizeof(p));
	packet_write(&sample, key, bytes);
	assert_true(packet_read(bytes, sizeof(bytes), &p));
	assert_memory_equal(&p, &sample, sizeof(p));
	assert_true(packet_is_authentic(bytes, key));
	memcpy(other, key, sizeof(other));
	other[31] ^= 1;
	assert_false(packet_is_authentic(bytes, other));
}

/* Goal: no single changed bit goes unnoticed. */
static void every_bit_is_covered(void **state)
{
	uint8_t bytes[PACKET_SIZE];
	for (int bit = 0; bit < PACKET_SIZE * 8; bit++) {
		packet_write(&sample, key, bytes);
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_false(packet_is_authentic(bytes, key));
	}
}

/* Goal: other lengths, versions and noise are not heartbeats. */
static void noise_is_no_heartbeat(void **state)
{
	uint8_t bytes[PACKET_SIZE + 1];
	struct packet p;
	struct rng rng;
	packet_write(&sample, key, bytes);
	assert_false(packet_read(bytes, PACKET_SIZE - 1, &p));
	assert_false(packet_read(bytes, PACKET_SIZE + 1, &p));
	assert_false(packet_read(bytes, 0, &p));
	bytes[4]++;
	assert_false(packet_read(bytes, PACKET_SIZE, &p));
	rng_seed(&rng, 1);
	for (int i = 0; i < 100000; i++) {
		for (size_t k = 0; k < sizeof(bytes); k++)
			bytes[k] = (uint8_t)rng_next(&rng);
		assert_false(packet_read(bytes, PACKET_SIZE, &p) &&
			     packet_is_authentic(bytes, key));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_packet_survives_the_wire),
		cmocka_unit_test(every_bit_is_covered),
		cmocka_unit_test(noise_is_no_heartbeat),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
