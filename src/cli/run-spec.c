/* SPDX-License-Identifier: Apache-2.0 */
/* What is to run, seen with the user's own eyes: programs are looked up and opened with the user's
 * rights, never with the daemon's. */
#include "cli/run.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

extern char **environ;

int run_exit_code(int code)
{
	switch (code) {
	case -ENOENT:
	case -ENOTDIR:
		return RUN_NOT_FOUND;
	case -EACCES:
	case -ENOEXEC:
	case -EISDIR:
		return RUN_NOT_EXECUTABLE;
	default:
		return RUN_OWN_FAILURE;
	}
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		(void)close(*fd);
}

int run_hash(const char *path, uint8_t hash[32], uint64_t *ret_size, struct err *err)
{
	_cleanup_(close_fd) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		return err_set(err, -errno, "open %s: %s", path, strerror(errno));
	crypto_generichash_state state;
	(void)crypto_generichash_init(&state, NULL, 0, 32);
	enum { PIECE = 256 * 1024 };
	_cleanup_(free_p) uint8_t *buf = xmalloc(PIECE);
	uint64_t size = 0;
	ssize_t n;
	while ((n = read(fd, buf, PIECE)) > 0) {
		(void)crypto_generichash_update(&state, buf, (size_t)n);
		size += (uint64_t)n;
	}
	if (n < 0)
		return err_set(err, -errno, "read %s: %s", path, strerror(errno));
	(void)crypto_generichash_final(&state, hash, 32);
	*ret_size = size;
	return 0;
}

/* ---------------------------------------------------------------- finding programs */

static bool runs(const char *path, int *ret_code)
{
	struct stat st;
	if (stat(path, &st) < 0) {
		*ret_code = -errno;
		return false;
	}
	if (!S_ISREG(st.st_mode)) {
		*ret_code = S_ISDIR(st.st_mode) ? -EISDIR : -EACCES;
		return false;
	}
	if (access(path, X_OK) == 0)
		return true;
	*ret_code = -EACCES;
	return false;
}

/* As execvp would: the first that can be run; else the best reason. */
static int find_in_path(const char *name, struct str *ret)
{
	const char *path = getenv("PATH");
	int best = -ENOENT;
	for (const char *at = path ? path : "/usr/bin:/bin";; at++) {
		const char *end = strchrnul(at, ':');
		str_clear(ret);
		if (end == at)
			str_puts(ret, ".");
		str_add(ret, at, (size_t)(end - at));
		str_printf(ret, "/%s", name);
		int code;
		if (runs(str_text(ret), &code))
			return 0;
		if (code == -EACCES)
			best = code;
		at = end;
		if (!*at)
			return best;
	}
}

static int find_program(const char *name, struct str *ret, struct err *err)
{
	int r = 0;
	if (!*name)
		return err_set(err, -ENOENT, "the program's name is empty");
	if (strchr(name, '/')) {
		str_puts(ret, name);
		(void)runs(name, &r);
	} else {
		r = find_in_path(name, ret);
	}
	if (r == -ENOENT && !strchr(name, '/'))
		return err_set(err, r, "%s: not found in PATH", name);
	if (r == -EACCES)
		return err_set(err, r, "%s: not executable; chmod +x it, or name its interpreter",
			       str_text(ret));
	if (r < 0)
		return err_set(err, r, "%s: %s", name, strerror(-r));
	_cleanup_(free_p) char *real = realpath(str_text(ret), NULL);
	/* The folder is resolved, the last name is kept: programs look at how they are called. */
	const char *base = strrchr(str_text(ret), '/');
	_cleanup_(str_free) struct str folder = { 0 };
	str_add(&folder, ret->at, base ? (size_t)(base - ret->at) : 0);
	_cleanup_(free_p) char *real_folder = realpath(folder.len ? str_text(&folder)
						       : base     ? "/"
								  : ".",
						       NULL);
	if (!real_folder)
		return 0;
	_cleanup_(free_p) char *last = xstrdup(base ? base + 1 : str_text(ret));
	str_clear(ret);
	str_printf(ret, "%s/%s", strcmp(real_folder, "/") ? real_folder : "", last);
	return 0;
}

int run_spec_file(Copia__LaunchFile **ret, const char *path, struct err *err)
{
	struct stat st;
	if (stat(path, &st) < 0)
		return err_set(err, -errno, "%s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return err_set(err, -EINVAL, "%s: not a regular file; only files can be sent",
			       path);
	if (access(path, R_OK) < 0)
		return err_set(err, -errno, "%s: %s", path, strerror(errno));
	Copia__LaunchFile *f = xcalloc(1, sizeof(*f));
	copia__launch_file__init(f);
	char *real = realpath(path, NULL);
	f->path = real ? real : xstrdup(path);
	const char *base = strrchr(path, '/');
	f->name = xstrdup(base ? base + 1 : path);
	f->mode = st.st_mode & 07777;
	f->size_bytes = (uint64_t)st.st_size;
	*ret = f;
	return 0;
}

static int program_fill(Copia__LaunchProgram *p, struct err *err)
{
	_cleanup_(str_free) struct str path = { 0 };
	int r = find_program(p->argv[0], &path, err);
	if (r < 0)
		return r;
	struct stat st;
	if (stat(str_text(&path), &st) < 0)
		return err_set(err, -errno, "%s: %s", str_text(&path), strerror(errno));
	Copia__LaunchFile *f = xcalloc(1, sizeof(*f));
	copia__launch_file__init(f);
	const char *base = strrchr(str_text(&path), '/');
	f->name = xstrdup(base ? base + 1 : str_text(&path));
	f->mode = st.st_mode & 0777;
	f->size_bytes = (uint64_t)st.st_size;
	f->path = str_take(&path);
	p->file = f;
	run_inspect(f->path, p);
	return 0;
}

/* ---------------------------------------------------------------- the caller */

static void env_put(Copia__LaunchSpec *s, const char *variable)
{
	size_t name = (size_t)(strchrnul(variable, '=') - variable);
	for (size_t i = 0; i < s->n_environment; i++)
		if (!strncmp(s->environment[i], variable, name) && s->environment[i][name] == '=') {
			free(s->environment[i]);
			s->environment[i] = xstrdup(variable);
			return;
		}
	s->environment = xrealloc(s->environment, (s->n_environment + 1) * sizeof(*s->environment));
	s->environment[s->n_environment++] = xstrdup(variable);
}

static void caller_limits(Copia__LaunchSpec *s)
{
	enum { LIMITS = 16 };
	s->limits = xcalloc(LIMITS, sizeof(*s->limits));
	for (uint32_t i = 0; i < LIMITS; i++) {
		struct rlimit value;
		if (getrlimit((__rlimit_resource_t)i, &value) < 0)
			continue;
		Copia__LaunchLimit *l = xcalloc(1, sizeof(*l));
		copia__launch_limit__init(l);
		l->resource = i;
		l->soft = value.rlim_cur == RLIM_INFINITY ? UINT64_MAX : value.rlim_cur;
		l->hard = value.rlim_max == RLIM_INFINITY ? UINT64_MAX : value.rlim_max;
		s->limits[s->n_limits++] = l;
	}
}

void run_spec_caller(Copia__LaunchSpec *s, char *const *env, size_t env_count, const char *folder)
{
	size_t count = 0;
	while (environ[count])
		count++;
	s->environment = xcalloc(count + 1, sizeof(*s->environment));
	for (size_t i = 0; i < count; i++)
		if (strchr(environ[i], '='))
			s->environment[s->n_environment++] = xstrdup(environ[i]);
	for (size_t i = 0; i < env_count; i++)
		env_put(s, env[i]);
	char *here = folder && *folder ? realpath(folder, NULL) : getcwd(NULL, 0);
	s->folder = here ? here : xstrdup(folder && *folder ? folder : "/");
	s->folder_must_exist = folder && *folder;
	if (!s->folder_must_exist && access(s->folder, X_OK) < 0) {
		/* As after `su`: we stand where we may not enter, and the ranks could not. */
		const char *home = getenv("HOME");
		free(s->folder);
		s->folder = xstrdup(home && access(home, X_OK) == 0 ? home : "/");
	}
	mode_t mask = umask(0);
	(void)umask(mask);
	s->umask = mask;
	caller_limits(s);
}

static bool is_null_device(int fd)
{
	struct stat st;
	return fstat(fd, &st) < 0 ||
	       (S_ISCHR(st.st_mode) && major(st.st_rdev) == 1 && minor(st.st_rdev) == 3);
}

static int check_stdin(Copia__LaunchSpec *s, const char *who, struct err *err)
{
	char *end = NULL;
	if (strcmp(who, "all") && strcmp(who, "none")) {
		(void)strtoul(who, &end, 10);
		if (!*who || *end || *who == '-')
			return err_set(err, -EINVAL,
				       "--stdin %s: a rank, \"all\" or \"none\" is wanted", who);
	}
	s->stdin = xstrdup(is_null_device(STDIN_FILENO) ? "none" : who);
	return 0;
}

static int check_env(const Copia__RunRequest *rq, struct err *err)
{
	for (size_t i = 0; i < rq->n_env; i++)
		if (!strchr(rq->env[i], '=') || rq->env[i][0] == '=')
			return err_set(err, -EINVAL, "--env %s: NAME=VALUE is wanted", rq->env[i]);
	return 0;
}

static void one_program(Copia__LaunchSpec *s, char **argv, size_t count)
{
	Copia__LaunchProgram *p = xcalloc(1, sizeof(*p));
	copia__launch_program__init(p);
	p->argv = xcalloc(count, sizeof(*p->argv));
	for (size_t i = 0; i < count; i++)
		p->argv[p->n_argv++] = xstrdup(argv[i]);
	s->programs = xcalloc(1, sizeof(*s->programs));
	s->programs[s->n_programs++] = p;
}

static int fill_files(const Copia__RunRequest *rq, Copia__LaunchSpec *s, struct err *err)
{
	int r = 0;
	for (size_t i = 0; r == 0 && i < s->n_programs; i++)
		r = program_fill(s->programs[i], err);
	s->stage = xcalloc(rq->n_stage, sizeof(*s->stage));
	for (size_t i = 0; r == 0 && i < rq->n_stage; i++) {
		r = run_spec_file(&s->stage[s->n_stage], rq->stage[i], err);
		if (r == 0)
			s->n_stage++;
		else
			r = err_wrap(err, r, "--stage");
	}
	return r;
}

int run_spec(Copia__RunRequest *rq, struct err *err)
{
	Copia__LaunchSpec *s = xcalloc(1, sizeof(*s));
	copia__launch_spec__init(s);
	rq->spec = s;
	int r = check_env(rq, err);
	bool has_file = rq->file && *rq->file;
	if (r == 0 && has_file && rq->n_argv)
		r = err_set(err, -EINVAL, "--file names the programs; \"%s\" is too much",
			    rq->argv[0]);
	else if (r == 0 && !has_file && !rq->n_argv)
		r = err_set(err, -EINVAL, "which program? example: copia run -n 4 ./simulate");
	if (r == 0 && has_file)
		r = run_read_file(rq->file, rq->ranks, s, err);
	else if (r == 0)
		one_program(s, rq->argv, rq->n_argv);
	if (r == 0)
		r = check_stdin(s, rq->stdin, err);
	if (r == 0)
		r = fill_files(rq, s, err);
	if (r < 0)
		return r;
	run_spec_caller(s, rq->env, rq->n_env, rq->chdir);
	s->mpi = xstrdup(rq->mpi);
	s->bind = !strcmp(rq->bind, "core");
	s->keep_going = rq->keep_going;
	s->timeout_ms = rq->timeout_ms;
	s->finalize_ms = rq->finalize_timeout_ms;
	s->no_check = rq->no_check;
	return 0;
}
