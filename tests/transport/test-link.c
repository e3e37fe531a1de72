/* SPDX-License-Identifier: Apache-2.0 */
/* A link that dies in silence, in a network of this test's own. */
#include "mesh.h"

#include <errno.h>
#include <net/if.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
/* cmocka wants the four above before itself. */
#include <cmocka.h>

static void set_link(bool up)
{
	struct ifreq r = { .ifr_name = "lo", .ifr_flags = up ? IFF_UP : 0 };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &r), 0);
	(void)close(fd);
}

/* Goal: when the link swallows everything, a session is given up after the time that was set, with
 * something to send and without; when the link is back, so is the session. */
static void silent_link_is_noticed(void **state)
{
	enum { DEAD_MS = 3000 };
	struct mesh m;
	mesh_init(&m);
	m.settings.dead_ms = DEAD_MS;
	mesh_pair(&m, 1, 2);
	for (unsigned round = 1; round <= 2; round++) {
		uint64_t start = uv_hrtime();
		set_link(false);
		if (round == 1)
			assert_int_equal(peers_send(m.nodes[1].peers, 2, CHANNEL_AGREE, "x", 1), 0);
		mesh_wait(&m, m.nodes[1].down_count >= round && m.nodes[2].down_count >= round);
		uint64_t took_ms = (uv_hrtime() - start) / 1000000;
		(void)printf("%s: given up after %llu ms\n", round == 1 ? "busy" : "idle",
			     (unsigned long long)took_ms);
		assert_in_range(took_ms, DEAD_MS / 3, DEAD_MS * 3);
		set_link(true);
		mesh_wait(&m, peers_up(m.nodes[1].peers, 2) && peers_up(m.nodes[2].peers, 1));
		uint64_t before = m.nodes[2].received[CHANNEL_MEMBERS].count;
		assert_int_equal(peers_send(m.nodes[1].peers, 2, CHANNEL_MEMBERS, "y", 1), 0);
		mesh_wait(&m, m.nodes[2].received[CHANNEL_MEMBERS].count == before + 1);
		m.nodes[1].down_count = m.nodes[2].down_count = round;
	}
	mesh_free(&m);
}

int main(void)
{
	const struct CMUnitTest tests[] = { cmocka_unit_test(silent_link_is_noticed) };
	if (unshare(CLONE_NEWNET) < 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0) {
		(void)printf("skipped: no network namespace: %s\n", strerror(errno));
		return 77;
	}
	set_link(true);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
