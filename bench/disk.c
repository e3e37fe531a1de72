/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SYNCS = 50 };

uint64_t bench_now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

int bench_compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

uint64_t bench_median(uint64_t *all, size_t count)
{
	qsort(all, count, sizeof(*all), bench_compare);
	return all[count / 2];
}

uint64_t disk_sync_us(bool grow, unsigned who)
{
	static char block[1 << 20];
	uint64_t took[SYNCS];
	char name[32];
	(void)snprintf(name, sizeof(name), "sync-%u.tmp", who);
	int fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || (!grow && write(fd, block, SYNCS * 4096) != SYNCS * 4096) || fsync(fd) < 0)
		abort();
	for (unsigned i = 0; i < SYNCS; i++) {
		uint64_t from = bench_now_us();
		if (pwrite(fd, block, 4096, (off_t)i * 4096) != 4096 || fdatasync(fd) < 0)
			abort();
		took[i] = bench_now_us() - from;
	}
	close(fd);
	unlink(name);
	return bench_median(took, SYNCS);
}

uint64_t disk_three_sync_us(void)
{
	int fds[2];
	uint64_t p50[3];
	pid_t pids[3];
	if (pipe2(fds, O_CLOEXEC) < 0)
		abort();
	for (unsigned i = 0; i < 3; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			uint64_t us = disk_sync_us(false, i + 1);
			_exit(write(fds[1], &us, sizeof(us)) != sizeof(us));
		}
	}
	for (unsigned i = 0; i < 3; i++)
		if (pids[i] < 0 || read(fds[0], &p50[i], sizeof(p50[i])) != sizeof(p50[i]) ||
		    waitpid(pids[i], NULL, 0) < 0)
			abort();
	close(fds[0]);
	close(fds[1]);
	return bench_median(p50, 3);
}
