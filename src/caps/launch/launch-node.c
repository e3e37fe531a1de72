/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/launch-impl-node.h"

#include "base/log.h"
#include "caps/launch/split.h"
#include "caps/members/members.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

uint64_t launch_now_ms(const struct launch *l)
{
	return node_now_ms(l->node);
}

uint32_t launch_self(const struct launch *l)
{
	return l->node->number;
}

const char *launch_name(const struct launch *l, uint32_t number)
{
	return members_name(l->node->members, number);
}

struct id launch_task_id(const struct id *job, uint32_t rank)
{
	struct id task = *job;
	for (int i = 0; i < 4; i++)
		task.at[12 + i] = (uint8_t)(rank >> (24 - 8 * i));
	return task;
}

uint32_t launch_task_rank(const struct id *task)
{
	uint32_t rank = 0;
	for (int i = 0; i < 4; i++)
		rank = rank << 8 | task->at[12 + i];
	return rank;
}

/* The counter outlives the brain, so that names of running jobs are not given again. */
uint32_t launch_next_name(struct launch *l)
{
	l->next_name++;
	if (l->name_fd >= 0)
		(void)!pwrite(l->name_fd, &l->next_name, sizeof(l->next_name), 0);
	return l->next_name;
}

static void names_open(struct launch *l)
{
	_cleanup_(str_free) struct str path = { 0 };
	str_printf(&path, "%s/last-job", l->node->settings.run_dir);
	l->name_fd = open(str_text(&path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (l->name_fd >= 0 &&
	    pread(l->name_fd, &l->next_name, sizeof(l->next_name), 0) != sizeof(l->next_name))
		l->next_name = 0;
}

void launch_note_ended(struct launch *l, const struct id *job)
{
	l->ended[l->ended_at++ % LAUNCH_ENDED_MAX] = *job;
}

bool launch_has_ended(const struct launch *l, const struct id *job)
{
	for (size_t i = 0; i < MIN(l->ended_at, (size_t)LAUNCH_ENDED_MAX); i++)
		if (!id_compare(&l->ended[i], job))
			return true;
	return false;
}

void *launch_copy(const void *message)
{
	const ProtobufCMessage *m = message;
	size_t len = protobuf_c_message_get_packed_size(m);
	_cleanup_(free_p) uint8_t *at = xmalloc(len);
	(void)protobuf_c_message_pack(m, at);
	void *copy = protobuf_c_message_unpack(m->descriptor, NULL, len, at);
	assert(copy);
	return copy;
}

void launch_init_message(launch_message *m, Copia__LaunchMessage__BodyCase what)
{
	copia__launch_message__init(m);
	m->body_case = what;
}

/* ---------------------------------------------------------------- sending */

static void handle(struct launch *l, uint32_t from, struct span body);

/* Messages to ourselves are handled in a turn of their own, so that no handler runs inside another
 * one. */
static void on_local_turn(uv_idle_t *h)
{
	struct launch *l = h->data;
	struct local_message *m = l->local_head;
	l->local_head = NULL;
	l->local_tail = &l->local_head;
	while (m) {
		struct local_message *next = m->next;
		handle(l, launch_self(l), (struct span){ m->at, m->len });
		free(m);
		m = next;
	}
	if (!l->local_head)
		(void)uv_idle_stop(&l->local_turn);
}

static struct local_message *message_make(const void *bytes, size_t len)
{
	struct local_message *m = xmalloc(sizeof(*m) + len);
	m->next = NULL;
	m->len = len;
	memcpy(m->at, bytes, len);
	return m;
}

static void local_add(struct launch *l, struct local_message *m)
{
	*l->local_tail = m;
	l->local_tail = &m->next;
	(void)uv_idle_start(&l->local_turn, on_local_turn);
}

static struct overflow *overflow_find(struct launch *l, uint32_t node)
{
	struct overflow *o;
	HASH_FIND(hh, l->overflows, &node, sizeof(node), o);
	return o;
}

static void overflow_free(struct launch *l, struct overflow *o)
{
	while (o->head) {
		struct local_message *m = o->head;
		o->head = m->next;
		free(m);
	}
	HASH_DEL(l->overflows, o);
	free(o);
}

/* How much can pile up here is bounded by credits of output and windows of input. */
static void overflow_add(struct launch *l, uint32_t node, struct local_message *m)
{
	struct overflow *o = overflow_find(l, node);
	if (!o) {
		o = xcalloc(1, sizeof(*o));
		o->node = node;
		o->tail = &o->head;
		HASH_ADD(hh, l->overflows, node, sizeof(o->node), o);
	}
	*o->tail = m;
	o->tail = &m->next;
}

static void send_bytes(struct launch *l, uint32_t to, const uint8_t *at, size_t len)
{
	if (to == launch_self(l)) {
		local_add(l, message_make(at, len));
		return;
	}
	if (!l->node->peers)
		return;
	if (overflow_find(l, to)) {
		overflow_add(l, to, message_make(at, len));
		return;
	}
	int r = peers_send(l->node->peers, to, CHANNEL_LAUNCH, at, len);
	if (r == -EAGAIN)
		overflow_add(l, to, message_make(at, len));
	else if (r < 0)
		log_warning("launch", "message of %zu bytes to %s: %s", len, launch_name(l, to),
			    strerror(-r));
}

void launch_send(struct launch *l, uint32_t to, const struct id *job, launch_message *m)
{
	if (job)
		m->job = (ProtobufCBinaryData){ ID_SIZE, (uint8_t *)job->at };
	size_t len = copia__launch_message__get_packed_size(m);
	_cleanup_(free_p) uint8_t *at = xmalloc(len);
	(void)copia__launch_message__pack(m, at);
	send_bytes(l, to, at, len);
}

/* Hand `inner` to the children that a list of receivers makes. */
static void relay(struct launch *l, const uint32_t *nodes, size_t count, struct span inner)
{
	struct split_piece pieces[SPLIT_DIRECT_MAX];
	size_t n = split(count, count <= SPLIT_DIRECT_MAX ? SPLIT_DIRECT_MAX : SPLIT_ARITY, pieces);
	for (size_t i = 0; i < n; i++) {
		uint32_t to = nodes[pieces[i].at];
		if (!pieces[i].rest) {
			send_bytes(l, to, inner.at, inner.len);
			continue;
		}
		Copia__LaunchRelay r = COPIA__LAUNCH_RELAY__INIT;
		r.inner = (ProtobufCBinaryData){ inner.len, (uint8_t *)inner.at };
		r.nodes = (uint32_t *)nodes + pieces[i].at + 1;
		r.n_nodes = pieces[i].rest;
		launch_message m;
		launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_RELAY);
		m.relay = &r;
		launch_send(l, to, NULL, &m);
	}
}

void launch_send_all(struct launch *l, const uint32_t *nodes, size_t count, const struct id *job,
		     launch_message *m)
{
	m->job = (ProtobufCBinaryData){ ID_SIZE, (uint8_t *)job->at };
	size_t len = copia__launch_message__get_packed_size(m);
	_cleanup_(free_p) uint8_t *at = xmalloc(len);
	(void)copia__launch_message__pack(m, at);
	relay(l, nodes, count, (struct span){ at, len });
}

void launch_drained(struct launch *l, uint32_t number, enum channel channel)
{
	if (channel == CHANNEL_STAGE)
		stage_drained(l, number);
	struct overflow *o = overflow_find(l, number);
	if (channel != CHANNEL_LAUNCH || !o)
		return;
	while (o->head) {
		struct local_message *m = o->head;
		if (peers_send(l->node->peers, number, CHANNEL_LAUNCH, m->at, m->len) == -EAGAIN)
			return;
		o->head = m->next;
		free(m);
	}
	overflow_free(l, o);
}

/* ---------------------------------------------------------------- receiving */

static void handle(struct launch *l, uint32_t from, struct span body)
{
	launch_message *m = copia__launch_message__unpack(NULL, body.len, body.at);
	if (!m) {
		log_warning("launch", "message of %s cannot be read", launch_name(l, from));
		return;
	}
	struct id id = { 0 };
	if (m->job.len == ID_SIZE)
		memcpy(id.at, m->job.data, ID_SIZE);
	switch (m->body_case) {
	case COPIA__LAUNCH_MESSAGE__BODY_RELAY:
		relay(l, m->relay->nodes, m->relay->n_nodes,
		      (struct span){ m->relay->inner.data, m->relay->inner.len });
		handle(l, from, (struct span){ m->relay->inner.data, m->relay->inner.len });
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_SITE:
	case COPIA__LAUNCH_MESSAGE__BODY_OUTPUT:
	case COPIA__LAUNCH_MESSAGE__BODY_EXITS:
	case COPIA__LAUNCH_MESSAGE__BODY_GIVEN:
	case COPIA__LAUNCH_MESSAGE__BODY_ASK:
	case COPIA__LAUNCH_MESSAGE__BODY_WIREUP:
	case COPIA__LAUNCH_MESSAGE__BODY_SEEN:
		origin_message(l, from, &id, m);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_START: {
		Copia__LaunchStart *start = take_ptr(m->start);
		m->body_case = COPIA__LAUNCH_MESSAGE__BODY__NOT_SET;
		site_start(l, from, &id, start);
		break;
	}
	case COPIA__LAUNCH_MESSAGE__BODY_WANT:
	case COPIA__LAUNCH_MESSAGE__BODY_STOP:
	case COPIA__LAUNCH_MESSAGE__BODY_MORE:
		stage_message(l, from, &id, m);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_PROBE:
		check_asked(l, from, &id);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_PS_ASK:
	case COPIA__LAUNCH_MESSAGE__BODY_PS_ANSWER:
	case COPIA__LAUNCH_MESSAGE__BODY_KILL_ASK:
	case COPIA__LAUNCH_MESSAGE__BODY_KILL_ANSWER:
		ps_message(l, from, m);
		break;
	default:
		site_message(l, from, &id, m);
	}
	copia__launch_message__free_unpacked(m, NULL);
}

static void on_message(void *ctx, uint32_t from, struct span body)
{
	handle(ctx, from, body);
}

static void on_stage(void *ctx, uint32_t from, struct span body)
{
	stage_data(ctx, from, body);
}

bool launch_task_event(struct launch *l, const Copia__Shepherd__Event *e, struct task_fds *fds)
{
	return wire_event(l, e, fds) || site_event(l, e, fds);
}

void launch_session(struct launch *l, uint32_t number, bool up)
{
	struct overflow *o = overflow_find(l, number);
	if (!up && o)
		overflow_free(l, o); /* lost like what the session had queued */
	origin_session(l, number, up);
	site_session(l, number, up);
	stage_session(l, number, up);
	wire_session(l, number, up);
}

void launch_node_down(struct launch *l, uint32_t number)
{
	origin_node_down(l, number);
	site_node_down(l, number);
	stage_session(l, number, false);
}

/* ---------------------------------------------------------------- time */

static void on_timer(uv_timer_t *t)
{
	struct launch *l = t->data;
	uint64_t now = launch_now_ms(l);
	uint64_t next = origin_tick(l, now);
	uint64_t site = site_tick(l, now);
	next = MIN(next, site);
	uint64_t wire = wire_tick(l, now), ps = ps_tick(l, now);
	next = MIN(next, wire);
	next = MIN(next, ps);
	uint64_t look = site_look_tick(l, now), check = check_tick(l, now);
	next = MIN(next, look);
	next = MIN(next, check);
	if (next != UINT64_MAX)
		launch_wake_at(l, next);
}

void launch_wake_at(struct launch *l, uint64_t at_ms)
{
	uint64_t now = launch_now_ms(l), in = at_ms > now ? at_ms - now : 0;
	if (!uv_is_active((uv_handle_t *)&l->timer) || uv_timer_get_due_in(&l->timer) > in)
		(void)uv_timer_start(&l->timer, on_timer, in, 0);
}

/* ---------------------------------------------------------------- begin and end */

static int folder_make(const char *parent, const char *name, mode_t mode, struct err *err)
{
	_cleanup_(str_free) struct str path = { 0 };
	str_printf(&path, "%s/%s", parent, name);
	if (mkdir(str_text(&path), mode) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make folder %s: %s", str_text(&path), strerror(errno));
	(void)chmod(str_text(&path), mode);
	return 0;
}

static void on_streams(uv_poll_t *p, int status, int events)
{
	site_io_news(p->data);
}

int launch_new(struct launch **ret, struct node *n, struct err *err)
{
	struct launch *l = xcalloc(1, sizeof(*l));
	l->node = n;
	l->local_tail = &l->local_head;
	l->watch.fd = -1;
	int r = folder_make(n->settings.run_dir, "jobs", 0700, err);
	if (r == 0)
		r = stream_scratch_init(&l->scratch, err);
	if (r == 0)
		r = stream_watch_init(&l->watch, err);
	if (r == 0)
		r = stage_new(l, err);
	if (r == 0)
		r = site_read_records(l, err);
	if (r < 0) {
		stream_watch_deinit(&l->watch);
		free(l);
		return r;
	}
	names_open(l);
	wire_new(l);
	(void)uv_idle_init(n->loop, &l->local_turn);
	(void)uv_timer_init(n->loop, &l->timer);
	(void)uv_timer_init(n->loop, &l->later);
	l->later.data = l;
	(void)uv_poll_init(n->loop, &l->watch_poll, l->watch.fd);
	l->local_turn.data = l->timer.data = l->watch_poll.data = l;
	(void)uv_poll_start(&l->watch_poll, UV_READABLE, on_streams);
	*ret = l;
	return 0;
}

int launch_start(struct launch *l, struct err *err)
{
	struct node *n = l->node;
	if (!l->verbs_registered) {
		control_on(n->control, "run", origin_run);
		control_on(n->control, "ps", ps_run);
		control_on(n->control, "kill", kill_run);
		l->verbs_registered = true;
	}
	if (n->peers) {
		peers_on(n->peers, CHANNEL_LAUNCH, on_message, l);
		peers_on(n->peers, CHANNEL_STAGE, on_stage, l);
		wire_start(l);
	}
	(void)err;
	return 0;
}

struct launch *launch_free(struct launch *l)
{
	if (!l)
		return NULL;
	origin_free_all(l);
	site_free_all(l);
	check_free_all(l);
	ps_free_all(l);
	stage_free(l);
	wire_free(l);
	struct overflow *o, *next;
	HASH_ITER(hh, l->overflows, o, next)
	overflow_free(l, o);
	while (l->local_head) {
		struct local_message *m = l->local_head;
		l->local_head = m->next;
		free(m);
	}
	(void)uv_idle_stop(&l->local_turn);
	(void)uv_timer_stop(&l->timer);
	(void)uv_timer_stop(&l->later);
	(void)uv_poll_stop(&l->watch_poll);
	stream_watch_deinit(&l->watch);
	stream_scratch_deinit(&l->scratch);
	/* The handles belong to the loop until it ends; the brain ends with it. */
	return NULL;
}

uint32_t launch_tasks(const struct launch *l)
{
	uint32_t count = 0;
	for (const struct site_job *j = l->sites; j; j = j->hh.next)
		count += j->started - MIN(j->started, j->ended);
	return count;
}
