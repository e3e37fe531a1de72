/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/args.h"

#include "base/str.h"
#include "base/units.h"
#include "cli/nearest.h"
#include "cli/values.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

const struct args_option args_options[] = {
	{ "json", 0, "Print JSON.", offsetof(struct args_common, json) },
	{ "wide", 0, "Show all columns.", offsetof(struct args_common, wide) },
	{ "no-header", 0, "No headings above columns.", offsetof(struct args_common, no_header) },
	{ "help", 'h', "Explain this verb.", offsetof(struct args_common, help) },
};
const size_t args_option_count = ARRAY_LEN(args_options);

/* The words still to be read, and what was found in them. */
struct reader {
	const struct verb *verb;
	char *const *words;
	size_t count, at;
	ProtobufCMessage *request;
	bool *given;            /* for each argument of the verb */
	const char **positions; /* positional words, in order */
	size_t position_count;
	bool options_over;
};

/* ---------------------------------------------------------------- usage */

static bool is_typed_option(const struct verb_arg *a)
{
	return !a->hidden && !a->positional;
}

static bool takes_many(const struct verb *v, const struct verb_arg *a)
{
	return v->request->fields[a->field].label == PROTOBUF_C_LABEL_REPEATED;
}

void args_usage(struct str *out, const struct verb *v)
{
	str_printf(out, "copia %s", v->words);
	for (size_t i = 0; i < v->arg_count; i++) {
		if (!is_typed_option(&v->args[i]))
			continue;
		str_puts(out, " [OPTIONS]");
		break;
	}
	for (size_t i = 0; i < v->arg_count; i++) {
		const struct verb_arg *a = &v->args[i];
		if (!a->positional || a->hidden)
			continue;
		const char *more = takes_many(v, a) && !a->rest ? "…" : "";
		str_printf(out, a->required ? " %s%s" : " [%s%s]", a->name, more);
	}
}

static int usage_error(const struct reader *r, struct err *err, const char *what)
{
	_cleanup_(str_free) struct str usage = { 0 };
	args_usage(&usage, r->verb);
	return err_set(err, -EINVAL, "%s; usage: %s", what, str_text(&usage));
}

/* ---------------------------------------------------------------- options */

static const struct verb_arg *find_long(const struct verb *v, const char *name, size_t len)
{
	for (size_t i = 0; i < v->arg_count; i++) {
		const struct verb_arg *a = &v->args[i];
		if (is_typed_option(a) && strlen(a->name) == len && !strncmp(a->name, name, len))
			return a;
	}
	return NULL;
}

static const struct verb_arg *find_letter(const struct verb *v, char letter)
{
	for (size_t i = 0; i < v->arg_count; i++)
		if (is_typed_option(&v->args[i]) && v->args[i].letter == letter)
			return &v->args[i];
	return NULL;
}

static const struct verb_arg *find_dash(const struct verb *v)
{
	for (size_t i = 0; i < v->arg_count; i++)
		if (is_typed_option(&v->args[i]) && v->args[i].dash)
			return &v->args[i];
	return NULL;
}

static int unknown_option(const struct reader *r, const char *word, size_t len, struct err *err)
{
	_cleanup_(free_p) char *name = xstrndup(word, len);
	const char *best = NULL;
	for (size_t i = 0; i < r->verb->arg_count; i++)
		if (is_typed_option(&r->verb->args[i]))
			nearest_try(name + 2, r->verb->args[i].name, &best);
	for (size_t i = 0; i < args_option_count; i++)
		nearest_try(name + 2, args_options[i].name, &best);
	if (best)
		return err_set(err, -EINVAL, "unknown option %.80s; did you mean --%s?", name,
			       best);
	return err_set(err, -EINVAL, "unknown option %.80s", name);
}

static bool is_flag(const struct reader *r, const struct verb_arg *a)
{
	const ProtobufCFieldDescriptor *f = &r->verb->request->fields[a->field];
	return f->type == PROTOBUF_C_TYPE_BOOL && f->label != PROTOBUF_C_LABEL_REPEATED;
}

/* How an argument is called in messages: "--expires", "NODE". */
static const char *called(const struct verb_arg *a, char buf[80])
{
	(void)snprintf(buf, 80, "%s%s", a->positional ? "" : "--", a->name);
	return buf;
}

static int put(struct reader *r, const struct verb_arg *a, const char *text, struct err *err)
{
	char name[80];
	int e = args_set(r->request, a, text, err);
	if (e < 0)
		return err_wrap(err, e, "%s", called(a, name));
	r->given[a - r->verb->args] = true;
	return 0;
}

/* The option's value is behind '=' or behind the letter (`value`), or the next word. */
static int put_option(struct reader *r, const struct verb_arg *a, const char *value,
		      struct err *err)
{
	if (is_flag(r, a)) {
		if (value)
			return err_set(err, -EINVAL, "--%s takes no value", a->name);
		return put(r, a, "true", err);
	}
	if (!value && r->at == r->count)
		return err_set(err, -EINVAL, "--%s needs a value: %s%s", a->name, a->value,
			       !strcmp(a->unit, "ms")      ? ", like 90s, 5m or 2h"
			       : !strcmp(a->unit, "bytes") ? ", like 64K, 10M or 2G"
							   : "");
	return put(r, a, value ? value : r->words[r->at++], err);
}

static int read_long(struct reader *r, const char *word, struct args_common *common,
		     struct err *err)
{
	const char *equals = strchr(word, '=');
	size_t len = equals ? (size_t)(equals - word) : strlen(word);
	const struct verb_arg *a = find_long(r->verb, word + 2, len - 2);
	if (a)
		return put_option(r, a, equals ? equals + 1 : NULL, err);
	for (size_t i = 0; i < args_option_count; i++) {
		const struct args_option *o = &args_options[i];
		if (strlen(o->name) != len - 2 || strncmp(o->name, word + 2, len - 2))
			continue;
		if (equals)
			return err_set(err, -EINVAL, "--%s takes no value", o->name);
		*(bool *)((char *)common + o->offset) = true;
		return 0;
	}
	return unknown_option(r, word, len, err);
}

static int read_short(struct reader *r, const char *word, struct args_common *common,
		      struct err *err)
{
	const struct verb_arg *a = find_letter(r->verb, word[1]);
	const struct verb_arg *dash = find_dash(r->verb);
	if (a && !(word[2] && is_flag(r, a)))
		return put_option(r, a, word[2] ? word + 2 : NULL, err);
	if (a && !dash)
		return err_set(err, -EINVAL,
			       "unknown option %.80s; write -%c and what follows "
			       "apart",
			       word, word[1]);
	for (size_t i = 0; i < args_option_count; i++) {
		if (args_options[i].letter != word[1] || word[2])
			continue;
		*(bool *)((char *)common + args_options[i].offset) = true;
		return 0;
	}
	if (dash)
		return put(r, dash, word + 1, err);
	return err_set(err, -EINVAL, "unknown option %.80s", word);
}

/* ---------------------------------------------------------------- positionals */

/* How many positionals come before the one that takes the rest; SIZE_MAX when none does. */
static size_t words_before_rest(const struct verb *v)
{
	size_t before = 0;
	for (size_t i = 0; i < v->arg_count; i++) {
		if (!v->args[i].positional || v->args[i].hidden)
			continue;
		if (v->args[i].rest)
			return before;
		before++;
	}
	return SIZE_MAX;
}

static int read_words(struct reader *r, struct args_common *common, struct err *err)
{
	size_t rest = words_before_rest(r->verb);
	while (r->at < r->count) {
		const char *word = r->words[r->at++];
		int e = 0;
		bool dashed = word[0] == '-' && word[1] && !r->options_over;
		if (dashed && !strcmp(word, "--"))
			r->options_over = true;
		else if (dashed && word[1] == '-')
			e = read_long(r, word, common, err);
		else if (dashed)
			e = read_short(r, word, common, err);
		else
			r->positions[r->position_count++] = word;
		if (e < 0)
			return e;
		if (common->help)
			return 0;
		r->options_over |= r->position_count > rest;
	}
	return 0;
}

/* Positionals of the verb, and how many words the one that takes many gets. */
struct shape {
	size_t single, many; /* counts; many is 0 or 1 */
};

static struct shape shape_of(const struct verb *v)
{
	struct shape s = { 0 };
	for (size_t i = 0; i < v->arg_count; i++)
		if (v->args[i].positional && !v->args[i].hidden)
			*(takes_many(v, &v->args[i]) ? &s.many : &s.single) += 1;
	assert(s.many <= 1);
	return s;
}

static int place_words(struct reader *r, struct err *err)
{
	struct shape s = shape_of(r->verb);
	size_t many = s.many && r->position_count > s.single ? r->position_count - s.single : 0;
	size_t at = 0;
	for (size_t i = 0; i < r->verb->arg_count; i++) {
		const struct verb_arg *a = &r->verb->args[i];
		if (!a->positional || a->hidden)
			continue;
		size_t take = takes_many(r->verb, a) ? many : 1;
		for (; take && at < r->position_count; take--) {
			int e = put(r, a, r->positions[at++], err);
			if (e < 0)
				return e;
		}
	}
	if (at == r->position_count)
		return 0;
	char what[120];
	(void)snprintf(what, sizeof(what), "unexpected argument \"%.60s\"", r->positions[at]);
	return usage_error(r, err, what);
}

/* Fallbacks for what was not given, and complaints about what must be. */
static int complete(struct reader *r, struct err *err)
{
	for (size_t i = 0; i < r->verb->arg_count; i++) {
		const struct verb_arg *a = &r->verb->args[i];
		if (a->hidden || r->given[i])
			continue;
		char what[120], name[80];
		if (a->required) {
			(void)snprintf(what, sizeof(what), "%s is missing", called(a, name));
			return usage_error(r, err, what);
		}
		int e = *a->fallback ? put(r, a, a->fallback, err) : 0;
		if (e < 0)
			return e;
	}
	return 0;
}

static void free_request(ProtobufCMessage **m)
{
	if (*m)
		protobuf_c_message_free_unpacked(*m, NULL);
}

int args_read(const struct verb *v, char *const *words, size_t count, ProtobufCMessage **ret,
	      struct args_common *ret_common, struct err *err)
{
	_cleanup_(free_p) bool *given = xcalloc(v->arg_count + 1, sizeof(*given));
	_cleanup_(free_p) const char **positions = xcalloc(count + 1, sizeof(*positions));
	_cleanup_(free_request) ProtobufCMessage *request = xcalloc(1, v->request->sizeof_message);
	protobuf_c_message_init(v->request, request);
	struct reader r = {
		.verb = v,
		.words = words,
		.count = count,
		.request = request,
		.given = given,
		.positions = positions,
	};
	*ret_common = (struct args_common){ 0 };
	*ret = NULL;
	int e = read_words(&r, ret_common, err);
	if (e < 0 || ret_common->help)
		return e;
	e = place_words(&r, err);
	if (e >= 0)
		e = complete(&r, err);
	if (e < 0)
		return e;
	*ret = take_ptr(request);
	return 0;
}

const ProtobufCFieldDescriptor *args_field(const struct verb *v, const char *name)
{
	return protobuf_c_message_descriptor_get_field_by_name(v->request, name);
}
