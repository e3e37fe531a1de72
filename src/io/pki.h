/* SPDX-License-Identifier: Apache-2.0 */
/* The cluster's authority and the certificates of its nodes.
 *
 * Keys are ECDSA P-256, certificates X.509 v3. The authority is made once, at `copia init`. A node
 * makes its own key and a request (CSR); the signer alone decides what the certificate says:
 *
 *   CN=node-NUMBER, O=CLUSTERID (32 hexadecimal digits), SAN URI copia://CLUSTERID/node/NUMBER
 *
 * Copia needs no synchronised clocks, so nothing here reads one: certificates are valid from 2000
 * until 9999, verification ignores the time, and what may no longer be used is said by the
 * cluster's own records (the fingerprints that peers_set_node() allows), which take effect at once
 * and everywhere, wherever a node's clock stands. Rotation replaces keys; records retire them.
 *
 * Keys and certificates are PEM text in memory; functions that read them take DER as well. Texts
 * with keys belong to the caller, who wipes them with pki_wipe(). */
#pragma once
#include "base/err.h"
#include "base/id.h"
#include "base/str.h"

enum { PKI_FINGERPRINT_SIZE = 32 };

struct pki_fingerprint {
	uint8_t at[PKI_FINGERPRINT_SIZE]; /* SHA-256 of the certificate's DER */
};

/* What a certificate says. Only pki_verify() and a finished handshake make it trustworthy. */
struct pki_cert {
	struct id cluster;
	uint32_t node;   /* 0: the authority itself */
	uint64_t serial; /* 0: longer than 64 bits (never made here) */
	bool is_authority;
	struct pki_fingerprint fingerprint;
};

/* Outputs below are PEM, appended to nothing: *ret must be empty or zero-initialised. */

/* A new authority for a cluster: its key and its self-signed certificate. */
int pki_authority_new(const struct id *cluster, struct str *ret_key, struct str *ret_cert,
		      struct err *err);
/* A new key for a node. */
int pki_key_new(struct str *ret_key, struct err *err);
/* A request for a certificate: carries the public key and the proof that we have the private one.*/
int pki_csr_new(struct span key, struct str *ret_csr, struct err *err);

/* Sign a request. The subject is what the signer says; whatever the request asks for is ignored.
 * `node` is > 0; `serial` as the cluster's records count them, 0 for a random one. Errors: -EBADMSG
 * (not a request, or it does not prove its key), -EKEYREJECTED (a kind of key that is not allowed),
 * -EINVAL (authority's key and certificate are no pair). */
int pki_sign(struct span authority_key, struct span authority_cert, struct span csr,
	     const struct id *cluster, uint32_t node, uint64_t serial, struct str *ret_cert,
	     struct err *err);

/* Read what a certificate says, without trusting it. Errors: -EBADMSG. */
int pki_cert_read(struct span cert, struct pki_cert *ret, struct err *err);
/* Check that `cert` is a node's certificate signed by one of the authorities in `authority_cert`
 * (one or more, PEM), and that the authority is of the same cluster. Errors: -EBADMSG,
 * -EKEYREJECTED. */
int pki_verify(struct span authority_cert, struct span cert, struct pki_cert *ret, struct err *err);
/* Errors: -EBADMSG, -EKEYREJECTED (the key is not that of the certificate). */
int pki_pair_check(struct span key, struct span cert, struct err *err);
/* DER of the first certificate, for those who store or hash it. */
int pki_cert_der(struct span cert, struct str *ret_der, struct err *err);

/* 64 hexadecimal digits and NUL; returns `buf`. */
char *pki_fingerprint_show(const struct pki_fingerprint *f, char buf[2 * PKI_FINGERPRINT_SIZE + 1]);
bool pki_fingerprint_equal(const struct pki_fingerprint *a, const struct pki_fingerprint *b);

/* Random bytes that are fit for secrets. Errors: -EIO. */
int pki_random(void *ret, size_t len, struct err *err);
/* Overwrite and free; for texts with keys, and for _cleanup_(pki_wipe). */
void pki_wipe(struct str *secret);
void pki_wipe_bytes(void *secret, size_t len);

static inline struct span pki_span(const struct str *s)
{
	return (struct span){ (const uint8_t *)s->at, s->len };
}
