/* SPDX-License-Identifier: Apache-2.0 */
/* One value in a file of a cgroup folder. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/* Whole text, NUL-terminated and cut at `size`; its length, or a negative errno. */
ssize_t cgroup_file_read(int dir_fd, const char *name, char *buf, size_t size);
/* 0 or a negative errno. */
int cgroup_file_write(int dir_fd, const char *name, const char *text);
