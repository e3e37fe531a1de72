/* SPDX-License-Identifier: Apache-2.0 */
/* Names that ranks publish (kept by the job's first node) and direct modex (a rank asks for what
 * a rank of another node has put). Messages, integers little-endian:
 *
 *   name ask     u32 token, u8 op, then pairs: u32 length, key, u32 length, value
 *   name answer  u32 token, u32 code (positive errno or 0), pairs
 *   data ask     u32 token, u32 rank
 *   data answer  u32 token, u32 code, bytes */
#include "caps/wireup/job-private.h"
#include <errno.h>
#include <stdio.h>
#include <utlist.h>

static void put_u32(struct str *to, uint32_t value)
{
	uint8_t b[4] = { (uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
			 (uint8_t)(value >> 24) };
	str_add(to, b, sizeof(b));
}

static bool get_u32(struct span *from, uint32_t *ret)
{
	if (from->len < 4)
		return false;
	*ret = from->at[0] | (uint32_t)from->at[1] << 8 | (uint32_t)from->at[2] << 16 |
	       (uint32_t)from->at[3] << 24;
	from->at += 4;
	from->len -= 4;
	return true;
}

static void put_text(struct str *to, const char *text)
{
	put_u32(to, (uint32_t)strlen(text));
	str_puts(to, text);
}

/* The caller owns *ret. */
static bool get_text(struct span *from, char **ret)
{
	uint32_t len;
	if (!get_u32(from, &len) || from->len < len)
		return false;
	*ret = xstrndup((const char *)from->at, len);
	from->at += len;
	from->len -= len;
	return true;
}

static struct span text_span(const struct str *s)
{
	return (struct span){ (const uint8_t *)str_text(s), s->len };
}

/* A message to a node of the job, which may be this one. */
static void post(struct job *j, uint32_t to, Copia__WireupKind kind, struct str *message)
{
	struct err err = { 0 };
	int r = 0;
	if (to != j->node)
		exchange_send(j->exchange, to, (uint32_t)kind, text_span(message), brain_now_ms());
	else if (kind == COPIA__WIREUP_KIND__WIREUP_NAME_ASK)
		r = names_asked(j, j->node, text_span(message), &err);
	else if (kind == COPIA__WIREUP_KIND__WIREUP_NAME)
		r = names_answered(j, text_span(message), &err);
	else if (kind == COPIA__WIREUP_KIND__WIREUP_DATA_ASK)
		r = data_asked(j, j->node, text_span(message), &err);
	else
		r = data_answered(j, text_span(message), &err);
	if (r < 0)
		job_fail(j, &err);
	str_free(message);
}

/* ---- names ---- */

void names_ask(struct job *j, struct pending *p, enum name_op op, const struct pmix_pair *pairs,
	       uint32_t count)
{
	struct str m = { 0 };
	uint8_t byte = (uint8_t)op;
	put_u32(&m, (uint32_t)p->token);
	str_add(&m, &byte, 1);
	for (uint32_t i = 0; i < count; i++) {
		put_text(&m, pairs[i].key);
		put_text(&m, pairs[i].value ? pairs[i].value : "");
	}
	post(j, 0, COPIA__WIREUP_KIND__WIREUP_NAME_ASK, &m);
}

static struct name *name_find(struct job *j, const char *key)
{
	struct name *n = NULL;
	HASH_FIND_STR(j->names, key, n);
	return n;
}

static void name_free(struct job *j, struct name *n)
{
	HASH_DEL(j->names, n);
	j->name_count--;
	free(n->value);
	free(n);
}

/* Returns 0 or a positive errno; found pairs go into `answer`. */
static uint32_t name_do(struct job *j, enum name_op op, const char *key, const char *value,
			struct str *answer)
{
	struct name *n = name_find(j, key);
	if (op == NAME_LOOKUP && n) {
		put_text(answer, key);
		put_text(answer, n->value);
	} else if (op == NAME_UNPUBLISH && n) {
		name_free(j, n);
	} else if (op == NAME_PUBLISH && !n) {
		if (j->name_count >= JOB_NAMES_MAX || !*key)
			return ENOSPC;
		n = xcalloc(1, sizeof(*n) + strlen(key) + 1);
		memcpy(n->key, key, strlen(key) + 1);
		n->value = xstrdup(value);
		HASH_ADD_STR(j->names, key, n);
		j->name_count++;
	} else {
		return n ? EEXIST : ENOENT;
	}
	return 0;
}

int names_asked(struct job *j, uint32_t from, struct span bytes, struct err *err)
{
	uint32_t token, code = 0;
	struct str found = { 0 };
	if (!get_u32(&bytes, &token) || !bytes.len || bytes.at[0] > NAME_UNPUBLISH)
		return err_set(err, -EPROTO, "job %s: broken question for a name", j->id);
	enum name_op op = bytes.at[0];
	bytes.at++;
	bytes.len--;
	while (bytes.len && (!code || op == NAME_LOOKUP)) {
		_cleanup_(free_p) char *key = NULL;
		_cleanup_(free_p) char *value = NULL;
		if (!get_text(&bytes, &key) || !get_text(&bytes, &value)) {
			str_free(&found);
			return err_set(err, -EPROTO, "job %s: broken question for a name", j->id);
		}
		code = name_do(j, op, key, value, &found);
	}
	if (op == NAME_LOOKUP) /* what is there, is there */
		code = found.len ? 0 : ENOENT;
	struct str m = { 0 };
	put_u32(&m, token);
	put_u32(&m, code);
	str_add(&m, str_text(&found), found.len);
	str_free(&found);
	post(j, from, COPIA__WIREUP_KIND__WIREUP_NAME, &m);
	return 0;
}

int names_answered(struct job *j, struct span bytes, struct err *err)
{
	uint32_t token, code, count = 0;
	struct pmix_pair pairs[PMIX_PAIRS_MAX] = { 0 };
	if (!get_u32(&bytes, &token) || !get_u32(&bytes, &code))
		return err_set(err, -EPROTO, "job %s: broken answer for a name", j->id);
	struct pending *p = pending_find(j, token);
	while (p && bytes.len && count < PMIX_PAIRS_MAX) {
		struct pmix_pair *pair = &pairs[count];
		bool whole = get_text(&bytes, &pair->key) && get_text(&bytes, &pair->value);
		count++;
		if (!whole)
			break;
	}
	if (p && p->request) {
		pmix_answer_names(p->request, -(int)code, pairs, count);
	} else if (p) {
		pmi1_named(j->pmi1, p->at, !code, count ? pairs[0].value : NULL);
		ranks_flush_one(&j->ranks[p->at]);
	}
	for (uint32_t i = 0; i < count; i++) {
		free(pairs[i].key);
		free(pairs[i].value);
	}
	if (p)
		pending_free(j, p);
	return 0;
}

void names_end(struct job *j)
{
	struct name *n, *next;
	HASH_ITER(hh, j->names, n, next)
	{
		name_free(j, n);
	}
}

/* ---- direct modex ---- */

void data_ask(struct job *j, struct pmix_request *request, uint32_t rank)
{
	if (rank >= j->size) {
		pmix_answer_modex(request, -ENOENT, (struct span){ 0 });
		return;
	}
	struct pending *p = pending_new(j);
	struct str m = { 0 };
	p->request = request;
	put_u32(&m, (uint32_t)p->token);
	put_u32(&m, rank);
	post(j, j->node_of[rank], COPIA__WIREUP_KIND__WIREUP_DATA_ASK, &m);
}

static void data_answer(struct job *j, uint32_t to, uint32_t token, int code, struct span bytes)
{
	struct str m = { 0 };
	put_u32(&m, token);
	put_u32(&m, (uint32_t)-code);
	str_add(&m, bytes.at, bytes.len);
	post(j, to, COPIA__WIREUP_KIND__WIREUP_DATA, &m);
}

int data_asked(struct job *j, uint32_t from, struct span bytes, struct err *err)
{
	uint32_t token, rank, at;
	if (!get_u32(&bytes, &token) || !get_u32(&bytes, &rank))
		return err_set(err, -EPROTO, "job %s: broken question for data", j->id);
	if (!j->pmix || !job_local(j, rank, &at)) {
		data_answer(j, from, token, -ENOENT, (struct span){ 0 });
		return 0;
	}
	struct pending *p = pending_new(j);
	p->serves = true;
	p->from = from;
	p->from_token = token;
	pmix_ask(j->nspace, rank, p->token);
	return 0;
}

void data_served(struct job *j, uint64_t token, int code, struct span bytes)
{
	struct pending *p = pending_find(j, token);
	if (!p || !p->serves)
		return;
	data_answer(j, p->from, p->from_token, code, bytes);
	pending_free(j, p);
}

int data_answered(struct job *j, struct span bytes, struct err *err)
{
	uint32_t token, code;
	if (!get_u32(&bytes, &token) || !get_u32(&bytes, &code))
		return err_set(err, -EPROTO, "job %s: broken answer with data", j->id);
	struct pending *p = pending_find(j, token);
	if (!p || !p->request)
		return 0; /* the job was told otherwise meanwhile */
	pmix_answer_modex(p->request, -(int)code, bytes);
	pending_free(j, p);
	return 0;
}
