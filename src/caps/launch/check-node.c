/* SPDX-License-Identifier: Apache-2.0 */
/* MPI libraries connect their ranks through ports that the kernel chooses, and a firewall that
 * drops such connections makes them hang for minutes, without a word. So before ranks of a job on
 * several nodes start, each node tries it: it asks others for a port, connects, and the job fails
 * at once with the pair's names when that does not work. What worked is not tried again for a
 * while. */
#include "caps/launch/launch-impl-node.h"

#include "base/log.h"
#include "caps/members/members.h"
#include "io/addr.h"

#include <errno.h>
#include <stdio.h>

enum {
	ANSWER_MS = 800,         /* a node that does not answer is not judged */
	CONNECT_MS = 1000,       /* as the first SYN may be lost: the second comes after 1 s */
	LISTEN_MS = 5000,        /* after the last question */
	GOOD_MS = 5 * 60 * 1000, /* so long a pair counts as tried */
	ALL_NODES_MAX = 8,       /* up to here every pair; beyond, distances of powers of 2 */
	TARGETS_MAX = ALL_NODES_MAX + 64,
	BACKLOG = 128,
};

struct good {
	uint32_t node;
	uint64_t until_ms;
	UT_hash_handle hh;
};

struct prober {
	struct launch *l;
	uv_tcp_t *listener;
	uint16_t port;
	uint64_t close_ms;
	struct good *good;
};

struct dial {
	uv_tcp_t tcp;
	uv_connect_t req;
	struct path_check *check; /* NULL: given up */
	size_t target;
};

struct target {
	const Copia__LaunchPlace *place;
	bool done;
	struct dial *dial;
	uint64_t deadline_ms;
	uint32_t port;
	char ports[40], address[ADDR_TEXT];
};

struct path_check {
	struct site_job *job;
	struct target targets[TARGETS_MAX];
	size_t count, left;
};

static struct prober *prober(struct launch *l)
{
	if (!l->prober) {
		l->prober = xcalloc(1, sizeof(*l->prober));
		l->prober->l = l;
	}
	return l->prober;
}

/* ---------------------------------------------------------------- being tried */

static void on_handle_closed(uv_handle_t *h)
{
	free(h);
}

static void on_connection(uv_stream_t *s, int status)
{
	uv_tcp_t *c = xcalloc(1, sizeof(*c));
	(void)uv_tcp_init(s->loop, c);
	if (status == 0)
		(void)uv_accept(s, (uv_stream_t *)c);
	uv_close((uv_handle_t *)c, on_handle_closed); /* that it came about is all */
}

static int listener_bind(uv_tcp_t *t)
{
	struct sockaddr_in6 six;
	struct sockaddr_in four;
	(void)uv_ip6_addr("::", 0, &six);
	(void)uv_ip4_addr("0.0.0.0", 0, &four);
	if (uv_tcp_bind(t, (struct sockaddr *)&six, 0) == 0)
		return 0;
	return uv_tcp_bind(t, (struct sockaddr *)&four, 0);
}

static void listener_open(struct prober *p)
{
	struct sockaddr_storage a = { 0 };
	union addr bound;
	int len = sizeof(a);
	p->listener = xcalloc(1, sizeof(*p->listener));
	(void)uv_tcp_init(p->l->node->loop, p->listener);
	if (listener_bind(p->listener) == 0 &&
	    uv_listen((uv_stream_t *)p->listener, BACKLOG, on_connection) == 0 &&
	    uv_tcp_getsockname(p->listener, (struct sockaddr *)&a, &len) == 0 &&
	    addr_from_sockaddr((struct sockaddr *)&a, &bound)) {
		p->port = addr_port(&bound);
		return;
	}
	uv_close((uv_handle_t *)take_ptr(p->listener), on_handle_closed);
}

static void port_range(char *buf, size_t size)
{
	unsigned from = 32768, to = 60999;
	FILE *f = fopen("/proc/sys/net/ipv4/ip_local_port_range", "re");
	if (f) {
		(void)!fscanf(f, "%u %u", &from, &to);
		(void)fclose(f);
	}
	(void)snprintf(buf, size, "%u-%u", from, to);
}

void check_asked(struct launch *l, uint32_t from, const struct id *job)
{
	struct prober *p = prober(l);
	char ports[40];
	if (!p->listener)
		listener_open(p);
	p->close_ms = launch_now_ms(l) + LISTEN_MS;
	launch_wake_at(l, p->close_ms);
	port_range(ports, sizeof(ports));
	Copia__LaunchProbePort answer = COPIA__LAUNCH_PROBE_PORT__INIT;
	answer.port = p->listener ? p->port : 0;
	answer.ports = ports;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_PROBE_PORT);
	m.probe_port = &answer;
	launch_send(l, from, job, &m);
}

/* ---------------------------------------------------------------- trying */

static bool is_good(const struct prober *p, uint32_t node, uint64_t now_ms)
{
	struct good *g;
	HASH_FIND(hh, p->good, &node, sizeof(node), g);
	return g && now_ms < g->until_ms;
}

static void set_good(struct prober *p, uint32_t node)
{
	struct good *g;
	HASH_FIND(hh, p->good, &node, sizeof(node), g);
	if (!g) {
		g = xcalloc(1, sizeof(*g));
		g->node = node;
		HASH_ADD(hh, p->good, node, sizeof(g->node), g);
	}
	g->until_ms = launch_now_ms(p->l) + GOOD_MS;
}

static void on_dial_closed(uv_handle_t *h)
{
	free(h->data);
}

static void dial_end(struct target *t)
{
	struct dial *d = take_ptr(t->dial);
	if (!d)
		return;
	d->check = NULL;
	uv_close((uv_handle_t *)&d->tcp, on_dial_closed);
}

struct path_check *check_free(struct path_check *k)
{
	for (size_t i = 0; k && i < k->count; i++)
		dial_end(&k->targets[i]);
	free(k);
	return NULL;
}

static void target_done(struct path_check *k, struct target *t)
{
	struct site_job *j = k->job;
	dial_end(t);
	if (t->done)
		return;
	t->done = true;
	if (--k->left)
		return;
	j->check = check_free(k);
	wire_checked(j);
}

/* Frees the check. */
static void check_failed(struct path_check *k, const struct target *t, const char *why)
{
	struct site_job *j = k->job;
	struct err err = { 0 };
	(void)err_set(&err, -EHOSTUNREACH,
		      "node %s cannot connect to node %s at %s, TCP port %u: %s; MPI ranks talk "
		      "through such ports: let a firewall between the two pass TCP ports %s, or "
		      "skip this check with --no-check",
		      j->place->name, t->place->name, t->address, t->port, why, t->ports);
	j->check = check_free(k);
	site_fail(j, -EHOSTUNREACH, &err);
}

static void on_connected(uv_connect_t *req, int status)
{
	struct dial *d = req->data;
	struct path_check *k = d->check;
	if (!k)
		return;
	struct target *t = &k->targets[d->target];
	if (status < 0) {
		check_failed(k, t, strerror(-status));
		return;
	}
	set_good(k->job->l->prober, t->place->node);
	target_done(k, t);
}

static void target_dial(struct path_check *k, struct target *t)
{
	struct launch *l = k->job->l;
	const Copia__Node *n = members_find(l->node->members, t->place->node);
	union addr a;
	if (!n || !n->n_addresses || addr_parse(n->addresses[0], (uint16_t)t->port, &a, NULL) < 0) {
		target_done(k, t);
		return;
	}
	(void)addr_show_host(&a, t->address);
	struct dial *d = t->dial = xcalloc(1, sizeof(*d));
	d->check = k;
	d->target = (size_t)(t - k->targets);
	d->tcp.data = d->req.data = d;
	(void)uv_tcp_init(l->node->loop, &d->tcp);
	t->deadline_ms = launch_now_ms(l) + CONNECT_MS;
	launch_wake_at(l, t->deadline_ms);
	int r = uv_tcp_connect(&d->req, &d->tcp, &a.any, on_connected);
	if (r < 0)
		check_failed(k, t, strerror(-r));
}

void check_port(struct site_job *j, uint32_t from, const Copia__LaunchProbePort *p)
{
	struct path_check *k = j->check;
	for (size_t i = 0; k && i < k->count; i++) {
		struct target *t = &k->targets[i];
		if (t->place->node != from || t->dial || t->done)
			continue;
		t->port = p->port;
		(void)snprintf(t->ports, sizeof(t->ports), "%s", p->ports);
		if (p->port && p->port <= UINT16_MAX)
			target_dial(k, t);
		else
			target_done(k, t);
		return;
	}
}

static void target_add(struct path_check *k, size_t place)
{
	struct site_job *j = k->job;
	const Copia__LaunchPlace *p = j->start->places[place];
	if (p == j->place || k->count == TARGETS_MAX ||
	    is_good(j->l->prober, p->node, launch_now_ms(j->l)))
		return;
	for (size_t i = 0; i < k->count; i++)
		if (k->targets[i].place == p)
			return;
	k->targets[k->count++] =
	    (struct target){ .place = p, .deadline_ms = launch_now_ms(j->l) + ANSWER_MS };
}

/* All others when they are few; else so that every node tries and is tried by some near and some
 * far ones. */
static void choose_targets(struct path_check *k)
{
	const Copia__LaunchStart *s = k->job->start;
	size_t own = 0;
	while (s->places[own] != k->job->place)
		own++;
	if (s->n_places <= ALL_NODES_MAX)
		for (size_t i = 0; i < s->n_places; i++)
			target_add(k, i);
	else
		for (size_t step = 1; step < s->n_places; step *= 2)
			target_add(k, (own + step) % s->n_places);
}

struct path_check *check_start(struct site_job *j)
{
	struct launch *l = j->l;
	struct path_check *k = xcalloc(1, sizeof(*k));
	k->job = j;
	(void)prober(l);
	choose_targets(k);
	k->left = k->count;
	if (!k->left)
		return check_free(k);
	Copia__LaunchProbe probe = COPIA__LAUNCH_PROBE__INIT;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_PROBE);
	m.probe = &probe;
	for (size_t i = 0; i < k->count; i++)
		launch_send(l, k->targets[i].place->node, &j->id, &m);
	launch_wake_at(l, launch_now_ms(l) + ANSWER_MS);
	return k;
}

/* ---------------------------------------------------------------- time */

static uint64_t check_step(struct path_check *k, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;
	for (size_t i = 0; i < k->count; i++) {
		struct target *t = &k->targets[i];
		if (t->done)
			continue;
		if (now_ms < t->deadline_ms) {
			due = MIN(due, t->deadline_ms);
			continue;
		}
		if (t->dial) {
			check_failed(k, t, "no answer within 1 s");
			return UINT64_MAX;
		}
		bool last = k->left == 1;
		target_done(k, t);
		if (last)
			return UINT64_MAX;
	}
	return due;
}

uint64_t check_tick(struct launch *l, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;
	struct site_job *j, *next;
	struct prober *p = l->prober;
	HASH_ITER(hh, l->sites, j, next)
	{
		uint64_t at = j->check ? check_step(j->check, now_ms) : UINT64_MAX;
		due = MIN(due, at);
	}
	if (!p || !p->listener)
		return due;
	if (now_ms < p->close_ms)
		return MIN(due, p->close_ms);
	uv_close((uv_handle_t *)take_ptr(p->listener), on_handle_closed);
	return due;
}

void check_free_all(struct launch *l)
{
	struct prober *p = take_ptr(l->prober);
	struct good *g, *next;
	if (!p)
		return;
	HASH_ITER(hh, p->good, g, next)
	{
		HASH_DEL(p->good, g);
		free(g);
	}
	if (p->listener)
		uv_close((uv_handle_t *)p->listener, on_handle_closed);
	free(p);
}
