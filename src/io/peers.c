/* SPDX-License-Identifier: Apache-2.0 */
#include "io/peers.h"

#include "base/log.h"
#include "io/peers-internal.h"
#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>

/* -------------------------------------------------------------------------- making and closing */

/* Strangers may use all descriptors but those that the node itself needs. */
static unsigned descriptor_share(void)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return 256;
	if (limit.rlim_cur < limit.rlim_max) {
		limit.rlim_cur = limit.rlim_max;
		(void)setrlimit(RLIMIT_NOFILE, &limit);
		(void)getrlimit(RLIMIT_NOFILE, &limit);
	}
	uint64_t all = MIN((uint64_t)limit.rlim_cur, (uint64_t)1 << 20);
	return (unsigned)(all > 2048 ? all - 1024 : all / 2);
}

static void fill_settings(struct peers_settings *s)
{
	s->cert = s->key = s->authority = (struct span){ 0 };
	s->version_min = s->version_min ? s->version_min : PEERS_VERSION;
	s->version_max = s->version_max ? s->version_max : PEERS_VERSION;
	s->dead_ms = s->dead_ms ? s->dead_ms : PEERS_DEAD_MS;
	s->handshake_ms = s->handshake_ms ? s->handshake_ms : PEERS_HANDSHAKE_MS;
	s->source_max = s->source_max ? s->source_max : PEERS_SOURCE_MAX;
	s->unfinished_max = s->unfinished_max ? s->unfinished_max : PEERS_UNFINISHED_MAX;
	s->unfinished_max = MIN(s->unfinished_max, descriptor_share());
}

static int make_identity(struct tls_identity **ret, const struct peers_settings *s,
			 struct span cert, struct span key, struct span authority, struct err *err)
{
	struct tls_identity *identity;
	int r = tls_identity_new(&identity, cert, key, authority, err);
	if (r < 0)
		return r;
	const struct pki_cert *own = tls_identity_cert(identity);
	if (id_compare(&own->cluster, &s->cluster) != 0)
		r = err_set(err, -EKEYREJECTED, "this node's certificate is of another cluster");
	else if (own->node != s->node)
		r = err_set(err, -EKEYREJECTED, "this node is %u, but its certificate is node %u's",
			    s->node, own->node);
	if (r < 0) {
		tls_identity_free(identity);
		return r;
	}
	*ret = identity;
	return 0;
}

static struct peer *node_add(struct peers *p, uint32_t number)
{
	if (p->node_count == p->node_cap) {
		p->node_cap = p->node_cap ? p->node_cap * 2 : 8;
		p->nodes = xrealloc(p->nodes, p->node_cap * sizeof(*p->nodes));
	}
	struct peer *peer = xcalloc(1, sizeof(*peer));
	peer->p = p;
	peer->number = number;
	peers_queue_init(peer);
	(void)uv_timer_init(p->loop, &peer->timer);
	p->handles++;

	size_t at = p->node_count++;
	for (; at > 0 && p->nodes[at - 1]->number > number; at--)
		p->nodes[at] = p->nodes[at - 1];
	p->nodes[at] = peer;
	return peer;
}

int peers_new(struct peers **ret, uv_loop_t *loop, const struct peers_settings *settings,
	      struct err *err)
{
	assert(settings->node > 0 && !id_is_none(&settings->cluster));
	struct tls_identity *identity;
	int r = make_identity(&identity, settings, settings->cert, settings->key,
			      settings->authority, err);
	if (r < 0)
		return r;
	struct peers *p = xcalloc(1, sizeof(*p));
	p->loop = loop;
	p->settings = *settings;
	fill_settings(&p->settings);
	assert(p->settings.version_min <= p->settings.version_max);
	p->identity = identity;
	p->listen_fd = -1;
	rng_seed(&p->rng, settings->seed);
	for (size_t i = 0; i < LIST_COUNT; i++)
		TAILQ_INIT(&p->lists[i]);
	TAILQ_INIT(&p->dirty);
	(void)uv_timer_init(loop, &p->sweep);
	(void)uv_prepare_init(loop, &p->pump);
	(void)uv_idle_init(loop, &p->deliver);
	p->sweep.data = p->pump.data = p->deliver.data = p;
	p->handles = 3;
	p->self = node_add(p, settings->node);
	*ret = p;
	return 0;
}

void peers_handle_closed(struct peers *p)
{
	assert(p->handles > 0);
	if (--p->handles || !p->closing)
		return;
	void (*done)(void *ctx) = p->done;
	void *ctx = p->done_ctx;
	tls_identity_free(p->identity);
	free(p->nodes);
	free(p);
	if (done)
		done(ctx);
}

static void on_handle_closed(uv_handle_t *handle)
{
	peers_handle_closed(handle->data);
}

static void on_peer_closed(uv_handle_t *handle)
{
	struct peer *peer = CONTAINER(handle, struct peer, timer);
	struct peers *p = peer->p;
	free(peer);
	peers_handle_closed(p);
}

/* Out of all tables; the memory goes with the timer's handle, since callers up the stack may still
 * look at `forgotten`. */
static void node_remove(struct peer *peer, const char *reason)
{
	struct peers *p = peer->p;
	size_t at = 0;
	while (p->nodes[at] != peer)
		at++;
	p->node_count--;
	memmove(&p->nodes[at], &p->nodes[at + 1], (p->node_count - at) * sizeof(*p->nodes));
	peer->forgotten = true;
	peer->keep = false;
	peers_dial_stop(peer, NULL);
	peers_queue_drop(peer);
	if (peer->dirty)
		TAILQ_REMOVE(&p->dirty, peer, dirty_entry);
	peer->dirty = false;
	/* Last, since it tells the owner, who may do anything. */
	peers_session_end(peer, SESSION_UNKNOWN, reason);
	uv_close((uv_handle_t *)&peer->timer, on_peer_closed);
}

void peers_close(struct peers *p, void (*done)(void *ctx), void *ctx)
{
	assert(!p->closing);
	p->closing = true; /* no more events */
	p->done = done;
	p->done_ctx = ctx;
	peers_unlisten(p);
	while (p->node_count)
		node_remove(p->nodes[p->node_count - 1], "this node's daemon stops");
	p->self = NULL;
	for (size_t i = 0; i < LIST_COUNT; i++)
		while (!TAILQ_EMPTY(&p->lists[i]))
			peers_session_drop(TAILQ_FIRST(&p->lists[i]));
	uv_close((uv_handle_t *)&p->sweep, on_handle_closed);
	uv_close((uv_handle_t *)&p->pump, on_handle_closed);
	uv_close((uv_handle_t *)&p->deliver, on_handle_closed);
}

int peers_set_identity(struct peers *p, struct span cert, struct span key, struct span authority,
		       struct err *err)
{
	struct tls_identity *identity;
	int r = make_identity(&identity, &p->settings, cert, key, authority, err);
	if (r < 0)
		return r;
	tls_identity_free(p->identity);
	p->identity = identity;
	return 0;
}

/* --------------------------------------------------------------------------------------- nodes */

struct peer *peers_find(const struct peers *p, uint32_t number)
{
	size_t low = 0, high = p->node_count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (p->nodes[middle]->number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low < p->node_count && p->nodes[low]->number == number ? p->nodes[low] : NULL;
}

int peers_set_node(struct peers *p, const struct peers_node *node, struct err *err)
{
	if (node->number == 0 || node->number == p->settings.node)
		return err_set(err, -EINVAL, "node %u cannot be a peer of node %u", node->number,
			       p->settings.node);
	if (node->address_count > PEERS_ADDRESS_MAX || node->allowed_count > PEERS_FINGERPRINT_MAX)
		return err_set(err, -EINVAL,
			       "node %u has more than %d addresses or %d certificates",
			       node->number, PEERS_ADDRESS_MAX, PEERS_FINGERPRINT_MAX);
	struct peer *peer = peers_find(p, node->number);
	if (!peer)
		peer = node_add(p, node->number);

	bool moved = peer->address_count != node->address_count;
	for (size_t i = 0; !moved && i < node->address_count; i++)
		moved = !addr_equal(&peer->addresses[i], &node->addresses[i]);
	peer->address_count = node->address_count;
	for (size_t i = 0; i < node->address_count; i++)
		peer->addresses[i] = node->addresses[i];
	peer->allowed_count = node->allowed_count;
	for (size_t i = 0; i < node->allowed_count; i++)
		peer->allowed[i] = node->allowed[i];

	if (moved) {
		/* Attempts that run hold indices of the old list. */
		peers_dial_stop(peer, NULL);
		peer->first = 0;
		peer->failures = 0;
	}
	if (peer->session && !peers_allows(peer, &peer->session->cert.fingerprint))
		peers_session_end(peer, SESSION_FINGERPRINT,
				  "the certificate of this session is no longer allowed");
	else if (moved)
		peers_dial(peer);
	return 0;
}

void peers_forget_node(struct peers *p, uint32_t number)
{
	struct peer *peer = peers_find(p, number);
	if (peer && peer != p->self)
		node_remove(peer, "the node left the cluster or was revoked");
}

void peers_keep(struct peers *p, uint32_t number, bool keep)
{
	struct peer *peer = peers_find(p, number);
	if (!peer || peer == p->self)
		return;
	peer->keep = keep;
	peers_dial(peer);
}

void peers_disconnect(struct peers *p, uint32_t number, const char *reason)
{
	struct peer *peer = peers_find(p, number);
	if (!peer || peer == p->self)
		return;
	peers_dial_stop(peer, NULL);
	if (peer->session)
		peers_session_end(peer, SESSION_OTHER, reason);
	else
		peers_queue_drop(peer);
}

void peers_tell(struct peer *peer, bool up, const char *reason)
{
	struct peers *p = peer->p;
	(void)snprintf(peer->reason, sizeof(peer->reason), "%s", up ? "" : reason);
	if (up)
		log_debug(PEERS_LOG, "node %u: session is up", peer->number);
	else
		log_debug(PEERS_LOG, "node %u: no session: %s", peer->number, reason);
	if (p->settings.events.state && !p->closing)
		p->settings.events.state(p->settings.events.ctx, peer->number, up, reason);
}

/* ------------------------------------------------------------------------------------ messages */

void peers_on(struct peers *p, enum channel channel, peers_handler *handler, void *ctx)
{
	assert(channel > CHANNEL_SESSION && channel < CHANNEL_COUNT);
	p->handlers[channel].call = handler;
	p->handlers[channel].ctx = ctx;
}

int peers_send(struct peers *p, uint32_t to, enum channel channel, const void *bytes, size_t len)
{
	assert(channel > CHANNEL_SESSION && channel < CHANNEL_COUNT);
	struct peer *peer = peers_find(p, to);
	if (!peer || p->closing)
		return -ENOENT;
	int r = peers_queue_add(peer, channel, bytes, len);
	if (r < 0)
		return r;
	if (peer == p->self)
		(void)uv_idle_start(&p->deliver, peers_on_deliver);
	else
		peers_queue_dirty(peer);
	return 0;
}

size_t peers_message_max(enum channel channel)
{
	return peers_limits_up.message_max[channel];
}

/* ------------------------------------------------------------------------------------- queries */

bool peers_up(const struct peers *p, uint32_t number)
{
	const struct peer *peer = peers_find(p, number);
	return peer && (peer->session || peer == p->self);
}

uint32_t peers_rtt_us(const struct peers *p, uint32_t number)
{
	const struct peer *peer = peers_find(p, number);
	return peer && peer->session ? tls_conn_rtt_us(&peer->session->conn) : 0;
}

uint64_t peers_incarnation(const struct peers *p, uint32_t number)
{
	const struct peer *peer = peers_find(p, number);
	if (peer && peer == p->self)
		return p->settings.incarnation;
	return peer && peer->session ? peer->session->incarnation : 0;
}

const char *peers_reason(const struct peers *p, uint32_t number)
{
	const struct peer *peer = peers_find(p, number);
	return peer ? peer->reason : "node is unknown";
}

size_t peers_queued(const struct peers *p, uint32_t number, enum channel channel)
{
	assert(channel < CHANNEL_COUNT);
	const struct peer *peer = peers_find(p, number);
	return peer ? peer->queues[channel].bytes : 0;
}

void peers_stats(const struct peers *p, struct peers_stats *ret)
{
	*ret = p->stats;
	ret->up = p->counts[LIST_UP];
	ret->unfinished = p->counts[LIST_SILENT] + p->counts[LIST_TALKING] + p->counts[LIST_OTHERS];
}

uint16_t peers_port(const struct peers *p)
{
	return p->port;
}

/* NULL: not now. */
static struct logged *find_logged(struct peers *p, const union addr *remote, unsigned matter)
{
	char host[ADDR_TEXT];
	uint32_t hash = 2166136261u + matter; /* FNV-1a */
	for (const char *c = addr_show_host(remote, host); *c; c++)
		hash = (hash ^ (uint8_t)*c) * 16777619u;

	uint64_t now_ms = uv_now(p->loop);
	struct logged *found = &p->logged[0];
	for (size_t i = 0; i < PEERS_LOGGED; i++) {
		struct logged *l = &p->logged[i];
		if (l->hash == hash || l->until_ms < found->until_ms)
			found = l;
		if (l->hash == hash)
			break;
	}
	if (now_ms < found->until_ms) {
		/* Told already, or many addresses at once: they must not flood the log either. */
		found->hidden += found->hash == hash;
		return NULL;
	}
	if (found->hash != hash)
		*found = (struct logged){ .hash = hash };
	found->until_ms = now_ms + PEERS_LOG_MS;
	return found;
}

void peers_log(struct peers *p, const union addr *remote, unsigned matter, const char *fmt, ...)
{
	struct logged *l = find_logged(p, remote, matter);
	if (!l)
		return;
	_cleanup_(str_free) struct str line = { 0 };
	va_list args;
	va_start(args, fmt);
	str_vprintf(&line, fmt, args);
	va_end(args);
	if (l->hidden)
		str_printf(&line, " (and %u times more in the last minutes)", l->hidden);
	l->hidden = 0;
	log_warning(PEERS_LOG, "%s", str_text(&line));
}
