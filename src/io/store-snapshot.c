/* SPDX-License-Identifier: Apache-2.0 */
/* Snapshots in the store, in pieces, and the compaction of what they make superfluous. */
#include "io/store-db.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

enum {
	COMPACT_ENTRIES = 512, /* deleted in one transaction, so that commits wait but a little */
};

/* The row in the first column of a bound query; 0: none. */
static int find_row(struct store_db *db, enum store_statement which, int64_t *ret, struct err *err)
{
	sqlite3_stmt *st = db->st[which];
	int rc = sqlite3_step(st), r = 0;
	*ret = rc == SQLITE_ROW ? sqlite3_column_int64(st, 0) : 0;
	if (rc != SQLITE_ROW && rc != SQLITE_DONE)
		r = store_db_error(db, "read store", err);
	sqlite3_reset(st);
	return r;
}

int store_db_snapshot_drop(struct store_db *db, int64_t row, struct err *err)
{
	sqlite3_bind_int64(db->st[ST_PIECE_DROP], 1, row);
	int r = store_db_run(db, ST_PIECE_DROP, "write to store", err);
	if (r < 0)
		return r;
	sqlite3_bind_int64(db->st[ST_SNAPSHOT_DROP], 1, row);
	return store_db_run(db, ST_SNAPSHOT_DROP, "write to store", err);
}

/* Drop all rows that a bound query finds. */
static int drop_found(struct store_db *db, enum store_statement which, struct err *err)
{
	int64_t row;
	int r;
	while ((r = find_row(db, which, &row, err)) == 0 && row)
		if ((r = store_db_snapshot_drop(db, row, err)) < 0)
			break;
	return r;
}

int store_db_snapshot_begin(struct store_db *db, const struct store_snapshot *meta, bool incoming,
			    int64_t *ret_row, struct err *err)
{
	assert(meta->index && meta->meta.len <= STORE_META_MAX);
	sqlite3_bind_int(db->st[ST_SNAPSHOT_INCOMPLETE], 1, incoming);
	int r = drop_found(db, ST_SNAPSHOT_INCOMPLETE, err);
	if (r < 0)
		return r;
	sqlite3_stmt *st = db->st[ST_SNAPSHOT_NEW];
	sqlite3_bind_int64(st, 1, (int64_t)meta->index);
	sqlite3_bind_int64(st, 2, (int64_t)meta->term);
	sqlite3_bind_int64(st, 3, (int64_t)meta->size_bytes);
	sqlite3_bind_blob(st, 4, meta->meta.at, (int)meta->meta.len, SQLITE_STATIC);
	sqlite3_bind_int(st, 5, incoming);
	r = store_db_run(db, ST_SNAPSHOT_NEW, "write to store", err);
	*ret_row = sqlite3_last_insert_rowid(db->sql);
	return r;
}

static uint64_t piece_sum(const struct store_db *db, int64_t row, uint64_t at, struct span bytes)
{
	return store_db_sum(db, (uint64_t)row, at, 0, 1, bytes);
}

int store_db_snapshot_piece(struct store_db *db, int64_t row, uint64_t offset, struct span bytes,
			    struct err *err)
{
	sqlite3_stmt *st = db->st[ST_PIECE_NEW];
	if (!bytes.len)
		return 0;
	sqlite3_bind_int64(st, 1, row);
	sqlite3_bind_int64(st, 2, (int64_t)offset);
	sqlite3_bind_int64(st, 3, (int64_t)piece_sum(db, row, offset, bytes));
	sqlite3_bind_blob64(st, 4, bytes.at, bytes.len, SQLITE_STATIC);
	return store_db_run(db, ST_PIECE_NEW, "write to store", err);
}

/* Raft §5.3 and §7: what is behind a snapshot stays only when the entry at its end is the one it
 * ends with; then the log goes on, else it begins anew there. */
static int cut_log(struct store_db *db, const struct store_snapshot *meta, struct err *err)
{
	if (db->last < db->first || db->last < meta->index) {
		sqlite3_bind_int64(db->st[ST_TRUNCATE], 1, 0);
		int r = store_db_run(db, ST_TRUNCATE, "write to store", err);
		db->first = meta->index + 1;
		db->last = meta->index;
		return r;
	}
	if (meta->index < db->first)
		return 0;
	int64_t term;
	sqlite3_bind_int64(db->st[ST_ENTRY_TERM], 1, (int64_t)meta->index);
	int r = find_row(db, ST_ENTRY_TERM, &term, err);
	if (r < 0)
		return r;
	bool fits = (uint64_t)term == meta->term;
	enum store_statement what = fits ? ST_DROP_BEFORE : ST_TRUNCATE;
	sqlite3_bind_int64(db->st[what], 1, fits ? (int64_t)meta->index + 1 : 0);
	r = store_db_run(db, what, "write to store", err);
	db->first = meta->index + 1;
	if (!fits)
		db->last = meta->index;
	return r;
}

int store_db_snapshot_end(struct store_db *db, int64_t row, const struct store_snapshot *meta,
			  bool incoming, struct err *err)
{
	int64_t size;
	sqlite3_bind_int64(db->st[ST_PIECE_LEFT], 1, row);
	int r = find_row(db, ST_PIECE_LEFT, &size, err);
	if (r == 0 && (uint64_t)size != meta->size_bytes)
		return err_set(err, -EBADMSG,
			       "snapshot at %" PRIu64 ": %" PRId64 " of %" PRIu64 " bytes came",
			       meta->index, size, meta->size_bytes);
	sqlite3_bind_int64(db->st[ST_SNAPSHOT_SAME], 1, (int64_t)meta->index);
	sqlite3_bind_int64(db->st[ST_SNAPSHOT_SAME], 2, row);
	if (r == 0)
		r = drop_found(db, ST_SNAPSHOT_SAME, err);
	if (r < 0)
		return r;
	sqlite3_stmt *st = db->st[ST_SNAPSHOT_END];
	sqlite3_bind_int64(
	    st, 1,
	    (int64_t)store_db_sum(db, meta->index, meta->term, meta->size_bytes, 0, meta->meta));
	sqlite3_bind_int64(st, 2, row);
	r = store_db_run(db, ST_SNAPSHOT_END, "write to store", err);
	if (r == 0 && incoming)
		r = cut_log(db, meta, err);
	if (r == 0) {
		/* The serial number makes the loss of this very change visible. */
		struct store_write nothing = { 0 };
		r = store_db_write(db, &nothing, err);
	}
	return r;
}

int store_db_snapshot_read(struct store_db *db, uint64_t index, uint64_t offset, uint64_t len,
			   struct str *out, struct err *err)
{
	sqlite3_stmt *st = db->st[ST_SNAPSHOT_FIND];
	sqlite3_bind_int64(st, 1, (int64_t)index);
	int rc = sqlite3_step(st);
	int64_t row = rc == SQLITE_ROW ? sqlite3_column_int64(st, 0) : 0;
	uint64_t size = rc == SQLITE_ROW ? (uint64_t)sqlite3_column_int64(st, 1) : 0;
	sqlite3_reset(st);
	if (rc != SQLITE_ROW && rc != SQLITE_DONE)
		return store_db_error(db, "read store", err);
	if (!row || offset > size || len > size - offset || size > STORE_SNAPSHOT_MAX)
		return err_set(err, -ENOENT, "store %s has no such part of a snapshot at %" PRIu64,
			       db->path, index);
	st = db->st[ST_PIECE_READ];
	sqlite3_bind_int64(st, 1, row);
	sqlite3_bind_int64(st, 2, (int64_t)offset);
	int r = 0;
	while (r == 0 && len && (rc = sqlite3_step(st)) == SQLITE_ROW) {
		uint64_t at = (uint64_t)sqlite3_column_int64(st, 0);
		uint64_t sum = (uint64_t)sqlite3_column_int64(st, 1);
		struct span piece = { sqlite3_column_blob(st, 2),
				      (size_t)sqlite3_column_bytes(st, 2) };
		if (sum != piece_sum(db, row, at, piece) || at > offset ||
		    offset - at >= piece.len) {
			r = -EUCLEAN;
			break;
		}
		uint64_t skip = offset - at, take = MIN(len, piece.len - skip);
		str_add(out, piece.at + skip, take);
		offset += take;
		len -= take;
	}
	if (r == 0 && len)
		r = rc == SQLITE_DONE ? -EUCLEAN : store_db_error(db, "read store", err);
	sqlite3_reset(st);
	if (r == -EUCLEAN)
		err_set(err, r, "store %s is damaged: snapshot at %" PRIu64, db->path, index);
	return r;
}

/* ---- compaction ---- */

/* One that is newer than all that were named became complete after they were: it stays. */
static bool is_kept(uint64_t index, const uint64_t *keep, unsigned keep_count)
{
	uint64_t newest = 0;
	for (unsigned i = 0; i < keep_count; i++) {
		if (keep[i] == index)
			return true;
		newest = MAX(newest, keep[i]);
	}
	return index > newest;
}

/* A complete snapshot that nobody wants; 0: none. */
static int find_unwanted(struct store_db *db, const uint64_t *keep, unsigned keep_count,
			 int64_t *ret, struct err *err)
{
	sqlite3_stmt *st = db->st[ST_SNAPSHOT_COMPLETE];
	int rc;
	*ret = 0;
	while ((rc = sqlite3_step(st)) == SQLITE_ROW)
		if (!is_kept((uint64_t)sqlite3_column_int64(st, 1), keep, keep_count)) {
			*ret = sqlite3_column_int64(st, 0);
			break;
		}
	int r = rc == SQLITE_ROW || rc == SQLITE_DONE ? 0 : store_db_error(db, "read store", err);
	sqlite3_reset(st);
	return r;
}

int store_db_compact(struct store_db *db, uint64_t first, const uint64_t *keep, unsigned keep_count,
		     struct err *err)
{
	struct store_write nothing = { 0 };
	int r = store_db_write(db, &nothing, err);
	if (r < 0)
		return r;
	first = MIN(first, db->last + 1);
	if (first > db->first) {
		uint64_t to = MIN(first, db->first + COMPACT_ENTRIES);
		sqlite3_bind_int64(db->st[ST_DROP_BEFORE], 1, (int64_t)to);
		r = store_db_run(db, ST_DROP_BEFORE, "compact store", err);
		if (r < 0)
			return r;
		db->first = to;
		if (to < first)
			return 1;
	}
	int64_t row;
	r = find_unwanted(db, keep, keep_count, &row, err);
	if (r < 0 || !row)
		return r;
	r = store_db_snapshot_drop(db, row, err);
	return r < 0 ? r : 1;
}
