/* SPDX-License-Identifier: Apache-2.0 */
/* Lists of nodes as people type them: "n1,n[3-5,7],rack[01-12]". Leading zeros are kept. Words that
 * are not node names ("all", features, labels) come out as they are; the caller resolves them.
 * "!x" and "-x" are not part of it: exclusion is an option of its own. */
#pragma once
#include "base/err.h"
#include "base/str.h"

enum { NODELIST_MAX = 16384, NODELIST_TEXT_MAX = 65536 };

struct nodelist {
	char **names; /* owned, in the order typed, without repeats */
	size_t count;
};

/* Errors: -EINVAL (says where), -E2BIG. On failure *ret is untouched. */
int nodelist_parse(const char *text, struct nodelist *ret, struct err *err);
void nodelist_free(struct nodelist *l); /* also for _cleanup_(nodelist_free) */
/* "n[1-3,7]": sorted, shortest form. */
void nodelist_show(char *const *names, size_t count, struct str *out);
