/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/pmix-private.h"
#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <utlist.h>

/* Exactly one of the callbacks is set, by the kind of question. */
struct pmix_request {
	pmix_modex_cbfunc_t modex;
	pmix_op_cbfunc_t op;
	pmix_lookup_cbfunc_t lookup;
	void *cbdata;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct pmix_event *queue; /* under the lock */
static int wake_fd = -1;

/* ---- from libpmix's thread ---- */

static struct pmix_event *event_new(enum pmix_event_kind kind, const char *nspace, uint32_t rank)
{
	struct pmix_event *e = xcalloc(1, sizeof(*e));
	e->kind = kind;
	e->rank = rank;
	snprintf(e->nspace, sizeof(e->nspace), "%s", nspace);
	return e;
}

static void event_post(struct pmix_event *e)
{
	pthread_mutex_lock(&lock);
	DL_APPEND(queue, e);
	pthread_mutex_unlock(&lock);
	uint64_t one = 1;
	/* The counter cannot overflow, and a full one wakes as well. */
	if (write(wake_fd, &one, sizeof(one)) < 0)
		assert(errno == EAGAIN);
}

static struct pmix_request *request_new(void *cbdata)
{
	struct pmix_request *r = xcalloc(1, sizeof(*r));
	r->cbdata = cbdata;
	return r;
}

static pmix_status_t on_connected(const pmix_proc_t *proc, void *object, pmix_info_t info[],
				  size_t count, pmix_op_cbfunc_t done, void *cbdata)
{
	event_post(event_new(PMIX_CONNECTED, proc->nspace, proc->rank));
	return PMIX_OPERATION_SUCCEEDED;
}

static pmix_status_t on_finalized(const pmix_proc_t *proc, void *object, pmix_op_cbfunc_t done,
				  void *cbdata)
{
	event_post(event_new(PMIX_FINALIZED, proc->nspace, proc->rank));
	return PMIX_OPERATION_SUCCEEDED;
}

static pmix_status_t on_abort(const pmix_proc_t *proc, void *object, int status, const char text[],
			      pmix_proc_t procs[], size_t count, pmix_op_cbfunc_t done,
			      void *cbdata)
{
	struct pmix_event *e = event_new(PMIX_ABORTED, proc->nspace, proc->rank);
	e->code = status;
	snprintf(e->text, sizeof(e->text), "%s", text ? text : "the program asked for it");
	event_post(e);
	return PMIX_OPERATION_SUCCEEDED;
}

static int rank_compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static pmix_status_t refuse(const pmix_proc_t *proc, const char *what)
{
	struct pmix_event *e = event_new(PMIX_REFUSED, proc->nspace, proc->rank);
	e->code = -ENOTSUP;
	snprintf(e->text, sizeof(e->text), "%s is not offered", what);
	event_post(e);
	return PMIX_ERR_NOT_SUPPORTED;
}

/* One name space only: processes of several jobs cannot meet. Takes `data`, unless it refuses. */
static pmix_status_t fence_post(const pmix_proc_t procs[], size_t count, char *data, size_t len,
				struct pmix_request *request, const char *what)
{
	struct pmix_event *e = event_new(PMIX_FENCE, procs[0].nspace, PMIX_RANK_WILDCARD);
	bool all = false;
	e->ranks = xcalloc(count, sizeof(*e->ranks));
	for (size_t i = 0; i < count; i++) {
		if (strncmp(procs[i].nspace, procs[0].nspace, PMIX_MAX_NSLEN)) {
			free(e->ranks);
			free(e);
			free(request);
			return refuse(&procs[0], "meeting of several jobs");
		}
		all = all || procs[i].rank == PMIX_RANK_WILDCARD;
		e->ranks[e->rank_count++] = procs[i].rank;
	}
	qsort(e->ranks, e->rank_count, sizeof(*e->ranks), rank_compare);
	if (all) {
		free(e->ranks);
		e->ranks = NULL;
		e->rank_count = 0;
	}
	e->bytes = (uint8_t *)data;
	e->len = len;
	e->request = request;
	snprintf(e->text, sizeof(e->text), "%s", what);
	event_post(e);
	return PMIX_SUCCESS;
}

static pmix_status_t on_fence(const pmix_proc_t procs[], size_t count, const pmix_info_t info[],
			      size_t info_count, char *data, size_t len, pmix_modex_cbfunc_t done,
			      void *cbdata)
{
	if (!count)
		return PMIX_ERR_BAD_PARAM;
	if (len > PMIX_EVENT_BYTES_MAX)
		return PMIX_ERR_OUT_OF_RESOURCE;
	struct pmix_request *r = request_new(cbdata);
	r->modex = done;
	return fence_post(procs, count, data, len, r, "fence");
}

static pmix_status_t on_connect(const pmix_proc_t procs[], size_t count, const pmix_info_t info[],
				size_t info_count, pmix_op_cbfunc_t done, void *cbdata)
{
	if (!count)
		return PMIX_ERR_BAD_PARAM;
	struct pmix_request *r = request_new(cbdata);
	r->op = done;
	return fence_post(procs, count, NULL, 0, r, "connect");
}

static pmix_status_t on_disconnect(const pmix_proc_t procs[], size_t count,
				   const pmix_info_t info[], size_t info_count,
				   pmix_op_cbfunc_t done, void *cbdata)
{
	if (!count)
		return PMIX_ERR_BAD_PARAM;
	struct pmix_request *r = request_new(cbdata);
	r->op = done;
	return fence_post(procs, count, NULL, 0, r, "disconnect");
}

static pmix_status_t on_modex(const pmix_proc_t *proc, const pmix_info_t info[], size_t count,
			      pmix_modex_cbfunc_t done, void *cbdata)
{
	struct pmix_event *e = event_new(PMIX_MODEX, proc->nspace, proc->rank);
	e->request = request_new(cbdata);
	e->request->modex = done;
	event_post(e);
	return PMIX_SUCCESS;
}

/* libpmix gives back the data of a local rank that we asked for; it frees `data` afterwards. */
static void on_served(pmix_status_t status, char *data, size_t len, void *cbdata)
{
	struct pmix_event *e = cbdata;
	bool fits = len <= PMIX_EVENT_BYTES_MAX;
	e->code = status != PMIX_SUCCESS ? -ENOENT : fits ? 0 : -E2BIG;
	if (!e->code && len) {
		e->bytes = xmemdup(data, len);
		e->len = len;
	}
	event_post(e);
}

static void event_free(struct pmix_event *e)
{
	for (uint32_t i = 0; i < e->pair_count; i++) {
		free(e->pairs[i].key);
		free(e->pairs[i].value);
	}
	free(e->pairs);
	free(e->ranks);
	free(e->bytes);
	free(e);
}

/* Names are texts; directives ("pmix.…": range, persistence) are for all ranges alike. */
static pmix_status_t on_publish(const pmix_proc_t *proc, const pmix_info_t info[], size_t count,
				pmix_op_cbfunc_t done, void *cbdata)
{
	struct pmix_event *e = event_new(PMIX_PUBLISH, proc->nspace, proc->rank);
	e->pairs = xcalloc(count ? count : 1, sizeof(*e->pairs));
	for (size_t i = 0; i < count; i++) {
		if (!strncmp(info[i].key, "pmix.", 5))
			continue;
		if (info[i].value.type != PMIX_STRING || e->pair_count == PMIX_PAIRS_MAX ||
		    !info[i].value.data.string) {
			event_free(e);
			return refuse(proc, "publishing anything but text");
		}
		e->pairs[e->pair_count].key = xstrndup(info[i].key, PMIX_MAX_KEYLEN);
		e->pairs[e->pair_count++].value = xstrdup(info[i].value.data.string);
	}
	e->request = request_new(cbdata);
	e->request->op = done;
	event_post(e);
	return PMIX_SUCCESS;
}

static pmix_status_t names_post(enum pmix_event_kind kind, const pmix_proc_t *proc, char **keys,
				struct pmix_request *request)
{
	struct pmix_event *e = event_new(kind, proc->nspace, proc->rank);
	e->pairs = xcalloc(PMIX_PAIRS_MAX, sizeof(*e->pairs));
	for (size_t i = 0; keys && keys[i] && i < PMIX_PAIRS_MAX; i++)
		e->pairs[e->pair_count++].key = xstrndup(keys[i], PMIX_MAX_KEYLEN);
	e->request = request;
	event_post(e);
	return PMIX_SUCCESS;
}

static pmix_status_t on_lookup(const pmix_proc_t *proc, char **keys, const pmix_info_t info[],
			       size_t count, pmix_lookup_cbfunc_t done, void *cbdata)
{
	struct pmix_request *r = request_new(cbdata);
	r->lookup = done;
	return names_post(PMIX_LOOKUP, proc, keys, r);
}

static pmix_status_t on_unpublish(const pmix_proc_t *proc, char **keys, const pmix_info_t info[],
				  size_t count, pmix_op_cbfunc_t done, void *cbdata)
{
	struct pmix_request *r = request_new(cbdata);
	r->op = done;
	return names_post(PMIX_UNPUBLISH, proc, keys, r);
}

/* Events of our ranks reach each other inside libpmix; we have none of our own to give. */
static pmix_status_t on_register_events(pmix_status_t *codes, size_t count,
					const pmix_info_t info[], size_t info_count,
					pmix_op_cbfunc_t done, void *cbdata)
{
	return PMIX_OPERATION_SUCCEEDED;
}

static pmix_status_t on_deregister_events(pmix_status_t *codes, size_t count, pmix_op_cbfunc_t done,
					  void *cbdata)
{
	return PMIX_OPERATION_SUCCEEDED;
}

static pmix_status_t on_notify(pmix_status_t code, const pmix_proc_t *source,
			       pmix_data_range_t range, pmix_info_t info[], size_t count,
			       pmix_op_cbfunc_t done, void *cbdata)
{
	return PMIX_OPERATION_SUCCEEDED;
}

static pmix_status_t on_query(pmix_proc_t *proc, pmix_query_t *queries, size_t count,
			      pmix_info_cbfunc_t done, void *cbdata)
{
	return PMIX_ERR_NOT_SUPPORTED; /* what libpmix knows by itself it has answered before */
}

static pmix_status_t on_spawn(const pmix_proc_t *proc, const pmix_info_t info[], size_t count,
			      const pmix_app_t apps[], size_t app_count, pmix_spawn_cbfunc_t done,
			      void *cbdata)
{
	return refuse(proc, "spawn");
}

/* A newer libpmix may look behind the members that this header knows. */
static union {
	pmix_server_module_t module;
	void *room[64];
} calls = { .module = {
		.client_connected2 = on_connected,
		.client_finalized = on_finalized,
		.abort = on_abort,
		.fence_nb = on_fence,
		.direct_modex = on_modex,
		.publish = on_publish,
		.lookup = on_lookup,
		.unpublish = on_unpublish,
		.spawn = on_spawn,
		.connect = on_connect,
		.disconnect = on_disconnect,
		.register_events = on_register_events,
		.deregister_events = on_deregister_events,
		.notify_event = on_notify,
		.query = on_query,
	    } };
static_assert(sizeof(pmix_server_module_t) < sizeof(calls), "room for a newer libpmix");

/* ---- from our thread ---- */

pmix_server_module_t *pmix_calls_module(void)
{
	return &calls.module;
}

int pmix_calls_begin(struct err *err)
{
	assert(wake_fd < 0);
	wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (wake_fd < 0)
		return err_set(err, -errno, "PMIx: eventfd: %s", strerror(errno));
	return 0;
}

int pmix_calls_fd(void)
{
	return wake_fd;
}

void pmix_calls_end(void)
{
	struct pmix_event *e, *next;
	DL_FOREACH_SAFE(queue, e, next)
	{
		free(e->request);
		event_free(e);
	}
	queue = NULL;
	if (wake_fd >= 0)
		close(wake_fd);
	wake_fd = -1;
}

void pmix_turn(void (*hook)(void *ctx, struct pmix_event *event), void *ctx)
{
	uint64_t count;
	if (wake_fd < 0 || read(wake_fd, &count, sizeof(count)) < 0)
		return;
	pthread_mutex_lock(&lock);
	struct pmix_event *all = take_ptr(queue), *e, *next;
	pthread_mutex_unlock(&lock);
	DL_FOREACH_SAFE(all, e, next)
	{
		hook(ctx, e);
		event_free(e);
	}
}

void pmix_ask(const char *nspace, uint32_t rank, uint64_t token)
{
	struct pmix_event *e = event_new(PMIX_SERVED, nspace, rank);
	pmix_proc_t proc = { .rank = rank };
	snprintf(proc.nspace, sizeof(proc.nspace), "%s", nspace);
	e->token = token;
	if (pmix_library.dmodex_request(&proc, on_served, e) == PMIX_SUCCESS)
		return;
	e->code = -ENOENT;
	event_post(e);
}

static pmix_status_t status_of(int code)
{
	return !code                ? PMIX_SUCCESS
	       : code == -ENOENT    ? PMIX_ERR_NOT_FOUND
	       : code == -EEXIST    ? PMIX_ERR_DUPLICATE_KEY
	       : code == -ENOTSUP   ? PMIX_ERR_NOT_SUPPORTED
	       : code == -ETIMEDOUT ? PMIX_ERR_TIMEOUT
				    : PMIX_ERROR;
}

void pmix_answer_fence(struct pmix_request *r, int status, struct span bytes)
{
	if (r->op) {
		r->op(status_of(status), r->cbdata);
		free(r);
		return;
	}
	pmix_answer_modex(r, status, bytes);
}

void pmix_answer_modex(struct pmix_request *r, int status, struct span bytes)
{
	assert(r->modex);
	/* libpmix keeps the bytes until it calls the release function: give it its own. */
	char *copy = bytes.len ? xmemdup(bytes.at, bytes.len) : NULL;
	r->modex(status_of(status), copy, bytes.len, r->cbdata, free, copy);
	free(r);
}

void pmix_answer_names(struct pmix_request *r, int status, const struct pmix_pair *pairs,
		       uint32_t count)
{
	if (r->op) {
		r->op(status_of(status), r->cbdata);
		free(r);
		return;
	}
	assert(r->lookup);
	pmix_pdata_t *found = xcalloc(count ? count : 1, sizeof(*found));
	for (uint32_t i = 0; i < count; i++) {
		snprintf(found[i].key, sizeof(found[i].key), "%s", pairs[i].key);
		found[i].value.type = PMIX_STRING;
		found[i].value.data.string = pairs[i].value;
	}
	/* The answer is packed before the callback returns. */
	r->lookup(status_of(!status && !count ? -ENOENT : status), found, count, r->cbdata);
	free(found);
	free(r);
}

void pmix_answer_none(struct pmix_request *r, int status)
{
	if (r->modex)
		pmix_answer_modex(r, status, (struct span){ 0 });
	else
		pmix_answer_names(r, status, NULL, 0);
}
