/* SPDX-License-Identifier: Apache-2.0 */
/* Between the two halves of the PMIx side: pmix-node.c (library, server, jobs; our thread) and
 * pmix-calls-node.c (what libpmix calls, from its thread, and the answers). */
#pragma once
#include "caps/wireup/pmix-node.h"
#include <pmix_server.h>

/* The functions of libpmix, found by dlsym() under the names in pmix-node.c. */
struct pmix_library {
	pmix_status_t (*server_init)(pmix_server_module_t *, pmix_info_t[], size_t);
	pmix_status_t (*server_finalize)(void);
	pmix_status_t (*register_nspace)(const pmix_nspace_t, int, pmix_info_t[], size_t,
					 pmix_op_cbfunc_t, void *);
	void (*deregister_nspace)(const pmix_nspace_t, pmix_op_cbfunc_t, void *);
	pmix_status_t (*register_client)(const pmix_proc_t *, uid_t, gid_t, void *,
					 pmix_op_cbfunc_t, void *);
	void (*deregister_client)(const pmix_proc_t *, pmix_op_cbfunc_t, void *);
	pmix_status_t (*setup_fork)(const pmix_proc_t *, char ***);
	pmix_status_t (*dmodex_request)(const pmix_proc_t *, pmix_dmodex_response_fn_t, void *);
	pmix_status_t (*generate_regex)(const char *, char **);
	pmix_status_t (*generate_ppn)(const char *, char **);
	pmix_status_t (*value_load)(pmix_value_t *, const void *, pmix_data_type_t);
	void (*value_destruct)(pmix_value_t *);
	const char *(*error_string)(pmix_status_t);
	const char *(*get_version)(void);
};
extern struct pmix_library pmix_library;

/* The server module, larger than this header's: a newer libpmix may look further. */
pmix_server_module_t *pmix_calls_module(void);
int pmix_calls_begin(struct err *err); /* makes the eventfd */
void pmix_calls_end(void);
int pmix_calls_fd(void);
