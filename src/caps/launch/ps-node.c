/* SPDX-License-Identifier: Apache-2.0 */
/* `copia ps` and `copia kill`: all nodes are asked, and have a second to answer. */
#include "caps/launch/launch-impl-node.h"

#include "base/log.h"
#include "base/units.h"
#include "caps/launch/place.h"
#include "caps/launch/tasks-node.h"
#include "caps/members/members.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>

enum { ANSWER_MS = 1000, ROWS_MAX = 200000, ROWS_PER_MESSAGE = 500 };

struct asked {
	uint64_t number;
	struct call *call;
	bool kills, replied;
	uint32_t *waiting; /* nodes that have not answered */
	size_t waiting_count;
	uint64_t until_ms;
	Copia__PsReply *reply;
	uint32_t hit, forbidden;
	char owner[64], what[200];
	struct asked *next;
};

struct asker {
	uint64_t numbers;
	struct asked *list;
};

static struct asker *asker_get(struct launch *l)
{
	if (!l->asker)
		l->asker = xcalloc(1, sizeof(*l->asker));
	return l->asker;
}

static void asked_free(struct launch *l, struct asked *a)
{
	for (struct asked **at = &l->asker->list; *at; at = &(*at)->next)
		if (*at == a) {
			*at = a->next;
			break;
		}
	free(a->waiting);
	copia__ps_reply__free_unpacked(a->reply, NULL);
	free(a);
}

static void on_closed(void *ctx, struct call *c)
{
	struct asked *a = ctx;
	asked_free(call_node(c)->launch, a);
}

/* ---------------------------------------------------------------- asking */

static void add_silent(struct launch *l, struct asked *a)
{
	Copia__PsReply *r = a->reply;
	r->silent = xcalloc(a->waiting_count, sizeof(*r->silent));
	for (size_t i = 0; i < a->waiting_count; i++)
		r->silent[r->n_silent++] = xstrdup(launch_name(l, a->waiting[i]));
}

static void silent_text(const struct asked *a, struct str *s)
{
	for (size_t i = 0; i < a->reply->n_silent; i++)
		str_printf(s, "%s%s", i ? ", " : "", a->reply->silent[i]);
}

static void kill_finish(struct asked *a)
{
	_cleanup_(str_free) struct str silent = { 0 };
	silent_text(a, &silent);
	struct call *c = a->call;
	if (a->hit) {
		Copia__KillReply k = COPIA__KILL_REPLY__INIT;
		char text[100] = "";
		if (a->hit > 1)
			(void)snprintf(text, sizeof(text), "%u tasks were signalled", a->hit);
		k.text = text;
		k.count = a->hit;
		call_reply(c, &k.base);
		call_finish(c, 0, NULL);
	} else if (a->forbidden) {
		call_finish(c, -EPERM,
			    "%s belongs to user %s; only this user and root may signal it", a->what,
			    a->owner);
	} else {
		call_finish(c, -ESRCH, "no task or job %s%s%s; see: copia ps", a->what,
			    silent.len ? " on the nodes that answered; silent: " : "",
			    str_text(&silent));
	}
}

static void asked_finish(struct launch *l, struct asked *a)
{
	add_silent(l, a);
	if (a->kills) {
		kill_finish(a);
	} else {
		tasks_sort(a->reply);
		call_reply(a->call, &a->reply->base);
		call_finish(a->call, 0, NULL);
	}
	asked_free(l, a);
}

static void asked_answer(struct launch *l, struct asked *a, uint32_t from, bool more)
{
	for (size_t i = 0; !more && i < a->waiting_count; i++)
		if (a->waiting[i] == from) {
			a->waiting[i] = a->waiting[--a->waiting_count];
			break;
		}
	if (!a->waiting_count)
		asked_finish(l, a);
}

static struct asked *asked_new(struct launch *l, struct call *c, const char *on, struct err *err)
{
	const Copia__MembersState *st = l->node->members->state;
	_cleanup_(free_p) uint32_t *at = NULL;
	size_t count = 0;
	if (on && *on && place_resolve(st->nodes, st->n_nodes, on, &at, &count, err) < 0)
		return NULL;
	struct asked *a = xcalloc(1, sizeof(*a));
	a->waiting = xcalloc(st->n_nodes + 1, sizeof(*a->waiting));
	a->reply = xcalloc(1, sizeof(*a->reply));
	copia__ps_reply__init(a->reply);
	for (size_t i = 0; at && i < count; i++)
		a->waiting[a->waiting_count++] = st->nodes[at[i]]->number;
	for (size_t i = 0; !at && i < st->n_nodes; i++)
		if (st->nodes[i]->state == COPIA__NODE_STATE__UP)
			a->waiting[a->waiting_count++] = st->nodes[i]->number;
	static const struct call_hooks hooks = { .closed = on_closed };
	struct asker *all = asker_get(l);
	a->number = ++all->numbers;
	a->call = c;
	a->until_ms = launch_now_ms(l) + ANSWER_MS;
	a->next = all->list;
	all->list = a;
	call_keep(c, &hooks, a);
	launch_wake_at(l, a->until_ms);
	return a;
}

static int check_cluster(const struct launch *l, struct err *err)
{
	if (launch_self(l))
		return 0;
	return err_set(err, -ENOTCONN,
		       "this node is in no cluster; make one: copia init, or join "
		       "one: copia join TOKEN@HOST");
}

static void ask_all(struct launch *l, struct asked *a, launch_message *m)
{
	_cleanup_(free_p) uint32_t *nodes =
	    xmemdup(a->waiting, a->waiting_count * sizeof(*a->waiting));
	size_t count = a->waiting_count;
	if (!count)
		asked_finish(l, a);
	for (size_t i = 0; i < count; i++)
		launch_send(l, nodes[i], NULL, m);
}

int ps_run(struct node *n, struct call *c, const ProtobufCMessage *request, struct err *err)
{
	const Copia__PsRequest *q = (const Copia__PsRequest *)request;
	int r = check_cluster(n->launch, err);
	if (r < 0)
		return r;
	struct asked *a = asked_new(n->launch, c, q->on, err);
	if (!a)
		return err->code;
	(void)snprintf(a->what, sizeof(a->what), "%s", q->job);
	Copia__PsAsk ask = COPIA__PS_ASK__INIT;
	ask.ask = a->number;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_PS_ASK);
	m.ps_ask = &ask;
	ask_all(n->launch, a, &m);
	return 0;
}

/* "TERM", "SIGTERM", "15". */
static int signal_read(const char *text, int *ret, struct err *err)
{
	uint64_t number;
	const char *name = !strncasecmp(text, "SIG", 3) ? text + 3 : text;
	for (int i = 1; i < 65; i++)
		if (sigabbrev_np(i) && !strcasecmp(sigabbrev_np(i), name)) {
			*ret = i;
			return 0;
		}
	if (parse_u64(text, 0, 64, &number, NULL) < 0)
		return err_set(err, -EINVAL,
			       "signal \"%.20s\" is not known; examples: TERM, KILL, 9", text);
	*ret = (int)number;
	return 0;
}

int kill_run(struct node *n, struct call *c, const ProtobufCMessage *request, struct err *err)
{
	const Copia__KillRequest *q = (const Copia__KillRequest *)request;
	struct launch *l = n->launch;
	int number = 0, r = check_cluster(l, err);
	if (r == 0)
		r = signal_read(*q->signal ? q->signal : "TERM", &number, err);
	if (r < 0)
		return r;
	struct str what = { 0 };
	for (size_t i = 0; i < q->n_what; i++)
		str_printf(&what, "%s%s", i ? " " : "", q->what[i]);
	struct asked *a = asked_new(l, c, NULL, err);
	if (!a)
		return err->code;
	a->kills = true;
	(void)snprintf(a->what, sizeof(a->what), "%s", str_text(&what));
	Copia__KillAsk ask = COPIA__KILL_ASK__INIT;
	ask.ask = a->number;
	ask.what = (char *)str_text(&what);
	ask.signal = number;
	ask.uid = call_uid(c);
	ask.privileged = call_privileged(c);
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_KILL_ASK);
	m.kill_ask = &ask;
	ask_all(l, a, &m);
	str_free(&what);
	return 0;
}

/* ---------------------------------------------------------------- answering */

static void answer_ps(struct launch *l, uint32_t from, const Copia__PsAsk *q)
{
	_cleanup_(tasks_free) struct tasks t = { 0 };
	tasks_read(l, &t);
	Copia__PsAnswer a = COPIA__PS_ANSWER__INIT;
	a.ask = q->ask;
	size_t at = 0;
	do {
		a.n_tasks = MIN(t.count - at, (size_t)ROWS_PER_MESSAGE);
		a.tasks = t.rows + at;
		at += a.n_tasks;
		a.more = at < t.count;
		launch_message m;
		launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_PS_ANSWER);
		m.ps_answer = &a;
		launch_send(l, from, NULL, &m);
	} while (at < t.count);
}

static bool is_meant(const struct site_rank *r, const char *word)
{
	const struct site_job *j = r->job;
	char text[200];
	if (!strcmp(word, j->start->name))
		return true;
	(void)snprintf(text, sizeof(text), "%s.%u", j->start->name, r->rank);
	if (!strcmp(word, text))
		return true;
	(void)snprintf(text, sizeof(text), "%s:%u", j->place->name, r->pid);
	if (!strcmp(word, text))
		return true;
	return !strcmp(word, id_show(&j->id, text));
}

static void kill_word(struct launch *l, const Copia__KillAsk *q, const char *word,
		      Copia__KillAnswer *a, char why[80])
{
	Copia__LaunchSignal s = COPIA__LAUNCH_SIGNAL__INIT;
	s.signal = q->signal;
	s.why = why;
	s.n_ranks = 1;
	for (struct site_job *j = l->sites; j; j = j->hh.next) {
		bool allowed = q->privileged || q->uid == j->start->spec->uid;
		for (uint32_t i = 0; i < j->place->count; i++) {
			struct site_rank *r = &j->ranks[i];
			if (r->state != RANK_RUNNING || !is_meant(r, word))
				continue;
			if (!allowed) {
				a->forbidden++;
				a->owner = j->start->spec->user;
				continue;
			}
			s.ranks = &r->rank;
			a->count++;
			site_signal(j, &s);
		}
	}
}

static void answer_kill(struct launch *l, uint32_t from, const Copia__KillAsk *q)
{
	Copia__KillAnswer a = COPIA__KILL_ANSWER__INIT;
	char why[80];
	(void)snprintf(why, sizeof(why), "copia kill by uid %u", q->uid);
	a.ask = q->ask;
	_cleanup_(free_p) char *words = xstrdup(q->what);
	char *save = NULL;
	for (char *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save))
		kill_word(l, q, w, &a, why);
	if (a.forbidden)
		log_warning("audit", "refused a signal of uid %u to tasks of %s", q->uid, a.owner);
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_KILL_ANSWER);
	m.kill_answer = &a;
	launch_send(l, from, NULL, &m);
}

static struct asked *asked_find(struct launch *l, uint64_t number)
{
	struct asked *a = l->asker ? l->asker->list : NULL;
	while (a && a->number != number)
		a = a->next;
	return a;
}

static void take_rows(struct asked *a, Copia__PsAnswer *p)
{
	Copia__PsReply *r = a->reply;
	if (r->n_tasks + p->n_tasks > ROWS_MAX)
		return;
	r->tasks = xrealloc(r->tasks, (r->n_tasks + p->n_tasks) * sizeof(*r->tasks));
	size_t kept = 0;
	for (size_t i = 0; i < p->n_tasks; i++) {
		bool wanted = !a->what[0] || !strcmp(a->what, p->tasks[i]->job) ||
			      !strcmp(a->what, p->tasks[i]->job_id);
		if (wanted)
			r->tasks[r->n_tasks++] = p->tasks[i];
		else
			p->tasks[kept++] = p->tasks[i];
	}
	p->n_tasks = kept; /* the rest is the reply's now */
}

void ps_message(struct launch *l, uint32_t from, const launch_message *m)
{
	struct asked *a;
	switch (m->body_case) {
	case COPIA__LAUNCH_MESSAGE__BODY_PS_ASK:
		answer_ps(l, from, m->ps_ask);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_KILL_ASK:
		answer_kill(l, from, m->kill_ask);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_PS_ANSWER:
		if (!(a = asked_find(l, m->ps_answer->ask)) || a->kills)
			break;
		take_rows(a, m->ps_answer);
		asked_answer(l, a, from, m->ps_answer->more);
		break;
	case COPIA__LAUNCH_MESSAGE__BODY_KILL_ANSWER:
		if (!(a = asked_find(l, m->kill_answer->ask)) || !a->kills)
			break;
		a->hit += m->kill_answer->count;
		a->forbidden += m->kill_answer->forbidden;
		if (m->kill_answer->forbidden)
			(void)snprintf(a->owner, sizeof(a->owner), "%s", m->kill_answer->owner);
		asked_answer(l, a, from, false);
		break;
	default:
		break;
	}
}

uint64_t ps_tick(struct launch *l, uint64_t now_ms)
{
	uint64_t due = UINT64_MAX;
	struct asked *a = l->asker ? l->asker->list : NULL, *next;
	for (; a; a = next) {
		next = a->next;
		if (now_ms >= a->until_ms)
			asked_finish(l, a);
		else
			due = MIN(due, a->until_ms);
	}
	return due;
}

void ps_free_all(struct launch *l)
{
	while (l->asker && l->asker->list) {
		call_finish(l->asker->list->call, -ESHUTDOWN, "copiad is being stopped");
		asked_free(l, l->asker->list);
	}
	free(l->asker);
	l->asker = NULL;
}
