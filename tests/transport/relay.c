/* SPDX-License-Identifier: Apache-2.0 */
#include "mesh.h"

#include <assert.h>

enum { CHUNK = 16 * 1024, SOCKET_BYTES = 64 * 1024, TICK_MS = 5, FLOWS_MAX = 64 };

struct flow;

/* One direction: at most one chunk is under way. */
struct pipe {
	struct flow *flow;
	uv_tcp_t *from, *to;
	uv_write_t request;
	char bytes[CHUNK];
	bool to_server, writing;
	int64_t budget;
};

struct flow {
	struct relay *r;
	uv_tcp_t client, server;
	uv_connect_t connect;
	struct pipe up, down;
	unsigned open; /* handles */
	bool closing;
	unsigned slot;
};

struct relay {
	struct mesh *m;
	uv_tcp_t listener;
	uv_timer_t tick;
	uint16_t to_port, port;
	uint64_t bytes_per_s, bytes[2];
	bool keep;
	struct str text[2];
	struct flow *flows[FLOWS_MAX];
	unsigned handles;
};

static void on_flow_closed(uv_handle_t *handle)
{
	struct flow *f = handle->data;
	if (--f->open)
		return;
	f->r->flows[f->slot] = NULL;
	free(f);
}

static void flow_close(struct flow *f)
{
	if (f->closing)
		return;
	f->closing = true;
	uv_close((uv_handle_t *)&f->client, on_flow_closed);
	uv_close((uv_handle_t *)&f->server, on_flow_closed);
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *ret)
{
	struct flow *f = handle->data;
	struct pipe *p = handle == (uv_handle_t *)&f->client ? &f->up : &f->down;
	*ret = uv_buf_init(p->bytes, CHUNK);
}

static void pump(struct pipe *p);

static void on_written(uv_write_t *request, int status)
{
	struct pipe *p = request->data;
	p->writing = false;
	if (status < 0)
		flow_close(p->flow);
	else
		pump(p);
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buf)
{
	struct flow *f = stream->data;
	struct relay *r = f->r;
	struct pipe *p = stream == (uv_stream_t *)&f->client ? &f->up : &f->down;
	if (got < 0)
		flow_close(f);
	if (got <= 0)
		return;
	(void)uv_read_stop(stream);
	r->bytes[p->to_server] += (uint64_t)got;
	p->budget -= got;
	if (r->keep)
		str_add(&r->text[p->to_server], buf->base, (size_t)got);
	p->writing = true;
	p->request.data = p;
	uv_buf_t out = uv_buf_init(p->bytes, (unsigned)got);
	if (uv_write(&p->request, (uv_stream_t *)p->to, &out, 1, on_written) < 0)
		flow_close(f);
}

static void pump(struct pipe *p)
{
	struct relay *r = p->flow->r;
	if (p->flow->closing || p->writing || (r->bytes_per_s && p->budget <= 0))
		return;
	(void)uv_read_start((uv_stream_t *)p->from, on_alloc, on_read);
}

static void on_connected(uv_connect_t *request, int status)
{
	struct flow *f = request->data;
	if (status < 0) {
		flow_close(f);
		return;
	}
	pump(&f->up);
	pump(&f->down);
}

static void on_incoming(uv_stream_t *listener, int status)
{
	struct relay *r = listener->data;
	struct flow *f = xcalloc(1, sizeof(*f));
	unsigned slot = 0;
	while (slot < FLOWS_MAX && r->flows[slot])
		slot++;
	assert(status == 0 && slot < FLOWS_MAX);
	*f = (struct flow){ .r = r, .slot = slot, .open = 2 };
	r->flows[slot] = f;
	f->up = (struct pipe){ .flow = f, .from = &f->client, .to = &f->server, .to_server = true };
	f->down = (struct pipe){ .flow = f, .from = &f->server, .to = &f->client };
	(void)uv_tcp_init(&r->m->loop, &f->client);
	(void)uv_tcp_init_ex(&r->m->loop, &f->server, AF_INET);
	f->client.data = f->server.data = f->connect.data = f;
	int size = SOCKET_BYTES;
	(void)uv_recv_buffer_size((uv_handle_t *)&f->server, &size);
	if (uv_accept(listener, (uv_stream_t *)&f->client) < 0)
		abort();
	size = SOCKET_BYTES;
	(void)uv_send_buffer_size((uv_handle_t *)&f->client, &size);
	size = SOCKET_BYTES;
	(void)uv_send_buffer_size((uv_handle_t *)&f->server, &size);
	union addr to = mesh_loopback(r->to_port);
	if (uv_tcp_connect(&f->connect, &f->server, &to.any, on_connected) < 0)
		abort();
}

static void on_tick(uv_timer_t *timer)
{
	struct relay *r = timer->data;
	int64_t share = (int64_t)(r->bytes_per_s * TICK_MS / 1000);
	for (size_t i = 0; i < FLOWS_MAX && r->bytes_per_s; i++) {
		struct flow *f = r->flows[i];
		if (!f || f->closing)
			continue;
		struct pipe *both[] = { &f->up, &f->down };
		for (size_t k = 0; k < 2; k++) {
			both[k]->budget = MIN(both[k]->budget + share, share);
			pump(both[k]);
		}
	}
}

struct relay *relay_start(struct mesh *m, uint16_t to_port)
{
	struct relay *r = xcalloc(1, sizeof(*r));
	r->m = m;
	r->to_port = to_port;
	union addr any = mesh_loopback(0), own;
	int len = sizeof(own), size = SOCKET_BYTES;
	(void)uv_tcp_init(&m->loop, &r->listener);
	(void)uv_timer_init(&m->loop, &r->tick);
	r->listener.data = r->tick.data = r;
	if (uv_tcp_bind(&r->listener, &any.any, 0) < 0 ||
	    uv_recv_buffer_size((uv_handle_t *)&r->listener, &size) < 0 ||
	    uv_listen((uv_stream_t *)&r->listener, 64, on_incoming) < 0 ||
	    uv_tcp_getsockname(&r->listener, &own.any, &len) < 0)
		abort();
	r->port = addr_port(&own);
	(void)uv_timer_start(&r->tick, on_tick, TICK_MS, TICK_MS);
	return r;
}

uint16_t relay_port(const struct relay *r)
{
	return r->port;
}

void relay_set_speed(struct relay *r, uint64_t bytes_per_s)
{
	r->bytes_per_s = bytes_per_s;
	for (size_t i = 0; i < FLOWS_MAX; i++)
		if (r->flows[i]) {
			pump(&r->flows[i]->up);
			pump(&r->flows[i]->down);
		}
}

void relay_cut(struct relay *r)
{
	for (size_t i = 0; i < FLOWS_MAX; i++)
		if (r->flows[i])
			flow_close(r->flows[i]);
}

uint64_t relay_bytes(const struct relay *r, bool to_server)
{
	return r->bytes[to_server];
}

void relay_keep_text(struct relay *r, bool keep)
{
	r->keep = keep;
}

bool relay_saw(const struct relay *r, const char *marker)
{
	for (int i = 0; i < 2; i++)
		if (r->text[i].at && memmem(r->text[i].at, r->text[i].len, marker, strlen(marker)))
			return true;
	return false;
}

static void on_relay_closed(uv_handle_t *handle)
{
	struct relay *r = handle->data;
	r->handles--;
}

static bool any_flow(const struct relay *r)
{
	for (size_t i = 0; i < FLOWS_MAX; i++)
		if (r->flows[i])
			return true;
	return false;
}

void relay_stop(struct relay *r)
{
	relay_cut(r);
	r->handles = 2;
	uv_close((uv_handle_t *)&r->listener, on_relay_closed);
	uv_close((uv_handle_t *)&r->tick, on_relay_closed);
	mesh_wait(r->m, r->handles == 0 && !any_flow(r));
	str_free(&r->text[0]);
	str_free(&r->text[1]);
	free(r);
}
