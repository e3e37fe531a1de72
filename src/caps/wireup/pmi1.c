/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/pmi1.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <uthash.h>

enum { TOKENS_MAX = 16 };

enum rank_state { RANK_NEW, RANK_READY, RANK_BARRIER, RANK_FINAL, RANK_BROKEN, RANK_STATES };

#define TO(s) (1u << (s))
static const unsigned allowed[RANK_STATES] = {
	[RANK_NEW] = TO(RANK_READY) | TO(RANK_BROKEN),
	[RANK_READY] = TO(RANK_BARRIER) | TO(RANK_FINAL) | TO(RANK_BROKEN),
	[RANK_BARRIER] = TO(RANK_READY) | TO(RANK_BROKEN),
	[RANK_FINAL] = TO(RANK_BROKEN) | TO(RANK_READY), /* MPICH 4.2 may initialise again */
	[RANK_BROKEN] = 0,
};

struct pair {
	UT_hash_handle hh;
	uint32_t at; /* place in `order` */
	char *value;
	char key[];
};

struct rank {
	enum rank_state state;
	bool spoke, in_spawn, ever_put;
	const char *asked; /* "publish", "lookup", "unpublish" while the answer is awaited */
	uint32_t app, ordinal;
	size_t put_bytes; /* of all its puts, never given back */
	size_t spawn_bytes;
	struct str in, out;
	struct str puts; /* since the last barrier, encoded */
};

struct pmi1 {
	char kvsname[PMI1_KVSNAME_MAX];
	uint32_t size, universe, local_count, waiting;
	bool full; /* the contribution is out, the result has not come */
	struct rank *ranks;
	struct pair *pairs; /* by key */
	struct pair **order;
	uint32_t order_count, order_cap;
	size_t bytes;
	pmi1_hook *hook;
	void *ctx;
};

struct token {
	char *key, *value;
};

struct line {
	struct token tokens[TOKENS_MAX];
	size_t count;
};

static void move(struct pmi1 *p, struct rank *r, enum rank_state to)
{
	assert(allowed[r->state] & TO(to));
	if (r->state == RANK_BARRIER)
		p->waiting--;
	if (to == RANK_BARRIER)
		p->waiting++;
	r->state = to;
	assert(p->waiting <= p->local_count);
}

static void tell(struct pmi1 *p, const struct rank *r, struct pmi1_event e)
{
	e.local = (uint32_t)(r - p->ranks);
	p->hook(p->ctx, &e);
}

static void break_with(struct pmi1 *p, struct rank *r, int code, const char *why)
{
	if (r->state == RANK_BROKEN)
		return;
	move(p, r, RANK_BROKEN);
	str_clear(&r->in);
	tell(p, r, (struct pmi1_event){ .kind = PMI1_BROKEN, .code = code, .text = why });
}

static void break_rank(struct pmi1 *p, struct rank *r, const char *why)
{
	break_with(p, r, -EPROTO, why);
}

/* ---- keys and values ---- */

static struct pair *pair_find(const struct pmi1 *p, const char *key)
{
	struct pair *found = NULL;
	HASH_FIND_STR(p->pairs, key, found);
	return found;
}

static int pair_put(struct pmi1 *p, const char *key, const char *value, struct err *err)
{
	size_t more = strlen(key) + strlen(value);
	if (p->bytes + more > PMI1_JOB_BYTES_MAX)
		return err_set(err, -E2BIG, "keys of the job: more than %d bytes",
			       PMI1_JOB_BYTES_MAX);
	p->bytes += more;
	struct pair *pair = pair_find(p, key);
	if (pair) {
		free(pair->value);
		pair->value = xstrdup(value);
		return 0;
	}
	pair = xcalloc(1, sizeof(*pair) + strlen(key) + 1);
	memcpy(pair->key, key, strlen(key) + 1);
	pair->value = xstrdup(value);
	pair->at = p->order_count;
	if (p->order_count == p->order_cap) {
		p->order_cap = p->order_cap ? 2 * p->order_cap : 64;
		p->order = xrealloc(p->order, p->order_cap * sizeof(*p->order));
	}
	p->order[p->order_count++] = pair;
	HASH_ADD_STR(p->pairs, key, pair);
	return 0;
}

static void pair_encode(struct str *to, const char *key, const char *value)
{
	size_t key_len = strlen(key), value_len = strlen(value);
	assert(key_len <= UINT16_MAX && value_len <= UINT16_MAX);
	uint8_t head[4] = { (uint8_t)key_len, (uint8_t)(key_len >> 8), (uint8_t)value_len,
			    (uint8_t)(value_len >> 8) };
	str_add(to, head, sizeof(head));
	str_add(to, key, key_len);
	str_add(to, value, value_len);
}

/* Read one pair into two buffers of PMI1_KEY_MAX + 1 and PMI1_VALUE_MAX + 1 bytes. */
static bool pair_decode(struct span *from, char *key, char *value)
{
	if (from->len < 4)
		return false;
	size_t key_len = from->at[0] | (size_t)from->at[1] << 8;
	size_t value_len = from->at[2] | (size_t)from->at[3] << 8;
	if (!key_len || key_len > PMI1_KEY_MAX || value_len > PMI1_VALUE_MAX ||
	    from->len < 4 + key_len + value_len)
		return false;
	memcpy(key, from->at + 4, key_len);
	key[key_len] = '\0';
	memcpy(value, from->at + 4 + key_len, value_len);
	value[value_len] = '\0';
	from->at += 4 + key_len + value_len;
	from->len -= 4 + key_len + value_len;
	return strlen(key) == key_len && strlen(value) == value_len;
}

/* ---- one line ---- */

/* Split "a=b c=d" in place. A word without '=' belongs to the value before it: messages of abort
 * and some values have spaces. */
static bool line_parse(char *text, struct line *ret)
{
	ret->count = 0;
	char *p = text;
	while (*p) {
		while (*p == ' ')
			p++;
		if (!*p)
			break;
		char *end = strchrnul(p, ' ');
		char *equals = memchr(p, '=', (size_t)(end - p));
		if (equals == p || (!equals && !ret->count))
			return false;
		if (equals && ret->count < TOKENS_MAX) {
			if (ret->count)
				p[-1] = '\0';
			*equals = '\0';
			ret->tokens[ret->count++] = (struct token){ p, equals + 1 };
		} else if (equals) {
			return false;
		}
		p = end;
	}
	for (size_t i = 0; i < ret->count; i++) { /* blanks in front of the next key */
		char *value = ret->tokens[i].value;
		size_t len = strlen(value);
		while (len && value[len - 1] == ' ')
			value[--len] = '\0';
	}
	return ret->count > 0;
}

static const char *line_value(const struct line *l, const char *key)
{
	for (size_t i = 1; i < l->count; i++)
		if (!strcmp(l->tokens[i].key, key))
			return l->tokens[i].value;
	return NULL;
}

static bool line_number(const struct line *l, const char *key, int *ret)
{
	const char *text = line_value(l, key);
	if (!text || !*text)
		return false;
	char *end;
	errno = 0;
	long n = strtol(text, &end, 10);
	if (*end || errno || n < INT32_MIN || n > INT32_MAX)
		return false;
	*ret = (int)n;
	return true;
}

/* ---- commands ---- */

static void do_init(struct pmi1 *p, struct rank *r, const struct line *l)
{
	int version, sub;
	if (!line_number(l, "pmi_version", &version) || !line_number(l, "pmi_subversion", &sub)) {
		str_puts(&r->out, "cmd=response_to_init rc=-1 pmi_version=1 pmi_subversion=1\n");
		break_rank(p, r, "init without its version");
		return;
	}
	/* What MPICH's launcher does: refuse by rc, name what we speak. */
	bool ok = version == 1 && sub <= 1;
	str_printf(&r->out, "cmd=response_to_init pmi_version=1 pmi_subversion=1 rc=%d\n",
		   ok ? 0 : -1);
	if (ok && r->state != RANK_READY)
		move(p, r, RANK_READY);
}

static void do_maxes(struct pmi1 *p, struct rank *r, const struct line *l)
{
	str_printf(&r->out, "cmd=maxes kvsname_max=%d keylen_max=%d vallen_max=%d rc=0\n",
		   PMI1_KVSNAME_MAX, PMI1_KEY_MAX, PMI1_VALUE_MAX);
}

static void do_appnum(struct pmi1 *p, struct rank *r, const struct line *l)
{
	str_printf(&r->out, "cmd=appnum appnum=%u rc=0\n", r->app);
}

static void do_kvsname(struct pmi1 *p, struct rank *r, const struct line *l)
{
	str_printf(&r->out, "cmd=my_kvsname kvsname=%s rc=0\n", p->kvsname);
}

static void do_universe(struct pmi1 *p, struct rank *r, const struct line *l)
{
	str_printf(&r->out, "cmd=universe_size size=%u rc=0\n", p->universe);
}

static const char *put_fault(const struct pmi1 *p, const struct rank *r, const char *name,
			     const char *key, const char *value)
{
	if (!name || !key || !value || !*key)
		return "incomplete_put";
	if (strcmp(name, p->kvsname))
		return "kvs_not_found";
	if (strlen(key) > PMI1_KEY_MAX)
		return "key_too_long";
	if (strlen(value) > PMI1_VALUE_MAX)
		return "value_too_long";
	if (r->put_bytes + strlen(key) + strlen(value) > PMI1_RANK_BYTES_MAX)
		return "too_many_bytes_put";
	return NULL;
}

static void do_put(struct pmi1 *p, struct rank *r, const struct line *l)
{
	const char *key = line_value(l, "key"), *value = line_value(l, "value");
	const char *fault = put_fault(p, r, line_value(l, "kvsname"), key, value);
	if (fault) {
		str_printf(&r->out, "cmd=put_result rc=-1 msg=%s\n", fault);
		return;
	}
	r->put_bytes += strlen(key) + strlen(value);
	r->ever_put = true;
	pair_encode(&r->puts, key, value);
	str_puts(&r->out, "cmd=put_result rc=0 msg=success\n");
}

static void do_get(struct pmi1 *p, struct rank *r, const struct line *l)
{
	const char *name = line_value(l, "kvsname"), *key = line_value(l, "key");
	const struct pair *pair = NULL;
	const char *fault = "key_not_found";
	if (!name || strcmp(name, p->kvsname))
		fault = "kvs_not_found";
	else if (key)
		pair = pair_find(p, key);
	if (!pair) {
		str_printf(&r->out, "cmd=get_result rc=-1 msg=%s value=unknown\n", fault);
		return;
	}
	str_puts(&r->out, "cmd=get_result rc=0 msg=success value=");
	str_puts(&r->out, pair->value);
	str_puts(&r->out, "\n");
}

static void do_getbyidx(struct pmi1 *p, struct rank *r, const struct line *l)
{
	int at;
	if (!line_number(l, "idx", &at) || at < 0 || (uint32_t)at >= p->order_count) {
		str_puts(&r->out, "cmd=getbyidx_results rc=-2 reason=no_more_keyvals\n");
		return;
	}
	const struct pair *pair = p->order[at];
	str_printf(&r->out, "cmd=getbyidx_results rc=0 nextidx=%d key=%s val=%s\n", at + 1,
		   pair->key, pair->value);
}

/* Hand out the contribution when the last local rank has come. */
static void barrier_check(struct pmi1 *p, struct rank *last)
{
	if (p->full || p->waiting < p->local_count)
		return;
	struct str all = { 0 };
	for (uint32_t i = 0; i < p->local_count; i++) {
		struct rank *r = &p->ranks[i];
		str_add(&all, str_text(&r->puts), r->puts.len);
		str_clear(&r->puts);
	}
	p->full = true;
	tell(p, last,
	     (struct pmi1_event){ .kind = PMI1_FULL,
				  .ordinal = last->ordinal,
				  .bytes = { (const uint8_t *)str_text(&all), all.len } });
	str_free(&all);
}

static void do_barrier(struct pmi1 *p, struct rank *r, const struct line *l)
{
	move(p, r, RANK_BARRIER);
	r->ordinal++;
	tell(p, r,
	     (struct pmi1_event){ .kind = PMI1_ENTERED,
				  .ordinal = r->ordinal,
				  .closing = r->ever_put && !r->puts.len });
	barrier_check(p, r);
}

static void do_finalize(struct pmi1 *p, struct rank *r, const struct line *l)
{
	str_puts(&r->out, "cmd=finalize_ack rc=0\n");
	move(p, r, RANK_FINAL);
	tell(p, r, (struct pmi1_event){ .kind = PMI1_FINALIZED });
}

static void do_abort(struct pmi1 *p, struct rank *r, const struct line *l)
{
	int code = 1;
	(void)line_number(l, "exitcode", &code);
	const char *text = line_value(l, "error_msg");
	char message[PMI1_TEXT_MAX];
	snprintf(message, sizeof(message), "%s", text ? text : "the program called MPI_Abort");
	tell(p, r, (struct pmi1_event){ .kind = PMI1_ABORTED, .code = code, .text = message });
}

static void do_name(struct pmi1 *p, struct rank *r, const struct line *l)
{
	static const struct {
		const char *verb;
		enum pmi1_event_kind kind;
	} ways[] = {
		{ "publish", PMI1_PUBLISH },
		{ "lookup", PMI1_LOOKUP },
		{ "unpublish", PMI1_UNPUBLISH },
	};
	size_t way = 0;
	while (strncmp(l->tokens[0].value, ways[way].verb, strlen(ways[way].verb)) != 0)
		way++;
	assert(way < ARRAY_LEN(ways));
	const char *service = line_value(l, "service"), *port = line_value(l, "port");
	if (!service || !*service || strlen(service) > PMI1_VALUE_MAX || r->asked ||
	    (ways[way].kind == PMI1_PUBLISH && (!port || strlen(port) > PMI1_VALUE_MAX))) {
		str_printf(&r->out, "cmd=%s_result info=unfit rc=-1\n", ways[way].verb);
		return;
	}
	r->asked = ways[way].verb;
	port = port ? port : "";
	tell(p, r,
	     (struct pmi1_event){ .kind = ways[way].kind,
				  .text = service,
				  .bytes = { (const uint8_t *)port, strlen(port) } });
}

static void do_refuse(struct pmi1 *p, struct rank *r, const struct line *l)
{
	const char *cmd = l->tokens[0].value;
	const char *answer = !strcmp(cmd, "spawn")         ? "spawn_result"
			     : !strcmp(cmd, "create_kvs")  ? "newkvs"
			     : !strcmp(cmd, "destroy_kvs") ? "kvs_destroyed"
							   : "error";
	str_printf(&r->out, "cmd=%s rc=-1 msg=not_supported\n", answer);
	char text[PMI1_TEXT_MAX];
	snprintf(text, sizeof(text), "%.100s is not offered", cmd);
	tell(p, r, (struct pmi1_event){ .kind = PMI1_REFUSED, .code = -ENOTSUP, .text = text });
}

struct command {
	const char *name;
	unsigned states; /* in which the command may come */
	void (*run)(struct pmi1 *p, struct rank *r, const struct line *l);
	bool spawn_lines;
};

static const struct command commands[] = {
	{ "get", TO(RANK_READY), do_get, false },
	{ "put", TO(RANK_READY), do_put, false },
	{ "barrier_in", TO(RANK_READY), do_barrier, false },
	{ "init", TO(RANK_NEW) | TO(RANK_READY) | TO(RANK_FINAL), do_init, false },
	{ "get_maxes", TO(RANK_READY), do_maxes, false },
	{ "get_appnum", TO(RANK_READY), do_appnum, false },
	{ "get_my_kvsname", TO(RANK_READY), do_kvsname, false },
	{ "get_universe_size", TO(RANK_READY), do_universe, false },
	{ "getbyidx", TO(RANK_READY), do_getbyidx, false },
	{ "finalize", TO(RANK_READY), do_finalize, false },
	{ "abort", TO(RANK_NEW) | TO(RANK_READY) | TO(RANK_BARRIER) | TO(RANK_FINAL), do_abort,
	  false },
	{ "publish_name", TO(RANK_READY), do_name, false },
	{ "lookup_name", TO(RANK_READY), do_name, false },
	{ "unpublish_name", TO(RANK_READY), do_name, false },
};

static void command_run(struct pmi1 *p, struct rank *r, const struct line *l)
{
	const char *cmd = l->tokens[0].value;
	for (size_t i = 0; i < ARRAY_LEN(commands); i++) {
		const struct command *c = &commands[i];
		if (strcmp(c->name, cmd))
			continue;
		if (c->states & TO(r->state)) {
			c->run(p, r, l);
			return;
		}
		str_puts(&r->out, "cmd=error rc=-1 msg=command_out_of_order\n");
		break_rank(p, r,
			   r->state == RANK_NEW ? "a command before init"
						: "a command inside a barrier or after finalize");
		return;
	}
	if (r->state == RANK_READY)
		do_refuse(p, r, l);
	else
		break_rank(p, r, "an unknown command out of order");
}

static void line_take(struct pmi1 *p, struct rank *r, char *text, size_t len)
{
	if (memchr(text, '\0', len)) {
		str_puts(&r->out, "cmd=error rc=-1 msg=malformed\n");
		break_rank(p, r, "a line with a zero byte");
		return;
	}
	if (r->in_spawn) { /* lines up to "endcmd"; nothing in them matters to a refusal */
		r->spawn_bytes += len;
		if (r->spawn_bytes > PMI1_SPAWN_MAX) {
			str_puts(&r->out, "cmd=spawn_result rc=-1 msg=too_long\n");
			break_rank(p, r, "a spawn command without end");
		} else if (!strcmp(text, "endcmd")) {
			r->in_spawn = false;
		} else if (!strncmp(text, "mcmd=", 5)) {
			break_rank(p, r, "a spawn command inside a spawn command");
		}
		if (r->state == RANK_BROKEN || r->in_spawn)
			return;
		struct line l = { .tokens = { { (char *)"mcmd", (char *)"spawn" } }, .count = 1 };
		do_refuse(p, r, &l);
		return;
	}
	struct line l;
	if (!line_parse(text, &l)) {
		str_puts(&r->out, "cmd=error rc=-1 msg=malformed\n");
		break_rank(p, r, "a line that is no command");
		return;
	}
	if (!r->spoke) {
		r->spoke = true;
		tell(p, r, (struct pmi1_event){ .kind = PMI1_CONNECTED });
	}
	if (!strcmp(l.tokens[0].key, "cmd")) {
		command_run(p, r, &l);
	} else if (!strcmp(l.tokens[0].key, "mcmd") && r->state == RANK_READY) {
		r->in_spawn = true;
		r->spawn_bytes = 0;
	} else {
		str_puts(&r->out, "cmd=error rc=-1 msg=malformed\n");
		break_rank(p, r, "a line that is no command");
	}
}

/* ---- outside ---- */

void pmi1_feed(struct pmi1 *p, uint32_t local, const void *bytes, size_t len)
{
	assert(local < p->local_count);
	struct rank *r = &p->ranks[local];
	if (r->state == RANK_BROKEN)
		return;
	str_add(&r->in, bytes, len);
	size_t done = 0;
	while (r->state != RANK_BROKEN && done < r->in.len) {
		char *line = r->in.at + done;
		char *end = memchr(line, '\n', MIN(r->in.len - done, (size_t)PMI1_LINE_MAX));
		if (!end && r->in.len - done < PMI1_LINE_MAX)
			break;
		if (!end) {
			str_puts(&r->out, "cmd=error rc=-1 msg=line_too_long\n");
			break_rank(p, r, "a line that is too long");
			return;
		}
		*end = '\0';
		done += (size_t)(end - line) + 1;
		line_take(p, r, line, (size_t)(end - line));
		if (r->state != RANK_BROKEN && r->out.len > PMI1_OUT_MAX)
			break_rank(p, r, "replies are not read");
	}
	if (r->state != RANK_BROKEN)
		str_cut(&r->in, done);
}

void pmi1_hangup(struct pmi1 *p, uint32_t local)
{
	assert(local < p->local_count);
	struct rank *r = &p->ranks[local];
	if (r->state == RANK_FINAL)
		return;
	if (!r->spoke) {
		str_clear(&r->in); /* nobody was there: another connection may come */
		return;
	}
	break_with(p, r, -ECONNRESET, "the connection ended before finalize");
}

struct str *pmi1_out(struct pmi1 *p, uint32_t local)
{
	assert(local < p->local_count);
	return &p->ranks[local].out;
}

int pmi1_release(struct pmi1 *p, struct span merged, struct err *err)
{
	if (!p->full)
		return err_set(err, -EPROTO, "result of a barrier that nobody is in");
	char key[PMI1_KEY_MAX + 1], value[PMI1_VALUE_MAX + 1];
	while (merged.len) {
		if (!pair_decode(&merged, key, value))
			return err_set(err, -EPROTO, "result of a barrier: not a list of keys");
		int r = pair_put(p, key, value, err);
		if (r < 0)
			return r;
	}
	p->full = false;
	for (uint32_t i = 0; i < p->local_count; i++) {
		struct rank *r = &p->ranks[i];
		if (r->state != RANK_BARRIER)
			continue;
		move(p, r, RANK_READY);
		str_puts(&r->out, "cmd=barrier_out rc=0\n");
	}
	for (uint32_t i = 0; i < p->local_count; i++)
		if (p->ranks[i].state == RANK_READY)
			tell(p, &p->ranks[i],
			     (struct pmi1_event){ .kind = PMI1_RELEASED,
						  .ordinal = p->ranks[i].ordinal });
	return 0;
}

void pmi1_named(struct pmi1 *p, uint32_t local, bool ok, const char *port)
{
	assert(local < p->local_count);
	struct rank *r = &p->ranks[local];
	const char *asked = take_ptr(r->asked);
	if (r->state == RANK_BROKEN || !asked)
		return;
	str_printf(&r->out, "cmd=%s_result info=%s rc=%d", asked, ok ? "ok" : "not_ok",
		   ok ? 0 : -1);
	if (ok && port && *asked == 'l')
		str_printf(&r->out, " port=%s", port);
	str_puts(&r->out, "\n");
}

uint32_t pmi1_waiting(const struct pmi1 *p)
{
	return p->waiting;
}

uint32_t pmi1_ordinal(const struct pmi1 *p, uint32_t local)
{
	assert(local < p->local_count);
	return p->ranks[local].ordinal;
}

bool pmi1_connected(const struct pmi1 *p, uint32_t local)
{
	assert(local < p->local_count);
	return p->ranks[local].spoke;
}

bool pmi1_finalized(const struct pmi1 *p, uint32_t local)
{
	assert(local < p->local_count);
	return p->ranks[local].state == RANK_FINAL;
}

const char *pmi1_value(const struct pmi1 *p, const char *key)
{
	const struct pair *pair = pair_find(p, key);
	return pair ? pair->value : NULL;
}

int pmi1_new(struct pmi1 **ret, const struct pmi1_setup *setup, struct err *err)
{
	if (!setup->local_count || setup->local_count > setup->size)
		return err_set(err, -EINVAL, "PMI-1: %u local ranks of %u", setup->local_count,
			       setup->size);
	size_t name_len = strlen(setup->kvsname);
	if (!name_len || name_len >= PMI1_KVSNAME_MAX || strpbrk(setup->kvsname, " =\n"))
		return err_set(err, -EINVAL, "PMI-1: unfit name of a job '%s'", setup->kvsname);
	struct pmi1 *p = xcalloc(1, sizeof(*p));
	memcpy(p->kvsname, setup->kvsname, name_len + 1);
	p->size = setup->size;
	p->universe = setup->universe ? setup->universe : setup->size;
	p->local_count = setup->local_count;
	p->hook = setup->hook;
	p->ctx = setup->ctx;
	p->ranks = xcalloc(p->local_count, sizeof(*p->ranks));
	for (uint32_t i = 0; i < p->local_count; i++)
		p->ranks[i].app = setup->apps ? setup->apps[i] : 0;
	if (setup->mapping && *setup->mapping)
		(void)pair_put(p, "PMI_process_mapping", setup->mapping, NULL);
	*ret = p;
	return 0;
}

struct pmi1 *pmi1_free(struct pmi1 *p)
{
	if (!p)
		return NULL;
	HASH_CLEAR(hh, p->pairs);
	for (uint32_t i = 0; i < p->order_count; i++) {
		free(p->order[i]->value);
		free(p->order[i]);
	}
	free(p->order);
	for (uint32_t i = 0; i < p->local_count; i++) {
		str_free(&p->ranks[i].in);
		str_free(&p->ranks[i].out);
		str_free(&p->ranks[i].puts);
	}
	free(p->ranks);
	free(p);
	return NULL;
}
