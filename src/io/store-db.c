/* SPDX-License-Identifier: Apache-2.0 */
/* Errors, checksums, the mark, and the log in transactions. */
#include "io/store-db.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- errors, checksums ---- */

int store_db_error(struct store_db *db, const char *what, struct err *err)
{
	int rc = sqlite3_extended_errcode(db->sql), sys = sqlite3_system_errno(db->sql), code;
	switch (rc & 0xff) {
	case SQLITE_FULL:
		code = -ENOSPC;
		break;
	case SQLITE_BUSY:
	case SQLITE_LOCKED:
		return err_set(err, -EBUSY, "%s %s: another process uses it", what, db->path);
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
	case SQLITE_CONSTRAINT:
		code = -EUCLEAN;
		break;
	case SQLITE_READONLY:
		code = -EROFS;
		break;
	case SQLITE_NOMEM:
		code = -ENOMEM;
		break;
	case SQLITE_PERM:
	case SQLITE_AUTH:
		code = -EACCES;
		break;
	default: /* SQLITE_IOERR, SQLITE_CANTOPEN: the kernel said why */
		code = sys > 0 ? -sys : -EIO;
	}
	return err_set(err, code, "%s %s: %s%s%s", what, db->path, sqlite3_errmsg(db->sql),
		       sys > 0 ? ": " : "", sys > 0 ? strerror(sys) : "");
}

int store_db_damaged(const struct store_db *db, const char *what, uint64_t index, struct err *err)
{
	return err_set(err, -EUCLEAN,
		       "store %s is damaged: %s %" PRIu64
		       ": nothing of it is used. Take the disk out of service, remove this node "
		       "from the cluster and let it join again with an empty state folder",
		       db->path, what, index);
}

uint64_t store_db_sum(const struct store_db *db, uint64_t a, uint64_t b, uint64_t c, uint64_t d,
		      struct span bytes)
{
	static_assert(crypto_shorthash_KEYBYTES == ID_SIZE, "the cluster's id is the key");
	uint64_t all[6] = { a, b, c, d, bytes.len, 0 };
	unsigned char *key = (unsigned char *)(uintptr_t)db->who.cluster.at;
	crypto_shorthash((unsigned char *)&all[5], bytes.at, bytes.len, key);
	uint64_t sum;
	crypto_shorthash((unsigned char *)&sum, (const unsigned char *)all, sizeof(all), key);
	return sum;
}

uint64_t store_db_entry_sum(const struct store_db *db, const struct store_entry *e, uint64_t serial)
{
	return store_db_sum(db, e->index, e->term, e->type, serial,
			    (struct span){ e->data, e->len });
}

int store_db_run(struct store_db *db, enum store_statement which, const char *what, struct err *err)
{
	int rc = sqlite3_step(db->st[which]);
	int r = rc == SQLITE_DONE || rc == SQLITE_ROW ? 0 : store_db_error(db, what, err);
	sqlite3_reset(db->st[which]);
	return r;
}

/* ---- the mark: serial number of the last acknowledged transaction ---- */

struct mark {
	uint64_t serial, sum;
};

/* Not synced: after a power loss an older mark may be found, which only makes the check weaker. */
void store_db_mark(struct store_db *db)
{
	if (!db->serial_stored)
		return;
	db->serial_stored = false;
	struct mark m = { db->serial, store_db_sum(db, db->serial, 0, 0, 0, (struct span){ 0 }) };
	/* A failure weakens the check in the same way. */
	ssize_t wrote = pwrite(db->mark_fd, &m, sizeof(m), 0);
	(void)wrote;
}

int store_db_mark_check(struct store_db *db, struct err *err)
{
	struct mark m;
	if (pread(db->mark_fd, &m, sizeof(m), 0) != sizeof(m) ||
	    m.sum != store_db_sum(db, m.serial, 0, 0, 0, (struct span){ 0 }))
		return 0; /* none yet, or torn by a power loss */
	if (m.serial <= db->serial)
		return 0;
	return store_db_damaged(db, "acknowledged writes are missing behind number", db->serial,
				err);
}

/* ---- transactions ---- */

int store_db_begin(struct store_db *db, struct err *err)
{
	db->serial++;
	db->serial_stored = false;
	db->first_saved = db->first;
	db->last_saved = db->last;
	return store_db_run(db, ST_BEGIN, "write to store", err);
}

int store_db_commit(struct store_db *db, struct err *err)
{
	return store_db_run(db, ST_COMMIT, "write to store", err);
}

void store_db_rollback(struct store_db *db)
{
	/* Some failures have rolled back already; then this one does nothing. */
	if (!sqlite3_get_autocommit(db->sql))
		(void)store_db_run(db, ST_ROLLBACK, "roll back in store", NULL);
	db->first = db->first_saved;
	db->last = db->last_saved;
}

static int write_state(struct store_db *db, uint64_t term, uint64_t vote, struct err *err)
{
	sqlite3_stmt *st = db->st[ST_STATE];
	sqlite3_bind_int64(st, 1, (int64_t)db->serial);
	sqlite3_bind_int64(st, 2, (int64_t)term);
	sqlite3_bind_int64(st, 3, (int64_t)vote);
	sqlite3_bind_int64(st, 4, (int64_t)store_db_sum(db, term, vote, 0, 0, (struct span){ 0 }));
	return store_db_run(db, ST_STATE, "write to store", err);
}

static int write_serial(struct store_db *db, struct err *err)
{
	sqlite3_bind_int64(db->st[ST_SERIAL], 1, (int64_t)db->serial);
	db->serial_stored = true;
	return store_db_run(db, ST_SERIAL, "write to store", err);
}

static int truncate_log(struct store_db *db, uint64_t from, struct err *err)
{
	if (from > db->last)
		return 0;
	sqlite3_bind_int64(db->st[ST_TRUNCATE], 1, (int64_t)from);
	int r = store_db_run(db, ST_TRUNCATE, "write to store", err);
	if (r < 0)
		return r;
	db->first = MIN(db->first, from);
	db->last = from - 1;
	return 0;
}

static int append(struct store_db *db, const struct store_entry *e, struct err *err)
{
	sqlite3_stmt *st = db->st[ST_APPEND];
	if (e->len > STORE_ENTRY_MAX)
		return err_set(err, -EMSGSIZE, "store %s: entry of %" PRIu32 " bytes", db->path,
			       e->len);
	sqlite3_bind_int64(st, 1, (int64_t)e->index);
	sqlite3_bind_int64(st, 2, (int64_t)e->term);
	sqlite3_bind_int(st, 3, (int)e->type);
	sqlite3_bind_int64(st, 4, (int64_t)db->serial);
	sqlite3_bind_int64(st, 5, (int64_t)store_db_entry_sum(db, e, db->serial));
	sqlite3_bind_blob(st, 6, e->data, (int)e->len, SQLITE_STATIC);
	int r = store_db_run(db, ST_APPEND, "write to store", err);
	if (r == 0)
		db->last = e->index;
	db->serial_stored = true;
	return r;
}

/* Entries on the disk never have a gap, whatever is asked for. */
static int make_place(struct store_db *db, uint64_t index, struct err *err)
{
	if (index <= db->last)
		return truncate_log(db, index, err);
	if (index == db->last + 1)
		return 0;
	int r = truncate_log(db, db->first, err);
	db->first = index;
	db->last = index - 1;
	return r;
}

int store_db_write(struct store_db *db, const struct store_write *w, struct err *err)
{
	int r = w->has_state ? write_state(db, w->term, w->vote, err)
		: !w->count  ? write_serial(db, err)
			     : 0;
	if (r == 0 && w->truncate_from)
		r = truncate_log(db, w->truncate_from, err);
	for (size_t i = 0; r == 0 && i < w->count; i++) {
		assert(i == 0 || w->entries[i].index == w->entries[i - 1].index + 1);
		if (i == 0)
			r = make_place(db, w->entries[0].index, err);
		if (r == 0)
			r = append(db, &w->entries[i], err);
	}
	return r;
}

/* ---- the WAL ---- */

unsigned store_db_wal_pages(const struct store_db *db)
{
	return db->wal_pages;
}

int store_db_checkpoint(struct store_db *db, struct err *err)
{
	int all = 0, done = 0;
	if (sqlite3_wal_checkpoint_v2(db->sql, NULL, SQLITE_CHECKPOINT_PASSIVE, &all, &done) !=
	    SQLITE_OK)
		return store_db_error(db, "checkpoint of store", err);
	db->wal_pages = all > done ? (unsigned)(all - done) : 0;
	return 0;
}

uint64_t store_db_disk_bytes(const struct store_db *db)
{
	struct str wal = { 0 };
	struct stat st;
	uint64_t sum = stat(db->path, &st) == 0 ? (uint64_t)st.st_size : 0;
	str_printf(&wal, "%s-wal", db->path);
	if (stat(wal.at, &st) == 0)
		sum += (uint64_t)st.st_size;
	str_free(&wal);
	return sum;
}
