/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include <stdio.h>

enum { LEAST_COLUMNS = 40, MOST_COLUMNS = 100, NAME_COLUMN = 26 };

static unsigned columns_of(const struct show_style *s)
{
	unsigned columns = s->columns ? s->columns : 80;
	return MIN(MAX(columns, (unsigned)LEAST_COLUMNS), (unsigned)MOST_COLUMNS);
}

static void add_heading(struct str *out, const char *text, const struct show_style *s)
{
	if (out->len)
		str_puts(out, "\n");
	str_printf(out, s->colour ? "\x1b[1m%s\x1b[0m\n" : "%s\n", text);
}

/* Add `text` broken between words, each line but the first behind `indent` blanks; `at` is the
 * column of the first. '\n' begins a new line. Ends with a line break. */
static void add_wrapped(struct str *out, const char *text, unsigned indent, unsigned at,
			unsigned columns)
{
	bool first = true;
	while (*text) {
		if (*text == '\n') {
			str_printf(out, "\n%*s", (int)indent, "");
			at = indent;
			first = true;
			text++;
			continue;
		}
		size_t len = strcspn(text, " \n");
		_cleanup_(free_p) char *word = xstrndup(text, len);
		unsigned width = show_width(word);
		if (!first && at + 1 + width > columns) {
			str_printf(out, "\n%*s", (int)indent, "");
			at = indent;
			first = true;
		}
		str_printf(out, first ? "%s" : " %s", word);
		at += width + !first;
		first = false;
		text += len + (text[len] == ' ');
	}
	str_puts(out, "\n");
}

/* "  name      text, wrapped" */
static void add_entry(struct str *out, const char *name, const char *text,
		      const struct show_style *s)
{
	unsigned width = show_width(name);
	str_printf(out, "  %s", name);
	if (width + 3 > NAME_COLUMN)
		str_printf(out, "\n%*s", NAME_COLUMN, "");
	else
		str_printf(out, "%*s", (int)(NAME_COLUMN - 2 - width), "");
	add_wrapped(out, text, NAME_COLUMN, NAME_COLUMN, columns_of(s));
}

/* ---------------------------------------------------------------- one verb */

static void add_limits(struct str *text, const struct verb_arg *a)
{
	if (*a->fallback)
		str_printf(text, "%sDefault: %s.", text->len ? " " : "", a->fallback);
	if (a->dash)
		str_printf(text, "%sAlso typed as -%s.", text->len ? " " : "", a->value);
}

static void add_arguments(struct str *out, const struct verb *v, const struct show_style *s)
{
	bool begun = false;
	for (size_t i = 0; i < v->arg_count; i++) {
		const struct verb_arg *a = &v->args[i];
		if (!a->positional || a->hidden)
			continue;
		if (!begun)
			add_heading(out, "Arguments:", s);
		begun = true;
		_cleanup_(str_free) struct str text = { 0 };
		str_puts(&text, a->description);
		if (*a->allowed)
			str_printf(&text, "%sOne of %s.", text.len ? " " : "", a->allowed);
		add_limits(&text, a);
		add_entry(out, a->name, str_text(&text), s);
	}
}

static void add_option(struct str *out, char letter, const char *name, const char *value,
		       const char *text, const struct show_style *s)
{
	_cleanup_(str_free) struct str shown = { 0 };
	if (letter)
		str_printf(&shown, "-%c, ", letter);
	else
		str_puts(&shown, "    ");
	str_printf(&shown, "--%s%s%s", name, *value ? " " : "", value);
	add_entry(out, str_text(&shown), text, s);
}

static void add_options(struct str *out, const struct verb *v, const struct show_style *s)
{
	add_heading(out, "Options:", s);
	for (size_t i = 0; i < v->arg_count; i++) {
		const struct verb_arg *a = &v->args[i];
		if (a->positional || a->hidden)
			continue;
		_cleanup_(str_free) struct str text = { 0 };
		str_puts(&text, a->description);
		add_limits(&text, a);
		add_option(out, a->letter, a->name, a->value, str_text(&text), s);
	}
	for (size_t i = 0; i < args_option_count; i++)
		add_option(out, args_options[i].letter, args_options[i].name, "",
			   args_options[i].description, s);
}

void help_verb(struct str *out, const struct verb *v, const struct show_style *s)
{
	_cleanup_(str_free) struct str usage = { 0 };
	args_usage(&usage, v);
	str_puts(out, "Usage: ");
	add_wrapped(out, str_text(&usage), 7, 7, columns_of(s));
	str_puts(out, "\n");
	add_wrapped(out, v->description, 0, 0, columns_of(s));
	if (v->root)
		add_wrapped(out, "\nOnly root and the user that runs the daemon may do this.", 0, 0,
			    columns_of(s));
	add_arguments(out, v, s);
	add_options(out, v, s);
	add_heading(out, "Example:", s);
	str_printf(out, "  %s\n", v->example);
}

/* ---------------------------------------------------------------- many verbs */

static bool begins_with_words(const char *words, const char *begin)
{
	size_t len = strlen(begin);
	return !strncmp(words, begin, len) && (!len || words[len] == ' ' || !words[len]);
}

static bool add_group(struct str *out, const struct verb_group *g, const char *begin,
		      const struct show_style *s)
{
	bool begun = false;
	for (size_t i = 0; i < verb_count; i++) {
		const struct verb *v = &verbs[i];
		if (strcmp(v->group, g->name) || !begins_with_words(v->words, begin))
			continue;
		if (!begun)
			add_heading(out, g->title, s);
		begun = true;
		add_entry(out, v->words, v->help, s);
	}
	return begun;
}

bool help_some(struct str *out, const char *words, const struct show_style *s)
{
	bool any = false;
	for (size_t i = 0; i < verb_group_count; i++)
		any |= add_group(out, &verb_groups[i], words, s);
	return any;
}

void help_short(struct str *out, const struct show_style *s)
{
	add_wrapped(out, "Copia makes one cluster of Linux machines. The first steps:", 0, 0,
		    columns_of(s));
	str_puts(out, "\n");
	add_entry(out, "copia init", "on the first machine: make the cluster", s);
	add_entry(out, "copia token", "there: print a token for one more machine", s);
	add_entry(out, "copia join TOKEN@HOST", "on that machine: join", s);
	add_entry(out, "copia run -n 2 hostname", "run a program on the cluster", s);
	str_puts(out, "\n");
	add_wrapped(out,
		    "All verbs: copia help. One verb: copia VERB --help. A cluster to try, on this "
		    "machine alone: copia lab up.",
		    0, 0, columns_of(s));
}

void help_all(struct str *out, const struct show_style *s)
{
	str_puts(out, "Usage: copia VERB [OPTIONS] [ARGUMENTS]\n");
	(void)help_some(out, "", s);
	add_heading(out, "Every verb", s);
	for (size_t i = 0; i < args_option_count; i++) {
		char name[40];
		(void)snprintf(name, sizeof(name), "--%s", args_options[i].name);
		add_entry(out, name, args_options[i].description, s);
	}
	add_heading(out, "Exit codes (run and exec: the program's own)", s);
	for (size_t i = 0; i < verb_exit_count; i++) {
		char code[12];
		(void)snprintf(code, sizeof(code), "%d", verb_exits[i].code);
		add_entry(out, code, verb_exits[i].text, s);
	}
}
