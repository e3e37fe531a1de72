/* SPDX-License-Identifier: Apache-2.0 */
#include "status.h"
#include "addr.h"
#include "stopped.h"
#include "store.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>

static const char *node_state(const struct lab *lab, const struct groups *g, unsigned i)
{
	if (!lab->node[i].pid)
		return "off";
	if (groups_frozen(g, i) == 1 || stopped_is(&lab->node[i]))
		return "paused";
	return "running";
}

/* "running", "starting", "exited 1", "killed 9", "none" (bare), "off" */
static void daemon_state(struct lab *lab, unsigned i, char buf[32])
{
	char path[64], word[16] = "";
	int value = 0;
	_cleanup_(str_free) struct str text = { 0 };
	(void)snprintf(path, sizeof(path), "nodes/n%u/daemon", i);
	if (!lab->node[i].pid)
		(void)snprintf(buf, 32, "off");
	else if (store_get(lab, path, &text, NULL) < 0 ||
		 sscanf(str_text(&text), "%15s %d", word, &value) != 2)
		(void)snprintf(buf, 32, "starting");
	else if (strcmp(word, "exited") == 0 || strcmp(word, "killed") == 0)
		(void)snprintf(buf, 32, "%s %d", word, value);
	else
		(void)snprintf(buf, 32, "%s", word);
}

static void show_text(struct lab *lab, const struct groups *g, const struct faults *f)
{
	printf("lab %s is %s, %u node%s%s, state in %s\n", lab->name, lab->hub.pid ? "up" : "off",
	       lab->count, lab->count == 1 ? "" : "s", lab->bare ? " without copiad" : "",
	       lab->dir);
	printf("%-5s %-8s %-9s %-8s %-14s %s\n", "NODE", "STATE", "COPIAD", "PID", "IPV4", "IPV6");
	for (unsigned i = 1; i <= lab->count; i++) {
		char v4[ADDR_TEXT], v6[ADDR_TEXT], daemon[32], name[16], pid[16] = "-";
		(void)snprintf(name, sizeof(name), "n%u", i);
		if (lab->node[i].pid)
			(void)snprintf(pid, sizeof(pid), "%d", (int)lab->node[i].pid);
		daemon_state(lab, i, daemon);
		printf("%-5s %-8s %-9s %-8s %-14s %s\n", name, node_state(lab, g, i), daemon, pid,
		       addr_ipv4(lab, i, v4), addr_ipv6(lab, i, v6));
	}
	for (unsigned a = 1; a <= LAB_NODES_MAX; a++)
		for (unsigned b = 1; b <= LAB_NODES_MAX; b++) {
			uint32_t loss = f->loss[a][b];
			bool both = loss == f->loss[b][a];
			if (!loss || (both && a > b))
				continue;
			const char *arrow = both ? "<->" : "-->";
			if (loss == FAULT_ALL)
				printf("cut   n%u %s n%u\n", a, arrow, b);
			else
				printf("loss  n%u %s n%u  %g %%\n", a, arrow, b, loss / 1000.0);
		}
}

static json_t *show_faults(const struct faults *f, bool cuts)
{
	json_t *list = json_array();
	for (unsigned a = 1; a <= LAB_NODES_MAX; a++)
		for (unsigned b = 1; b <= LAB_NODES_MAX; b++) {
			char from[16], to[16];
			uint32_t loss = f->loss[a][b];
			if (!loss || cuts != (loss == FAULT_ALL))
				continue;
			(void)snprintf(from, sizeof(from), "n%u", a);
			(void)snprintf(to, sizeof(to), "n%u", b);
			json_t *one = json_pack("{s:s, s:s}", "from", from, "to", to);
			if (!cuts)
				(void)json_object_set_new(one, "percent", json_real(loss / 1000.0));
			(void)json_array_append_new(list, one);
		}
	return list;
}

static int show_json(struct lab *lab, const struct groups *g, const struct faults *f,
		     struct err *err)
{
	json_t *nodes = json_array();
	for (unsigned i = 1; i <= lab->count; i++) {
		char v4[ADDR_TEXT], v6[ADDR_TEXT], daemon[32], name[16];
		char log[4096], rest[64];
		(void)snprintf(name, sizeof(name), "n%u", i);
		(void)snprintf(rest, sizeof(rest), "nodes/n%u/log", i);
		daemon_state(lab, i, daemon);
		(void)json_array_append_new(
		    nodes, json_pack("{s:s, s:s, s:s, s:i, s:s, s:s, s:s}", "name", name, "state",
				     node_state(lab, g, i), "copiad", daemon, "pid",
				     (int)lab->node[i].pid, "ipv4", addr_ipv4(lab, i, v4), "ipv6",
				     addr_ipv6(lab, i, v6), "log", store_path(lab, rest, log)));
	}
	json_t *all = json_pack("{s:s, s:s, s:s, s:b, s:i, s:o, s:o, s:o}", "lab", lab->name,
				"state", lab->hub.pid ? "up" : "off", "dir", lab->dir, "bare",
				lab->bare, "pid", (int)lab->hub.pid, "nodes", nodes, "cuts",
				show_faults(f, true), "losses", show_faults(f, false));
	if (!all)
		return err_set(err, -ENOMEM, "write JSON: a path that is not UTF-8, or no memory");
	int r = json_dumpf(all, stdout, JSON_INDENT(2)) < 0
		    ? err_set(err, -EIO, "write to standard output")
		    : 0;
	printf("\n");
	json_decref(all);
	return r;
}

int status_show(struct lab *lab, const struct groups *g, const struct faults *f, bool json,
		struct err *err)
{
	if (json)
		return show_json(lab, g, f, err);
	show_text(lab, g, f);
	return 0;
}
