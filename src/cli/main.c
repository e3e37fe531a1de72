/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli.h"

#include "cli/nearest.h"

#include <errno.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { VERB_WORDS_MAX = 3 };

static struct show_style style_of_terminal(void)
{
	struct show_style s = { 0 };
	struct winsize size;
	const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");
	if (!isatty(STDOUT_FILENO))
		return s;
	s.colour = !(no_colour && *no_colour) && !(term && !strcmp(term, "dumb"));
	if (!ioctl(STDOUT_FILENO, TIOCGWINSZ, &size))
		s.columns = size.ws_col;
	return s;
}

/* The verb with the most words at the beginning of `words`; *ret_used is how many. */
static const struct verb *find_verb(char *const *words, int count, int *ret_used)
{
	_cleanup_(str_free) struct str joined = { 0 };
	const struct verb *found = NULL;
	for (int i = 0; i < count && i < VERB_WORDS_MAX && words[i][0] != '-'; i++) {
		str_printf(&joined, "%s%s", i ? " " : "", words[i]);
		const struct verb *v = verb_find(str_text(&joined));
		if (!v)
			continue;
		found = v;
		*ret_used = i + 1;
	}
	return found;
}

/* "lab" alone: show what there is. */
static bool is_beginning(const char *word)
{
	size_t len = strlen(word);
	for (size_t i = 0; i < verb_count; i++)
		if (!strncmp(verbs[i].words, word, len) && verbs[i].words[len] == ' ')
			return true;
	return false;
}

static int unknown_verb(char *const *words, int count)
{
	_cleanup_(str_free) struct str typed = { 0 };
	str_puts(&typed, words[0]);
	if (is_beginning(words[0]) && count > 1 && words[1][0] != '-')
		str_printf(&typed, " %s", words[1]);
	const char *best = NULL;
	_cleanup_(str_free) struct str first = { 0 };
	for (size_t i = 0; i < verb_count; i++)
		nearest_try(str_text(&typed), verbs[i].words, &best);
	for (size_t i = 0; i < verb_count && !best; i++) {
		str_clear(&first);
		str_add(&first, verbs[i].words, strcspn(verbs[i].words, " "));
		nearest_try(words[0], str_text(&first), &best);
	}
	struct err err = { 0 };
	if (best)
		(void)err_set(&err, -EINVAL, "unknown verb \"%.60s\"; did you mean \"%s\"?",
			      str_text(&typed), best);
	else
		(void)err_set(&err, -EINVAL, "unknown verb \"%.60s\"; all verbs: copia help",
			      str_text(&typed));
	return cli_error(NULL, -EINVAL, &err);
}

static int show_beginning(const char *word, const struct show_style *s)
{
	_cleanup_(str_free) struct str out = { 0 };
	(void)help_some(&out, word, s);
	return cli_print(&out);
}

static int run_verb(struct cli *c)
{
	struct err err = { 0 };
	int r = args_read(c->verb, c->words, (size_t)c->word_count, &c->request, &c->common, &err);
	if (r < 0) {
		int code = cli_error(c->verb, r, &err);
		(void)fprintf(stderr, "More: copia %s --help\n", c->verb->words);
		return code;
	}
	if (c->common.help) {
		_cleanup_(str_free) struct str out = { 0 };
		help_verb(&out, c->verb, &c->style);
		return cli_print(&out);
	}
	c->style.wide = c->common.wide;
	c->style.no_header = c->common.no_header;
	cli_main *own = own_main(c->verb);
	return own ? own(c) : cli_call(c);
}

/* Options that people try without a verb. */
static const struct {
	const char *option, *verb;
} bare_options[] = {
	{ "--help", "help" },
	{ "-h", "help" },
	{ "--version", "version" },
	{ "-V", "version" },
};

int main(int argc, char **argv)
{
	struct cli c = { .style = style_of_terminal(), .words = argv + 1, .word_count = argc - 1 };
	if (argc < 2) {
		_cleanup_(str_free) struct str out = { 0 };
		help_short(&out, &c.style);
		return cli_print(&out);
	}
	int used = 0;
	c.verb = find_verb(c.words, c.word_count, &used);
	for (size_t i = 0; i < ARRAY_LEN(bare_options); i++) {
		if (c.verb || strcmp(argv[1], bare_options[i].option))
			continue;
		c.verb = verb_find(bare_options[i].verb);
		used = 1;
	}
	if (!c.verb) {
		bool alone = argc == 2 || !strcmp(argv[2], "--help") || !strcmp(argv[2], "-h");
		return alone && is_beginning(argv[1]) ? show_beginning(argv[1], &c.style)
						      : unknown_verb(c.words, c.word_count);
	}
	c.words += used;
	c.word_count -= used;
	int code = run_verb(&c);
	if (c.request)
		protobuf_c_message_free_unpacked(c.request, NULL);
	return code;
}
