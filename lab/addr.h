/* SPDX-License-Identifier: Apache-2.0 */
/* Names and addresses in a lab: node i of lab L is nI, 10.77.L.i/24 and fd77:0:0:L::i/64. */
#pragma once
#include "base/str.h"
#include "lab.h"

enum { ADDR_TEXT = 48 };

/* 1 for the lab "lab", else 2…254 from the name: labs whose networks are once joined by somebody
 * shall differ, but nothing here depends on it. */
unsigned addr_lab(const char *name);
char *addr_ipv4(const struct lab *lab, unsigned i, char buf[ADDR_TEXT]);
char *addr_ipv6(const struct lab *lab, unsigned i, char buf[ADDR_TEXT]);
/* The same at each start, as with real machines: the others have it in their tables. */
void addr_mac(const struct lab *lab, unsigned i, uint8_t ret[6]);
/* "n3" → 3; errors: -EINVAL (no such name), -ENOENT (the lab has no such node). */
int addr_node(const struct lab *lab, const char *text, unsigned *ret, struct err *err);
/* "n1,n3", "n[1-3,7]" or "all" → bits, bit i - 1 for node i. Never empty. */
int addr_nodes(const struct lab *lab, const char *text, uint64_t *ret, struct err *err);
/* Lines of /etc/hosts for localhost (from == 0) and nodes from…to. */
void addr_hosts(const struct lab *lab, unsigned from, unsigned to, struct str *ret);
