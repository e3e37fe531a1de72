/* SPDX-License-Identifier: Apache-2.0 */
#include "io/tls.h"

#include "io/pki-x509.h"
#include <assert.h>
#include <errno.h>
#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <stdio.h>

enum {
	CERT_LIST_MAX = 8 * 1024, /* bytes of the other side's chain; ours has 1,200 */
	/* AES-GCM keys are good for 2^24.5 records of 16 KiB (RFC 8446 §5.5), some 370 GiB. */
	KEY_UPDATE_GIB = 64
};

/* Says that both ends speak Copia, before any certificate is looked at. */
static const unsigned char alpn[] = { 5, 'c', 'o', 'p', 'i', 'a' };

struct tls_identity {
	SSL_CTX *server, *client;
	struct pki_cert cert;
};

struct tls {
	SSL *ssl;
	struct span in; /* borrowed */
	struct str out;
	uint64_t written; /* since the last change of keys, bytes */

	bool is_server, is_join;
	bool present, verified;
	bool foreign; /* the certificate was rejected, but is that of a Copia node */
	struct pki_cert peer;
	uint8_t authority[PKI_FINGERPRINT_SIZE]; /* is_join */
	X509 *authority_cert;                    /* is_join, once verified */
	char fault[128];
};

/* --------------------------------------------------------------- a BIO on borrowed and own bytes
 *
 * OpenSSL's own memory BIOs keep their largest size for ever; idle sessions must be small. */

static int bio_write(BIO *bio, const char *at, int len)
{
	struct tls *t = BIO_get_data(bio);
	str_add(&t->out, at, (size_t)len);
	return len;
}

static int bio_read(BIO *bio, char *at, int size)
{
	struct tls *t = BIO_get_data(bio);
	BIO_clear_retry_flags(bio);
	size_t part = MIN(t->in.len, (size_t)size);
	if (!part) {
		BIO_set_retry_read(bio);
		return -1;
	}
	memcpy(at, t->in.at, part);
	t->in.at += part;
	t->in.len -= part;
	return (int)part;
}

static long bio_ctrl(BIO *bio, int cmd, long number, void *at)
{
	return cmd == BIO_CTRL_FLUSH;
}

static BIO_METHOD *bio_method(void)
{
	static BIO_METHOD *method; /* constant once made; the loop's thread alone comes here */
	if (!method) {
		method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "copia");
		if (!method || !BIO_meth_set_write(method, bio_write) ||
		    !BIO_meth_set_read(method, bio_read) || !BIO_meth_set_ctrl(method, bio_ctrl))
			abort(); /* out of memory at the very start */
	}
	return method;
}

/* ------------------------------------------------------------------------------- verification */

/* Trust exactly the certificate in the presented chain that has the wanted fingerprint. */
static X509 *find_authority(STACK_OF(X509) * chain, const uint8_t wanted[PKI_FINGERPRINT_SIZE])
{
	for (int i = 0; i < sk_X509_num(chain); i++) {
		uint8_t found[EVP_MAX_MD_SIZE];
		unsigned len = 0;
		X509 *cert = sk_X509_value(chain, i);
		if (X509_digest(cert, EVP_sha256(), found, &len) && len == PKI_FINGERPRINT_SIZE &&
		    CRYPTO_memcmp(found, wanted, PKI_FINGERPRINT_SIZE) == 0)
			return cert;
	}
	return NULL;
}

static int verify_join(struct tls *t, X509_STORE_CTX *ctx, struct err *err)
{
	X509 *found = find_authority(X509_STORE_CTX_get0_untrusted(ctx), t->authority);
	if (!found)
		return err_set(err, -EKEYREJECTED, "the authority has another fingerprint");
	STACK_OF(X509) *anchors = sk_X509_new_null();
	if (!anchors || !sk_X509_push(anchors, found)) {
		sk_X509_free(anchors);
		return err_set(err, -ENOMEM, "out of memory");
	}
	X509_STORE_CTX_set0_trusted_stack(ctx, anchors);
	int r = pki_chain_check(ctx, &t->peer, err);
	sk_X509_free(anchors);
	if (!r && X509_up_ref(found))
		t->authority_cert = found;
	return r;
}

static int verify(X509_STORE_CTX *ctx, void *unused)
{
	SSL *ssl = X509_STORE_CTX_get_ex_data(ctx, SSL_get_ex_data_X509_STORE_CTX_idx());
	struct tls *t = SSL_get_app_data(ssl);
	struct err err = { 0 };
	t->present = true;
	int r = t->is_join ? verify_join(t, ctx, &err) : pki_chain_check(ctx, &t->peer, &err);
	t->verified = r == 0;
	if (r < 0) {
		(void)snprintf(t->fault, sizeof(t->fault), "%.*s", (int)sizeof(t->fault) - 1,
			       err.msg);
		/* Becomes the alert "unknown CA", which the other side reads in explain(). */
		X509_STORE_CTX_set_error(ctx, X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY);
		t->foreign = pki_x509_read(X509_STORE_CTX_get0_cert(ctx), &t->peer, NULL) == 0;
	}
	ERR_clear_error();
	/* The server goes on to say why it refuses: tls_peer() stays NULL. A client stops here. */
	return t->verified || t->is_server;
}

static int select_alpn(SSL *ssl, const unsigned char **ret, unsigned char *ret_len,
		       const unsigned char *offered, unsigned offered_len, void *unused)
{
	unsigned char *found;
	if (SSL_select_next_proto(&found, ret_len, alpn, sizeof(alpn), offered, offered_len) !=
	    OPENSSL_NPN_NEGOTIATED)
		return SSL_TLSEXT_ERR_ALERT_FATAL;
	*ret = found;
	return SSL_TLSEXT_ERR_OK;
}

/* --------------------------------------------------------------------------------- identities */

static SSL_CTX *make_ctx(bool server)
{
	SSL_CTX *ctx = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
	if (!ctx || !SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) ||
	    !SSL_CTX_set1_groups_list(ctx, "X25519:P-256")) {
		SSL_CTX_free(ctx);
		return NULL;
	}
	SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION);
	SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
	(void)SSL_CTX_set_num_tickets(ctx, 0);
	SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_max_cert_list(ctx, CERT_LIST_MAX);
	SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_cert_verify_callback(ctx, verify, NULL);
	if (server)
		SSL_CTX_set_alpn_select_cb(ctx, select_alpn, NULL);
	else if (SSL_CTX_set_alpn_protos(ctx, alpn, sizeof(alpn)) != 0) {
		SSL_CTX_free(ctx);
		return NULL;
	}
	return ctx;
}

static void cert_p(X509 **c)
{
	X509_free(*c);
}

static void key_p(EVP_PKEY **k)
{
	EVP_PKEY_free(*k);
}

static void bio_p(BIO **b)
{
	BIO_free(*b);
}

/* The authority's certificate goes along, so that a newcomer can compare its fingerprint. */
static bool fill_ctx(SSL_CTX *ctx, X509 *cert, EVP_PKEY *key, X509 *authority, X509_STORE *store)
{
	SSL_CTX_set1_cert_store(ctx, store);
	return SSL_CTX_use_certificate(ctx, cert) == 1 && SSL_CTX_use_PrivateKey(ctx, key) == 1 &&
	       SSL_CTX_check_private_key(ctx) == 1 && SSL_CTX_add1_chain_cert(ctx, authority) == 1;
}

int tls_identity_new(struct tls_identity **ret, struct span cert, struct span key,
		     struct span authority, struct err *err)
{
	struct pki_cert own;
	int r = pki_pair_check(key, cert, err);
	if (!r)
		r = pki_verify(authority, cert, &own, err);
	X509_STORE *store = NULL;
	if (!r)
		r = pki_store_new(authority, &store, err);
	if (r < 0)
		return err_wrap(err, r, "this node's certificate");

	_cleanup_(cert_p) X509 *x = NULL;
	_cleanup_(cert_p) X509 *ca = NULL;
	_cleanup_(key_p) EVP_PKEY *pkey = NULL;
	(void)(pki_cert_parse(cert, &x, NULL) || pki_cert_parse(authority, &ca, NULL) ||
	       pki_key_parse(key, &pkey, NULL));
	struct tls_identity *id = xcalloc(1, sizeof(*id));
	id->cert = own;
	id->server = make_ctx(true);
	id->client = make_ctx(false);
	bool done = x && ca && pkey && id->server && id->client &&
		    fill_ctx(id->server, x, pkey, ca, store) &&
		    fill_ctx(id->client, x, pkey, ca, store);
	X509_STORE_free(store);
	if (!done) {
		tls_identity_free(id);
		return err_set(err, -EBADMSG, "this node's certificate cannot be used: %s",
			       pki_openssl_reason());
	}
	ERR_clear_error();
	*ret = id;
	return 0;
}

void tls_identity_free(struct tls_identity *id)
{
	if (!id)
		return;
	SSL_CTX_free(id->server);
	SSL_CTX_free(id->client);
	free(id);
}

const struct pki_cert *tls_identity_cert(const struct tls_identity *id)
{
	return &id->cert;
}

/* ----------------------------------------------------------------------------------- sessions */

static struct tls *make(SSL_CTX *ctx, bool server)
{
	struct tls *t = xcalloc(1, sizeof(*t));
	BIO *bio = BIO_new(bio_method());
	t->ssl = SSL_new(ctx);
	if (!bio || !t->ssl)
		abort(); /* out of memory, as in xcalloc() */
	BIO_set_data(bio, t);
	BIO_set_init(bio, 1);
	SSL_set_bio(t->ssl, bio, bio);
	SSL_set_app_data(t->ssl, t);
	t->is_server = server;
	if (server)
		SSL_set_accept_state(t->ssl);
	else
		SSL_set_connect_state(t->ssl);
	return t;
}

struct tls *tls_new_server(struct tls_identity *id)
{
	return make(id->server, true);
}

struct tls *tls_new_client(struct tls_identity *id)
{
	return make(id->client, false);
}

struct tls *tls_new_join(const uint8_t authority[PKI_FINGERPRINT_SIZE])
{
	SSL_CTX *ctx = make_ctx(false);
	if (!ctx)
		abort();
	struct tls *t = make(ctx, false);
	SSL_CTX_free(ctx); /* the session holds it */
	t->is_join = true;
	memcpy(t->authority, authority, PKI_FINGERPRINT_SIZE);
	return t;
}

void tls_free(struct tls *t)
{
	if (!t)
		return;
	SSL_free(t->ssl);
	X509_free(t->authority_cert);
	str_free(&t->out);
	free(t);
}

void tls_input(struct tls *t, const void *bytes, size_t len)
{
	t->in = (struct span){ bytes, len };
}

/* What a failed call of OpenSSL means. */
static int explain(struct tls *t, int result, struct err *err)
{
	switch (SSL_get_error(t->ssl, result)) {
	case SSL_ERROR_WANT_READ:
		return 0;
	case SSL_ERROR_ZERO_RETURN:
		return err_set(err, -EPIPE, "the other side closed the connection");
	default:
		break;
	}
	if (!t->is_server && t->present && !t->verified) {
		const unsigned char *proto;
		unsigned len = 0;
		SSL_get0_alpn_selected(t->ssl, &proto, &len);
		ERR_clear_error();
		if (len && t->foreign)
			return err_set(err, -EKEYREJECTED,
				       "it presented a certificate of another cluster");
		return err_set(err, -EPROTO, "it is not a Copia node");
	}
	if (ERR_GET_REASON(ERR_peek_last_error()) == SSL_R_TLSV1_ALERT_UNKNOWN_CA) {
		ERR_clear_error();
		return err_set(err, -EKEYREJECTED,
			       "it does not accept this node's certificate: it belongs to another "
			       "cluster");
	}
	return err_set(err, -EPROTO, "TLS failed: %s", pki_openssl_reason());
}

int tls_handshake(struct tls *t, struct err *err)
{
	ERR_clear_error();
	int r = SSL_do_handshake(t->ssl);
	if (r == 1) {
		/* A stranger's server may pick no protocol at all. */
		const unsigned char *proto;
		unsigned len = 0;
		SSL_get0_alpn_selected(t->ssl, &proto, &len);
		return len ? 1 : err_set(err, -EPROTO, "it is not a Copia node");
	}
	return explain(t, r, err);
}

bool tls_is_ready(const struct tls *t)
{
	return SSL_is_init_finished(t->ssl);
}

int tls_read(struct tls *t, void *buf, size_t size, struct err *err)
{
	assert(size <= INT32_MAX);
	ERR_clear_error();
	int r = SSL_read(t->ssl, buf, (int)size);
	return r > 0 ? r : explain(t, r, err);
}

int tls_write(struct tls *t, const void *bytes, size_t len, struct err *err)
{
	assert(len <= INT32_MAX && tls_is_ready(t));
	if (!len)
		return 0;
	ERR_clear_error();
	t->written += len;
	if (t->written >> 30 >= KEY_UPDATE_GIB) {
		(void)SSL_key_update(t->ssl, SSL_KEY_UPDATE_NOT_REQUESTED);
		t->written = 0;
	}
	int r = SSL_write(t->ssl, bytes, (int)len);
	if (r == (int)len)
		return 0;
	return err_set(err, -EPROTO, "TLS failed to encrypt: %s", pki_openssl_reason());
}

void tls_end(struct tls *t)
{
	if (tls_is_ready(t))
		(void)SSL_shutdown(t->ssl);
	ERR_clear_error();
}

struct str *tls_output(struct tls *t)
{
	return &t->out;
}

const struct pki_cert *tls_peer(const struct tls *t)
{
	/* The end of the handshake is the proof that it has the certificate's key. */
	return t->verified && tls_is_ready(t) ? &t->peer : NULL;
}

bool tls_peer_present(const struct tls *t)
{
	return t->present;
}

const char *tls_peer_fault(const struct tls *t)
{
	return t->fault;
}

bool tls_peer_claim(const struct tls *t, struct pki_cert *ret)
{
	if (!t->verified && !t->foreign)
		return false;
	*ret = t->peer;
	return true;
}

int tls_join_authority(const struct tls *t, struct str *ret_pem, struct err *err)
{
	assert(t->is_join && t->authority_cert);
	_cleanup_(bio_p) BIO *bio = BIO_new(BIO_s_mem());
	char *at;
	if (!bio || !PEM_write_bio_X509(bio, t->authority_cert))
		return err_set(err, -ENOMEM, "write the authority's certificate: out of memory");
	long len = BIO_get_mem_data(bio, &at);
	str_add(ret_pem, at, (size_t)len);
	return 0;
}
