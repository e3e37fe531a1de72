/* SPDX-License-Identifier: Apache-2.0 */
/* `copia copy`: a job without ranks; the files that travel are what it is for. */
#include "cli/run.h"

#include <errno.h>

static int fill(Copia__RunRequest *rq, const Copia__CopyRequest *q, struct err *err)
{
	size_t files = q->n_paths ? q->n_paths - 1 : 0;
	const char *target = files ? q->paths[files] : "";
	const char *colon = strchr(target, ':');
	if (!files || !colon || colon == target || colon[1] != '/')
		return err_set(
		    err, -EINVAL,
		    "files and behind them NODES:DIR are wanted, with DIR from / on; example: "
		    "copia copy input.dat all:/scratch");
	Copia__LaunchSpec *s = xcalloc(1, sizeof(*s));
	copia__launch_spec__init(s);
	rq->spec = s;
	rq->on = xstrndup(target, (size_t)(colon - target));
	s->copy_to = xstrdup(colon + 1);
	s->stdin = xstrdup("none");
	s->keep_going = true;
	s->exec = true;
	s->folder = xstrdup("/");
	s->stage = xcalloc(files, sizeof(*s->stage));
	for (size_t i = 0; i < files; i++) {
		int r = run_spec_file(&s->stage[s->n_stage], q->paths[i], err);
		if (r < 0)
			return r;
		for (size_t k = 0; k < s->n_stage; k++)
			if (!strcmp(s->stage[k]->name, s->stage[i]->name))
				return err_set(err, -EINVAL,
					       "two files would be %s in the same folder",
					       s->stage[i]->name);
		s->n_stage++;
	}
	return 0;
}

int copy_main(struct cli *c)
{
	const Copia__CopyRequest *q = (const void *)c->request;
	Copia__RunRequest *rq = xcalloc(1, sizeof(*rq));
	copia__run_request__init(rq);
	struct run r = { .verb = c->verb, .rq = rq, .verbose = q->verbose, .json = c->common.json };
	struct err err = { 0 };
	int code = fill(rq, q, &err);
	if (code < 0) {
		run_say(&r, "%s", err.msg);
		code = code == -EINVAL ? EXIT_USAGE : exit_code(code);
	} else {
		code = run_job(&r);
	}
	copia__run_request__free_unpacked(rq, NULL);
	return code;
}
