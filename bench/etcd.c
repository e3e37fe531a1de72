/* SPDX-License-Identifier: Apache-2.0 */
#include "etcd.h"

#include "disk.h"

#include "base/str.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMBERS = 3, CONNECTIONS_MAX = 64 };

struct etcd {
	char dir[64];
	pid_t pid[MEMBERS];
	uint16_t client[MEMBERS], peer[MEMBERS];
};

struct request {
	int fd;
	bool busy;
	uint64_t from_us;
	struct str in;
};

static void die(const char *what)
{
	(void)fprintf(stderr, "etcd: %s: %s\n", what, strerror(errno));
	abort();
}

/* A port that is free now. All are held until all are found, so that they differ. */
static void find_ports(struct etcd *e)
{
	int fds[2 * MEMBERS];
	for (unsigned i = 0; i < 2 * MEMBERS; i++) {
		struct sockaddr_in a = { .sin_family = AF_INET,
					 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		socklen_t len = sizeof(a);
		fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fds[i] < 0 || bind(fds[i], (struct sockaddr *)&a, len) < 0 ||
		    getsockname(fds[i], (struct sockaddr *)&a, &len) < 0)
			die("ports");
		uint16_t *to = i < MEMBERS ? &e->client[i] : &e->peer[i - MEMBERS];
		*to = ntohs(a.sin_port);
	}
	for (unsigned i = 0; i < 2 * MEMBERS; i++)
		close(fds[i]);
}

static void start_member(struct etcd *e, unsigned i, bool fresh)
{
	char name[16], dir[128], client[64], peer[64], all[256];
	(void)snprintf(name, sizeof(name), "m%u", i);
	(void)snprintf(dir, sizeof(dir), "%s/%u", e->dir, i);
	(void)snprintf(client, sizeof(client), "http://127.0.0.1:%u", e->client[i]);
	(void)snprintf(peer, sizeof(peer), "http://127.0.0.1:%u", e->peer[i]);
	(void)snprintf(all, sizeof(all),
		       "m0=http://127.0.0.1:%u,m1=http://127.0.0.1:%u,m2=http://127.0.0.1:%u",
		       e->peer[0], e->peer[1], e->peer[2]);
	e->pid[i] = fork();
	if (e->pid[i] < 0)
		die("fork");
	if (e->pid[i])
		return;
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a bench that fails leaves nothing behind */
	int null = open("/dev/null", O_RDWR);
	dup2(null, 1);
	dup2(null, 2);
	execlp("etcd", "etcd", "--name", name, "--data-dir", dir, "--listen-client-urls", client,
	       "--advertise-client-urls", client, "--listen-peer-urls", peer,
	       "--initial-advertise-peer-urls", peer, "--initial-cluster", all,
	       "--initial-cluster-state", fresh ? "new" : "existing", (char *)NULL);
	_exit(127);
}

static int connect_to(const struct etcd *e, unsigned member)
{
	struct sockaddr_in a = { .sin_family = AF_INET,
				 .sin_port = htons(e->client[member]),
				 .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	if (fd < 0)
		die("socket");
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) < 0) {
		close(fd);
		return -1;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	return fd;
}

static void send_post(int fd, const char *path, const char *body)
{
	struct str s = { 0 };
	str_printf(&s,
		   "POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
		   "Content-Length: %zu\r\n\r\n%s",
		   path, strlen(body), body);
	(void)send(fd, s.at, s.len, MSG_NOSIGNAL);
	str_free(&s);
}

/* A whole answer? Lengths are given for answers as short as these. Returns its status, 0: not yet.
 */
static int answer_status(const struct str *in)
{
	const char *end = in->len ? strstr(in->at, "\r\n\r\n") : NULL;
	const char *length = in->len ? strcasestr(in->at, "content-length:") : NULL;
	if (!end || !length || length > end ||
	    in->len < (size_t)(end - in->at) + 4 + strtoul(length + 15, NULL, 10))
		return 0;
	return atoi(in->at + 9);
}

/* One request on a new connection. Returns the status, or -1 when the member does not answer within
 * `timeout_ms`. */
static int ask(const struct etcd *e, unsigned member, const char *path, const char *body,
	       int timeout_ms, struct str *in)
{
	int fd = connect_to(e, member), status = 0;
	if (fd < 0)
		return -1;
	str_clear(in);
	send_post(fd, path, body);
	while (!status) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		char buf[4096];
		ssize_t got = poll(&p, 1, timeout_ms) == 1 ? read(fd, buf, sizeof(buf)) : 0;
		if (got <= 0) {
			status = -1;
			break;
		}
		str_add(in, buf, (size_t)got);
		status = answer_status(in);
	}
	close(fd);
	return status;
}

static void base64(const char *text, size_t len, struct str *out)
{
	static const char digits[] =
	    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	for (size_t i = 0; i < len; i += 3) {
		uint32_t v = (uint32_t)(uint8_t)text[i] << 16;
		v |= i + 1 < len ? (uint32_t)(uint8_t)text[i + 1] << 8 : 0;
		v |= i + 2 < len ? (uint32_t)(uint8_t)text[i + 2] : 0;
		str_printf(out, "%c%c%c%c", digits[v >> 18], digits[v >> 12 & 63],
			   i + 1 < len ? digits[v >> 6 & 63] : '=',
			   i + 2 < len ? digits[v & 63] : '=');
	}
}

static char *put_body(unsigned number, unsigned body)
{
	char key[32], value[4096];
	struct str s = { 0 };
	(void)snprintf(key, sizeof(key), "key-%08u", number);
	memset(value, 'v', sizeof(value));
	str_puts(&s, "{\"key\":\"");
	base64(key, strlen(key), &s);
	str_puts(&s, "\",\"value\":\"");
	base64(value, body, &s);
	str_puts(&s, "\"}");
	return str_take(&s);
}

static const char put_path[] = "/v3/kv/put";

/* First member that takes a put; waits for it. */
static void wait_ready(const struct etcd *e, unsigned member)
{
	struct str in = { 0 };
	char *body = put_body(0, 64);
	while (ask(e, member, put_path, body, 1000, &in) != 200)
		(void)poll(NULL, 0, 2);
	free(body);
	str_free(&in);
}

struct etcd *etcd_start(void)
{
	if (access("/usr/bin/etcd", X_OK) < 0)
		return NULL;
	struct etcd *e = xcalloc(1, sizeof(*e));
	strcpy(e->dir, "etcd-XXXXXX");
	if (!mkdtemp(e->dir))
		die("folder");
	find_ports(e);
	for (unsigned i = 0; i < MEMBERS; i++)
		start_member(e, i, true);
	for (unsigned i = 0; i < MEMBERS; i++)
		wait_ready(e, i);
	return e;
}

static void remove_folder(const char *path)
{
	DIR *d = opendir(path);
	struct dirent *f;
	while (d && (f = readdir(d))) {
		char name[600];
		if (!strcmp(f->d_name, ".") || !strcmp(f->d_name, ".."))
			continue;
		(void)snprintf(name, sizeof(name), "%s/%s", path, f->d_name);
		if (f->d_type == DT_DIR)
			remove_folder(name);
		else
			unlink(name);
	}
	if (d)
		closedir(d);
	rmdir(path);
}

void etcd_stop(struct etcd *e)
{
	if (!e)
		return;
	for (unsigned i = 0; i < MEMBERS; i++) {
		kill(e->pid[i], SIGKILL);
		(void)waitpid(e->pid[i], NULL, 0);
	}
	remove_folder(e->dir);
	free(e);
}

static void next(struct request *r, unsigned number, unsigned body)
{
	char *text = put_body(number, body);
	r->busy = true;
	r->from_us = bench_now_us();
	str_clear(&r->in);
	send_post(r->fd, put_path, text);
	free(text);
}

/* Returns true when the answer is whole. */
static bool take(struct request *r)
{
	char buf[4096];
	ssize_t got = read(r->fd, buf, sizeof(buf));
	if (got <= 0)
		die("connection lost");
	str_add(&r->in, buf, (size_t)got);
	int status = answer_status(&r->in);
	if (status && status != 200) {
		(void)fprintf(stderr, "etcd: status %d: %s\n", status, r->in.at);
		abort();
	}
	r->busy = !status;
	return status;
}

void etcd_load(struct etcd *e, unsigned count, unsigned outstanding, unsigned body,
	       struct etcd_figures *ret)
{
	struct request all[CONNECTIONS_MAX] = { 0 };
	struct pollfd polls[CONNECTIONS_MAX];
	uint64_t *took = xcalloc(count, sizeof(*took)), from = bench_now_us();
	unsigned sent = 0, done = 0;
	for (unsigned i = 0; i < outstanding; i++) {
		all[i].fd = connect_to(e, 0);
		if (all[i].fd < 0)
			die("connect");
		polls[i] = (struct pollfd){ .fd = all[i].fd, .events = POLLIN };
		next(&all[i], sent++, body);
	}
	while (done < count) {
		if (poll(polls, outstanding, 30000) <= 0)
			die("no answer");
		for (unsigned i = 0; i < outstanding; i++)
			if (polls[i].revents && all[i].busy && take(&all[i])) {
				took[done++] = bench_now_us() - all[i].from_us;
				if (sent < count)
					next(&all[i], sent++, body);
			}
	}
	ret->total_us = bench_now_us() - from;
	qsort(took, count, sizeof(*took), bench_compare);
	ret->count = count;
	ret->p50 = took[count / 2];
	ret->p90 = took[count * 9 / 10];
	ret->p99 = took[count * 99 / 100];
	ret->max = took[count - 1];
	for (unsigned i = 0; i < outstanding; i++) {
		close(all[i].fd);
		str_free(&all[i].in);
	}
	free(took);
}

/* The number behind `name` in a JSON answer, as text. */
static void field(const char *json, const char *name, char ret[32])
{
	const char *at = strstr(json, name);
	ret[0] = '\0';
	if (at)
		(void)sscanf(at + strlen(name), "\":\"%31[0-9]", ret);
}

static unsigned find_leader(struct etcd *e)
{
	struct str in = { 0 };
	char leader[32], member[32];
	for (unsigned i = 0;; i = (i + 1) % MEMBERS) {
		if (ask(e, i, "/v3/maintenance/status", "{}", 1000, &in) != 200)
			continue;
		field(in.at, "\"leader", leader);
		field(in.at, "\"member_id", member);
		if (leader[0] && !strcmp(leader, member)) {
			str_free(&in);
			return i;
		}
	}
}

uint64_t etcd_kill_leader(struct etcd *e)
{
	unsigned leader = find_leader(e), other = (leader + 1) % MEMBERS;
	for (unsigned i = 0; i < MEMBERS; i++)
		wait_ready(e, i);
	uint64_t from = bench_now_us();
	kill(e->pid[leader], SIGKILL);
	(void)waitpid(e->pid[leader], NULL, 0);
	wait_ready(e, other);
	uint64_t took = bench_now_us() - from;
	start_member(e, leader, false);
	wait_ready(e, leader);
	return took;
}
