/* SPDX-License-Identifier: Apache-2.0 */
/* What must be there before ranks can start: their program, their folder, files that --stage
 * names. Files are looked at in a thread of the pool, as the user and not as the daemon (setfsuid
 * is a matter of the thread): a user learns nothing about files that are not his to read.
 *
 *   prepare_start -> look (thread): what is in place? -> stage_get for the rest -> install
 *   (thread): into the job's private folder, or where `copia copy` wants it -> site_ready */
#include "caps/launch/launch-impl-node.h"
#include "caps/launch/site-files-node.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <pwd.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct item {
	struct file_wish file; /* texts owned here */
	bool in_place;
	bool asked;
	int program; /* index, or -1: a file of --stage or copy */
};

struct prepare {
	uv_work_t work;
	struct launch *l;
	struct site_job *job; /* NULL: given up; the thread's end frees us */
	struct file_user user;
	struct item *items;
	size_t count, waiting;
	char *folder; /* as asked */
	char *home;   /* found by the thread */
	bool folder_there, running, copies;
	char *stage_folder; /* made by the thread when anything goes into it; owned */
	char *target;       /* copia copy: where to */
	struct err err;
	int code;
};

static void prepare_free(struct prepare *p)
{
	for (size_t i = 0; i < p->count; i++)
		file_wish_free(&p->items[i].file);
	free(p->items);
	free(p->user.groups);
	free(p->folder);
	free(p->home);
	free(p->stage_folder);
	free(p->target);
	free(p);
}

void prepare_cancel(struct site_job *j)
{
	struct prepare *p = take_ptr(j->prepare);
	if (!p)
		return;
	p->job = NULL;
	stage_cancel(p->l, p);
	if (!p->running)
		prepare_free(p);
}

static void item_add(struct prepare *p, const Copia__LaunchFile *f, int program)
{
	struct item *i = &p->items[p->count++];
	file_wish_init(&i->file, f);
	i->program = program;
}

static struct prepare *prepare_new(struct site_job *j)
{
	const Copia__LaunchSpec *s = j->start->spec;
	struct prepare *p = xcalloc(1, sizeof(*p));
	p->l = j->l;
	p->job = j;
	p->items = xcalloc(s->n_programs + s->n_stage, sizeof(*p->items));
	for (size_t i = 0; i < s->n_programs; i++)
		if (s->programs[i]->file && s->programs[i]->file->path[0])
			item_add(p, s->programs[i]->file, (int)i);
	for (size_t i = 0; i < s->n_stage; i++)
		item_add(p, s->stage[i], -1);
	p->folder = xstrdup(s->folder);
	p->copies = s->copy_to[0];
	p->target = xstrdup(s->copy_to);
	p->user = (struct file_user){ .change = j->l->node->settings.root,
				      .uid = s->uid,
				      .gid = s->gid,
				      .group_count = s->n_groups };
	p->user.groups = xmemdup(s->groups, s->n_groups * sizeof(gid_t));
	char id[ID_TEXT];
	struct str folder = { 0 };
	str_printf(&folder, "%s/jobs/%s", j->l->node->settings.state_dir, id_show(&j->id, id));
	p->stage_folder = str_take(&folder);
	return p;
}

/* ---------------------------------------------------------------- looking (thread) */

static void find_home(struct prepare *p)
{
	struct passwd pw, *found = NULL;
	char buf[4096];
	if (getpwuid_r(p->user.uid, &pw, buf, sizeof(buf), &found) == 0 && found &&
	    files_folder_usable(&p->user, pw.pw_dir))
		p->home = xstrdup(pw.pw_dir);
}

static void look(uv_work_t *w)
{
	struct prepare *p = w->data;
	p->folder_there = files_folder_usable(&p->user, p->folder);
	if (!p->folder_there)
		find_home(p);
	for (size_t i = 0; i < p->count; i++) {
		struct item *it = &p->items[i];
		/* Without a hash the file can only be meant where it is. */
		it->in_place = it->file.size == FILE_NO_HASH ||
			       files_same(&p->user, &it->file, p->copies ? p->target : NULL);
	}
}

/* ---------------------------------------------------------------- installing (thread) */

static void install(uv_work_t *w)
{
	struct prepare *p = w->data;
	for (size_t i = 0; p->code == 0 && i < p->count; i++) {
		struct item *it = &p->items[i];
		if (p->copies && !it->in_place)
			p->code = files_copy_to(&p->user, &it->file, p->target, &p->err);
		else if (!p->copies && it->program >= 0 && !it->in_place)
			p->code = files_link_program(&p->user, &it->file, p->stage_folder,
						     it->program, &p->err);
		else if (!p->copies && it->program < 0)
			p->code = files_copy_staged(&p->user, &it->file, p->stage_folder,
						    it->in_place, &p->err);
	}
	if (p->code == 0 && !p->copies)
		p->code = files_give(&p->user, p->stage_folder, &p->err);
}

static void settle(struct site_job *j, struct prepare *p)
{
	bool staged = false;
	for (size_t i = 0; i < p->count; i++) {
		struct item *it = &p->items[i];
		if (it->program < 0) {
			staged = true;
			continue;
		}
		if (!it->in_place)
			j->stage_folder =
			    j->stage_folder ? j->stage_folder : xstrdup(p->stage_folder);
		struct str path = { 0 };
		if (it->in_place)
			str_puts(&path, it->file.path);
		else
			str_printf(&path, "%s/bin/%d/%s", p->stage_folder, it->program,
				   it->file.name);
		free(j->exe[it->program]);
		j->exe[it->program] = str_take(&path);
	}
	if (staged && !p->copies && !j->stage_folder)
		j->stage_folder = xstrdup(p->stage_folder);
	free(j->folder);
	if (staged && !p->copies && !j->start->spec->folder_must_exist) {
		struct str path = { 0 };
		str_printf(&path, "%s/files", p->stage_folder);
		j->folder = str_take(&path);
	} else if (p->folder_there || j->start->spec->folder_must_exist) {
		j->folder = xstrdup(p->folder);
	} else {
		j->folder = xstrdup(p->home ? p->home : "/");
		if (!j->start->spec->exec)
			site_note(j, "%s: folder %s is not there; the ranks start in %s",
				  j->place->name, p->folder, j->folder);
	}
}

static void on_installed(uv_work_t *w, int status)
{
	struct prepare *p = w->data;
	struct site_job *j = p->job;
	p->running = false;
	(void)status;
	if (!j) {
		stage_folder_remove(p->l, p->stage_folder);
		prepare_free(p);
		return;
	}
	j->prepare = NULL;
	if (p->code < 0) {
		err_wrap(&p->err, p->code, "node %s", j->place->name);
		j->stage_folder = xstrdup(p->stage_folder);
		site_fail(j, p->code, &p->err);
	} else {
		settle(j, p);
		site_ready(j);
	}
	prepare_free(p);
}

static void install_start(struct prepare *p)
{
	for (size_t i = 0; i < p->count; i++)
		if (!p->items[i].in_place)
			stage_cache_path(p->l, p->items[i].file.hash, &p->items[i].file.cached);
	p->running = true;
	p->work.data = p;
	(void)uv_queue_work(p->l->node->loop, &p->work, install, on_installed);
}

/* ---------------------------------------------------------------- fetching */

void prepare_got(struct prepare *p, const uint8_t hash[32], int code, const char *error,
		 uint64_t bytes)
{
	struct site_job *j = p->job;
	(void)hash;
	assert(j && p->waiting);
	p->waiting--;
	if (code < 0) {
		struct err err = { 0 };
		(void)err_set(&err, code, "%s", error);
		site_fail(j, code, &err); /* frees us */
		return;
	}
	j->report->file_bytes += bytes;
	if (bytes)
		j->report->files_sent++;
	else
		j->report->files_cached++;
	if (!p->waiting)
		install_start(p);
}

static void on_looked(uv_work_t *w, int status)
{
	struct prepare *p = w->data;
	struct site_job *j = p->job;
	p->running = false;
	(void)status;
	if (!j) {
		prepare_free(p);
		return;
	}
	for (size_t i = 0; i < p->count; i++) {
		if (p->items[i].in_place)
			j->report->files_in_place++;
		else
			p->waiting++;
	}
	if (!p->waiting) {
		install_start(p);
		return;
	}
	/* Asking may answer at once, and the last answer may end us: count what is left first. */
	size_t left = p->waiting;
	for (size_t i = 0; left && i < p->count; i++) {
		if (p->items[i].in_place)
			continue;
		left--;
		if (stage_get(p->l, p, &j->id, &p->items[i].file, j->start->ancestors,
			      j->start->n_ancestors, j->start->spec->uid) < 0)
			return; /* failed at once: the job did, too */
	}
}

void prepare_start(struct site_job *j)
{
	const Copia__LaunchSpec *s = j->start->spec;
	bool own = j->start->origin == launch_self(j->l), files = s->n_stage > 0;
	for (size_t i = 0; i < s->n_programs; i++) {
		const Copia__LaunchFile *f = s->programs[i]->file;
		files |= f && f->hash.len == 32;
		if (f && f->path[0])
			j->exe[i] = xstrdup(f->path);
	}
	if (own && !files) { /* the user stands here: folder and program are as seen */
		j->folder = xstrdup(s->folder);
		site_ready(j);
		return;
	}
	j->prepare = prepare_new(j);
	j->prepare->running = true;
	j->prepare->work.data = j->prepare;
	(void)uv_queue_work(j->l->node->loop, &j->prepare->work, look, on_looked);
}
