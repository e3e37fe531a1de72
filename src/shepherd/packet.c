/* SPDX-License-Identifier: Apache-2.0 */
#include "shepherd/packet.h"

#include <assert.h>
#include <sodium/crypto_generichash_blake2b.h>
#include <sodium/utils.h>

enum { SIGNED_SIZE = PACKET_SIZE - PACKET_MAC_SIZE };

static const uint8_t magic[4] = { 'C', 'P', 'H', 'B' };

/* Where each field lies: one table for both directions. */
#define WORDS(X) X(8, sender) X(12, receiver) X(16, key_epoch) X(20, grant_ms)
#define LONGS(X)                                                                                   \
	X(24, incarnation)                                                                         \
	X(32, receiver_incarnation)                                                                \
	X(40, sequence)                                                                            \
	X(48, sent_us)                                                                             \
	X(56, echo_us)                                                                             \
	X(64, echo_delay_us)                                                                       \
	X(72, grant_term)                                                                          \
	X(80, grant_sent_us)

static void put(uint8_t *at, uint64_t v, int bytes)
{
	for (int i = 0; i < bytes; i++)
		at[i] = (uint8_t)(v >> 8 * i);
}

static uint64_t get(const uint8_t *at, int bytes)
{
	uint64_t v = 0;
	for (int i = 0; i < bytes; i++)
		v |= (uint64_t)at[i] << 8 * i;
	return v;
}

static void sign(const uint8_t *at, const uint8_t *key, uint8_t mac[PACKET_MAC_SIZE])
{
	int r =
	    crypto_generichash_blake2b(mac, PACKET_MAC_SIZE, at, SIGNED_SIZE, key, PACKET_KEY_SIZE);
	assert(r == 0);
}

void packet_write(const struct packet *p, const uint8_t key[PACKET_KEY_SIZE],
		  uint8_t ret[PACKET_SIZE])
{
	memset(ret, 0, PACKET_SIZE);
	memcpy(ret, magic, sizeof(magic));
	ret[4] = PACKET_VERSION;
#define PUT_WORD(at, field) put(ret + at, p->field, 4);
#define PUT_LONG(at, field) put(ret + at, p->field, 8);
	WORDS(PUT_WORD)
	LONGS(PUT_LONG)
	sign(ret, key, ret + SIGNED_SIZE);
}

bool packet_read(const uint8_t *at, size_t len, struct packet *ret)
{
	if (len != PACKET_SIZE || memcmp(at, magic, sizeof(magic)) != 0 || at[4] != PACKET_VERSION)
		return false;
#define GET_WORD(from, field) ret->field = (uint32_t)get(at + from, 4);
#define GET_LONG(from, field) ret->field = get(at + from, 8);
	WORDS(GET_WORD)
	LONGS(GET_LONG)
	return true;
}

bool packet_is_authentic(const uint8_t at[PACKET_SIZE], const uint8_t key[PACKET_KEY_SIZE])
{
	uint8_t mac[PACKET_MAC_SIZE];
	sign(at, key, mac);
	return sodium_memcmp(mac, at + SIGNED_SIZE, PACKET_MAC_SIZE) == 0;
}
