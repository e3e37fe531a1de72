/* SPDX-License-Identifier: Apache-2.0 */
/* The SQLite side of the store: tables, checksums, transactions. Used by store.c from one thread
 * at a time; blocks. */
#pragma once
#include "io/store.h"

#include <sqlite3.h>

enum store_statement {
	ST_BEGIN,
	ST_COMMIT,
	ST_ROLLBACK,
	ST_STATE,
	ST_SERIAL,
	ST_TRUNCATE,
	ST_APPEND,
	ST_DROP_BEFORE,
	ST_ENTRY_TERM,
	ST_SNAPSHOT_NEW,
	ST_SNAPSHOT_INCOMPLETE,
	ST_SNAPSHOT_SAME,
	ST_SNAPSHOT_END,
	ST_SNAPSHOT_FIND,
	ST_SNAPSHOT_COMPLETE,
	ST_SNAPSHOT_DROP,
	ST_PIECE_DROP,
	ST_PIECE_LEFT,
	ST_PIECE_NEW,
	ST_PIECE_READ,
	ST_COUNT,
};

struct store_db {
	sqlite3 *sql;
	sqlite3_stmt *st[ST_COUNT];
	struct store_identity who;
	char *path; /* of the database */
	int mark_fd;
	uint64_t serial;      /* of the last transaction that was tried */
	bool serial_stored;   /* the open one contains its serial number */
	uint64_t first, last; /* entries on the disk; first == last + 1: none (both kept in step
				 with the open transaction) */
	uint64_t first_saved, last_saved; /* the same at its begin */
	unsigned wal_pages;
};

/* Checksum of `bytes` together with up to four numbers, keyed by the cluster. */
uint64_t store_db_sum(const struct store_db *db, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
		      struct span bytes);
uint64_t store_db_entry_sum(const struct store_db *db, const struct store_entry *e,
			    uint64_t serial);
/* -EUCLEAN, with what to do about it. */
int store_db_damaged(const struct store_db *db, const char *what, uint64_t index, struct err *err);
/* Note the last committed transaction; behind the acknowledgement, so that nobody waits for it. */
void store_db_mark(struct store_db *db);
/* Is everything there that was acknowledged? Errors: -EUCLEAN. */
int store_db_mark_check(struct store_db *db, struct err *err);
/* The errno of SQLite's last failure; the text goes to `err` behind `what`. */
int store_db_error(struct store_db *db, const char *what, struct err *err);
/* Step a bound statement that gives no rows and reset it. */
int store_db_run(struct store_db *db, enum store_statement which, const char *what,
		 struct err *err);

/* Open, or begin to make one, which is not there before store_db_publish(). Errors: as
 * store_open(), store_create(). */
int store_db_open(struct store_db **ret, const char *dir, const struct store_identity *who,
		  bool create, struct err *err);
/* Takes NULL, returns NULL. */
struct store_db *store_db_close(struct store_db *db);
/* A store that was made is complete: give it its name. Closes `db` in any case. */
int store_db_publish(struct store_db *db, const char *dir, struct err *err);
int store_db_read_all(struct store_db *db, struct store_content *ret, struct err *err);

/* A transaction: begin, any of the calls below, commit (durable) or roll back. After any error:
 * roll back, and the same calls may be tried again. */
int store_db_begin(struct store_db *db, struct err *err);
int store_db_commit(struct store_db *db, struct err *err);
void store_db_rollback(struct store_db *db);

int store_db_write(struct store_db *db, const struct store_write *w, struct err *err);
/* A new, incomplete snapshot: others that are incomplete and `incoming` as this one are dropped. */
int store_db_snapshot_begin(struct store_db *db, const struct store_snapshot *meta, bool incoming,
			    int64_t *ret_row, struct err *err);
int store_db_snapshot_piece(struct store_db *db, int64_t row, uint64_t offset, struct span bytes,
			    struct err *err);
/* Complete. `incoming`: entries that do not follow it are dropped. */
int store_db_snapshot_end(struct store_db *db, int64_t row, const struct store_snapshot *meta,
			  bool incoming, struct err *err);
int store_db_snapshot_drop(struct store_db *db, int64_t row, struct err *err);

/* Append `len` bytes at `offset` of the complete snapshot at `index` to *out.
 * Errors: -ENOENT no such snapshot or bytes; -EUCLEAN. */
int store_db_snapshot_read(struct store_db *db, uint64_t index, uint64_t offset, uint64_t len,
			   struct str *out, struct err *err);

/* Do a bounded part of a compaction. Returns 1 when there is more to do, 0 when done. */
int store_db_compact(struct store_db *db, uint64_t first, const uint64_t *keep, unsigned keep_count,
		     struct err *err);

/* Pages in the WAL that are not in the database yet. */
unsigned store_db_wal_pages(const struct store_db *db);
int store_db_checkpoint(struct store_db *db, struct err *err);
uint64_t store_db_disk_bytes(const struct store_db *db);
