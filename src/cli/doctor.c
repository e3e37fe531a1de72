/* SPDX-License-Identifier: Apache-2.0 */
/* `copia doctor`: what the daemon finds, or, when there is none, why not. */
#include "cli/cli.h"

#include "schema/members.pb-c.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FINDINGS_MAX = 16, TEXT_SIZE = 700 };

struct findings {
	Copia__Finding rows[FINDINGS_MAX];
	Copia__Finding *list[FINDINGS_MAX];
	char texts[FINDINGS_MAX][TEXT_SIZE];
	size_t count;
};

static void add(struct findings *f, const char *level, const char *what, const char *effect,
		const char *remedy)
{
	if (f->count == FINDINGS_MAX)
		return;
	Copia__Finding *row = &f->rows[f->count];
	copia__finding__init(row);
	(void)snprintf(f->texts[f->count], TEXT_SIZE, "%s", what);
	row->level = (char *)level;
	row->what = f->texts[f->count];
	row->effect = (char *)effect;
	row->remedy = (char *)remedy;
	f->list[f->count++] = row;
}

/* First line of a small file of the kernel; false when it cannot be read. */
static bool read_line(const char *path, char *line, size_t size)
{
	FILE *f = fopen(path, "re");
	bool got = f && fgets(line, (int)size, f);
	if (f)
		(void)fclose(f);
	if (got)
		line[strcspn(line, "\n")] = '\0';
	return got;
}

static void check_daemon(struct findings *f, const struct err *why)
{
	add(f, "problem", why->msg, "this machine is in no cluster",
	    geteuid() ? "systemctl start copiad as root, or run copiad as yourself"
		      : "systemctl start copiad");
}

static void check_kernel(struct findings *f)
{
	char line[128];
	bool unified = !access("/sys/fs/cgroup/cgroup.controllers", R_OK);
	add(f, unified ? "ok" : "warning",
	    unified ? "control groups v2 are mounted" : "control groups v2 are not mounted",
	    unified ? "" : "tasks are limited by rlimits only",
	    unified ? "" : "boot with systemd.unified_cgroup_hierarchy=1");
	bool closed = read_line("/proc/sys/kernel/unprivileged_userns_clone", line, sizeof(line)) &&
		      !strcmp(line, "0");
	bool none = read_line("/proc/sys/user/max_user_namespaces", line, sizeof(line)) &&
		    !strcmp(line, "0");
	if (geteuid() && (closed || none))
		add(f, "warning", "users may not make namespaces here",
		    "copia lab works for root only",
		    closed ? "sysctl kernel.unprivileged_userns_clone=1"
			   : "sysctl user.max_user_namespaces=10000");
	else
		add(f, "ok", "namespaces can be made", "", "");
}

static void add_part(struct str *out, const char *label, const char *text)
{
	if (!*text)
		return;
	str_printf(out, "         %s", label);
	show_text(out, text, false);
	str_puts(out, "\n");
}

/* Remedies are commands to be copied: they are never cut to the width of a table. */
static int show_findings(const struct cli *c, const Copia__DoctorReply *reply)
{
	static const struct {
		const char *level, *colour;
	} colours[] = {
		{ "ok", "32" }, { "note", "36" }, { "warning", "33" }, { "problem", "31" }
	};
	if (c->common.json)
		return cli_show(c, &reply->base);
	_cleanup_(str_free) struct str out = { 0 };
	for (size_t i = 0; i < reply->n_findings; i++) {
		const Copia__Finding *f = reply->findings[i];
		const char *colour = NULL;
		for (size_t k = 0; k < ARRAY_LEN(colours); k++)
			if (c->style.colour && !strcmp(colours[k].level, f->level))
				colour = colours[k].colour;
		str_printf(&out, "%s%s%s", colour ? "\x1b[" : "", colour ? colour : "",
			   colour ? "m" : "");
		_cleanup_(str_free) struct str level = { 0 };
		show_text(&level, f->level, false);
		str_printf(&out, "%-7s%s  ", str_text(&level), colour ? "\x1b[0m" : "");
		show_text(&out, f->what, false);
		str_puts(&out, "\n");
		add_part(&out, "effect: ", f->effect);
		add_part(&out, "remedy: ", f->remedy);
	}
	return cli_print(&out);
}

/* What can be seen from here when no daemon answers. */
static int doctor_alone(struct cli *c, const struct err *why)
{
	struct findings f = { 0 };
	check_daemon(&f, why);
	check_kernel(&f);
	Copia__DoctorReply reply = COPIA__DOCTOR_REPLY__INIT;
	reply.n_findings = f.count;
	reply.findings = f.list;
	(void)show_findings(c, &reply);
	return EXIT_NO_DAEMON;
}

int doctor_main(struct cli *c)
{
	struct err err = { 0 };
	ProtobufCMessage *m = NULL;
	int r = cli_ask(c, &m, &err);
	if (r == -ECONNREFUSED || r == -EACCES)
		return doctor_alone(c, &err);
	if (r < 0)
		return cli_error(c->verb, r, &err);
	const Copia__DoctorReply *reply = (const void *)m;
	int code = show_findings(c, reply);
	for (size_t i = 0; i < reply->n_findings; i++)
		if (!strcmp(reply->findings[i]->level, "problem"))
			code = EXIT_FAILED;
	protobuf_c_message_free_unpacked(m, NULL);
	return code;
}
