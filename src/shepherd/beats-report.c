/* SPDX-License-Identifier: Apache-2.0 */
/* What the brain, and the next program, are told of the peers. */
#include "shepherd/beats-table.h"

#include <errno.h>

/* Everything that one report is made of, in as few pieces as there are kinds. */
struct report {
	Copia__Shepherd__PeerState *peers, **peer_list;
	Copia__Shepherd__PathState *paths, **path_list;
	char (*texts)[64];
};

static void report_peer(struct beats *b, unsigned i, unsigned first_path, struct report *r)
{
	const struct beat_peer *p = &b->peers[i];
	Copia__Shepherd__PeerState *m = &r->peers[i];
	copia__shepherd__peer_state__init(m);
	r->peer_list[i] = m;
	m->number = p->number;
	m->heard = p->live.state != LIVENESS_NEW && p->live.heard_us > 0;
	m->suspect = p->live.state == LIVENESS_SUSPECT;
	m->heard_us = p->live.heard_us;
	m->rtt_us = p->live.rtt_us;
	m->loss_permille = liveness_window_loss_permille(&p->window);
	m->incarnation = p->window.incarnation;
	m->lease_end_us = p->lease.end_us;
	m->n_paths = p->path_count;
	m->paths = &r->path_list[first_path];
	for (unsigned k = 0; k < p->path_count; k++) {
		Copia__Shepherd__PathState *path = &r->paths[first_path + k];
		copia__shepherd__path_state__init(path);
		r->path_list[first_path + k] = path;
		path->address = (char *)beat_address_show(&p->paths[k], r->texts[first_path + k]);
		path->up = p->live.paths[k].up;
		path->heard_us = p->live.paths[k].heard_us;
	}
}

void beats_report(struct shepherd *s)
{
	struct beats *b = s->beats;
	b->report_at_us = s->now_us + REPORT_US;
	/* A brain that does not read gets the news later, all at once. */
	if (!s->brain.link || fdlink_queued(s->brain.link) > 0)
		return;
	unsigned path_count = 0;
	for (unsigned i = 0; i < b->peer_count; i++)
		path_count += b->peers[i].path_count;
	struct report r = {
		.peers = xcalloc(b->peer_count + 1, sizeof(*r.peers)),
		.peer_list = xcalloc(b->peer_count + 1, sizeof(*r.peer_list)),
		.paths = xcalloc(path_count + 1, sizeof(*r.paths)),
		.path_list = xcalloc(path_count + 1, sizeof(*r.path_list)),
		.texts = xcalloc(path_count + 1, sizeof(*r.texts)),
	};
	for (unsigned i = 0, at = 0; i < b->peer_count; at += b->peers[i++].path_count)
		report_peer(b, i, at, &r);
	Copia__Shepherd__HeartbeatReport m = COPIA__SHEPHERD__HEARTBEAT_REPORT__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	m.n_peers = b->peer_count;
	m.peers = r.peer_list;
	m.now_us = s->now_us;
	m.bad_sender = b->bad_sender;
	m.bad_mac = b->bad_mac;
	m.replayed = b->replayed;
	m.malformed = b->malformed;
	m.stale = b->stale;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_HEARTBEATS;
	e.heartbeats = &m;
	event_send(s, &e, NULL, 0);
	b->changed = false;
	free(r.peers);
	free(r.peer_list);
	free(r.paths);
	free(r.path_list);
	free(r.texts);
}

void beats_handover(struct shepherd *s, Copia__Shepherd__Handover *h)
{
	struct beats *b = s->beats;
	h->udp4_fd = b->sockets[0].fd;
	h->udp6_fd = b->sockets[1].fd;
	h->n_peers = b->peer_count;
	h->peers = xcalloc(b->peer_count + 1, sizeof(*h->peers));
	for (unsigned i = 0; i < b->peer_count; i++) {
		const struct beat_peer *p = &b->peers[i];
		Copia__Shepherd__HandoverPeer *m = h->peers[i] = xmalloc(sizeof(*m));
		copia__shepherd__handover_peer__init(m);
		m->number = p->number;
		m->incarnation = p->window.incarnation;
		m->sequence_sent = p->sequence;
		m->sequence_seen = p->window.newest;
		m->sequence_window = p->window.seen;
		m->lease_end_us = p->lease.end_us;
		m->grant_stopped = p->lease.stopped;
	}
	if (b->table)
		h->heartbeats = copia__shepherd__heartbeats__unpack(NULL, b->table_len, b->table);
}

int beats_takeover(struct shepherd *s, const Copia__Shepherd__Handover *h, struct err *err)
{
	struct beats *b = s->beats;
	int r = h->heartbeats ? beats_configure(s, h->heartbeats, err) : 0;
	for (size_t i = 0; r == 0 && i < h->n_peers; i++) {
		const Copia__Shepherd__HandoverPeer *m = h->peers[i];
		struct beat_peer *p = beats_peer(b, m->number);
		if (!p)
			continue;
		p->sequence = m->sequence_sent;
		p->window = (struct liveness_window){ m->incarnation, m->sequence_seen,
						      m->sequence_window, m->sequence_seen };
		p->lease.end_us = m->lease_end_us;
		p->lease.stopped = m->grant_stopped;
	}
	if (h->lease)
		b->own_lease.end_us = h->lease->until_us;
	return r;
}
