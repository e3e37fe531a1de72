/* SPDX-License-Identifier: Apache-2.0 */
/* The brain's side of a task's input and output. The shepherd owns the pipes; the brain has
 * duplicates and may die at any moment without losing or doubling a byte.
 *
 * Output: bytes stay in the pipe until the far receiver has them.
 *
 *        consumed            sent               available
 *   ........|------ unacked ---|------- new --------|        offsets since the task's start
 *
 *   stream_out_read() tees the head of the pipe and skips what was sent already. stream_out_acked()
 *   notes how far the receiver is and says whether a Consume request is to be sent now. While one
 *   is under way the head of the pipe is unknown and reading pauses; stream_out_consumed() takes
 * the shepherd's answer. A new brain starts with sent = consumed, and the receiver drops what it
 * has.
 *
 * Input: stream_in_write() fills the staging pipe; then Pump{upto = written} makes the shepherd
 * move it, and stream_in_pumped() takes the answer. A new brain starts with written = pumped.
 *
 * Pipes stay readable while unacked bytes are in them, so they are watched edge-triggered, through
 * an epoll descriptor that any event loop can watch in turn (stream_watch.fd). */
#pragma once
#include "base/err.h"

/* One per brain: a pipe that tee() fills. */
struct stream_scratch {
	int pipe[2];
	int null_fd;
};

struct stream_out {
	int fd;            /* read end, ours; -1 = none */
	uint64_t consumed; /* has left the pipe */
	uint64_t sent;     /* was given to the caller by stream_out_read() */
	uint64_t acked;    /* has arrived at the receiver */
	bool consuming;    /* a Consume is under way */
	bool finished;     /* no writer is left: `sent` is the total once nothing more is read */
	bool ended;        /* finished, and everything consumed */
};

struct stream_in {
	int fd;           /* write end of the staging pipe, ours; -1 = none */
	uint64_t written; /* into the staging pipe */
	uint64_t pumped;  /* has reached the task */
	bool closed;      /* the task takes no more */
};

int stream_scratch_init(struct stream_scratch *s, struct err *err);
void stream_scratch_deinit(struct stream_scratch *s);

/* Takes over `fd`. `consumed` as the shepherd says (0 for a new task). */
void stream_out_init(struct stream_out *s, int fd, uint64_t consumed);
void stream_out_deinit(struct stream_out *s);
/* Copy new bytes, at most `size`, to `buf`: they are [s->sent - *ret_len, s->sent) afterwards.
 * Returns 1 with *ret_len > 0; 0 when nothing can be read now: wait for the watch or for the answer
 * to Consume, or, if s->finished, never again. Errors: those of tee(2) and splice(2). */
int stream_out_read(struct stream_out *s, struct stream_scratch *scratch, void *buf, size_t size,
		    size_t *ret_len, struct err *err);
/* The receiver has everything up to `upto`. Returns true when the caller must now send
 * Consume{upto = s->acked} (it is then under way); also true when the stream is finished and the
 * shepherd has not said `ended` yet. Call with upto = s->acked just to ask again. */
bool stream_out_acked(struct stream_out *s, uint64_t upto);
/* The shepherd's answer. The caller then reads again and asks stream_out_acked() again; `finished`
 * may have become true by it. */
void stream_out_consumed(struct stream_out *s, uint64_t consumed, bool ended);

void stream_in_init(struct stream_in *s, int fd, uint64_t pumped);
void stream_in_deinit(struct stream_in *s);
/* Returns bytes written (0: the pipe is full, go on after the next Pumped). Errors: -EPIPE when the
 * task takes no more. */
ssize_t stream_in_write(struct stream_in *s, const void *buf, size_t len, struct err *err);
/* The shepherd's answer to Pump. */
void stream_in_pumped(struct stream_in *s, uint64_t pumped, bool closed);

/* Edge-triggered watch over many streams. */
struct stream_watch {
	int fd; /* readable when stream_watch_next() has something */
};
int stream_watch_init(struct stream_watch *w, struct err *err);
void stream_watch_deinit(struct stream_watch *w);
/* `owner` comes back from stream_watch_next(). The descriptor leaves the watch by
 * stream_watch_drop() only (the shepherd holds the same pipe open, so closing is not enough). */
int stream_watch_add(struct stream_watch *w, int fd, void *owner, struct err *err);
void stream_watch_drop(struct stream_watch *w, int fd);
/* Owners that have news, at most `max`; returns their number. */
unsigned stream_watch_next(struct stream_watch *w, void **ret_owners, unsigned max);
