/* SPDX-License-Identifier: Apache-2.0 */
/* A newcomer without certificate asks for admission. */
#include "mesh.h"
#include "wire/token.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
/* cmocka wants the four above before itself. */
#include <cmocka.h>

static const char secret[] = "the-token's-secret";

struct answer {
	unsigned count;
	int result;
	struct str reply, authority;
	char message[512];
};

static void on_done(void *ctx, int result, const struct peers_joined *joined, const struct err *err)
{
	struct answer *a = ctx;
	a->count++;
	a->result = result;
	if (joined) {
		assert_int_equal(result, 0);
		str_add(&a->reply, joined->reply.at, joined->reply.len);
		str_puts(&a->authority, joined->authority_pem);
	} else {
		assert_int_equal(result, err->code);
		(void)snprintf(a->message, sizeof(a->message), "%s", err->msg);
		assert_null(strstr(err->msg, secret));
	}
}

static void answer_free(struct answer *a)
{
	str_free(&a->reply);
	str_free(&a->authority);
}

static struct peers_join *ask(struct mesh *m, const struct credentials *trusted, const char *host,
			      uint16_t port, struct answer *a)
{
	struct pki_cert authority;
	struct peers_join_settings s = { .host = host,
					 .port = port,
					 .request = { (const uint8_t *)secret, sizeof(secret) },
					 .timeout_ms = 3000 };
	struct peers_join *j;
	assert_int_equal(pki_cert_read(pki_span(&trusted->authority), &authority, NULL), 0);
	memcpy(s.authority, authority.fingerprint.at, sizeof(s.authority));
	assert_int_equal(peers_join(&m->loop, &s, on_done, a, &j, NULL), 0);
	return j;
}

static void assert_failed(const struct answer *a, int code, const char *part)
{
	assert_int_equal(a->count, 1);
	if (a->result != code || !strstr(a->message, part))
		fail_msg("%d '%s' instead of %d '…%s…'", a->result, a->message, code, part);
}

/* Goal: the request arrives, the answer returns, long ones too, with the authority's certificate;
 * the certificate that the answer brings is good for a session at once. */
static void newcomer_gets_in(void **state)
{
	static const char *const hosts[] = { "127.0.0.1", "::1", "localhost" };
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	for (size_t i = 0; i < ARRAY_LEN(hosts); i++) {
		struct answer a = { 0 };
		(void)ask(&m, &m.own, hosts[i], peers_port(m.nodes[1].peers), &a);
		mesh_wait(&m, m.nodes[1].join_count == i + 1);
		assert_memory_equal(m.nodes[1].join_body.at, secret, sizeof(secret));
		assert_int_equal(a.count, 0);
		size_t size = i ? 3u << 20 : 5;
		char *reply = xcalloc(1, size);
		memset(reply, 'r', size);
		assert_int_equal(
		    peers_join_reply(m.nodes[1].peers, m.nodes[1].join_ticket, reply, size), 0);
		assert_int_equal(peers_join_reply(m.nodes[1].peers, m.nodes[1].join_ticket, "x", 1),
				 -ENOENT);
		mesh_wait(&m, a.count == 1);
		assert_int_equal(a.result, 0);
		assert_int_equal(a.reply.len, size);
		assert_memory_equal(a.reply.at, reply, size);
		assert_string_equal(str_text(&a.authority), str_text(&m.own.authority));
		free(reply);
		answer_free(&a);
	}
	mesh_pair(&m, 1, 2);
	struct peers_stats s;
	peers_stats(m.nodes[1].peers, &s);
	mesh_wait(&m, (peers_stats(m.nodes[1].peers, &s), s.unfinished == 0));
	assert_int_equal(s.refused_join + s.garbage, 0);
	mesh_free(&m);
}

/* Goal: a refusal reaches the person, in words. */
static void refusal_is_told(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	struct answer a = { 0 };
	(void)ask(&m, &m.own, "127.0.0.1", peers_port(m.nodes[1].peers), &a);
	mesh_wait(&m, m.nodes[1].join_count == 1);
	assert_int_equal(peers_join_refuse(m.nodes[1].peers, m.nodes[1].join_ticket,
					   "token was used before: make a new one"),
			 0);
	mesh_wait(&m, a.count);
	assert_failed(&a, -EACCES, "token was used before: make a new one");
	mesh_free(&m);
}

/* Goal: with the token of another cluster the secret does not leave this machine: the other side
 * hears of no request, and fewer bytes pass than the request has. */
static void secret_is_kept_from_other_clusters(void **state)
{
	struct mesh m;
	struct credentials other = { 0 };
	mesh_init(&m);
	credentials_make(&other);
	mesh_start(&m, 1);
	struct relay *r = relay_start(&m, peers_port(m.nodes[1].peers));
	struct pki_cert authority;
	assert_int_equal(pki_cert_read(pki_span(&other.authority), &authority, NULL), 0);
	char *request = xcalloc(1, PEERS_JOIN_MAX);
	struct peers_join_settings s = { .host = "127.0.0.1",
					 .port = relay_port(r),
					 .request = { (uint8_t *)request, PEERS_JOIN_MAX } };
	memcpy(s.authority, authority.fingerprint.at, sizeof(s.authority));
	struct answer a = { 0 };
	struct peers_join *j;
	assert_int_equal(peers_join(&m.loop, &s, on_done, &a, &j, NULL), 0);
	mesh_wait(&m, a.count);
	assert_failed(&a, -EKEYREJECTED, "another cluster");
	struct peers_stats stats;
	mesh_wait(&m, (peers_stats(m.nodes[1].peers, &stats), stats.refused_cluster == 1));
	mesh_wait(&m, (peers_stats(m.nodes[1].peers, &stats), stats.unfinished == 0));
	assert_int_equal(m.nodes[1].join_count, 0);
	assert_in_range(relay_bytes(r, true), 100, 2000);

	/* The same request with the right fingerprint arrives: the test can see the difference. */
	assert_int_equal(pki_cert_read(pki_span(&m.own.authority), &authority, NULL), 0);
	memcpy(s.authority, authority.fingerprint.at, sizeof(s.authority));
	assert_int_equal(peers_join(&m.loop, &s, on_done, &a, &j, NULL), 0);
	mesh_wait(&m, m.nodes[1].join_count == 1);
	assert_int_equal(m.nodes[1].join_body.len, PEERS_JOIN_MAX);
	assert_true(relay_bytes(r, true) > PEERS_JOIN_MAX);
	peers_join_cancel(j);
	s.request.len++;
	assert_int_equal(peers_join(&m.loop, &s, on_done, &a, &j, NULL), -EMSGSIZE);
	free(request);
	relay_stop(r);
	credentials_free(&other);
	mesh_free(&m);
	assert_int_equal(a.count, 1); /* none after it was cancelled */
}

/* Goal: nobody there, no such name, somebody else there, no answer: each is told apart. */
static void failures_are_told_apart(void **state)
{
	struct mesh m;
	mesh_init(&m);
	struct answer refused = { 0 }, unknown = { 0 }, silent = { 0 };
	(void)ask(&m, &m.own, "127.0.0.1", 1, &refused);
	(void)ask(&m, &m.own, "no-such-host.invalid", 7440, &unknown);
	union addr own = mesh_loopback(0);
	socklen_t len = sizeof(own);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_true(fd >= 0 && bind(fd, &own.any, sizeof(own.v4)) == 0 && listen(fd, 5) == 0);
	assert_int_equal(getsockname(fd, &own.any, &len), 0);
	(void)ask(&m, &m.own, "127.0.0.1", addr_port(&own), &silent); /* accepts, says nothing */
	mesh_wait(&m, refused.count && unknown.count && silent.count);
	assert_failed(&refused, -EHOSTUNREACH, "connection refused");
	assert_failed(&unknown, -EHOSTUNREACH, "cannot be resolved");
	assert_failed(&silent, -EPROTO, "does not answer like a Copia node");

	/* A server that speaks something else. */
	struct answer greeted = { 0 };
	(void)ask(&m, &m.own, "127.0.0.1", addr_port(&own), &greeted);
	int talk = accept4(fd, NULL, NULL, SOCK_CLOEXEC); /* the silent one's, long closed */
	assert_true(talk >= 0);
	(void)close(talk);
	mesh_wait(&m, (talk = accept4(fd, NULL, NULL, SOCK_CLOEXEC)) >= 0);
	assert_true(write(talk, "HTTP/1.1 400 Bad Request\r\n\r\n", 28) == 28);
	mesh_wait(&m, greeted.count);
	assert_failed(&greeted, -EPROTO, "does not answer like a Copia node");
	(void)close(talk);
	(void)close(fd);
	mesh_free(&m);
}

/* Goal: a version that does not fit is told, and so is a connection lost after the request. */
static void late_failures_are_told(void **state)
{
	struct mesh m;
	mesh_init(&m);
	m.settings.version_min = m.settings.version_max = 5;
	mesh_start(&m, 1);
	struct answer version = { 0 };
	(void)ask(&m, &m.own, "127.0.0.1", peers_port(m.nodes[1].peers), &version);
	mesh_wait(&m, version.count);
	assert_failed(&version, -EPROTONOSUPPORT, "version mismatch");
	mesh_stop(&m, 1);
	m.settings.version_min = m.settings.version_max = 0;
	mesh_start(&m, 1);
	struct relay *r = relay_start(&m, peers_port(m.nodes[1].peers));
	struct answer lost = { 0 }, late = { 0 };
	(void)ask(&m, &m.own, "127.0.0.1", relay_port(r), &lost);
	mesh_wait(&m, m.nodes[1].join_count == 1);
	relay_cut(r);
	mesh_wait(&m, lost.count);
	assert_failed(&lost, -ECONNRESET, "may have been used");
	struct peers_stats s;
	mesh_wait(&m, (peers_stats(m.nodes[1].peers, &s), s.unfinished == 0));
	assert_int_equal(peers_join_reply(m.nodes[1].peers, m.nodes[1].join_ticket, "x", 1),
			 -ENOENT);
	(void)ask(&m, &m.own, "127.0.0.1", relay_port(r), &late);
	mesh_wait(&m, late.count);
	assert_failed(&late, -ETIMEDOUT, "no answer to the request");
	relay_stop(r);
	mesh_free(&m);
}

/* Goal: the port is taken: the error says so and what to do. */
static void taken_port_is_told(void **state)
{
	struct mesh m;
	struct err err = { 0 };
	mesh_init(&m);
	mesh_start(&m, 1);
	struct str key = { 0 }, cert = { 0 };
	credentials_sign(&m.own, 2, &key, &cert);
	struct peers_settings s = { .node = 2,
				    .cluster = m.own.cluster,
				    .cert = pki_span(&cert),
				    .key = pki_span(&key),
				    .authority = pki_span(&m.own.authority) };
	struct peers *p;
	assert_int_equal(peers_new(&p, &m.loop, &s, &err), 0);
	assert_int_equal(peers_listen(p, peers_port(m.nodes[1].peers), &err), -EADDRINUSE);
	assert_non_null(strstr(err.msg, "is taken by another program"));
	assert_int_equal(peers_port(p), 0);
	/* One that holds only the IPv4 side takes it as well. */
	union addr own = mesh_loopback(0);
	socklen_t len = sizeof(own);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0 && bind(fd, &own.any, sizeof(own.v4)) == 0 && listen(fd, 5) == 0);
	assert_int_equal(getsockname(fd, &own.any, &len), 0);
	assert_int_equal(peers_listen(p, addr_port(&own), &err), -EADDRINUSE);
	(void)close(fd);
	assert_int_equal(peers_listen(p, 0, &err), 0);
	assert_true(peers_port(p) > 0);
	peers_close(p, NULL, NULL);
	pki_wipe(&key);
	str_free(&cert);
	mesh_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(newcomer_gets_in),
		cmocka_unit_test(refusal_is_told),
		cmocka_unit_test(secret_is_kept_from_other_clusters),
		cmocka_unit_test(failures_are_told_apart),
		cmocka_unit_test(late_failures_are_told),
		cmocka_unit_test(taken_port_is_told),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
