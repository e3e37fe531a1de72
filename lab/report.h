/* SPDX-License-Identifier: Apache-2.0 */
/* How a process that is being set up talks to the command that makes it: over a socket pair that
 * its exec closes. "born" (the kernel adds the pid, in the numbers of the reader's pid namespace),
 * then it waits for "go"; "error" with the message; closed without error: done. When the command
 * dies, the process reads the end instead of "go", and ends too. */
#pragma once
#include "base/err.h"

#include <sys/types.h>

enum { REPORT_END = 1, REPORT_BORN = 2 };

/* pair[0] for the command, pair[1] for the process; both close on exec. */
int report_pair(int pair[2], struct err *err);

int report_born(int sock);
/* Waits for `count` goes; false when the other side is gone. */
bool report_wait(int sock, unsigned count);
void report_error(int sock, int code, const struct err *err);

int report_go(int sock, struct err *err);
/* One message: REPORT_BORN (*ret_pid is set), REPORT_END, or the error that was reported. */
int report_read(int sock, pid_t *ret_pid, struct err *err);
/* Waits for the end; 0, or the error that was reported, or -ETIMEDOUT. */
int report_result(int sock, int timeout_ms, const char *who, struct err *err);
