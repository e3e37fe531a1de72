/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/wireup/job-private.h"
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdio.h>

/* Names go into lists of libpmix, paths and lines of PMI-1: no separators of any of them. */
static bool name_fits(const char *text, size_t most)
{
	size_t len = strlen(text);
	if (!len || len > most || *text == '.')
		return false;
	for (; *text; text++)
		if (!isalnum((unsigned char)*text) && !strchr("._-", *text))
			return false;
	return true;
}

static bool network_fits(const char *text)
{
	size_t len = strlen(text);
	return len && len < 64 && strspn(text, "0123456789abcdefABCDEF.:/") == len;
}

static int head_check(const Copia__WireupJobAdd *m, struct err *err)
{
	if (!name_fits(m->job, 128) || (*m->nspace && !name_fits(m->nspace, PMIX_NSPACE_MAX - 1)))
		return err_set(err, -EINVAL, "job '%s': unfit name", m->job);
	if (!m->size || m->size > JOB_RANKS_MAX || !m->n_nodes || m->n_nodes > JOB_NODES_MAX ||
	    m->node >= m->n_nodes)
		return err_set(err, -EINVAL, "job %s: %u ranks on %zu nodes, this is node %u",
			       m->job, m->size, m->n_nodes, m->node);
	if (m->n_apps && m->n_apps != m->size)
		return err_set(err, -EINVAL, "job %s: program numbers of %zu ranks of %u", m->job,
			       m->n_apps, m->size);
	for (size_t i = 0; i < m->n_apps; i++)
		if (m->apps[i] >= m->size)
			return err_set(err, -EINVAL, "job %s: program %u", m->job, m->apps[i]);
	for (size_t i = 0; i < m->n_networks; i++)
		if (!network_fits(m->networks[i]))
			return err_set(err, -EINVAL, "job %s: network '%s'", m->job,
				       m->networks[i]);
	for (size_t i = 0; i < m->n_devices; i++)
		if (!name_fits(m->devices[i], 64))
			return err_set(err, -EINVAL, "job %s: interface '%s'", m->job,
				       m->devices[i]);
	return 0;
}

static int nodes_parse(struct job *j, const Copia__WireupJobAdd *m, struct err *err)
{
	for (uint32_t i = 0; i < j->size; i++)
		j->node_of[i] = UINT32_MAX;
	uint32_t seen = 0;
	for (uint32_t n = 0; n < j->node_count; n++) {
		const Copia__WireupNode *node = m->nodes[n];
		if (!name_fits(node->name, 255))
			return err_set(err, -EINVAL, "job %s: node '%s': unfit name", j->id,
				       node->name);
		j->node_names[n] = xstrdup(node->name);
		if (node->n_ranks)
			j->all_nodes[j->all_count++] = n;
		for (size_t i = 0; i < node->n_ranks; i++) {
			uint32_t rank = node->ranks[i];
			if (rank >= j->size || j->node_of[rank] != UINT32_MAX ||
			    (i && rank <= node->ranks[i - 1]))
				return err_set(err, -EINVAL, "job %s: rank %u of node %s", j->id,
					       rank, node->name);
			j->node_of[rank] = n;
			seen++;
		}
	}
	if (seen != j->size)
		return err_set(err, -EINVAL, "job %s: %u of %u ranks have a node", j->id, seen,
			       j->size);
	return 0;
}

static void local_parse(struct job *j, const Copia__WireupNode *node)
{
	j->local_count = (uint32_t)node->n_ranks;
	j->local = xmemdup(node->ranks, node->n_ranks * sizeof(*j->local));
	j->ranks = xcalloc(j->local_count, sizeof(*j->ranks));
	for (uint32_t i = 0; i < j->local_count; i++) {
		j->ranks[i].job = j;
		j->ranks[i].at = i;
		j->ranks[i].source.fd = -1;
	}
}

static char **texts_copy(char **from, size_t count)
{
	char **to = xcalloc(count ? count : 1, sizeof(*to));
	for (size_t i = 0; i < count; i++)
		to[i] = xstrdup(from[i]);
	return to;
}

static void texts_free(char **texts, size_t count)
{
	for (size_t i = 0; texts && i < count; i++)
		free(texts[i]);
	free(texts);
}

int job_parse(struct wireup *w, const Copia__WireupJobAdd *m, struct job **ret, struct err *err)
{
	int r = head_check(m, err);
	if (r < 0)
		return r;
	struct job *j = xcalloc(1, sizeof(*j));
	j->wireup = w;
	j->id = xstrdup(m->job);
	j->nspace = xstrdup(*m->nspace ? m->nspace : m->job);
	j->size = m->size;
	j->universe = m->universe ? m->universe : m->size;
	j->node = m->node;
	j->node_count = (uint32_t)m->n_nodes;
	j->uid = m->uid;
	j->gid = m->gid;
	j->node_of = xcalloc(j->size, sizeof(*j->node_of));
	j->node_names = xcalloc(j->node_count, sizeof(*j->node_names));
	j->all_nodes = xcalloc(j->node_count, sizeof(*j->all_nodes));
	j->apps = m->n_apps ? xmemdup(m->apps, m->n_apps * sizeof(*j->apps)) : NULL;
	j->networks = texts_copy(m->networks, m->n_networks);
	j->network_count = m->n_networks;
	j->devices = texts_copy(m->devices, m->n_devices);
	j->device_count = m->n_devices;
	r = nodes_parse(j, m, err);
	if (r == 0 && !m->nodes[m->node]->n_ranks)
		r = err_set(err, -EINVAL, "job %s: no rank on this node", j->id);
	if (r < 0) {
		job_parse_free(j);
		return r;
	}
	local_parse(j, m->nodes[m->node]);
	*ret = j;
	return 0;
}

void job_parse_free(struct job *j)
{
	texts_free(j->node_names, j->node_count);
	texts_free(j->networks, j->network_count);
	texts_free(j->devices, j->device_count);
	free(j->node_of);
	free(j->all_nodes);
	free(j->apps);
	free(j->local);
	free(j->ranks);
	free(j->id);
	free(j->nspace);
	free(j);
}
