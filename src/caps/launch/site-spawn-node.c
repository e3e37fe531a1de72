/* SPDX-License-Identifier: Apache-2.0 */
/* From a job whose program is at hand to its tasks; and the file that outlives the brain. */
#include "caps/launch/launch-impl-node.h"

#include "base/log.h"
#include "caps/members/members.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	RECORD_MAX = 64 << 20,
	BATCH_TASKS = 200,     /* descriptors of one frame are limited to 250 */
	BATCH_BYTES = 2 << 20, /* a frame may have 4 MiB */
	OWN_VARIABLES = 12,
};

/* ---------------------------------------------------------------- the record of a job */

static void record_path(const struct launch *l, const struct id *id, struct str *ret)
{
	char text[ID_TEXT];
	str_printf(ret, "%s/jobs/%s", l->node->settings.run_dir, id_show(id, text));
}

/* Without sync: it must outlive the brain, not the machine, whose tasks die with it. */
void site_record_write(struct site_job *j)
{
	Copia__LaunchRecord rec = COPIA__LAUNCH_RECORD__INIT;
	rec.job = (ProtobufCBinaryData){ ID_SIZE, j->id.at };
	rec.start = j->start;
	rec.node = j->place->node;
	rec.n_exe = j->start->spec->n_programs;
	rec.exe = xcalloc(rec.n_exe, sizeof(*rec.exe));
	for (size_t i = 0; i < rec.n_exe; i++)
		rec.exe[i] = j->exe[i] ? j->exe[i] : (char *)"";
	rec.folder = j->folder ? j->folder : (char *)"";
	rec.stage_folder = j->stage_folder ? j->stage_folder : (char *)"";
	size_t len = copia__launch_record__get_packed_size(&rec);
	_cleanup_(free_p) uint8_t *at = xmalloc(len);
	(void)copia__launch_record__pack(&rec, at);
	free(rec.exe);

	_cleanup_(str_free) struct str path = { 0 }, temp = { 0 };
	record_path(j->l, &j->id, &path);
	str_printf(&temp, "%s.new", str_text(&path));
	int fd = open(str_text(&temp), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	bool good = fd >= 0 && write(fd, at, len) == (ssize_t)len;
	int code = errno;
	if (fd >= 0)
		(void)close(fd);
	if (good && rename(str_text(&temp), str_text(&path)) == 0) {
		free(j->record);
		j->record = str_take(&path);
		return;
	}
	(void)unlink(str_text(&temp));
	/* The job runs all the same; only a crash of this brain would now end it. */
	log_warning("launch",
		    "job %s: %s cannot be written: %s; it would not survive a restart of "
		    "copiad's brain",
		    j->start->name, str_text(&path), strerror(code));
}

void site_record_remove(struct site_job *j)
{
	if (j->record)
		(void)unlink(j->record);
	if (j->stage_folder)
		stage_folder_remove(j->l, j->stage_folder);
}

static void record_use(struct launch *l, Copia__LaunchRecord *rec, const char *path)
{
	struct id id;
	if (rec->job.len != ID_SIZE || !rec->start || !rec->start->spec ||
	    rec->n_exe != rec->start->spec->n_programs)
		return;
	memcpy(id.at, rec->job.data, ID_SIZE);
	struct site_job *j = site_new(l, &id, rec->start, rec->node);
	if (!j)
		return;
	rec->start = NULL;
	for (size_t i = 0; i < rec->n_exe; i++)
		j->exe[i] = *rec->exe[i] ? xstrdup(rec->exe[i]) : NULL;
	j->folder = xstrdup(rec->folder);
	j->stage_folder = *rec->stage_folder ? xstrdup(rec->stage_folder) : NULL;
	j->record = xstrdup(path);
	j->phase = COPIA__LAUNCH_PHASE__LAUNCH_RUNNING;
	j->relearned = true;
}

static void record_read(struct launch *l, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0 || st.st_size > RECORD_MAX) {
		if (fd >= 0)
			(void)close(fd);
		return;
	}
	_cleanup_(free_p) uint8_t *at = xmalloc((size_t)st.st_size);
	ssize_t got = read(fd, at, (size_t)st.st_size);
	(void)close(fd);
	Copia__LaunchRecord *rec =
	    got == st.st_size ? copia__launch_record__unpack(NULL, (size_t)got, at) : NULL;
	if (!rec) {
		log_warning("launch", "%s cannot be read; removed", path);
		(void)unlink(path);
		return;
	}
	record_use(l, rec, path);
	copia__launch_record__free_unpacked(rec, NULL);
}

int site_read_records(struct launch *l, struct err *err)
{
	_cleanup_(str_free) struct str folder = { 0 };
	str_printf(&folder, "%s/jobs", l->node->settings.run_dir);
	uv_fs_t req;
	int n = uv_fs_scandir(NULL, &req, str_text(&folder), 0, NULL);
	if (n < 0)
		return err_set(err, n, "read folder %s: %s", str_text(&folder), strerror(-n));
	uv_dirent_t entry;
	while (uv_fs_scandir_next(&req, &entry) != UV_EOF) {
		struct id id;
		if (!id_parse(entry.name, &id))
			continue;
		_cleanup_(str_free) struct str path = { 0 };
		str_printf(&path, "%s/%s", str_text(&folder), entry.name);
		record_read(l, str_text(&path));
	}
	uv_fs_req_cleanup(&req);
	return 0;
}

/* ---------------------------------------------------------------- tasks */

/* Variables of the caller that would be wrong in a rank. */
static bool passes(const char *variable)
{
	static const char *const not_these[] = {
		"COPIA_TASK=",  "COPIA_NODE_STATE=", "COPIA_JOB=",  "COPIA_JOB_ID=",
		"COPIA_RANK=",  "COPIA_SIZE=",       "COPIA_NODE=", "COPIA_NODES=",
		"COPIA_LOCAL_", "COPIA_STAGE=",      "COPIA_CWD=",  "PMI_",
		"PMIX_",        "OMPI_COMM_WORLD_"
	};
	for (size_t i = 0; i < ARRAY_LEN(not_these); i++)
		if (!strncmp(variable, not_these[i], strlen(not_these[i])))
			return false;
	return true;
}

/* One rank's Spawn; what it owns beyond its job is in `text`, one NUL-terminated piece behind the
 * other, so that pointers are taken when the text grows no more. */
struct ready_task {
	Copia__Shepherd__Spawn spawn;
	Copia__Shepherd__Out out, err;
	Copia__Shepherd__Pass pass, *passes[1];
	struct str text;
	uint8_t cpus[256];
	char **env;
	size_t bytes;
};

static size_t program_of(const Copia__LaunchSpec *s, uint32_t rank)
{
	uint32_t first = 0;
	for (size_t i = 0; i + 1 < s->n_programs; i++) {
		first += s->programs[i]->ranks;
		if (rank < first)
			return i;
	}
	return s->n_programs - 1;
}

static void own_variables(const struct site_rank *r, struct str *s)
{
	const struct site_job *j = r->job;
	const Copia__LaunchStart *st = j->start;
	char id[ID_TEXT];
	str_printf(s, "COPIA_JOB=%s%c", st->name, 0);
	str_printf(s, "COPIA_JOB_ID=%s%c", id_show(&j->id, id), 0);
	str_printf(s, "COPIA_RANK=%u%c", r->rank, 0);
	str_printf(s, "COPIA_SIZE=%u%c", st->size, 0);
	str_printf(s, "COPIA_NODE=%s%c", j->place->name, 0);
	str_printf(s, "COPIA_NODES=%zu%c", st->n_places, 0);
	str_printf(s, "COPIA_LOCAL_RANK=%u%c", r->rank - j->place->first, 0);
	str_printf(s, "COPIA_LOCAL_SIZE=%u%c", j->place->count, 0);
	str_printf(s, "COPIA_CWD=%s%c", st->spec->folder, 0);
	if (j->stage_folder)
		str_printf(s, "COPIA_STAGE=%s%c", j->stage_folder, 0);
}

static void task_env(struct ready_task *t, struct site_rank *r, char *const *base, size_t count)
{
	size_t own = 0;
	for (size_t i = 0; i < t->text.len; i += strlen(t->text.at + i) + 1)
		own++;
	t->env = xcalloc(count + own + 1, sizeof(*t->env));
	size_t n = 0;
	for (size_t i = 0; i < count; i++) {
		if (!passes(base[i]))
			continue;
		t->env[n++] = base[i];
		t->bytes += strlen(base[i]) + 6;
	}
	for (size_t i = 0; i < t->text.len; i += strlen(t->text.at + i) + 1)
		t->env[n++] = t->text.at + i;
	t->bytes += t->text.len + 6 * own;
	t->spawn.env = t->env;
	t->spawn.n_env = n;
	(void)r;
}

static void task_limits(Copia__Shepherd__Spawn *s, const Copia__LaunchSpec *spec,
			Copia__Shepherd__Limit **limits)
{
	for (size_t i = 0; i < spec->n_limits; i++) {
		copia__shepherd__limit__init(limits[i]);
		limits[i]->resource = spec->limits[i]->resource;
		limits[i]->soft = spec->limits[i]->soft;
		limits[i]->hard = spec->limits[i]->hard;
	}
	s->limits = limits;
	s->n_limits = spec->n_limits;
}

static void task_bind(struct ready_task *t, const struct site_rank *r)
{
	struct site_job *j = r->job;
	struct err err = { 0 };
	if (!j->start->spec->bind)
		return;
	size_t len = 0;
	if (bind_cpus(r->rank - j->place->first, t->cpus, sizeof(t->cpus), &len, &err) < 0)
		site_note(j, "%s: ranks are not bound: %s", j->place->name, err.msg);
	t->spawn.cpus = (ProtobufCBinaryData){ len, t->cpus };
}

/* Returns the descriptor that goes with it, or -1. */
static int task_make(struct ready_task *t, struct site_rank *r, Copia__Shepherd__Limit **limits)
{
	struct site_job *j = r->job;
	const Copia__LaunchSpec *spec = j->start->spec;
	size_t program = program_of(spec, r->rank);
	Copia__Shepherd__Spawn *s = &t->spawn;
	copia__shepherd__spawn__init(s);
	copia__shepherd__out__init(&t->out);
	copia__shepherd__out__init(&t->err);
	s->task = (ProtobufCBinaryData){ ID_SIZE, r->task.at };
	s->job = (ProtobufCBinaryData){ ID_SIZE, j->id.at };
	s->argv = spec->programs[program]->argv;
	s->n_argv = spec->programs[program]->n_argv;
	for (size_t i = 0; i < s->n_argv; i++)
		t->bytes += strlen(s->argv[i]) + 6;
	own_variables(r, &t->text);
	int fd = wire_rank(r, &t->text);
	task_env(t, r, spec->environment, spec->n_environment);
	s->exe = j->exe[program] ? j->exe[program] : (char *)"";
	s->cwd = j->folder;
	s->set_user = j->l->node->settings.root;
	s->uid = spec->uid;
	s->gid = spec->gid;
	s->groups = spec->groups;
	s->n_groups = spec->n_groups;
	task_limits(s, spec, limits);
	task_bind(t, r);
	s->stdin = r->reads ? COPIA__SHEPHERD__STDIN_MODE__STDIN_PIPE
			    : COPIA__SHEPHERD__STDIN_MODE__STDIN_NULL;
	s->stdout = &t->out;
	s->stderr = &t->err;
	s->pty = spec->terminal;
	s->rows = spec->rows;
	s->cols = spec->columns;
	s->set_umask = true;
	s->umask = spec->umask;
	if (fd >= 0) {
		copia__shepherd__pass__init(&t->pass);
		t->pass.env = (char *)"PMI_FD";
		t->passes[0] = &t->pass;
		s->pass = t->passes;
		s->n_pass = 1;
	}
	return fd;
}

static int batch_send(struct site_job *j, struct ready_task *tasks, size_t count, int *fds,
		      unsigned fd_count, struct err *err)
{
	_cleanup_(free_p) Copia__Shepherd__Spawn **list = xcalloc(count, sizeof(*list));
	for (size_t i = 0; i < count; i++)
		list[i] = &tasks[i].spawn;
	struct shepherd_link *link = j->l->node->shepherd;
	int r = shepherd_spawn(link, shepherd_link_call(link), list, count, fds, fd_count, err);
	for (size_t i = 0; i < count; i++) {
		free(tasks[i].env);
		str_free(&tasks[i].text);
	}
	return r;
}

static bool rank_skipped(const struct site_job *j, uint32_t rank)
{
	for (size_t i = 0; i < j->start->n_skip; i++)
		if (j->start->skip[i] == rank)
			return true;
	return false;
}

void site_spawn(struct site_job *j)
{
	struct err err = { 0 };
	const Copia__LaunchSpec *spec = j->start->spec;
	_cleanup_(free_p) struct ready_task *tasks = xcalloc(BATCH_TASKS, sizeof(*tasks));
	_cleanup_(free_p) Copia__Shepherd__Limit *limit_at =
	    xcalloc(spec->n_limits, sizeof(*limit_at));
	_cleanup_(free_p) Copia__Shepherd__Limit **limits =
	    xcalloc(spec->n_limits, sizeof(*limits));
	for (size_t i = 0; i < spec->n_limits; i++)
		limits[i] = &limit_at[i];
	int fds[BATCH_TASKS], r = 0;
	unsigned fd_count = 0;
	size_t count = 0, bytes = 0;
	for (uint32_t i = 0; r == 0 && i < j->place->count; i++) {
		struct site_rank *k = &j->ranks[i];
		if (k->state != RANK_NONE || rank_skipped(j, k->rank))
			continue;
		struct ready_task *t = &tasks[count++];
		*t = (struct ready_task){ 0 };
		int fd = task_make(t, k, limits);
		if (fd >= 0) {
			t->pass.index = fd_count;
			fds[fd_count++] = fd;
		}
		k->state = RANK_SPAWNING;
		bytes += t->bytes;
		if (count < BATCH_TASKS && bytes < BATCH_BYTES)
			continue;
		r = batch_send(j, tasks, count, fds, fd_count, &err);
		count = bytes = 0;
		fd_count = 0;
	}
	if (r == 0 && count)
		r = batch_send(j, tasks, count, fds, fd_count, &err);
	wire_spawned(j);
	if (r < 0) {
		for (uint32_t i = 0; i < j->place->count; i++)
			if (j->ranks[i].state == RANK_SPAWNING)
				j->ranks[i].state = RANK_NONE;
		err_wrap(&err, r, "node %s: start tasks", j->place->name);
		site_fail(j, r, &err);
	}
}

void site_ready(struct site_job *j)
{
	if (!j->start->spec->n_programs) { /* copia copy: that was all */
		j->phase = COPIA__LAUNCH_PHASE__LAUNCH_DONE;
		site_report(j);
		return;
	}
	site_record_write(j);
	wire_prepare(j);
}
