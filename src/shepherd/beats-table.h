/* SPDX-License-Identifier: Apache-2.0 */
/* The table of peers, shared by the files beats*.c alone. Peers are sorted by number. */
#pragma once
#include "cluster/lease.h"
#include "cluster/liveness.h"
#include "shepherd/beats.h"
#include "shepherd/packet.h"

#include <netinet/in.h>

enum { PEERS_MAX = 4096, REPORT_US = 500000 };

union beat_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct beat_peer {
	uint32_t number, key_epoch, previous_epoch;
	bool has_previous, grant;
	unsigned path_count;
	uint8_t key[PACKET_KEY_SIZE], previous_key[PACKET_KEY_SIZE];
	union beat_address paths[LIVENESS_PATHS_MAX];
	uint64_t sequence;            /* of the last packet sent */
	uint64_t echo_us, echo_at_us; /* newest send time of the peer; when it came */
	struct liveness_peer live;
	struct liveness_window window;
	struct lease_grant lease;
};

struct beats {
	struct watch sockets[2]; /* IPv4, IPv6 */
	uint32_t number;         /* own; 0 = no heartbeats */
	const struct liveness_profile *profile;
	struct beat_peer *peers;
	unsigned peer_count;
	struct lease_grant own_lease;
	uint64_t tick_at_us, report_at_us;
	bool changed; /* since the last report */
	uint64_t bad_sender, bad_mac, replayed, malformed, stale;
	/* As the brain gave it, packed, for the next program. */
	uint8_t *table;
	size_t table_len;
};

/* NULL when there is none. */
struct beat_peer *beats_peer(struct beats *b, uint32_t number);
void beats_table_free(struct beats *b);
bool beat_address_equal(const union beat_address *a, const union beat_address *b);
/* "192.0.2.1", "fe80::1%2"; returns buf. */
const char *beat_address_show(const union beat_address *a, char buf[64]);
