/* SPDX-License-Identifier: Apache-2.0 */
#include "drive.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static unsigned size_of(const struct drive *d)
{
	return d->nodes * d->per_node;
}

/* ---- frames ---- */

static void frame_add(struct drive_node *n, Copia__WireupFrame *f)
{
	size_t len = copia__wireup_frame__get_packed_size(f);
	uint8_t head[4] = { (uint8_t)len, (uint8_t)(len >> 8), (uint8_t)(len >> 16),
			    (uint8_t)(len >> 24) };
	str_add(&n->out, head, sizeof(head));
	str_reserve(&n->out, len);
	copia__wireup_frame__pack(f, (uint8_t *)n->out.at + n->out.len);
	n->out.len += len;
}

static void node_flush(struct drive_node *n)
{
	while (n->out.len) {
		ssize_t k = send(n->fd, n->out.at, n->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (k <= 0)
			return;
		str_cut(&n->out, (size_t)k);
	}
}

static void hello(struct drive_node *n)
{
	Copia__WireupHello h = COPIA__WIREUP_HELLO__INIT;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	h.version = 1;
	f.body_case = COPIA__WIREUP_FRAME__BODY_HELLO;
	f.hello = &h;
	frame_add(n, &f);
}

/* All that is in `out` goes with the descriptors. */
static int send_with_fds(struct drive_node *n, const int *fds, size_t count, struct err *err)
{
	union {
		char at[CMSG_SPACE(DRIVE_RANKS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct iovec io = { n->out.at, n->out.len };
	struct msghdr m = { .msg_iov = &io, .msg_iovlen = 1 };
	if (count) {
		m.msg_control = &control;
		m.msg_controllen = CMSG_SPACE(count * sizeof(int));
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(count * sizeof(int));
		memcpy(CMSG_DATA(c), fds, count * sizeof(int));
	}
	ssize_t k = sendmsg(n->fd, &m, MSG_NOSIGNAL);
	if (k < 0)
		return err_set(err, -errno, "sendmsg: %s", strerror(errno));
	str_cut(&n->out, (size_t)k);
	return 0;
}

/* ---- nodes ---- */

static int wireup_start(struct drive *d, unsigned at, struct err *err)
{
	struct drive_node *n = &d->at[at];
	int pair[2];
	char folder[] = "/tmp/wireup-drive.XXXXXX";
	if (!mkdtemp(folder) || chmod(folder, 0711) < 0)
		return err_set(err, -errno, "%s: %s", folder, strerror(errno));
	memcpy(n->folder, folder, sizeof(folder));
	snprintf(n->socket, sizeof(n->socket), "%s/socket", folder);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return err_set(err, -errno, "socketpair: %s", strerror(errno));
	n->fd = pair[0];
	n->pid = fork();
	if (n->pid == 0) {
		char number[16];
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (host_enter(&d->hosts[at]) < 0)
			_exit(126);
		snprintf(number, sizeof(number), "%d", dup(pair[1]));
		execl(d->wireup, d->wireup, "--fd", number, "--listen", n->socket, "--tmpdir",
		      n->folder, "--idle", "60s", (char *)NULL);
		_exit(127);
	}
	close(pair[1]);
	hello(n);
	return n->pid < 0 ? err_set(err, -errno, "fork: %s", strerror(errno)) : 0;
}

/* As a brain does that was killed: unread and unsent bytes are lost. */
static int link_cut(struct drive *d, struct drive_node *n, struct err *err)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	close(n->fd);
	str_clear(&n->in);
	str_clear(&n->out);
	n->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	memcpy(a.sun_path, n->socket, sizeof(a.sun_path));
	if (n->fd < 0 || connect(n->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		return err_set(err, -errno, "%s: %s", n->socket, strerror(errno));
	hello(n);
	d->cuts++;
	return 0;
}

static int job_send(struct drive *d, unsigned at, struct err *err)
{
	struct drive_node *n = &d->at[at];
	Copia__WireupJobAdd j = COPIA__WIREUP_JOB_ADD__INIT;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	Copia__WireupNode nodes[HOSTS_MAX], *list[HOSTS_MAX];
	uint32_t ranks[DRIVE_RANKS_MAX], apps[DRIVE_RANKS_MAX];
	int fds[DRIVE_RANKS_MAX], r;
	char names[HOSTS_MAX][16], *networks[] = { (char *)"10.77.0.0/24" };
	for (unsigned i = 0; i < size_of(d); i++) {
		ranks[i] = i;
		apps[i] = d->apps ? (uint32_t)(d->apps[i] - '0') : 0;
	}
	for (unsigned i = 0; i < d->nodes; i++) {
		copia__wireup_node__init(&nodes[i]);
		snprintf(names[i], sizeof(names[i]), "h%u", i);
		nodes[i].name = names[i];
		nodes[i].ranks = ranks + i * d->per_node;
		nodes[i].n_ranks = d->per_node;
		list[i] = &nodes[i];
	}
	j.job = (char *)"test-job.1";
	j.size = size_of(d);
	j.node = at;
	j.nodes = list;
	j.n_nodes = d->nodes;
	j.uid = d->user ? d->user : getuid();
	j.gid = d->user ? (gid_t)d->user : getgid();
	j.pmix = !d->no_pmix;
	j.pmi1 = !d->no_pmi1;
	j.apps = apps;
	j.n_apps = d->apps ? size_of(d) : 0;
	j.networks = networks;
	j.n_networks = (d->mislead || d->bridge) && !getenv("DRIVE_NO_NETWORKS");
	for (unsigned i = 0; i < d->per_node && j.pmi1; i++) {
		int pair[2];
		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
			return err_set(err, -errno, "socketpair: %s", strerror(errno));
		fds[i] = pair[0];
		d->ranks[at * d->per_node + i].pmi = pair[1];
	}
	j.attached = ranks + at * d->per_node;
	j.n_attached = j.pmi1 ? d->per_node : 0;
	f.fds = (uint32_t)j.n_attached;
	f.body_case = COPIA__WIREUP_FRAME__BODY_JOB_ADD;
	f.job_add = &j;
	frame_add(n, &f);
	r = send_with_fds(n, fds, j.n_attached, err);
	for (size_t i = 0; i < j.n_attached; i++)
		close(fds[i]);
	return r;
}

/* ---- ranks ---- */

static void environment_set(const struct str *list)
{
	for (size_t i = 0; i < list->len; i += strlen(list->at + i) + 1)
		putenv(list->at + i);
}

static void rank_exec(struct drive *d, unsigned rank, int out)
{
	struct drive_rank *r = &d->ranks[rank];
	struct drive_node *n = &d->at[r->node];
	char number[16];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)setsid(); /* as every launcher does: a scheduling group of its own */
	if (host_enter(&d->hosts[r->node]) < 0)
		_exit(126);
	dup2(out, STDOUT_FILENO);
	dup2(out, STDERR_FILENO);
	environment_set(&n->environment);
	environment_set(&n->own[rank % d->per_node]);
	if (!d->no_pmi1) {
		snprintf(number, sizeof(number), "%d", dup(r->pmi));
		setenv("PMI_FD", number, 1);
	}
	if (d->extra)
		putenv((char *)d->extra);
	if (d->lazy)
		setenv("OMPI_MCA_pmix_base_collect_data", "0", 1);
	/* Opened before: that user may have no access to the build folder. */
	int program = d->user ? open(d->program[0], O_RDONLY | O_CLOEXEC) : -1;
	if (d->user &&
	    (setgroups(0, NULL) < 0 || setgid((gid_t)d->user) < 0 || setuid(d->user) < 0))
		_exit(126);
	if (chdir("/tmp") == 0 && program >= 0)
		fexecve(program, d->program, environ);
	else if (!d->user)
		execv(d->program[0], d->program);
	_exit(127);
}

static int ranks_start(struct drive *d, struct err *err)
{
	for (unsigned i = 0; i < size_of(d); i++) {
		struct drive_rank *r = &d->ranks[i];
		int out[2];
		if (pipe2(out, O_CLOEXEC) < 0)
			return err_set(err, -errno, "pipe: %s", strerror(errno));
		r->pid = fork();
		if (r->pid == 0)
			rank_exec(d, i, out[1]);
		close(out[1]);
		r->out = out[0];
		if (r->pmi >= 0)
			close(r->pmi);
		r->pmi = -1;
		if (r->pid < 0)
			return err_set(err, -errno, "fork: %s", strerror(errno));
	}
	return 0;
}

static void ranks_kill(struct drive *d)
{
	for (unsigned i = 0; i < size_of(d); i++)
		if (d->ranks[i].pid > 0 && !d->ranks[i].ended)
			kill(d->ranks[i].pid, SIGKILL);
}

/* The rank's output ended: so did the rank, or it will at once. */
static void rank_read(struct drive *d, unsigned rank)
{
	struct drive_rank *r = &d->ranks[rank];
	char bytes[16384];
	ssize_t k = read(r->out, bytes, sizeof(bytes));
	if (k > 0) {
		str_add(&r->text, bytes, (size_t)k);
		return;
	}
	close(r->out);
	r->out = -1;
	waitpid(r->pid, &r->status, 0);
	r->ended = true;
	Copia__WireupRankEnded m = COPIA__WIREUP_RANK_ENDED__INIT;
	Copia__WireupFrame f = COPIA__WIREUP_FRAME__INIT;
	m.job = (char *)"test-job.1";
	m.rank = rank;
	m.status = r->status;
	f.body_case = COPIA__WIREUP_FRAME__BODY_RANK_ENDED;
	f.rank_ended = &m;
	frame_add(&d->at[r->node], &f);
}

/* ---- what the wire-up says ---- */

static void on_ready(struct drive *d, struct drive_node *n, const Copia__WireupJobReady *m)
{
	if (m->code)
		snprintf(d->failed, sizeof(d->failed), "%.255s", m->error);
	if (*m->warning)
		snprintf(d->warning, sizeof(d->warning), "%.255s", m->warning);
	if (n->ready || m->code || m->n_ranks != d->per_node)
		return;
	n->ready = true;
	n->own = xcalloc(d->per_node, sizeof(*n->own));
	for (size_t k = 0; k < m->n_environment; k++)
		str_add(&n->environment, m->environment[k], strlen(m->environment[k]) + 1);
	for (size_t i = 0; i < m->n_ranks; i++)
		for (size_t k = 0; k < m->ranks[i]->n_environment; k++)
			str_add(&n->own[i], m->ranks[i]->environment[k],
				strlen(m->ranks[i]->environment[k]) + 1);
}

static void on_notice(struct drive *d, const Copia__WireupNotice *m)
{
	if (getenv("DRIVE_TRACE"))
		fprintf(stderr,
			"notice: rank %u event %d protocol %d code %d ordinal %u closing %d "
			"arrived %u %s\n",
			m->rank, (int)m->event, (int)m->protocol, m->code, m->ordinal, m->closing,
			m->arrived, m->message);
	if (m->event == COPIA__WIREUP_EVENT__WIREUP_FAILED)
		snprintf(d->failed, sizeof(d->failed), "%.255s", m->message);
	if (m->rank >= size_of(d))
		return;
	struct drive_rank *r = &d->ranks[m->rank];
	switch (m->event) {
	case COPIA__WIREUP_EVENT__WIREUP_CONNECTED:
		r->connected = true;
		r->protocol = (int)m->protocol;
		break;
	case COPIA__WIREUP_EVENT__WIREUP_INIT:
		r->initialised = true;
		break;
	case COPIA__WIREUP_EVENT__WIREUP_BARRIER:
		r->closing = m->closing;
		break;
	case COPIA__WIREUP_EVENT__WIREUP_FINALIZED:
		r->finalized = true;
		break;
	case COPIA__WIREUP_EVENT__WIREUP_ABORTED:
		r->aborts++;
		r->abort_code = m->code;
		ranks_kill(d);
		break;
	case COPIA__WIREUP_EVENT__WIREUP_REFUSED:
		r->refused++;
		break;
	default:
		break;
	}
}

static int on_exchange(struct drive *d, unsigned at, Copia__WireupFrame *f, struct err *err)
{
	if (f->exchange->to >= d->nodes || f->exchange->from != at)
		return err_set(err, -EIO, "exchange from %u to %u", at, f->exchange->to);
	d->exchanges++;
	d->data_asks += f->exchange->kind == COPIA__WIREUP_KIND__WIREUP_DATA_ASK;
	if (d->lose && d->exchanges % 7 == 3) {
		d->lost++;
		return 0;
	}
	if (d->cut && f->exchange->sequence && d->cuts <= at) /* lost with the connection */
		return link_cut(d, &d->at[at], err) < 0 ? err->code : 1;
	f->serial = 0;
	frame_add(&d->at[f->exchange->to], f);
	return 0;
}

/* Returns 1 when the link was cut and its bytes are gone. */
static int on_frame(struct drive *d, unsigned at, Copia__WireupFrame *f, struct err *err)
{
	struct drive_node *n = &d->at[at];
	switch (f->body_case) {
	case COPIA__WIREUP_FRAME__BODY_JOB_READY:
		on_ready(d, n, f->job_ready);
		break;
	case COPIA__WIREUP_FRAME__BODY_NOTICE:
		on_notice(d, f->notice);
		break;
	case COPIA__WIREUP_FRAME__BODY_EXCHANGE:
		return on_exchange(d, at, f, err);
	case COPIA__WIREUP_FRAME__BODY_STATE:
		n->states++;
		break;
	default:
		return err_set(err, -EIO, "frame %d", (int)f->body_case);
	}
	if (f->serial) {
		Copia__WireupAck a = COPIA__WIREUP_ACK__INIT;
		Copia__WireupFrame reply = COPIA__WIREUP_FRAME__INIT;
		a.serial = f->serial;
		reply.body_case = COPIA__WIREUP_FRAME__BODY_ACK;
		reply.ack = &a;
		frame_add(n, &reply);
	}
	return 0;
}

static int node_read(struct drive *d, unsigned at, struct err *err)
{
	struct drive_node *n = &d->at[at];
	static char bytes[65536];
	ssize_t k = recv(n->fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	if (k < 0 && errno == EAGAIN)
		return 0;
	if (k <= 0)
		return err_set(err, -EIO, "copia-wireup of node %u went away", at);
	str_add(&n->in, bytes, (size_t)k);
	while (n->in.len >= 4) {
		const uint8_t *p = (const uint8_t *)n->in.at;
		size_t len = p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16 | (size_t)p[3] << 24;
		if (n->in.len < 4 + len)
			break;
		Copia__WireupFrame *f = copia__wireup_frame__unpack(NULL, len, p + 4);
		int r = f ? on_frame(d, at, f, err) : err_set(err, -EIO, "broken frame");
		copia__wireup_frame__free_unpacked(f, NULL);
		if (r)
			return r < 0 ? r : 0;
		str_cut(&n->in, 4 + len);
	}
	return 0;
}

/* ---- one run ---- */

static int step(struct drive *d, int wait_ms, struct err *err)
{
	struct pollfd p[HOSTS_MAX + DRIVE_RANKS_MAX];
	unsigned count = 0, size = size_of(d);
	for (unsigned i = 0; i < d->nodes; i++) {
		node_flush(&d->at[i]);
		p[count++] = (struct pollfd){ .fd = d->at[i].fd,
					      .events = POLLIN | (d->at[i].out.len ? POLLOUT : 0) };
	}
	for (unsigned i = 0; i < size; i++)
		p[count++] = (struct pollfd){ .fd = d->ranks[i].out, .events = POLLIN };
	if (poll(p, count, wait_ms) < 0 && errno != EINTR)
		return err_set(err, -errno, "poll: %s", strerror(errno));
	int r = 0;
	for (unsigned i = 0; i < d->nodes && r == 0; i++)
		if (p[i].revents & (POLLIN | POLLHUP))
			r = node_read(d, i, err);
	for (unsigned i = 0; i < size; i++)
		if (p[d->nodes + i].revents)
			rank_read(d, i);
	return r;
}

static bool all_ready(const struct drive *d)
{
	for (unsigned i = 0; i < d->nodes; i++)
		if (!d->at[i].ready)
			return false;
	return true;
}

static bool all_ended(const struct drive *d)
{
	for (unsigned i = 0; i < size_of(d); i++)
		if (!d->ranks[i].ended)
			return false;
	return true;
}

static bool any_closing(const struct drive *d)
{
	for (unsigned i = 0; i < size_of(d); i++)
		if (d->ranks[i].closing)
			return true;
	return false;
}

static int wait_ranks(struct drive *d, struct err *err)
{
	double start = now(), closing = 0;
	int r = 0;
	while (r == 0 && !all_ended(d)) {
		r = step(d, 100, err);
		if (!closing && any_closing(d))
			closing = now();
		d->hung = d->hung || (closing != 0 && d->closing_ms &&
				      now() > closing + d->closing_ms / 1e3 && !all_ended(d));
		d->timed_out = d->timed_out || now() > start + d->limit_ms / 1e3;
		if (d->hung || d->timed_out || *d->failed)
			ranks_kill(d);
	}
	d->seconds = now() - start;
	return r;
}

/* The last notices may be on their way still: the answer to another hello comes behind them. */
static int drain(struct drive *d, struct err *err)
{
	int r = 0;
	for (unsigned i = 0; i < d->nodes; i++) {
		unsigned before = d->at[i].states;
		double limit = now() + 10;
		hello(&d->at[i]);
		while (r == 0 && d->at[i].states == before && now() < limit)
			r = step(d, 100, err);
	}
	return r;
}

int drive_run(struct drive *d, struct err *err)
{
	assert(size_of(d) <= DRIVE_RANKS_MAX && d->nodes <= HOSTS_MAX);
	int r = 0;
	for (unsigned i = 0; i < DRIVE_RANKS_MAX; i++) {
		d->ranks[i] = (struct drive_rank){ .out = -1, .pmi = -1, .protocol = -1 };
		d->ranks[i].node = d->per_node ? i / d->per_node : 0;
	}
	for (unsigned i = 0; i < HOSTS_MAX; i++)
		d->at[i] = (struct drive_node){ .fd = -1 };
	if (d->pretend)
		r = hosts_make(d->hosts, d->nodes, d->bridge, err);
	if (r == 0 && d->mislead)
		r = hosts_mislead(d->hosts, d->nodes, err);
	for (unsigned i = 0; i < d->nodes && r == 0; i++)
		r = wireup_start(d, i, err);
	for (unsigned i = 0; i < d->nodes && r == 0; i++)
		r = job_send(d, i, err);
	double limit = now() + 20;
	while (r == 0 && !all_ready(d) && !*d->failed && now() < limit)
		r = step(d, 100, err);
	if (r < 0 || *d->failed)
		return r;
	if (!all_ready(d))
		return err_set(err, -EIO, "no JobReady in 20 s");
	r = ranks_start(d, err);
	if (r == 0)
		r = wait_ranks(d, err);
	return r == 0 ? drain(d, err) : r;
}

int drive_free(struct drive *d)
{
	int bad = 0, status;
	ranks_kill(d);
	for (unsigned i = 0; i < size_of(d); i++) {
		struct drive_rank *r = &d->ranks[i];
		if (r->pid > 0 && !r->ended)
			waitpid(r->pid, NULL, 0);
		if (r->out >= 0)
			close(r->out);
		if (r->pmi >= 0)
			close(r->pmi);
		str_free(&r->text);
	}
	for (unsigned i = 0; i < d->nodes; i++) {
		struct drive_node *n = &d->at[i];
		if (n->pid > 0) {
			kill(n->pid, SIGTERM);
			if (waitpid(n->pid, &status, 0) == n->pid && status)
				bad = status;
		}
		if (n->fd >= 0)
			close(n->fd);
		for (unsigned k = 0; n->own && k < d->per_node; k++)
			str_free(&n->own[k]);
		free(n->own);
		str_free(&n->environment);
		str_free(&n->in);
		str_free(&n->out);
		rmdir(n->folder); /* fails when the wire-up left anything: seen by the test */
	}
	hosts_end(d->hosts, d->nodes);
	return bad;
}
