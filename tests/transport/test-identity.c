/* SPDX-License-Identifier: Apache-2.0 */
/* Who may have a session, and how a newcomer gets in. */
#include "mesh.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>
/* cmocka wants the four above before itself. */
#include <cmocka.h>

static struct peers_stats stats_of(const struct mesh *m, uint32_t node)
{
	struct peers_stats s;
	peers_stats(m->nodes[node].peers, &s);
	return s;
}

static void assert_contains(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("'%s' does not contain '%s'", text, part);
}

/* Node `number` of another cluster, dialling node 1 of `m`. */
static void start_stranger(struct mesh *stranger, struct mesh *m, uint32_t number)
{
	mesh_init(stranger);
	mesh_start(stranger, number);
	union addr a = mesh_loopback(peers_port(m->nodes[1].peers));
	struct peers_node one = { .number = 1, .addresses = &a, .address_count = 1 };
	assert_int_equal(peers_set_node(stranger->nodes[number].peers, &one, NULL), 0);
	peers_keep(stranger->nodes[number].peers, 1, true);
}

/* Two loops take turns. */
#define wait_both(a, b, expression)                                                                \
	do {                                                                                       \
		uint64_t both_end_ = uv_hrtime() / 1000000 + MESH_WAIT_MS;                         \
		while (!(expression) && mesh_turn((a), both_end_) && mesh_turn((b), both_end_))    \
			;                                                                          \
		if (!(expression))                                                                 \
			mesh_fail(#expression, __FILE__, __LINE__);                                \
	} while (0)

/* Goal: a node of another cluster is refused by both sides, with a reason and a count, while a
 * session of the own cluster goes on. */
static void other_cluster_is_refused(void **state)
{
	struct mesh m, stranger;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	start_stranger(&stranger, &m, 3);
	wait_both(&m, &stranger, stranger.nodes[3].down_count > 0);
	assert_contains(stranger.nodes[3].reason, "another cluster");
	assert_int_equal(stranger.nodes[3].up_count, 0);
	wait_both(&m, &stranger, stats_of(&m, 1).refused_cluster > 0);
	assert_int_equal(stats_of(&m, 1).garbage, 0);
	assert_int_equal(stats_of(&m, 1).up, 1);
	assert_int_equal(m.nodes[1].down_count, 0);
	mesh_free(&stranger);
	mesh_free(&m);
}

/* Goal: the accepting side refuses by itself too, when the client with the certificate of another
 * cluster goes through with the handshake because it trusts our authority as well. */
static void server_refuses_foreign_certificate(void **state)
{
	struct mesh m, other;
	mesh_init(&m);
	mesh_start(&m, 1);
	mesh_init(&other);
	_cleanup_(str_free) struct str bundle = { 0 };
	str_add(&bundle, other.own.authority.at, other.own.authority.len);
	str_add(&bundle, m.own.authority.at, m.own.authority.len);
	struct mesh_node *n = &m.nodes[2];
	credentials_sign(&other.own, 2, &n->key, &n->cert);
	struct peers_settings s = { .node = 2,
				    .cluster = other.own.cluster,
				    .incarnation = 77,
				    .cert = pki_span(&n->cert),
				    .key = pki_span(&n->key),
				    .authority = pki_span(&bundle) };
	assert_int_equal(peers_new(&n->peers, &m.loop, &s, NULL), 0);
	union addr a = mesh_loopback(peers_port(m.nodes[1].peers));
	mesh_know_at(&m, 1, 2, &a, 0);
	struct peers_node one = { .number = 1, .addresses = &a, .address_count = 1 };
	assert_int_equal(peers_set_node(n->peers, &one, NULL), 0);
	peers_keep(n->peers, 1, true);
	/* It sees node 1 as a member of a cluster that is not its own. */
	mesh_wait(&m, *peers_reason(n->peers, 1));
	assert_contains(peers_reason(n->peers, 1), "another cluster");
	mesh_wait(&m, stats_of(&m, 1).refused_cluster > 0);
	assert_false(peers_up(m.nodes[1].peers, 2));
	mesh_free(&other);
	mesh_free(&m);
}

/* Goal: a revoked node loses its session at once and gets none any more; the reason reaches it. */
static void revoked_node_is_out(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	peers_keep(m.nodes[2].peers, 1, true);
	peers_forget_node(m.nodes[1].peers, 2);
	assert_false(peers_up(m.nodes[1].peers, 2));
	assert_int_equal(m.nodes[1].down_count, 1);
	assert_int_equal(peers_send(m.nodes[1].peers, 2, CHANNEL_AGREE, "x", 1), -ENOENT);
	mesh_wait(&m, m.nodes[2].down_count > 0);
	assert_contains(m.nodes[2].reason, "revoked");
	mesh_wait(&m, stats_of(&m, 1).refused_unknown >= 2); /* it tries again, and again */
	assert_contains(m.nodes[2].reason, "not a member");
	assert_int_equal(m.nodes[2].up_count, 1);
	/* Let in again, it comes by itself. */
	mesh_know(&m, 1, 2);
	mesh_wait(&m, peers_up(m.nodes[1].peers, 2));
	mesh_free(&m);
}

/* Goal: a certificate of the right authority and number that the records do not name is refused,
 * by the dialling and by the accepting side. */
static void foreign_fingerprint_is_refused(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	mesh_start(&m, 2);
	struct pki_fingerprint real = m.nodes[2].fingerprint;
	m.nodes[2].fingerprint.at[0] ^= 1;
	mesh_know(&m, 1, 2);
	m.nodes[2].fingerprint = real;
	mesh_know(&m, 2, 1);
	peers_keep(m.nodes[1].peers, 2, true);
	mesh_wait(&m, m.nodes[1].down_count > 0 && stats_of(&m, 1).refused_fingerprint > 0);
	assert_contains(m.nodes[1].reason, "not in use");
	peers_keep(m.nodes[1].peers, 2, false);
	uint64_t before = stats_of(&m, 1).refused_fingerprint;
	peers_keep(m.nodes[2].peers, 1, true);
	mesh_wait(&m, stats_of(&m, 1).refused_fingerprint > before && m.nodes[2].down_count > 0);
	assert_contains(m.nodes[2].reason, "not in use");
	assert_int_equal(m.nodes[1].up_count + m.nodes[2].up_count, 0);
	mesh_free(&m);
}

/* Goal: an address that belongs to another node of the cluster is noticed. */
static void wrong_node_is_noticed(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	mesh_start(&m, 3);
	union addr a = mesh_loopback(peers_port(m.nodes[2].peers));
	mesh_know_at(&m, 1, 3, &a, 1);
	peers_keep(m.nodes[1].peers, 3, true);
	mesh_wait(&m, m.nodes[1].down_count > 0);
	assert_contains(m.nodes[1].reason, "this is node 2, where node 3 was expected");
	assert_true(peers_up(m.nodes[1].peers, 2));
	mesh_free(&m);
}

/* Goal: a certificate is rotated under load: nothing is lost, the old session goes on, the next one
 * uses the new certificate, and the old certificate is useless once it is no longer allowed. */
static void rotation_loses_nothing(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	struct mesh_node *two = &m.nodes[2];
	struct str old_key = { 0 }, old_cert = { 0 };
	struct pki_fingerprint both[2];
	both[1] = two->fingerprint;
	str_add(&old_key, two->key.at, two->key.len);
	str_add(&old_cert, two->cert.at, two->cert.len);
	credentials_sign(&m.own, 2, &two->key, &two->cert);
	struct pki_cert cert;
	assert_int_equal(pki_cert_read(pki_span(&two->cert), &cert, NULL), 0);
	both[0] = cert.fingerprint;

	/* Node 1 learns of the new one, node 2 takes it into use, while messages flow. */
	union addr a = mesh_loopback(peers_port(two->peers));
	struct peers_node known = { .number = 2,
				    .addresses = &a,
				    .address_count = 1,
				    .allowed = both,
				    .allowed_count = 2 };
	for (unsigned i = 0; i < 100; i++) {
		if (i == 30)
			assert_int_equal(peers_set_node(m.nodes[1].peers, &known, NULL), 0);
		if (i == 60)
			assert_int_equal(peers_set_identity(two->peers, pki_span(&two->cert),
							    pki_span(&two->key),
							    pki_span(&m.own.authority), NULL),
					 0);
		assert_int_equal(peers_send(two->peers, 1, CHANNEL_AGREE, &i, sizeof(i)), 0);
		mesh_wait(&m, m.nodes[1].received[CHANNEL_AGREE].count == i + 1);
	}
	assert_int_equal(m.nodes[1].down_count + two->down_count, 0);

	/* The records retire the old one: the session that rests on it ends, the next one is new.
	 */
	known.allowed_count = 1;
	assert_int_equal(peers_set_node(m.nodes[1].peers, &known, NULL), 0);
	mesh_wait(&m, m.nodes[1].up_count == 2 && peers_up(two->peers, 1));
	assert_int_equal(stats_of(&m, 1).refused_fingerprint, 0);

	/* A copy of the old key is worth nothing now. */
	mesh_stop(&m, 2);
	pki_wipe(&two->key);
	str_free(&two->cert);
	two->key = old_key;
	two->cert = old_cert;
	peers_keep(m.nodes[1].peers, 2, false);
	mesh_start(&m, 2);
	mesh_know(&m, 2, 1);
	peers_keep(two->peers, 1, true);
	mesh_wait(&m, two->down_count > 0);
	assert_contains(two->reason, "not in use");
	assert_int_equal(two->up_count, 0);
	mesh_free(&m);
}

/* Goal: versions without a common one give the same clear error on both sides; overlapping ones
 * work. */
static void version_mismatch_is_told_to_both(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_start(&m, 1);
	m.settings.version_min = 2;
	m.settings.version_max = 3;
	mesh_start(&m, 2);
	m.settings.version_min = 1;
	m.settings.version_max = 2;
	mesh_start(&m, 3);
	for (uint32_t i = 1; i <= 3; i++)
		for (uint32_t k = 1; k <= 3; k++)
			if (i != k)
				mesh_know(&m, i, k);
	peers_keep(m.nodes[1].peers, 2, true);
	peers_keep(m.nodes[2].peers, 3, true);
	peers_keep(m.nodes[3].peers, 1, true);
	mesh_wait(&m, m.nodes[1].down_count > 0 && stats_of(&m, 2).refused_version > 0);
	assert_contains(m.nodes[1].reason, "version mismatch");
	assert_contains(m.nodes[1].reason, "same version of Copia");
	mesh_wait(&m, peers_up(m.nodes[3].peers, 2) && peers_up(m.nodes[3].peers, 1));
	assert_false(peers_up(m.nodes[1].peers, 2));
	mesh_free(&m);
}

/* Goal: a certificate that does not fit its node, key or cluster is refused before anything
 * starts.*/
static void misfits_do_not_start(void **state)
{
	struct mesh m;
	mesh_init(&m);
	struct credentials other = { 0 };
	struct str key = { 0 }, cert = { 0 }, key2 = { 0 }, cert2 = { 0 };
	struct peers *p;
	struct err err = { 0 };
	credentials_make(&other);
	credentials_sign(&m.own, 1, &key, &cert);
	credentials_sign(&other, 1, &key2, &cert2);
	struct peers_settings s = { .node = 2,
				    .cluster = m.own.cluster,
				    .cert = pki_span(&cert),
				    .key = pki_span(&key),
				    .authority = pki_span(&m.own.authority) };
	assert_int_equal(peers_new(&p, &m.loop, &s, &err), -EKEYREJECTED);
	assert_contains(err.msg, "node 1's");
	s.node = 1;
	s.key = pki_span(&key2);
	assert_int_equal(peers_new(&p, &m.loop, &s, &err), -EKEYREJECTED);
	s.cert = pki_span(&cert2);
	assert_int_equal(peers_new(&p, &m.loop, &s, &err), -EKEYREJECTED);
	s.authority = pki_span(&other.authority);
	assert_int_equal(peers_new(&p, &m.loop, &s, &err), -EKEYREJECTED);
	assert_contains(err.msg, "another cluster");
	s.cert = pki_span(&key2);
	assert_int_equal(peers_new(&p, &m.loop, &s, &err), -EBADMSG);
	pki_wipe(&key);
	pki_wipe(&key2);
	str_free(&cert);
	str_free(&cert2);
	credentials_free(&other);
	mesh_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(other_cluster_is_refused),
		cmocka_unit_test(server_refuses_foreign_certificate),
		cmocka_unit_test(revoked_node_is_out),
		cmocka_unit_test(foreign_fingerprint_is_refused),
		cmocka_unit_test(wrong_node_is_noticed),
		cmocka_unit_test(rotation_loses_nothing),
		cmocka_unit_test(version_mismatch_is_told_to_both),
		cmocka_unit_test(misfits_do_not_start),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
