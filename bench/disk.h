/* SPDX-License-Identifier: Apache-2.0 */
/* Time and one sync of the disk below the present folder: what commands are compared with. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Monotonic. */
uint64_t bench_now_us(void);
int bench_compare(const void *a, const void *b); /* of two uint64_t, for qsort() */
/* Sorts `all`. */
uint64_t bench_median(uint64_t *all, size_t count);

/* p50 of 4 KiB and fdatasync, in microseconds: at the end of a growing file, or over blocks that
 * are there (no file system journal needed). `who` keeps the files of several callers apart. */
uint64_t disk_sync_us(bool grow, unsigned who);
/* Overwriting, by three processes at once: what three members on one disk cannot beat. */
uint64_t disk_three_sync_us(void);
