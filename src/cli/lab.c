/* SPDX-License-Identifier: Apache-2.0 */
/* `copia lab …`: the words were checked by the table; the lab reads them itself. */
#include "cli/cli.h"

#include "../../lab/lab.h"

int lab_verb_main(struct cli *c)
{
	const char *name = strchr(c->verb->words, ' ') + 1;
	_cleanup_(free_p) char **argv = xcalloc((size_t)c->word_count + 2, sizeof(*argv));
	argv[0] = (char *)name;
	for (int i = 0; i < c->word_count; i++)
		argv[i + 1] = c->words[i];
	return lab_main(c->word_count + 1, argv);
}
