/* SPDX-License-Identifier: Apache-2.0 */
/* `copia exec`: one task on each of some nodes; a job whose ranks are shown as nodes. */
#include "cli/run.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

static void fill(Copia__RunRequest *rq, const Copia__ExecRequest *q)
{
	Copia__LaunchSpec *s = xcalloc(1, sizeof(*s));
	copia__launch_spec__init(s);
	rq->spec = s;
	run_spec_caller(s, q->env, q->n_env, q->chdir);
	Copia__LaunchProgram *p = xcalloc(1, sizeof(*p));
	copia__launch_program__init(p);
	p->argv = xcalloc(q->n_argv, sizeof(*p->argv));
	for (size_t i = 0; i < q->n_argv; i++)
		p->argv[p->n_argv++] = xstrdup(q->argv[i]);
	s->programs = xcalloc(1, sizeof(*s->programs));
	s->programs[s->n_programs++] = p;
	s->exec = true;
	s->keep_going = true;
	s->timeout_ms = q->timeout_ms;
	s->terminal = q->terminal;
	s->mpi = xstrdup("none");
	s->stdin = xstrdup("0");
	struct winsize size;
	if (q->terminal && ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
		s->rows = size.ws_row;
		s->columns = size.ws_col;
	}
	rq->on = xstrdup(q->nodes);
}

int exec_main(struct cli *c)
{
	const Copia__ExecRequest *q = (const void *)c->request;
	Copia__RunRequest *rq = xcalloc(1, sizeof(*rq));
	copia__run_request__init(rq);
	struct run r = { .verb = c->verb, .rq = rq, .quiet = q->plain, .json = c->common.json };
	int code;
	if (!q->n_argv) {
		run_say(&r, "which command? example: copia exec n[1-4] -- uptime");
		code = EXIT_USAGE;
	} else if (q->terminal && !isatty(STDIN_FILENO)) {
		run_say(&r, "-t needs a terminal, and standard input is none");
		code = EXIT_USAGE;
	} else {
		fill(rq, q);
		code = run_job(&r);
	}
	copia__run_request__free_unpacked(rq, NULL);
	return code;
}
