/* SPDX-License-Identifier: Apache-2.0 */
#include "shepherd/settings.h"

#include "base/log.h"
#include "base/units.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { TEXT, PORT, NUMBER, FLAG, LEVEL };

struct option_row {
	const char *name, *value, *help; /* help NULL: not for people */
	enum kind kind;
	size_t offset, size; /* of TEXT in struct settings */
};

#define TO(member) offsetof(struct settings, member), sizeof(((struct settings *)0)->member)

static const struct option_row rows[] = {
	{ "--state", "DIR", "state of this node (root: /var/lib/copia)", TEXT, TO(state_dir) },
	{ "--run", "DIR", "sockets of this node (root: /run/copia)", TEXT, TO(run_dir) },
	{ "--port", "N", "TCP and UDP port (26742)", PORT, 0, 0 },
	{ "--name", "HOSTNAME", "name of this node, instead of its host name", TEXT, TO(name) },
	{ "--log-level", "L", "error, warning, info or debug (info)", LEVEL, TO(log_level) },
	{ "--bind", "ADDRESS", "heartbeats from and to this address only", TEXT, TO(bind) },
	{ "--brain", "PATH", "the program of the brain", TEXT, TO(brain_path) },
	{ "--foreground", NULL, "accepted: there is no other mode", FLAG, 0, 0 },
	{ "--help", NULL, "this text", FLAG, 0, 0 },
	{ "--version", NULL, "the version", FLAG, 0, 0 },
	{ "--can-take", "VERSION", NULL, NUMBER, 0, 0 },
	{ "--takeover", "FD", NULL, NUMBER, 0, 0 },
	{ "--refused", NULL, NULL, FLAG, 0, 0 },
};

static void help_print(void)
{
	printf("usage: copiad [OPTION]...\nThe daemon of a Copia node.\n\n");
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if (rows[i].help)
			printf("  %-12s %-9s %s\n", rows[i].name,
			       rows[i].value ? rows[i].value : "", rows[i].help);
}

/* -1: there is no such level. */
static int level_find(const char *text)
{
	for (int i = LOG_ERROR; i <= LOG_DEBUG; i++)
		if (strcmp(log_level_name((enum log_level)i), text) == 0)
			return i;
	return -1;
}

static int take_value(struct settings *set, struct options *o, const struct option_row *row,
		      const char *value, struct err *err)
{
	uint64_t number = 0;
	int r = 0;
	switch (row->kind) {
	case TEXT:
	case LEVEL:
		if (strlen(value) >= row->size || !value[0])
			return err_set(err, -EINVAL, "%s: empty or too long", row->name);
		if (row->kind == LEVEL && level_find(value) < 0)
			return err_set(err, -EINVAL, "%s %s: it is error, warning, info or debug",
				       row->name, value);
		memcpy((char *)set + row->offset, value, strlen(value) + 1);
		return 0;
	case PORT:
		r = parse_u64(value, 1, UINT16_MAX, &number, err);
		set->port = (uint16_t)number;
		break;
	case NUMBER:
		r = parse_u64(value, 0, INT32_MAX, &number, err);
		if (r == 0 && strcmp(row->name, "--can-take") == 0)
			return number == HANDOVER_VERSION ? 1 : 2;
		o->takeover_fd = (int)number;
		break;
	case FLAG:
		break;
	}
	return r < 0 ? err_wrap(err, r, "%s", row->name) : 0;
}

static int take_flag(struct options *o, const char *name)
{
	if (strcmp(name, "--help") == 0) {
		help_print();
		return 1;
	}
	if (strcmp(name, "--version") == 0) {
		printf("copiad %s\n", COPIA_VERSION);
		return 1;
	}
	o->refused |= strcmp(name, "--refused") == 0;
	return 0;
}

static const struct option_row *row_find(const char *arg, size_t len)
{
	for (size_t i = 0; i < ARRAY_LEN(rows); i++)
		if (strlen(rows[i].name) == len && memcmp(rows[i].name, arg, len) == 0)
			return &rows[i];
	return NULL;
}

static int take_arguments(struct settings *set, struct options *o, int argc, char **argv,
			  struct err *err)
{
	for (int i = 1; i < argc; i++) {
		size_t len = strcspn(argv[i], "=");
		const struct option_row *row = row_find(argv[i], len);
		const char *value = argv[i][len] ? argv[i] + len + 1 : NULL;
		if (!row || (value && !row->value))
			return err_set(err, -EINVAL, "%s: unknown option; see copiad --help",
				       argv[i]);
		if (row->value && !value && !(value = argv[++i]))
			return err_set(err, -EINVAL, "%s needs a value: %s", row->name, row->value);
		int r = row->value ? take_value(set, o, row, value, err) : take_flag(o, row->name);
		if (r != 0)
			return r;
	}
	return 0;
}

static void fallbacks(struct settings *set)
{
	const char *home = getenv("HOME"), *state = getenv("XDG_STATE_HOME");
	const char *run = getenv("XDG_RUNTIME_DIR");
	bool is_root = geteuid() == 0;
	if (set->port == 0)
		set->port = DEFAULT_PORT;
	if (!set->log_level[0])
		snprintf(set->log_level, sizeof(set->log_level), "info");
	if (!set->state_dir[0] && is_root)
		snprintf(set->state_dir, sizeof(set->state_dir), "/var/lib/copia");
	else if (!set->state_dir[0] && state && state[0] == '/')
		snprintf(set->state_dir, sizeof(set->state_dir), "%s/copia", state);
	else if (!set->state_dir[0])
		snprintf(set->state_dir, sizeof(set->state_dir), "%s/.local/state/copia",
			 home ? home : "");
	if (!set->run_dir[0] && is_root)
		snprintf(set->run_dir, sizeof(set->run_dir), "/run/copia");
	else if (!set->run_dir[0] && run && run[0] == '/')
		snprintf(set->run_dir, sizeof(set->run_dir), "%s/copia", run);
	else if (!set->run_dir[0])
		snprintf(set->run_dir, sizeof(set->run_dir), "/tmp/copia-%u", (unsigned)geteuid());
}

/* As `mkdir -p`; then the path without links, for it is compared as text. */
static int folder_make(char path[PATH_MAX], mode_t mode, struct err *err)
{
	char part[PATH_MAX], real[PATH_MAX];
	for (size_t at = 1; at <= strlen(path); at++) {
		if (path[at] != '/' && path[at] != '\0')
			continue;
		memcpy(part, path, at);
		part[at] = '\0';
		bool is_last = path[at] == '\0';
		if (mkdir(part, is_last ? mode : 0755) < 0 && errno != EEXIST)
			return err_set(err, -errno, "make folder %s: %s", part, strerror(errno));
	}
	struct stat st;
	if (!realpath(path, real) || stat(real, &st) < 0)
		return err_set(err, -errno, "folder %s: %s", path, strerror(errno));
	/* In /tmp anybody could have made it first. */
	if (!S_ISDIR(st.st_mode) || (st.st_uid != geteuid() && st.st_uid != 0))
		return err_set(err, -EPERM, "%s is not a folder of this user; give another one",
			       path);
	memcpy(path, real, strlen(real) + 1);
	return 0;
}

static void brain_find(struct settings *set)
{
	static const char *const places[] = { "%.*s/copiad-brain", "%.*s/../node/copiad-brain",
					      "%.*s/../libexec/copia/copiad-brain",
					      "%.*s/../lib/copia/copiad-brain" };
	int folder = (int)(strrchr(set->own_path, '/') - set->own_path);
	for (size_t i = 0; i < ARRAY_LEN(places) && !set->brain_path[0]; i++) {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
		snprintf(set->brain_path, sizeof(set->brain_path), places[i], folder,
			 set->own_path);
#pragma GCC diagnostic pop
		if (access(set->brain_path, X_OK) < 0)
			set->brain_path[0] = '\0';
	}
	if (!set->brain_path[0])
		snprintf(set->brain_path, sizeof(set->brain_path), "%s/copiad-brain",
			 COPIA_LIBEXECDIR);
}

static int own_path_find(struct settings *set, struct err *err)
{
	static const char gone[] = " (deleted)";
	ssize_t n = readlink("/proc/self/exe", set->own_path, sizeof(set->own_path) - 1);
	if (n <= 0)
		return err_set(err, -errno, "find this program: %s (is /proc mounted?)",
			       strerror(errno));
	set->own_path[n] = '\0';
	size_t len = (size_t)n, gone_len = sizeof(gone) - 1;
	/* Replaced on the disk since: the path is where the new one lies. */
	if (len > gone_len && strcmp(set->own_path + len - gone_len, gone) == 0)
		set->own_path[len - gone_len] = '\0';
	return 0;
}

/* The arguments for the next program: what this one was given, without the takeover's. */
static void arguments_keep(struct settings *set, int argc, char **argv)
{
	set->argv = xcalloc((size_t)argc + 1, sizeof(char *));
	for (int i = 0; i < argc; i++) {
		if (strcmp(argv[i], "--takeover") == 0)
			i++;
		else if (strcmp(argv[i], "--refused") != 0)
			set->argv[set->argc++] = xstrdup(argv[i]);
	}
}

int settings_read(struct settings *ret, int argc, char **argv, struct options *ret_options,
		  struct err *err)
{
	*ret_options = (struct options){ .takeover_fd = -1 };
	arguments_keep(ret, argc, argv);
	int r = take_arguments(ret, ret_options, argc, argv, err);
	if (r != 0)
		return r;
	fallbacks(ret);
	log_set(NULL, (enum log_level)level_find(ret->log_level));
	r = own_path_find(ret, err);
	if (r == 0)
		r = folder_make(ret->state_dir, 0700, err);
	if (r == 0)
		r = folder_make(ret->run_dir, 0755, err);
	if (r == 0)
		brain_find(ret);
	return r;
}
