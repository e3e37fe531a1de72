/* SPDX-License-Identifier: Apache-2.0 */
/* The core: events in, updates out. */
#include "node/agreement/agree-impl.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* A piece of an own snapshot on its way from the disk to a peer. */
struct chunk_read {
	struct chunk_read *next;
	struct agreement *a;
	struct raft_message message;
};

uint64_t agree_clock_ms(void)
{
	return uv_hrtime() / 1000000;
}

/* ---- updates ---- */

static void do_write(struct agreement *a, const struct raft_write *w)
{
	if (!w->number)
		return;
	struct store_entry few[64], *e = few;
	if (w->count > ARRAY_LEN(few))
		e = xcalloc(w->count, sizeof(*e));
	for (size_t i = 0; i < w->count; i++)
		e[i] = (struct store_entry){ .index = w->entries[i].index,
					     .term = w->entries[i].term,
					     .type = w->entries[i].type,
					     .len = w->entries[i].len,
					     .data = w->entries[i].data };
	struct store_write out = { .has_state = w->has_state,
				   .term = w->term,
				   .vote = w->vote,
				   .truncate_from = w->truncate_from,
				   .entries = e,
				   .count = w->count };
	store_write(a->store, w->number, &out);
	a->submitted = w->number;
	if (e != few)
		free(e);
}

static void chunk_unlink(struct chunk_read *c)
{
	struct chunk_read **at = &c->a->chunk_reads;
	while (*at != c)
		at = &(*at)->next;
	*at = c->next;
}

static void on_chunk_read(void *ctx, int r, struct span bytes)
{
	struct chunk_read *c = ctx;
	chunk_unlink(c);
	/* What cannot be read is not sent: the snapshot was replaced, or the core asks again. */
	if (r == 0 && bytes.len == c->message.chunk.len) {
		c->message.chunk.data = bytes.at;
		agree_send_raft(c->a, &c->message);
	}
	free(c);
}

static void do_message(struct agreement *a, const struct raft_message *m)
{
	if (m->type != RAFT_MSG_SNAPSHOT || m->chunk.len == 0) {
		agree_send_raft(a, m);
		return;
	}
	struct chunk_read *c = xcalloc(1, sizeof(*c));
	c->a = a;
	c->message = *m;
	c->next = a->chunk_reads;
	a->chunk_reads = c;
	store_read(a->store, m->chunk.snapshot.index, m->chunk.offset, m->chunk.len, on_chunk_read,
		   c);
}

static void do_chunk(struct agreement *a, const struct raft_update *up)
{
	if (!up->chunk.present)
		return;
	struct str meta = { 0 };
	agree_meta_pack(&up->chunk.snapshot, &meta);
	struct store_snapshot s = { .index = up->chunk.snapshot.index,
				    .term = up->chunk.snapshot.term,
				    .size_bytes = up->chunk.snapshot.size_bytes,
				    .meta = { (uint8_t *)meta.at, meta.len } };
	store_snapshot_piece(a->store, &s, up->chunk.first, up->chunk.last, up->chunk.offset,
			     (struct span){ up->chunk.data, up->chunk.len });
	str_free(&meta);
}

static void arm_timer(struct agreement *a, uint64_t deadline_ms)
{
	uint64_t now = agree_clock_ms();
	uv_update_time(a->s.loop);
	uv_timer_start(&a->timer, agree_on_timer, deadline_ms > now ? deadline_ms - now : 0, 0);
}

static void do_update(struct agreement *a, const struct raft_update *up)
{
	/* The write first: the thread syncs while the messages are made. */
	do_write(a, &up->write);
	for (size_t i = 0; i < up->message_count; i++)
		do_message(a, &up->messages[i]);
	do_chunk(a, up);
	for (size_t i = 0; i < up->read_count; i++)
		agree_on_core_read(a, &up->reads[i]);
	if (up->commit_index > a->commit) {
		a->commit = up->commit_index;
		a->full = false;
		agree_wake(a);
	}
	if (up->state_changed) {
		if (up->state != RAFT_LEADER)
			agree_lead_end(a);
		agree_wake(a);
	}
	if (up->config_changed) {
		a->voters_dirty = true;
		agree_wake(a);
	}
	arm_timer(a, up->deadline_ms);
}

int agree_step(struct agreement *a, struct raft_event *ev, struct raft_update *ret, struct err *err)
{
	struct raft_update up;
	assert(a->core);
	ev->now_ms = agree_clock_ms();
	int r = raft_step(a->core, ev, &up, err);
	if (r == 0)
		do_update(a, &up);
	if (ret)
		*ret = up;
	return r;
}

void agree_on_timer(uv_timer_t *timer)
{
	struct agreement *a = CONTAINER(timer, struct agreement, timer);
	struct raft_event ev = { .type = RAFT_TICK };
	if (a->core)
		(void)agree_step(a, &ev, NULL, NULL);
	/* Commands that the core did not take just then are tried again. */
	if (a->pending_end > a->pending_head)
		agree_wake(a);
}

/* ---- the store's events ---- */

static void on_written(void *ctx, uint64_t number)
{
	struct agreement *a = ctx;
	struct raft_event ev = { .type = RAFT_PERSISTED, .persisted = number };
	a->written = number;
	int r = agree_step(a, &ev, NULL, NULL);
	assert(r == 0);
	agree_wake(a); /* the next batch has waited for this */
}

static void drop_snapshots(struct agreement *a)
{
	uint64_t latest = raft_snapshot(a->core)->index;
	unsigned kept = 0;
	for (unsigned i = 0; i < a->snapshot_count; i++)
		if (a->snapshots[i] == latest || raft_snapshot_needed(a->core, a->snapshots[i]))
			a->snapshots[kept++] = a->snapshots[i];
	a->snapshot_count = kept;
	if (kept)
		store_compact(a->store, raft_first_index(a->core), a->snapshots, kept);
}

static void add_snapshot(struct agreement *a, uint64_t index)
{
	if (a->snapshot_count && a->snapshots[a->snapshot_count - 1] == index)
		return;
	if (a->snapshot_count == STORE_KEEP_MAX)
		memmove(a->snapshots, a->snapshots + 1,
			--a->snapshot_count * sizeof(*a->snapshots));
	a->snapshots[a->snapshot_count++] = index;
}

static void on_saved(void *ctx, uint64_t index)
{
	struct agreement *a = ctx;
	assert(a->saving && index == a->saving_index);
	struct raft_event ev = { .type = RAFT_SNAPSHOT_TAKEN,
				 .taken = { .index = index,
					    .size_bytes = a->saving_bytes,
					    .keep = a->s.keep_entries } };
	a->saving = false;
	add_snapshot(a, index);
	(void)agree_step(a, &ev, NULL, NULL);
	drop_snapshots(a);
}

static void on_received(void *ctx, uint64_t index, int r, struct span bytes, const char *why)
{
	struct agreement *a = ctx;
	struct err err = { 0 };
	struct raft_event ev = { .type = RAFT_SNAPSHOT_INSTALLED,
				 .installed = { .index = index, .failed = r < 0 } };
	if (r == 0) {
		r = agree_load(a, bytes, index, 0, &err);
		if (r < 0) {
			/* The leader understands what we do not: an older version. */
			a->stop = err;
			agree_wake(a);
			return;
		}
		add_snapshot(a, index);
	} else {
		log_debug("agree", "%s", why);
	}
	(void)agree_step(a, &ev, NULL, NULL);
	drop_snapshots(a);
	agree_wake(a);
}

static void on_trouble(void *ctx, int code, const char *text)
{
	struct agreement *a = ctx;
	char all[AGREE_TEXT_MAX];
	a->trouble = code;
	a->trouble_ms = agree_clock_ms();
	a->trouble_transfer = false;
	a->mute = false;
	agree_wake(a);
	if (!code) {
		agree_set_health(a, NULL);
		return;
	}
	if (code == -EUCLEAN) {
		err_set(&a->stop, code, "%s", text);
		return;
	}
	(void)snprintf(all, sizeof(all),
		       "the log of this node cannot be written: %.300s. Nothing acknowledged is "
		       "lost; make space or repair the disk, then it goes on by itself",
		       text);
	agree_set_health(a, all);
}

bool agree_only_voter(const struct agreement *a)
{
	const struct raft_config *c = raft_config(a->core, NULL);
	for (unsigned i = 0; i < c->count; i++)
		if (c->servers[i].id != a->s.self &&
		    (c->servers[i].roles & (RAFT_VOTER | RAFT_VOTER_OLD)))
			return false;
	return true;
}

/* A leader that cannot write hands over; if that does not work within two election times it goes
 * silent, which is safe at any time, and the others elect one of them. */
void agree_watch_store(struct agreement *a)
{
	if (!a->trouble || !a->core || !agree_leads(a) || agree_only_voter(a))
		return;
	struct raft_event ev = { .type = RAFT_TRANSFER };
	unsigned election_ms = raft_profile(a->s.profile).election_ms;
	if (!a->trouble_transfer) {
		a->trouble_transfer = true;
		(void)agree_step(a, &ev, NULL, NULL);
	} else if (!a->mute && agree_clock_ms() - a->trouble_ms > 2 * election_ms) {
		a->mute = true;
		log_warning("agree", "leadership given up: %s", a->health);
	}
}

/* ---- opening ---- */

static int start_core(struct agreement *a, const struct store_content *c, struct err *err)
{
	struct raft_settings settings = raft_profile(a->s.profile);
	struct raft_event ev = { .type = RAFT_START,
				 .start = { .term = c->term, .vote = c->vote, .count = c->count } };
	settings.lease = true;
	int r = raft_new(&a->core, a->s.self, &settings, &a->rng, err);
	if (r == 0 && c->snapshot.index) {
		r = agree_meta_unpack(c->snapshot.meta, &ev.start.snapshot, err);
		ev.start.snapshot.size_bytes = c->snapshot.size_bytes;
	}
	if (r < 0)
		return r;
	struct raft_entry *e = xcalloc(c->count + 1, sizeof(*e));
	for (size_t i = 0; i < c->count; i++)
		e[i] = (struct raft_entry){ .index = c->entries[i].index,
					    .term = c->entries[i].term,
					    .type = (enum raft_entry_type)c->entries[i].type,
					    .len = c->entries[i].len,
					    .data = c->entries[i].data };
	ev.start.entries = e;
	r = agree_step(a, &ev, NULL, err);
	free(e);
	return r < 0 ? err_wrap(err, r, "log in %s", a->s.dir) : 0;
}

int agree_core_open(struct agreement *a, struct err *err)
{
	struct store_identity who = { .cluster = a->s.cluster, .node = a->s.self };
	struct store_events events = { .ctx = a,
				       .written = on_written,
				       .saved = on_saved,
				       .received = on_received,
				       .trouble = on_trouble };
	struct store_content c = { 0 };
	int r = store_exists(a->s.dir) ? 0 : store_create(a->s.dir, &who, NULL, err);
	if (r == 0)
		r = store_open(&a->store, a->s.loop, a->s.dir, &who, &events, &c, err);
	if (r < 0)
		return r;
	a->commit = c.snapshot.index;
	a->submitted = a->written = 0;
	a->snapshot_count = 0;
	if (c.snapshot.index)
		add_snapshot(a, c.snapshot.index);
	struct span bytes = { (uint8_t *)c.bytes.at, c.bytes.len };
	r = agree_load(a, bytes, c.snapshot.index, c.snapshot.term, err);
	if (r == 0)
		r = start_core(a, &c, err);
	store_content_free(&c);
	if (r < 0)
		agree_core_close(a);
	return r;
}

void agree_core_close(struct agreement *a)
{
	agree_lead_end(a);
	uv_timer_stop(&a->timer);
	a->store = store_close(a->store);
	a->core = raft_free(a->core);
	a->saving = false;
	a->trouble = 0;
	a->mute = false;
	a->full = false;
	for (struct chunk_read *c = a->chunk_reads, *next; c; c = next) {
		next = c->next;
		free(c);
	}
	a->chunk_reads = NULL;
}
