/* SPDX-License-Identifier: Apache-2.0 */
#include "program.h"
#include "base/str.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

/* Folder of the running program; false when it was deleted or /proc is missing. */
static bool own_folder(char buf[PATH_MAX])
{
	ssize_t len = readlink("/proc/self/exe", buf, PATH_MAX - 1);
	if (len <= 0)
		return false;
	buf[len] = '\0';
	char *slash = strrchr(buf, '/');
	if (!slash)
		return false;
	*(slash == buf ? slash + 1 : slash) = '\0';
	return true;
}

/* The top of the build tree around `dir`, into `dir`; false when there is none. */
static bool build_root(char dir[PATH_MAX])
{
	char mark[PATH_MAX + 32];
	for (int up = 0; up < 4; up++) {
		(void)snprintf(mark, sizeof(mark), "%s/meson-private", dir);
		if (access(mark, F_OK) == 0)
			return true;
		char *slash = strrchr(dir, '/');
		if (!slash || slash == dir)
			return false;
		*slash = '\0';
	}
	return false;
}

/* Parts of an installed tree, from its top: it may have been moved as a whole. */
static const char *const beside[] = { "libexec/copia", "lib/copia", "sbin", "bin" };

static int parent_len(const char *path)
{
	const char *slash = strrchr(path, '/');
	return slash ? (int)(slash - path) : 0;
}

int program_find(const char *name, char **ret, struct err *err)
{
	static const char *const below[] = { "", "lab", "src/node", "src/cli" };
	char own[PATH_MAX], root[PATH_MAX], path[PATH_MAX + 64];
	bool has_own = own_folder(own), has_root = has_own;
	if (has_own) {
		memcpy(root, own, sizeof(root));
		has_root = build_root(root);
	}
	(void)snprintf(path, sizeof(path), "%s/%s", own, name);
	if (has_own && access(path, X_OK) == 0) {
		*ret = xstrdup(path);
		return 0;
	}
	for (unsigned k = 0; has_root && k < ARRAY_LEN(below); k++) {
		(void)snprintf(path, sizeof(path), "%s/%s%s%s", root, below[k],
			       below[k][0] ? "/" : "", name);
		if (access(path, X_OK) == 0) {
			*ret = xstrdup(path);
			return 0;
		}
	}
	for (unsigned k = 0; has_own && k < ARRAY_LEN(beside); k++) {
		(void)snprintf(path, sizeof(path), "%.*s/%s/%s", parent_len(own), own, beside[k],
			       name);
		if (access(path, X_OK) == 0) {
			*ret = xstrdup(path);
			return 0;
		}
	}
	static const char *const installed[] = { COPIA_LIBEXECDIR, COPIA_SBINDIR, COPIA_BINDIR };
	for (unsigned k = 0; k < ARRAY_LEN(installed); k++) {
		(void)snprintf(path, sizeof(path), "%s/%s", installed[k], name);
		if (access(path, X_OK) == 0) {
			*ret = xstrdup(path);
			return 0;
		}
	}
	return err_set(err, -ENOENT, "the program %s is not in %s%s%s, %s, %s or %s", name,
		       has_own ? own : "?", has_root ? " and below " : "", has_root ? root : "",
		       installed[0], installed[1], installed[2]);
}

char *program_root(void)
{
	char dir[PATH_MAX], own[PATH_MAX], path[PATH_MAX + 64];
	if (!own_folder(dir))
		return NULL;
	memcpy(own, dir, sizeof(own));
	if (build_root(dir))
		return xstrdup(dir);
	for (unsigned k = 0; k < ARRAY_LEN(beside); k++) {
		(void)snprintf(path, sizeof(path), "%.*s/%s/copia-labinit", parent_len(own), own,
			       beside[k]);
		if (parent_len(own) > 0 && access(path, X_OK) == 0)
			return xstrndup(own, (size_t)parent_len(own));
	}
	return xstrdup(own);
}

char *program_search_path(void)
{
	static const char standard[] =
	    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	const char *old = getenv("PATH");
	struct str path = { 0 };
	char *copia = NULL;
	if (!old || !*old)
		old = standard;
	if (program_find("copia", &copia, NULL) < 0 && program_find("copia-lab", &copia, NULL) < 0)
		return xstrdup(old);
	*strrchr(copia, '/') = '\0';
	size_t len = strlen(copia);
	bool there = false;
	for (const char *at = old; at && !there; at = strchr(at, ':')) {
		at += *at == ':';
		there = strncmp(at, copia, len) == 0 && (at[len] == ':' || at[len] == '\0');
	}
	if (!there)
		str_printf(&path, "%s:", copia);
	str_puts(&path, old);
	free(copia);
	return str_take(&path);
}
