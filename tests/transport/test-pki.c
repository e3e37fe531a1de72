/* SPDX-License-Identifier: Apache-2.0 */
/* Certificates, files and addresses. */
#include "io/addr.h"
#include "io/file.h"
#include "mesh.h"

#include <dirent.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
/* cmocka wants the four above before itself. */
#include <cmocka.h>

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

static struct credentials own, other;

static int setup(void **state)
{
	credentials_make(&own);
	credentials_make(&other);
	return 0;
}

static int teardown(void **state)
{
	credentials_free(&own);
	credentials_free(&other);
	return 0;
}

static X509 *parse(const struct str *pem)
{
	BIO *bio = BIO_new_mem_buf(pem->at, (int)pem->len);
	X509 *cert = PEM_read_bio_X509(bio, NULL, NULL, NULL);
	BIO_free(bio);
	assert_non_null(cert);
	return cert;
}

/* Goal: a certificate says what the signer said, and is valid from long ago to the end of time. */
static void certificate_says_what_the_signer_said(void **state)
{
	struct str key = { 0 }, cert = { 0 }, csr = { 0 }, der = { 0 };
	struct pki_cert c, again;
	char line[256], id[ID_TEXT], expected[256];
	assert_int_equal(pki_key_new(&key, NULL), 0);
	assert_int_equal(pki_csr_new(pki_span(&key), &csr, NULL), 0);
	assert_int_equal(pki_sign(pki_span(&own.authority_key), pki_span(&own.authority),
				  pki_span(&csr), &own.cluster, 4000000000u, 77, &cert, NULL),
			 0);
	assert_int_equal(pki_verify(pki_span(&own.authority), pki_span(&cert), &c, NULL), 0);
	assert_int_equal(c.node, 4000000000u);
	assert_int_equal(c.serial, 77);
	assert_false(c.is_authority);
	assert_int_equal(id_compare(&c.cluster, &own.cluster), 0);
	assert_int_equal(pki_pair_check(pki_span(&key), pki_span(&cert), NULL), 0);
	assert_int_equal(pki_cert_der(pki_span(&cert), &der, NULL), 0);
	assert_int_equal(pki_cert_read(pki_span(&der), &again, NULL), 0);
	assert_true(pki_fingerprint_equal(&c.fingerprint, &again.fingerprint));
	uint8_t digest[32];
	assert_int_equal(EVP_Digest(der.at, der.len, digest, NULL, EVP_sha256(), NULL), 1);
	assert_memory_equal(digest, c.fingerprint.at, sizeof(digest));

	X509 *x = parse(&cert);
	(void)X509_NAME_oneline(X509_get_subject_name(x), line, sizeof(line));
	(void)snprintf(expected, sizeof(expected), "/O=%s/CN=node-4000000000",
		       id_show(&own.cluster, id));
	assert_string_equal(line, expected);
	assert_int_equal(X509_get_version(x), 2); /* v3 */
	/* Clocks that are years off do not matter to those who look, either. */
	time_t early = 1000000000, late = 4000000000;
	assert_true(X509_cmp_time(X509_get0_notBefore(x), &early) < 0);
	assert_true(X509_cmp_time(X509_get0_notAfter(x), &late) > 0);
	X509_free(x);
	pki_wipe(&key);
	str_free(&cert);
	str_free(&csr);
	str_free(&der);
}

/* Goal: what a request asks for is ignored, what it cannot prove or must not have is refused. */
static void bad_requests_are_refused(void **state)
{
	struct str cert = { 0 }, csr = { 0 };
	struct err err = { 0 };
	struct span key = pki_span(&own.authority_key), authority = pki_span(&own.authority);
	static const struct {
		const char *kind;
		int code;
	} kinds[] = { { "P-256", 0 }, { "P-384", -EKEYREJECTED }, { "RSA", -EKEYREJECTED } };
	for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
		EVP_PKEY *pkey = i == 2 ? EVP_RSA_gen(2048) : EVP_EC_gen(kinds[i].kind);
		X509_REQ *req = X509_REQ_new();
		X509_NAME *name = X509_REQ_get_subject_name(req);
		assert_true(X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
						       (const uint8_t *)"node-1", -1, -1, 0));
		assert_true(X509_REQ_set_pubkey(req, pkey) &&
			    X509_REQ_sign(req, pkey, EVP_sha256()));
		unsigned char *der = NULL;
		int len = i2d_X509_REQ(req, &der);
		struct span request = { der, (size_t)len };
		assert_int_equal(pki_sign(key, authority, request, &own.cluster, 9, 0, &cert, &err),
				 kinds[i].code);
		if (!kinds[i].code) {
			struct pki_cert c;
			assert_int_equal(pki_verify(authority, pki_span(&cert), &c, NULL), 0);
			assert_int_equal(c.node, 9);
			assert_true(c.serial > 0 && c.serial <= INT64_MAX);
			str_free(&cert);
			/* A signature that does not prove the key. */
			der[len - 1] ^= 1;
			assert_int_equal(
			    pki_sign(key, authority, request, &own.cluster, 9, 0, &cert, &err),
			    -EBADMSG);
			for (int cut = 0; cut < len; cut += 7) {
				request.len = (size_t)cut;
				assert_int_equal(pki_sign(key, authority, request, &own.cluster, 9,
							  0, &cert, &err),
						 -EBADMSG);
			}
		}
		OPENSSL_free(der);
		X509_REQ_free(req);
		EVP_PKEY_free(pkey);
	}
	assert_int_equal(pki_csr_new(key, &csr, NULL), 0);
	assert_int_equal(pki_sign(key, pki_span(&other.authority), pki_span(&csr), &own.cluster, 9,
				  0, &cert, &err),
			 -EINVAL);
	assert_int_equal(cert.len, 0);
	str_free(&csr);
}

/* Goal: only a node's certificate, signed by the authority itself and of its cluster, is verified:
 * not another cluster's, not one signed by a node, not the authority's own. */
static void only_own_certificates_verify(void **state)
{
	struct str key = { 0 }, cert = { 0 }, key2 = { 0 }, cert2 = { 0 }, csr = { 0 },
		   bundle = { 0 };
	struct pki_cert c;
	struct span authority = pki_span(&own.authority);
	credentials_sign(&other, 2, &key, &cert);
	assert_int_equal(pki_verify(authority, pki_span(&cert), &c, NULL), -EKEYREJECTED);
	assert_true(pki_verify(authority, authority, &c, NULL) < 0);
	/* Both authorities: a node of either is one. */
	str_add(&bundle, own.authority.at, own.authority.len);
	str_add(&bundle, other.authority.at, other.authority.len);
	assert_int_equal(pki_verify(pki_span(&bundle), pki_span(&cert), &c, NULL), 0);
	/* A node of our cluster, as another authority sees it. */
	struct credentials liar = { .cluster = own.cluster };
	str_add(&liar.authority, other.authority.at, other.authority.len);
	str_add(&liar.authority_key, other.authority_key.at, other.authority_key.len);
	credentials_sign(&liar, 2, &key, &cert);
	assert_int_equal(pki_verify(pki_span(&other.authority), pki_span(&cert), &c, NULL),
			 -EKEYREJECTED);
	assert_int_equal(pki_verify(pki_span(&bundle), pki_span(&cert), &c, NULL), -EKEYREJECTED);
	/* A node that signs. */
	credentials_sign(&own, 2, &key, &cert);
	assert_int_equal(pki_key_new(&key2, NULL), 0);
	assert_int_equal(pki_csr_new(pki_span(&key2), &csr, NULL), 0);
	assert_int_equal(pki_sign(pki_span(&key), pki_span(&cert), pki_span(&csr), &own.cluster, 1,
				  0, &cert2, NULL),
			 0);
	assert_int_equal(pki_verify(authority, pki_span(&cert2), &c, NULL), -EKEYREJECTED);
	assert_int_equal(pki_verify(pki_span(&cert), pki_span(&cert2), &c, NULL), -EBADMSG);
	assert_int_equal(pki_pair_check(pki_span(&key2), pki_span(&cert), NULL), -EKEYREJECTED);
	struct span rubbish = { (const uint8_t *)"rubbish", 7 }, none = { NULL, 0 };
	assert_int_equal(pki_verify(authority, rubbish, &c, NULL), -EBADMSG);
	assert_int_equal(pki_verify(rubbish, pki_span(&cert), &c, NULL), -EBADMSG);
	assert_int_equal(pki_verify(none, pki_span(&cert), &c, NULL), -EBADMSG);
	assert_int_equal(pki_verify(authority, none, &c, NULL), -EBADMSG);
	/* Every single bit of a certificate counts. */
	struct str der = { 0 };
	assert_int_equal(pki_cert_der(pki_span(&cert), &der, NULL), 0);
	for (size_t i = 0; i < der.len; i++) {
		der.at[i] ^= 4;
		assert_true(pki_verify(authority, pki_span(&der), &c, NULL) < 0);
		der.at[i] ^= 4;
	}
	assert_int_equal(pki_verify(authority, pki_span(&der), &c, NULL), 0);
	pki_wipe(&key);
	pki_wipe(&key2);
	str_free(&cert);
	str_free(&cert2);
	str_free(&csr);
	str_free(&der);
	str_free(&bundle);
	credentials_free(&liar);
}

/* ---------------------------------------------------------------------------------------- files */

static unsigned count_files(const char *folder)
{
	DIR *d = opendir(folder);
	unsigned count = 0;
	assert_non_null(d);
	for (struct dirent *e; (e = readdir(d));)
		count += e->d_name[0] != '.';
	(void)closedir(d);
	return count;
}

static void assert_content(const char *path, const char *text)
{
	struct str s = { 0 };
	assert_int_equal(file_read(path, 1 << 20, &s, NULL), 0);
	assert_string_equal(str_text(&s), text);
	str_free(&s);
}

/* Goal: a key file is whole, private, and replaced at once; when there is no room for the new one,
 * the old one stays, the error says what is needed, and nothing else is left. */
static void files_are_replaced_whole(void **state)
{
	char folder[] = "/tmp/copia-test-XXXXXX", path[64];
	struct err err = { 0 };
	struct stat st;
	assert_non_null(mkdtemp(folder));
	(void)snprintf(path, sizeof(path), "%s/key", folder);
	mode_t mask = umask(0);
	assert_int_equal(file_write_atomic(path, "old", 3, 0600, &err), 0);
	(void)umask(mask);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_content(path, "old");
	assert_int_equal(file_write_atomic(path, "newer", 5, 0600, &err), 0);
	assert_content(path, "newer");
	struct str s = { 0 };
	assert_int_equal(file_read(path, 4, &s, &err), -EFBIG);
	assert_null(s.at);
	assert_int_equal(file_read("/tmp/copia-test-none/x", 4, &s, &err), -ENOENT);
	assert_int_equal(file_write_atomic("/tmp/copia-test-none/x", "", 0, 0600, &err), -ENOENT);

	/* A limit on the size of files stands for a full disk where nothing can be mounted. */
	struct rlimit limit, none = { 2, RLIM_INFINITY };
	(void)signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	none.rlim_max = limit.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &none), 0);
	int r = file_write_atomic(path, "third", 5, 0600, &err);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
	assert_int_equal(r, -EFBIG);
	assert_content(path, "newer");
	assert_int_equal(count_files(folder), 1);

	char small[80], inside[96];
	(void)snprintf(small, sizeof(small), "%s/small", folder);
	assert_int_equal(mkdir(small, 0700), 0);
	if (mount("none", small, "tmpfs", 0, "size=8k,nr_inodes=16") == 0) {
		char *big = xcalloc(1, 64 * 1024);
		(void)snprintf(inside, sizeof(inside), "%s/key", small);
		assert_int_equal(file_write_atomic(inside, "old", 3, 0600, &err), 0);
		assert_int_equal(file_write_atomic(inside, big, 64 * 1024, 0600, &err), -ENOSPC);
		assert_non_null(strstr(err.msg, "65536 bytes are needed"));
		assert_content(inside, "old");
		assert_int_equal(count_files(small), 1);
		assert_int_equal(umount(small), 0);
		free(big);
	}
	assert_int_equal(rmdir(small), 0);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(rmdir(folder), 0);
}

/* ------------------------------------------------------------------------------------ addresses */

/* Goal: addresses are read and shown alike; what is none is refused. */
static void addresses_are_read_and_shown(void **state)
{
	static const struct {
		const char *text, *shown;
	} cases[] = { { "10.0.0.1", "10.0.0.1:7" },
		      { "::1", "[::1]:7" },
		      { "FD00:0::1", "[fd00::1]:7" },
		      { "::ffff:10.0.0.1", "10.0.0.1:7" },
		      { "fe80::1%lo", "[fe80::1%lo]:7" } };
	static const char *const bad[] = { "",      "10.0.0",     "10.0.0.256",   "n1",
					   "[::1]", "10.0.0.1:7", "fe80::1%none", "::1%",
					   ":::" };
	char buf[ADDR_TEXT];
	union addr a, b;
	for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
		assert_int_equal(addr_parse(cases[i].text, 7, &a, NULL), 0);
		assert_string_equal(addr_show(&a, buf), cases[i].shown);
		assert_int_equal(addr_parse(addr_show_host(&a, buf), 7, &b, NULL), 0);
		assert_true(addr_equal(&a, &b));
		addr_set_port(&b, 8);
		assert_false(addr_equal(&a, &b));
	}
	for (size_t i = 0; i < ARRAY_LEN(bad); i++)
		assert_int_equal(addr_parse(bad[i], 7, &a, NULL), -EINVAL);
}

struct resolved {
	unsigned count;
	int result;
	size_t addresses;
	uint16_t port;
};

static void on_resolved(void *ctx, int result, const union addr *addresses, size_t count,
			const struct err *err)
{
	struct resolved *r = ctx;
	r->count++;
	r->result = result;
	r->addresses = count;
	r->port = count ? addr_port(&addresses[0]) : 0;
	assert_int_equal(result == 0, count > 0);
}

/* Goal: names resolve in the background, failures come with a reason, a cancelled one stays silent,
 * and our own addresses do not contain what others cannot reach. */
static void names_resolve_in_the_background(void **state)
{
	struct mesh m;
	struct resolved good = { 0 }, bad = { 0 }, cancelled = { 0 };
	struct addr_resolve *r;
	mesh_init(&m);
	assert_int_equal(addr_resolve(&m.loop, "127.0.0.1", 9, on_resolved, &good, &r, NULL), 0);
	assert_int_equal(addr_resolve(&m.loop, "no-such.invalid", 9, on_resolved, &bad, &r, NULL),
			 0);
	assert_int_equal(addr_resolve(&m.loop, "localhost", 9, on_resolved, &cancelled, &r, NULL),
			 0);
	addr_resolve_cancel(r);
	assert_int_equal(good.count, 0);
	mesh_wait(&m, good.count && bad.count);
	assert_int_equal(good.result, 0);
	assert_int_equal(good.port, 9);
	assert_int_equal(bad.result, -EHOSTUNREACH);
	mesh_free(&m);
	assert_int_equal(cancelled.count, 0);

	struct addr_own *own_list, *all;
	size_t count, all_count;
	assert_int_equal(addr_own_list(false, &own_list, &count, NULL), 0);
	assert_int_equal(addr_own_list(true, &all, &all_count, NULL), 0);
	for (size_t i = 0; i < count; i++) {
		char text[ADDR_TEXT];
		(void)addr_show_host(&own_list[i].addr, text);
		assert_true(strncmp(text, "127.", 4) != 0 && strncmp(text, "fe80", 4) != 0 &&
			    strncmp(text, "169.254.", 8) != 0 && strcmp(text, "::1") != 0);
		assert_true(*own_list[i].interface && own_list[i].prefix_len <= 128);
	}
	bool found = false;
	for (size_t i = 0; i < all_count; i++)
		found = found || (all[i].addr.any.sa_family == AF_INET &&
				  all[i].addr.v4.sin_addr.s_addr == htonl(INADDR_LOOPBACK));
	assert_true(found && all_count > count);
	free(own_list);
	free(all);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(certificate_says_what_the_signer_said),
		cmocka_unit_test(bad_requests_are_refused),
		cmocka_unit_test(only_own_certificates_verify),
		cmocka_unit_test(files_are_replaced_whole),
		cmocka_unit_test(addresses_are_read_and_shown),
		cmocka_unit_test(names_resolve_in_the_background),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
