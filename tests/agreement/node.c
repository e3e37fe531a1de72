/* SPDX-License-Identifier: Apache-2.0 */
#include "node.h"

#include "base/log.h"
#include "io/peers.h"
#include "node/agreement/agreement.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

struct state {
	uint64_t hash, count, doubles;
	uint8_t seen[CLUSTER_ID_MAX];
};

struct load {
	uint64_t left, outstanding, failed, started_us;
	uint32_t next_id;
	size_t count, body;
	uint64_t *took_us, *began_us;
};

struct node {
	const struct cluster *c;
	unsigned number;
	uv_loop_t loop;
	uv_pipe_t control;
	struct str in;
	int fd;
	struct peers *peers;
	struct agree *agree;
	struct state state;
	struct load load;
	char buf[65536];
};

static uint64_t now_us(void)
{
	return uv_hrtime() / 1000;
}

static void say(struct node *n, const char *fmt, ...) _printf_(2, 3);
static void say(struct node *n, const char *fmt, ...)
{
	struct str s = { 0 };
	va_list args;
	va_start(args, fmt);
	str_vprintf(&s, fmt, args);
	va_end(args);
	str_puts(&s, "\n");
	/* The parent reads at once; a blocking write is simplest and cannot lose a line. */
	for (size_t at = 0; at < s.len;) {
		ssize_t wrote = write(n->fd, s.at + at, s.len - at);
		if (wrote < 0)
			_exit(1);
		at += (size_t)wrote;
	}
	str_free(&s);
}

/* ---- the replicated state ---- */

static int on_apply(void *ctx, const struct agree_command *c, struct str *result, struct err *err)
{
	struct node *n = ctx;
	struct state *s = &n->state;
	uint32_t id;
	if (c->bytes.len < sizeof(id))
		return err_set(err, -EBADMSG, "a command of %zu bytes", c->bytes.len);
	memcpy(&id, c->bytes.at, sizeof(id));
	id %= CLUSTER_ID_MAX;
	if (id % 1000 == 999)
		return err_set(err, -EPERM, "command %u is one that fails", id);
	s->doubles += s->seen[id] != 0;
	s->seen[id] = 1;
	s->count++;
	s->hash = (s->hash ^ id ^ (c->now_ms << 20) ^ ((uint64_t)c->node << 60)) *
		  UINT64_C(0x100000001b3);
	str_printf(result, "%u", id);
	return 0;
}

static void on_save(void *ctx, struct str *out)
{
	struct node *n = ctx;
	str_add(out, &n->state, sizeof(n->state));
}

static int on_load(void *ctx, struct span snapshot, struct err *err)
{
	struct node *n = ctx;
	if (snapshot.len == 0)
		memset(&n->state, 0, sizeof(n->state));
	else if (snapshot.len == sizeof(n->state))
		memcpy(&n->state, snapshot.at, sizeof(n->state));
	else
		return err_set(err, -EBADMSG, "a snapshot of %zu bytes", snapshot.len);
	return 0;
}

static void on_health(void *ctx, const char *text)
{
	say(ctx, "health %s", text ? text : "well");
}

/* ---- commands from the parent ---- */

struct asked {
	struct node *n;
	uint32_t id;
};

static void on_done(void *ctx, const struct agree_outcome *o)
{
	struct asked *q = ctx;
	say(q->n, "done %u %d %d %" PRIu64 " %.*s", q->id, o->fate, o->code, o->index,
	    (int)o->result.len, (const char *)o->result.at);
	free(q);
}

static void on_barrier(void *ctx, const struct agree_outcome *o)
{
	struct asked *q = ctx;
	struct agree_status s;
	agree_status(q->n->agree, &s);
	say(q->n, "barrier %d %" PRIu64 " %" PRIu64, o->code, s.applied, q->n->state.count);
	free(q);
}

static struct asked *asked(struct node *n, uint32_t id)
{
	struct asked *q = xmalloc(sizeof(*q));
	*q = (struct asked){ n, id };
	return q;
}

static void do_propose(struct node *n, uint32_t id, uint64_t deadline_ms)
{
	struct err err = { 0 };
	struct asked *q = asked(n, id);
	int r = agree_propose(n->agree, (struct span){ (uint8_t *)&id, sizeof(id) }, deadline_ms,
			      on_done, q, &err);
	if (r < 0) {
		say(n, "done %u 2 %d 0", id, r);
		free(q);
	}
}

static void load_next(struct node *n);

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

static void load_end(struct node *n)
{
	struct load *l = &n->load;
	uint64_t total = now_us() - l->started_us;
	qsort(l->took_us, l->count, sizeof(*l->took_us), compare);
	say(n, "load %zu %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64,
	    l->count, total, l->took_us[l->count / 2], l->took_us[l->count * 9 / 10],
	    l->took_us[l->count * 99 / 100], l->took_us[l->count - 1], l->failed);
	free(l->took_us);
	free(l->began_us);
	*l = (struct load){ .next_id = l->next_id };
}

static void on_load_done(void *ctx, const struct agree_outcome *o)
{
	struct asked *q = ctx;
	struct load *l = &q->n->load;
	l->took_us[q->id] = now_us() - l->began_us[q->id];
	l->failed += o->fate != AGREE_APPLIED || (o->code && o->code != -EPERM);
	l->outstanding--;
	if (l->left)
		load_next(q->n);
	else if (!l->outstanding)
		load_end(q->n);
	free(q);
}

static void load_next(struct node *n)
{
	struct load *l = &n->load;
	uint8_t body[4096] = { 0 };
	uint32_t id = l->next_id++ * 4 + n->number, i = (uint32_t)(l->count - l->left);
	memcpy(body, &id, sizeof(id));
	l->left--;
	l->outstanding++;
	l->began_us[i] = now_us();
	int r = agree_propose(n->agree, (struct span){ body, l->body }, 0, on_load_done,
			      asked(n, i), NULL);
	assert(r == 0);
}

static void do_load(struct node *n, size_t count, unsigned outstanding, size_t body)
{
	struct load *l = &n->load;
	assert(!l->outstanding && count >= outstanding && body >= 4 && body <= 4096);
	l->count = l->left = count;
	l->body = body;
	l->took_us = xcalloc(count, sizeof(*l->took_us));
	l->began_us = xcalloc(count, sizeof(*l->began_us));
	l->started_us = now_us();
	while (outstanding--)
		load_next(n);
}

static void do_status(struct node *n)
{
	struct agree_status s;
	unsigned voters = 0;
	agree_status(n->agree, &s);
	for (unsigned i = 0; i < s.peer_count; i++)
		voters += s.peers[i].voter;
	say(n,
	    "status %u %u %u %u %u %u %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64
	    " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %s",
	    s.role, s.leader, s.ready, s.peer_count, voters, s.changing, s.term, s.commit,
	    s.applied, s.first, s.last, s.snapshot_index, n->state.hash, n->state.count,
	    n->state.doubles, s.health[0] ? s.health : "well");
}

static unsigned read_list(char *text, uint32_t list[AGREE_CONTROLLERS_MAX])
{
	unsigned count = 0;
	for (char *at = strtok(text, ","); at; at = strtok(NULL, ","))
		if (atoi(at))
			list[count++] = (uint32_t)atoi(at);
	return count;
}

static void do_voters(struct node *n, char *voters, char *learners)
{
	uint32_t v[AGREE_CONTROLLERS_MAX], l[AGREE_CONTROLLERS_MAX];
	struct err err = { 0 };
	unsigned vc = read_list(voters, v), lc = read_list(learners, l);
	int r = agree_set_voters(n->agree, v, vc, l, lc, &err);
	say(n, "voters %d %s", r, err.msg);
}

static void do_know(struct node *n, unsigned number, unsigned port)
{
	union addr a;
	struct peers_node p = { .number = number, .addresses = &a, .address_count = 1 };
	if (addr_parse("127.0.0.1", (uint16_t)port, &a, NULL) < 0 ||
	    peers_set_node(n->peers, &p, NULL) < 0)
		abort();
	peers_keep(n->peers, number, true);
}

static void quit(struct node *n)
{
	n->agree = agree_close(n->agree);
	uv_run(&n->loop, UV_RUN_NOWAIT);
	say(n, "bye");
	_exit(0);
}

static void on_command(struct node *n, char *line)
{
	unsigned a, b, c;
	char s[2][200];
	struct err err = { 0 };
	if (sscanf(line, "propose %u %u", &a, &b) == 2)
		do_propose(n, a, b);
	else if (sscanf(line, "load %u %u %u", &a, &b, &c) == 3)
		do_load(n, a, b, c);
	else if (!strcmp(line, "status"))
		do_status(n);
	else if (sscanf(line, "know %u %u", &a, &b) == 2)
		do_know(n, a, b);
	else if (sscanf(line, "controllers %199s", s[0]) == 1) {
		uint32_t list[AGREE_CONTROLLERS_MAX];
		agree_controllers(n->agree, list, read_list(s[0], list));
	} else if (sscanf(line, "serve %u", &a) == 1) {
		int r = agree_serve(n->agree, a, &err);
		say(n, "serve %d %s", r, err.msg);
	} else if (sscanf(line, "voters %199s %199s", s[0], s[1]) == 2)
		do_voters(n, s[0], s[1]);
	else if (sscanf(line, "transfer %u", &a) == 1) {
		int r = agree_transfer(n->agree, a, &err);
		say(n, "transfer %d %s", r, err.msg);
	} else if (!strcmp(line, "barrier")) {
		if (agree_read_barrier(n->agree, 0, on_barrier, asked(n, 0), &err) < 0)
			say(n, "barrier %d", err.code);
	} else if (!strcmp(line, "lease")) {
		uint64_t until = agree_lease_until_ms(n->agree), now = uv_hrtime() / 1000000;
		say(n, "lease %" PRId64, until ? (int64_t)(until - now) : -1);
	} else if (sscanf(line, "limit %u", &a) == 1) {
		/* Stands in for a full disk: the same write() fails, and root is not needed. */
		struct rlimit l = { a ? (rlim_t)a : RLIM_INFINITY, RLIM_INFINITY };
		say(n, "limit %d", setrlimit(RLIMIT_FSIZE, &l));
	} else if (!strcmp(line, "quit"))
		quit(n);
	else
		abort();
}

/* ---- set up ---- */

static void on_alloc(uv_handle_t *h, size_t suggested, uv_buf_t *ret)
{
	struct node *n = h->data;
	*ret = uv_buf_init(n->buf, sizeof(n->buf));
}

static void on_read(uv_stream_t *stream, ssize_t len, const uv_buf_t *buf)
{
	struct node *n = stream->data;
	if (len < 0)
		_exit(0); /* the parent is gone */
	str_add(&n->in, buf->base, (size_t)len);
	char *end;
	while (n->in.len && (end = memchr(n->in.at, '\n', n->in.len))) {
		char line[512];
		size_t size = (size_t)(end - n->in.at);
		assert(size < sizeof(line));
		memcpy(line, n->in.at, size);
		line[size] = '\0';
		str_cut(&n->in, size + 1);
		on_command(n, line);
	}
}

static void on_peer_state(void *ctx, uint32_t node, bool up, const char *reason)
{
	agreement_session(((struct node *)ctx)->agree, node, up);
}

static void check(struct node *n, int r, const struct err *err)
{
	if (r >= 0)
		return;
	say(n, "failed %d %s", r, err->msg);
	_exit(1);
}

static void open_peers(struct node *n)
{
	const struct member *m = &n->c->nodes[n->number];
	struct err err = { 0 };
	struct peers_settings s = { .node = n->number,
				    .cluster = n->c->id,
				    .incarnation = (uint64_t)getpid() << 32 | now_us() % 1000000,
				    .seed = now_us(),
				    .cert = { (uint8_t *)m->cert.at, m->cert.len },
				    .key = { (uint8_t *)m->key.at, m->key.len },
				    .authority = { (uint8_t *)n->c->authority.at,
						   n->c->authority.len },
				    .events = { .state = on_peer_state, .ctx = n } };
	check(n, peers_new(&n->peers, &n->loop, &s, &err), &err);
	check(n, peers_listen(n->peers, 0, &err), &err);
}

_Noreturn void node_run(const struct cluster *c, unsigned number, bool first, int fd)
{
	struct node *n = xcalloc(1, sizeof(*n));
	struct err err = { 0 };
	char dir[128];
	struct agree_events events = {
		.ctx = n, .apply = on_apply, .save = on_save, .load = on_load, .health = on_health
	};
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	n->c = c;
	n->number = number;
	n->fd = dup(fd); /* libuv makes its own non-blocking, and both share that: see say() */
	if (uv_loop_init(&n->loop) < 0)
		abort();
	(void)snprintf(dir, sizeof(dir), "%s/%u", c->dir, number);
	open_peers(n);
	struct agreement_settings s = { .loop = &n->loop,
					.peers = n->peers,
					.dir = dir,
					.cluster = c->id,
					.self = number,
					.profile = c->profile,
					.snapshot_entries = c->snapshot_entries,
					.keep_entries = c->keep_entries };
	if (getrandom(&s.epoch, sizeof(s.epoch), 0) != sizeof(s.epoch))
		abort();
	s.epoch |= 1;
	rng_seed(&s.rng, s.epoch);
	if (first)
		check(n, agreement_bootstrap(&s, &err), &err);
	check(n, agreement_open(&n->agree, &s, &events, &err), &err);
	if (agreement_exists(dir))
		check(n, agree_serve(n->agree, true, &err), &err);
	uv_pipe_init(&n->loop, &n->control, 0);
	n->control.data = n;
	if (uv_pipe_open(&n->control, fd) < 0)
		abort();
	uv_stream_set_blocking((uv_stream_t *)&n->control, 1);
	say(n, "port %u", peers_port(n->peers));
	uv_read_start((uv_stream_t *)&n->control, on_alloc, on_read);
	uv_run(&n->loop, UV_RUN_DEFAULT);
	abort();
}
