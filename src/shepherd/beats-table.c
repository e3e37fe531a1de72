/* SPDX-License-Identifier: Apache-2.0 */
#include "shepherd/beats-table.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <net/if.h>
#include <stdio.h>

struct beat_peer *beats_peer(struct beats *b, uint32_t number)
{
	unsigned low = 0, high = b->peer_count;
	while (low < high) {
		unsigned middle = (low + high) / 2;
		if (b->peers[middle].number < number)
			low = middle + 1;
		else
			high = middle;
	}
	return low < b->peer_count && b->peers[low].number == number ? &b->peers[low] : NULL;
}

void beats_table_free(struct beats *b)
{
	if (b->peers)
		explicit_bzero(b->peers, b->peer_count * sizeof(*b->peers));
	free(b->peers);
	if (b->table)
		explicit_bzero(b->table, b->table_len);
	free(b->table);
	b->peers = NULL;
	b->peer_count = 0;
	b->table = NULL;
	b->table_len = 0;
}

bool beat_address_equal(const union beat_address *a, const union beat_address *b)
{
	if (a->any.sa_family != b->any.sa_family)
		return false;
	if (a->any.sa_family == AF_INET)
		return a->v4.sin_port == b->v4.sin_port &&
		       a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
	return a->v6.sin6_port == b->v6.sin6_port &&
	       memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, 16) == 0 &&
	       (a->v6.sin6_scope_id == b->v6.sin6_scope_id ||
		!IN6_IS_ADDR_LINKLOCAL(&a->v6.sin6_addr));
}

const char *beat_address_show(const union beat_address *a, char buf[64])
{
	if (a->any.sa_family == AF_INET)
		return inet_ntop(AF_INET, &a->v4.sin_addr, buf, 64);
	(void)inet_ntop(AF_INET6, &a->v6.sin6_addr, buf, 64);
	size_t len = strlen(buf);
	if (a->v6.sin6_scope_id)
		snprintf(buf + len, 64 - len, "%%%u", a->v6.sin6_scope_id);
	return buf;
}

static int parse_path(const struct shepherd *s, const Copia__Shepherd__PeerPath *m,
		      union beat_address *ret, struct err *err)
{
	char text[64];
	uint32_t port = m->port ? m->port : s->set.port;
	*ret = (union beat_address){ 0 };
	if (port > UINT16_MAX)
		return err_set(err, -EINVAL, "port %u of %s is no port", port, m->address);
	if (inet_pton(AF_INET, m->address, &ret->v4.sin_addr) == 1) {
		ret->v4.sin_family = AF_INET;
		ret->v4.sin_port = htons((uint16_t)port);
		return 0;
	}
	size_t len = strcspn(m->address, "%");
	if (len < sizeof(text)) {
		memcpy(text, m->address, len);
		text[len] = '\0';
		ret->v6.sin6_family = AF_INET6;
		ret->v6.sin6_port = htons((uint16_t)port);
		if (inet_pton(AF_INET6, text, &ret->v6.sin6_addr) == 1) {
			if (m->address[len])
				ret->v6.sin6_scope_id = if_nametoindex(m->address + len + 1);
			return 0;
		}
	}
	return err_set(err, -EINVAL, "%s is not a numeric address", m->address);
}

static int parse_peer(const struct shepherd *s, const Copia__Shepherd__Peer *m,
		      struct beat_peer *ret, struct err *err)
{
	*ret = (struct beat_peer){ .number = m->number,
				   .key_epoch = m->key_epoch,
				   .previous_epoch = m->previous_epoch,
				   .grant = m->grant };
	if (m->number == 0 || m->key.len != PACKET_KEY_SIZE ||
	    (m->previous_key.len != 0 && m->previous_key.len != PACKET_KEY_SIZE))
		return err_set(err, -EINVAL, "peer %u: needs a number and keys of %d bytes",
			       m->number, PACKET_KEY_SIZE);
	if (m->n_paths > LIVENESS_PATHS_MAX)
		return err_set(err, -E2BIG, "peer %u: %zu paths, at most %d", m->number, m->n_paths,
			       LIVENESS_PATHS_MAX);
	memcpy(ret->key, m->key.data, PACKET_KEY_SIZE);
	ret->has_previous = m->previous_key.len > 0;
	if (ret->has_previous)
		memcpy(ret->previous_key, m->previous_key.data, PACKET_KEY_SIZE);
	for (size_t i = 0; i < m->n_paths; i++) {
		int r = parse_path(s, m->paths[i], &ret->paths[i], err);
		if (r < 0)
			return err_wrap(err, r, "peer %u", m->number);
	}
	ret->path_count = (unsigned)m->n_paths;
	return 0;
}

static int by_number(const void *a, const void *b)
{
	uint32_t x = ((const struct beat_peer *)a)->number;
	uint32_t y = ((const struct beat_peer *)b)->number;
	return (x > y) - (x < y);
}

static int parse_table(const struct shepherd *s, const Copia__Shepherd__Heartbeats *m,
		       struct beat_peer *peers, struct err *err)
{
	for (size_t i = 0; i < m->n_peers; i++) {
		int r = parse_peer(s, m->peers[i], &peers[i], err);
		if (r < 0)
			return r;
		if (peers[i].number == m->number)
			return err_set(err, -EINVAL, "node %u is its own peer", m->number);
	}
	qsort(peers, m->n_peers, sizeof(*peers), by_number);
	for (size_t i = 1; i < m->n_peers; i++)
		if (peers[i].number == peers[i - 1].number)
			return err_set(err, -EINVAL, "peer %u is named twice", peers[i].number);
	return 0;
}

/* What we know of a peer outlives a change of the table. */
static void carry_over(struct beats *b, struct beat_peer *p, const struct liveness_profile *profile,
		       uint64_t now_us)
{
	struct beat_peer *old = beats_peer(b, p->number);
	if (!old) {
		liveness_peer_init(&p->live, p->path_count, profile, now_us);
		return;
	}
	p->sequence = old->sequence;
	p->echo_us = old->echo_us;
	p->echo_at_us = old->echo_at_us;
	p->window = old->window;
	p->lease = old->lease;
	p->lease.stopped &= !p->grant;
	p->live = old->live;
	p->live.path_count = p->path_count;
	if (profile != b->profile && p->live.state != LIVENESS_SUSPECT)
		p->live.deadline_us = now_us + profile->dead_ms * 1000ULL;
	for (unsigned i = 0; i < p->path_count; i++) {
		p->live.paths[i] = (struct liveness_path){ 0 };
		for (unsigned k = 0; k < old->path_count; k++)
			if (beat_address_equal(&p->paths[i], &old->paths[k]))
				p->live.paths[i] = old->live.paths[k];
	}
}

static int choose_lease_times(struct shepherd *s, const Copia__Shepherd__Heartbeats *m,
			      const struct liveness_profile *p, struct err *err)
{
	const struct lease_times t = {
		m->lease_ms ? m->lease_ms : p->lease_ms,
		m->term_before_ms ? m->term_before_ms : p->term_before_ms,
		m->kill_before_ms ? m->kill_before_ms : p->kill_before_ms,
	};
	return leases_configure(s, &t, err);
}

static void keep_table(struct beats *b, const Copia__Shepherd__Heartbeats *m)
{
	b->table_len = copia__shepherd__heartbeats__get_packed_size(m);
	b->table = xmalloc(b->table_len + 1);
	(void)copia__shepherd__heartbeats__pack(m, b->table);
}

int beats_configure(struct shepherd *s, const Copia__Shepherd__Heartbeats *m, struct err *err)
{
	static_assert((int)COPIA__SHEPHERD__PROFILE__FAST == (int)LIVENESS_FAST &&
			  (int)COPIA__SHEPHERD__PROFILE__WAN == (int)LIVENESS_WAN,
		      "profiles of schema and cluster/liveness are the same");
	struct beats *b = s->beats;
	if (m->n_peers > PEERS_MAX)
		return err_set(err, -E2BIG, "%zu peers, at most %d", m->n_peers, PEERS_MAX);
	if ((unsigned)m->profile >= LIVENESS_PROFILE_COUNT)
		return err_set(err, -EINVAL, "profile %d is not known", (int)m->profile);
	const struct liveness_profile *profile = &liveness_profiles[m->profile];
	_cleanup_(free_p) struct beat_peer *peers = xcalloc(m->n_peers + 1, sizeof(*peers));
	int r = parse_table(s, m, peers, err);
	if (r == 0)
		r = choose_lease_times(s, m, profile, err);
	if (r < 0)
		return r;
	uint64_t now_us = clock_us();
	for (size_t i = 0; i < m->n_peers; i++)
		carry_over(b, &peers[i], profile, now_us);
	beats_table_free(b);
	b->peers = take_ptr(peers);
	b->peer_count = (unsigned)m->n_peers;
	b->own_lease.stopped &= b->number == m->number;
	b->number = m->number;
	b->profile = profile;
	b->changed = true;
	s->incarnation = MAX(s->incarnation, m->incarnation);
	uint64_t soon_us = now_us + profile->interval_ms * 1000ULL;
	b->tick_at_us = b->tick_at_us ? MIN(b->tick_at_us, soon_us) : now_us;
	keep_table(b, m);
	return 0;
}
