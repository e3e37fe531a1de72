/* SPDX-License-Identifier: Apache-2.0 */
/* Messages made up at random, near what is valid: a core takes them or refuses them, and one that
 * it refuses changes nothing. No message, however wrong, ends the process. */
#include "scene.h"

enum { MESSAGES = 400000, RESTART_EVERY = 400 };

static uint64_t near(struct rng *rng, uint64_t value)
{
	switch (rng_below(rng, 8)) {
	case 0:
		return 0;
	case 1:
		return rng_next(rng);
	case 2:
		return RAFT_TERM_MAX - 1;
	case 3:
		return value + rng_below(rng, 5);
	default:
		return value > 3 ? value - rng_below(rng, 4) : value;
	}
}

static void draw_config(struct rng *rng, struct raft_config *c)
{
	c->count = (unsigned)rng_below(rng, rng_chance(rng, 50) ? 40 : 4);
	for (unsigned i = 0; i < c->count && i < RAFT_SERVERS_MAX; i++)
		c->servers[i] = (struct raft_server){ i + rng_below(rng, 2) + !rng_chance(rng, 50),
						      (unsigned)rng_below(rng, 9) };
}

static void draw_entries(struct rng *rng, const struct raft *r, struct raft_message *m,
			 struct raft_entry *entries, uint8_t *body)
{
	struct raft_config c;
	draw_config(rng, &c);
	c.count = MIN(c.count, (unsigned)RAFT_SERVERS_MAX);
	size_t len = raft_config_encode(&c, body);

	m->append.count = (unsigned)rng_below(rng, 6);
	m->append.entries = entries;
	for (unsigned i = 0; i < m->append.count; i++) {
		uint64_t index = m->append.prev_index + 1 + i;
		const struct raft_entry *have = raft_entry(r, index);
		if (have && rng_chance(rng, 600)) {
			entries[i] = *have;
			continue;
		}
		entries[i] =
		    (struct raft_entry){ .index = rng_chance(rng, 20) ? near(rng, index) : index,
					 .term = near(rng, m->term),
					 .type = (enum raft_entry_type)rng_below(rng, 5) };
		if (entries[i].type == RAFT_CONFIG) {
			entries[i].len = (uint32_t)len;
			entries[i].data = body;
		} else if (entries[i].type == RAFT_COMMAND) {
			entries[i].len =
			    rng_chance(rng, 20) ? UINT32_MAX : (uint32_t)rng_below(rng, 9);
			entries[i].data = rng_chance(rng, 50) ? NULL : body;
		}
	}
}

static void draw_message(struct rng *rng, const struct raft *r, struct raft_message *m,
			 struct raft_entry *entries, uint8_t *body)
{
	uint64_t last = raft_last_index(r), term = raft_term(r);
	const struct raft_entry *e;

	*m = (struct raft_message){ .type = (enum raft_message_type)rng_below(rng, 9),
				    .from = rng_below(rng, 6),
				    .to = rng_chance(rng, 10) ? rng_below(rng, 6) : raft_self(r) };
	m->term = rng_chance(rng, 700) ? term : near(rng, term);
	if (m->term >= RAFT_TERM_MAX / 2 && rng_chance(rng, 950))
		m->term = term + 1; /* or the rest of the run would be in the last term */
	switch (m->type) {
	case RAFT_MSG_VOTE:
		m->vote.last_index = near(rng, last);
		m->vote.last_term = near(rng, term);
		m->vote.pre = rng_chance(rng, 500);
		m->vote.transfer = rng_chance(rng, 500);
		break;
	case RAFT_MSG_VOTE_REPLY:
		m->vote_reply.pre = rng_chance(rng, 500);
		m->vote_reply.result = (enum raft_result)rng_below(rng, 4);
		m->vote_reply.asked_term = near(rng, term);
		break;
	case RAFT_MSG_APPEND:
		m->append.prev_index = near(rng, last);
		e = raft_entry(r, m->append.prev_index);
		m->append.prev_term = e && rng_chance(rng, 900) ? e->term : near(rng, term);
		m->append.commit = near(rng, last);
		m->append.round = near(rng, 5);
		draw_entries(rng, r, m, entries, body);
		break;
	case RAFT_MSG_APPEND_REPLY:
		m->append_reply.result = (enum raft_result)rng_below(rng, 4);
		m->append_reply.round = near(rng, 2);
		m->append_reply.match = near(rng, last);
		m->append_reply.prev = near(rng, last);
		m->append_reply.hint = near(rng, last);
		m->append_reply.hint_term = near(rng, term);
		break;
	case RAFT_MSG_SNAPSHOT:
		m->chunk.snapshot.index = near(rng, last + 2);
		m->chunk.snapshot.term = near(rng, term);
		m->chunk.snapshot.config_index = near(rng, 1);
		m->chunk.snapshot.size_bytes = near(rng, 12);
		draw_config(rng, &m->chunk.snapshot.config);
		m->chunk.offset = near(rng, rng_below(rng, 12));
		m->chunk.len = (uint32_t)near(rng, 6);
		m->chunk.data = rng_chance(rng, 900) ? body : NULL;
		break;
	case RAFT_MSG_SNAPSHOT_REPLY:
		m->chunk_reply.result = (enum raft_result)rng_below(rng, 4);
		m->chunk_reply.round = near(rng, 2);
		m->chunk_reply.index = near(rng, raft_snapshot(r)->index);
		m->chunk_reply.offset = near(rng, 100);
		m->chunk_reply.done = rng_chance(rng, 300);
		break;
	default:
		break;
	}
}

struct victim {
	struct raft *r;
	struct raft_update up;
	uint64_t now_ms;
	uint64_t refused, taken, led;
};

static int step(struct victim *v, struct raft_event *ev)
{
	ev->now_ms = v->now_ms;
	int result = raft_step(v->r, ev, &v->up, NULL);
	uint64_t installed = v->up.chunk.last ? v->up.chunk.snapshot.index : 0;
	if (installed) {
		struct raft_event done = { .type = RAFT_SNAPSHOT_INSTALLED,
					   .now_ms = v->now_ms,
					   .installed = { .index = installed } };
		assert_int_equal(raft_step(v->r, &done, &v->up, NULL), 0);
	}
	return result;
}

static void begin(struct victim *v, struct rng *rng)
{
	struct raft_settings settings = raft_profile(RAFT_LAN);
	struct raft_config c = { 0 };
	uint8_t body[RAFT_CONFIG_SIZE_MAX];
	struct raft_entry first;

	settings.lease = rng_chance(rng, 500);
	settings.promote_lag = 0;
	for (unsigned i = 1; i <= 3; i++)
		raft_config_set(&c, i, RAFT_VOTER);
	raft_bootstrap(&c, body, &first);
	assert_int_equal(raft_new(&v->r, 1, &settings, rng, NULL), 0);
	struct raft_event ev = { .type = RAFT_START,
				 .start = { .term = 1, .entries = &first, .count = 1 } };
	assert_int_equal(step(v, &ev), 0);
}

/* An honest election, so that a leader gets garbage as well. */
static void lead(struct victim *v)
{
	struct raft_event tick = { .type = RAFT_TICK };
	v->now_ms += 10000;
	(void)step(v, &tick);
	for (unsigned i = 0; i < 4 && raft_state(v->r) != RAFT_LEADER; i++) {
		if (v->up.write.number) {
			struct raft_event done = { .type = RAFT_PERSISTED,
						   .persisted = v->up.write.number };
			(void)step(v, &done);
		}
		bool pre = raft_state(v->r) == RAFT_PRE_CANDIDATE;
		struct raft_message m = { .type = RAFT_MSG_VOTE_REPLY,
					  .from = 2,
					  .to = 1,
					  .term = raft_term(v->r),
					  .vote_reply = { .pre = pre,
							  .result = RAFT_ACCEPTED,
							  .asked_term = raft_term(v->r) + pre } };
		struct raft_event ev = { .type = RAFT_RECEIVE, .receive = &m };
		(void)step(v, &ev);
	}
}

/* What goes on besides: time, disk, users, snapshots. */
static void live(struct victim *v, struct rng *rng)
{
	struct span command = { (const uint8_t *)"abc", 3 };
	struct raft_event ev = { 0 };

	v->now_ms += rng_below(rng, rng_chance(rng, 50) ? 500 : 4);
	switch (rng_below(rng, 9)) {
	case 8:
		if (raft_state(v->r) != RAFT_LEADER)
			lead(v);
		return;
	case 0:
		ev.type = RAFT_TICK;
		break;
	case 1:
		ev.type = RAFT_PROPOSE;
		ev.propose.commands = &command;
		ev.propose.count = 1;
		break;
	case 2:
		ev.type = RAFT_READ;
		ev.read.lease = rng_chance(rng, 500);
		break;
	case 3:
		ev.type = RAFT_SNAPSHOT_TAKEN;
		ev.taken.index = raft_commit_index(v->r);
		ev.taken.keep = rng_below(rng, 3);
		ev.taken.size_bytes = 20;
		if (ev.taken.index == 0)
			return;
		break;
	case 4:
		ev.type = RAFT_TRANSFER;
		ev.transfer = rng_below(rng, 4);
		break;
	default:
		/* The disk is done; after a start nothing may be on its way. */
		ev.type = RAFT_PERSISTED;
		if (v->up.write.number == 0)
			return;
		ev.persisted = v->up.write.number;
		break;
	}
	assert_true(step(v, &ev) >= 0);
}

/* Goal: garbage from a peer never ends the process, and what is refused changes nothing. */
static void made_up_messages_do_no_harm(void **state)
{
	struct victim v = { 0 };
	struct rng rng;
	struct raft_entry entries[8];
	struct raft_message m;
	uint8_t body[RAFT_CONFIG_SIZE_MAX] = { 0 };

	rng_seed(&rng, 20);
	for (unsigned i = 0; i < MESSAGES; i++) {
		if (i % RESTART_EVERY == 0) {
			raft_free(v.r);
			begin(&v, &rng);
		}
		if (rng_chance(&rng, 400))
			live(&v, &rng);
		draw_message(&rng, v.r, &m, entries, body);
		uint64_t term = raft_term(v.r), vote = raft_vote(v.r);
		uint64_t last = raft_last_index(v.r), commit = raft_commit_index(v.r);
		enum raft_state was = raft_state(v.r);
		v.led += was == RAFT_LEADER;
		struct raft_event ev = { .type = RAFT_RECEIVE, .receive = &m };
		if (step(&v, &ev) == 0) {
			v.taken++;
			assert_true(raft_commit_index(v.r) >= commit);
			continue;
		}
		v.refused++;
		assert_int_equal(raft_term(v.r), term);
		assert_int_equal(raft_vote(v.r), vote);
		assert_int_equal(raft_last_index(v.r), last);
		assert_int_equal(raft_commit_index(v.r), commit);
		assert_int_equal(raft_state(v.r), was);
		assert_int_equal(v.up.message_count, 0);
	}
	raft_free(v.r);
	/* All kinds must have been seen often, or this tests nothing. */
	assert_true(v.led > MESSAGES / 100);
	assert_true(v.refused > MESSAGES / 10);
	assert_true(v.taken > MESSAGES / 10);
}

/* Goal: each rule of an encoded configuration is enforced, and what is valid comes back equal. */
static void configuration_decoder_is_strict(void **state)
{
	struct raft_config c = { 0 }, back;
	uint8_t buf[RAFT_CONFIG_SIZE_MAX];

	raft_config_set(&c, 9, RAFT_VOTER);
	raft_config_set(&c, 3, RAFT_VOTER_OLD | RAFT_LEARNER);
	raft_config_set(&c, 5, RAFT_VOTER | RAFT_VOTER_OLD);
	size_t len = raft_config_encode(&c, buf);
	assert_int_equal(raft_config_decode(buf, len, &back, NULL), 0);
	assert_true(raft_config_equal(&c, &back));
	for (size_t cut = 0; cut < len; cut++)
		assert_true(raft_config_decode(buf, cut, &back, NULL) < 0);

	static const struct {
		unsigned at, value;
	} wrong[] = {
		{ 0, 2 },  /* version */
		{ 1, 2 },  /* count below the length */
		{ 1, 33 }, /* count above the limit */
		{ 2, 0 },  /* id 0 */
		{ 2, 5 },  /* the same id twice */
		{ 2, 7 },  /* ids not in order */
		{ 10, 0 }, /* no role */
		{ 10, 8 }, /* unknown role */
		{ 10, 5 }, /* voter and learner */
	};
	for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
		uint8_t bad[RAFT_CONFIG_SIZE_MAX];
		memcpy(bad, buf, len);
		bad[wrong[i].at] = (uint8_t)wrong[i].value;
		assert_true(raft_config_decode(bad, len, &back, NULL) < 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(made_up_messages_do_no_harm),
		cmocka_unit_test(configuration_decoder_is_strict),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
