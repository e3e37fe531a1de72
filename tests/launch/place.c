/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/place.h"

#include "base/str.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

/* Clusters as text: "n1:2 n2:4d n3:1x gpu": name, cores, d down, x drained, l left, g label gpu. */
struct cluster {
	Copia__Node *nodes[64];
	size_t count;
};

static void cluster_read(struct cluster *c, const char *text)
{
	c->count = 0;
	_cleanup_(free_p) char *copy = xstrdup(text);
	char *save = NULL;
	for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
		Copia__Node *n = xcalloc(1, sizeof(*n));
		copia__node__init(n);
		char *colon = strchr(word, ':');
		assert_non_null(colon);
		*colon = '\0';
		n->name = xstrdup(word);
		n->number = (uint32_t)c->count + 1;
		n->facts = xcalloc(1, sizeof(*n->facts));
		copia__node_facts__init(n->facts);
		char *flags;
		n->facts->cores = (uint32_t)strtoul(colon + 1, &flags, 10);
		n->state = COPIA__NODE_STATE__UP;
		for (; *flags; flags++) {
			if (*flags == 'd')
				n->state = COPIA__NODE_STATE__DOWN;
			if (*flags == 'l')
				n->state = COPIA__NODE_STATE__LEFT;
			if (*flags == 'x')
				n->drained = true;
			if (*flags == 'g') {
				n->labels = xcalloc(1, sizeof(char *));
				n->labels[n->n_labels++] = xstrdup("gpu");
			}
		}
		c->nodes[c->count++] = n;
	}
}

static void cluster_free(struct cluster *c)
{
	for (size_t i = 0; i < c->count; i++)
		copia__node__free_unpacked(c->nodes[i], NULL);
}

static void golden(const char *nodes, struct place_wish w, const char *want)
{
	_cleanup_(cluster_free) struct cluster c;
	cluster_read(&c, nodes);
	_cleanup_(placement_free) struct placement p = { 0 };
	_cleanup_(str_free) struct str s = { 0 };
	struct err err = { 0 };
	if (!w.origin)
		w.origin = 1;
	int r = place(c.nodes, c.count, &w, &p, &err);
	if (r < 0)
		str_printf(&s, "%d %s", r, err.msg);
	for (size_t i = 0; i < p.count; i++)
		str_printf(&s, "%s%s:%u+%u", i ? " " : "", c.nodes[p.at[i].node]->name,
			   p.at[i].first, p.at[i].count);
	assert_string_equal(str_text(&s), want);
}

/* Goal: cores are filled block by block, the user's node first. */
static void ranks_fill_cores(void **state)
{
	(void)state;
	const char *four = "n1:2 n2:2 n3:2 n4:2";
	golden(four, (struct place_wish){ 0 }, "n1:0+1");
	golden(four, (struct place_wish){ .ranks = 1 }, "n1:0+1");
	golden(four, (struct place_wish){ .ranks = 4 }, "n1:0+2 n2:2+2");
	golden(four, (struct place_wish){ .ranks = 3, .origin = 3 }, "n3:0+2 n1:2+1");
	golden(four, (struct place_wish){ .ranks = 8 }, "n1:0+2 n2:2+2 n3:4+2 n4:6+2");
	golden("a:1 b:8", (struct place_wish){ .ranks = 5 }, "a:0+1 b:1+4");
	golden("a:0 b:1", (struct place_wish){ .ranks = 2 }, "a:0+1 b:1+1");
}

/* Goal: more ranks than cores are shared in proportion to cores. */
static void overload_is_even(void **state)
{
	(void)state;
	golden("n1:2 n2:2", (struct place_wish){ .ranks = 10 }, "n1:0+5 n2:5+5");
	golden("n1:2 n2:4", (struct place_wish){ .ranks = 12 }, "n1:0+4 n2:4+8");
	golden("n1:2 n2:2 n3:2 n4:2", (struct place_wish){ .ranks = 64 },
	       "n1:0+16 n2:16+16 n3:32+16 n4:48+16");
	golden("n1:1 n2:1 n3:1", (struct place_wish){ .ranks = 5 }, "n1:0+2 n2:2+2 n3:4+1");
	golden("n1:1", (struct place_wish){ .ranks = 1025 },
	       "-34 1025 ranks wanted, 1024 fit on these nodes (1024 on each)");
	golden("n1:1000 n2:1", (struct place_wish){ .ranks = 2000 }, "n1:0+1024 n2:1024+976");
}

/* Goal: -N takes so many nodes and leaves none of them idle. */
static void nodes_are_all_used(void **state)
{
	(void)state;
	const char *four = "n1:2 n2:2 n3:2 n4:2";
	golden(four, (struct place_wish){ .nodes = 3 }, "n1:0+1 n2:1+1 n3:2+1");
	golden(four, (struct place_wish){ .nodes = 4, .ranks = 4 }, "n1:0+1 n2:1+1 n3:2+1 n4:3+1");
	golden(four, (struct place_wish){ .nodes = 2, .ranks = 5 }, "n1:0+3 n2:3+2");
	golden("a:8 b:1 c:1", (struct place_wish){ .nodes = 3, .ranks = 3 }, "a:0+1 b:1+1 c:2+1");
	golden(four, (struct place_wish){ .nodes = 2, .per_node = 3 }, "n1:0+3 n2:3+3");
	golden(four, (struct place_wish){ .nodes = 5 },
	       "-34 5 nodes wanted, 4 can take work; see: copia nodes");
	golden(four, (struct place_wish){ .nodes = 3, .ranks = 2 },
	       "-34 2 ranks cannot run on 3 nodes: each needs one; take a greater -n or a smaller "
	       "-N");
}

static void per_node_is_kept(void **state)
{
	(void)state;
	const char *four = "n1:4 n2:4 n3:4 n4:4";
	golden(four, (struct place_wish){ .ranks = 4, .per_node = 1 },
	       "n1:0+1 n2:1+1 n3:2+1 n4:3+1");
	golden(four, (struct place_wish){ .per_node = 3 }, "n1:0+3");
	golden(four, (struct place_wish){ .ranks = 9, .per_node = 2 },
	       "-34 9 ranks wanted, 8 fit on these nodes with this --per-node");
	golden(four, (struct place_wish){ .ranks = 6, .per_node = 6 }, "n1:0+4 n2:4+2");
}

/* Goal: lists name nodes in their order; what is named must be at work, what is meant need not. */
static void lists_choose(void **state)
{
	(void)state;
	const char *c = "n1:2 n2:2g n3:2d n4:2gx n5:2g";
	golden(c, (struct place_wish){ .on = "n5,n1" }, "n5:0+1 n1:1+1");
	golden(c, (struct place_wish){ .on = "n5,n1", .ranks = 3 }, "n5:0+2 n1:2+1");
	golden(c, (struct place_wish){ .on = "all" }, "n1:0+1 n2:1+1 n5:2+1");
	golden(c, (struct place_wish){ .on = "gpu" }, "n2:0+1 n5:1+1");
	golden(c, (struct place_wish){ .on = "n3" },
	       "-112 node n3 is down; name others, or none and the cluster chooses");
	golden(c, (struct place_wish){ .on = "n[4-5]" },
	       "-112 node n4 is drained; name others, or none and the cluster chooses");
	golden(c, (struct place_wish){ .on = "m1" },
	       "-2 node m1: no node, label or feature has this name; did you mean n1?");
	golden(c, (struct place_wish){ .on = "elephant" },
	       "-2 node elephant: no node, label or feature has this name; see: copia nodes");
	golden(c, (struct place_wish){ .on = "all", .exclude = "gpu" }, "n1:0+1");
	golden(c, (struct place_wish){ .ranks = 1, .exclude = "n1" }, "n2:0+1");
	golden(c, (struct place_wish){ .ranks = 3, .features = "gpu" }, "n2:0+2 n5:2+1");
	golden("n1:2x", (struct place_wish){ 0 },
	       "-112 no node can take the work: 1 in the cluster, all of them are down, drained or "
	       "ruled out; see: copia nodes");
	golden("n1:2l n1:2", (struct place_wish){ .on = "n1" }, "n1:0+1");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(ranks_fill_cores),   cmocka_unit_test(overload_is_even),
		cmocka_unit_test(nodes_are_all_used), cmocka_unit_test(per_node_is_kept),
		cmocka_unit_test(lists_choose),
	};
	return cmocka_run_group_tests_name("place", tests, NULL, NULL);
}
