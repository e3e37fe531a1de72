/* SPDX-License-Identifier: Apache-2.0 */
/* sd_notify(3) without its library: one datagram of NAME=value lines to $NOTIFY_SOCKET. */
#include "shepherd/shepherd.h"

#include "base/units.h"

#include <stdarg.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

void notify_init(struct shepherd *s)
{
	const char *path = getenv("NOTIFY_SOCKET");
	const char *period = getenv("WATCHDOG_USEC");
	const char *pid = getenv("WATCHDOG_PID");
	uint64_t us, for_pid = 0;
	if (!path || strlen(path) >= sizeof(s->notify_path) || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(s->notify_path, path, strlen(path) + 1);
	if (pid && parse_u64(pid, 1, INT32_MAX, &for_pid, NULL) < 0)
		return;
	if (!period || (pid && for_pid != (uint64_t)getpid()) ||
	    parse_u64(period, 1, UINT64_MAX / 2, &us, NULL) < 0)
		return;
	s->notify_period_us = MAX(us / 2, (uint64_t)10000);
	s->notify_at_us = clock_us();
}

void notify_send(struct shepherd *s, const char *fmt, ...)
{
	if (!s->notify_path[0])
		return;
	char text[512];
	va_list args;
	va_start(args, fmt);
	int len = vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	if (len < 0 || (size_t)len >= sizeof(text))
		return;
	_cleanup_(close_p) int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	size_t path_len = strlen(s->notify_path);
	memcpy(to.sun_path, s->notify_path, path_len);
	if (to.sun_path[0] == '@')
		to.sun_path[0] = '\0';
	if (fd >= 0)
		(void)sendto(fd, text, (size_t)len, MSG_NOSIGNAL, (struct sockaddr *)&to,
			     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + path_len));
}

/* The ping says that both processes are well, or that the brain is just being restarted. */
void notify_tick(struct shepherd *s)
{
	if (!s->notify_at_us || s->now_us < s->notify_at_us)
		return;
	s->notify_at_us = s->now_us + s->notify_period_us;
	if (brain_is_there(s))
		notify_send(s, "WATCHDOG=1");
}
