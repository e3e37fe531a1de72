/* SPDX-License-Identifier: Apache-2.0 */
/* The environment by which each MPI finds its launcher and its network. PMI_FD is the spawner's:
 * it alone knows the number that the descriptor has in the rank.
 *
 * Open MPI 4.x: without OMPI_MCA_schizo every rank silently comes up alone, because its ORTE part
 * takes any process without ORTE daemon for a program that was started by hand. */
#include "caps/wireup/job-private.h"
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <unistd.h>

struct list {
	char **at;
	size_t count, cap;
};

static void list_add(struct list *l, const char *text)
{
	if (l->count == l->cap) {
		l->cap = l->cap ? 2 * l->cap : 32;
		l->at = xrealloc(l->at, l->cap * sizeof(*l->at));
	}
	l->at[l->count++] = xstrdup(text);
}

static void list_each(void *ctx, const char *assignment)
{
	list_add(ctx, assignment);
}

static void list_printf(struct list *l, const char *fmt, ...) _printf_(2, 3);
static void list_printf(struct list *l, const char *fmt, ...)
{
	struct str s = { 0 };
	va_list args;
	va_start(args, fmt);
	str_vprintf(&s, fmt, args);
	va_end(args);
	list_add(l, str_text(&s));
	str_free(&s);
}

static bool list_has(const struct list *l, const char *text)
{
	for (size_t i = 0; i < l->count; i++)
		if (!strcmp(l->at[i], text))
			return true;
	return false;
}

static void list_free(struct list *l)
{
	for (size_t i = 0; i < l->count; i++)
		free(l->at[i]);
	free(l->at);
	*l = (struct list){ 0 };
}

/* ---- interfaces ---- */

static bool network_holds(const char *network, const struct sockaddr *a)
{
	char text[64];
	uint8_t net[16];
	snprintf(text, sizeof(text), "%s", network);
	char *slash = strchr(text, '/');
	unsigned bits = slash ? (unsigned)strtoul(slash + 1, NULL, 10) : 128;
	if (slash)
		*slash = '\0';
	const uint8_t *at;
	if (a->sa_family == AF_INET)
		at = (const uint8_t *)&((const struct sockaddr_in *)a)->sin_addr;
	else if (a->sa_family == AF_INET6)
		at = (const uint8_t *)&((const struct sockaddr_in6 *)a)->sin6_addr;
	else
		return false;
	if (inet_pton(a->sa_family, text, net) != 1)
		return false;
	bits = MIN(bits, a->sa_family == AF_INET ? 32u : 128u);
	if (memcmp(at, net, bits / 8))
		return false;
	uint8_t mask = (uint8_t)(0xff00 >> bits % 8);
	return bits % 8 == 0 || (at[bits / 8] & mask) == (net[bits / 8] & mask);
}

/* This node's interfaces that have an address in one of the job's networks. */
static void devices_find(const struct job *j, struct list *ret)
{
	struct ifaddrs *all = NULL;
	for (size_t i = 0; i < j->device_count; i++)
		list_add(ret, j->devices[i]);
	if (ret->count || !j->network_count || getifaddrs(&all) < 0)
		return;
	for (struct ifaddrs *a = all; a; a = a->ifa_next)
		for (size_t i = 0; i < j->network_count && a->ifa_addr; i++)
			if ((a->ifa_flags & IFF_UP) && network_holds(j->networks[i], a->ifa_addr) &&
			    !list_has(ret, a->ifa_name))
				list_add(ret, a->ifa_name);
	freeifaddrs(all);
}

/* UCX 1.18 passes over bridges unless told: MPICH then finds no way to the other node. */
static bool has_bridge(const struct list *devices)
{
	bool found = false;
	for (size_t i = 0; i < devices->count && !found; i++) {
		char path[128];
		snprintf(path, sizeof(path), "/sys/class/net/%.64s/bridge", devices->at[i]);
		found = access(path, F_OK) == 0;
	}
	return found;
}

static void join(char *const *texts, size_t count, struct str *ret)
{
	for (size_t i = 0; i < count; i++)
		str_printf(ret, "%s%s", i ? "," : "", texts[i]);
}

/* Open MPI takes networks, UCX and libfabric (both MPIs may use them) interfaces. */
static int networks_say(const struct job *j, struct list *env, struct err *err)
{
	if (!j->network_count && !j->device_count)
		return 0;
	struct list devices = { 0 };
	struct str networks = { 0 }, names = { 0 };
	devices_find(j, &devices);
	if (!devices.count) {
		join(j->networks, j->network_count, &networks);
		int r = err_set(err, -EADDRNOTAVAIL,
				"job %s: node %s has no interface in %s that is up", j->id,
				j->node_names[j->node], str_text(&networks));
		str_free(&networks);
		return r;
	}
	join(devices.at, devices.count, &names);
	if (j->network_count)
		join(j->networks, j->network_count, &networks);
	else
		str_puts(&networks, str_text(&names));
	list_printf(env, "OMPI_MCA_btl_tcp_if_include=%s", str_text(&networks));
	list_printf(env, "OMPI_MCA_oob_tcp_if_include=%s", str_text(&networks));
	list_printf(env, "UCX_NET_DEVICES=%s", str_text(&names));
	list_printf(env, "FI_TCP_IFACE=%s", devices.at[0]);
	list_printf(env, "FI_SOCKETS_IFACE=%s", devices.at[0]);
	list_printf(env, "MPIR_CVAR_NEMESIS_TCP_NETWORK_IFACE=%s", devices.at[0]);
	if (has_bridge(&devices))
		list_add(env, "UCX_TCP_BRIDGE_ENABLE=y");
	list_free(&devices);
	str_free(&networks);
	str_free(&names);
	return 0;
}

/* ---- one rank ---- */

static int rank_say(struct job *j, uint32_t at, struct list *env, struct err *err)
{
	int r = 0;
	if (j->pmi1) {
		list_printf(env, "PMI_RANK=%u", j->local[at]);
		list_printf(env, "PMI_SIZE=%u", j->size);
		list_printf(env, "MPI_LOCALRANKID=%u", at);
		list_printf(env, "MPI_LOCALNRANKS=%u", j->local_count);
	}
	if (j->pmix) {
		list_add(env, "OMPI_MCA_schizo=^orte");
		r = pmix_environment(j->nspace, j->local[at], list_each, env, err);
	}
	return r;
}

/* What all ranks share goes once: with hundreds of ranks on a node a frame would overflow. */
static void common_split(struct list *lists, uint32_t count, struct list *common)
{
	for (size_t i = 0; i < lists[0].count; i++) {
		bool shared = true;
		for (uint32_t k = 1; k < count && shared; k++)
			shared = list_has(&lists[k], lists[0].at[i]);
		if (shared)
			list_add(common, lists[0].at[i]);
	}
}

static void rank_fill(struct list *own, const struct list *common, Copia__WireupRankReady *ret)
{
	ret->environment = xcalloc(own->count ? own->count : 1, sizeof(char *));
	for (size_t i = 0; i < own->count; i++)
		if (!list_has(common, own->at[i]))
			ret->environment[ret->n_environment++] = xstrdup(own->at[i]);
}

int ready_fill(struct job *j, Copia__WireupJobReady *ready, struct err *err)
{
	struct list *lists = xcalloc(j->local_count, sizeof(*lists));
	struct list common = { 0 };
	int r = 0;
	for (uint32_t i = 0; i < j->local_count && r == 0; i++)
		r = rank_say(j, i, &lists[i], err);
	if (r == 0)
		r = networks_say(j, &common, err);
	if (r == 0) {
		common_split(lists, j->local_count, &common);
		ready->ranks = xcalloc(j->local_count, sizeof(*ready->ranks));
		ready->n_ranks = j->local_count;
		for (uint32_t i = 0; i < j->local_count; i++) {
			Copia__WireupRankReady *one = xmalloc(sizeof(*one));
			copia__wireup_rank_ready__init(one);
			one->rank = j->local[i];
			rank_fill(&lists[i], &common, one);
			ready->ranks[i] = one;
		}
		ready->environment = take_ptr(common.at);
		ready->n_environment = common.count;
		common.count = 0;
	}
	for (uint32_t i = 0; i < j->local_count; i++)
		list_free(&lists[i]);
	list_free(&common);
	free(lists);
	return r;
}

void ready_clear(Copia__WireupJobReady *ready)
{
	for (size_t i = 0; i < ready->n_ranks; i++) {
		for (size_t k = 0; k < ready->ranks[i]->n_environment; k++)
			free(ready->ranks[i]->environment[k]);
		free(ready->ranks[i]->environment);
		free(ready->ranks[i]);
	}
	for (size_t k = 0; k < ready->n_environment; k++)
		free(ready->environment[k]);
	free(ready->environment);
	free(ready->ranks);
}
