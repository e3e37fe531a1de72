/* SPDX-License-Identifier: Apache-2.0 */
/* The interface of agree.h, and the turn of the loop in which everything is done. */
#include "node/agreement/agree-impl.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

/* ---- who leads ---- */

bool agree_leads(const struct agreement *a)
{
	return a->core && raft_state(a->core) == RAFT_LEADER;
}

bool agree_ready(const struct agreement *a)
{
	return agree_leads(a) && a->applied_term == raft_term(a->core);
}

uint32_t agree_known_leader(const struct agreement *a)
{
	return a->core && raft_leader(a->core) ? (uint32_t)raft_leader(a->core) : a->hint;
}

static enum agree_role role_of(const struct agreement *a)
{
	if (!a->core)
		return AGREE_AGENT;
	unsigned roles = raft_config_roles(raft_config(a->core, NULL), a->s.self);
	return agree_leads(a)         ? AGREE_LEADER
	       : roles & RAFT_VOTER   ? AGREE_VOTER
	       : roles & RAFT_LEARNER ? AGREE_LEARNER
				      : AGREE_WAITING;
}

/* ---- the turn ---- */

static void on_idle(uv_idle_t *idle)
{
}

void agree_wake(struct agreement *a)
{
	if (!a->closing)
		uv_idle_start(&a->idle, on_idle);
}

void agree_set_health(struct agreement *a, const char *text)
{
	(void)snprintf(a->health, sizeof(a->health), "%s", text ? text : "");
	a->health_dirty = true;
	agree_wake(a);
}

static void tell_leader(struct agreement *a)
{
	uint32_t leader = agree_known_leader(a);
	uint64_t term = a->core ? raft_term(a->core) : a->hint_term;
	bool ready = agree_ready(a);
	if (a->told_anything && leader == a->told_leader && term == a->told_term &&
	    ready == a->told_ready)
		return;
	bool other = leader != a->told_leader || term != a->told_term;
	a->told_anything = true;
	a->told_leader = leader;
	a->told_term = term;
	a->told_ready = ready;
	if (other) {
		a->asked_leader_ms = 0;
		agree_resend_all(a);
	}
	if (a->events.leader_changed)
		a->events.leader_changed(a->events.ctx, leader, term, ready);
}

static void tell_voters(struct agreement *a)
{
	if (!a->voters_dirty)
		return;
	a->voters_dirty = false;
	if (a->events.voters_changed)
		a->events.voters_changed(a->events.ctx);
}

static void tell_health(struct agreement *a)
{
	if (!a->health_dirty)
		return;
	a->health_dirty = false;
	if (a->events.health)
		a->events.health(a->events.ctx, a->health[0] ? a->health : NULL);
}

/* The log here cannot be used any more: go on as an agent, which still can forward. */
static void stop_serving(struct agreement *a)
{
	agree_set_health(a, a->stop.msg);
	agree_core_close(a);
	a->stop = (struct err){ 0 };
	a->voters_dirty = true;
	agree_resend_all(a);
}

static void agree_pump(uv_check_t *check)
{
	struct agreement *a = CONTAINER(check, struct agreement, check);
	if (!uv_is_active((uv_handle_t *)&a->idle))
		return;
	uv_idle_stop(&a->idle);
	if (a->stop.code)
		stop_serving(a);
	if (!agree_apply(a))
		agree_wake(a);
	agree_barriers_done(a);
	agree_watch_store(a);
	tell_leader(a);
	tell_voters(a);
	tell_health(a);
	agree_propose_send(a);
	agree_lead(a);
	agree_snapshot(a);
	/* With one voter and a fast disk the commit may be there already. */
	if (a->core && a->applied < a->commit)
		agree_wake(a);
}

/* ---- agree.h ---- */

static int do_serve(struct agree *base, bool on, struct err *err)
{
	struct agreement *a = agreement_of(base);
	if (on == (a->core != NULL))
		return 0;
	a->told_anything = false;
	a->voters_dirty = true;
	agree_wake(a);
	if (!on) {
		agree_core_close(a);
		agree_resend_all(a);
		return 0;
	}
	agree_set_health(a, NULL);
	return agree_core_open(a, err);
}

static void do_controllers(struct agree *base, const uint32_t *nodes, unsigned count)
{
	struct agreement *a = agreement_of(base);
	a->controller_count = MIN(count, (unsigned)AGREE_CONTROLLERS_MAX);
	memcpy(a->controllers, nodes, a->controller_count * sizeof(*nodes));
	bool there = false;
	for (unsigned i = 0; i < a->controller_count; i++)
		there = there || a->controllers[i] == a->hint;
	if (!there)
		a->hint = 0;
	if (a->unsent)
		agree_wake(a);
}

static int do_propose(struct agree *base, struct span command, uint64_t deadline_ms,
		      agree_done *done, void *ctx, struct err *err)
{
	struct agreement *a = agreement_of(base);
	if (a->closing)
		return err_set(err, -ECANCELED, "this node stops");
	return agree_propose_new(a, command, deadline_ms, done, ctx, err);
}

static int do_barrier(struct agree *base, uint64_t deadline_ms, agree_done *done, void *ctx,
		      struct err *err)
{
	struct agreement *a = agreement_of(base);
	if (a->closing)
		return err_set(err, -ECANCELED, "this node stops");
	return agree_barrier_new(a, deadline_ms, done, ctx, err);
}

static int refusal(int r, const char *what, struct err *err)
{
	switch (r) {
	case 0:
		return 0;
	case RAFT_UNCHANGED:
		return 1;
	case RAFT_NOT_LEADER:
		return err_set(err, -EPERM, "%s: this node does not lead", what);
	case RAFT_NOT_READY:
		return err_set(err, -EBUSY, "%s: this leader is new: try again in a moment", what);
	case RAFT_CHANGING:
		return err_set(err, -EBUSY, "%s: another change of controllers is under way", what);
	case RAFT_TRANSFERRING:
		return err_set(err, -EBUSY, "%s: leadership is being handed over", what);
	case RAFT_FULL:
		return err_set(err, -EBUSY, "%s: the log has too much to do", what);
	case RAFT_LAGS:
		return err_set(err, -EAGAIN, "%s: the node is too far behind in the log", what);
	case RAFT_UNKNOWN:
		return err_set(err, -ENOENT, "%s: that node is no voting controller", what);
	default:
		return r < 0 ? err_wrap(err, r, "%s", what)
			     : err_set(err, -EINVAL, "%s: %s", what, raft_refusal_name(r));
	}
}

static int do_set_voters(struct agree *base, const uint32_t *voters, unsigned voter_count,
			 const uint32_t *learners, unsigned learner_count, struct err *err)
{
	static const char what[] = "change the controllers";
	struct agreement *a = agreement_of(base);
	struct raft_config config = { 0 };
	if (!agree_leads(a))
		return refusal(RAFT_NOT_LEADER, what, err);
	if (!voter_count)
		return err_set(err, -EINVAL, "%s: none would be left", what);
	for (unsigned i = 0; i < voter_count + learner_count; i++) {
		bool voter = i < voter_count;
		uint32_t node = voter ? voters[i] : learners[i - voter_count];
		if (raft_config_roles(&config, node))
			return err_set(err, -EINVAL, "%s: node %" PRIu32 " is named twice", what,
				       node);
		if (!raft_config_set(&config, node, voter ? RAFT_VOTER : RAFT_LEARNER))
			return err_set(err, -EINVAL, "%s: node %" PRIu32 " is one too many", what,
				       node);
	}
	struct raft_event ev = { .type = RAFT_CHANGE, .change = &config };
	return refusal(agree_step(a, &ev, NULL, err), what, err);
}

static int do_transfer(struct agree *base, uint32_t to, struct err *err)
{
	static const char what[] = "hand over leadership";
	struct agreement *a = agreement_of(base);
	struct raft_event ev = { .type = RAFT_TRANSFER, .transfer = to };
	if (!agree_leads(a))
		return refusal(RAFT_NOT_LEADER, what, err);
	int r = agree_step(a, &ev, NULL, err);
	return refusal(r == RAFT_UNCHANGED ? 0 : r, what, err);
}

static uint32_t do_leader(const struct agree *base)
{
	return agree_known_leader(agreement_of(base));
}

static bool do_is_leader(const struct agree *base)
{
	return agree_ready(agreement_of(base));
}

/* The core answers for one moment, and what it says can only turn from yes to no as time goes on:
 * the end is found by halving. */
static uint64_t do_lease_until_ms(const struct agree *base)
{
	const struct agreement *a = agreement_of(base);
	uint64_t now = agree_clock_ms();
	if (!agree_ready(a) || a->mute || !raft_has_lease(a->core, now))
		return 0;
	uint64_t yes = now, no = now + raft_profile(a->s.profile).election_ms + 1;
	while (no - yes > 1) {
		uint64_t mid = yes + (no - yes) / 2;
		if (raft_has_lease(a->core, mid))
			yes = mid;
		else
			no = mid;
	}
	return yes;
}

static void status_peer(const struct agreement *a, const struct raft_server *s,
			struct agree_peer *ret)
{
	struct raft_peer_info info;
	*ret = (struct agree_peer){ .node = (uint32_t)s->id,
				    .voter = s->roles & RAFT_VOTER,
				    .learner = s->roles & RAFT_LEARNER,
				    .snapshot_percent = 100 };
	if (s->id == a->s.self) {
		ret->connected = true;
		ret->match = raft_durable_index(a->core);
		return;
	}
	ret->connected = a->s.peers && peers_up(a->s.peers, ret->node);
	if (!raft_peer_info(a->core, s->id, &info))
		return;
	uint64_t now = agree_clock_ms(), size = raft_snapshot(a->core)->size_bytes;
	ret->match = info.match;
	ret->silent_ms = info.contact_ms && info.contact_ms < now ? now - info.contact_ms : 0;
	if (info.snapshot)
		ret->snapshot_percent =
		    size ? (unsigned)MIN(info.snapshot_offset * 100 / size, UINT64_C(99)) : 0;
}

static void status_log(const struct agreement *a, struct agree_status *ret)
{
	struct store_stats stats;
	const struct raft_config *c = raft_config(a->core, NULL);
	ret->term = raft_term(a->core);
	ret->first = raft_first_index(a->core);
	ret->last = raft_last_index(a->core);
	ret->durable = raft_durable_index(a->core);
	for (uint64_t i = ret->first; i <= ret->last; i++)
		ret->log_bytes += raft_entry(a->core, i)->len;
	ret->snapshot_index = raft_snapshot(a->core)->index;
	ret->snapshot_bytes = raft_snapshot(a->core)->size_bytes;
	store_stats(a->store, &stats);
	ret->disk_bytes = stats.disk_bytes;
	ret->changing = raft_config_is_joint(c) || !raft_config_committed(a->core);
	ret->peer_count = c->count;
	for (unsigned i = 0; i < c->count; i++)
		status_peer(a, &c->servers[i], &ret->peers[i]);
	bool alone = c->count == 1 && c->servers[0].id == a->s.self;
	ret->engine = alone ? "local" : "raft";
}

static void do_status(const struct agree *base, struct agree_status *ret)
{
	const struct agreement *a = agreement_of(base);
	*ret = (struct agree_status){ .engine = "none",
				      .role = role_of(a),
				      .self = a->s.self,
				      .leader = agree_known_leader(a),
				      .ready = agree_ready(a),
				      .commit = a->commit,
				      .applied = a->applied,
				      .now_ms = a->now_ms,
				      .outstanding = a->outstanding };
	memcpy(ret->health, a->health, sizeof(ret->health));
	if (a->core)
		status_log(a, ret);
}

static void on_closed(uv_handle_t *h)
{
	struct agreement *a = h->data;
	if (--a->handles)
		return;
	dedup_free(a->dedup);
	free(a->pending);
	free(a->answers);
	str_free(&a->out);
	free((char *)(uintptr_t)a->s.dir);
	free(a);
}

static void do_close(struct agree *base)
{
	struct agreement *a = agreement_of(base);
	uv_handle_t *const handles[AGREE_HANDLES] = { (uv_handle_t *)&a->timer,
						      (uv_handle_t *)&a->tick,
						      (uv_handle_t *)&a->idle,
						      (uv_handle_t *)&a->check };
	a->closing = true;
	if (a->s.peers)
		peers_on(a->s.peers, CHANNEL_AGREE, NULL, NULL);
	agree_core_close(a);
	agree_cancel_all(a);
	for (unsigned i = 0; i < AGREE_HANDLES; i++)
		uv_close(handles[i], on_closed);
}

static const struct agree_engine engine = {
	.serve = do_serve,
	.controllers = do_controllers,
	.propose = do_propose,
	.barrier = do_barrier,
	.set_voters = do_set_voters,
	.transfer = do_transfer,
	.leader = do_leader,
	.is_leader = do_is_leader,
	.lease_until_ms = do_lease_until_ms,
	.status = do_status,
	.close = do_close,
};

/* ---- agreement.h ---- */

bool agreement_exists(const char *dir)
{
	return store_exists(dir);
}

int agreement_bootstrap(const struct agreement_settings *s, struct err *err)
{
	struct store_identity who = { .cluster = s->cluster, .node = s->self };
	struct raft_config config = { 0 };
	uint8_t buf[RAFT_CONFIG_SIZE_MAX];
	struct raft_entry first;
	raft_config_set(&config, s->self, RAFT_VOTER);
	raft_bootstrap(&config, buf, &first);
	struct store_entry e = { .index = first.index,
				 .term = first.term,
				 .type = first.type,
				 .len = first.len,
				 .data = first.data };
	struct store_content c = { .term = first.term, .entries = &e, .count = 1 };
	return store_create(s->dir, &who, &c, err);
}

static void init_handles(struct agreement *a)
{
	uv_timer_init(a->s.loop, &a->timer);
	uv_timer_init(a->s.loop, &a->tick);
	uv_idle_init(a->s.loop, &a->idle);
	uv_check_init(a->s.loop, &a->check);
	a->timer.data = a->tick.data = a->idle.data = a->check.data = a;
	uv_check_start(&a->check, agree_pump);
	/* Only sessions and the store keep a loop running. */
	uv_unref((uv_handle_t *)&a->check);
	a->handles = AGREE_HANDLES;
}

int agreement_open(struct agree **ret, const struct agreement_settings *s,
		   const struct agree_events *events, struct err *err)
{
	if (!s->loop || !s->self || !s->epoch || !s->dir || id_is_none(&s->cluster))
		return err_set(
		    err, -EINVAL,
		    "agreement: settings without loop, folder, cluster, number or epoch");
	assert(events->apply && events->save && events->load);
	struct agreement *a = xcalloc(1, sizeof(*a));
	a->base.engine = &engine;
	a->s = *s;
	a->s.dir = xstrdup(s->dir);
	a->events = *events;
	a->rng = s->rng;
	a->dedup = dedup_new();
	a->low = a->next = 1;
	a->s.snapshot_entries = s->snapshot_entries ? s->snapshot_entries : AGREE_SNAPSHOT_ENTRIES;
	a->s.keep_entries = s->keep_entries ? s->keep_entries : AGREE_KEEP_ENTRIES;
	init_handles(a);
	if (s->peers)
		peers_on(s->peers, CHANNEL_AGREE, agree_receive, a);
	*ret = &a->base;
	return 0;
}

void agreement_session(struct agree *base, uint32_t node, bool up)
{
	struct agreement *a = base ? agreement_of(base) : NULL;
	if (!a || a->closing)
		return;
	struct raft_event ev = { .type = RAFT_PEER_DOWN, .peer_down = node };
	if (up) {
		agree_resend_to(a, node);
		return;
	}
	if (a->hint == node)
		a->hint = 0;
	agree_resend_to(a, node);
	if (a->core)
		(void)agree_step(a, &ev, NULL, NULL);
}
