/* SPDX-License-Identifier: Apache-2.0 */
#include "links.h"

#include <arpa/inet.h>
#include <errno.h>
#include <libmnl/libmnl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>

enum { BUF_SIZE = 8192 };

struct links {
	struct mnl_socket *sock;
	unsigned port;
	unsigned seq;
	char buf[BUF_SIZE];
};

int links_open(struct links **ret, struct err *err)
{
	struct links *l = xcalloc(1, sizeof(*l));
	l->sock = mnl_socket_open2(NETLINK_ROUTE, SOCK_CLOEXEC);
	if (!l->sock || mnl_socket_bind(l->sock, 0, MNL_SOCKET_AUTOPID) < 0) {
		int r = err_set(err, -errno, "open a netlink socket: %s", strerror(errno));
		links_free(l);
		return r;
	}
	l->port = mnl_socket_get_portid(l->sock);
	*ret = l;
	return 0;
}

struct links *links_free(struct links *l)
{
	if (l && l->sock)
		(void)mnl_socket_close(l->sock);
	free(l);
	return NULL;
}

static struct nlmsghdr *begin(struct links *l, uint16_t type, uint16_t flags)
{
	struct nlmsghdr *msg = mnl_nlmsg_put_header(l->buf);
	msg->nlmsg_type = type;
	msg->nlmsg_flags = (uint16_t)(NLM_F_REQUEST | NLM_F_ACK | flags);
	msg->nlmsg_seq = ++l->seq;
	return msg;
}

/* Send and wait for the kernel's yes or no. */
static int talk(struct links *l, struct nlmsghdr *msg)
{
	if (mnl_socket_sendto(l->sock, msg, msg->nlmsg_len) < 0)
		return -errno;
	char answer[BUF_SIZE];
	ssize_t len;
	int r = MNL_CB_OK;
	while (r > MNL_CB_STOP) {
		len = mnl_socket_recvfrom(l->sock, answer, sizeof(answer));
		if (len < 0 && errno == EINTR)
			continue;
		if (len < 0)
			return -errno;
		r = mnl_cb_run(answer, (size_t)len, l->seq, l->port, NULL, NULL);
	}
	return r < 0 ? -errno : 0;
}

int links_add_bridge(struct links *l, const char *name, struct err *err)
{
	struct nlmsghdr *msg = begin(l, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
	struct ifinfomsg *info = mnl_nlmsg_put_extra_header(msg, sizeof(*info));
	info->ifi_family = AF_UNSPEC;
	info->ifi_flags = info->ifi_change = IFF_UP;
	mnl_attr_put_strz(msg, IFLA_IFNAME, name);
	struct nlattr *link = mnl_attr_nest_start(msg, IFLA_LINKINFO);
	mnl_attr_put_strz(msg, IFLA_INFO_KIND, "bridge");
	struct nlattr *data = mnl_attr_nest_start(msg, IFLA_INFO_DATA);
	mnl_attr_put_u32(msg, IFLA_BR_STP_STATE, 0);
	mnl_attr_put_u8(msg, IFLA_BR_MCAST_SNOOPING, 0);
	mnl_attr_nest_end(msg, data);
	mnl_attr_nest_end(msg, link);
	int r = talk(l, msg);
	if (r == -EOPNOTSUPP)
		return err_set(err, r, "this kernel has no bridges (module bridge)");
	if (r < 0)
		return err_set(err, r, "make the bridge: %s", strerror(-r));
	return 0;
}

int links_add_port(struct links *l, const char *port, const char *bridge, const char *peer,
		   const uint8_t mac[6], pid_t pid, struct err *err)
{
	unsigned master = if_nametoindex(bridge);
	if (!master)
		return err_set(err, -ENODEV, "the lab has no bridge %s", bridge);
	struct nlmsghdr *msg = begin(l, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL);
	struct ifinfomsg *info = mnl_nlmsg_put_extra_header(msg, sizeof(*info));
	info->ifi_family = AF_UNSPEC;
	info->ifi_flags = info->ifi_change = IFF_UP;
	mnl_attr_put_strz(msg, IFLA_IFNAME, port);
	mnl_attr_put_u32(msg, IFLA_MASTER, master);
	struct nlattr *link = mnl_attr_nest_start(msg, IFLA_LINKINFO);
	mnl_attr_put_strz(msg, IFLA_INFO_KIND, "veth");
	struct nlattr *data = mnl_attr_nest_start(msg, IFLA_INFO_DATA);
	struct nlattr *other = mnl_attr_nest_start(msg, VETH_INFO_PEER);
	/* the peer's attributes follow a header of its own */
	struct ifinfomsg *peer_info = mnl_nlmsg_put_extra_header(msg, sizeof(*peer_info));
	peer_info->ifi_family = AF_UNSPEC;
	mnl_attr_put_strz(msg, IFLA_IFNAME, peer);
	mnl_attr_put(msg, IFLA_ADDRESS, 6, mac);
	mnl_attr_put_u32(msg, IFLA_NET_NS_PID, (uint32_t)pid);
	mnl_attr_nest_end(msg, other);
	mnl_attr_nest_end(msg, data);
	mnl_attr_nest_end(msg, link);
	int r = talk(l, msg);
	if (r == -EOPNOTSUPP)
		return err_set(err, r, "this kernel has no virtual links (module veth)");
	if (r < 0)
		return err_set(err, r, "make link %s: %s", port, strerror(-r));
	return 0;
}

int links_set(struct links *l, const char *name, bool up, struct err *err)
{
	struct nlmsghdr *msg = begin(l, RTM_NEWLINK, 0);
	struct ifinfomsg *info = mnl_nlmsg_put_extra_header(msg, sizeof(*info));
	info->ifi_family = AF_UNSPEC;
	info->ifi_change = IFF_UP;
	info->ifi_flags = up ? IFF_UP : 0;
	mnl_attr_put_strz(msg, IFLA_IFNAME, name);
	int r = talk(l, msg);
	if (r < 0)
		return err_set(err, r, "set link %s %s: %s", name, up ? "up" : "down",
			       strerror(-r));
	return 0;
}

int links_add_addr(struct links *l, const char *name, const char *text, unsigned prefix,
		   struct err *err)
{
	struct in6_addr addr;
	bool six = strchr(text, ':') != NULL;
	if (inet_pton(six ? AF_INET6 : AF_INET, text, &addr) != 1)
		return err_set(err, -EINVAL, "%s is no address", text);
	size_t size = six ? sizeof(struct in6_addr) : sizeof(struct in_addr);
	struct nlmsghdr *msg = begin(l, RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE);
	struct ifaddrmsg *info = mnl_nlmsg_put_extra_header(msg, sizeof(*info));
	info->ifa_family = six ? AF_INET6 : AF_INET;
	info->ifa_prefixlen = (uint8_t)prefix;
	info->ifa_flags = six ? IFA_F_NODAD : 0;
	info->ifa_index = if_nametoindex(name);
	mnl_attr_put(msg, IFA_LOCAL, size, &addr);
	mnl_attr_put(msg, IFA_ADDRESS, size, &addr);
	if (!six) {
		addr.s6_addr32[0] |= htonl(prefix < 32 ? UINT32_MAX >> prefix : 0);
		mnl_attr_put(msg, IFA_BROADCAST, size, &addr);
	}
	int r = talk(l, msg);
	if (r < 0)
		return err_set(err, r, "give %s the address %s: %s", name, text, strerror(-r));
	return 0;
}

int links_remove(struct links *l, const char *name, struct err *err)
{
	struct nlmsghdr *msg = begin(l, RTM_DELLINK, 0);
	struct ifinfomsg *info = mnl_nlmsg_put_extra_header(msg, sizeof(*info));
	info->ifi_family = AF_UNSPEC;
	mnl_attr_put_strz(msg, IFLA_IFNAME, name);
	int r = talk(l, msg);
	if (r < 0 && r != -ENODEV)
		return err_set(err, r, "remove link %s: %s", name, strerror(-r));
	return 0;
}
