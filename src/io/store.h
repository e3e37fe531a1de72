/* SPDX-License-Identifier: Apache-2.0 */
/* The durable log of one controller: entries, term and vote, snapshots. SQLite in WAL mode with a
 * sync for each commit, on a thread of its own, so that the loop never waits for a disk.
 *
 *   store_write() ... store_write() --thread: one transaction, one sync--> written(number)
 *
 * Whatever waits when the thread becomes free goes into one transaction. Order: writes become
 * durable in the order of the calls, each whole. Every row carries a checksum keyed by the cluster;
 * what does not match is never handed out. The entries on the disk are always without gaps: an
 * append at an index that is there replaces it and all behind; one beyond a gap (the snapshot
 * covers the gap) drops all before it.
 *
 * Trouble: a write that fails (disk full, I/O error) is told by `trouble` and tried again until it
 * works; nothing behind it overtakes it, nothing is acknowledged, nothing is lost. A damaged store
 * is told by `trouble` with -EUCLEAN and never touched again.
 *
 * Loss of acknowledged writes behind our back (a rotten frame makes SQLite drop all later ones, an
 * old copy put back) is detected at the next open: a small file beside holds the serial number of
 * the last acknowledged write. Source of the choice and its figures: docs/agreement-store.md. */
#pragma once
#include "base/err.h"
#include "base/id.h"
#include "base/str.h"

#include <uv.h>

enum {
	STORE_META_MAX = 4096,      /* bytes of a snapshot's meta */
	STORE_ENTRY_MAX = 32 << 20, /* bytes of one entry */
	STORE_KEEP_MAX = 8,         /* snapshots kept at the same time */
	STORE_READ_MAX = 8 << 20,   /* bytes of one store_read() */
};
#define STORE_SNAPSHOT_MAX (UINT64_C(1) << 30) /* bytes */

/* Whose log it is. */
struct store_identity {
	struct id cluster;
	uint32_t node;
};

struct store_entry {
	uint64_t index, term;
	unsigned type;
	uint32_t len;
	const uint8_t *data;
};

struct store_write {
	bool has_state;
	uint64_t term, vote;
	uint64_t truncate_from; /* drop entries with index >= this first; 0: none */
	const struct store_entry *entries;
	size_t count;
};

struct store_snapshot {
	uint64_t index, term; /* index 0: none */
	uint64_t size_bytes;
	struct span meta; /* the owner's, opaque */
};

/* What is on the disk; everything in it belongs to it. */
struct store_content {
	uint64_t term, vote;
	struct store_snapshot snapshot; /* the latest complete one */
	struct str bytes;               /* of that snapshot */
	struct store_entry *entries;
	size_t count;
	struct str meta; /* what snapshot.meta points to */
};
void store_content_free(struct store_content *c);

/* All from the loop, never from inside a call of this interface. */
struct store_events {
	void *ctx;
	/* All writes up to `number` are durable. */
	void (*written)(void *ctx, uint64_t number);
	/* An own snapshot is durable. */
	void (*saved)(void *ctx, uint64_t index);
	/* A snapshot that came in pieces is durable (r 0: `bytes` is all of it, read back) or was
	 * thrown away (r < 0). Entries that do not follow it are gone. */
	void (*received)(void *ctx, uint64_t index, int r, struct span bytes, const char *why);
	/* code < 0: writes fail and are tried again (-EUCLEAN: damaged, no more tries); 0: well
	 * again. */
	void (*trouble)(void *ctx, int code, const char *text);
};

struct store;

/* Make a store with this content (`c` may be NULL: empty). All or nothing.
 * Errors: -EEXIST there is one, others of the file system. */
int store_create(const char *dir, const struct store_identity *who, const struct store_content *c,
		 struct err *err);
bool store_exists(const char *dir);

/* Open, check and read everything; then start the thread. The caller owns *ret (store_close()) and
 * *ret_content (store_content_free()). `loop` and the events' ctx are borrowed.
 * Errors: -ENOENT there is none; -EBUSY another process has it open; -EXDEV it belongs to another
 * cluster or node; -EUCLEAN damaged; -EPROTONOSUPPORT made by a newer version. */
int store_open(struct store **ret, uv_loop_t *loop, const char *dir,
	       const struct store_identity *who, const struct store_events *events,
	       struct store_content *ret_content, struct err *err);

/* Stop: what waits is made durable (unless writes fail just now), the thread ends, no event comes
 * any more. Blocks for that. The memory is given back by the loop. Takes NULL, returns NULL. */
struct store *store_close(struct store *s);

/* `number` grows from call to call; everything is copied. */
void store_write(struct store *s, uint64_t number, const struct store_write *w);
/* An own snapshot, written in the background in pieces; takes the bytes over. */
void store_snapshot_save(struct store *s, const struct store_snapshot *meta, struct str *bytes);
/* A piece of a snapshot that comes in; `first` forgets another unfinished one. Ordered with the
 * writes; copied. Pieces must follow each other without gaps. */
void store_snapshot_piece(struct store *s, const struct store_snapshot *meta, bool first, bool last,
			  uint64_t offset, struct span bytes);
/* Read from an own, complete snapshot; `done` comes from the loop exactly once, unless the store is
 * closed before: r 0 and `len` bytes, or r < 0. */
typedef void store_read_done(void *ctx, int r, struct span bytes);
void store_read(struct store *s, uint64_t index, uint64_t offset, uint32_t len,
		store_read_done *done, void *ctx);
/* Entries below `first`, and all complete snapshots older than the newest in `keep` that are not in
 * `keep` themselves, may go; done in the background. */
void store_compact(struct store *s, uint64_t first, const uint64_t *keep, unsigned keep_count);

/* Figures for `copia status` and the benches; any time. */
struct store_stats {
	uint64_t commits, writes, entries; /* since open: writes per commit shows grouping */
	uint64_t commit_us;                /* of the last commit */
	uint64_t checkpoints;
	uint64_t disk_bytes; /* of the files, at the last checkpoint */
	unsigned waiting;    /* jobs not begun */
};
void store_stats(struct store *s, struct store_stats *ret);
