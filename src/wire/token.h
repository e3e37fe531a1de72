/* SPDX-License-Identifier: Apache-2.0 */
/* Join tokens: what a person carries from a member of a cluster to a machine that shall join it.
 * Pure: no I/O; random bytes are a parameter.
 *
 *   copia1-<80 letters and digits>
 *
 * The 80 characters are base32 of 50 bytes: a random secret (16), the SHA-256 fingerprint of the
 * cluster authority's certificate (32), and a CRC-16 of both, big endian (2). The fingerprint lets
 * the newcomer know the cluster before it shows the secret; the CRC tells a mistyped token (said
 * before anything is sent) from a wrong one. The alphabet is Crockford's, without i, l, o and u;
 * reading takes capitals and what people confuse (o for 0, i and l for 1). No error message ever
 * contains a token or a part of one. */
#pragma once
#include "base/err.h"

enum {
	TOKEN_SECRET_SIZE = 16,
	TOKEN_FINGERPRINT_SIZE = 32,
	TOKEN_TEXT = 7 + 80 + 1,  /* with the NUL */
	TOKEN_HOST_TEXT = 255 + 1 /* longest DNS name, or an address with its zone; with the NUL */
};

struct token {
	uint8_t secret[TOKEN_SECRET_SIZE]; /* random; wipe after use */
	uint8_t
	    authority[TOKEN_FINGERPRINT_SIZE]; /* SHA-256 of the authority's certificate (DER) */
};

/* Write the token as text into `buf`; returns `buf`. */
char *token_encode(const struct token *t, char buf[TOKEN_TEXT]);

/* Read a token; blanks around it are ignored. On failure *ret is left as it was.
 * Errors: -EINVAL (not a token at all), -EPROTONOSUPPORT (token of another version of Copia),
 * -EBADMSG (mistyped). */
int token_decode(const char *text, struct token *ret, struct err *err);

/* Split TOKEN@HOST[:PORT] and read the token. HOST is a name, an IPv4 address, a bare IPv6 address
 * (then without a port) or [IPv6]; a zone ("%eth0") stays with it, brackets do not. Without a port
 * *ret_port is `default_port`.
 * Errors: those of token_decode(), -EINVAL (no host, bad host), -ERANGE (port not in 1..65535). */
int token_target_parse(const char *text, uint16_t default_port, struct token *ret,
		       char ret_host[TOKEN_HOST_TEXT], uint16_t *ret_port, struct err *err);

/* The HOST[:PORT] part alone; used by token_target_parse() and wherever people type an address. */
int token_host_parse(const char *text, uint16_t default_port, char ret_host[TOKEN_HOST_TEXT],
		     uint16_t *ret_port, struct err *err);
