/* SPDX-License-Identifier: Apache-2.0 */
/* Committed entries to the owner of the state; snapshots of the state. */
#include "node/agreement/agree-impl.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

static void apply_new(struct agreement *a, const struct dedup_key *key,
		      const Copia__AgreeCommand *m, struct dedup_result *ret, struct str *result,
		      struct err *err)
{
	struct agree_command c = { .index = a->applied + 1,
				   .term = a->applied_term,
				   .now_ms = a->now_ms,
				   .node = key->node,
				   .bytes = { m->body.data, m->body.len } };
	str_clear(result);
	*err = (struct err){ 0 };
	int code = a->events.apply(a->events.ctx, &c, result, err);
	assert(code <= 0 && result->len <= AGREE_RESULT_MAX);
	*ret = (struct dedup_result){ .code = code,
				      .index = c.index,
				      .bytes = { (uint8_t *)result->at, result->len },
				      .text = code < 0 ? err->msg : "" };
	dedup_record(a->dedup, key, ret);
}

static void apply_command(struct agreement *a, const Copia__AgreeCommand *m, struct str *result)
{
	struct dedup_key key = { m->node, m->epoch, m->sequence };
	struct dedup_result r;
	struct err err;
	bool own = key.node == a->s.self && key.epoch == a->s.epoch;
	bool leads = agree_leads(a);
	switch (dedup_check(a->dedup, &key, m->low, &r)) {
	case DEDUP_NEW:
		apply_new(a, &key, m, &r, result, &err);
		break;
	case DEDUP_KNOWN:
		if (r.dropped)
			r.text = "it was done; what it answered is no longer kept";
		break;
	case DEDUP_STALE:
		return; /* nobody waits for it */
	case DEDUP_FAR:
		r = (struct dedup_result){ .code = -EPROTO,
					   .text = "the number of the command is out of order" };
		if (leads && !own)
			agree_answer(a, &key, true, &r);
		return;
	}
	/* Before the owner's own waiters: they may propose again at once. */
	if (own)
		agree_outcome(a, key.sequence, AGREE_APPLIED, &r);
	else if (leads)
		agree_answer(a, &key, false, &r);
}

static void apply_batch(struct agreement *a, const struct raft_entry *e, struct str *result)
{
	Copia__AgreeBatch *m = copia__agree_batch__unpack(NULL, e->len, e->data);
	if (!m) {
		/* Checksums and TLS say that this is what the leader made; all nodes skip it. */
		log_error("agree", "entry %" PRIu64 " is not understood and was skipped", e->index);
		return;
	}
	a->now_ms = MAX(a->now_ms, m->now_ms);
	for (size_t i = 0; i < m->n_commands; i++)
		apply_command(a, m->commands[i], result);
	copia__agree_batch__free_unpacked(m, NULL);
}

bool agree_apply(struct agreement *a)
{
	uint64_t from = uv_hrtime(), before = a->applied;
	struct str result = { 0 };
	bool all = true;
	while (a->core && !a->stop.code && a->applied < a->commit) {
		if (uv_hrtime() - from > AGREE_APPLY_SLICE_US * UINT64_C(1000)) {
			all = false;
			break;
		}
		const struct raft_entry *e = raft_entry(a->core, a->applied + 1);
		assert(e && e->index == a->applied + 1);
		a->applied_term = e->term;
		a->since_entries++;
		a->since_bytes += e->len;
		if (e->type == RAFT_COMMAND)
			apply_batch(a, e, &result);
		a->applied++;
	}
	str_free(&result);
	if (a->applied == before)
		return all;
	agree_answers_send(a);
	if (a->events.settled)
		a->events.settled(a->events.ctx, a->applied, a->now_ms);
	return all;
}

/* ---- snapshots of the state ---- */

int agree_load(struct agreement *a, struct span snapshot, uint64_t index, uint64_t term,
	       struct err *err)
{
	Copia__AgreeSnapshot *m = copia__agree_snapshot__unpack(NULL, snapshot.len, snapshot.at);
	struct dedup *dedup = NULL;
	if (!m)
		return err_set(err, -EBADMSG, "the snapshot at %" PRIu64 " is damaged", index);
	struct span proposers = { m->proposers.data, m->proposers.len };
	struct span state = { m->state.data, m->state.len };
	int r = dedup_load(&dedup, proposers, err);
	if (r == 0)
		r = a->events.load(a->events.ctx, state, err);
	if (r == 0) {
		dedup_free(a->dedup);
		a->dedup = dedup;
		a->now_ms = m->now_ms;
		a->applied = index;
		a->applied_term = term;
		a->commit = MAX(a->commit, index);
		a->since_entries = a->since_bytes = 0;
	} else {
		dedup_free(dedup);
		err_wrap(err, r, "load the snapshot at %" PRIu64, index);
	}
	copia__agree_snapshot__free_unpacked(m, NULL);
	return r;
}

void agree_snapshot(struct agreement *a)
{
	if (!a->core || a->saving || a->trouble || a->applied <= raft_snapshot(a->core)->index ||
	    (a->since_entries < a->s.snapshot_entries && a->since_bytes < AGREE_SNAPSHOT_BYTES))
		return;
	struct raft_snapshot_meta meta;
	if (raft_snapshot_meta(a->core, a->applied, &meta) < 0)
		return;
	struct str state = { 0 }, proposers = { 0 }, all = { 0 }, packed = { 0 };
	Copia__AgreeSnapshot m = COPIA__AGREE_SNAPSHOT__INIT;
	a->events.save(a->events.ctx, &state);
	dedup_save(a->dedup, &proposers);
	m.now_ms = a->now_ms;
	m.state = (ProtobufCBinaryData){ state.len, (uint8_t *)state.at };
	m.proposers = (ProtobufCBinaryData){ proposers.len, (uint8_t *)proposers.at };
	agree_pack(&m.base, &all);
	str_free(&state);
	str_free(&proposers);
	meta.size_bytes = all.len;
	agree_meta_pack(&meta, &packed);
	struct store_snapshot s = { .index = meta.index,
				    .term = meta.term,
				    .size_bytes = all.len,
				    .meta = { (uint8_t *)packed.at, packed.len } };
	a->saving = true;
	a->saving_index = meta.index;
	a->saving_bytes = all.len;
	a->since_entries = a->since_bytes = 0;
	log_debug("agree", "snapshot at %" PRIu64 " of %zu bytes", meta.index, all.len);
	store_snapshot_save(a->store, &s, &all);
	str_free(&packed);
}
