/* SPDX-License-Identifier: Apache-2.0 */
/* Reliable, ordered messages between the nodes of one job, over a carrier that may lose, double
 * or delay pieces (the brains, which may crash). Pure: time is a parameter, pieces go out by hook.
 *
 * A message is cut into pieces of EXCHANGE_PIECE_MAX bytes; pieces of a link are numbered from 1,
 * kept until acknowledged, and sent again after a while or when the carrier has come back. The
 * receiver takes pieces in order only, each once (go-back-N: the carrier keeps order, so gaps
 * mean a break). Acknowledgements ride on pieces or go alone with exchange_flush().
 *
 * Invariant per link: acked <= sent; the queue holds exactly the pieces acked+1 … sent. */
#pragma once
#include "base/err.h"
#include "base/str.h"

enum {
	EXCHANGE_PIECE_MAX = 256 * 1024,
	EXCHANGE_WINDOW = 64, /* pieces of a link under way at once */
	EXCHANGE_MESSAGE_MAX = 512 * 1024 * 1024,
	EXCHANGE_AGAIN_MS = 1000, /* first repetition; doubles up to EXCHANGE_AGAIN_MOST_MS */
	EXCHANGE_AGAIN_MOST_MS = 8000,
};

struct exchange_piece {
	uint32_t to;
	uint64_t sequence; /* 0: only an acknowledgement */
	uint64_t acked;
	uint32_t kind;
	bool more;
	struct span data; /* borrowed */
};

struct exchange_hooks {
	void (*send)(void *ctx, const struct exchange_piece *piece);
	/* A whole message; `bytes` borrowed for the call. */
	void (*deliver)(void *ctx, uint32_t from, uint32_t kind, struct span bytes);
	void *ctx;
};

struct exchange;

struct exchange *exchange_new(uint32_t self, uint32_t count, const struct exchange_hooks *hooks);
struct exchange *exchange_free(struct exchange *x); /* returns NULL */

/* Queue a message for node `to` (not `self`) and send what the window allows. */
void exchange_send(struct exchange *x, uint32_t to, uint32_t kind, struct span bytes,
		   uint64_t now_ms);
/* A piece came from node `from`. Errors: -EPROTO (no such node, too large): drop the job. */
int exchange_receive(struct exchange *x, uint32_t from, const struct exchange_piece *piece,
		     uint64_t now_ms, struct err *err);
/* The carrier is back: all that is under way goes out again. */
void exchange_again(struct exchange *x, uint64_t now_ms);
/* Send acknowledgements that found no piece to ride on. */
void exchange_flush(struct exchange *x);
/* Repeat what is due; returns the time of the next repetition, UINT64_MAX when nothing waits. */
uint64_t exchange_tick(struct exchange *x, uint64_t now_ms);
/* Pieces that nobody has acknowledged. */
size_t exchange_pending(const struct exchange *x);
