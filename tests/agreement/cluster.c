/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster.h"

#include "io/pki.h"
#include "node.h"

#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void fail(const char *fmt, ...) _printf_(1, 2);
static void fail(const char *fmt, ...)
{
	va_list args;
	va_start(args, fmt);
	(void)vfprintf(stderr, fmt, args);
	(void)fputc('\n', stderr);
	va_end(args);
	abort();
}

static void make_identity(struct cluster *c, unsigned number)
{
	struct member *m = &c->nodes[number];
	struct str csr = { 0 };
	struct err err = { 0 };
	if (pki_key_new(&m->key, &err) < 0 || pki_csr_new(pki_span(&m->key), &csr, &err) < 0 ||
	    pki_sign(pki_span(&c->authority_key), pki_span(&c->authority), pki_span(&csr), &c->id,
		     number, number, &m->cert, &err) < 0)
		fail("%s", err.msg);
	str_free(&csr);
}

void cluster_init(struct cluster *c, enum raft_profile profile)
{
	struct err err = { 0 };
	*c = (struct cluster){ .profile = profile };
	strcpy(c->dir, "cluster-XXXXXX");
	if (!mkdtemp(c->dir) || getrandom(&c->id, sizeof(c->id), 0) != sizeof(c->id))
		fail("%s: %s", c->dir, strerror(errno));
	if (pki_authority_new(&c->id, &c->authority_key, &c->authority, &err) < 0)
		fail("%s", err.msg);
	for (unsigned i = 1; i <= CLUSTER_NODES_MAX; i++)
		make_identity(c, i);
}

static void remove_folder(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *e;
	while (d && (e = readdir(d))) {
		char name[600];
		if (e->d_name[0] == '.')
			continue;
		(void)snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
		if (e->d_type == DT_DIR)
			remove_folder(name);
		else
			unlink(name);
	}
	if (d)
		closedir(d);
	rmdir(path);
}

void cluster_deinit(struct cluster *c)
{
	for (unsigned i = 1; i <= CLUSTER_NODES_MAX; i++) {
		if (c->nodes[i].pid)
			cluster_kill(c, i);
		str_free(&c->nodes[i].in);
		str_free(&c->nodes[i].key);
		str_free(&c->nodes[i].cert);
	}
	remove_folder(c->dir);
	str_free(&c->authority);
	str_free(&c->authority_key);
}

void cluster_start(struct cluster *c, unsigned number, bool first)
{
	int fds[2];
	struct member *m = &c->nodes[number];
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0)
		fail("socketpair: %s", strerror(errno));
	m->pid = fork();
	if (m->pid < 0)
		fail("fork: %s", strerror(errno));
	if (m->pid == 0) {
		/* Descriptors of the others must not keep them running. */
		for (unsigned i = 1; i <= CLUSTER_NODES_MAX; i++)
			if (i != number && c->nodes[i].pid)
				close(c->nodes[i].fd);
		close(fds[0]);
		node_run(c, number, first, fds[1]);
	}
	close(fds[1]);
	m->fd = fds[0];
	str_clear(&m->in);
	m->port = (uint16_t)atoi(cluster_expect(c, number, "port ") + 5);
	for (unsigned i = 1; i <= CLUSTER_NODES_MAX; i++)
		if (i != number && c->nodes[i].pid) {
			cluster_say(c, i, "know %u %u", number, m->port);
			cluster_say(c, number, "know %u %u", i, c->nodes[i].port);
		}
}

void cluster_grow(struct cluster *c, unsigned count)
{
	struct str list = { 0 };
	cluster_start(c, 1, true);
	cluster_leader(c);
	str_puts(&list, "1");
	for (unsigned i = 2; i <= count; i++) {
		cluster_start(c, i, false);
		cluster_say(c, i, "serve 1");
		cluster_expect(c, i, "serve 0");
		str_printf(&list, ",%u", i);
	}
	cluster_say(c, 1, "voters 1 %s", count > 1 ? list.at + 2 : "0");
	cluster_expect(c, 1, count > 1 ? "voters 0" : "voters 1");
	for (;;) {
		cluster_say(c, 1, "voters %s 0", list.at);
		const char *line = cluster_expect(c, 1, "voters ");
		if (!strncmp(line, "voters 1", 8))
			break; /* it is so */
		(void)poll(NULL, 0, 20);
	}
	struct cluster_status s;
	do
		cluster_status(c, 1, &s);
	while (s.changing || s.voters != count);
	str_free(&list);
	cluster_leader(c);
}

static void reap(struct member *m)
{
	int status;
	(void)waitpid(m->pid, &status, 0);
	close(m->fd);
	m->pid = 0;
}

void cluster_kill(struct cluster *c, unsigned number)
{
	kill(c->nodes[number].pid, SIGKILL);
	reap(&c->nodes[number]);
}

void cluster_quit(struct cluster *c, unsigned number)
{
	cluster_say(c, number, "quit");
	cluster_expect(c, number, "bye");
	reap(&c->nodes[number]);
}

void cluster_say(struct cluster *c, unsigned number, const char *fmt, ...)
{
	struct str s = { 0 };
	va_list args;
	va_start(args, fmt);
	str_vprintf(&s, fmt, args);
	va_end(args);
	str_puts(&s, "\n");
	if (send(c->nodes[number].fd, s.at, s.len, MSG_NOSIGNAL) != (ssize_t)s.len)
		fail("node %u is gone: %s", number, strerror(errno));
	str_free(&s);
}

/* Take the line at `at` out of what was read. */
static const char *take_line(struct member *m, size_t at, size_t len)
{
	static char line[1024];
	if (len >= sizeof(line))
		fail("a line of %zu bytes", len);
	memcpy(line, m->in.at + at, len);
	line[len] = '\0';
	memmove(m->in.at + at, m->in.at + at + len + 1, m->in.len - at - len - 1);
	m->in.len -= len + 1;
	return line;
}

static const char *find_line(struct member *m, const char *start)
{
	for (size_t at = 0; at < m->in.len;) {
		const char *end = memchr(m->in.at + at, '\n', m->in.len - at);
		if (!end)
			return NULL;
		size_t len = (size_t)(end - m->in.at) - at;
		if (len >= strlen(start) && !memcmp(m->in.at + at, start, strlen(start)))
			return take_line(m, at, len);
		at += len + 1;
	}
	return NULL;
}

const char *cluster_line(struct cluster *c, unsigned number, const char *start, int timeout_ms)
{
	struct member *m = &c->nodes[number];
	const char *line;
	while (!(line = find_line(m, start))) {
		struct pollfd p = { .fd = m->fd, .events = POLLIN };
		char buf[65536];
		if (poll(&p, 1, timeout_ms) == 0)
			return NULL;
		ssize_t got = read(m->fd, buf, sizeof(buf));
		const char *why = got <= 0 ? find_line(m, "failed") : NULL;
		if (got <= 0)
			fail("node %u ended: %s", number, why ? why : "it did not say why");
		str_add(&m->in, buf, (size_t)got);
	}
	return line;
}

const char *cluster_expect(struct cluster *c, unsigned number, const char *start)
{
	const char *line = cluster_line(c, number, start, 20000);
	if (!line)
		fail("node %u did not say '%s' in time", number, start);
	return line;
}

void cluster_status(struct cluster *c, unsigned number, struct cluster_status *ret)
{
	cluster_say(c, number, "status");
	const char *line = cluster_expect(c, number, "status ");
	if (sscanf(
		line,
		"status %u %u %u %u %u %u %llu %llu %llu %llu %llu %llu %llu %llu %llu %599[^\n]",
		&ret->role, &ret->leader, &ret->ready, &ret->peers, &ret->voters, &ret->changing,
		&ret->term, &ret->commit, &ret->applied, &ret->first, &ret->last, &ret->snapshot,
		&ret->hash, &ret->count, &ret->doubles, ret->health) != 16)
		fail("node %u: %s", number, line);
}

static bool agreed(struct cluster *c, unsigned *ret)
{
	struct cluster_status s;
	bool ready = false;
	*ret = 0;
	for (unsigned i = 1; i <= CLUSTER_NODES_MAX; i++) {
		if (!c->nodes[i].pid)
			continue;
		cluster_status(c, i, &s);
		if (s.role == 1 || s.role == 2)
			continue; /* no log, or not in the configuration yet */
		if (!s.leader || (*ret && s.leader != *ret))
			return false;
		*ret = s.leader;
		ready = ready || (s.leader == i && s.ready);
	}
	return ready;
}

unsigned cluster_leader(struct cluster *c)
{
	unsigned leader;
	for (unsigned i = 0; i < 4000; i++) {
		if (agreed(c, &leader))
			return leader;
		(void)poll(NULL, 0, 5);
	}
	fail("no leader");
	return 0;
}

void cluster_settle(struct cluster *c)
{
	struct cluster_status first, s;
	for (unsigned tries = 0; tries < 4000; tries++) {
		unsigned leader = cluster_leader(c), same = 0, all = 0;
		cluster_status(c, leader, &first);
		for (unsigned i = 1; i <= CLUSTER_NODES_MAX; i++) {
			if (!c->nodes[i].pid)
				continue;
			cluster_status(c, i, &s);
			if (s.role == 1)
				continue;
			all++;
			same += s.applied == first.applied && first.applied == first.last;
			if (s.applied == first.applied && s.hash != first.hash)
				fail("states differ at %llu: nodes %u and %u", s.applied, leader,
				     i);
			if (s.doubles)
				fail("node %u applied %llu commands twice", i, s.doubles);
		}
		if (same == all)
			return;
		(void)poll(NULL, 0, 5);
	}
	fail("the nodes do not come to the same state");
}
