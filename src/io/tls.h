/* SPDX-License-Identifier: Apache-2.0 */
/* TLS 1.3 without sockets: bytes in, bytes out.
 *
 * Ciphertext that arrived is lent with tls_input(), plaintext is fetched with tls_read(), and what
 * must be sent gathers in tls_output(), whose owner empties it. No session is cached and no ticket
 * given: sessions last for days, and each begins with a proof of both keys.
 *
 * A verified certificate is what tls_peer() returns, and nothing else is. A server completes the
 * handshake also with a client whose certificate it rejects, since only then it can say why. */
#pragma once
#include "base/err.h"
#include "base/str.h"
#include "io/pki.h"

struct tls;
struct tls_identity;

/* Certificate, key and trust of a node. Sessions made with it keep what they need of it. Errors:
 * -EBADMSG, -EKEYREJECTED (they do not fit together). */
int tls_identity_new(struct tls_identity **ret, struct span cert, struct span key,
		     struct span authority, struct err *err);
void tls_identity_free(struct tls_identity *id); /* NULL is fine */
/* What our own certificate says. */
const struct pki_cert *tls_identity_cert(const struct tls_identity *id);

struct tls *tls_new_server(struct tls_identity *id);
struct tls *tls_new_client(struct tls_identity *id);
/* A client without certificate that trusts the authority of this fingerprint alone. */
struct tls *tls_new_join(const uint8_t authority[PKI_FINGERPRINT_SIZE]);
void tls_free(struct tls *t); /* NULL is fine */

/* Lend bytes that arrived; valid until tls_read() and tls_handshake() have used them all, which
 * they have when they return 0. */
void tls_input(struct tls *t, const void *bytes, size_t len);
/* 1: done, 0: more input needed. Errors: -EPROTO (also garbage), -EKEYREJECTED (either
 * side does not accept the other's certificate). On errors the output may hold an alert for the
 * other side. */
int tls_handshake(struct tls *t, struct err *err);
bool tls_is_ready(const struct tls *t);
/* Number of bytes read into `buf`, 0: more input needed. Errors: -EPROTO, -EPIPE (orderly end). */
int tls_read(struct tls *t, void *buf, size_t size, struct err *err);
/* Encrypt. Errors: -EPROTO. */
int tls_write(struct tls *t, const void *bytes, size_t len, struct err *err);
/* Append the orderly end to the output. */
void tls_end(struct tls *t);
struct str *tls_output(struct tls *t);

/* The other side's certificate if it was presented and verified, else NULL. Borrowed. */
const struct pki_cert *tls_peer(const struct tls *t);
/* Whether one was presented at all, and why it was not accepted ("" if it was). */
bool tls_peer_present(const struct tls *t);
const char *tls_peer_fault(const struct tls *t);
/* What a rejected certificate claims, for messages only: false if nothing. */
bool tls_peer_claim(const struct tls *t, struct pki_cert *ret);
/* After tls_new_join(): the authority's certificate, PEM appended. */
int tls_join_authority(const struct tls *t, struct str *ret_pem, struct err *err);
