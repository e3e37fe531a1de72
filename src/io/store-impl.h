/* SPDX-License-Identifier: Apache-2.0 */
/* What the store's thread and its loop side share: the queue down, the answers up. */
#pragma once
#include "io/store-db.h"

#include <pthread.h>

enum job_kind {
	JOB_WRITE,
	JOB_PIECE,
	JOB_READ,
};

struct job {
	struct job *next;
	enum job_kind kind;
	uint64_t number; /* of a write */
	struct store_write write;
	struct store_snapshot snapshot; /* of a piece or a read */
	bool first, last;
	uint64_t offset;
	struct span bytes; /* of a piece */
	uint32_t len;      /* of a read */
	store_read_done *done;
	void *ctx;
	uint8_t memory[]; /* what the pointers above point to */
};

enum answer_kind {
	ANSWER_SAVED,
	ANSWER_RECEIVED,
	ANSWER_READ,
};

struct answer {
	struct answer *next;
	enum answer_kind kind;
	uint64_t index;
	int r;
	struct str bytes;
	struct err err;
	store_read_done *done;
	void *ctx;
};

/* An own snapshot that is being written. */
struct saving {
	struct store_snapshot snapshot;
	struct str bytes, meta;
	int64_t row;
	uint64_t offset;
};

struct store {
	struct store_db *db; /* the thread's */
	struct store_events events;
	uv_loop_t *loop;
	uv_async_t wake;
	pthread_t thread;
	pthread_mutex_t lock; /* for all down to the next comment */
	pthread_cond_t work;
	struct job *first_job, **job_end;
	unsigned waiting;
	bool stop;
	struct saving *saving; /* handed over by the loop; the thread takes it out */
	bool compact_wanted;
	uint64_t compact_first;
	uint64_t keep[STORE_KEEP_MAX];
	unsigned keep_count;
	uint64_t written;
	struct answer *first_answer, **answer_end;
	int trouble;
	struct err trouble_err;
	struct store_stats stats;
	/* the thread's alone */
	struct saving *current;
	bool compacting;
	int64_t incoming_row;
	uint64_t incoming_next;
	uint64_t background_ms;
	/* the loop's alone */
	uint64_t told_written;
	int told_trouble;
	bool closing;
};

/* The thread's function; `ctx` is the store. */
void *store_run(void *ctx);
void store_answer_free(struct answer *a);
struct saving *store_saving_free(struct saving *v); /* takes NULL, returns NULL */
