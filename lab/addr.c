/* SPDX-License-Identifier: Apache-2.0 */
#include "addr.h"
#include "base/nodelist.h"
#include "base/units.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

static_assert(LAB_NODES_MAX <= 64, "sets of nodes are bits of a uint64_t");

unsigned addr_lab(const char *name)
{
	if (strcmp(name, "lab") == 0)
		return 1;
	uint32_t hash = 2166136261; /* FNV-1a */
	for (const char *c = name; *c; c++)
		hash = (hash ^ (uint8_t)*c) * 16777619;
	return 2 + hash % 253;
}

char *addr_ipv4(const struct lab *lab, unsigned i, char buf[ADDR_TEXT])
{
	(void)snprintf(buf, ADDR_TEXT, "10.77.%u.%u", lab->net, i);
	return buf;
}

char *addr_ipv6(const struct lab *lab, unsigned i, char buf[ADDR_TEXT])
{
	(void)snprintf(buf, ADDR_TEXT, "fd77:0:0:%x::%x", lab->net, i);
	return buf;
}

void addr_mac(const struct lab *lab, unsigned i, uint8_t ret[6])
{
	/* 02: locally administered */
	memcpy(ret, (uint8_t[]){ 0x02, 0x77, 0, 0, (uint8_t)lab->net, (uint8_t)i }, 6);
}

int addr_node(const struct lab *lab, const char *text, unsigned *ret, struct err *err)
{
	uint64_t i;
	if (text[0] != 'n' || text[1] == '0' || parse_u64(text + 1, 1, UINT32_MAX, &i, NULL) < 0)
		return err_set(err, -EINVAL, "\"%.40s\" is no node of a lab: they are n1, n2, …",
			       text);
	if (i > lab->count)
		return err_set(err, -ENOENT, "lab %s has no node %.40s: it has n1 to n%u",
			       lab->name, text, lab->count);
	*ret = (unsigned)i;
	return 0;
}

int addr_nodes(const struct lab *lab, const char *text, uint64_t *ret, struct err *err)
{
	struct nodelist list = { 0 };
	int r = nodelist_parse(text, &list, err);
	if (r < 0)
		return r;
	uint64_t bits = 0;
	for (size_t k = 0; r == 0 && k < list.count; k++) {
		unsigned i;
		if (strcmp(list.names[k], "all") == 0) {
			bits = UINT64_MAX >> (64 - lab->count);
			continue;
		}
		r = addr_node(lab, list.names[k], &i, err);
		if (r == 0)
			bits |= UINT64_C(1) << (i - 1);
	}
	nodelist_free(&list);
	if (r == 0 && !bits)
		return err_set(err, -EINVAL, "\"%.40s\" names no node", text);
	if (r == 0)
		*ret = bits;
	return r;
}

void addr_hosts(const struct lab *lab, unsigned from, unsigned to, struct str *ret)
{
	if (from == 0)
		str_puts(ret, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
	for (unsigned i = MAX(from, 1u); i <= to; i++) {
		char v4[ADDR_TEXT], v6[ADDR_TEXT];
		str_printf(ret, "%s\tn%u\n%s\tn%u\n", addr_ipv4(lab, i, v4), i,
			   addr_ipv6(lab, i, v6), i);
	}
}
