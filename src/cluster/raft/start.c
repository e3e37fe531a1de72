/* SPDX-License-Identifier: Apache-2.0 */
/* From what is on the disk to a follower in memory. */
#include "cluster/raft/core.h"
#include <assert.h>
#include <errno.h>

#define CORRUPT(...) err_set(err, -EINVAL, __VA_ARGS__)

static int check_snapshot(const struct raft_snapshot_meta *s, uint64_t term, struct err *err)
{
	if (s->index == 0)
		return s->term || s->config_index ? CORRUPT("start: snapshot without index") : 0;
	if (s->term == 0 || s->term > term || s->config_index > s->index ||
	    s->index >= RAFT_TERM_MAX)
		return CORRUPT("start: snapshot at %llu has term %llu",
			       (unsigned long long)s->index, (unsigned long long)s->term);
	int bad = config_check(&s->config, err);
	return bad ? err_wrap(err, -EINVAL, "start: snapshot") : 0;
}

static int check_entries(const struct raft_event *ev, struct err *err)
{
	const struct raft_entry *e = ev->start.entries;
	struct raft_config ignored;

	for (size_t i = 0; i < ev->start.count; i++) {
		if (e[i].index != e[0].index + i || e[i].index == 0 || e[i].term == 0 ||
		    e[i].term > ev->start.term || (i > 0 && e[i].term < e[i - 1].term))
			return CORRUPT("start: entry %zu of the log has index %llu, term %llu", i,
				       (unsigned long long)e[i].index,
				       (unsigned long long)e[i].term);
		if (e[i].len > RAFT_DATA_MAX || (e[i].len && !e[i].data) || e[i].type < RAFT_NOOP ||
		    e[i].type > RAFT_CONFIG)
			return CORRUPT("start: entry %llu is malformed",
				       (unsigned long long)e[i].index);
		if (e[i].type == RAFT_CONFIG &&
		    raft_config_decode(e[i].data, e[i].len, &ignored, err) < 0)
			return err_wrap(err, -EINVAL, "start: entry %llu",
					(unsigned long long)e[i].index);
	}
	if (ev->start.count && e[0].index > ev->start.snapshot.index + 1)
		return CORRUPT("start: entries %llu to %llu are missing between snapshot and log",
			       (unsigned long long)ev->start.snapshot.index + 1,
			       (unsigned long long)e[0].index - 1);
	return 0;
}

/* A crash between the snapshot of a leader and the deletion of the log it replaces leaves both on
 * the disk. The log is good only if it goes on from the snapshot's last entry. */
static bool log_fits_snapshot(const struct raft_event *ev)
{
	const struct raft_snapshot_meta *s = &ev->start.snapshot;
	const struct raft_entry *e = ev->start.entries;
	size_t count = ev->start.count;

	if (e[0].index == s->index + 1)
		return e[0].term >= s->term;
	return e[count - 1].index >= s->index && e[s->index - e[0].index].term == s->term;
}

static int load_log(struct raft *r, const struct raft_event *ev, struct err *err)
{
	const struct raft_snapshot_meta *s = &ev->start.snapshot;
	const struct raft_entry *e = ev->start.entries;
	size_t count = ev->start.count;

	log_init(&r->log, s->index, s->term);
	if (count == 0)
		return 0;
	if (!log_fits_snapshot(ev)) {
		output_reset(r, s->index, s->term);
		return 0;
	}
	/* The term before the first entry is not known, unless nothing is before it: then the
	 * first entry itself serves as the base. */
	if (e[0].index == 1) {
		log_init(&r->log, 0, 0);
	} else if (e[0].index <= s->index) {
		log_init(&r->log, e[0].index, e[0].term);
		e++;
		count--;
	}
	if (log_reserve(&r->log, count) < 0)
		return err_set(err, -ENOMEM, "start: out of memory");
	for (size_t i = 0; i < count; i++) {
		struct raft_entry copy = e[i];
		if (data_copy(e[i].data, e[i].len, &copy.data) < 0) {
			log_deinit(&r->log);
			return err_set(err, -ENOMEM, "start: out of memory");
		}
		log_append(&r->log, &copy, 0);
	}
	log_persisted(&r->log, 0);
	assert(r->log.durable == log_last(&r->log));
	return 0;
}

/* A sole voter waits for nobody. It still takes a new term: entries of the old one may have left
 * this node before they were on its disk. But where the entry that made it the sole voter may not
 * be committed, the leader that is leaving may still serve reads by the lease it got here. */
static void start_sole(struct raft *r)
{
	bool alone_for_sure = r->config_index <= MAX(r->commit, UINT64_C(1));

	if (!r->settings.lease || alone_for_sure)
		election_campaign(r, false);
	else
		r->deadline_ms = r->sticky_until_ms;
}

int start(struct raft *r, const struct raft_event *ev, struct err *err)
{
	if (r->started)
		return CORRUPT("start: it is running already");
	if (ev->start.term >= RAFT_TERM_MAX)
		return CORRUPT("start: term out of bounds");
	int bad = check_snapshot(&ev->start.snapshot, ev->start.term, err);
	if (bad == 0)
		bad = check_entries(ev, err);
	if (bad == 0)
		bad = load_log(r, ev, err);
	if (bad < 0)
		return bad;
	r->term = ev->start.term;
	r->vote = ev->start.vote;
	r->snapshots[0] = ev->start.snapshot;
	r->snapshot_count = 1;
	r->commit = r->told = r->verified = ev->start.snapshot.index;
	r->started = true;
	config_refresh(r);
	election_timer_reset(r);
	/* This node may have heard a leader just before it went down, and the leader may count on
	 * that for its lease. */
	r->sticky_until_ms = r->now_ms + (r->settings.lease ? r->settings.election_ms : 0);
	if (config_is_sole(&r->config, r->self))
		start_sole(r);
	return 0;
}
