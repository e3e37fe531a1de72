/* SPDX-License-Identifier: Apache-2.0 */
/* From a Spawn message to a running process. Nothing here waits for the new process: its exec is
 * reported through a pipe, so one that hangs on a dead file system hangs alone. */
#include "shepherd/beats.h"
#include "shepherd/task.h"

#include "base/log.h"
#include "io/child.h"
#include "io/proc.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

enum {
	ENV_OWN = 3 + CHILD_KEEP_MAX, /* our marks, the numbers of passed descriptors */
	ENV_NAME = 64,                /* of a passed descriptor's variable */
	ARGS_MAX = 65536,             /* of argv and of env, each */
	GROUPS_MAX = 1024,
	CPUS_MAX = 1024, /* bytes of the mask */
};

/* What one spawn needs until the process exists. Their side of the pipes; -1 = none. */
struct spawn {
	const Copia__Shepherd__Spawn *m;
	struct task *t;
	int theirs[3];
	int keep[CHILD_KEEP_MAX];
	unsigned keep_count;
	char **argv, **env;
	char task_mark[64], state_mark[PATH_MAX + 32], node_mark[PROC_MARK_SIZE + 32];
	char numbers[CHILD_KEEP_MAX][ENV_NAME + 12];
	struct child_limit limits[CHILD_LIMITS_MAX];
	unsigned limit_count;
	struct cgroup group;
};

static void spawned_send(struct shepherd *s, uint64_t call, const ProtobufCBinaryData *id,
			 const struct task *t, int code, const char *error)
{
	Copia__Shepherd__Spawned m = COPIA__SHEPHERD__SPAWNED__INIT;
	Copia__Shepherd__Event e = COPIA__SHEPHERD__EVENT__INIT;
	Copia__Shepherd__Fds has;
	int fds[5];
	unsigned fd_count = 0;
	m.task = *id;
	m.code = code;
	m.error = (char *)error;
	if (t && code == 0) {
		fd_count = task_fds(t, &has, fds);
		m.fds = &has;
		m.pid = (uint32_t)t->pid;
		m.started_us = t->started_us;
		m.isolation = (char *)task_isolation(t);
	}
	e.call = call;
	e.tell_case = COPIA__SHEPHERD__EVENT__TELL_SPAWNED;
	e.spawned = &m;
	event_send(s, &e, fds, fd_count);
}

static int check_bounds(const Copia__Shepherd__Spawn *m, unsigned fd_count, struct err *err)
{
	const struct {
		const char *what;
		size_t value, most;
	} bounds[] = {
		{ "arguments", m->n_argv, ARGS_MAX },
		{ "variables", m->n_env, ARGS_MAX },
		{ "groups", m->n_groups, GROUPS_MAX },
		{ "limits", m->n_limits, CHILD_LIMITS_MAX },
		{ "descriptors", m->n_pass, CHILD_KEEP_MAX },
		{ "bytes of CPU mask", m->cpus.len, CPUS_MAX },
	};
	for (size_t i = 0; i < ARRAY_LEN(bounds); i++)
		if (bounds[i].value > bounds[i].most)
			return err_set(err, -E2BIG, "%zu %s, at most %zu", bounds[i].value,
				       bounds[i].what, bounds[i].most);
	if (m->n_argv == 0 || (!m->argv[0][0] && !m->staged))
		return err_set(err, -EINVAL, "no program is named");
	if (m->cwd[0] && m->cwd[0] != '/')
		return err_set(err, -EINVAL, "working folder %s is not an absolute path", m->cwd);
	if (m->staged && m->exe_index >= fd_count)
		return err_set(err, -EINVAL, "the staged program did not come with the message");
	for (size_t i = 0; i < m->n_pass; i++)
		if (m->pass[i]->index >= fd_count || strlen(m->pass[i]->env) >= ENV_NAME ||
		    strchr(m->pass[i]->env, '='))
			return err_set(err, -EINVAL,
				       "descriptor %zu to pass: did not come, or its "
				       "variable has no good name",
				       i);
	return 0;
}

static int check(struct shepherd *s, const Copia__Shepherd__Spawn *m, unsigned fd_count,
		 struct err *err)
{
	struct id id;
	if (m->task.len != ID_SIZE || (m->job.len != 0 && m->job.len != ID_SIZE))
		return err_set(err, -EINVAL, "ids have 16 bytes");
	memcpy(id.at, m->task.data, ID_SIZE);
	if (task_find(s, &id))
		return err_set(err, -EEXIST, "a task with this id exists");
	if (s->passage != PASSAGE_NONE)
		return err_set(err, -ESHUTDOWN,
			       "the daemon of this node is ending or changing its "
			       "program; try again in a moment");
	if (s->task_count >= s->tasks_max)
		return err_set(
		    err, -EAGAIN, "this node has %u tasks, and no more are possible%s",
		    s->task_count,
		    s->tasks_max < TASKS_MAX ? ": raise the limit of open files of copiad" : "");
	if (m->lease && !leases_usable(s))
		return err_set(err, -ENOLCK,
			       "this node holds no lease now, so it starts no at-most-one task");
	if (m->set_user && geteuid() != 0 && (m->uid != geteuid() || m->gid != getegid()))
		return err_set(
		    err, -EPERM,
		    "copiad on this node runs as user %u and cannot start tasks of user %u; "
		    "run it as root for that",
		    (unsigned)geteuid(), m->uid);
	return check_bounds(m, fd_count, err);
}

static bool is_ours(const char *variable, const struct spawn *p)
{
	static const char *const own[] = { PROC_TASK_MARK "=", PROC_STATE_MARK "=",
					   PROC_NODE_MARK "=" };
	for (size_t i = 0; i < ARRAY_LEN(own); i++)
		if (strncmp(variable, own[i], strlen(own[i])) == 0)
			return true;
	for (size_t i = 0; i < p->m->n_pass; i++) {
		size_t len = strlen(p->m->pass[i]->env);
		if (len > 0 && strncmp(variable, p->m->pass[i]->env, len) == 0 &&
		    variable[len] == '=')
			return true;
	}
	return false;
}

static void build_vectors(struct shepherd *s, struct spawn *p)
{
	const Copia__Shepherd__Spawn *m = p->m;
	char id[ID_TEXT];
	size_t at = 0;
	p->argv = xcalloc(m->n_argv + 1, sizeof(char *));
	memcpy(p->argv, m->argv, m->n_argv * sizeof(char *));
	p->env = xcalloc(m->n_env + ENV_OWN + 1, sizeof(char *));
	for (size_t i = 0; i < m->n_env; i++)
		if (!is_ours(m->env[i], p))
			p->env[at++] = m->env[i];
	snprintf(p->task_mark, sizeof(p->task_mark), PROC_TASK_MARK "=%s", id_show(&p->t->id, id));
	snprintf(p->state_mark, sizeof(p->state_mark), PROC_STATE_MARK "=%s", s->set.state_dir);
	p->env[at++] = p->task_mark;
	p->env[at++] = p->state_mark;
	snprintf(p->node_mark, sizeof(p->node_mark), PROC_NODE_MARK "=%s", s->node_mark);
	p->env[at++] = p->node_mark;
	for (size_t i = 0; i < m->n_pass; i++) {
		if (!m->pass[i]->env[0])
			continue;
		snprintf(p->numbers[i], sizeof(p->numbers[i]), "%s=%zu", m->pass[i]->env, 3 + i);
		p->env[at++] = p->numbers[i];
	}
}

/* The limit of open files that we raised for ourselves is given back, unless asked otherwise. */
static int build_limits(struct shepherd *s, struct spawn *p, struct err *err)
{
	bool has_nofile = false;
	for (size_t i = 0; i < p->m->n_limits; i++) {
		const Copia__Shepherd__Limit *l = p->m->limits[i];
		if (l->resource >= RLIM_NLIMITS || l->soft > l->hard)
			return err_set(err, -EINVAL, "limit %u: unknown, or soft above hard",
				       l->resource);
		has_nofile |= l->resource == RLIMIT_NOFILE;
		p->limits[p->limit_count++] =
		    (struct child_limit){ (int)l->resource, { l->soft, l->hard } };
	}
	if (!has_nofile && p->limit_count < CHILD_LIMITS_MAX)
		p->limits[p->limit_count++] = (struct child_limit){ RLIMIT_NOFILE, s->own_nofile };
	return 0;
}

static int open_terminal(struct shepherd *s, struct spawn *p, struct err *err)
{
	struct task_streams *io = &p->t->io;
	int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC), slave = -1;
	if (master >= 0 && unlockpt(master) == 0)
		slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0) {
		int code = -errno;
		close_p(&master);
		return err_set(err, code, "make a terminal: %s", strerror(-code));
	}
	(void)fcntl(master, F_SETFL, fcntl(master, F_GETFL) | O_NONBLOCK);
	struct winsize size = { .ws_row = (unsigned short)MIN(p->m->rows, 65535U),
				.ws_col = (unsigned short)MIN(p->m->cols, 65535U) };
	if (size.ws_row && size.ws_col)
		(void)ioctl(master, TIOCSWINSZ, &size);
	/* So that the user's programs may open it again by its name. */
	if (p->m->set_user && geteuid() == 0 && fchown(slave, p->m->uid, (gid_t)-1) < 0)
		log_warning("task", "give the terminal to user %u: %s", p->m->uid, strerror(errno));
	io->terminal = master;
	p->theirs[0] = slave;
	p->theirs[1] = fcntl(slave, F_DUPFD_CLOEXEC, 3);
	p->theirs[2] = fcntl(slave, F_DUPFD_CLOEXEC, 3);
	if (p->theirs[1] < 0 || p->theirs[2] < 0)
		return err_set(err, -errno, "make a terminal: %s", strerror(errno));
	return 0;
}

static Copia__Shepherd__OutMode out_mode(const Copia__Shepherd__Out *out)
{
	return out ? out->mode : COPIA__SHEPHERD__OUT_MODE__OUT_PIPE;
}

static int open_streams(struct shepherd *s, struct spawn *p, struct err *err)
{
	struct task_streams *io = &p->t->io;
	const Copia__Shepherd__Out *outs[2] = { p->m->stdout, p->m->stderr };
	if (p->m->pty)
		return open_terminal(s, p, err);
	int r = 0;
	if (p->m->stdin == COPIA__SHEPHERD__STDIN_MODE__STDIN_PIPE) {
		r = streams_pipe(s, 1, &io->in, &p->theirs[0], false);
		if (r == 0)
			r = streams_pipe(s, 1, &io->staging_write, &io->staging_read, false);
		if (r == 0)
			(void)fcntl(io->staging_read, F_SETFL,
				    fcntl(io->staging_read, F_GETFL) | O_NONBLOCK);
		io->closed = false;
	}
	for (int i = 0; i < 2 && r == 0; i++)
		if (out_mode(outs[i]) == COPIA__SHEPHERD__OUT_MODE__OUT_PIPE)
			r = streams_pipe(s, 0, &io->out[i], &p->theirs[1 + i], i == 0);
	return r < 0 ? err_set(err, r, "make a pipe: %s", strerror(-r)) : 0;
}

static int make_group(struct shepherd *s, struct spawn *p, struct err *err)
{
	const Copia__Shepherd__CgroupLimits *m = p->m->cgroup;
	struct cgroup_limits limits = { 0 };
	if (m)
		limits = (struct cgroup_limits){ m->memory_bytes, m->cpu_weight, m->pids };
	struct err why = { 0 };
	int r = cgroup_make(&s->cgroups, &p->t->id, &limits, &p->group, &why);
	if (r > 0 && m->required)
		return err_set(err, -ENOTSUP, "%s", why.msg);
	/* A machine whose groups cannot be used at the moment still runs programs. */
	if (r != 0)
		p->t->note = xstrdup(why.msg);
	p->t->isolation = r < 0 ? CGROUP_NONE : s->cgroups.kind;
	return 0;
}

static void build_child(struct shepherd *s, struct spawn *p, const int *fds, struct child_spec *ret)
{
	const Copia__Shepherd__Spawn *m = p->m;
	for (size_t i = 0; i < m->n_pass; i++)
		p->keep[p->keep_count++] = fds[m->pass[i]->index];
	*ret = (struct child_spec){
		.argv = p->argv,
		.env = p->env,
		.exe = m->exe[0] ? m->exe : NULL,
		.exe_fd = m->staged ? fds[m->exe_index] : -1,
		.cwd = m->cwd[0] ? m->cwd : NULL,
		.stdio = { p->theirs[0], p->theirs[1], p->theirs[2] },
		.terminal = m->pty,
		.keep = p->keep,
		.keep_count = p->keep_count,
		.set_user = m->set_user,
		.uid = m->uid,
		.gid = m->gid,
		.groups = m->groups,
		.group_count = m->n_groups,
		.limits = p->limits,
		.limit_count = p->limit_count,
		.cpus = m->cpus.len ? m->cpus.data : NULL,
		.cpus_len = m->cpus.len,
		.nice = m->nice,
		.umask = m->set_umask ? m->umask & 0777 : 022,
		.death_signal = SIGKILL,
		.cgroup_fd = p->group.fd[CGROUP_UNIFIED],
		.join_fds = p->group.join_fd,
		.join_count = CGROUP_TREE_COUNT,
	};
	const Copia__Shepherd__Out *outs[3] = { NULL, m->stdout, m->stderr };
	for (int i = 1; i < 3 && !m->pty; i++)
		if (out_mode(outs[i]) == COPIA__SHEPHERD__OUT_MODE__OUT_FILE) {
			ret->out_path[i] = outs[i]->path;
			ret->out_append[i] = outs[i]->append;
		}
	ret->err_to_out = !m->pty && out_mode(m->stderr) == COPIA__SHEPHERD__OUT_MODE__OUT_STDOUT;
}

static void status_ready(struct shepherd *s, struct watch *w, uint32_t events)
{
	spawn_status(s, CONTAINER(w, struct task, status_watch));
}

static int start(struct shepherd *s, struct spawn *p, const int *fds, struct err *err)
{
	struct task *t = p->t;
	struct child_spec spec;
	struct child child;
	int r = build_limits(s, p, err);
	if (r == 0)
		r = open_streams(s, p, err);
	if (r == 0)
		r = make_group(s, p, err);
	if (r < 0)
		return r;
	build_vectors(s, p);
	build_child(s, p, fds, &spec);
	r = child_start(&spec, &child, err);
	if (r < 0)
		return r;
	t->pid = child.pid;
	t->pidfd = child.pidfd;
	t->started_us = clock_us();
	t->state = TASK_STARTING;
	s->starting_count++;
	t->status_watch.ready = status_ready;
	r = watch_add(s, &t->status_watch, child.status_fd, EPOLLIN);
	/* Unwatched, the report is read when the task ends at the latest. */
	if (r < 0)
		t->status_watch.fd = child.status_fd;
	return 0;
}

static void spawn_free(struct spawn *p)
{
	for (int i = 0; i < 3; i++)
		close_p(&p->theirs[i]);
	cgroup_close(&p->group);
	free(p->argv);
	free(p->env);
	free(p);
}

void spawn_request(struct shepherd *s, uint64_t call, const Copia__Shepherd__Spawn *m,
		   const int *fds, unsigned fd_count)
{
	struct err err = { 0 };
	int r = check(s, m, fd_count, &err);
	if (r < 0) {
		spawned_send(s, call, &m->task, NULL, r, err.msg);
		return;
	}
	struct spawn *p = xcalloc(1, sizeof(*p));
	struct id id;
	memcpy(id.at, m->task.data, ID_SIZE);
	p->m = m;
	p->theirs[0] = p->theirs[1] = p->theirs[2] = -1;
	for (int i = 0; i < CGROUP_TREE_COUNT; i++)
		p->group.fd[i] = p->group.join_fd[i] = -1;
	struct task *t = p->t = task_add(s, &id);
	t->state = TASK_FAILED;
	t->call = call;
	t->want_pidfd = m->want_pidfd;
	t->lease = m->lease;
	t->keep_children = m->keep_children;
	if (m->job.len == ID_SIZE)
		memcpy(t->job.at, m->job.data, ID_SIZE);
	r = start(s, p, fds, &err);
	if (r < 0) {
		spawned_send(s, call, &m->task, NULL, r, err.msg);
		(void)cgroup_remove(&s->cgroups, &id);
		task_drop(s, t);
	}
	spawn_free(p);
}

void spawn_status(struct shepherd *s, struct task *t)
{
	if (t->state != TASK_STARTING)
		return;
	struct err err = { 0 };
	int fd = t->status_watch.fd;
	int r = fd >= 0 ? child_result(fd, &err) : 1;
	if (r == 0)
		return;
	watch_drop(s, &t->status_watch);
	close_p(&fd);
	s->starting_count--;
	t->state = r > 0 ? TASK_RUNNING : TASK_FAILED;
	ProtobufCBinaryData id = id_view(&t->id);
	spawned_send(s, t->call, &id, t, r > 0 ? 0 : r, r > 0 && t->note ? t->note : err.msg);
	if (r < 0)
		streams_close(s, t);
}
