/* SPDX-License-Identifier: Apache-2.0 */
#include "cluster.h"
#include "addr.h"
#include "enter.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { READY_MS = 30000 };

static const char socket_name[] = "copia.sock";

static int64_t now_ms(void)
{
	struct timespec now;
	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- waiting for a daemon ---- */

static bool answers(pid_t pid)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	(void)snprintf(addr.sun_path, sizeof(addr.sun_path), "/proc/%d/root/run/copia/%s", (int)pid,
		       socket_name);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	bool yes = fd >= 0 && connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0;
	if (fd >= 0)
		(void)close(fd);
	return yes;
}

/* What labinit wrote about it: false when copiad has ended. */
static bool daemon_runs(struct lab *lab, unsigned i, struct err *err)
{
	char path[64];
	_cleanup_(str_free) struct str text = { 0 };
	(void)snprintf(path, sizeof(path), "nodes/n%u/daemon", i);
	if (store_get(lab, path, &text, err) < 0)
		return false;
	char *state = text.at ? text.at : "";
	/* empty: labinit has not come to it yet */
	if (!text.len || strncmp(state, "running", 7) == 0)
		return true;
	state[strcspn(state, "\n")] = '\0';
	err_set(err, -ECHILD, "copiad on n%u ended (%s): see %s/nodes/n%u/log", i, state, lab->dir,
		i);
	return false;
}

static int wait_daemon(struct lab *lab, unsigned i, int watch, struct err *err)
{
	char path[PATH_MAX], rest[64], events[4096];
	pid_t pid = lab->node[i].pid;
	(void)snprintf(path, sizeof(path), "/proc/%d/root/run/copia", (int)pid);
	(void)snprintf(rest, sizeof(rest), "nodes/n%u/daemon", i);
	if (inotify_add_watch(watch, path, IN_CREATE | IN_MOVED_TO | IN_ATTRIB) < 0)
		return err_set(err, -errno, "watch %s: %s", path, strerror(errno));
	if (inotify_add_watch(watch, store_path(lab, rest, path), IN_MODIFY) < 0)
		return err_set(err, -errno, "watch %s: %s", path, strerror(errno));
	int64_t end = now_ms() + READY_MS;
	while (!answers(pid)) {
		if (!daemon_runs(lab, i, err))
			return err->code;
		int64_t left = end - now_ms();
		if (left <= 0 || !proc_alive(&lab->node[i]))
			return err_set(err, -ETIMEDOUT,
				       "copiad on n%u does not answer: see %s/nodes/n%u/log", i,
				       lab->dir, i);
		/* between bind, which makes the file, and listen there is no event to wait for */
		(void)snprintf(path, sizeof(path), "/proc/%d/root/run/copia/%s", (int)pid,
			       socket_name);
		bool bound = access(path, F_OK) == 0;
		(void)poll(&(struct pollfd){ .fd = watch, .events = POLLIN }, 1,
			   bound ? 10 : (int)MIN(left, (int64_t)1000));
		while (read(watch, events, sizeof(events)) > 0)
			;
	}
	return 0;
}

static int await_daemon(struct lab *lab, unsigned i, struct err *err)
{
	struct err one = { 0 };
	int watch = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
	if (watch < 0)
		return err_set(err, -errno, "inotify: %s", strerror(errno));
	int r = wait_daemon(lab, i, watch, &one);
	(void)close(watch);
	return r < 0 ? err_set(err, r, "%s", one.msg) : 0;
}

/* ---- membership ---- */

static bool is_member(const struct lab *lab, unsigned i)
{
	char path[64];
	(void)snprintf(path, sizeof(path), "nodes/n%u/joined", i);
	return faccessat(lab->dir_fd, path, F_OK, 0) == 0;
}

static int note_member(struct lab *lab, unsigned i, struct err *err)
{
	char path[64];
	(void)snprintf(path, sizeof(path), "nodes/n%u/joined", i);
	return store_put(lab, path, "", err);
}

static int ask(struct lab *lab, const struct groups *g, unsigned i, char *const argv[], char **ret,
	       struct err *err)
{
	struct enter_child child;
	int r = enter_start(lab, g, i, argv, &child, err);
	return r < 0 ? r : enter_finish(&child, ret, err);
}

static int found(struct lab *lab, const struct groups *g, const char *copia, struct err *err)
{
	/* All nodes are this one machine, and its root is whoever made the lab. */
	char *const argv[] = { (char *)copia, "init", "--name", lab->name, "--root-tasks", NULL };
	if (is_member(lab, 1))
		return 0;
	int r = ask(lab, g, 1, argv, NULL, err);
	if (r < 0) {
		/* An "up" that was killed between init and our note: then n1 gives out tokens. */
		char *const token[] = { (char *)copia, "token", NULL };
		if (ask(lab, g, 1, token, NULL, NULL) < 0)
			return err_wrap(err, r, "copia init on n1");
	}
	return note_member(lab, 1, err);
}

static int start_join(struct lab *lab, const struct groups *g, unsigned i, const char *copia,
		      struct enter_child *ret, struct err *err)
{
	char addr[ADDR_TEXT];
	_cleanup_(str_free) struct str where = { 0 };
	_cleanup_(free_p) char *token = NULL;
	char *const ask_token[] = { (char *)copia, "token", NULL };
	int r = ask(lab, g, 1, ask_token, &token, err);
	if (r < 0)
		return err_wrap(err, r, "copia token on n1");
	token[strcspn(token, "\r\n \t")] = '\0';
	str_printf(&where, "%s@%s", token, addr_ipv4(lab, 1, addr));
	char *const argv[] = { (char *)copia, "join", where.at, NULL };
	r = await_daemon(lab, i, err);
	return r < 0 ? r : enter_start(lab, g, i, argv, ret, err);
}

int cluster_make(struct lab *lab, uint64_t bits, const struct groups *g, const char *copia,
		 struct err *err)
{
	struct enter_child joins[LAB_NODES_MAX + 1] = { 0 };
	int r = 0;
	for (unsigned i = 1; i <= lab->count; i++)
		if (is_member(lab, i))
			bits &= ~(UINT64_C(1) << (i - 1));
	if (!bits)
		return 0;
	if (!lab->node[1].pid)
		return err_set(err, -ESRCH,
			       "node n1 is off, and the others join through it: "
			       "copia lab start n1");
	r = await_daemon(lab, 1, err);
	if (r == 0)
		r = found(lab, g, copia, err);
	for (unsigned i = 2; r == 0 && i <= lab->count; i++)
		if (bits >> (i - 1) & 1)
			r = start_join(lab, g, i, copia, &joins[i], err);
	for (unsigned i = 2; i <= lab->count; i++) {
		struct err one = { 0 };
		if (!joins[i].pid)
			continue;
		int joined = enter_finish(&joins[i], NULL, &one);
		if (joined == 0)
			joined = note_member(lab, i, &one);
		if (joined < 0 && r == 0)
			r = err_set(err, joined, "copia join on n%u: %s", i, one.msg);
	}
	return r;
}
