/* SPDX-License-Identifier: Apache-2.0 */
#include "io/addr.h"

#include <arpa/inet.h>
#include <assert.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>

struct addr_resolve {
	uv_getaddrinfo_t request; /* first: the request's address is ours */
	addr_resolve_done *cb;    /* NULL once cancelled */
	void *ctx;
	uint16_t port;
	char host[256];
};

int addr_parse(const char *text, uint16_t port, union addr *ret, struct err *err)
{
	union addr a = { 0 };
	if (uv_ip4_addr(text, port, &a.v4) == 0) {
		*ret = a;
		return 0;
	}
	/* uv_ip6_addr() takes any zone; one that does not exist must not become zone 0. */
	const char *zone = strchr(text, '%');
	memset(&a, 0, sizeof(a));
	if (uv_ip6_addr(text, port, &a.v6) != 0 || (zone && !a.v6.sin6_scope_id))
		return err_set(err, -EINVAL, "'%.64s' is not an IPv4 or IPv6 address", text);
	if (!addr_from_sockaddr(&a.any, ret))
		assert(false);
	return 0;
}

bool addr_from_sockaddr(const struct sockaddr *sa, union addr *ret)
{
	union addr a = { 0 };
	if (sa->sa_family == AF_INET) {
		memcpy(&a.v4, sa, sizeof(a.v4));
	} else if (sa->sa_family == AF_INET6) {
		struct sockaddr_in6 v6;
		memcpy(&v6, sa, sizeof(v6));
		if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
			a.v4.sin_family = AF_INET;
			a.v4.sin_port = v6.sin6_port;
			memcpy(&a.v4.sin_addr, &v6.sin6_addr.s6_addr[12], 4);
		} else {
			a.v6 = v6;
		}
	} else {
		return false;
	}
	*ret = a;
	return true;
}

char *addr_show_host(const union addr *a, char buf[ADDR_TEXT])
{
	char zone[IF_NAMESIZE];
	if (a->any.sa_family == AF_INET) {
		(void)uv_ip4_name(&a->v4, buf, ADDR_TEXT);
	} else if (a->any.sa_family == AF_INET6) {
		(void)uv_ip6_name(&a->v6, buf, ADDR_TEXT);
		size_t len = strlen(buf);
		if (a->v6.sin6_scope_id && if_indextoname(a->v6.sin6_scope_id, zone))
			(void)snprintf(buf + len, ADDR_TEXT - len, "%%%s", zone);
	} else {
		(void)snprintf(buf, ADDR_TEXT, "unknown address");
	}
	return buf;
}

char *addr_show(const union addr *a, char buf[ADDR_TEXT])
{
	char host[ADDR_TEXT];
	(void)snprintf(buf, ADDR_TEXT, a->any.sa_family == AF_INET6 ? "[%.70s]:%u" : "%.70s:%u",
		       addr_show_host(a, host), addr_port(a));
	return buf;
}

uint16_t addr_port(const union addr *a)
{
	return a->any.sa_family == AF_INET6 ? ntohs(a->v6.sin6_port) : ntohs(a->v4.sin_port);
}

void addr_set_port(union addr *a, uint16_t port)
{
	if (a->any.sa_family == AF_INET6)
		a->v6.sin6_port = htons(port);
	else
		a->v4.sin_port = htons(port);
}

size_t addr_len(const union addr *a)
{
	return a->any.sa_family == AF_INET6 ? sizeof(a->v6) : sizeof(a->v4);
}

bool addr_equal(const union addr *a, const union addr *b)
{
	if (a->any.sa_family != b->any.sa_family || addr_port(a) != addr_port(b))
		return false;
	if (a->any.sa_family == AF_INET)
		return a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
	return memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, sizeof(a->v6.sin6_addr)) == 0 &&
	       a->v6.sin6_scope_id == b->v6.sin6_scope_id;
}

/* ----------------------------------------------------------------------------------- resolving */

/* Alternate the families (RFC 8305 §4), each in the resolver's order, without doubles. */
static size_t collect(const struct addrinfo *list, uint16_t port, union addr ret[ADDR_RESOLVE_MAX])
{
	union addr found[2][ADDR_RESOLVE_MAX];
	size_t count[2] = { 0 }, total = 0;
	for (const struct addrinfo *i = list; i; i = i->ai_next) {
		union addr a;
		if (!i->ai_addr || !addr_from_sockaddr(i->ai_addr, &a))
			continue;
		addr_set_port(&a, port);
		unsigned family = a.any.sa_family == AF_INET;
		bool is_double = count[family] == ADDR_RESOLVE_MAX;
		for (size_t k = 0; k < count[family]; k++)
			is_double = is_double || addr_equal(&found[family][k], &a);
		if (!is_double)
			found[family][count[family]++] = a;
	}
	for (size_t k = 0; k < ADDR_RESOLVE_MAX; k++)
		for (unsigned family = 0; family < 2; family++)
			if (k < count[family] && total < ADDR_RESOLVE_MAX)
				ret[total++] = found[family][k];
	return total;
}

static void on_resolved(uv_getaddrinfo_t *request, int status, struct addrinfo *list)
{
	struct addr_resolve *r = (struct addr_resolve *)request;
	union addr addresses[ADDR_RESOLVE_MAX];
	struct err err = { 0 };
	size_t count = status == 0 ? collect(list, r->port, addresses) : 0;
	uv_freeaddrinfo(list);
	if (!count)
		err_set(&err, -EHOSTUNREACH, "host '%s' cannot be resolved: %s", r->host,
			status < 0 ? uv_strerror(status) : "it has no address");
	if (r->cb)
		r->cb(r->ctx, err.code, addresses, count, &err);
	free(r);
}

int addr_resolve(uv_loop_t *loop, const char *host, uint16_t port, addr_resolve_done *cb, void *ctx,
		 struct addr_resolve **ret, struct err *err)
{
	struct addr_resolve *r = xcalloc(1, sizeof(*r));
	if (strlen(host) >= sizeof(r->host)) {
		free(r);
		return err_set(err, -EINVAL, "host name is longer than 255 characters");
	}
	(void)snprintf(r->host, sizeof(r->host), "%s", host);
	r->cb = cb;
	r->ctx = ctx;
	r->port = port;
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM };
	int code = uv_getaddrinfo(loop, &r->request, on_resolved, host, NULL, &hints);
	if (code < 0) {
		free(r);
		return err_set(err, code, "host '%.64s' cannot be resolved: %s", host,
			       uv_strerror(code));
	}
	*ret = r;
	return 0;
}

void addr_resolve_cancel(struct addr_resolve *r)
{
	if (!r)
		return;
	r->cb = NULL;
	(void)uv_cancel((uv_req_t *)&r->request); /* one that runs already ends unheard */
}

/* ------------------------------------------------------------------------------- own addresses */

static unsigned prefix_len(const struct sockaddr *mask)
{
	const uint8_t *at;
	size_t size;
	if (!mask)
		return 0;
	if (mask->sa_family == AF_INET6) {
		at = (const uint8_t *)&((const struct sockaddr_in6 *)(const void *)mask)->sin6_addr;
		size = 16;
	} else {
		at = (const uint8_t *)&((const struct sockaddr_in *)(const void *)mask)->sin_addr;
		size = 4;
	}
	unsigned len = 0;
	for (size_t i = 0; i < size; i++)
		len += (unsigned)__builtin_popcount(at[i]);
	return len;
}

static bool is_usable(const union addr *a, unsigned flags, bool with_loopback)
{
	if (!(flags & IFF_UP) || !(flags & IFF_RUNNING))
		return false;
	if (flags & IFF_LOOPBACK)
		return with_loopback;
	if (a->any.sa_family == AF_INET6)
		return !IN6_IS_ADDR_LINKLOCAL(&a->v6.sin6_addr) &&
		       !IN6_IS_ADDR_UNSPECIFIED(&a->v6.sin6_addr);
	uint32_t host = ntohl(a->v4.sin_addr.s_addr);
	return host >> 16 != 0xa9fe && host != 0; /* 169.254/16, RFC 3927 */
}

int addr_own_list(bool with_loopback, struct addr_own **ret, size_t *ret_count, struct err *err)
{
	struct ifaddrs *list;
	if (getifaddrs(&list) < 0)
		return err_set(err, -errno, "list the network interfaces: %s", strerror(errno));
	size_t count = 0;
	for (struct ifaddrs *i = list; i; i = i->ifa_next)
		count++;
	struct addr_own *own = xcalloc(count + 1, sizeof(*own));
	count = 0;
	for (struct ifaddrs *i = list; i; i = i->ifa_next) {
		struct addr_own *o = &own[count];
		if (!i->ifa_addr || !addr_from_sockaddr(i->ifa_addr, &o->addr) ||
		    !is_usable(&o->addr, i->ifa_flags, with_loopback))
			continue;
		addr_set_port(&o->addr, 0);
		o->prefix_len = prefix_len(i->ifa_netmask);
		(void)snprintf(o->interface, sizeof(o->interface), "%s", i->ifa_name);
		count++;
	}
	freeifaddrs(list);
	*ret = own;
	*ret_count = count;
	return 0;
}
