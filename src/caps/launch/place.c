/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/place.h"

#include "base/nodelist.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>

enum { NEAR_MAX = 64, NEAR_DISTANCE = 2 };

static bool listed(char *const *words, size_t count, const char *word)
{
	for (size_t i = 0; i < count; i++)
		if (!strcmp(words[i], word))
			return true;
	return false;
}

static bool node_has(const Copia__Node *n, const char *word)
{
	if (listed(n->labels, n->n_labels, word))
		return true;
	return n->facts && listed(n->facts->features, n->facts->n_features, word);
}

/* How many letters must change to make `b` of `a` (Levenshtein 1966, one row of the table). */
static size_t distance(const char *a, const char *b)
{
	size_t row[NEAR_MAX + 1], la = strlen(a), lb = strlen(b);
	if (la > NEAR_MAX || lb > NEAR_MAX)
		return SIZE_MAX;
	for (size_t j = 0; j <= lb; j++)
		row[j] = j;
	for (size_t i = 1; i <= la; i++) {
		size_t corner = row[0];
		row[0] = i;
		for (size_t j = 1; j <= lb; j++) {
			size_t change = corner + (a[i - 1] != b[j - 1]);
			corner = row[j];
			size_t other = MIN(row[j], row[j - 1]) + 1;
			row[j] = MIN(change, other);
		}
	}
	return row[lb];
}

static const char *nearest(Copia__Node *const *nodes, size_t count, const char *word)
{
	const char *best = NULL;
	size_t least = NEAR_DISTANCE + 1;
	for (size_t i = 0; i < count; i++) {
		if (nodes[i]->state == COPIA__NODE_STATE__LEFT)
			continue;
		size_t d = distance(word, nodes[i]->name);
		if (d < least) {
			least = d;
			best = nodes[i]->name;
		}
	}
	return best;
}

/* A set of node indices in order of arrival. */
struct chosen {
	uint32_t *at;
	size_t count;
	bool *in; /* by node index */
};

static void chosen_init(struct chosen *c, size_t count)
{
	*c = (struct chosen){ .at = xcalloc(count, sizeof(*c->at)),
			      .in = xcalloc(count, sizeof(*c->in)) };
}

static void chosen_free(struct chosen *c)
{
	free(c->at);
	free(c->in);
}

static void chosen_add(struct chosen *c, size_t i)
{
	if (!c->in[i])
		c->at[c->count++] = (uint32_t)i;
	c->in[i] = true;
}

/* One word of a list: "all", else a node's name, else a label or feature. */
static int word_resolve(Copia__Node *const *nodes, size_t count, const char *word, struct chosen *c,
			bool *ret_named, struct err *err)
{
	size_t before = c->count;
	bool found = false;
	*ret_named = false;
	for (size_t i = 0; i < count; i++)
		if (nodes[i]->state != COPIA__NODE_STATE__LEFT && !strcmp(nodes[i]->name, word)) {
			chosen_add(c, i);
			*ret_named = true;
			return 0;
		}
	bool all = !strcmp(word, "all");
	for (size_t i = 0; i < count; i++)
		if (nodes[i]->state != COPIA__NODE_STATE__LEFT &&
		    (all || node_has(nodes[i], word))) {
			chosen_add(c, i);
			found = true;
		}
	if (found || all || c->count > before)
		return 0;
	const char *near = nearest(nodes, count, word);
	return err_set(err, -ENOENT, "node %.80s: no node, label or feature has this name%s%s%s",
		       word, near ? "; did you mean " : "; see: copia nodes", near ? near : "",
		       near ? "?" : "");
}

int place_resolve(Copia__Node *const *nodes, size_t count, const char *list, uint32_t **ret,
		  size_t *ret_count, struct err *err)
{
	_cleanup_(nodelist_free) struct nodelist words = { 0 };
	_cleanup_(chosen_free) struct chosen c;
	chosen_init(&c, count);
	int r = nodelist_parse(list, &words, err);
	bool named;
	for (size_t i = 0; r == 0 && i < words.count; i++)
		r = word_resolve(nodes, count, words.names[i], &c, &named, err);
	if (r < 0)
		return r;
	*ret = take_ptr(c.at);
	*ret_count = c.count;
	return 0;
}

static bool takes_work(const Copia__Node *n)
{
	return n->state == COPIA__NODE_STATE__UP && !n->drained;
}

static const char *node_trouble(const Copia__Node *n)
{
	switch (n->state) {
	case COPIA__NODE_STATE__UP:
		return n->drained ? "drained" : NULL;
	case COPIA__NODE_STATE__DOWN:
		return "down";
	case COPIA__NODE_STATE__LEFT:
		return "gone: it left the cluster";
	default:
		return "not heard of yet";
	}
}

/* --on: words that name a node must find it at work; "all" and labels pass over the others. */
static int candidates_named(Copia__Node *const *nodes, size_t count, const char *on,
			    struct chosen *ret, struct err *err)
{
	_cleanup_(nodelist_free) struct nodelist words = { 0 };
	int r = nodelist_parse(on, &words, err);
	for (size_t i = 0; r == 0 && i < words.count; i++) {
		_cleanup_(chosen_free) struct chosen c;
		chosen_init(&c, count);
		bool named = false;
		r = word_resolve(nodes, count, words.names[i], &c, &named, err);
		for (size_t k = 0; r == 0 && k < c.count; k++) {
			const Copia__Node *n = nodes[c.at[k]];
			const char *trouble = node_trouble(n);
			if (trouble && named)
				r = err_set(err, -EHOSTDOWN,
					    "node %s is %s%s%s; name others, or none and the "
					    "cluster chooses",
					    n->name, trouble, n->reason[0] ? ": " : "", n->reason);
			else if (!trouble)
				chosen_add(ret, c.at[k]);
		}
	}
	return r;
}

static void candidates_all(Copia__Node *const *nodes, size_t count, uint32_t origin,
			   struct chosen *ret)
{
	for (size_t i = 0; i < count; i++)
		if (nodes[i]->number == origin && takes_work(nodes[i]))
			chosen_add(ret, i);
	for (size_t i = 0; i < count; i++)
		if (takes_work(nodes[i]))
			chosen_add(ret, i);
}

static bool given(const char *text)
{
	return text && text[0];
}

/* Take away what --exclude and --features rule out. */
static int candidates_filter(Copia__Node *const *nodes, size_t count, const struct place_wish *w,
			     struct chosen *c, struct err *err)
{
	_cleanup_(free_p) bool *out = xcalloc(count, sizeof(*out));
	_cleanup_(free_p) uint32_t *at = NULL;
	_cleanup_(nodelist_free) struct nodelist features = { 0 };
	size_t out_count;
	if (given(w->exclude)) {
		int r = place_resolve(nodes, count, w->exclude, &at, &out_count, err);
		if (r < 0)
			return err_wrap(err, r, "--exclude");
		for (size_t i = 0; i < out_count; i++)
			out[at[i]] = true;
	}
	if (given(w->features)) {
		int r = nodelist_parse(w->features, &features, err);
		if (r < 0)
			return err_wrap(err, r, "--features");
	}
	size_t kept = 0;
	for (size_t i = 0; i < c->count; i++) {
		const Copia__Node *n = nodes[c->at[i]];
		bool keep = !out[c->at[i]];
		for (size_t f = 0; f < features.count; f++)
			keep = keep && node_has(n, features.names[f]);
		if (keep)
			c->at[kept++] = c->at[i];
	}
	c->count = kept;
	return 0;
}

static uint32_t cores_of(const Copia__Node *n)
{
	return n->facts && n->facts->cores ? n->facts->cores : 1;
}

/* Share `ranks` in proportion to cores, `least` for each at least, by largest remainder. */
static void shares(Copia__Node *const *nodes, const uint32_t *at, size_t count, uint32_t ranks,
		   uint32_t least, uint32_t *ret)
{
	uint64_t cores = 0, given_out = 0;
	for (size_t i = 0; i < count; i++)
		cores += cores_of(nodes[at[i]]);
	for (size_t i = 0; i < count; i++) {
		ret[i] = (uint32_t)((uint64_t)ranks * cores_of(nodes[at[i]]) / cores);
		ret[i] = MAX(ret[i], least);
		given_out += ret[i];
	}
	/* Each step gives to the node with the most room in proportion, or takes from the fullest;
	 * at most `count` steps, since each share is off by less than one, or was lifted to one. */
	while (given_out != ranks) {
		bool give = given_out < ranks;
		size_t best = SIZE_MAX;
		double best_load = 0;
		for (size_t i = 0; i < count; i++) {
			if (!give && ret[i] <= least)
				continue;
			double load = (ret[i] + (give ? 1.0 : 0.0)) / cores_of(nodes[at[i]]);
			if (best == SIZE_MAX || (give ? load < best_load : load >= best_load)) {
				best = i;
				best_load = load;
			}
		}
		assert(best != SIZE_MAX);
		ret[best] += give ? 1 : UINT32_MAX;
		given_out += give ? 1 : UINT64_MAX;
	}
}

static int too_many(struct err *err, const char *what, uint64_t wanted, uint64_t there,
		    const char *why)
{
	return err_set(err, -ERANGE, "%" PRIu64 " %s wanted, %" PRIu64 " %s", wanted, what, there,
		       why);
}

/* Decide how many ranks there are and how many each of the first *ret_nodes candidates gets. */
static int count_ranks(Copia__Node *const *nodes, const struct chosen *c,
		       const struct place_wish *w, uint32_t *counts, size_t *ret_nodes,
		       struct err *err)
{
	size_t use = w->nodes ? w->nodes : c->count;
	if (use > c->count)
		return too_many(err, "nodes", use, c->count, "can take work; see: copia nodes");
	uint32_t cap = w->per_node ? w->per_node : PLACE_NODE_RANKS_MAX;
	uint64_t ranks = w->ranks;
	if (!ranks) {
		bool each = w->nodes || given(w->on) || w->per_node || w->all;
		if (w->per_node && !w->nodes && !given(w->on) && !w->all)
			use = 1;
		ranks = each ? use * (uint64_t)(w->per_node ? w->per_node : 1) : 1;
		for (size_t i = 0; each && i < use; i++)
			counts[i] = w->per_node ? w->per_node : 1;
		if (each) {
			*ret_nodes = use;
			return 0;
		}
	}
	if (w->nodes && ranks < w->nodes)
		return err_set(err, -ERANGE,
			       "%" PRIu64 " ranks cannot run on %u nodes: each needs one; take a "
			       "greater -n or a smaller -N",
			       ranks, w->nodes);
	if (ranks > use * (uint64_t)cap)
		return too_many(err, "ranks", ranks, use * (uint64_t)cap,
				w->per_node ? "fit on these nodes with this --per-node"
					    : "fit on these nodes (1024 on each)");
	uint64_t cores = 0, left = ranks;
	for (size_t i = 0; i < use; i++)
		cores += MIN(cores_of(nodes[c->at[i]]), cap);
	if (w->nodes || ranks > cores)
		shares(nodes, c->at, use, (uint32_t)ranks, w->nodes ? 1 : 0, counts);
	for (size_t i = 0; !w->nodes && ranks <= cores && i < use; i++) {
		uint32_t fit = MIN(cores_of(nodes[c->at[i]]), cap);
		counts[i] = (uint32_t)MIN(left, fit);
		left -= counts[i];
	}
	/* What lies above the cap moves to nodes below it. */
	uint64_t over = 0;
	for (size_t i = 0; i < use; i++)
		if (counts[i] > cap) {
			over += counts[i] - cap;
			counts[i] = cap;
		}
	for (size_t i = 0; over && i < use; i++) {
		uint32_t more = (uint32_t)MIN(over, cap - counts[i]);
		counts[i] += more;
		over -= more;
	}
	assert(!over);
	*ret_nodes = use;
	return 0;
}

int place(Copia__Node *const *nodes, size_t count, const struct place_wish *w,
	  struct placement *ret, struct err *err)
{
	if (w->ranks > PLACE_RANKS_MAX)
		return too_many(err, "ranks", w->ranks, PLACE_RANKS_MAX,
				"are the most there can be");
	if (w->per_node > PLACE_NODE_RANKS_MAX)
		return too_many(err, "ranks for each node", w->per_node, PLACE_NODE_RANKS_MAX,
				"are the most there can be");
	_cleanup_(chosen_free) struct chosen c;
	chosen_init(&c, count);
	if (given(w->on)) {
		int r = candidates_named(nodes, count, w->on, &c, err);
		if (r < 0)
			return r;
	} else {
		candidates_all(nodes, count, w->origin, &c);
	}
	int r = candidates_filter(nodes, count, w, &c, err);
	if (r < 0)
		return r;
	if (!c.count)
		return err_set(
		    err, -EHOSTDOWN,
		    "no node can take the work: %zu in the cluster, all of them are down, "
		    "drained or ruled out; see: copia nodes",
		    count);
	_cleanup_(free_p) uint32_t *counts = xcalloc(c.count, sizeof(*counts));
	size_t use = 0;
	r = count_ranks(nodes, &c, w, counts, &use, err);
	if (r < 0)
		return r;
	struct placement p = { .at = xcalloc(use, sizeof(*p.at)) };
	for (size_t i = 0; i < use; i++) {
		if (!counts[i])
			continue;
		p.at[p.count++] =
		    (struct place){ .node = c.at[i], .first = p.ranks, .count = counts[i] };
		p.ranks += counts[i];
	}
	*ret = p;
	return 0;
}

void placement_free(struct placement *p)
{
	free(p->at);
	*p = (struct placement){ 0 };
}
