/* SPDX-License-Identifier: Apache-2.0 */
#include "shepherd/beats.h"
#include "shepherd/task.h"

#include <assert.h>
#include <errno.h>
#include <time.h>
#include <unistd.h>

enum { ROUND_EVENTS = 64 };

uint64_t clock_us(void)
{
	struct timespec t;
	(void)clock_gettime(CLOCK_BOOTTIME, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int watch_add(struct shepherd *s, struct watch *w, int fd, uint32_t events)
{
	assert(w->ready && fd >= 0);
	struct epoll_event e = { .events = events, .data.ptr = w };
	if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &e) < 0)
		return -errno;
	w->fd = fd;
	w->events = events;
	return 0;
}

void watch_change(struct shepherd *s, struct watch *w, uint32_t events)
{
	if (w->fd < 0 || w->events == events)
		return;
	struct epoll_event e = { .events = events, .data.ptr = w };
	if (epoll_ctl(s->epoll_fd, EPOLL_CTL_MOD, w->fd, &e) == 0)
		w->events = events;
}

void watch_drop(struct shepherd *s, struct watch *w)
{
	if (w->fd >= 0)
		(void)epoll_ctl(s->epoll_fd, EPOLL_CTL_DEL, w->fd, NULL);
	w->fd = -1;
}

/* Who wants to be called at what time, and by which function. */
static const struct timer {
	uint64_t (*next_us)(const struct shepherd *s);
	void (*tick)(struct shepherd *s);
} timers[] = {
	{ beats_next_us, beats_tick },
	{ leases_next_us, leases_tick },
	{ tasks_next_us, tasks_tick },
	{ brain_next_us, brain_tick },
};

static int wait_ms(const struct shepherd *s)
{
	uint64_t next_us = MIN(s->notify_at_us ? s->notify_at_us : UINT64_MAX, passage_next_us(s));
	for (size_t i = 0; i < ARRAY_LEN(timers); i++)
		next_us = MIN(next_us, timers[i].next_us(s));
	if (next_us == UINT64_MAX)
		return -1;
	uint64_t now_us = clock_us();
	if (next_us <= now_us)
		return 0;
	/* Rounded up: waking early would mean waking twice. */
	return (int)MIN((next_us - now_us + 999) / 1000, (uint64_t)3600 * 1000);
}

/* A handler may drop watches that still have an event in this round: they are passed over, for
 * dropped means fd < 0, and what holds a watch is freed only where no event can be left. */
static void serve(struct shepherd *s, const struct epoll_event *events, int count, bool urgent)
{
	for (int i = 0; i < count; i++) {
		struct watch *w = events[i].data.ptr;
		if (w->urgent == urgent && w->fd >= 0)
			w->ready(s, w, events[i].events);
	}
}

void loop_run(struct shepherd *s)
{
	struct epoll_event events[ROUND_EVENTS];
	while (!s->quit) {
		brain_interest(s);
		int n = epoll_wait(s->epoll_fd, events, ROUND_EVENTS, wait_ms(s));
		s->now_us = clock_us();
		/* Heartbeats before anything else, and before the tick that judges silence. */
		serve(s, events, n, true);
		serve(s, events, n, false);
		tasks_reap(s);
		s->now_us = clock_us();
		for (size_t i = 0; i < ARRAY_LEN(timers); i++)
			if (timers[i].next_us(s) <= s->now_us)
				timers[i].tick(s);
		passage_tick(s);
		notify_tick(s);
	}
}
