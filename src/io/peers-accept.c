/* SPDX-License-Identifier: Apache-2.0 */
#include "io/peers-internal.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

enum { BACKLOG = 1024, ACCEPT_BATCH = 64 };

/* ------------------------------------------------------------------------------------- sources */

static void make_key(const union addr *a, uint8_t key[9])
{
	memset(key, 0, 9);
	if (a->any.sa_family == AF_INET6) {
		key[0] = 6;
		memcpy(key + 1, &a->v6.sin6_addr, 8);
	} else {
		key[0] = 4;
		memcpy(key + 1, &a->v4.sin_addr, 4);
	}
}

static struct source **bucket(struct peers *p, const uint8_t key[9])
{
	uint32_t hash = 2166136261u; /* FNV-1a */
	for (size_t i = 0; i < 9; i++)
		hash = (hash ^ key[i]) * 16777619u;
	return &p->sources[hash % PEERS_SOURCE_BUCKETS];
}

static struct source *source_get(struct peers *p, const union addr *remote)
{
	uint8_t key[9];
	make_key(remote, key);
	struct source **head = bucket(p, key);
	for (struct source *src = *head; src; src = src->next)
		if (memcmp(src->key, key, sizeof(key)) == 0)
			return src;
	struct source *src = xcalloc(1, sizeof(*src));
	memcpy(src->key, key, sizeof(key));
	TAILQ_INIT(&src->strangers[LIST_SILENT]);
	TAILQ_INIT(&src->strangers[LIST_TALKING]);
	src->next = *head;
	*head = src;
	return src;
}

void peers_source_leave(struct session *s)
{
	struct source *src = s->source;
	assert(src && s->list <= LIST_TALKING);
	TAILQ_REMOVE(&src->strangers[s->list], s, source_entry);
	src->count[s->list]--;
	s->source = NULL;
	if (src->count[LIST_SILENT] || src->count[LIST_TALKING])
		return;
	struct source **at = bucket(s->p, src->key);
	while (*at != src)
		at = &(*at)->next;
	*at = src->next;
	free(src);
}

static void displace(struct session *s)
{
	s->p->stats.displaced++;
	peers_session_drop(s);
}

void peers_source_move(struct session *s, enum session_list to)
{
	struct peers *p = s->p;
	assert(to == LIST_SILENT || to == LIST_TALKING);
	peers_session_list(s, to);
	struct source *src = s->source = source_get(p, &s->remote);
	TAILQ_INSERT_TAIL(&src->strangers[to], s, source_entry);
	src->count[to]++;

	/* The newest is never the one to go: every newcomer gets its moment. */
	if (to == LIST_TALKING) {
		if (src->count[to] > PEERS_SOURCE_TALKING_MAX)
			displace(TAILQ_FIRST(&src->strangers[to]));
		else if (p->counts[to] > PEERS_TALKING_MAX)
			displace(TAILQ_FIRST(&p->lists[to]));
		return;
	}
	if (src->count[LIST_SILENT] + src->count[LIST_TALKING] > p->settings.source_max)
		displace(src->count[LIST_SILENT] > 1 ? TAILQ_FIRST(&src->strangers[LIST_SILENT])
						     : TAILQ_FIRST(&src->strangers[LIST_TALKING]));
	else if (p->counts[LIST_SILENT] + p->counts[LIST_TALKING] > p->settings.unfinished_max)
		displace(p->counts[LIST_SILENT] > 1 ? TAILQ_FIRST(&p->lists[LIST_SILENT])
						    : TAILQ_FIRST(&p->lists[LIST_TALKING]));
}

/* ------------------------------------------------------------------------------------ accepting */

static void adopt(struct peers *p, int fd, const struct sockaddr_storage *from)
{
	union addr remote;
	if (!addr_from_sockaddr((const struct sockaddr *)from, &remote)) {
		(void)close(fd);
		return;
	}
	p->stats.accepted++;
	struct session *s = peers_session_new(p, &remote);
	s->stage = STAGE_SILENT;
	s->deadline_ms = uv_now(p->loop) + p->settings.handshake_ms;
	if (tls_conn_adopt(&s->conn, fd, NULL) < 0) {
		peers_session_drop(s);
		return;
	}
	peers_source_move(s, LIST_SILENT);
	peers_sweep_start(p);
}

/* No descriptor or memory left. Room is made by the oldest stranger; failing that, the port rests
 * until the next sweep, since a waiting connection would wake the loop without end. */
static bool make_room(struct peers *p)
{
	struct session *oldest = TAILQ_FIRST(&p->lists[LIST_SILENT]);
	if (!oldest)
		oldest = TAILQ_FIRST(&p->lists[LIST_TALKING]);
	if (oldest) {
		displace(oldest);
		return true;
	}
	union addr any = { .any.sa_family = AF_INET };
	peers_log(p, &any, 300,
		  "no descriptor left for new connections: raise the limit of open files");
	p->accept_paused = true;
	(void)uv_poll_stop(&p->listen_poll);
	peers_sweep_start(p);
	return false;
}

/* 0, or a negative errno: -EAGAIN when nobody waits. */
static int accept_one(struct peers *p)
{
	struct sockaddr_storage from = { 0 };
	socklen_t len = sizeof(from);
	int fd =
	    accept4(p->listen_fd, (struct sockaddr *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd >= 0) {
		adopt(p, fd, &from);
		return 0;
	}
	if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
		return -EMFILE;
	/* Connections that died while they waited do not end the batch. */
	return errno == ECONNABORTED || errno == EINTR || errno == EPROTO ? 0 : -EAGAIN;
}

static void on_incoming(uv_poll_t *poll, int status, int events)
{
	struct peers *p = poll->data;
	int r = accept_one(p);
	/* Only now is it certain that somebody waits: accept() looks for a descriptor first, and
	 * says EMFILE also when nobody does. */
	if (r == -EMFILE && make_room(p))
		r = accept_one(p);
	for (int i = 1; i < ACCEPT_BATCH && r == 0; i++)
		r = accept_one(p);
}

static int open_port(int family, uint16_t port, int *ret_fd)
{
	union addr any = { 0 };
	any.any.sa_family = (sa_family_t)family;
	addr_set_port(&any, port);
	int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	int on = 1, off = 0;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    (family == AF_INET6 &&
	     setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off)) < 0) ||
	    bind(fd, &any.any, (socklen_t)addr_len(&any)) < 0 || listen(fd, BACKLOG) < 0) {
		int code = -errno;
		(void)close(fd);
		return code;
	}
	*ret_fd = fd;
	return 0;
}

static int open_any_port(uint16_t port, int *ret_fd, struct err *err)
{
	int r = open_port(AF_INET6, port, ret_fd);
	if (r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL || r == -EPROTONOSUPPORT)
		r = open_port(AF_INET, port, ret_fd); /* a machine without IPv6 */
	if (r == -EADDRINUSE)
		return err_set(err, r,
			       "port %u is taken by another program: stop it ('ss -ltnp' shows it) "
			       "or choose another port",
			       port);
	if (r < 0)
		return err_set(err, r, "listen on port %u: %s", port, strerror(-r));
	return 0;
}

int peers_port_check(uint16_t port, struct err *err)
{
	int fd = -1, r = open_any_port(port, &fd, err);
	if (r == 0)
		(void)close(fd);
	return r;
}

int peers_listen(struct peers *p, uint16_t port, struct err *err)
{
	assert(p->listen_fd < 0 && !p->closing);
	int r = open_any_port(port, &p->listen_fd, err);
	if (r < 0)
		return r;

	struct sockaddr_storage own = { 0 };
	socklen_t len = sizeof(own);
	union addr a = { 0 };
	if (getsockname(p->listen_fd, (struct sockaddr *)&own, &len) == 0 &&
	    addr_from_sockaddr((struct sockaddr *)&own, &a))
		p->port = addr_port(&a);
	r = uv_poll_init(p->loop, &p->listen_poll, p->listen_fd);
	if (r < 0) {
		(void)close(p->listen_fd);
		p->listen_fd = -1;
		return err_set(err, r, "listen on port %u: %s", port, uv_strerror(r));
	}
	p->handles++;
	p->listening = true;
	p->listen_poll.data = p;
	(void)uv_poll_start(&p->listen_poll, UV_READABLE, on_incoming);
	return 0;
}

static void on_poll_closed(uv_handle_t *handle)
{
	struct peers *p = handle->data;
	(void)close(p->listen_fd);
	p->listen_fd = -1;
	peers_handle_closed(p);
}

void peers_unlisten(struct peers *p)
{
	if (!p->listening)
		return;
	p->listening = p->accept_paused = false;
	p->port = 0;
	uv_close((uv_handle_t *)&p->listen_poll, on_poll_closed);
}

/* ------------------------------------------------------------------------------------ deadlines */

void peers_sweep_start(struct peers *p)
{
	if (!p->closing && !uv_is_active((uv_handle_t *)&p->sweep))
		(void)uv_timer_start(&p->sweep, peers_on_sweep, PEERS_SWEEP_MS, PEERS_SWEEP_MS);
}

static void expire(struct session *s)
{
	static const char why[] = "no answer in time";
	s->p->stats.late += !s->dialled && s->stage != STAGE_ENDING;
	if (s->stage == STAGE_ANSWERING) {
		peers_session_refuse(s, SESSION_JOINING, "no answer from the cluster in time");
		return;
	}
	if (s->peer && s->dialled)
		peers_dial_failed(s, SESSION_OTHER, why);
	peers_session_drop(s);
}

void peers_on_sweep(uv_timer_t *timer)
{
	struct peers *p = timer->data;
	uint64_t now_ms = uv_now(p->loop);
	if (p->accept_paused) {
		p->accept_paused = false;
		(void)uv_poll_start(&p->listen_poll, UV_READABLE, on_incoming);
	}
	for (unsigned list = 0; list < LIST_UP && !p->closing; list++) {
		/* Expiring calls events, which may change the list: begin again after each. */
		struct session *s = TAILQ_FIRST(&p->lists[list]);
		while (s) {
			struct session *next = TAILQ_NEXT(s, entry);
			if (s->deadline_ms && s->deadline_ms <= now_ms) {
				expire(s);
				next = p->closing ? NULL : TAILQ_FIRST(&p->lists[list]);
			}
			s = next;
		}
	}
	if (p->closing || (!p->counts[LIST_SILENT] && !p->counts[LIST_TALKING] &&
			   !p->counts[LIST_OTHERS] && !p->accept_paused))
		(void)uv_timer_stop(timer);
}
