/* SPDX-License-Identifier: Apache-2.0 */
/* Cuts and losses: which frames the hub does not pass on. They are kept in the file `faults` of
 * the state folder and put into force as one nftables table of the hub, where no node can undo
 * them. Directed: a cut of both ways is two. */
#pragma once
#include "lab.h"

struct faults {
	/* [from][to] in 1/1000 percent: 0 none … 100000 all (a cut) */
	uint32_t loss[LAB_NODES_MAX + 1][LAB_NODES_MAX + 1];
};

enum { FAULT_ALL = 100000 };

int faults_load(struct lab *lab, struct faults *ret, struct err *err);
/* Write down and put into force (if the hub runs); on failure the old ones hold. */
int faults_set(struct lab *lab, const struct faults *faults, struct err *err);
/* What is written down, into a new hub. */
int faults_renew(struct lab *lab, struct err *err);
/* "12.5" → 12500. */
int faults_parse_percent(const char *text, uint32_t *ret, struct err *err);
