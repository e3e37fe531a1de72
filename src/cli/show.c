/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/show.h"

#include "base/units.h"
#include "lib/json.h"
#include "lib/utf8.h"

#include <assert.h>
#include <ctype.h>
#include <stdio.h>
#include <time.h>

enum { COLUMN_LEAST = 8, GAP = 2 };

/* ---------------------------------------------------------------- text */

void show_text(struct str *out, const char *text, bool lines)
{
	size_t len = strlen(text);
	for (size_t i = 0; i < len;) {
		size_t n = utf8_sequence(text + i, len - i);
		bool control = n == 1 && ((unsigned char)text[i] < 0x20 || text[i] == 0x7f);
		bool high_control =
		    n == 2 && text[i] == '\xc2' && (unsigned char)text[i + 1] < 0xa0;
		bool layout = control && (text[i] == '\n' || text[i] == '\t');
		if (layout)
			str_add(out, lines ? text + i : " ", 1);
		else if (!n || control || high_control)
			str_puts(out, "?");
		else
			str_add(out, text + i, n);
		i += n ? n : 1;
	}
}

unsigned show_width(const char *text)
{
	unsigned width = 0;
	for (; *text; text++)
		width += ((unsigned char)*text & 0xc0) != 0x80;
	return width;
}

/* Bytes of the first `count` characters. */
static size_t bytes_of(const char *text, unsigned count)
{
	size_t at = 0;
	while (text[at] && (count || ((unsigned char)text[at] & 0xc0) == 0x80)) {
		count -= ((unsigned char)text[at] & 0xc0) != 0x80;
		at++;
	}
	return at;
}

/* ---------------------------------------------------------------- one value */

static uint64_t as_unsigned(const ProtobufCFieldDescriptor *f, const void *at)
{
	switch (field_size(f)) {
	case 8:
		return f->type == PROTOBUF_C_TYPE_DOUBLE ? (uint64_t) * (const double *)at
							 : *(const uint64_t *)at;
	default:
		return *(const uint32_t *)at;
	}
}

static bool is_quantity(const ProtobufCFieldDescriptor *f)
{
	switch (f->type) {
	case PROTOBUF_C_TYPE_STRING:
	case PROTOBUF_C_TYPE_BYTES:
	case PROTOBUF_C_TYPE_MESSAGE:
	case PROTOBUF_C_TYPE_ENUM:
	case PROTOBUF_C_TYPE_BOOL:
		return false;
	default:
		return true;
	}
}

static void add_time(struct str *out, uint64_t ms)
{
	time_t seconds = (time_t)(ms / 1000);
	struct tm local;
	char text[32];
	if (!ms || !localtime_r(&seconds, &local) ||
	    !strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local))
		str_puts(out, "-");
	else
		str_puts(out, text);
}

static void add_double(struct str *out, double value, const char *as)
{
	if (!strcmp(as, "percent"))
		str_printf(out, "%.0f%%", value * 100);
	else
		str_printf(out, "%.2f", value);
}

/* Values with a meaning beyond their type; false when `as` says nothing. */
static bool add_quantity(struct str *out, const ProtobufCFieldDescriptor *f, const void *at,
			 const char *as)
{
	char text[32];
	if (!strcmp(as, "size"))
		str_puts(out, show_size(as_unsigned(f, at), text));
	else if (!strcmp(as, "duration"))
		str_puts(out, show_duration(as_unsigned(f, at), text));
	else if (!strcmp(as, "time"))
		add_time(out, as_unsigned(f, at));
	else
		return false;
	return true;
}

static void add_value(struct str *out, const ProtobufCFieldDescriptor *f, const void *at,
		      const char *as)
{
	const ProtobufCBinaryData *bytes = at;
	char word[64];
	if (is_quantity(f) && add_quantity(out, f, at, as))
		return;
	switch (f->type) {
	case PROTOBUF_C_TYPE_STRING:
		show_text(out, *(char *const *)at ? *(char *const *)at : "", false);
		break;
	case PROTOBUF_C_TYPE_BYTES:
		for (size_t i = 0; i < bytes->len; i++)
			str_printf(out, "%02x", bytes->data[i]);
		break;
	case PROTOBUF_C_TYPE_BOOL:
		str_puts(out, *(const protobuf_c_boolean *)at ? "yes" : "no");
		break;
	case PROTOBUF_C_TYPE_ENUM:
		show_text(out, enum_word(f->descriptor, *(const int *)at, word), false);
		break;
	case PROTOBUF_C_TYPE_DOUBLE:
		add_double(out, *(const double *)at, as);
		break;
	case PROTOBUF_C_TYPE_FLOAT:
		add_double(out, (double)*(const float *)at, as);
		break;
	case PROTOBUF_C_TYPE_INT32:
	case PROTOBUF_C_TYPE_SINT32:
	case PROTOBUF_C_TYPE_SFIXED32:
		str_printf(out, "%d", (int)*(const int32_t *)at);
		break;
	case PROTOBUF_C_TYPE_INT64:
	case PROTOBUF_C_TYPE_SINT64:
	case PROTOBUF_C_TYPE_SFIXED64:
		str_printf(out, "%lld", (long long)*(const int64_t *)at);
		break;
	case PROTOBUF_C_TYPE_MESSAGE:
		break;
	default:
		str_printf(out, "%llu", (unsigned long long)as_unsigned(f, at));
	}
}

/* The field of a column, through its inner message; NULL when that is not there. */
static const ProtobufCFieldDescriptor *column_field(const ProtobufCMessageDescriptor *row,
						    const struct verb_column *c)
{
	const ProtobufCFieldDescriptor *f = &row->fields[c->field];
	if (c->inner < 0)
		return f;
	const ProtobufCMessageDescriptor *inner = f->descriptor;
	return &inner->fields[c->inner];
}

/* All elements of a column in one cell, with `between` between them. */
static void add_cell(struct str *out, const ProtobufCMessage *row, const struct verb_column *c,
		     const char *between)
{
	size_t count;
	const ProtobufCFieldDescriptor *f = column_field(row->descriptor, c);
	if (c->inner >= 0) {
		const ProtobufCFieldDescriptor *outer = &row->descriptor->fields[c->field];
		const void *at = field_at(row, outer, &count);
		row = count ? *(ProtobufCMessage *const *)at : NULL;
		if (!row)
			return;
	}
	const char *at = field_at(row, f, &count);
	for (size_t i = 0; i < count; i++) {
		if (i)
			str_puts(out, between);
		add_value(out, f, at + i * field_size(f), c->as);
	}
}

/* ---------------------------------------------------------------- colours */

static const struct {
	const char *word, *code;
} word_colours[] = {
	{ "up", "32" },       { "ok", "32" },       { "running", "32" }, { "down", "31" },
	{ "problem", "31" },  { "failed", "31" },   { "drained", "33" }, { "warning", "33" },
	{ "starting", "33" }, { "draining", "33" }, { "left", "2" },     { "note", "36" },
};

static const char *colour_of(const ProtobufCFieldDescriptor *f, const char *text)
{
	if (strcmp(f->name, "state") && strcmp(f->name, "level") && strcmp(f->name, "health"))
		return NULL;
	for (size_t i = 0; i < ARRAY_LEN(word_colours); i++)
		if (!strcmp(text, word_colours[i].word))
			return word_colours[i].code;
	return NULL;
}

static void add_coloured(struct str *out, const char *text, size_t len, const char *code,
			 const struct show_style *s)
{
	bool coloured = s->colour && code && len;
	if (coloured)
		str_printf(out, "\x1b[%sm", code);
	str_add(out, text, len);
	if (coloured)
		str_puts(out, "\x1b[0m");
}

/* One cell, cut or padded to `width` characters; the last one of a line is not padded. */
static void add_padded(struct str *out, const char *text, unsigned width, bool right, bool last,
		       const char *colour, const struct show_style *s)
{
	unsigned has = show_width(text);
	unsigned pad = has < width ? width - has : 0;
	if (right && pad)
		str_printf(out, "%*s", (int)pad, "");
	if (has > width && width) {
		add_coloured(out, text, bytes_of(text, width - 1), colour, s);
		str_puts(out, "…");
	} else {
		add_coloured(out, text, strlen(text), colour, s);
	}
	if (!right && pad && !last)
		str_printf(out, "%*s", (int)pad, "");
	if (!last)
		str_printf(out, "%*s", GAP, "");
}

/* ---------------------------------------------------------------- tables */

struct table {
	const struct verb *verb;
	const struct show_style *style;
	const ProtobufCMessageDescriptor *row;
	const struct verb_column *columns[SHOW_COLUMNS_MAX];
	unsigned widths[SHOW_COLUMNS_MAX];
	bool right[SHOW_COLUMNS_MAX];
	size_t column_count, row_count;
	char **cells; /* row by row; owned */
};

static void choose_columns(struct table *t)
{
	for (size_t i = 0; i < t->verb->column_count; i++) {
		const struct verb_column *c = &t->verb->columns[i];
		if ((c->wide && !t->style->wide) || t->column_count == SHOW_COLUMNS_MAX)
			continue;
		if (t->style->names && t->column_count)
			break;
		const ProtobufCFieldDescriptor *f = column_field(t->row, c);
		t->right[t->column_count] = is_quantity(f) &&
					    f->label != PROTOBUF_C_LABEL_REPEATED &&
					    strcmp(c->as, "time") != 0;
		t->columns[t->column_count++] = c;
	}
}

static void fill_cells(struct table *t, ProtobufCMessage *const *rows)
{
	t->cells = xcalloc(t->row_count * t->column_count + 1, sizeof(*t->cells));
	for (size_t i = 0; i < t->column_count; i++)
		t->widths[i] = t->style->no_header ? 0 : show_width(t->columns[i]->title);
	for (size_t i = 0; i < t->row_count * t->column_count; i++) {
		struct str cell = { 0 };
		add_cell(&cell, rows[i / t->column_count], t->columns[i % t->column_count], ",");
		if (!cell.len)
			str_puts(&cell, "-");
		unsigned *width = &t->widths[i % t->column_count];
		*width = MAX(*width, show_width(cell.at));
		t->cells[i] = str_take(&cell);
	}
}

/* Take from the widest text column until the lines fit, or no column can give any more. */
static void fit_columns(struct table *t)
{
	unsigned total = 0;
	for (size_t i = 0; i < t->column_count; i++)
		total += t->widths[i] + (i + 1 < t->column_count ? GAP : 0);
	while (t->style->columns && total > t->style->columns) {
		unsigned *widest = NULL;
		for (size_t i = 0; i < t->column_count; i++) {
			unsigned least =
			    MAX((unsigned)COLUMN_LEAST, show_width(t->columns[i]->title));
			if (!t->right[i] && t->widths[i] > least &&
			    (!widest || t->widths[i] > *widest))
				widest = &t->widths[i];
		}
		if (!widest)
			return;
		(*widest)--;
		total--;
	}
}

static void add_rows(struct str *out, const struct table *t)
{
	for (size_t i = 0; i < t->column_count && !t->style->no_header && !t->style->names; i++) {
		bool last = i + 1 == t->column_count;
		add_padded(out, t->columns[i]->title, t->widths[i], t->right[i], last, "1",
			   t->style);
		str_puts(out, last ? "\n" : "");
	}
	for (size_t i = 0; i < t->row_count * t->column_count; i++) {
		size_t c = i % t->column_count;
		bool last = c + 1 == t->column_count;
		add_padded(out, t->cells[i], t->widths[c], t->right[c], last,
			   colour_of(column_field(t->row, t->columns[c]), t->cells[i]), t->style);
		str_puts(out, last ? "\n" : "");
	}
}

static void show_table(struct str *out, const struct verb *v, const ProtobufCMessage *reply,
		       const struct show_style *s)
{
	const ProtobufCFieldDescriptor *f = &reply->descriptor->fields[v->view_field];
	assert(f->type == PROTOBUF_C_TYPE_MESSAGE && f->label == PROTOBUF_C_LABEL_REPEATED);
	struct table t = { .verb = v, .style = s, .row = f->descriptor };
	ProtobufCMessage *const *rows = field_at(reply, f, &t.row_count);
	choose_columns(&t);
	if (!t.column_count)
		return;
	fill_cells(&t, rows);
	fit_columns(&t);
	add_rows(out, &t);
	for (size_t i = 0; i < t.row_count * t.column_count; i++)
		free(t.cells[i]);
	free(t.cells);
}

/* ---------------------------------------------------------------- other views */

static void add_label(struct str *out, const char *title, unsigned width)
{
	_cleanup_(str_free) struct str label = { 0 };
	for (const char *at = title; *at; at++) {
		char low = (char)tolower((unsigned char)*at);
		str_add(&label, &low, 1);
	}
	str_puts(&label, *title ? ":" : " ");
	str_printf(out, "%-*s", (int)(width + 1 + GAP), str_text(&label));
}

static void show_fields(struct str *out, const struct verb *v, const ProtobufCMessage *reply,
			const struct show_style *s)
{
	unsigned width = 0;
	for (size_t i = 0; i < v->column_count; i++)
		if (!v->columns[i].wide || s->wide)
			width = MAX(width, show_width(v->columns[i].title));
	for (size_t i = 0; i < v->column_count; i++) {
		const struct verb_column *c = &v->columns[i];
		_cleanup_(str_free) struct str cell = { 0 };
		/* One line for each element; no value can hold a line break of its own. */
		add_cell(&cell, reply, c, "\n");
		if (!cell.len || (c->wide && !s->wide))
			continue;
		const char *title = c->title;
		for (char *line = cell.at, *next; line; line = next) {
			next = strchr(line, '\n');
			if (next)
				*next++ = '\0';
			add_label(out, title, width);
			add_coloured(out, line, strlen(line),
				     colour_of(column_field(v->reply, c), line), s);
			str_puts(out, "\n");
			title = "";
		}
	}
}

static void show_text_field(struct str *out, const struct verb *v, const ProtobufCMessage *reply)
{
	const ProtobufCFieldDescriptor *f = &reply->descriptor->fields[v->view_field];
	size_t count;
	char *const *texts = field_at(reply, f, &count);
	for (size_t i = 0; i < count; i++) {
		if (!texts[i] || !*texts[i])
			continue;
		show_text(out, texts[i], true);
		if (out->at[out->len - 1] != '\n')
			str_puts(out, "\n");
	}
}

void show_reply(struct str *out, const struct verb *v, const ProtobufCMessage *reply,
		const struct show_style *s)
{
	assert(reply->descriptor == v->reply);
	if (v->view == VERB_TABLE)
		show_table(out, v, reply, s);
	else if (v->view == VERB_FIELDS)
		show_fields(out, v, reply, s);
	else if (v->view == VERB_TEXT)
		show_text_field(out, v, reply);
}

void show_line(struct str *out, const struct verb *v, const ProtobufCMessage *m,
	       struct show_widths *w, const struct show_style *s)
{
	assert(m->descriptor == v->reply);
	size_t shown = 0, last = 0;
	for (size_t i = 0; i < v->column_count; i++)
		if (!v->columns[i].wide || s->wide)
			last = i;
	for (size_t i = 0; i < v->column_count && shown < SHOW_COLUMNS_MAX; i++) {
		const struct verb_column *c = &v->columns[i];
		if (c->wide && !s->wide)
			continue;
		_cleanup_(str_free) struct str cell = { 0 };
		add_cell(&cell, m, c, ",");
		if (!cell.len)
			str_puts(&cell, "-");
		const ProtobufCFieldDescriptor *f = column_field(m->descriptor, c);
		unsigned *width = &w->at[shown++];
		*width = MAX(*width, show_width(cell.at));
		add_padded(out, cell.at, *width, is_quantity(f) && strcmp(c->as, "time") != 0,
			   i == last, colour_of(f, cell.at), s);
	}
	str_puts(out, "\n");
}
