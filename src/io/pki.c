/* SPDX-License-Identifier: Apache-2.0 */
#include "io/pki.h"

#include "io/pki-x509.h"
#include <assert.h>
#include <errno.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdio.h>

enum {
	INPUT_MAX = 64 * 1024, /* bytes of a key, request or bundle; ours have 200 to 800 */
	AUTHORITY_MAX = 8      /* in a bundle */
};

static void key_p(EVP_PKEY **k)
{
	EVP_PKEY_free(*k);
}

static void cert_p(X509 **c)
{
	X509_free(*c);
}

static void csr_p(X509_REQ **r)
{
	X509_REQ_free(*r);
}

static void bio_p(BIO **b)
{
	BIO_free(*b);
}

/* The reason of OpenSSL's last error; the queue is empty afterwards. */
const char *pki_openssl_reason(void)
{
	unsigned long code = ERR_peek_last_error();
	const char *text = code ? ERR_reason_error_string(code) : NULL;
	ERR_clear_error();
	return text ? text : "unknown reason";
}

/* Never asks a terminal for a password, as OpenSSL does by default. */
static int no_password(char *buf, int size, int rw, void *ctx)
{
	return -1;
}

static BIO *input(struct span bytes)
{
	if (!bytes.at || !bytes.len || bytes.len > INPUT_MAX)
		return NULL;
	return BIO_new_mem_buf(bytes.at, (int)bytes.len);
}

static bool is_der(struct span bytes)
{
	return bytes.len && bytes.at && bytes.at[0] == 0x30;
}

int pki_key_parse(struct span bytes, EVP_PKEY **ret, struct err *err)
{
	_cleanup_(bio_p) BIO *bio = input(bytes);
	EVP_PKEY *key = !bio            ? NULL
			: is_der(bytes) ? d2i_PrivateKey_bio(bio, NULL)
					: PEM_read_bio_PrivateKey(bio, NULL, no_password, NULL);
	if (!key)
		return err_set(err, -EBADMSG, "this is not a private key: %s",
			       pki_openssl_reason());
	ERR_clear_error();
	*ret = key;
	return 0;
}

int pki_cert_parse(struct span bytes, X509 **ret, struct err *err)
{
	_cleanup_(bio_p) BIO *bio = input(bytes);
	X509 *cert = !bio            ? NULL
		     : is_der(bytes) ? d2i_X509_bio(bio, NULL)
				     : PEM_read_bio_X509(bio, NULL, no_password, NULL);
	if (!cert)
		return err_set(err, -EBADMSG, "this is not a certificate: %s",
			       pki_openssl_reason());
	ERR_clear_error();
	*ret = cert;
	return 0;
}

static int read_csr(struct span bytes, X509_REQ **ret, struct err *err)
{
	_cleanup_(bio_p) BIO *bio = input(bytes);
	X509_REQ *csr = !bio            ? NULL
			: is_der(bytes) ? d2i_X509_REQ_bio(bio, NULL)
					: PEM_read_bio_X509_REQ(bio, NULL, no_password, NULL);
	if (!csr)
		return err_set(err, -EBADMSG, "this is not a certificate request: %s",
			       pki_openssl_reason());
	ERR_clear_error();
	*ret = csr;
	return 0;
}

/* Move what a memory BIO holds into `ret`, and wipe it there. */
static void take_bio(BIO *bio, struct str *ret)
{
	char *at;
	long len = BIO_get_mem_data(bio, &at);
	assert(len > 0 && ret->len == 0);
	str_add(ret, at, (size_t)len);
	OPENSSL_cleanse(at, (size_t)len);
}

static int write_key(EVP_PKEY *key, struct str *ret, struct err *err)
{
	_cleanup_(bio_p) BIO *bio = BIO_new(BIO_s_secmem());
	if (!bio || !PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL))
		return err_set(err, -EIO, "write a private key: %s", pki_openssl_reason());
	take_bio(bio, ret);
	return 0;
}

static int write_cert(X509 *cert, struct str *ret, struct err *err)
{
	_cleanup_(bio_p) BIO *bio = BIO_new(BIO_s_mem());
	if (!bio || !PEM_write_bio_X509(bio, cert))
		return err_set(err, -EIO, "write a certificate: %s", pki_openssl_reason());
	take_bio(bio, ret);
	return 0;
}

static int make_key(EVP_PKEY **ret, struct err *err)
{
	*ret = EVP_EC_gen("P-256");
	return *ret ? 0 : err_set(err, -EIO, "make a key: %s", pki_openssl_reason());
}

int pki_random(void *ret, size_t len, struct err *err)
{
	assert(len <= INT32_MAX);
	if (RAND_bytes(ret, (int)len) != 1)
		return err_set(err, -EIO, "get random bytes: %s", pki_openssl_reason());
	return 0;
}

/* -------------------------------------------------------------------------- making certificates */

static bool set_serial(X509 *cert, uint64_t serial)
{
	while (serial == 0) {
		if (RAND_bytes((unsigned char *)&serial, sizeof(serial)) != 1)
			return false;
		serial >>= 1; /* positive also for those who read it as signed */
	}
	return ASN1_INTEGER_set_uint64(X509_get_serialNumber(cert), serial);
}

/* No clock is asked: see the header. 99991231235959Z is RFC 5280 §4.1.2.5 for "no end". */
static bool set_validity(X509 *cert)
{
	return ASN1_TIME_set_string_X509(X509_getm_notBefore(cert), "20000101000000Z") &&
	       ASN1_TIME_set_string_X509(X509_getm_notAfter(cert), "99991231235959Z");
}

static bool set_subject(X509_NAME *name, const char *common, const char *organisation)
{
	return X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC,
					  (const unsigned char *)organisation, -1, -1, 0) &&
	       X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)common,
					  -1, -1, 0);
}

static bool add_extension(X509 *cert, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX ctx;
	X509V3_set_ctx_nodb(&ctx);
	X509V3_set_ctx(&ctx, issuer, cert, NULL, NULL, 0);
	X509_EXTENSION *ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	bool done = ext && X509_add_ext(cert, ext, -1);
	X509_EXTENSION_free(ext);
	return done;
}

struct extension {
	int nid;
	const char *value;
};

static const struct extension authority_extensions[] = {
	{ NID_basic_constraints, "critical,CA:TRUE,pathlen:0" },
	{ NID_key_usage, "critical,keyCertSign,cRLSign" },
	{ NID_subject_key_identifier, "hash" },
};

static const struct extension node_extensions[] = {
	{ NID_basic_constraints, "critical,CA:FALSE" },
	{ NID_key_usage, "critical,digitalSignature" },
	{ NID_ext_key_usage, "serverAuth,clientAuth" },
	{ NID_subject_key_identifier, "hash" },
	{ NID_authority_key_identifier, "keyid:always" },
};

static char *show_uri(const struct id *cluster, uint32_t node, char buf[PKI_URI_TEXT])
{
	char id[ID_TEXT];
	(void)snprintf(buf, PKI_URI_TEXT, "copia://%s/node/%u", id_show(cluster, id), node);
	return buf;
}

/* Everything but the signature. `issuer` NULL: signed by itself. Node 0 is the authority. */
static bool fill_cert(X509 *cert, X509 *issuer, EVP_PKEY *key, const struct id *cluster,
		      uint32_t node, uint64_t serial)
{
	char id[ID_TEXT], common[32], san[4 + PKI_URI_TEXT], uri[PKI_URI_TEXT];
	(void)snprintf(common, sizeof(common), node ? "node-%u" : "authority", node);
	(void)snprintf(san, sizeof(san), "URI:%s", show_uri(cluster, node, uri));

	const struct extension *ext = node ? node_extensions : authority_extensions;
	size_t count = node ? ARRAY_LEN(node_extensions) : ARRAY_LEN(authority_extensions);
	if (!X509_set_version(cert, X509_VERSION_3) || !set_serial(cert, serial) ||
	    !set_validity(cert) ||
	    !set_subject(X509_get_subject_name(cert), common, id_show(cluster, id)) ||
	    !X509_set_issuer_name(cert, X509_get_subject_name(issuer ? issuer : cert)) ||
	    !X509_set_pubkey(cert, key))
		return false;
	for (size_t i = 0; i < count; i++)
		if (!add_extension(cert, issuer ? issuer : cert, ext[i].nid, ext[i].value))
			return false;
	return add_extension(cert, cert, NID_subject_alt_name, san);
}

int pki_authority_new(const struct id *cluster, struct str *ret_key, struct str *ret_cert,
		      struct err *err)
{
	assert(!id_is_none(cluster));
	_cleanup_(key_p) EVP_PKEY *key = NULL;
	int r = make_key(&key, err);
	if (r < 0)
		return r;
	_cleanup_(cert_p) X509 *cert = X509_new();
	if (!cert || !fill_cert(cert, NULL, key, cluster, 0, 0) ||
	    !X509_sign(cert, key, EVP_sha256()))
		return err_set(err, -EIO, "make the cluster's authority: %s", pki_openssl_reason());
	r = write_cert(cert, ret_cert, err);
	return r < 0 ? r : write_key(key, ret_key, err);
}

int pki_key_new(struct str *ret_key, struct err *err)
{
	_cleanup_(key_p) EVP_PKEY *key = NULL;
	int r = make_key(&key, err);
	return r < 0 ? r : write_key(key, ret_key, err);
}

int pki_csr_new(struct span key, struct str *ret_csr, struct err *err)
{
	_cleanup_(key_p) EVP_PKEY *pkey = NULL;
	int r = pki_key_parse(key, &pkey, err);
	if (r < 0)
		return r;
	_cleanup_(csr_p) X509_REQ *csr = X509_REQ_new();
	_cleanup_(bio_p) BIO *bio = BIO_new(BIO_s_mem());
	if (!csr || !bio || !X509_REQ_set_version(csr, X509_REQ_VERSION_1) ||
	    !X509_REQ_set_pubkey(csr, pkey) || !X509_REQ_sign(csr, pkey, EVP_sha256()) ||
	    !PEM_write_bio_X509_REQ(bio, csr))
		return err_set(err, -EIO, "make a certificate request: %s", pki_openssl_reason());
	take_bio(bio, ret_csr);
	return 0;
}

/* What a stranger may bring as a key: one curve, so that nothing weak or costly gets in. */
static bool key_is_allowed(EVP_PKEY *key)
{
	char group[32];
	return EVP_PKEY_is_a(key, "EC") &&
	       EVP_PKEY_get_group_name(key, group, sizeof(group), NULL) &&
	       strcmp(group, "prime256v1") == 0;
}

int pki_sign(struct span authority_key, struct span authority_cert, struct span csr,
	     const struct id *cluster, uint32_t node, uint64_t serial, struct str *ret_cert,
	     struct err *err)
{
	assert(node > 0 && !id_is_none(cluster));
	_cleanup_(key_p) EVP_PKEY *issuer_key = NULL;
	_cleanup_(cert_p) X509 *issuer = NULL;
	_cleanup_(csr_p) X509_REQ *request = NULL;
	int r = pki_key_parse(authority_key, &issuer_key, err);
	if (!r)
		r = pki_cert_parse(authority_cert, &issuer, err);
	if (r < 0)
		return err_wrap(err, r, "the cluster's authority");
	if (X509_check_private_key(issuer, issuer_key) != 1) {
		ERR_clear_error();
		return err_set(err, -EINVAL,
			       "the authority's key does not belong to its certificate");
	}
	r = read_csr(csr, &request, err);
	if (r < 0)
		return r;
	EVP_PKEY *key = X509_REQ_get0_pubkey(request);
	if (!key || !key_is_allowed(key)) {
		ERR_clear_error();
		return err_set(err, -EKEYREJECTED,
			       "certificate request has another kind of key than ECDSA P-256");
	}
	if (X509_REQ_verify(request, key) != 1)
		return err_set(err, -EBADMSG, "certificate request does not prove its key: %s",
			       pki_openssl_reason());

	_cleanup_(cert_p) X509 *cert = X509_new();
	if (!cert || !fill_cert(cert, issuer, key, cluster, node, serial) ||
	    !X509_sign(cert, issuer_key, EVP_sha256()))
		return err_set(err, -EIO, "sign the certificate of node %u: %s", node,
			       pki_openssl_reason());
	return write_cert(cert, ret_cert, err);
}

/* ------------------------------------------------------------------------- reading certificates */

/* "copia://CLUSTERID/node/NUMBER", and nothing that is written differently. */
static bool parse_uri(const char *text, size_t len, struct id *cluster, uint32_t *node)
{
	static const char start[] = "copia://", middle[] = "/node/";
	const size_t id_at = sizeof(start) - 1, middle_at = id_at + ID_TEXT - 1,
		     number_at = middle_at + sizeof(middle) - 1;
	char id[ID_TEXT], again[PKI_URI_TEXT];
	if (len <= number_at || len >= PKI_URI_TEXT || memcmp(text, start, id_at) != 0 ||
	    memcmp(text + middle_at, middle, sizeof(middle) - 1) != 0)
		return false;
	memcpy(id, text + id_at, ID_TEXT - 1);
	id[ID_TEXT - 1] = '\0';
	uint64_t number = 0;
	for (size_t i = number_at; i < len; i++) {
		if (text[i] < '0' || text[i] > '9' || number > UINT32_MAX)
			return false;
		number = number * 10 + (uint64_t)(text[i] - '0');
	}
	if (number > UINT32_MAX || !id_parse(id, cluster) || id_is_none(cluster))
		return false;
	*node = (uint32_t)number;
	return strlen(show_uri(cluster, *node, again)) == len && memcmp(again, text, len) == 0;
}

int pki_x509_read(X509 *cert, struct pki_cert *ret, struct err *err)
{
	struct pki_cert c = { .is_authority = X509_check_ca(cert) == 1 };
	unsigned len = 0;
	if (!X509_digest(cert, EVP_sha256(), c.fingerprint.at, &len) || len != PKI_FINGERPRINT_SIZE)
		return err_set(err, -EBADMSG, "certificate cannot be hashed: %s",
			       pki_openssl_reason());
	if (!ASN1_INTEGER_get_uint64(&c.serial, X509_get0_serialNumber(cert)))
		c.serial = 0;

	GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
	bool found = false;
	if (sk_GENERAL_NAME_num(names) == 1) { /* -1 without names */
		const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, 0);
		const ASN1_IA5STRING *uri =
		    name->type == GEN_URI ? name->d.uniformResourceIdentifier : NULL;
		found = uri && parse_uri((const char *)ASN1_STRING_get0_data(uri),
					 (size_t)ASN1_STRING_length(uri), &c.cluster, &c.node);
	}
	GENERAL_NAMES_free(names);
	ERR_clear_error();
	if (!found || c.is_authority != (c.node == 0))
		return err_set(err, -EBADMSG, "certificate is not one of a Copia cluster");
	*ret = c;
	return 0;
}

int pki_cert_read(struct span cert, struct pki_cert *ret, struct err *err)
{
	_cleanup_(cert_p) X509 *x = NULL;
	int r = pki_cert_parse(cert, &x, err);
	return r < 0 ? r : pki_x509_read(x, ret, err);
}

/* Add one authority; 1: added, 0: nothing more to read. */
static int add_authority(X509_STORE *store, BIO *bio, bool der, struct err *err)
{
	_cleanup_(cert_p) X509 *cert =
	    der ? d2i_X509_bio(bio, NULL) : PEM_read_bio_X509(bio, NULL, no_password, NULL);
	ERR_clear_error();
	if (!cert)
		return 0;
	struct pki_cert c;
	int r = pki_x509_read(cert, &c, err);
	if (r < 0)
		return r;
	if (!c.is_authority)
		return err_set(err, -EBADMSG, "this is the certificate of a node");
	return X509_STORE_add_cert(store, cert) == 1 ? 1 : err_set(err, -ENOMEM, "out of memory");
}

int pki_store_new(struct span authority_cert, X509_STORE **ret, struct err *err)
{
	_cleanup_(bio_p) BIO *bio = input(authority_cert);
	X509_STORE *store = X509_STORE_new();
	int count = 0, r = bio && store ? 1 : 0;
	while (r > 0 && count < AUTHORITY_MAX) {
		r = add_authority(store, bio, is_der(authority_cert), err);
		count += r > 0;
	}
	if (r >= 0 && !count)
		r = err_set(err, -EBADMSG, "this is not a certificate");
	if (r < 0) {
		X509_STORE_free(store);
		return err_wrap(err, r, "the cluster's authority");
	}
	*ret = store;
	return 0;
}

int pki_chain_check(X509_STORE_CTX *ctx, struct pki_cert *ret, struct err *err)
{
	X509 *cert = X509_STORE_CTX_get0_cert(ctx);
	/* No clocks: see pki.h. Strict, and without intermediates: nothing that we never make. */
	X509_VERIFY_PARAM *param = X509_STORE_CTX_get0_param(ctx);
	X509_VERIFY_PARAM_set_flags(param, X509_V_FLAG_NO_CHECK_TIME | X509_V_FLAG_X509_STRICT);
	X509_VERIFY_PARAM_set_depth(param, 0);
	int ok = X509_verify_cert(ctx);
	int why = X509_STORE_CTX_get_error(ctx);
	ERR_clear_error();
	if (ok != 1)
		return err_set(err, -EKEYREJECTED, "%s", X509_verify_cert_error_string(why));
	struct pki_cert mine, issuer;
	int r = pki_x509_read(cert, &mine, err);
	STACK_OF(X509) *chain = X509_STORE_CTX_get0_chain(ctx);
	if (!r)
		r = pki_x509_read(sk_X509_value(chain, sk_X509_num(chain) - 1), &issuer, err);
	if (r < 0)
		return r;
	if (mine.is_authority || id_compare(&mine.cluster, &issuer.cluster) != 0)
		return err_set(err, -EKEYREJECTED,
			       "certificate does not name a node of the authority's cluster");
	*ret = mine;
	return 0;
}

int pki_verify(struct span authority_cert, struct span cert, struct pki_cert *ret, struct err *err)
{
	_cleanup_(cert_p) X509 *x = NULL;
	X509_STORE *store = NULL;
	int r = pki_cert_parse(cert, &x, err);
	if (!r)
		r = pki_store_new(authority_cert, &store, err);
	if (r < 0)
		return r;
	X509_STORE_CTX *ctx = X509_STORE_CTX_new();
	if (!ctx || !X509_STORE_CTX_init(ctx, store, x, NULL))
		r = err_set(err, -ENOMEM, "check a certificate: %s", pki_openssl_reason());
	else
		r = pki_chain_check(ctx, ret, err);
	X509_STORE_CTX_free(ctx);
	X509_STORE_free(store);
	return r;
}

int pki_pair_check(struct span key, struct span cert, struct err *err)
{
	_cleanup_(key_p) EVP_PKEY *pkey = NULL;
	_cleanup_(cert_p) X509 *x = NULL;
	int r = pki_key_parse(key, &pkey, err);
	if (!r)
		r = pki_cert_parse(cert, &x, err);
	if (r < 0)
		return r;
	bool fits = X509_check_private_key(x, pkey) == 1;
	ERR_clear_error();
	return fits ? 0 : err_set(err, -EKEYREJECTED, "the key does not belong to the certificate");
}

int pki_cert_der(struct span cert, struct str *ret_der, struct err *err)
{
	_cleanup_(cert_p) X509 *x = NULL;
	int r = pki_cert_parse(cert, &x, err);
	if (r < 0)
		return r;
	unsigned char *der = NULL;
	int len = i2d_X509(x, &der);
	if (len <= 0)
		return err_set(err, -EIO, "write a certificate: %s", pki_openssl_reason());
	str_add(ret_der, der, (size_t)len);
	OPENSSL_free(der);
	return 0;
}

char *pki_fingerprint_show(const struct pki_fingerprint *f, char buf[2 * PKI_FINGERPRINT_SIZE + 1])
{
	for (size_t i = 0; i < PKI_FINGERPRINT_SIZE; i++)
		(void)snprintf(buf + 2 * i, 3, "%02x", f->at[i]);
	return buf;
}

bool pki_fingerprint_equal(const struct pki_fingerprint *a, const struct pki_fingerprint *b)
{
	return CRYPTO_memcmp(a->at, b->at, PKI_FINGERPRINT_SIZE) == 0;
}

void pki_wipe(struct str *secret)
{
	if (secret->at)
		OPENSSL_cleanse(secret->at, secret->cap);
	str_free(secret);
}

void pki_wipe_bytes(void *secret, size_t len)
{
	OPENSSL_cleanse(secret, len);
}
