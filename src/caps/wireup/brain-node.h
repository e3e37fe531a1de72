/* SPDX-License-Identifier: Apache-2.0 */
/* The loop of copia-wireup and its one link to the brain.
 *
 * The link is a descriptor given at start, or a socket that listens: then the brain may come back
 * after its own crash, and a new connection takes the place of the old one. Frames that must not
 * be lost are kept until the brain acknowledges their serial, and are sent again when it has said
 * hello; all others are dropped while nobody is connected (exchanges repeat by themselves). */
#pragma once
#include "base/err.h"
#include "base/str.h"
#include "schema/wireup.pb-c.h"

enum {
	BRAIN_FRAME_MAX = 1024 * 1024,
	BRAIN_FDS_MAX = 253,      /* SCM_MAX_FD of the kernel */
	BRAIN_KEPT_MAX = 65536,   /* frames that wait for their acknowledgement */
	BRAIN_OUT_MAX = 64 << 20, /* bytes that the brain does not read */
};

/* Something in the loop. The owner embeds it; `fd` is closed by the owner. */
struct source {
	int fd;
	uint32_t events; /* as of epoll */
	void (*ready)(struct source *s, uint32_t events);
};

struct brain_hooks {
	/* A frame and its descriptors; the hook owns the descriptors, `frame` is borrowed. */
	void (*frame)(void *ctx, const Copia__WireupFrame *frame, int *fds, size_t fd_count);
	/* The brain has said hello: tell it the state; what was kept follows by itself. */
	void (*hello)(void *ctx);
	/* Before each wait: the time when something is due, UINT64_MAX for never. */
	uint64_t (*turn)(void *ctx, uint64_t now_ms);
	void *ctx;
};

struct brain;

/* `fd` >= 0: a connected stream socket, owned from now on. `path` not NULL: listen there as well
 * (mode 0600). Without `path` the end of the link is the end of brain_run(). */
int brain_new(struct brain **ret, int fd, const char *path, const struct brain_hooks *hooks,
	      struct err *err);
struct brain *brain_free(struct brain *b); /* returns NULL */
/* Until brain_stop(). Returns 0, or the error that ended it. */
int brain_run(struct brain *b, struct err *err);
void brain_stop(struct brain *b);

/* Pack and send; `keep` gives it a serial and keeps it until acknowledged. */
void brain_send(struct brain *b, Copia__WireupFrame *frame, bool keep);

uint64_t brain_now_ms(void);
int source_add(struct brain *b, struct source *s, struct err *err);
void source_change(struct brain *b, struct source *s, uint32_t events);
void source_remove(struct brain *b, struct source *s);
