/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/tasks-node.h"

#include "caps/members/members.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

enum { COMMAND_MAX = 200 };

/* What a process says of itself in /proc/PID/stat (proc(5)). */
struct process {
	int session;
	char state;
	uint64_t ticks, rss_pages;
};

static bool process_read(const char *pid, struct process *ret)
{
	char path[64], text[1024];
	(void)snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n = read(fd, text, sizeof(text) - 1);
	(void)close(fd);
	text[n > 0 ? n : 0] = '\0';
	/* The command's name is in parentheses and may hold anything. */
	const char *at = strrchr(text, ')');
	unsigned long user, system, rss;
	if (!at || sscanf(at + 1,
			  " %c %*d %*d %d %*d %*d %*u %*u %*u %*u %*u %lu %lu %*d %*d %*d %*d %*d "
			  "%*d %*u %*u %lu",
			  &ret->state, &ret->session, &user, &system, &rss) != 5)
		return false;
	ret->ticks = user + system;
	ret->rss_pages = rss;
	return true;
}

static const char *state_word(char state)
{
	switch (state) {
	case 'R':
		return "running";
	case 'S':
	case 'I':
		return "sleeping";
	case 'D':
		return "disk";
	case 'T':
	case 't':
		return "stopped";
	case 'Z':
	case 'X':
		return "ended";
	default:
		return "unknown";
	}
}

static void command_text(const Copia__LaunchSpec *spec, uint32_t rank, struct str *s)
{
	uint32_t first = 0;
	size_t program = 0;
	while (program + 1 < spec->n_programs && rank >= first + spec->programs[program]->ranks)
		first += spec->programs[program++]->ranks;
	const Copia__LaunchProgram *p = spec->programs[program];
	for (size_t i = 0; i < p->n_argv && s->len < COMMAND_MAX; i++)
		str_printf(s, "%s%s", i ? " " : "", p->argv[i]);
	if (s->len > COMMAND_MAX) {
		s->len = COMMAND_MAX;
		str_puts(s, "…");
	}
}

static char *copy_of(const char *text)
{
	return xstrdup(text ? text : "");
}

static Copia__PsRow *row_make(const struct site_rank *r)
{
	const struct site_job *j = r->job;
	Copia__PsRow *row = xcalloc(1, sizeof(*row));
	copia__ps_row__init(row);
	struct str id = { 0 }, command = { 0 };
	char job_id[ID_TEXT];
	str_printf(&id, "%s:%u", j->place->name, r->pid);
	command_text(j->start->spec, r->rank, &command);
	row->id = str_take(&id);
	row->job = copy_of(j->start->name);
	row->rank = r->rank;
	row->node = copy_of(j->place->name);
	row->user = copy_of(j->start->spec->user);
	row->state = copy_of(r->state == RANK_SPAWNING ? "starting" : "ended");
	row->started_ms = j->start->started_ms;
	row->command = str_take(&command);
	row->pid = r->pid;
	row->uid = j->start->spec->uid;
	row->job_id = copy_of(id_show(&j->id, job_id));
	return row;
}

static int row_compare_pid(const void *a, const void *b)
{
	const Copia__PsRow *const *x = a, *const *y = b;
	return (*x)->pid < (*y)->pid ? -1 : (*x)->pid > (*y)->pid;
}

static Copia__PsRow *row_of_session(struct tasks *t, uint32_t session)
{
	size_t from = 0, to = t->count;
	while (from < to) {
		size_t middle = from + (to - from) / 2;
		if (t->rows[middle]->pid == session)
			return t->rows[middle];
		if (t->rows[middle]->pid < session)
			from = middle + 1;
		else
			to = middle;
	}
	return NULL;
}

/* Each task is a session; its processes are added up. */
static void add_processes(struct tasks *t)
{
	DIR *d = opendir("/proc");
	if (!d)
		return;
	uint64_t tick_ms = 1000 / (uint64_t)sysconf(_SC_CLK_TCK);
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	struct dirent *e;
	while ((e = readdir(d))) {
		struct process p;
		if (e->d_name[0] < '1' || e->d_name[0] > '9' || !process_read(e->d_name, &p))
			continue;
		Copia__PsRow *row = row_of_session(t, (uint32_t)p.session);
		if (!row)
			continue;
		row->cpu_ms += p.ticks * tick_ms;
		row->memory_bytes += p.rss_pages * page;
		row->processes++;
		if (strtoul(e->d_name, NULL, 10) == row->pid) {
			free(row->state);
			row->state = xstrdup(state_word(p.state));
		}
	}
	(void)closedir(d);
}

void tasks_read(struct launch *l, struct tasks *ret)
{
	for (struct site_job *j = l->sites; j; j = j->hh.next)
		for (uint32_t i = 0; i < j->place->count; i++) {
			struct site_rank *r = &j->ranks[i];
			if (r->state != RANK_RUNNING && r->state != RANK_SPAWNING)
				continue;
			ret->rows = xrealloc(ret->rows, (ret->count + 1) * sizeof(*ret->rows));
			ret->rows[ret->count++] = row_make(r);
		}
	if (!ret->count)
		return;
	qsort(ret->rows, ret->count, sizeof(Copia__PsRow *), row_compare_pid);
	add_processes(ret);
}

void tasks_free(struct tasks *t)
{
	for (size_t i = 0; i < t->count; i++)
		copia__ps_row__free_unpacked(t->rows[i], NULL);
	free(t->rows);
	*t = (struct tasks){ 0 };
}

static int row_compare(const void *a, const void *b)
{
	const Copia__PsRow *const *x = a, *const *y = b;
	int c = strverscmp((*x)->job, (*y)->job);
	if (c)
		return c;
	return (*x)->rank < (*y)->rank ? -1 : (*x)->rank > (*y)->rank;
}

void tasks_sort(Copia__PsReply *r)
{
	if (r->n_tasks)
		qsort(r->tasks, r->n_tasks, sizeof(Copia__PsRow *), row_compare);
}
