/* SPDX-License-Identifier: Apache-2.0 */
/* What "copia lab status" shows. */
#pragma once
#include "fault.h"
#include "group.h"

int status_show(struct lab *lab, const struct groups *g, const struct faults *f, bool json,
		struct err *err);
