/* SPDX-License-Identifier: Apache-2.0 */
#include "base/nodelist.h"

#include <assert.h>
#include <errno.h>

enum { WORD_MAX = 253, DIGITS_MAX = 9, BRACKETS_MAX = 4 };

/* A growing list with a hash index, so that a list of 16384 names is read in linear time. */
struct builder {
	struct nodelist list;
	size_t cap;
	uint32_t *slots; /* index into list.names + 1; 0 = free */
	size_t slot_count;
};

static uint32_t name_hash(const char *name)
{
	uint32_t h = 2166136261u; /* FNV-1a */
	for (; *name; name++)
		h = (h ^ (uint8_t)*name) * 16777619u;
	return h;
}

static void builder_index(struct builder *b, size_t i)
{
	size_t at = name_hash(b->list.names[i]) & (b->slot_count - 1);
	while (b->slots[at])
		at = (at + 1) & (b->slot_count - 1);
	b->slots[at] = (uint32_t)i + 1;
}

static void builder_grow(struct builder *b)
{
	b->cap = b->cap ? b->cap * 2 : 16;
	b->list.names = xrealloc(b->list.names, b->cap * sizeof(*b->list.names));
	b->slot_count = b->cap * 2;
	free(b->slots);
	b->slots = xcalloc(b->slot_count, sizeof(*b->slots));
	for (size_t i = 0; i < b->list.count; i++)
		builder_index(b, i);
}

static bool builder_has(const struct builder *b, const char *name)
{
	if (!b->slot_count)
		return false;
	size_t at = name_hash(name) & (b->slot_count - 1);
	for (; b->slots[at]; at = (at + 1) & (b->slot_count - 1))
		if (!strcmp(b->list.names[b->slots[at] - 1], name))
			return true;
	return false;
}

static int builder_add(struct builder *b, const char *name, size_t len, struct err *err)
{
	_cleanup_(free_p) char *copy = xstrndup(name, len);
	if (builder_has(b, copy))
		return 0;
	if (b->list.count == NODELIST_MAX)
		return err_set(err, -E2BIG, "node list: more than %d names", NODELIST_MAX);
	if (b->list.count == b->cap)
		builder_grow(b);
	b->list.names[b->list.count++] = take_ptr(copy);
	builder_index(b, b->list.count - 1);
	return 0;
}

static void builder_deinit(struct builder *b)
{
	nodelist_free(&b->list);
	free(b->slots);
}

static bool word_char(char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
	       c == '.' || c == '-' || c == '_' || c == '+' || c == '=' || c == ':' || c == '@';
}

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Read a number; *ret_width is the number of digits typed. */
static int number_read(const char **at, uint32_t *ret, size_t *ret_width, const char *word,
		       struct err *err)
{
	const char *from = *at;
	uint32_t value = 0;
	while (is_digit(**at) && *at - from < DIGITS_MAX)
		value = value * 10 + (uint32_t)(*(*at)++ - '0');
	if (*at == from || is_digit(**at))
		return err_set(err, -EINVAL,
			       "node list: \"%.80s\": a number of 1 to %d digits is wanted at "
			       "\"%.20s\"",
			       word, DIGITS_MAX, from);
	*ret = value;
	*ret_width = (size_t)(*at - from);
	return 0;
}

/* One bracket of a word: its numbers, as ranges. `at` stands behind the '['. */
struct ranges {
	struct {
		uint32_t from, to;
		size_t width;
	} at[256];
	size_t count;
};

static int ranges_read(const char **at, struct ranges *ret, const char *word, struct err *err)
{
	ret->count = 0;
	for (;;) {
		if (ret->count == ARRAY_LEN(ret->at))
			return err_set(err, -E2BIG, "node list: \"%.80s\": too many ranges", word);
		uint32_t from, to;
		size_t width, width_to;
		int r = number_read(at, &from, &width, word, err);
		if (r < 0)
			return r;
		to = from;
		if (**at == '-') {
			(*at)++;
			r = number_read(at, &to, &width_to, word, err);
			if (r < 0)
				return r;
			if (to < from)
				return err_set(err, -EINVAL,
					       "node list: \"%.80s\": range %u-%u runs backwards",
					       word, from, to);
		}
		if (to - from >= NODELIST_MAX)
			return err_set(err, -E2BIG, "node list: more than %d names", NODELIST_MAX);
		ret->at[ret->count].from = from;
		ret->at[ret->count].to = to;
		ret->at[ret->count++].width = width;
		if (**at == ',') {
			(*at)++;
			continue;
		}
		if (**at == ']') {
			(*at)++;
			return 0;
		}
		return err_set(err, -EINVAL, "node list: \"%.80s\": \",\" or \"]\" is missing",
			       word);
	}
}

/* The end of the word that starts at `from`: a comma outside brackets, white space, or the end. */
static const char *word_end(const char *from)
{
	bool inside = false;
	for (; *from; from++) {
		if (*from == '[')
			inside = true;
		else if (*from == ']')
			inside = false;
		else if (*from == ' ' || *from == '\t' || *from == '\n' ||
			 (*from == ',' && !inside))
			break;
	}
	return from;
}

/* Replace each name in `parts` by itself followed by each number of `ranges`. */
static int parts_multiply(struct nodelist *parts, const struct ranges *ranges, struct err *err)
{
	size_t numbers = 0;
	for (size_t i = 0; i < ranges->count; i++)
		numbers += ranges->at[i].to - ranges->at[i].from + 1;
	if (numbers > NODELIST_MAX || numbers * parts->count > NODELIST_MAX)
		return err_set(err, -E2BIG, "node list: more than %d names", NODELIST_MAX);
	struct nodelist more = { .names = xcalloc(numbers * parts->count, sizeof(char *)) };
	for (size_t p = 0; p < parts->count; p++)
		for (size_t i = 0; i < ranges->count; i++)
			for (uint32_t n = ranges->at[i].from; n <= ranges->at[i].to; n++) {
				struct str s = { 0 };
				str_printf(&s, "%s%0*u", parts->names[p], (int)ranges->at[i].width,
					   n);
				more.names[more.count++] = str_take(&s);
			}
	nodelist_free(parts);
	*parts = more;
	return 0;
}

static void parts_append(struct nodelist *parts, const char *text, size_t len)
{
	for (size_t i = 0; i < parts->count; i++) {
		struct str s = { 0 };
		str_puts(&s, parts->names[i]);
		str_add(&s, text, len);
		free(parts->names[i]);
		parts->names[i] = str_take(&s);
	}
}

/* One word, such as "rack[01-12]-n[1,3]". */
static int word_read(struct builder *b, const char *word, struct err *err)
{
	_cleanup_(nodelist_free) struct nodelist parts = { .names = xcalloc(1, sizeof(char *)),
							   .count = 1 };
	parts.names[0] = xstrdup("");
	int brackets = 0;
	for (const char *at = word; *at;) {
		const char *from = at;
		while (word_char(*at))
			at++;
		parts_append(&parts, from, (size_t)(at - from));
		if (!*at)
			break;
		if (*at != '[')
			return err_set(err, -EINVAL,
				       "node list: \"%.80s\": unexpected character at \"%.20s\"",
				       word, at);
		if (++brackets > BRACKETS_MAX)
			return err_set(err, -E2BIG, "node list: \"%.80s\": too many brackets",
				       word);
		at++;
		struct ranges ranges;
		int r = ranges_read(&at, &ranges, word, err);
		if (r < 0)
			return r;
		r = parts_multiply(&parts, &ranges, err);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < parts.count; i++) {
		size_t len = strlen(parts.names[i]);
		if (!len || len > WORD_MAX)
			return err_set(err, -EINVAL,
				       "node list: a name of 1 to %d characters is "
				       "wanted",
				       WORD_MAX);
		int r = builder_add(b, parts.names[i], len, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int nodelist_parse(const char *text, struct nodelist *ret, struct err *err)
{
	assert(text && ret);
	if (strnlen(text, NODELIST_TEXT_MAX + 1) > NODELIST_TEXT_MAX)
		return err_set(err, -E2BIG, "node list: longer than %d bytes", NODELIST_TEXT_MAX);
	struct builder b = { 0 };
	int r = 0;
	bool wanted = true; /* a word must follow: at the start and behind a comma */
	while (r == 0) {
		while (*text == ' ' || *text == '\t' || *text == '\n')
			text++;
		if (*text == ',' || !*text) {
			if (wanted) {
				r = err_set(err, -EINVAL,
					    "node list: a name is missing%s; example: n1,n[3-5]",
					    *text ? " before \",\"" : " at the end");
				break;
			}
			if (!*text)
				break;
			wanted = true;
			text++;
			continue;
		}
		const char *end = word_end(text);
		_cleanup_(free_p) char *word = xstrndup(text, (size_t)(end - text));
		r = word_read(&b, word, err);
		text = end;
		wanted = false;
	}
	if (r == 0) {
		*ret = b.list;
		b.list = (struct nodelist){ 0 };
	}
	builder_deinit(&b);
	return r;
}

void nodelist_free(struct nodelist *l)
{
	for (size_t i = 0; i < l->count; i++)
		free(l->names[i]);
	free(l->names);
	*l = (struct nodelist){ 0 };
}

/* ---------------------------------------------------------------- showing */

/* A name split at its last digits: "n07x" has none at the end, so digits is 0 long. */
struct split {
	const char *name;
	size_t stem;  /* bytes before the digits */
	size_t width; /* digits */
	uint32_t number;
};

static struct split name_split(const char *name)
{
	size_t len = strlen(name), from = len;
	while (from > 0 && is_digit(name[from - 1]) && len - from < DIGITS_MAX)
		from--;
	struct split s = { .name = name, .stem = from, .width = len - from };
	for (size_t i = from; i < len; i++)
		s.number = s.number * 10 + (uint32_t)(name[i] - '0');
	return s;
}

static int split_compare(const void *pa, const void *pb)
{
	const struct split *a = pa, *b = pb;
	int c = memcmp(a->name, b->name, MIN(a->stem, b->stem));
	if (c)
		return c;
	if (a->stem != b->stem)
		return a->stem < b->stem ? -1 : 1;
	if ((a->width == 0) != (b->width == 0))
		return a->width == 0 ? -1 : 1;
	if (a->number != b->number)
		return a->number < b->number ? -1 : 1;
	return a->width < b->width ? -1 : a->width > b->width;
}

/* Two names can stand in one bracket when the stem is the same and the digits would be written
 * alike: both without leading zeros, or both padded to one width. */
static bool padded(const struct split *s)
{
	return s->width > 1 && s->name[s->stem] == '0';
}

static bool same_bracket(const struct split *a, const struct split *b)
{
	if (!a->width || !b->width || a->stem != b->stem || memcmp(a->name, b->name, a->stem) != 0)
		return false;
	return a->width == b->width || (!padded(a) && !padded(b));
}

/* "3" or "3-5" can be written with the width of its first number. */
static bool same_range(const struct split *last, const struct split *next)
{
	return next->number == last->number + 1 &&
	       (next->width == last->width || (!padded(last) && !padded(next)));
}

static void bracket_show(const struct split *from, size_t count, struct str *out)
{
	str_add(out, from->name, from->stem);
	if (count == 1) {
		str_puts(out, from->name + from->stem);
		return;
	}
	str_puts(out, "[");
	for (size_t i = 0; i < count;) {
		size_t end = i + 1;
		while (end < count && same_range(&from[end - 1], &from[end]))
			end++;
		str_printf(out, "%s%s", i ? "," : "", from[i].name + from[i].stem);
		if (end - i == 2)
			str_printf(out, ",%s", from[end - 1].name + from[end - 1].stem);
		else if (end - i > 2)
			str_printf(out, "-%s", from[end - 1].name + from[end - 1].stem);
		i = end;
	}
	str_puts(out, "]");
}

void nodelist_show(char *const *names, size_t count, struct str *out)
{
	if (!count)
		return;
	_cleanup_(free_p) struct split *sorted = xcalloc(count, sizeof(*sorted));
	for (size_t i = 0; i < count; i++)
		sorted[i] = name_split(names[i]);
	qsort(sorted, count, sizeof(*sorted), split_compare);
	for (size_t i = 0; i < count;) {
		size_t end = i + 1;
		while (end < count && same_bracket(&sorted[end - 1], &sorted[end]))
			end++;
		if (i)
			str_puts(out, ",");
		bracket_show(&sorted[i], end - i, out);
		i = end;
	}
}
