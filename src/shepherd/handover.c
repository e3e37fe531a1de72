/* SPDX-License-Identifier: Apache-2.0 */
/* Becoming another program in place: same pid, so the tasks stay our children. The table goes by a
 * sealed memfd, the descriptors by being inherited. */
#include "shepherd/beats.h"
#include "shepherd/task.h"

#include "cluster/lease.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TABLE_MAX = 64 << 20 };

extern char **environ;

typedef Copia__Shepherd__HandoverTask record;

static ProtobufCBinaryData copy_bytes(const void *at, size_t len)
{
	return (ProtobufCBinaryData){ len, xmemdup(at, len) };
}

static void write_task(struct shepherd *s, struct task *t, void *ctx)
{
	Copia__Shepherd__Handover *h = ctx;
	/* FAILED ones are unknown to the brain; their remains are found by the cleanup of
	 * leftovers. */
	if (t->state == TASK_FAILED)
		return;
	const struct task_streams *io = &t->io;
	record *m = h->tasks[h->n_tasks++] = xmalloc(sizeof(*m));
	copia__shepherd__handover_task__init(m);
	m->task = copy_bytes(t->id.at, ID_SIZE);
	m->job = copy_bytes(t->job.at, ID_SIZE);
	m->pid = (uint32_t)t->pid;
	m->started_us = t->started_us;
	m->stdin_fd = io->in;
	m->staging_read_fd = io->staging_read;
	m->staging_write_fd = io->staging_write;
	m->stdout_fd = io->out[0];
	m->stderr_fd = io->out[1];
	m->terminal_fd = io->terminal;
	m->pidfd = t->pidfd;
	m->stdin_pumped = io->pumped;
	m->stdin_wanted = io->pump_upto;
	m->stdin_closing = io->closing;
	m->stdin_closed = io->closed;
	m->stdout_consumed = io->consumed[0];
	m->stderr_consumed = io->consumed[1];
	m->lease = t->lease;
	m->keep_children = t->keep_children;
	m->kill_at_us = t->kill_at_us;
	m->why = xstrdup(t->why);
	m->cgroup = xstrdup(task_isolation(t));
	m->cgroup_v1 = t->isolation == CGROUP_V1;
	m->want_pidfd = t->want_pidfd;
	if (t->state != TASK_ENDED)
		return;
	Copia__Shepherd__TaskExit *x = m->exit = xmalloc(sizeof(*x));
	task_exit_message(t, x);
	x->task = copy_bytes(t->id.at, ID_SIZE);
	x->why = xstrdup(t->why);
}

static Copia__Shepherd__Handover *build(struct shepherd *s)
{
	Copia__Shepherd__Handover *h = xmalloc(sizeof(*h));
	copia__shepherd__handover__init(h);
	h->version = HANDOVER_VERSION;
	h->tasks = xcalloc(s->task_count + 1, sizeof(*h->tasks));
	tasks_each(s, write_task, h);
	h->incarnation = s->incarnation;
	h->started_us = s->started_us;
	h->lock_fd = s->lock_fd;
	h->brain_starts = s->brain.starts;
	h->granter_term = leases_granter(s)->term;
	h->lease = xmalloc(sizeof(*h->lease));
	copia__shepherd__lease_state__init(h->lease);
	leases_message(s, h->lease);
	/* Should the next program not understand the table, it gives the word back to us. */
	h->old_program_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	beats_handover(s, h);
	return h;
}

/* Which descriptors survive the change of program. */
static void keep_open(const Copia__Shepherd__Handover *h, bool keep)
{
	int own[] = { h->lock_fd, h->udp4_fd, h->udp6_fd, h->old_program_fd };
	for (size_t i = 0; i < ARRAY_LEN(own); i++)
		if (own[i] >= 0)
			(void)fcntl(own[i], F_SETFD, keep ? 0 : FD_CLOEXEC);
	for (size_t i = 0; i < h->n_tasks; i++) {
		const record *m = h->tasks[i];
		int fds[] = { m->stdin_fd,  m->staging_read_fd, m->staging_write_fd,
			      m->stdout_fd, m->stderr_fd,       m->terminal_fd,
			      m->pidfd };
		for (size_t k = 0; k < ARRAY_LEN(fds); k++)
			if (fds[k] >= 0)
				(void)fcntl(fds[k], F_SETFD, keep ? 0 : FD_CLOEXEC);
	}
}

static int write_memfd(const Copia__Shepherd__Handover *h, struct err *err)
{
	size_t size = copia__shepherd__handover__get_packed_size(h);
	_cleanup_(free_p) uint8_t *bytes = xmalloc(size + 1);
	(void)copia__shepherd__handover__pack(h, bytes);
	_cleanup_(close_p) int fd = memfd_create("copia-handover", MFD_ALLOW_SEALING);
	if (fd < 0)
		return err_set(err, -errno, "hand over: %s", strerror(errno));
	for (size_t at = 0; at < size;) {
		ssize_t n = write(fd, bytes + at, size - at);
		if (n < 0)
			return err_set(err, -errno, "hand over: %s", strerror(errno));
		at += (size_t)n;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL) < 0)
		return err_set(err, -errno, "hand over: seal: %s", strerror(errno));
	int ret = fd;
	fd = -1;
	return ret;
}

int handover_exec(struct shepherd *s, const char *path, struct err *err)
{
	Copia__Shepherd__Handover *h = build(s);
	int table = write_memfd(h, err);
	int code = table;
	if (table >= 0) {
		char number[16];
		char **argv = xcalloc((size_t)s->set.argc + 3, sizeof(char *));
		snprintf(number, sizeof(number), "%d", table);
		memcpy(argv, s->set.argv, (size_t)s->set.argc * sizeof(char *));
		argv[s->set.argc] = "--takeover";
		argv[s->set.argc + 1] = number;
		keep_open(h, true);
		(void)execve(path, argv, environ);
		code = err_set(err, -errno, "run %s: %s", path, strerror(errno));
		keep_open(h, false);
		close_p(&table);
		free(argv);
	}
	close_p(&h->old_program_fd);
	copia__shepherd__handover__free_unpacked(h, NULL);
	return code;
}

static void read_exit(struct task *t, const Copia__Shepherd__TaskExit *x)
{
	t->state = TASK_ENDED;
	t->exit = (struct task_exit){
		.status = x->status,
		.signal = x->signal,
		.core = x->core,
		.out_of_memory = x->out_of_memory,
		.ended_us = x->ended_us,
		.user_us = x->user_us,
		.system_us = x->system_us,
		.max_rss_bytes = x->max_rss_bytes,
		.major_faults = x->major_faults,
		.read_blocks = x->read_blocks,
		.written_blocks = x->written_blocks,
	};
}

static int read_task(struct shepherd *s, const record *m, struct err *err)
{
	struct id id;
	if (m->task.len != ID_SIZE || m->job.len != ID_SIZE)
		return err_set(err, -EPROTO, "take over: a task without an id");
	memcpy(id.at, m->task.data, ID_SIZE);
	struct task *t = task_add(s, &id);
	memcpy(t->job.at, m->job.data, ID_SIZE);
	t->state = TASK_RUNNING;
	t->pid = (pid_t)m->pid;
	t->pidfd = m->pidfd;
	t->started_us = m->started_us;
	t->lease = m->lease;
	t->keep_children = m->keep_children;
	t->want_pidfd = m->want_pidfd;
	t->kill_at_us = m->kill_at_us;
	if (t->kill_at_us)
		s->kill_next_us = MIN(s->kill_next_us, t->kill_at_us);
	t->why = task_why(m->why);
	t->isolation = strcmp(m->cgroup, "none") == 0 ? CGROUP_NONE
		       : m->cgroup_v1                 ? CGROUP_V1
						      : CGROUP_V2;
	t->io.in = m->stdin_fd;
	t->io.staging_read = m->staging_read_fd;
	t->io.staging_write = m->staging_write_fd;
	t->io.out[0] = m->stdout_fd;
	t->io.out[1] = m->stderr_fd;
	t->io.terminal = m->terminal_fd;
	t->io.pumped = m->stdin_pumped;
	t->io.pump_upto = m->stdin_wanted;
	t->io.closing = m->stdin_closing;
	t->io.closed = m->stdin_closed;
	t->io.consumed[0] = m->stdout_consumed;
	t->io.consumed[1] = m->stderr_consumed;
	if (m->exit)
		read_exit(t, m->exit);
	/* What was ordered to be moved goes on moving. */
	if (!t->io.closed)
		streams_pump(s, t, false);
	return 0;
}

static Copia__Shepherd__Handover *read_memfd(int fd, struct err *err)
{
	struct stat st;
	if (fstat(fd, &st) < 0 || st.st_size <= 0 || st.st_size > TABLE_MAX) {
		(void)err_set(err, -EPROTO, "take over: descriptor %d holds no table", fd);
		return NULL;
	}
	uint8_t *at = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED) {
		(void)err_set(err, -errno, "take over: %s", strerror(errno));
		return NULL;
	}
	Copia__Shepherd__Handover *h =
	    copia__shepherd__handover__unpack(NULL, (size_t)st.st_size, at);
	(void)munmap(at, (size_t)st.st_size);
	if (!h)
		(void)err_set(err, -EPROTO, "take over: the table cannot be read");
	return h;
}

int handover_take(struct shepherd *s, int fd, int *ret_old_fd, struct err *err)
{
	*ret_old_fd = -1;
	Copia__Shepherd__Handover *h = read_memfd(fd, err);
	if (!h)
		return err->code;
	*ret_old_fd = h->old_program_fd;
	int r = 0;
	if (h->version != HANDOVER_VERSION)
		r = err_set(err, -EPROTO,
			    "take over: the table has version %u, this program knows %d",
			    h->version, HANDOVER_VERSION);
	if (r == 0) {
		s->incarnation = h->incarnation;
		s->started_us = h->started_us;
		s->lock_fd = h->lock_fd;
		s->brain.starts = h->brain_starts;
		s->upgraded = true;
		snprintf(s->brain.end, sizeof(s->brain.end), "the daemon changed its program");
		leases_takeover(s, h->lease, h->granter_term);
		r = beats_open(s, h->udp4_fd, h->udp6_fd, err);
	}
	if (r == 0)
		r = beats_takeover(s, h, err);
	for (size_t i = 0; r == 0 && i < h->n_tasks; i++)
		r = read_task(s, h->tasks[i], err);
	copia__shepherd__handover__free_unpacked(h, NULL);
	return r;
}
