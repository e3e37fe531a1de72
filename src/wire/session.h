/* SPDX-License-Identifier: Apache-2.0 */
/* What is said on CHANNEL_SESSION: greetings, refusals, and the request for joining. Pure.
 *
 *   u8 type | u16 version_min | u16 version_max | what belongs to the type; all little endian
 *
 * This beginning never changes, so that any two versions can tell each other that they do not fit.
 * Bytes behind what a reader knows of a greeting are ignored. Hand-made instead of protobuf, since
 * this is read from strangers, before anything is known about them. */
#pragma once
#include "base/err.h"
#include "base/id.h"
#include "base/str.h"

enum session_type {
	SESSION_HELLO = 1,  /* cluster 16 | u32 node | u64 incarnation | u64 order */
	SESSION_REFUSE,     /* u16 code | text */
	SESSION_JOIN,       /* request */
	SESSION_JOIN_REPLY, /* reply */
	SESSION_TYPE_COUNT
};

/* Why a session is refused or ended; the numbers are part of the protocol. */
enum session_code {
	SESSION_OTHER = 0, /* also what a reader does not know */
	SESSION_VERSION,
	SESSION_CLUSTER,
	SESSION_CERTIFICATE,
	SESSION_UNKNOWN,
	SESSION_FINGERPRINT,
	SESSION_WRONG_NODE,
	SESSION_TIE, /* no fault: the connection from the other side is used instead */
	SESSION_JOINING,
	SESSION_CODE_COUNT
};

struct session_message {
	enum session_type type;
	uint16_t version_min, version_max; /* that the sender speaks */

	/* SESSION_HELLO */
	struct id cluster;
	uint32_t node;
	uint64_t incarnation; /* of the sender's process */
	uint64_t order;       /* grows with each greeting of one incarnation */

	enum session_code code; /* SESSION_REFUSE */
	struct span body;       /* text, request or reply; borrowed */
};

enum { SESSION_TEXT_MAX = 200 }; /* longer texts of refusals are cut when written and read */

/* Append the message to `out`. */
void session_write(struct str *out, const struct session_message *m);
/* Read one; `body` points into `bytes`. On failure *ret is undefined. Errors: -EPROTO. */
int session_read(struct span bytes, struct session_message *ret, struct err *err);

/* The version that both speak: the highest common one, 0 when there is none. */
uint16_t session_version(uint16_t min_a, uint16_t max_a, uint16_t min_b, uint16_t max_b);

/* The text of a refusal for logs and people: printable ASCII only, cut. Returns `buf`. */
char *session_text(struct span body, char buf[SESSION_TEXT_MAX + 1]);
