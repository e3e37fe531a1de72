/* SPDX-License-Identifier: Apache-2.0 */
/* `copia run --file`: several programs in one job.
 *
 *   # comment
 *   0:     ./master input.dat
 *   1-3,5: ./worker "an argument with spaces"
 *   *:     ./helper
 *
 * Each line names ranks and a program. Ranks must be covered from 0 on without gaps or doubles; "*"
 * once, for one rank behind the others (with -n for all that are left). Words are parted by white
 * space; quotes and backslash work as in the shell, nothing else does. */
#include "cli/run.h"

#include "base/units.h"

#include <errno.h>
#include <stdio.h>

enum { FILE_MAX = 1 << 20, RANKS_MAX = 1 << 20, WORDS_MAX = 4096 };

struct line {
	Copia__LaunchProgram *program;
	uint32_t from, to; /* one range; a line of several ranges makes several */
	bool rest;
};

static int split_words(const char *text, char ***ret, size_t *ret_count, struct err *err)
{
	char **words = NULL;
	size_t count = 0;
	int r = 0;
	while (r == 0) {
		while (*text == ' ' || *text == '\t')
			text++;
		if (!*text || *text == '#')
			break;
		struct str word = { 0 };
		str_puts(&word, "");
		char quote = 0;
		for (; *text && (quote || (*text != ' ' && *text != '\t')); text++) {
			if (quote && *text == quote)
				quote = 0;
			else if (!quote && (*text == '"' || *text == '\''))
				quote = *text;
			else if (*text == '\\' && quote != '\'' && text[1])
				str_add(&word, ++text, 1);
			else
				str_add(&word, text, 1);
		}
		if (quote)
			r = err_set(err, -EINVAL, "a quote is not closed");
		if (count == WORDS_MAX)
			r = err_set(err, -E2BIG, "more than %d words", WORDS_MAX);
		words = xrealloc(words, (count + 1) * sizeof(*words));
		words[count++] = str_take(&word);
	}
	*ret = words;
	*ret_count = count;
	return r;
}

static Copia__LaunchProgram *program_new(char *const *words, size_t count, uint32_t ranks)
{
	Copia__LaunchProgram *p = xcalloc(1, sizeof(*p));
	copia__launch_program__init(p);
	p->argv = xcalloc(count, sizeof(*p->argv));
	for (size_t i = 0; i < count; i++)
		p->argv[p->n_argv++] = xstrdup(words[i]);
	p->ranks = ranks;
	return p;
}

struct lines {
	struct line *at;
	size_t count;
};

static int line_add(struct lines *l, char *const *words, size_t count, uint64_t from, uint64_t to,
		    struct err *err)
{
	if (l->count == RUN_PROGRAMS_MAX)
		return err_set(err, -E2BIG, "more than %d programs", RUN_PROGRAMS_MAX);
	if (to < from)
		return err_set(err, -EINVAL, "range %u-%u runs backwards", (unsigned)from,
			       (unsigned)to);
	l->at = xrealloc(l->at, (l->count + 1) * sizeof(*l->at));
	l->at[l->count++] = (struct line){ .program = program_new(words, count, 0),
					   .from = (uint32_t)from,
					   .to = (uint32_t)to };
	return 0;
}

static int line_read(struct lines *l, char *text, struct err *err)
{
	text += strspn(text, " \t");
	if (!*text || *text == '#')
		return 0;
	char *colon = strchr(text, ':');
	if (!colon)
		return err_set(err, -EINVAL, "\"RANKS: PROG ARGS\" is wanted");
	*colon = '\0';
	char **words = NULL;
	size_t count = 0;
	int r = split_words(colon + 1, &words, &count, err);
	if (r == 0 && !count)
		r = err_set(err, -EINVAL, "no program behind \"%s:\"", text);
	char *save = NULL;
	for (char *piece = strtok_r(text, ", \t", &save); r == 0 && piece;
	     piece = strtok_r(NULL, ", \t", &save)) {
		uint64_t from = RANKS_MAX, to = RANKS_MAX;
		if (strcmp(piece, "*")) {
			char *dash = strchr(piece, '-');
			if (dash)
				*dash = '\0';
			r = parse_u64(piece, 0, RANKS_MAX - 1, &from, err);
			to = from;
			if (r == 0 && dash)
				r = parse_u64(dash + 1, 0, RANKS_MAX - 1, &to, err);
		}
		if (r == 0)
			r = line_add(l, words, count, from, to, err);
	}
	for (size_t i = 0; i < count; i++)
		free(words[i]);
	free(words);
	return r;
}

static int line_compare(const void *a, const void *b)
{
	const struct line *x = a, *y = b;
	return x->from < y->from ? -1 : x->from > y->from;
}

static int lines_use(struct lines *l, uint32_t ranks, Copia__LaunchSpec *s, struct err *err)
{
	if (!l->count)
		return err_set(err, -EINVAL, "no programs in it");
	qsort(l->at, l->count, sizeof(*l->at), line_compare);
	uint32_t next = 0;
	s->programs = xcalloc(l->count, sizeof(*s->programs));
	for (size_t i = 0; i < l->count; i++) {
		struct line *x = &l->at[i];
		if (x->from == RANKS_MAX) {
			if (i + 1 < l->count)
				return err_set(err, -EINVAL,
					       "\"*\" stands for the ranks that are "
					       "left, once");
			x->from = next;
			x->to = ranks > next ? ranks - 1 : next;
		}
		if (x->from != next)
			return err_set(err, -EINVAL, "rank %u is %s", MIN(next, x->from),
				       x->from > next ? "missing" : "there twice");
		x->program->ranks = x->to - x->from + 1;
		next = x->to + 1;
		s->programs[s->n_programs++] = take_ptr(x->program);
	}
	return 0;
}

int run_read_file(const char *path, uint32_t ranks, Copia__LaunchSpec *s, struct err *err)
{
	FILE *f = fopen(path, "re");
	if (!f)
		return err_set(err, -errno, "--file %s: %s", path, strerror(errno));
	struct lines l = { 0 };
	char *text = NULL;
	size_t cap = 0, total = 0;
	int r = 0;
	unsigned number = 0;
	ssize_t len;
	while (r == 0 && (len = getline(&text, &cap, f)) >= 0) {
		number++;
		total += (size_t)len;
		if (total > FILE_MAX)
			r = err_set(err, -E2BIG, "larger than 1 MiB");
		text[strcspn(text, "\r\n")] = '\0';
		if (r == 0)
			r = line_read(&l, text, err);
		if (r < 0)
			(void)err_wrap(err, r, "--file %s, line %u", path, number);
	}
	if (r == 0 && (r = lines_use(&l, ranks, s, err)) < 0)
		(void)err_wrap(err, r, "--file %s", path);
	for (size_t i = 0; i < l.count; i++)
		if (l.at[i].program)
			copia__launch_program__free_unpacked(l.at[i].program, NULL);
	free(l.at);
	free(text);
	(void)fclose(f);
	return r;
}
