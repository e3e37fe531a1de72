/* SPDX-License-Identifier: Apache-2.0 */
/* Stands for pmix-node.c where PMIx's headers were missing when Copia was built: every job is told
 * so, and only PMI-1 is offered. */
#include "caps/wireup/pmix-node.h"
#include <errno.h>

int pmix_begin(const char *folder, const char *host, struct err *err)
{
	return err_set(
	    err, -ENOTSUP,
	    "PMIx: this copia-wireup was built without it; install libpmix-dev and build "
	    "again");
}

void pmix_end(void)
{
}

const char *pmix_version(void)
{
	return "";
}

bool pmix_runs(void)
{
	return false;
}

int pmix_fd(void)
{
	return -1;
}

void pmix_turn(void (*hook)(void *ctx, struct pmix_event *event), void *ctx)
{
}

int pmix_job_add(const struct pmix_job *job, struct err *err)
{
	return pmix_begin(NULL, NULL, err);
}

void pmix_job_end(const char *nspace, const uint32_t *local, uint32_t local_count)
{
}

int pmix_environment(const char *nspace, uint32_t rank,
		     void (*each)(void *ctx, const char *assignment), void *ctx, struct err *err)
{
	return pmix_begin(NULL, NULL, err);
}

void pmix_ask(const char *nspace, uint32_t rank, uint64_t token)
{
}

void pmix_answer_fence(struct pmix_request *r, int status, struct span bytes)
{
}

void pmix_answer_modex(struct pmix_request *r, int status, struct span bytes)
{
}

void pmix_answer_names(struct pmix_request *r, int status, const struct pmix_pair *pairs,
		       uint32_t count)
{
}

void pmix_answer_none(struct pmix_request *r, int status)
{
}
