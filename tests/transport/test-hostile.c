/* SPDX-License-Identifier: Apache-2.0 */
/* Garbage, half frames, floods, idle connections and lack of descriptors on the port, each with a
 * session of two members that must not notice. */
#include "io/tls-conn.h"
#include "mesh.h"
#include "wire/session.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
/* cmocka wants the four above before itself. */
#include <cmocka.h>

static struct peers_stats stats_of(struct mesh *m)
{
	struct peers_stats s;
	peers_stats(m->nodes[1].peers, &s);
	return s;
}

/* The session between 1 and 2 works and has always worked. */
static void assert_session_works(struct mesh *m)
{
	uint64_t before = m->nodes[1].received[CHANNEL_AGREE].count;
	assert_int_equal(peers_send(m->nodes[2].peers, 1, CHANNEL_AGREE, "well", 4), 0);
	mesh_wait(m, m->nodes[1].received[CHANNEL_AGREE].count == before + 1);
	assert_int_equal(m->nodes[1].up_count, 1);
	assert_int_equal(m->nodes[1].down_count + m->nodes[2].down_count, 0);
}

static int connect_to(struct mesh *m)
{
	union addr a = mesh_loopback(peers_port(m->nodes[1].peers));
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_true(fd >= 0);
	int r = connect(fd, &a.any, sizeof(a.v4));
	assert_true(r == 0 || errno == EINPROGRESS);
	mesh_wait(m, poll(&(struct pollfd){ .fd = fd, .events = POLLOUT }, 1, 0) == 1);
	return fd;
}

/* Whatever it may have said, the other side has ended the connection. */
static bool is_ended(int fd)
{
	char bytes[4096];
	ssize_t got;
	while ((got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT)) > 0)
		;
	return got == 0 || (errno != EAGAIN && errno != EINTR);
}

/* ------------------------------------------------------------------------------------- garbage */

static const struct {
	const char *what;
	struct span bytes;
	bool at_once; /* closed for what it is, not for being late */
} garbage[] = {
#define BYTES(text)                                                                                \
	{                                                                                          \
		(const uint8_t *)(text), sizeof(text) - 1                                          \
	}
	{ "HTTP", BYTES("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), true },
	{ "zeros", BYTES("\0\0\0\0\0\0\0\0\0\0\0\0"), true },
	{ "a frame", BYTES("\4\0\0\0\1\0\1\0\0\0"), true },
	{ "SSH", BYTES("SSH-2.0-x\r\n"), true },
	{ "TLS record of an impossible version", BYTES("\x16\x09\x09\0\5hello"), true },
	{ "TLS record with no ClientHello", BYTES("\x16\3\1\0\5hello"), true },
	{ "TLS alert", BYTES("\x15\3\3\0\2\2\50"), true },
	{ "TLS record too long", BYTES("\x16\3\1\xff\xff"), true },
	{ "half a TLS record", BYTES("\x16\3\1\2\0\1\0\1\xfc\3\3"), false },
	{ "one byte", BYTES("\x16"), false },
	{ "nothing", BYTES(""), false },
};

/* Goal: garbage costs the one who sends it the connection, at once or by the deadline. */
static void garbage_closes_its_connection_only(void **state)
{
	struct mesh m;
	mesh_init(&m);
	m.settings.handshake_ms = 400;
	mesh_pair(&m, 1, 2);
	for (size_t i = 0; i < ARRAY_LEN(garbage); i++) {
		struct peers_stats before = stats_of(&m);
		int fd = connect_to(&m);
		assert_int_equal(send(fd, garbage[i].bytes.at, garbage[i].bytes.len, MSG_NOSIGNAL),
				 garbage[i].bytes.len);
		mesh_wait(&m, is_ended(fd));
		struct peers_stats after = stats_of(&m);
		if (after.garbage - before.garbage != garbage[i].at_once ||
		    after.late - before.late == garbage[i].at_once)
			fail_msg("%s: %llu garbage, %llu late", garbage[i].what,
				 (unsigned long long)(after.garbage - before.garbage),
				 (unsigned long long)(after.late - before.late));
		(void)close(fd);
		assert_session_works(&m);
	}
	assert_int_equal(stats_of(&m).unfinished, 0);
	mesh_free(&m);
}

/* ------------------------------------------------------------------- garbage behind a handshake */

struct intruder {
	struct tls_conn conn; /* first */
	struct tls_conn_buffers buffers;
	struct tls_identity *identity; /* NULL: no certificate */
	uint8_t authority[PKI_FINGERPRINT_SIZE];
	struct str say;
	bool over, closed;
	struct session_message heard;
	char text[SESSION_TEXT_MAX + 1];
};

static void intruder_connected(struct tls_conn *c)
{
	static const struct frame_limits all = { .message_max = { [1] = 1 << 20 } };
	struct intruder *i = (struct intruder *)c;
	tls_conn_start(c, i->identity ? tls_new_client(i->identity) : tls_new_join(i->authority),
		       &all);
}

static void intruder_ready(struct tls_conn *c)
{
	struct intruder *i = (struct intruder *)c;
	tls_conn_write(c, i->say.at, i->say.len);
}

static void intruder_message(struct tls_conn *c, uint8_t channel, struct span body)
{
	struct intruder *i = (struct intruder *)c;
	assert_int_equal(session_read(body, &i->heard, NULL), 0);
	(void)session_text(i->heard.body, i->text);
}

static void intruder_lost(struct tls_conn *c, const struct err *err)
{
	((struct intruder *)c)->over = true;
}

static void intruder_closed(struct tls_conn *c)
{
	((struct intruder *)c)->closed = true;
}

static void intruder_ignore(struct tls_conn *c)
{
}

static const struct tls_conn_events intruder_events = {
	.connected = intruder_connected,
	.ready = intruder_ready,
	.message = intruder_message,
	.sent = intruder_ignore,
	.lost = intruder_lost,
	.closed = intruder_closed,
};

/* Say something behind the handshake and wait until the other side ends it. Returns what was last
 * heard, a refusal or nothing. */
static enum session_code intrude(struct mesh *m, struct tls_identity *identity, struct str *say,
				 char text[SESSION_TEXT_MAX + 1])
{
	struct intruder *i = xcalloc(1, sizeof(*i));
	struct pki_cert authority;
	union addr a = mesh_loopback(peers_port(m->nodes[1].peers));
	assert_int_equal(pki_cert_read(pki_span(&m->own.authority), &authority, NULL), 0);
	memcpy(i->authority, authority.fingerprint.at, sizeof(i->authority));
	i->identity = identity;
	i->say = *say;
	tls_conn_init(&i->conn, &m->loop, &intruder_events, &i->buffers);
	assert_int_equal(tls_conn_dial(&i->conn, &a, NULL), 0);
	mesh_wait(m, i->over);
	mesh_wait(m, i->closed);
	enum session_code code =
	    i->heard.type == SESSION_REFUSE ? i->heard.code : SESSION_CODE_COUNT;
	memcpy(text, i->text, sizeof(i->text));
	free(i);
	str_free(say);
	return code;
}

static void say_session(struct str *out, const struct session_message *m)
{
	_cleanup_(str_free) struct str body = { 0 };
	session_write(&body, m);
	frame_append(out, CHANNEL_SESSION, body.at, body.len);
}

/* Goal: a stranger who gets through the handshake may say one thing, and only that. */
static void stranger_may_only_ask(void **state)
{
	struct mesh m;
	struct str say = { 0 };
	char text[SESSION_TEXT_MAX + 1];
	struct session_message hello = { .type = SESSION_HELLO,
					 .version_min = 1,
					 .version_max = 1,
					 .node = 2,
					 .incarnation = 9,
					 .order = 9 };
	mesh_init(&m);
	m.settings.handshake_ms = 400;
	mesh_pair(&m, 1, 2);
	hello.cluster = m.own.cluster;
	uint64_t bad = stats_of(&m).garbage;

	frame_append(&say, CHANNEL_AGREE, "x", 1);
	assert_int_equal(intrude(&m, NULL, &say, text), SESSION_CODE_COUNT);
	assert_int_equal(stats_of(&m).garbage, ++bad);
	str_add(&say, "\xff\xff\xff\xff\1\0", 6); /* a frame of 4 GiB */
	assert_int_equal(intrude(&m, NULL, &say, text), SESSION_CODE_COUNT);
	assert_int_equal(stats_of(&m).garbage, ++bad);
	char *huge = xcalloc(1, PEERS_JOIN_MAX + 100);
	frame_append(&say, CHANNEL_SESSION, huge, PEERS_JOIN_MAX + 100);
	free(huge);
	assert_int_equal(intrude(&m, NULL, &say, text), SESSION_CODE_COUNT);
	assert_int_equal(stats_of(&m).garbage, ++bad);
	frame_append(&say, CHANNEL_SESSION, "\0\1\0\1\0", 5);
	assert_int_equal(intrude(&m, NULL, &say, text), SESSION_CODE_COUNT);
	assert_int_equal(stats_of(&m).garbage, ++bad);
	str_add(&say, "\x20\0\0\0\1\0half", 10); /* half a frame, then silence: late */
	uint64_t late = stats_of(&m).late;
	assert_int_equal(intrude(&m, NULL, &say, text), SESSION_CODE_COUNT);
	assert_int_equal(stats_of(&m).late, late + 1);
	/* The greeting of a member, without a member's certificate. */
	say_session(&say, &hello);
	assert_int_equal(intrude(&m, NULL, &say, text), SESSION_CERTIFICATE);
	assert_string_equal(text, "a node of the cluster needs a certificate");
	assert_int_equal(m.nodes[1].join_count, 0);
	assert_session_works(&m);
	mesh_free(&m);
}

/* Goal: a member that goes mad loses its own session, and no other one suffers; it cannot greet as
 * somebody else either. */
static void mad_member_harms_itself_only(void **state)
{
	struct mesh m;
	struct str say = { 0 }, key = { 0 }, cert = { 0 };
	char text[SESSION_TEXT_MAX + 1];
	struct tls_identity *three;
	mesh_init(&m);
	m.settings.handshake_ms = 400;
	mesh_pair(&m, 1, 2);
	credentials_sign(&m.own, 3, &key, &cert);
	struct pki_cert read;
	assert_int_equal(pki_cert_read(pki_span(&cert), &read, NULL), 0);
	m.nodes[3].fingerprint = read.fingerprint;
	mesh_know_at(&m, 1, 3, NULL, 0);
	assert_int_equal(tls_identity_new(&three, pki_span(&cert), pki_span(&key),
					  pki_span(&m.own.authority), NULL),
			 0);
	struct session_message hello = { .type = SESSION_HELLO,
					 .version_min = 1,
					 .version_max = 1,
					 .cluster = m.own.cluster,
					 .node = 3,
					 .incarnation = 9 };
	static const struct span mad[] = {
		BYTES("\xff\xff\xff\xff\2\0"),   /* too long */
		BYTES("\1\0\0\0\7\0x"),          /* no such channel */
		BYTES("\1\0\0\0\2\xfex"),        /* unknown flags */
		BYTES("\5\0\0\0\1\0\1\1\0\1\0"), /* a second, broken greeting */
		BYTES("\4\0\0\0\2\0half"),       /* fine so far: a message */
	};
	for (size_t i = 0; i + 1 < ARRAY_LEN(mad); i++) {
		hello.order = i + 1;
		uint64_t bad = stats_of(&m).garbage;
		say_session(&say, &hello);
		str_add(&say, mad[4].at, mad[4].len);
		str_add(&say, mad[i].at, mad[i].len);
		(void)intrude(&m, three, &say, text);
		mesh_wait(&m, !peers_up(m.nodes[1].peers, 3));
		assert_int_equal(stats_of(&m).garbage, bad + 1);
		assert_int_equal(m.nodes[1].received[CHANNEL_AGREE].last_from, 3);
		assert_int_equal(m.nodes[1].up_count, i + 2);
	}
	unsigned up = m.nodes[1].up_count;
	hello.node = 2;
	hello.order = 100;
	say_session(&say, &hello);
	assert_int_equal(intrude(&m, three, &say, text), SESSION_CERTIFICATE);
	assert_string_equal(text, "node 2 greets with the certificate of node 3");
	hello.node = 3;
	hello.cluster.at[0] ^= 1;
	say_session(&say, &hello);
	assert_int_equal(intrude(&m, three, &say, text), SESSION_CLUSTER);
	assert_int_equal(m.nodes[1].up_count, up);
	assert_true(peers_up(m.nodes[1].peers, 2));
	assert_int_equal(m.nodes[2].down_count, 0);
	tls_identity_free(three);
	pki_wipe(&key);
	str_free(&cert);
	mesh_free(&m);
}

/* --------------------------------------------------------------------------------------- floods */

/* A child that opens `count` connections and holds them until it is killed; with `say` it sends
 * that on each, and `again` makes it begin anew when they are closed. */
static pid_t start_flood(uint16_t port, unsigned count, const char *say, size_t len, bool again)
{
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid)
		return pid;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* no flood outlives its test */
	union addr a = mesh_loopback(port);
	struct rlimit limit;
	(void)getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
	for (int fd = 3; fd < 1000; fd++)
		(void)close(fd); /* what the parent has open */
	do {
		int first = -1, last = -1;
		for (unsigned i = 0; i < count; i++) {
			int fd = socket(AF_INET, SOCK_STREAM, 0);
			if (fd < 0 || connect(fd, &a.any, sizeof(a.v4)) < 0)
				break;
			(void)send(fd, say, len, MSG_NOSIGNAL);
			first = first < 0 ? fd : first;
			last = fd;
		}
		if (again)
			for (int fd = first; fd >= 0 && fd <= last; fd++)
				(void)close(fd);
	} while (again);
	for (;;)
		(void)pause();
}

static void stop_flood(pid_t pid)
{
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static unsigned long rss_kib(void)
{
	unsigned long size = 0, resident = 0;
	FILE *f = fopen("/proc/self/statm", "re");
	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu %lu", &size, &resident), 2);
	(void)fclose(f);
	return resident * (unsigned long)sysconf(_SC_PAGESIZE) / 1024;
}

/* Goal: 10,000 idle connections are held (as far as descriptors go), cost little, and members come
 * and talk as if they were not there. */
static void ten_thousand_idle_connections_do_not_harm(void **state)
{
	struct rlimit limit;
	struct mesh m;
	mesh_init(&m);
	m.settings.handshake_ms = 60000;
	m.settings.source_max = 20000;
	mesh_pair(&m, 1, 2);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
	assert_true(limit.rlim_cur == limit.rlim_max);
	bool enough = limit.rlim_cur >= 11500;
	unsigned count = enough ? 10000 : (unsigned)limit.rlim_cur - 100;
	unsigned held = enough ? 10000 : count / 2;
	unsigned long before = rss_kib();
	pid_t pid = start_flood(peers_port(m.nodes[1].peers), count, "", 0, false);
	mesh_wait(&m, stats_of(&m).accepted >= count && stats_of(&m).unfinished >= held);
	unsigned long after = rss_kib();
	(void)printf("%u idle connections: %lu KiB more\n", stats_of(&m).unfinished,
		     after - before);
	assert_true(after - before < 24 * 1024);
	if (enough)
		assert_int_equal(stats_of(&m).displaced, 0);

	assert_session_works(&m);
	mesh_start(&m, 3); /* a new member, while all are there */
	mesh_know(&m, 1, 3);
	mesh_know(&m, 3, 1);
	uint64_t start = uv_hrtime();
	peers_keep(m.nodes[3].peers, 1, true);
	mesh_wait(&m, peers_up(m.nodes[3].peers, 1));
	assert_in_range((uv_hrtime() - start) / 1000000, 0, 1000);
	stop_flood(pid);
	mesh_wait(&m, stats_of(&m).unfinished == 0);
	assert_int_equal(m.nodes[1].down_count + m.nodes[2].down_count, 0);
	mesh_free(&m);
}

/* Goal: beyond its share of connections an address displaces its own oldest ones; members from the
 * very same address still get in, during a flood of silent ones and of half handshakes. */
static void flood_displaces_its_own(void **state)
{
	static const char half[] = "\x16\3\1\2\0\1\0\1\xfc\3\3";
	struct mesh m;
	mesh_init(&m);
	m.settings.source_max = 200;
	mesh_pair(&m, 1, 2);
	for (int round = 0; round < 2; round++) {
		struct peers_stats before = stats_of(&m);
		pid_t pid = start_flood(peers_port(m.nodes[1].peers), 500, half,
					round ? sizeof(half) - 1 : 0, true);
		mesh_wait(&m, stats_of(&m).accepted > before.accepted + 2000);
		assert_true(stats_of(&m).unfinished <= 200 + 8);
		assert_session_works(&m);
		mesh_start(&m, 3);
		mesh_know(&m, 1, 3);
		mesh_know(&m, 3, 1);
		peers_keep(m.nodes[3].peers, 1, true);
		mesh_wait(&m, peers_up(m.nodes[3].peers, 1));
		stop_flood(pid);
		mesh_wait(&m, stats_of(&m).unfinished == 0);
		peers_forget_node(m.nodes[1].peers, 3);
		mesh_stop(&m, 3);
		m.nodes[1].up_count = 1; /* only node 2's counts below */
		m.nodes[1].down_count = 0;
	}
	assert_true(peers_up(m.nodes[1].peers, 2));
	mesh_free(&m);
}

static uint64_t cpu_ms(void)
{
	struct rusage u;
	assert_int_equal(getrusage(RUSAGE_SELF, &u), 0);
	return (uint64_t)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1000 +
	       (uint64_t)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1000;
}

/* Goal: without a free descriptor accept() neither spins nor dies: the oldest stranger makes room,
 * or else the port rests and accepts again when there is one. Last test: it lowers a hard limit. */
static void lack_of_descriptors_is_survived(void **state)
{
	struct mesh m;
	mesh_init(&m);
	mesh_pair(&m, 1, 2);
	int fds[512], waiting = connect_to(&m);
	mesh_wait(&m, stats_of(&m).unfinished == 1);
	size_t count = 0;
	struct rlimit limit = { 256, 256 };
	assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
	/* Sockets of our own first, connected when there is no descriptor left for the other end.*/
	int a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int b = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	while (count < ARRAY_LEN(fds) && (fds[count] = dup(1)) >= 0)
		count++;
	assert_int_equal(errno, EMFILE);
	union addr to = mesh_loopback(peers_port(m.nodes[1].peers));
	(void)connect(a, &to.any, sizeof(to.v4));
	mesh_wait(&m, stats_of(&m).displaced == 1); /* the one that waited made room */
	mesh_wait(&m, is_ended(waiting));
	fds[count] = waiting; /* keeps its own end open: still none is free */

	/* The next one displaces `a`; then the place is lost to us, and nothing is left to give. */
	int gone = fcntl(1, F_DUPFD_CLOEXEC, 3);
	assert_int_equal(gone, -1);
	(void)connect(b, &to.any, sizeof(to.v4));
	mesh_wait(&m, stats_of(&m).displaced == 2);
	(void)close(b);
	mesh_wait(&m, stats_of(&m).unfinished == 0);
	fds[count++] = waiting;
	while (count < ARRAY_LEN(fds) && (fds[count] = dup(1)) >= 0)
		count++;
	(void)close(a);
	a = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_true(a >= 0);
	(void)connect(a, &to.any, sizeof(to.v4));
	uint64_t accepted = stats_of(&m).accepted, cpu = cpu_ms();
	uint64_t until_ms = uv_hrtime() / 1000000 + 1000;
	while (mesh_turn(&m, until_ms))
		;
	cpu = cpu_ms() - cpu;
	(void)printf("one second without descriptors: %llu ms of cpu\n", (unsigned long long)cpu);
	assert_int_equal(stats_of(&m).accepted, accepted);
	assert_in_range(cpu, 0, 200);
	assert_session_works(&m);
	while (count)
		(void)close(fds[--count]);
	mesh_wait(&m, stats_of(&m).accepted == accepted + 1);
	(void)close(a);
	mesh_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(garbage_closes_its_connection_only),
		cmocka_unit_test(stranger_may_only_ask),
		cmocka_unit_test(mad_member_harms_itself_only),
		cmocka_unit_test(ten_thousand_idle_connections_do_not_harm),
		cmocka_unit_test(flood_displaces_its_own),
		cmocka_unit_test(lack_of_descriptors_is_survived),
	};
	(void)signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
