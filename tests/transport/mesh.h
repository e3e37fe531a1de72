/* SPDX-License-Identifier: Apache-2.0 */
/* Real nodes in one loop for the tests of src/io/peers: authority, certificates, sessions over
 * loopback with TLS. Every wait is for a condition, with a deadline that fails the test. */
#pragma once
#include "io/peers.h"
#include "io/pki.h"

enum { MESH_MAX = 4, MESH_WAIT_MS = 20000 };

struct credentials {
	struct id cluster;
	struct str authority_key, authority;
};

struct received {
	uint64_t count, bytes;
	uint64_t hash; /* FNV-1a over the bytes in their order */
	uint32_t last_from;
	struct str last;
};

struct mesh_node {
	uint32_t number;
	struct peers *peers; /* NULL: not running */
	struct str key, cert;
	struct pki_fingerprint fingerprint;
	struct received received[CHANNEL_COUNT];
	unsigned up_count, down_count;  /* events */
	char reason[PEERS_REASON_TEXT]; /* of the last `down` */
	unsigned drained[CHANNEL_COUNT];
	bool closed;

	/* Joining. */
	unsigned join_count;
	struct str join_body;
	uint64_t join_ticket;
};

struct mesh {
	uv_loop_t loop;
	struct credentials own;
	struct mesh_node nodes[MESH_MAX + 1]; /* by number */
	struct peers_settings settings;       /* for nodes started from now on */
	uint64_t incarnations;
};

void credentials_make(struct credentials *c);
void credentials_free(struct credentials *c);
void credentials_sign(const struct credentials *c, uint32_t number, struct str *ret_key,
		      struct str *ret_cert);

void mesh_init(struct mesh *m);
void mesh_free(struct mesh *m); /* stops everything; checks that no handle is left */
/* Start a node that listens on any port, with the certificate it has or a new one. */
struct mesh_node *mesh_start(struct mesh *m, uint32_t number);
void mesh_stop(struct mesh *m, uint32_t number);
/* Make `to` known to `from`, at 127.0.0.1, with its present certificate. */
void mesh_know(struct mesh *m, uint32_t from, uint32_t to);
void mesh_know_at(struct mesh *m, uint32_t from, uint32_t to, const union addr *addresses,
		  size_t count);
/* Two nodes that know each other, with a session. */
void mesh_pair(struct mesh *m, uint32_t a, uint32_t b);
union addr mesh_loopback(uint16_t port);

/* Continues `hash`, which begins as MESH_HASH_START. */
enum { MESH_HASH_START = 0 };
uint64_t mesh_hash(uint64_t hash, const void *bytes, size_t len);

#define mesh_wait(m, expression)                                                                   \
	do {                                                                                       \
		uint64_t wait_end_ = uv_hrtime() / 1000000 + MESH_WAIT_MS;                         \
		while (!(expression))                                                              \
			if (!mesh_turn((m), wait_end_))                                            \
				mesh_fail(#expression, __FILE__, __LINE__);                        \
	} while (0)
/* One turn of the loop, at most 10 ms; false once `end_ms` is over. */
bool mesh_turn(struct mesh *m, uint64_t end_ms);
void mesh_fail(const char *what, const char *file, int line) __attribute__((noreturn));

/* A relay in front of a port: sees what passes, and can slow or cut it. */
struct relay;
struct relay *relay_start(struct mesh *m, uint16_t to_port);
uint16_t relay_port(const struct relay *r);
/* Bytes per second in each direction, 0: no limit. */
void relay_set_speed(struct relay *r, uint64_t bytes_per_s);
void relay_cut(struct relay *r); /* closes its connections, accepts no more */
uint64_t relay_bytes(const struct relay *r, bool to_server);
bool relay_saw(const struct relay *r, const char *marker); /* in either direction */
void relay_keep_text(struct relay *r, bool keep);
void relay_stop(struct relay *r);
