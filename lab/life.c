/* SPDX-License-Identifier: Apache-2.0 */
#include "life.h"
#include "addr.h"
#include "cluster.h"
#include "fault.h"
#include "links.h"
#include "program.h"
#include "space.h"
#include "stopped.h"
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static bool has(uint64_t bits, unsigned i)
{
	return bits >> (i - 1) & 1;
}

static uint64_t all_nodes(const struct lab *lab)
{
	return lab->count ? UINT64_MAX >> (64 - lab->count) : 0;
}

/* ---- up and start ---- */

struct programs {
	struct space_programs space;
	char *copia; /* NULL: bare */
};

static void programs_free(struct programs *p)
{
	free(p->space.init);
	free(p->space.copiad);
	free(p->copia);
}

static int find_programs(bool bare, struct programs *ret, struct err *err)
{
	int r = program_find("copia-labinit", &ret->space.init, err);
	if (r < 0 || bare)
		return r;
	r = program_find("copiad", &ret->space.copiad, err);
	if (r == 0)
		r = program_find("copia", &ret->copia, err);
	return r < 0 ? err_wrap(err, r, "use --bare for nodes without Copia, or build it") : 0;
}

/* All nodes have this one file mounted, so it keeps its inode and only grows. */
static int write_hosts(struct lab *lab, struct err *err)
{
	_cleanup_(str_free) struct str want = { 0 };
	_cleanup_(str_free) struct str have = { 0 };
	addr_hosts(lab, 0, lab->count, &want);
	int r = store_get(lab, "hosts", &have, err);
	if (r < 0)
		return r;
	bool grows = have.len <= want.len && memcmp(str_text(&have), want.at, have.len) == 0;
	int fd = openat(lab->dir_fd, "hosts",
			O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | (grows ? O_APPEND : O_TRUNC),
			0644);
	size_t from = grows ? have.len : 0;
	ssize_t put = fd < 0 ? -1 : write(fd, want.at + from, want.len - from);
	if (put != (ssize_t)(want.len - from))
		r = err_set(err, -EIO, "write %s/hosts: %s", lab->dir, strerror(errno));
	if (fd >= 0)
		(void)close(fd);
	return r;
}

static int add_share(struct lab *lab, const char *path, struct err *err)
{
	unsigned k = 0;
	for (; lab->shares[k]; k++)
		if (strcmp(lab->shares[k], path) == 0)
			return 0;
	if (k >= LAB_SHARES_MAX)
		return err_set(err, -E2BIG, "more than %d shared folders", LAB_SHARES_MAX);
	if (strpbrk(path, "\n"))
		return err_set(err, -EINVAL, "a shared folder's name has a line break in it");
	lab->shares[k] = xstrdup(path);
	return 0;
}

static int add_shares(struct lab *lab, const struct lab_request *req, struct err *err)
{
	_cleanup_(free_p) char *root = program_root();
	int r = root ? add_share(lab, root, err) : 0;
	for (unsigned k = 0; r == 0 && k < req->share_count; k++) {
		char real[PATH_MAX];
		r = realpath(req->shares[k], real)
			? add_share(lab, real, err)
			: err_set(err, -errno, "share %s: %s", req->shares[k], strerror(errno));
	}
	return r;
}

/* The hub and the lab's control groups, if they are not there. */
static int need_hub(struct lab *lab, const struct programs *p, struct groups *g, struct err *err)
{
	int r = groups_load(lab, g, err);
	if (r < 0 || lab->hub.pid)
		return r;
	/* those of a lab that ended without "down" may be elsewhere than ours would be */
	r = groups_remove(g, err);
	if (r == 0)
		r = groups_make(lab, g, err);
	if (r == 0)
		r = space_start_hub(lab, &p->space, err);
	return r < 0 ? r : faults_renew(lab, err);
}

static int start(struct lab *lab, uint64_t bits, const struct programs *p, struct err *err)
{
	struct groups g;
	uint64_t missing = 0;
	int r = need_hub(lab, p, &g, err);
	if (r < 0)
		return r;
	for (unsigned i = 1; i <= lab->count; i++)
		if (has(bits, i) && !lab->node[i].pid)
			missing |= UINT64_C(1) << (i - 1);
	if (missing)
		r = space_start_nodes(lab, missing, &p->space, &g, err);
	if (r < 0 || lab->bare)
		return r;
	for (unsigned i = 1; i <= lab->count; i++)
		if (has(bits & ~missing, i))
			(void)space_signal(&lab->node[i], SIGUSR1); /* copiad, if it has ended */
	return cluster_make(lab, bits, &g, p->copia, err);
}

int life_start(struct lab *lab, uint64_t bits, struct err *err)
{
	_cleanup_(programs_free) struct programs p = { 0 };
	int r = find_programs(lab->bare, &p, err);
	return r < 0 ? r : start(lab, bits, &p, err);
}

int life_up(struct lab *lab, unsigned count, const struct lab_request *req, struct err *err)
{
	bool is_new = lab->count == 0;
	_cleanup_(programs_free) struct programs p = { 0 };
	if (is_new)
		lab->bare = req->bare;
	else if (req->bare && !lab->bare)
		return err_set(err, -EEXIST,
			       "lab %s has copiad in its nodes: --bare needs a new lab", lab->name);
	int r = find_programs(lab->bare, &p, err);
	if (r == 0)
		r = add_shares(lab, req, err);
	if (r == 0) {
		unsigned least = count ? count : is_new ? LAB_NODES_DEFAULT : 0;
		lab->count = MAX(lab->count, least);
		r = store_save(lab, err);
	}
	if (r == 0)
		r = write_hosts(lab, err);
	if (r == 0)
		r = start(lab, all_nodes(lab), &p, err);
	if (r < 0 && is_new && !lab->hub.pid) {
		/* nothing runs: leave nothing behind of a lab that never was */
		struct groups g;
		if (groups_load(lab, &g, NULL) == 0 && groups_remove(&g, NULL) == 0)
			(void)store_remove(lab, NULL);
	}
	return r;
}

/* ---- kill ---- */

static int unplug(const struct lab *lab, void *arg, struct err *err)
{
	const uint64_t *bits = arg;
	struct links *l;
	int r = links_open(&l, err);
	for (unsigned i = 1; r == 0 && i <= lab->count; i++) {
		char port[16];
		(void)snprintf(port, sizeof(port), "n%u", i);
		if (has(*bits, i))
			r = links_set(l, port, false, err);
		if (r == -ENODEV) /* a program in the node may have removed its end */
			r = 0;
	}
	if (r == 0)
		links_free(l);
	return r;
}

static int end_node(struct lab *lab, unsigned i, const struct groups *g, struct err *err)
{
	char what[16], path[64];
	(void)snprintf(what, sizeof(what), "n%u", i);
	int r = space_signal(&lab->node[i], SIGKILL);
	if (r < 0 && r != -ESRCH)
		return err_set(err, r, "kill node %s: %s", what, strerror(-r));
	/* with v1 a frozen process dies only when it is thawed */
	if (groups_frozen(g, i) == 1)
		(void)groups_freeze(g, i, false, NULL);
	r = space_kill(&lab->node[i], what, err);
	if (r < 0)
		return r;
	lab->node[i] = (struct proc){ 0 };
	(void)snprintf(path, sizeof(path), "nodes/n%u/pid", i);
	(void)unlinkat(lab->dir_fd, path, 0);
	return groups_remove_node(g, i, err);
}

int life_kill(struct lab *lab, uint64_t bits, struct err *err)
{
	struct groups g;
	int r = groups_load(lab, &g, err);
	for (unsigned i = 1; r == 0 && i <= lab->count; i++)
		if (has(bits, i) && !lab->node[i].pid)
			return err_set(err, -ESRCH, "node n%u is off already", i);
	/* The plug first: a dying kernel would send farewells (FIN, RST) that no power loss sends.
	 */
	if (r == 0)
		r = space_in_hub(lab, unplug, &bits, err);
	for (unsigned i = 1; r == 0 && i <= lab->count; i++)
		if (has(bits, i))
			r = end_node(lab, i, &g, err);
	return r;
}

/* ---- pause ---- */

int life_pause(struct lab *lab, uint64_t bits, bool pause, struct err *err)
{
	struct groups g;
	int r = groups_load(lab, &g, err);
	for (unsigned i = 1; r == 0 && i <= lab->count; i++) {
		if (!has(bits, i))
			continue;
		if (!lab->node[i].pid)
			return err_set(err, -ESRCH, "node n%u is off", i);
		r = groups_freeze(&g, i, pause, err);
		if (r > 0)
			r = stopped_set(&lab->node[i], pause, err);
		if (r < 0)
			return err_wrap(err, r, "%s node n%u", pause ? "pause" : "resume", i);
	}
	return r;
}

/* ---- down ---- */

int life_down(struct lab *lab, struct err *err)
{
	struct groups g;
	int r = groups_load(lab, &g, err);
	if (r < 0)
		return r;
	(void)space_signal(&lab->hub, SIGKILL);
	for (unsigned i = 1; i <= lab->count; i++)
		if (groups_frozen(&g, i) == 1)
			(void)groups_freeze(&g, i, false, NULL);
	r = space_kill(&lab->hub, "the hub", err);
	if (r == 0)
		r = groups_remove(&g, err);
	if (r == 0)
		r = store_remove(lab, err);
	return r;
}
