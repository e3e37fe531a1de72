/* SPDX-License-Identifier: Apache-2.0 */
/* What pki.c and tls.c share of OpenSSL's objects; not for others. */
#pragma once
#include "io/pki.h"

#include <openssl/x509.h>
#include <openssl/x509_vfy.h>

enum { PKI_URI_TEXT = 64 }; /* "copia://" id "/node/" number, with NUL */

/* From PEM or DER; the caller frees. Errors: -EBADMSG. */
int pki_key_parse(struct span bytes, EVP_PKEY **ret, struct err *err);
int pki_cert_parse(struct span bytes, X509 **ret, struct err *err);
/* As pki_cert_read(). */
int pki_x509_read(X509 *cert, struct pki_cert *ret, struct err *err);
/* The authorities as trust anchors; X509_STORE_free(). */
int pki_store_new(struct span authority_cert, X509_STORE **ret, struct err *err);
/* Verify the certificate that `ctx` was made for, against its anchors and Copia's rules. */
int pki_chain_check(X509_STORE_CTX *ctx, struct pki_cert *ret, struct err *err);
/* The text of OpenSSL's last error, whose queue is emptied. Static. */
const char *pki_openssl_reason(void);
