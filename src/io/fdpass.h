/* SPDX-License-Identifier: Apache-2.0 */
/* Frames with descriptors over a unix stream socket (schema/shepherd.proto tells the format).
 *
 * Never blocks. What the socket does not take at once waits in a queue, with duplicates of its
 * descriptors; the user watches fdlink_fd() for reading, and for writing while fdlink_queued() is
 * not 0. Order is kept. Every received descriptor is close-on-exec. */
#pragma once
#include "base/err.h"

enum {
	FDLINK_FRAME_MAX = 4 << 20, /* bytes */
	FDLINK_FDS_MAX = 250,       /* of one frame; the kernel's own limit is 253 */
};

struct fdlink;

/* A received frame. `at` is borrowed from the link until the next fdlink_receive(); descriptors
 * that the user keeps are set to -1 by it, the others are closed by fdlink_receive() or _free(). */
struct fdframe {
	const uint8_t *at;
	size_t len;
	int *fds;
	unsigned fd_count;
};

/* Takes over `fd` (a connected AF_UNIX stream socket) and makes it non-blocking. */
struct fdlink *fdlink_new(int fd);
/* Closes; returns NULL. Takes NULL. */
struct fdlink *fdlink_free(struct fdlink *l);
int fdlink_fd(const struct fdlink *l);

/* Send or queue one frame; the descriptors stay the caller's.
 * Errors: -EMSGSIZE, -EMFILE, -EPIPE and -ECONNRESET when the other side is gone. */
int fdlink_send(struct fdlink *l, const void *at, size_t len, const int *fds, unsigned fd_count,
		struct err *err);
/* Bytes still waiting to be sent. */
size_t fdlink_queued(const struct fdlink *l);
/* True when waiting frames cannot go because too many descriptors are in flight: call
 * fdlink_flush() again after some milliseconds instead of waiting for the socket. */
bool fdlink_stuck(const struct fdlink *l);
/* Send what waits. Errors: as fdlink_send(). */
int fdlink_flush(struct fdlink *l, struct err *err);

/* Next frame: 1 and *ret, 0 when none is complete yet.
 * Errors: -EPIPE the other side closed, -EBADMSG what came is not of this format. */
int fdlink_receive(struct fdlink *l, struct fdframe *ret, struct err *err);

/* Close what is open and set it to -1. For _cleanup_(close_p) on an int. */
void close_p(int *fd);
