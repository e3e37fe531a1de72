/* SPDX-License-Identifier: Apache-2.0 */
#include "space.h"
#include "addr.h"
#include "links.h"
#include "mounts.h"
#include "report.h"
#include "stopped.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { START_MS = 60000, KILL_MS = 20000 };

#define NODE_SPACES (CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC)

/* fork() into new namespaces. */
static pid_t fork_into(uint64_t flags)
{
	struct clone_args args = { .flags = flags, .exit_signal = SIGCHLD };
	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static int write_file(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	int r = write(fd, value, strlen(value)) < 0 ? -errno : 0;
	(void)close(fd);
	return r;
}

/* ---- what becomes a labinit ---- */

/* Replaces the process by copia-labinit; returns only on failure. Output and error go to `out_fd`
 * (-1: nowhere). All other descriptors but `keep_fd` (-1: none) are closed in it. */
static int become_init(int init_fd, int out_fd, int keep_fd, char *const argv[], struct err *err)
{
	int in = open("/dev/null", O_RDWR | O_CLOEXEC);
	int out = out_fd >= 0 ? out_fd : in;
	if (in < 0)
		return err_set(err, -errno, "open /dev/null: %s", strerror(errno));
	(void)close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || dup2(out, 2) < 0 ||
	    (keep_fd >= 0 && fcntl(keep_fd, F_SETFD, 0) < 0))
		return err_set(err, -errno, "set up descriptors: %s", strerror(errno));
	static const char *const not_theirs[] = { "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS",
						  "NOTIFY_SOCKET", "TMPDIR" };
	for (unsigned k = 0; k < ARRAY_LEN(not_theirs); k++)
		(void)unsetenv(not_theirs[k]);
	(void)fexecve(init_fd, argv, environ);
	return err_set(err, -errno, "start copia-labinit: %s", strerror(errno));
}

/* ---- hub ---- */

static int hub_links(struct err *err)
{
	/* The hub only passes frames on: it takes no part in IPv6, and no firewall of layer 3 may
	 * look at what it forwards. Missing files mean that there is nothing to switch off. */
	(void)write_file("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1");
	(void)write_file("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
	(void)write_file("/proc/sys/net/bridge/bridge-nf-call-iptables", "0");
	(void)write_file("/proc/sys/net/bridge/bridge-nf-call-ip6tables", "0");
	(void)write_file("/proc/sys/net/bridge/bridge-nf-call-arptables", "0");
	struct links *l;
	int r = links_open(&l, err);
	if (r < 0)
		return r;
	r = links_set(l, "lo", true, err);
	if (r == 0)
		r = links_add_bridge(l, "hub", err);
	links_free(l);
	return r;
}

/* A helper of this command, which ends with it. It keeps the lock, so that the next command waits
 * for its end; what outlives the command (hub, nodes) gives the lock up first of all. To be said
 * again after joining a user namespace, which forgets it. */
static void die_with_parent(pid_t parent)
{
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent && getppid() != 0) /* 0: a parent outside of the pid namespace */
		_exit(1);
}

static _Noreturn void be_hub(const struct lab *lab, int sock, int init_fd)
{
	struct err err = { 0 };
	char name[LAB_NAME_MAX + 1];
	char *argv[] = { "copia-labinit", "hub", name, NULL };
	(void)close(lab->lock_fd);
	(void)snprintf(name, sizeof(name), "%s", lab->name);
	if (!report_wait(sock, 1))
		_exit(1);
	(void)setsid();
	int r = mounts_hub(&err);
	if (r == 0)
		r = hub_links(&err);
	if (r == 0)
		r = become_init(init_fd, -1, -1, argv, &err);
	report_error(sock, r, &err);
	_exit(1);
}

static int explain_clone(int code, bool user, struct err *err)
{
	static const struct {
		const char *path, *bad, *remedy;
	} switches[] = {
		{ "/proc/sys/kernel/unprivileged_userns_clone", "0",
		  "sysctl kernel.unprivileged_userns_clone=1" },
		{ "/proc/sys/user/max_user_namespaces", "0",
		  "sysctl user.max_user_namespaces=10000" },
		{ "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1",
		  "sysctl kernel.apparmor_restrict_unprivileged_userns=0" },
	};
	for (unsigned k = 0; user && k < ARRAY_LEN(switches); k++) {
		char value[16] = "";
		int fd = open(switches[k].path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		ssize_t len = read(fd, value, sizeof(value) - 1);
		(void)close(fd);
		value[len > 0 ? strcspn(value, "\n") : 0] = '\0';
		if (strcmp(value, switches[k].bad) == 0)
			return err_set(err, code,
				       "this system does not let ordinary users make namespaces: "
				       "as root, run \"%s\", or run this command as root",
				       switches[k].remedy);
	}
	if (user)
		return err_set(err, code,
			       "cannot make a user namespace: %s (in a chroot or a container that "
			       "forbids it?); run this command as root",
			       strerror(-code));
	if (code == -EPERM)
		return err_set(err, code,
			       "cannot make namespaces: root without CAP_SYS_ADMIN (a container?)");
	return err_set(err, code, "cannot make namespaces: %s", strerror(-code));
}

/* Root inside is the user outside; other users cannot be there. */
static int map_user(pid_t pid, struct err *err)
{
	char uid[32], gid[32];
	(void)snprintf(uid, sizeof(uid), "0 %u 1\n", geteuid());
	(void)snprintf(gid, sizeof(gid), "0 %u 1\n", getegid());
	const struct {
		const char *file, *text;
	} maps[] = { { "uid_map", uid }, { "setgroups", "deny\n" }, { "gid_map", gid } };
	for (unsigned k = 0; k < ARRAY_LEN(maps); k++) {
		char path[64];
		(void)snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, maps[k].file);
		int r = write_file(path, maps[k].text);
		if (r < 0)
			return err_set(err, r, "write %s: %s", path, strerror(-r));
	}
	return 0;
}

static int start_hub(struct lab *lab, int init_fd, int pair[2], struct err *err)
{
	bool user = geteuid() != 0;
	pid_t pid =
	    fork_into(CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | (user ? CLONE_NEWUSER : 0));
	if (pid < 0)
		return explain_clone(-errno, user, err);
	if (pid == 0) {
		(void)close(pair[0]);
		be_hub(lab, pair[1], init_fd);
	}
	(void)close(pair[1]);
	pair[1] = -1;
	lab->hub = (struct proc){ .pid = pid, .start_ticks = proc_start_ticks(pid, NULL) };
	int r = user ? map_user(pid, err) : 0;
	if (r == 0)
		r = store_put_proc(lab, "hub", &lab->hub, err);
	if (r == 0)
		r = report_go(pair[0], err);
	if (r == 0)
		r = report_result(pair[0], START_MS, "the hub", err);
	if (r == 0)
		return 0;
	(void)kill(pid, SIGKILL);
	(void)waitpid(pid, NULL, 0);
	lab->hub = (struct proc){ 0 };
	if (user && (r == -EPERM || r == -EACCES))
		return explain_clone(r, user, err);
	return err_wrap(err, r, "start the hub of lab %s", lab->name);
}

int space_start_hub(struct lab *lab, const struct space_programs *programs, struct err *err)
{
	int pair[2];
	int init_fd = open(programs->init, O_RDONLY | O_CLOEXEC);
	if (init_fd < 0)
		return err_set(err, -errno, "open %s: %s", programs->init, strerror(errno));
	int r = report_pair(pair, err);
	if (r == 0) {
		r = start_hub(lab, init_fd, pair, err);
		(void)close(pair[0]);
		if (pair[1] >= 0)
			(void)close(pair[1]);
	}
	(void)close(init_fd);
	return r;
}

/* ---- nodes ---- */

struct starting {
	struct lab *lab;
	uint64_t bits;
	const struct space_programs *programs;
	const struct groups *groups;
	int init_fd;
	int pairs[LAB_NODES_MAX + 1][2]; /* [i][0] ours, [i][1] the node's; -1 when closed */
};

static bool wanted(const struct starting *s, unsigned i)
{
	return s->bits >> (i - 1) & 1;
}

static void close_pairs(struct starting *s, unsigned keep)
{
	for (unsigned i = 1; i <= LAB_NODES_MAX; i++)
		for (unsigned end = 0; end < 2; end++)
			if (s->pairs[i][end] >= 0 && !(i == keep && end == 1)) {
				(void)close(s->pairs[i][end]);
				s->pairs[i][end] = -1;
			}
}

static int node_links(const struct lab *lab, unsigned i, struct err *err)
{
	/* Addresses are given out by us: waiting for duplicates would only cost seconds. */
	(void)write_file("/proc/sys/net/ipv6/conf/all/accept_dad", "0");
	(void)write_file("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
	(void)write_file("/proc/sys/net/ipv6/conf/eth0/accept_dad", "0");
	char text[ADDR_TEXT];
	struct links *l;
	int r = links_open(&l, err);
	if (r < 0)
		return r;
	r = links_set(l, "lo", true, err);
	if (r == 0)
		r = links_set(l, "eth0", true, err);
	if (r == 0)
		r = links_add_addr(l, "eth0", addr_ipv4(lab, i, text), 24, err);
	/* a machine without IPv6 has nodes without it */
	if (r == 0 && access("/proc/sys/net/ipv6", F_OK) == 0)
		r = links_add_addr(l, "eth0", addr_ipv6(lab, i, text), 64, err);
	links_free(l);
	return r;
}

static int set_up_node(const struct starting *s, unsigned i, struct err *err)
{
	struct groups groups = *s->groups;
	char name[16];
	(void)snprintf(name, sizeof(name), "n%u", i);
	(void)setsid();
	groups_enter_new(&groups, i);
	if (sethostname(name, strlen(name)) < 0)
		return err_set(err, -errno, "set the host name %s: %s", name, strerror(errno));
	int r = node_links(s->lab, i, err);
	return r < 0 ? r : mounts_node(s->lab, i, &groups, err);
}

static int open_node_file(const struct lab *lab, unsigned i, const char *name, int flags)
{
	char path[64];
	(void)snprintf(path, sizeof(path), "nodes/n%u/%s", i, name);
	return openat(lab->dir_fd, path, flags | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
}

static _Noreturn void be_node(struct starting *s, unsigned i)
{
	struct err err = { 0 };
	char name[16], fd_text[16];
	int sock = s->pairs[i][1];
	(void)close(s->lab->lock_fd);
	(void)prctl(PR_SET_PDEATHSIG, 0);
	close_pairs(s, i);
	/* one go from the command that wrote us down, one from the helper that made our link */
	if (report_born(sock) < 0 || !report_wait(sock, 2))
		_exit(1);
	int log = open_node_file(s->lab, i, "log", O_WRONLY | O_APPEND);
	int state = open_node_file(s->lab, i, "daemon", O_RDWR | O_TRUNC);
	int r = log < 0 || state < 0 ? err_set(&err, -errno, "open its files in %s: %s",
					       s->lab->dir, strerror(errno))
				     : set_up_node(s, i, &err);
	(void)snprintf(name, sizeof(name), "n%u", i);
	(void)snprintf(fd_text, sizeof(fd_text), "%d", state);
	char *argv[] = { "copia-labinit", "node", name, fd_text, s->programs->copiad, NULL };
	if (r == 0)
		r = become_init(s->init_fd, log, state, argv, &err);
	report_error(sock, r, &err);
	_exit(1);
}

/* In the hub's namespaces, a child of its pid namespace: make all nodes, then end, which hands
 * them over to the hub. */
static int make_nodes(struct starting *s, struct err *err)
{
	struct links *l;
	int r = links_open(&l, err);
	for (unsigned i = 1; r == 0 && i <= s->lab->count; i++) {
		char port[16];
		uint8_t mac[6];
		if (!wanted(s, i))
			continue;
		(void)snprintf(port, sizeof(port), "n%u", i);
		addr_mac(s->lab, i, mac);
		/* that of a node just killed may still be on its way out */
		r = links_remove(l, port, err);
		pid_t pid = r < 0 ? -1 : fork_into(NODE_SPACES);
		if (pid == 0)
			be_node(s, i);
		if (r == 0 && pid < 0)
			r = explain_clone(-errno, false, err);
		if (r == 0)
			r = links_add_port(l, port, "hub", "eth0", mac, pid, err);
		if (r == 0)
			r = report_go(s->pairs[i][0], err);
		if (r < 0)
			report_error(s->pairs[i][1], r, err);
		(void)close(s->pairs[i][1]);
		s->pairs[i][1] = -1;
	}
	links_free(l);
	return r;
}

static _Noreturn void helper(struct starting *s, pid_t parent)
{
	struct err err = { 0 };
	pid_t self = getpid();
	int r = space_enter_hub(s->lab, &err);
	die_with_parent(parent);
	pid_t pid = r < 0 ? -1 : fork();
	if (pid == 0) {
		die_with_parent(self);
		_exit(make_nodes(s, &err) < 0);
	}
	if (r == 0 && pid < 0)
		r = err_set(&err, -errno, "fork: %s", strerror(errno));
	for (unsigned i = 1; r < 0 && i <= s->lab->count; i++)
		if (wanted(s, i))
			report_error(s->pairs[i][1], r, &err);
	close_pairs(s, 0);
	if (pid > 0)
		(void)waitpid(pid, NULL, 0);
	_exit(r < 0);
}

/* One message of node `i`. 0: more will come; 1: it runs now. */
static int hear(struct starting *s, unsigned i, struct err *err)
{
	struct lab *lab = s->lab;
	pid_t pid;
	char path[64];
	int r = report_read(s->pairs[i][0], &pid, err);
	if (r == REPORT_BORN) {
		lab->node[i] =
		    (struct proc){ .pid = pid, .start_ticks = proc_start_ticks(pid, NULL) };
		(void)snprintf(path, sizeof(path), "nodes/n%u/pid", i);
		r = store_put_proc(lab, path, &lab->node[i], err);
		return r < 0 ? r : report_go(s->pairs[i][0], err);
	}
	if (r == REPORT_END && lab->node[i].pid && proc_alive(&lab->node[i]))
		return 1;
	if (r == REPORT_END)
		return err_set(err, -ECHILD, "it ended while it was being set up");
	return r;
}

/* Until all have become a labinit or failed. The first failure is the one told. */
static int watch(struct starting *s, struct err *err)
{
	struct pollfd fds[LAB_NODES_MAX];
	unsigned node[LAB_NODES_MAX];
	int result = 0;
	for (;;) {
		unsigned open_count = 0;
		for (unsigned i = 1; i <= s->lab->count; i++)
			if (s->pairs[i][0] >= 0) {
				node[open_count] = i;
				fds[open_count++] =
				    (struct pollfd){ .fd = s->pairs[i][0], .events = POLLIN };
			}
		if (!open_count)
			return result;
		int ready = poll(fds, open_count, START_MS);
		if (ready < 0)
			continue; /* a signal */
		for (unsigned k = 0; k < open_count; k++) {
			struct err one = { 0 };
			unsigned i = node[k];
			int r = 0;
			if (ready == 0)
				r = err_set(&one, -ETIMEDOUT, "not set up after %d s",
					    START_MS / 1000);
			else if (fds[k].revents)
				r = hear(s, i, &one);
			if (r == 0)
				continue;
			(void)close(s->pairs[i][0]);
			s->pairs[i][0] = -1;
			if (r > 0)
				continue;
			if (s->lab->node[i].pid)
				(void)space_kill(&s->lab->node[i], "node", NULL);
			s->lab->node[i] = (struct proc){ 0 };
			if (result == 0)
				result = err_set(err, r, "start node n%u: %s", i, one.msg);
		}
	}
}

int space_start_nodes(struct lab *lab, uint64_t bits, const struct space_programs *programs,
		      const struct groups *g, struct err *err)
{
	struct starting s = { .lab = lab, .bits = bits, .programs = programs, .groups = g };
	memset(s.pairs, -1, sizeof(s.pairs));
	s.init_fd = open(programs->init, O_RDONLY | O_CLOEXEC);
	if (s.init_fd < 0)
		return err_set(err, -errno, "open %s: %s", programs->init, strerror(errno));
	int r = 0;
	for (unsigned i = 1; r == 0 && i <= lab->count; i++) {
		if (!wanted(&s, i))
			continue;
		r = store_make_node(lab, i, err);
		if (r == 0)
			r = groups_remove_node(g, i, err);
		if (r == 0)
			r = report_pair(s.pairs[i], err);
	}
	pid_t self = getpid(), pid = r < 0 ? -1 : fork();
	if (pid == 0)
		helper(&s, self);
	if (r == 0 && pid < 0)
		r = err_set(err, -errno, "fork: %s", strerror(errno));
	for (unsigned i = 1; i <= LAB_NODES_MAX; i++)
		if (s.pairs[i][1] >= 0) {
			(void)close(s.pairs[i][1]);
			s.pairs[i][1] = -1;
		}
	if (r == 0) {
		r = watch(&s, err);
		(void)waitpid(pid, NULL, 0);
	}
	close_pairs(&s, 0);
	(void)close(s.init_fd);
	return r;
}

/* ---- going in ---- */

static bool same_user_space(pid_t pid)
{
	char path[64], here[64] = "", there[64] = "";
	(void)snprintf(path, sizeof(path), "/proc/%d/ns/user", (int)pid);
	if (readlink("/proc/self/ns/user", here, sizeof(here) - 1) <= 0 ||
	    readlink(path, there, sizeof(there) - 1) <= 0)
		return false;
	return strcmp(here, there) == 0;
}

static int enter(const struct proc *proc, const char *what, int spaces, struct err *err)
{
	int fd = proc->pid ? pidfd_open(proc->pid, 0) : -1;
	/* the start time is looked at after the descriptor is held: then it is that process */
	if (fd < 0 || !proc_alive(proc)) {
		if (fd >= 0)
			(void)close(fd);
		return err_set(err, -ESRCH, "%s is off", what);
	}
	int r = setns(fd, spaces | (same_user_space(proc->pid) ? 0 : CLONE_NEWUSER));
	if (r < 0)
		r = err_set(err, -errno, "enter %s: %s", what, strerror(errno));
	(void)close(fd);
	return r;
}

int space_enter_hub(const struct lab *lab, struct err *err)
{
	return enter(&lab->hub, "the lab", CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID, err);
}

int space_enter_node(const struct lab *lab, unsigned i, struct err *err)
{
	char what[16];
	(void)snprintf(what, sizeof(what), "node n%u", i);
	return enter(&lab->node[i], what, NODE_SPACES | CLONE_NEWCGROUP, err);
}

int space_in_hub(const struct lab *lab, int (*work)(const struct lab *lab, void *arg, struct err *),
		 void *arg, struct err *err)
{
	int pair[2];
	int r = report_pair(pair, err);
	if (r < 0)
		return r;
	pid_t self = getpid(), pid = fork();
	if (pid == 0) {
		struct err one = { 0 };
		(void)close(pair[0]);
		r = space_enter_hub(lab, &one);
		die_with_parent(self);
		if (r == 0)
			r = work(lab, arg, &one);
		if (r < 0)
			report_error(pair[1], r, &one);
		_exit(r < 0);
	}
	int failed = errno;
	(void)close(pair[1]);
	r = pid < 0 ? err_set(err, -failed, "fork: %s", strerror(failed))
		    : report_result(pair[0], START_MS, "the helper", err);
	(void)close(pair[0]);
	if (pid > 0)
		(void)waitpid(pid, NULL, 0);
	return r;
}

/* ---- ending ---- */

int space_signal(const struct proc *proc, int number)
{
	int fd = proc->pid ? pidfd_open(proc->pid, 0) : -1;
	if (fd < 0)
		return -ESRCH;
	int r = !proc_alive(proc)                            ? -ESRCH
		: pidfd_send_signal(fd, number, NULL, 0) < 0 ? -errno
							     : 0;
	(void)close(fd);
	return r;
}

int space_kill(const struct proc *proc, const char *what, struct err *err)
{
	int fd = proc->pid ? pidfd_open(proc->pid, 0) : -1;
	if (fd < 0 || !proc_alive(proc)) {
		if (fd >= 0)
			(void)close(fd);
		return 0;
	}
	int r = pidfd_send_signal(fd, SIGKILL, NULL, 0) < 0 ? -errno : 0;
	if (r < 0)
		err_set(err, r, "end %s (pid %d): %s", what, (int)proc->pid, strerror(-r));
	/* The pidfd is readable when the process is dead, for pid 1 of a pid namespace when all in
	 * there are gone, too. A stopped "copia lab exec" outside holds that up until it collects
	 * its dead child, hence the nudge. */
	bool gone = false;
	for (int waited_ms = 0; r == 0 && !gone && waited_ms < KILL_MS; waited_ms += 200) {
		gone = poll(&(struct pollfd){ .fd = fd, .events = POLLIN }, 1, 200) > 0;
		if (!gone)
			stopped_continue();
	}
	if (r == 0 && !gone)
		r = err_set(err, -ETIMEDOUT, "%s (pid %d) did not end %d s after SIGKILL", what,
			    (int)proc->pid, KILL_MS / 1000);
	(void)close(fd);
	return r;
}
