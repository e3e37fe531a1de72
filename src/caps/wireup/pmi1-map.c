/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/pmi1.h"

/* Blocks (first node, nodes, ranks per node): consecutive nodes with equally many ranks are one. */
bool pmi1_mapping(const uint32_t *node_of, uint32_t size, struct str *ret)
{
	str_clear(ret);
	str_puts(ret, "(vector");
	uint32_t at = 0;
	while (at < size) {
		uint32_t node = node_of[at], per = 0, nodes = 0;
		while (at + per < size && node_of[at + per] == node)
			per++;
		for (bool same = true; same;) {
			nodes++;
			at += per;
			same = at + per <= size;
			for (uint32_t i = 0; same && i < per; i++)
				same = node_of[at + i] == node + nodes;
			/* A longer run of that node is another block. */
			if (same && at + per < size && node_of[at + per] == node + nodes)
				same = false;
		}
		str_printf(ret, ",(%u,%u,%u)", node, nodes, per);
		if (ret->len > PMI1_MAPPING_MAX - 2)
			return false;
	}
	str_puts(ret, ")");
	return true;
}
