/* SPDX-License-Identifier: Apache-2.0 */
/* Sending, receiving and judging heartbeats. The table of peers is in beats-table.c, reports to the
 * brain in beats-report.c. */
#include "shepherd/beats-table.h"

#include "cluster/lease.h"
#include "shepherd/packet.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ_MAX = 256 /* packets per socket and round: a flood cannot keep us from our ticks */ };

static void packet_ready(struct shepherd *s, struct watch *w, uint32_t events);

static int udp_open(struct shepherd *s, int family, struct err *err)
{
	struct sockaddr_in v4 = { .sin_family = AF_INET, .sin_port = htons(s->set.port) };
	struct sockaddr_in6 v6 = { .sin6_family = AF_INET6, .sin6_port = htons(s->set.port) };
	bool is_v4 = family == AF_INET;
	const char *bind_to = s->set.bind;
	if (bind_to[0] &&
	    inet_pton(family, bind_to, is_v4 ? (void *)&v4.sin_addr : &v6.sin6_addr) != 1)
		return -EAFNOSUPPORT; /* bound to the other family only */
	int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int one = 1, size = 1 << 20;
	if (fd >= 0 && !is_v4)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof(one));
	if (fd >= 0)
		(void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof(size));
	const struct sockaddr *at = is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
	if (fd >= 0 && bind(fd, at, is_v4 ? sizeof(v4) : sizeof(v6)) == 0)
		return fd;
	int code = -errno;
	close_p(&fd);
	return err_set(err, code, "UDP port %u%s%s: %s%s", s->set.port, bind_to[0] ? " of " : "",
		       bind_to, strerror(-code),
		       code == -EADDRINUSE ? "; another program uses it: choose one with --port"
					   : "");
}

static int socket_take(struct shepherd *s, int which, int family, int fd)
{
	struct beats *b = s->beats;
	struct err err = { 0 };
	if (fd < 0)
		fd = udp_open(s, family, &err);
	if (fd >= 0) {
		b->sockets[which].urgent = true;
		b->sockets[which].ready = packet_ready;
		int r = watch_add(s, &b->sockets[which], fd, EPOLLIN);
		if (r < 0)
			return r;
	}
	fact_add(s, which ? "heartbeat6" : "heartbeat4", fd >= 0,
		 "no heartbeats over this kind of address", "see the detail", "%s",
		 fd >= 0      ? "UDP socket open"
		 : err.msg[0] ? err.msg
			      : "not wanted: bound to an address of the other family");
	return fd;
}

int beats_open(struct shepherd *s, int udp4_fd, int udp6_fd, struct err *err)
{
	struct beats *b = s->beats = xcalloc(1, sizeof(*b));
	b->sockets[0].fd = b->sockets[1].fd = -1;
	b->profile = &liveness_profiles[LIVENESS_LAN];
	int v4 = socket_take(s, 0, AF_INET, udp4_fd);
	int v6 = socket_take(s, 1, AF_INET6, udp6_fd);
	if (v4 >= 0 || v6 >= 0)
		return 0;
	return err_set(err, v4 == -EAFNOSUPPORT ? v6 : v4, "%s",
		       s->facts[s->fact_count - (v4 == -EAFNOSUPPORT ? 1 : 2)].detail);
}

void beats_close(struct shepherd *s)
{
	struct beats *b = s->beats;
	for (int i = 0; i < 2; i++) {
		int fd = b->sockets[i].fd;
		watch_drop(s, &b->sockets[i]);
		close_p(&fd);
	}
	beats_table_free(b);
	free(b);
	s->beats = NULL;
}

static void write_grant(struct shepherd *s, struct beat_peer *p, struct packet *k)
{
	const struct lease_granter *g = leases_granter(s);
	if (!p->grant || p->lease.stopped || p->lease.sent_us == 0 ||
	    !lease_granter_active(g, s->now_us))
		return;
	k->grant_ms = leases_times(s)->lease_ms;
	k->grant_term = g->term;
	k->grant_sent_us = p->lease.sent_us;
}

static void send_to_peer(struct shepherd *s, struct beat_peer *p)
{
	struct beats *b = s->beats;
	uint8_t bytes[PACKET_SIZE];
	for (unsigned i = 0; i < p->path_count; i++) {
		int fd = b->sockets[p->paths[i].any.sa_family == AF_INET6].fd;
		if (fd < 0)
			continue;
		uint64_t now_us = clock_us();
		struct packet k = {
			.sender = b->number,
			.receiver = p->number,
			.key_epoch = p->key_epoch,
			.incarnation = s->incarnation,
			.receiver_incarnation = p->window.incarnation,
			.sequence = ++p->sequence,
			.sent_us = now_us,
			.echo_us = p->echo_us,
			.echo_delay_us = p->echo_us ? now_us - p->echo_at_us : 0,
		};
		write_grant(s, p, &k);
		packet_write(&k, p->key, bytes);
		/* What cannot be sent is as good as lost on the way. */
		(void)sendto(fd, bytes, sizeof(bytes), MSG_DONTWAIT | MSG_NOSIGNAL,
			     &p->paths[i].any,
			     p->paths[i].any.sa_family == AF_INET6 ? sizeof(p->paths[i].v6)
								   : sizeof(p->paths[i].v4));
	}
}

static unsigned path_of(const struct beat_peer *p, const union beat_address *from)
{
	for (unsigned i = 0; i < p->path_count; i++)
		if (beat_address_equal(&p->paths[i], from))
			return i;
	return UINT_MAX;
}

/* A packet that the peer sent to this very life of ours. */
static void believe(struct shepherd *s, struct beat_peer *p, const struct packet *k, unsigned path)
{
	struct beats *b = s->beats;
	uint32_t rtt_us = 0;
	uint64_t trip_us = s->now_us - k->echo_us - k->echo_delay_us;
	if (k->echo_us > 0 && k->echo_us + k->echo_delay_us <= s->now_us && trip_us < 60000000)
		rtt_us = (uint32_t)MAX(trip_us, (uint64_t)1);
	if (liveness_heard(&p->live, path, rtt_us, b->profile, s->now_us))
		b->changed = true;
	if (k->grant_ms > 0)
		leases_granted(s, k->grant_term, k->grant_sent_us, k->grant_ms);
	if (p->grant)
		(void)lease_granter_grant(leases_granter(s), &p->lease, k->sent_us,
					  leases_times(s)->lease_ms, s->now_us);
}

static const uint8_t *key_of(const struct beat_peer *p, uint32_t epoch)
{
	if (epoch == p->key_epoch)
		return p->key;
	return p->has_previous && epoch == p->previous_epoch ? p->previous_key : NULL;
}

static void packet_take(struct shepherd *s, const uint8_t *at, size_t len,
			const union beat_address *from)
{
	struct beats *b = s->beats;
	struct packet k;
	if (!packet_read(at, len, &k)) {
		b->malformed++;
		return;
	}
	struct beat_peer *p = k.receiver == b->number ? beats_peer(b, k.sender) : NULL;
	if (!p) {
		b->bad_sender++;
		return;
	}
	const uint8_t *key = key_of(p, k.key_epoch);
	if (!key || !packet_is_authentic(at, key)) {
		b->bad_mac++;
		return;
	}
	if (!liveness_window_take(&p->window, k.incarnation, k.sequence)) {
		b->replayed++;
		return;
	}
	/* Echoed in any case: by this the peer learns to name our incarnation. */
	if (k.sequence == p->window.newest) {
		p->echo_us = k.sent_us;
		p->echo_at_us = s->now_us;
	}
	if (k.receiver_incarnation != s->incarnation)
		b->stale++;
	else
		believe(s, p, &k, path_of(p, from));
}

static void packet_ready(struct shepherd *s, struct watch *w, uint32_t events)
{
	uint8_t bytes[PACKET_SIZE + 1]; /* one more: too long is seen */
	union beat_address from;
	for (int i = 0; i < READ_MAX; i++) {
		socklen_t from_len = sizeof(from);
		ssize_t n =
		    recvfrom(w->fd, bytes, sizeof(bytes), MSG_DONTWAIT, &from.any, &from_len);
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return;
		/* Others are answers of ICMP to what we sent: they tell nothing that silence does
		 * not tell. */
		if (n >= 0)
			packet_take(s, bytes, (size_t)n, &from);
	}
}

static void suspect_tell(struct shepherd *s, const struct beat_peer *p)
{
	Copia__Shepherd__Suspect m = COPIA__SHEPHERD__SUSPECT__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	m.number = p->number;
	m.silent_us = p->live.heard_us ? s->now_us - p->live.heard_us : 0;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_SUSPECT;
	e.suspect = &m;
	event_send(s, &e, NULL, 0);
}

static void late_tell(struct shepherd *s, uint64_t late_us)
{
	Copia__Shepherd__Late m = COPIA__SHEPHERD__LATE__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	m.late_us = late_us;
	m.now_us = s->now_us;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_LATE;
	e.late = &m;
	event_send(s, &e, NULL, 0);
}

/* A leader holds a lease of itself, by the same rules but without the network. */
static void grant_own(struct shepherd *s)
{
	struct beats *b = s->beats;
	if (lease_granter_grant(leases_granter(s), &b->own_lease, s->now_us,
				leases_times(s)->lease_ms, s->now_us))
		leases_granted(s, leases_granter(s)->term, s->now_us, leases_times(s)->lease_ms);
}

void beats_tick(struct shepherd *s)
{
	struct beats *b = s->beats;
	uint64_t late_us = liveness_lateness(b->profile, b->tick_at_us, s->now_us);
	uint64_t interval_us = b->profile->interval_ms * 1000ULL;
	b->tick_at_us += interval_us;
	if (b->tick_at_us <= s->now_us)
		b->tick_at_us = s->now_us + interval_us;
	grant_own(s);
	for (unsigned i = 0; i < b->peer_count; i++) {
		struct beat_peer *p = &b->peers[i];
		send_to_peer(s, p);
		int r = liveness_tick(&p->live, b->profile, late_us, s->now_us);
		if (r == 1)
			suspect_tell(s, p);
		b->changed |= r != 0;
	}
	if (late_us > 0)
		late_tell(s, late_us);
	if (b->peer_count > 0 && (b->changed || s->now_us >= b->report_at_us))
		beats_report(s);
}

uint64_t beats_next_us(const struct shepherd *s)
{
	return s->beats->number ? s->beats->tick_at_us : UINT64_MAX;
}

int beats_grant_stop(struct shepherd *s, uint32_t number, uint64_t *ret_end_us, struct err *err)
{
	struct beats *b = s->beats;
	struct beat_peer *p = beats_peer(b, number);
	struct lease_grant *lease = number == b->number ? &b->own_lease : p ? &p->lease : NULL;
	if (!lease)
		return err_set(err, -ENOENT, "node number %u is not in the table of heartbeats",
			       number);
	*ret_end_us = lease_granter_stop(lease);
	return 0;
}
