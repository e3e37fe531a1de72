/* SPDX-License-Identifier: Apache-2.0 */
/* Network addresses: text, resolving of names without blocking, and this machine's own ones. */
#pragma once
#include "base/err.h"
#include <netinet/in.h>
#include <uv.h>

enum {
	ADDR_TEXT = 80, /* longest text of an address with zone, brackets and port, with NUL */
	ADDR_RESOLVE_MAX = 16,
	ADDR_INTERFACE_TEXT = 16
};

/* An IPv4 or IPv6 address with port. */
union addr {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

/* Read a numeric address ("10.0.0.1", "fd00::1", "fe80::1%eth0"; no brackets). Errors: -EINVAL. */
int addr_parse(const char *text, uint16_t port, union addr *ret, struct err *err);
/* "10.0.0.1:7440", "[fd00::1]:7440"; IPv4 mapped into IPv6 is shown as IPv4. Returns `buf`. */
char *addr_show(const union addr *a, char buf[ADDR_TEXT]);
/* The same without brackets and port. */
char *addr_show_host(const union addr *a, char buf[ADDR_TEXT]);
/* Take what the kernel gave (mapped IPv4 becomes IPv4). False for other families. */
bool addr_from_sockaddr(const struct sockaddr *sa, union addr *ret);
uint16_t addr_port(const union addr *a);
void addr_set_port(union addr *a, uint16_t port);
size_t addr_len(const union addr *a);
bool addr_equal(const union addr *a, const union addr *b); /* with port */

/* Resolve a name or numeric address. `cb` is called exactly once, always from the loop: with
 * `result` 0 and 1..ADDR_RESOLVE_MAX addresses (IPv6 and IPv4 alternating, in the resolver's
 * order), or with a negative errno and the reason. After addr_resolve_cancel() it is not called
 * any more. The running request is owned by the loop. */
struct addr_resolve;
typedef void addr_resolve_done(void *ctx, int result, const union addr *addresses, size_t count,
			       const struct err *err);
int addr_resolve(uv_loop_t *loop, const char *host, uint16_t port, addr_resolve_done *cb, void *ctx,
		 struct addr_resolve **ret, struct err *err);
void addr_resolve_cancel(struct addr_resolve *r); /* NULL is fine */

/* An address of this machine that other nodes may reach: of an interface that is up, and neither
 * loopback nor link-local. */
struct addr_own {
	union addr addr; /* port 0 */
	char interface[ADDR_INTERFACE_TEXT];
	unsigned prefix_len;
};

/* List them in the kernel's order; IPv6 temporary addresses are included. *ret is the caller's
 * (free()). `with_loopback` adds loopback ones (a cluster of one machine has nothing else).
 * Errors: -EIO… */
int addr_own_list(bool with_loopback, struct addr_own **ret, size_t *ret_count, struct err *err);
