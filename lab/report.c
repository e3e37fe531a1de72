/* SPDX-License-Identifier: Apache-2.0 */
#include "report.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

struct message {
	char kind; /* 'b'orn, 'g'o, 'e'rror */
	int code;
	char text[sizeof(((struct err *)0)->msg)];
};

int report_pair(int pair[2], struct err *err)
{
	int yes = 1;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return err_set(err, -errno, "make a socket pair: %s", strerror(errno));
	if (setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &yes, sizeof(yes)) == 0)
		return 0;
	int r = err_set(err, -errno, "ask for credentials: %s", strerror(errno));
	(void)close(pair[0]);
	(void)close(pair[1]);
	pair[0] = pair[1] = -1;
	return r;
}

static int tell(int sock, const struct message *msg)
{
	return send(sock, msg, sizeof(*msg), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int report_born(int sock)
{
	return tell(sock, &(struct message){ .kind = 'b' });
}

void report_error(int sock, int code, const struct err *err)
{
	struct message msg = { .kind = 'e', .code = code };
	memcpy(msg.text, err->msg, sizeof(msg.text));
	(void)tell(sock, &msg); /* whom else to tell? */
}

int report_go(int sock, struct err *err)
{
	int r = tell(sock, &(struct message){ .kind = 'g' });
	return r < 0 ? err_set(err, r, "it ended before it was set up") : 0;
}

bool report_wait(int sock, unsigned count)
{
	struct message msg;
	while (count) {
		ssize_t len = recv(sock, &msg, sizeof(msg), 0);
		if (len < 0 && errno == EINTR)
			continue;
		if (len != sizeof(msg) || msg.kind != 'g')
			return false;
		count--;
	}
	return true;
}

int report_read(int sock, pid_t *ret_pid, struct err *err)
{
	struct message msg;
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(struct ucred))];
	} control;
	struct iovec part = { .iov_base = &msg, .iov_len = sizeof(msg) };
	struct msghdr head = { .msg_iov = &part,
			       .msg_iovlen = 1,
			       .msg_control = &control,
			       .msg_controllen = sizeof(control) };
	ssize_t len;
	do
		len = recvmsg(sock, &head, MSG_CMSG_CLOEXEC);
	while (len < 0 && errno == EINTR);
	if (len == 0 || (len < 0 && errno == ECONNRESET))
		return REPORT_END;
	if (len != sizeof(msg))
		return err_set(err, -EPROTO, "a message was cut short");
	if (msg.kind == 'e') {
		msg.text[sizeof(msg.text) - 1] = '\0';
		return err_set(err, msg.code < 0 ? msg.code : -EPROTO, "%s", msg.text);
	}
	struct cmsghdr *c = CMSG_FIRSTHDR(&head);
	struct ucred who;
	if (!c || c->cmsg_type != SCM_CREDENTIALS || msg.kind != 'b')
		return err_set(err, -EPROTO, "a message without sender");
	memcpy(&who, CMSG_DATA(c), sizeof(who));
	*ret_pid = who.pid;
	return REPORT_BORN;
}

int report_result(int sock, int timeout_ms, const char *who, struct err *err)
{
	struct pollfd fd = { .fd = sock, .events = POLLIN };
	pid_t pid;
	int ready;
	do
		ready = poll(&fd, 1, timeout_ms);
	while (ready < 0 && errno == EINTR);
	if (ready == 0)
		return err_set(err, -ETIMEDOUT, "%s was not ready after %d s", who,
			       timeout_ms / 1000);
	int r = report_read(sock, &pid, err);
	return r == REPORT_END ? 0 : r < 0 ? r : err_set(err, -EPROTO, "%s: odd message", who);
}
