/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/pmix-private.h"
#include <assert.h>
#include <dlfcn.h>
#include <errno.h>
#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

struct pmix_library pmix_library;

static struct {
	bool tried, runs;
	int code; /* of the try */
	char why[256];
	char version[128];
	char folder[160]; /* owned on disk while `runs` */
	char host[256];
} server;

static const struct {
	const char *name;
	size_t at;
} symbols[] = {
#define SYMBOL(name, member)                                                                       \
	{                                                                                          \
		name, offsetof(struct pmix_library, member)                                        \
	}
	SYMBOL("PMIx_server_init", server_init),
	SYMBOL("PMIx_server_finalize", server_finalize),
	SYMBOL("PMIx_server_register_nspace", register_nspace),
	SYMBOL("PMIx_server_deregister_nspace", deregister_nspace),
	SYMBOL("PMIx_server_register_client", register_client),
	SYMBOL("PMIx_server_deregister_client", deregister_client),
	SYMBOL("PMIx_server_setup_fork", setup_fork),
	SYMBOL("PMIx_server_dmodex_request", dmodex_request),
	SYMBOL("PMIx_generate_regex", generate_regex),
	SYMBOL("PMIx_generate_ppn", generate_ppn),
	SYMBOL("PMIx_Value_load", value_load),
	SYMBOL("PMIx_Value_destruct", value_destruct),
	SYMBOL("PMIx_Error_string", error_string),
	SYMBOL("PMIx_Get_version", get_version),
#undef SYMBOL
};

/* ---- waiting for libpmix's thread ---- */

struct await {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool done;
	pmix_status_t status;
};

static void await_done(pmix_status_t status, void *cbdata)
{
	struct await *a = cbdata;
	pthread_mutex_lock(&a->lock);
	a->done = true;
	a->status = status;
	pthread_cond_signal(&a->changed);
	pthread_mutex_unlock(&a->lock);
}

/* `status` is what the call returned: only PMIX_SUCCESS means that the callback will come. */
static pmix_status_t await_end(struct await *a, pmix_status_t status)
{
	if (status == PMIX_OPERATION_SUCCEEDED)
		return PMIX_SUCCESS;
	if (status != PMIX_SUCCESS)
		return status;
	pthread_mutex_lock(&a->lock);
	while (!a->done)
		pthread_cond_wait(&a->changed, &a->lock);
	pthread_mutex_unlock(&a->lock);
	return a->status == PMIX_OPERATION_SUCCEEDED ? PMIX_SUCCESS : a->status;
}

#define AWAIT_INIT                                                                                 \
	{                                                                                          \
		PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, PMIX_SUCCESS           \
	}

static int fail(pmix_status_t status, const char *what, const char *object, struct err *err)
{
	return err_set(err, -EIO, "PMIx: %s %s: %s", what, object,
		       pmix_library.error_string(status));
}

/* ---- lists of attributes ---- */

struct infos {
	pmix_info_t *at;
	size_t count, cap;
};

static pmix_info_t *infos_next(struct infos *l, const char *key)
{
	if (l->count == l->cap) {
		l->cap = l->cap ? 2 * l->cap : 16;
		l->at = xrealloc(l->at, l->cap * sizeof(*l->at));
	}
	pmix_info_t *info = &l->at[l->count++];
	memset(info, 0, sizeof(*info));
	snprintf(info->key, sizeof(info->key), "%s", key);
	return info;
}

static void infos_add(struct infos *l, const char *key, const void *value, pmix_data_type_t type)
{
	pmix_info_t *info = infos_next(l, key);
	(void)pmix_library.value_load(&info->value, value, type);
}

static void infos_u32(struct infos *l, const char *key, uint32_t value)
{
	infos_add(l, key, &value, PMIX_UINT32);
}

/* An attribute that is itself a list; takes over `inner`. */
static void infos_array(struct infos *l, const char *key, struct infos *inner)
{
	pmix_info_t *info = infos_next(l, key);
	pmix_data_array_t *array = xcalloc(1, sizeof(*array));
	array->type = PMIX_INFO;
	array->size = inner->count;
	array->array = inner->at;
	info->value.type = PMIX_DATA_ARRAY;
	info->value.data.darray = array;
	*inner = (struct infos){ 0 };
}

static void infos_free(struct infos *l)
{
	for (size_t i = 0; i < l->count; i++)
		pmix_library.value_destruct(&l->at[i].value);
	free(l->at);
	*l = (struct infos){ 0 };
}

/* ---- the server ---- */

static int library_load(struct err *err)
{
	void *handle = dlopen("libpmix.so.2", RTLD_NOW | RTLD_GLOBAL);
	if (!handle)
		return err_set(err, -ENOTSUP, "PMIx: %s; install libpmix2 for Open MPI's programs",
			       dlerror());
	for (size_t i = 0; i < ARRAY_LEN(symbols); i++) {
		void *found = dlsym(handle, symbols[i].name);
		if (!found)
			return err_set(err, -ENOTSUP, "PMIx: libpmix.so.2 has no %s; it is too old",
				       symbols[i].name);
		memcpy((char *)&pmix_library + symbols[i].at, &found, sizeof(found));
	}
	return 0;
}

static int folder_remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)remove(path);
	return 0;
}

static void folder_remove(const char *path)
{
	(void)nftw(path, folder_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static int server_start(const char *folder, struct err *err)
{
	int r = snprintf(server.folder, sizeof(server.folder), "%s/copia-pmix.XXXXXX", folder);
	if (r < 0 || (size_t)r >= sizeof(server.folder))
		return err_set(err, -ENAMETOOLONG, "PMIx: folder %s: name too long", folder);
	if (!mkdtemp(server.folder))
		return err_set(err, -errno, "PMIx: folder %s: %s", server.folder, strerror(errno));
	/* Ranks of other users pass through to the folder of their own job; nobody lists. */
	(void)chmod(server.folder, 0711);

	/* The shared-memory store keeps one folder per server with the rights of one user, and its
	 * format differs between versions; by messages every user and version is served. */
	(void)setenv("PMIX_MCA_gds", "hash", 0);
	struct infos l = { 0 };
	infos_add(&l, PMIX_SERVER_TMPDIR, server.folder, PMIX_STRING);
	infos_add(&l, PMIX_SYSTEM_TMPDIR, server.folder, PMIX_STRING);
	infos_add(&l, PMIX_HOSTNAME, server.host, PMIX_STRING);
	pmix_status_t status = pmix_library.server_init(pmix_calls_module(), l.at, l.count);
	infos_free(&l);
	if (status == PMIX_SUCCESS)
		return 0;
	folder_remove(server.folder);
	return fail(status, "server in", server.folder, err);
}

int pmix_begin(const char *folder, const char *host, struct err *err)
{
	if (server.tried)
		return server.code ? err_set(err, server.code, "%s", server.why) : 0;
	server.tried = true;
	struct err why = { 0 };
	snprintf(server.host, sizeof(server.host), "%s", host);
	int r = library_load(&why);
	if (r == 0) {
		snprintf(server.version, sizeof(server.version), "%.100s",
			 pmix_library.get_version());
		r = pmix_calls_begin(&why);
	}
	if (r == 0)
		r = server_start(folder, &why);
	server.runs = r == 0;
	server.code = r;
	snprintf(server.why, sizeof(server.why), "%.255s", why.msg);
	return r ? err_set(err, r, "%s", why.msg) : 0;
}

void pmix_end(void)
{
	if (!server.runs)
		return;
	server.runs = false;
	(void)pmix_library.server_finalize();
	pmix_calls_end();
	folder_remove(server.folder);
}

bool pmix_runs(void)
{
	return server.runs;
}

const char *pmix_version(void)
{
	return server.version;
}

int pmix_fd(void)
{
	return server.runs ? pmix_calls_fd() : -1;
}

/* ---- jobs ---- */

static void job_folder(const char *nspace, char *ret, size_t size)
{
	snprintf(ret, size, "%s/%s", server.folder, nspace);
}

/* What is said of each rank. Complete, or MPI_Init fails: without LOCAL_RANK or NODE_RANK libpmix
 * does not derive them any more. */
static void rank_infos(struct infos *l, const struct pmix_job *job, uint32_t rank,
		       uint32_t local_rank, uint32_t app_rank)
{
	struct infos r = { 0 };
	uint16_t on_node = (uint16_t)local_rank;
	pmix_rank_t pmix_rank = rank, in_app = app_rank;
	infos_add(&r, PMIX_RANK, &pmix_rank, PMIX_PROC_RANK);
	infos_add(&r, PMIX_GLOBAL_RANK, &pmix_rank, PMIX_PROC_RANK);
	infos_add(&r, PMIX_APP_RANK, &in_app, PMIX_PROC_RANK);
	infos_add(&r, PMIX_LOCAL_RANK, &on_node, PMIX_UINT16);
	infos_add(&r, PMIX_NODE_RANK, &on_node, PMIX_UINT16);
	infos_add(&r, PMIX_HOSTNAME, job->node_names[job->node_of[rank]], PMIX_STRING);
	infos_u32(&r, PMIX_NODEID, job->node_of[rank]);
	infos_u32(&r, PMIX_APPNUM, job->apps ? job->apps[rank] : 0);
	infos_array(l, PMIX_PROC_INFO_ARRAY, &r);
}

static uint32_t app_count(const struct pmix_job *job)
{
	uint32_t most = 0;
	for (uint32_t i = 0; job->apps && i < job->size; i++)
		most = MAX(most, job->apps[i]);
	return most + 1;
}

static void ranks_infos(struct infos *l, const struct pmix_job *job)
{
	uint32_t *on_node = xcalloc(job->node_count, sizeof(*on_node));
	uint32_t *in_app = xcalloc(app_count(job), sizeof(*in_app));
	for (uint32_t rank = 0; rank < job->size; rank++)
		rank_infos(l, job, rank, on_node[job->node_of[rank]]++,
			   in_app[job->apps ? job->apps[rank] : 0]++);
	free(on_node);
	free(in_app);
}

/* Size and first rank of each program. */
static void app_infos(struct infos *l, const struct pmix_job *job)
{
	uint32_t count = app_count(job);
	infos_u32(l, PMIX_JOB_NUM_APPS, count);
	for (uint32_t app = 0; app < count; app++) {
		uint32_t size = 0, first = UINT32_MAX;
		for (uint32_t i = 0; i < job->size; i++) {
			if ((job->apps ? job->apps[i] : 0) != app)
				continue;
			size++;
			first = MIN(first, i);
		}
		if (!size)
			continue;
		struct infos a = { 0 };
		pmix_rank_t leader = first;
		infos_u32(&a, PMIX_APPNUM, app);
		infos_u32(&a, PMIX_APP_SIZE, size);
		infos_add(&a, PMIX_APPLDR, &leader, PMIX_PROC_RANK);
		infos_array(l, PMIX_APP_INFO_ARRAY, &a);
	}
}

static void job_infos(struct infos *l, const struct pmix_job *job, const char *nodes,
		      const char *ranks, const char *folder)
{
	struct str peers = { 0 };
	for (uint32_t i = 0; i < job->local_count; i++)
		str_printf(&peers, "%s%u", i ? "," : "", job->local[i]);
	pmix_rank_t leader = job->local[0];
	bool clean = true;
	infos_add(l, PMIX_NODE_MAP, nodes, PMIX_REGEX);
	infos_add(l, PMIX_PROC_MAP, ranks, PMIX_REGEX);
	infos_add(l, PMIX_JOBID, job->nspace, PMIX_STRING);
	infos_u32(l, PMIX_UNIV_SIZE, job->universe);
	infos_u32(l, PMIX_JOB_SIZE, job->size);
	infos_u32(l, PMIX_MAX_PROCS, job->universe);
	infos_u32(l, PMIX_NUM_NODES, job->node_count);
	infos_u32(l, PMIX_NODEID, job->node);
	infos_u32(l, PMIX_LOCAL_SIZE, job->local_count);
	infos_u32(l, PMIX_NODE_SIZE, job->local_count);
	infos_add(l, PMIX_LOCAL_PEERS, str_text(&peers), PMIX_STRING);
	infos_add(l, PMIX_LOCALLDR, &leader, PMIX_PROC_RANK);
	infos_add(l, PMIX_TMPDIR, server.folder, PMIX_STRING);
	infos_add(l, PMIX_NSDIR, folder, PMIX_STRING);
	infos_add(l, PMIX_TDIR_RMCLEAN, &clean, PMIX_BOOL);
	app_infos(l, job);
	ranks_infos(l, job);
	str_free(&peers);
}

static int clients_register(const struct pmix_job *job, struct err *err)
{
	for (uint32_t i = 0; i < job->local_count; i++) {
		struct await a = AWAIT_INIT;
		pmix_proc_t proc = { .rank = job->local[i] };
		snprintf(proc.nspace, sizeof(proc.nspace), "%s", job->nspace);
		pmix_status_t status =
		    await_end(&a, pmix_library.register_client(&proc, job->uid, job->gid, NULL,
							       await_done, &a));
		if (status != PMIX_SUCCESS)
			return fail(status, "rank of", job->nspace, err);
	}
	return 0;
}

int pmix_job_add(const struct pmix_job *job, struct err *err)
{
	assert(server.runs && job->local_count);
	char folder[512];
	job_folder(job->nspace, folder, sizeof(folder));
	if (mkdir(folder, 0700) < 0 && errno != EEXIST)
		return err_set(err, -errno, "PMIx: folder %s: %s", folder, strerror(errno));
	if (chown(folder, job->uid, job->gid) < 0)
		return err_set(err, -errno, "PMIx: folder %s for user %u: %s", folder, job->uid,
			       strerror(errno));
	_cleanup_(free_p) char *nodes = NULL;
	_cleanup_(free_p) char *ranks = NULL;
	pmix_status_t status = pmix_library.generate_regex(job->nodes, &nodes);
	if (status == PMIX_SUCCESS)
		status = pmix_library.generate_ppn(job->ranks, &ranks);
	if (status != PMIX_SUCCESS)
		return fail(status, "map of", job->nspace, err);

	struct infos l = { 0 };
	struct await a = AWAIT_INIT;
	job_infos(&l, job, nodes, ranks, folder);
	status = await_end(&a, pmix_library.register_nspace(job->nspace, (int)job->local_count,
							    l.at, l.count, await_done, &a));
	infos_free(&l);
	if (status != PMIX_SUCCESS)
		return fail(status, "job", job->nspace, err);
	return clients_register(job, err);
}

void pmix_job_end(const char *nspace, const uint32_t *local, uint32_t local_count)
{
	if (!server.runs)
		return;
	for (uint32_t i = 0; i < local_count; i++) {
		struct await a = AWAIT_INIT;
		pmix_proc_t proc = { .rank = local[i] };
		snprintf(proc.nspace, sizeof(proc.nspace), "%s", nspace);
		pmix_library.deregister_client(&proc, await_done, &a);
		(void)await_end(&a, PMIX_SUCCESS);
	}
	struct await a = AWAIT_INIT;
	pmix_library.deregister_nspace(nspace, await_done, &a);
	(void)await_end(&a, PMIX_SUCCESS);
	char folder[512];
	job_folder(nspace, folder, sizeof(folder));
	folder_remove(folder);
}

int pmix_environment(const char *nspace, uint32_t rank,
		     void (*each)(void *ctx, const char *assignment), void *ctx, struct err *err)
{
	pmix_proc_t proc = { .rank = rank };
	snprintf(proc.nspace, sizeof(proc.nspace), "%s", nspace);
	char **env = xcalloc(1, sizeof(*env));
	pmix_status_t status = pmix_library.setup_fork(&proc, &env);
	for (size_t i = 0; env && env[i]; i++) {
		if (status == PMIX_SUCCESS)
			each(ctx, env[i]);
		free(env[i]);
	}
	free(env);
	return status == PMIX_SUCCESS ? 0 : fail(status, "environment of", nspace, err);
}
