/* SPDX-License-Identifier: Apache-2.0 */
/* Tables; making, opening and reading a store. WAL in exclusive mode: no shared memory file, no
 * locks per commit, and a second daemon cannot open the store. Checkpoints are made by the thread
 * in quiet moments. */
#include "io/store-db.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	FORMAT = 1,                  /* PRAGMA user_version */
	APPLICATION = 0x436f7061,    /* PRAGMA application_id: "Copa" */
	GROW_BYTES = 1 << 20,        /* the database grows in steps */
	WAL_PREPARE_BYTES = 4 << 20, /* WAL made at creation and kept: overwriting blocks that are
					there needs no file system journal, one sync is then a
					third of one that grows the file (bench/store-engines) */
};

static const char *const statements[ST_COUNT] = {
	[ST_BEGIN] = "BEGIN IMMEDIATE",
	[ST_COMMIT] = "COMMIT",
	[ST_ROLLBACK] = "ROLLBACK",
	[ST_STATE] = "UPDATE state SET serial = ?, term = ?, vote = ?, sum = ? WHERE id = 1",
	[ST_SERIAL] = "UPDATE state SET serial = ? WHERE id = 1",
	[ST_TRUNCATE] = "DELETE FROM log WHERE idx >= ?",
	[ST_APPEND] = "INSERT INTO log VALUES (?, ?, ?, ?, ?, ?)",
	[ST_DROP_BEFORE] = "DELETE FROM log WHERE idx < ?",
	[ST_ENTRY_TERM] = "SELECT term FROM log WHERE idx = ?",
	[ST_SNAPSHOT_NEW] = "INSERT INTO snapshot VALUES (NULL, ?, ?, ?, ?, 0, ?, 0)",
	[ST_SNAPSHOT_INCOMPLETE] =
	    "SELECT id FROM snapshot WHERE complete = 0 AND incoming = ? LIMIT 1",
	[ST_SNAPSHOT_SAME] = "SELECT id FROM snapshot WHERE idx = ? AND id <> ? LIMIT 1",
	[ST_SNAPSHOT_END] = "UPDATE snapshot SET complete = 1, sum = ? WHERE id = ?",
	[ST_SNAPSHOT_FIND] = "SELECT id, size FROM snapshot WHERE idx = ? AND complete = 1",
	[ST_SNAPSHOT_COMPLETE] = "SELECT id, idx FROM snapshot WHERE complete = 1 ORDER BY idx",
	[ST_SNAPSHOT_DROP] = "DELETE FROM snapshot WHERE id = ?",
	[ST_PIECE_DROP] = "DELETE FROM piece WHERE id = ?",
	[ST_PIECE_LEFT] = "SELECT coalesce(sum(length(data)), 0) FROM piece WHERE id = ?",
	[ST_PIECE_NEW] = "INSERT INTO piece VALUES (?, ?, ?, ?)",
	[ST_PIECE_READ] = "SELECT at, sum, data FROM piece WHERE id = ? AND at >= coalesce("
			  "(SELECT max(at) FROM piece WHERE id = ?1 AND at <= ?2), 0) ORDER BY at",
};

static const char schema_text[] =
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID;"
    "CREATE TABLE state (id INTEGER PRIMARY KEY, serial INTEGER, term INTEGER, vote INTEGER,"
    " sum INTEGER);"
    "CREATE TABLE log (idx INTEGER PRIMARY KEY, term INTEGER, type INTEGER, serial INTEGER,"
    " sum INTEGER, data BLOB);"
    "CREATE TABLE snapshot (id INTEGER PRIMARY KEY AUTOINCREMENT, idx INTEGER, term INTEGER,"
    " size INTEGER, meta BLOB, complete INTEGER, incoming INTEGER, sum INTEGER);"
    "CREATE TABLE piece (id INTEGER, at INTEGER, sum INTEGER, data BLOB,"
    " PRIMARY KEY (id, at)) WITHOUT ROWID;";

/* ---- opening ---- */

static int exec(struct store_db *db, const char *text, const char *what, struct err *err)
{
	return sqlite3_exec(db->sql, text, NULL, NULL, NULL) == SQLITE_OK
		   ? 0
		   : store_db_error(db, what, err);
}

static int wal_grew(void *ctx, sqlite3 *sql, const char *name, int pages)
{
	struct store_db *db = ctx;
	db->wal_pages = (unsigned)pages;
	return SQLITE_OK;
}

static int configure(struct store_db *db, struct err *err)
{
	static const char *const pragmas[] = {
		"PRAGMA page_size = 1024",       "PRAGMA locking_mode = EXCLUSIVE",
		"PRAGMA journal_mode = WAL",     "PRAGMA synchronous = FULL",
		"PRAGMA wal_autocheckpoint = 0", "PRAGMA journal_size_limit = -1",
		"PRAGMA temp_store = MEMORY",    "PRAGMA cell_size_check = ON",
	};
	int grow = GROW_BYTES;
	for (size_t i = 0; i < ARRAY_LEN(pragmas); i++) {
		int r = exec(db, pragmas[i], "open store", err);
		if (r < 0)
			return r;
	}
	sqlite3_file_control(db->sql, "main", SQLITE_FCNTL_CHUNK_SIZE, &grow);
	sqlite3_extended_result_codes(db->sql, 1);
	sqlite3_wal_hook(db->sql, wal_grew, db);
	return 0;
}

static int prepare_all(struct store_db *db, struct err *err)
{
	for (int i = 0; i < ST_COUNT; i++)
		if (sqlite3_prepare_v3(db->sql, statements[i], -1, SQLITE_PREPARE_PERSISTENT,
				       &db->st[i], NULL) != SQLITE_OK)
			return store_db_error(db, "open store", err);
	return 0;
}

static int pragma_number(struct store_db *db, const char *text, int64_t *ret, struct err *err)
{
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(db->sql, text, -1, &st, NULL) != SQLITE_OK)
		return store_db_error(db, "open store", err);
	int r = 0;
	if (sqlite3_step(st) == SQLITE_ROW)
		*ret = sqlite3_column_int64(st, 0);
	else
		r = store_db_error(db, "open store", err);
	sqlite3_finalize(st);
	return r;
}

/* One transaction: after a crash there is a whole store, or a file without tables, which the next
 * create takes over. */
static int create_tables(struct store_db *db, struct err *err)
{
	char text[512];
	snprintf(text, sizeof(text),
		 "PRAGMA application_id = %d; PRAGMA user_version = %d;"
		 "INSERT INTO state VALUES (1, 1, 0, 0, 0);"
		 "INSERT INTO meta VALUES ('node', %" PRIu32 "), ('cluster', ?)",
		 APPLICATION, FORMAT, db->who.node);
	int r = exec(db, "BEGIN IMMEDIATE", "make store", err);
	if (r == 0)
		r = exec(db, schema_text, "make store", err);
	if (r == 0) {
		const char *at = text;
		sqlite3_stmt *st = NULL;
		while (r == 0 && *at) {
			if (sqlite3_prepare_v2(db->sql, at, -1, &st, &at) != SQLITE_OK)
				r = store_db_error(db, "make store", err);
			if (r == 0 && st && sqlite3_bind_parameter_count(st))
				sqlite3_bind_blob(st, 1, db->who.cluster.at, ID_SIZE,
						  SQLITE_STATIC);
			if (r == 0 && st && sqlite3_step(st) != SQLITE_DONE)
				r = store_db_error(db, "make store", err);
			sqlite3_finalize(st);
			st = NULL;
		}
	}
	if (r == 0)
		r = exec(db, "COMMIT", "make store", err);
	if (r < 0) {
		sqlite3_exec(db->sql, "ROLLBACK", NULL, NULL, NULL);
		return r;
	}
	return 0;
}

/* Writing and dropping a large row leaves a WAL whose blocks are overwritten from then on. A full
 * disk is no reason not to open. */
static void prepare_wal(struct store_db *db)
{
	struct str text = { 0 };
	struct stat st;
	str_printf(&text, "%s-wal", db->path);
	if (stat(text.at, &st) == 0 && st.st_size >= WAL_PREPARE_BYTES)
		return str_free(&text);
	str_clear(&text);
	str_printf(&text,
		   "BEGIN IMMEDIATE; CREATE TABLE pad (b BLOB);"
		   "INSERT INTO pad VALUES (zeroblob(%d)); DROP TABLE pad; COMMIT",
		   WAL_PREPARE_BYTES);
	if (exec(db, text.at, "prepare store", NULL) < 0 && !sqlite3_get_autocommit(db->sql))
		sqlite3_exec(db->sql, "ROLLBACK", NULL, NULL, NULL);
	(void)store_db_checkpoint(db, NULL);
	str_free(&text);
}

static int check_identity(struct store_db *db, struct err *err)
{
	int64_t application = 0, version = 0, node = 0;
	int r = pragma_number(db, "PRAGMA application_id", &application, err);
	if (r == 0)
		r = pragma_number(db, "PRAGMA user_version", &version, err);
	if (r < 0)
		return r;
	if (application != APPLICATION)
		return err_set(err, -EUCLEAN, "%s is not a store of Copia", db->path);
	if (version != FORMAT)
		return err_set(err, -EPROTONOSUPPORT,
			       "store %s has format %d, this version knows %d: use a newer one",
			       db->path, (int)version, FORMAT);
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(db->sql,
			       "SELECT (SELECT value FROM meta WHERE key = 'cluster'),"
			       " (SELECT value FROM meta WHERE key = 'node')",
			       -1, &st, NULL) != SQLITE_OK)
		return store_db_error(db, "open store", err);
	if (sqlite3_step(st) != SQLITE_ROW)
		r = store_db_error(db, "open store", err);
	struct id found = { 0 };
	if (r == 0 && sqlite3_column_bytes(st, 0) == ID_SIZE)
		memcpy(found.at, sqlite3_column_blob(st, 0), ID_SIZE);
	node = sqlite3_column_int64(st, 1);
	sqlite3_finalize(st);
	if (r < 0)
		return r;
	char a[ID_TEXT], b[ID_TEXT];
	if (id_compare(&found, &db->who.cluster))
		return err_set(err, -EXDEV,
			       "store %s belongs to cluster %s, this node to cluster %s: use the "
			       "right state folder",
			       db->path, id_show(&found, a), id_show(&db->who.cluster, b));
	if (node != db->who.node)
		return err_set(err, -EXDEV,
			       "store %s belongs to node number %d, this is node number %" PRIu32
			       ": state folders must not be copied between nodes",
			       db->path, (int)node, db->who.node);
	return 0;
}

/* What a creation that was interrupted left behind. */
static void remove_remains(struct store_db *db)
{
	struct str wal = { 0 };
	str_printf(&wal, "%s-wal", db->path);
	unlink(wal.at);
	unlink(db->path);
	str_free(&wal);
}

static int open_mark(struct store_db *db, const char *dir, bool create, struct err *err)
{
	struct str mark = { 0 };
	str_printf(&mark, "%s/log.mark", dir);
	if (create)
		unlink(mark.at);
	db->mark_fd = open(mark.at, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	int r = db->mark_fd < 0 ? err_set(err, -errno, "open %s: %s", mark.at, strerror(errno)) : 0;
	str_free(&mark);
	return r;
}

static int open_files(struct store_db *db, const char *dir, bool create, struct err *err)
{
	if (create && mkdir(dir, 0700) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make folder %s: %s", dir, strerror(errno));
	if (create)
		remove_remains(db);
	else if (access(db->path, F_OK) < 0)
		return err_set(err, -errno, "open store %s: %s", db->path, strerror(errno));
	int r = open_mark(db, dir, create, err);
	if (r < 0)
		return r;
	if (sqlite3_open_v2(db->path, &db->sql,
			    SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX |
				(create ? SQLITE_OPEN_CREATE : 0),
			    NULL) != SQLITE_OK)
		return store_db_error(db, "open store", err);
	return configure(db, err);
}

int store_db_open(struct store_db **ret, const char *dir, const struct store_identity *who,
		  bool create, struct err *err)
{
	struct store_db *db = xcalloc(1, sizeof(*db));
	struct str path = { 0 };
	str_printf(&path, "%s/%s", dir, create ? "log.new" : "log.db");
	db->path = str_take(&path);
	db->who = *who;
	db->mark_fd = -1;
	mode_t mask = umask(0077);
	int r = open_files(db, dir, create, err);
	if (r == 0 && create)
		r = create_tables(db, err);
	umask(mask);
	if (r == 0)
		r = check_identity(db, err);
	if (r == 0)
		r = prepare_all(db, err);
	if (r < 0) {
		store_db_close(db);
		return r;
	}
	if (!create) {
		int on = 1; /* the WAL stays when the store is closed: it is prepared once */
		sqlite3_file_control(db->sql, "main", SQLITE_FCNTL_PERSIST_WAL, &on);
		prepare_wal(db);
	}
	*ret = db;
	return 0;
}

/* Closing without PERSIST_WAL puts everything into the one file, which then gets its name. */
int store_db_publish(struct store_db *db, const char *dir, struct err *err)
{
	char *from = xstrdup(db->path);
	struct str to = { 0 };
	str_printf(&to, "%s/log.db", dir);
	int r = store_db_checkpoint(db, err);
	store_db_close(db);
	if (r == 0 && rename(from, to.at) < 0)
		r = err_set(err, -errno, "rename %s: %s", from, strerror(errno));
	int fd = r == 0 ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
	if (r == 0 && (fd < 0 || fsync(fd) < 0))
		r = err_set(err, -errno, "sync folder %s: %s", dir, strerror(errno));
	if (fd >= 0)
		close(fd);
	free(from);
	str_free(&to);
	return r;
}

struct store_db *store_db_close(struct store_db *db)
{
	if (!db)
		return NULL;
	for (int i = 0; i < ST_COUNT; i++)
		sqlite3_finalize(db->st[i]);
	sqlite3_close(db->sql);
	if (db->mark_fd >= 0)
		close(db->mark_fd);
	free(db->path);
	free(db);
	return NULL;
}

/* ---- reading everything ---- */

static int read_state(struct store_db *db, struct store_content *ret, struct err *err)
{
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(db->sql, "SELECT serial, term, vote, sum FROM state WHERE id = 1",
			       -1, &st, NULL) != SQLITE_OK)
		return store_db_error(db, "read store", err);
	int r = sqlite3_step(st) == SQLITE_ROW ? 0 : store_db_error(db, "read store", err);
	if (r == 0) {
		db->serial = (uint64_t)sqlite3_column_int64(st, 0);
		ret->term = (uint64_t)sqlite3_column_int64(st, 1);
		ret->vote = (uint64_t)sqlite3_column_int64(st, 2);
		uint64_t sum = (uint64_t)sqlite3_column_int64(st, 3);
		bool untouched = ret->term == 0 && ret->vote == 0 && sum == 0;
		if (!untouched &&
		    sum != store_db_sum(db, ret->term, ret->vote, 0, 0, (struct span){ 0 }))
			r = store_db_damaged(db, "checksum of term", ret->term, err);
	}
	sqlite3_finalize(st);
	return r;
}

static int read_entry(struct store_db *db, sqlite3_stmt *st, struct store_content *ret,
		      struct err *err)
{
	struct store_entry e = { .index = (uint64_t)sqlite3_column_int64(st, 0),
				 .term = (uint64_t)sqlite3_column_int64(st, 1),
				 .type = (unsigned)sqlite3_column_int(st, 2),
				 .len = (uint32_t)sqlite3_column_bytes(st, 5),
				 .data = sqlite3_column_blob(st, 5) };
	uint64_t serial = (uint64_t)sqlite3_column_int64(st, 3);
	if ((uint64_t)sqlite3_column_int64(st, 4) != store_db_entry_sum(db, &e, serial))
		return store_db_damaged(db, "checksum of entry", e.index, err);
	if (ret->count && ret->entries[ret->count - 1].index + 1 != e.index)
		return store_db_damaged(db, "missing entry before", e.index, err);
	db->serial = MAX(db->serial, serial);
	e.data = e.len ? xmemdup(e.data, e.len) : NULL;
	ret->entries[ret->count++] = e;
	return 0;
}

static int read_entries(struct store_db *db, struct store_content *ret, struct err *err)
{
	int64_t count = 0;
	int r = pragma_number(db, "SELECT count(*) FROM log", &count, err);
	if (r < 0)
		return r;
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(db->sql,
			       "SELECT idx, term, type, serial, sum, data FROM log ORDER BY idx",
			       -1, &st, NULL) != SQLITE_OK)
		return store_db_error(db, "read store", err);
	ret->entries = xcalloc((size_t)count + 1, sizeof(*ret->entries));
	int rc = SQLITE_DONE;
	while (r == 0 && (rc = sqlite3_step(st)) == SQLITE_ROW && ret->count < (size_t)count)
		r = read_entry(db, st, ret, err);
	if (r == 0 && rc != SQLITE_DONE)
		r = store_db_error(db, "read store", err);
	sqlite3_finalize(st);
	return r;
}

static int read_snapshot(struct store_db *db, struct store_content *ret, struct err *err)
{
	sqlite3_stmt *st;
	if (sqlite3_prepare_v2(db->sql,
			       "SELECT idx, term, size, meta, sum FROM snapshot WHERE complete = 1"
			       " ORDER BY idx DESC LIMIT 1",
			       -1, &st, NULL) != SQLITE_OK)
		return store_db_error(db, "read store", err);
	int r = 0, rc = sqlite3_step(st);
	if (rc == SQLITE_ROW) {
		struct store_snapshot *s = &ret->snapshot;
		s->index = (uint64_t)sqlite3_column_int64(st, 0);
		s->term = (uint64_t)sqlite3_column_int64(st, 1);
		s->size_bytes = (uint64_t)sqlite3_column_int64(st, 2);
		str_add(&ret->meta, sqlite3_column_blob(st, 3),
			(size_t)sqlite3_column_bytes(st, 3));
		s->meta = (struct span){ (uint8_t *)ret->meta.at, ret->meta.len };
		if ((uint64_t)sqlite3_column_int64(st, 4) !=
		    store_db_sum(db, s->index, s->term, s->size_bytes, 0, s->meta))
			r = store_db_damaged(db, "checksum of the snapshot at", s->index, err);
	} else if (rc != SQLITE_DONE) {
		r = store_db_error(db, "read store", err);
	}
	sqlite3_finalize(st);
	if (r == 0 && ret->snapshot.index)
		r = store_db_snapshot_read(db, ret->snapshot.index, 0, ret->snapshot.size_bytes,
					   &ret->bytes, err);
	return r;
}

int store_db_read_all(struct store_db *db, struct store_content *ret, struct err *err)
{
	int r = read_state(db, ret, err);
	if (r == 0)
		r = read_entries(db, ret, err);
	if (r == 0)
		r = read_snapshot(db, ret, err);
	if (r == 0)
		r = store_db_mark_check(db, err);
	if (r == 0 && ret->count && ret->entries[0].index > ret->snapshot.index + 1)
		r = store_db_damaged(db, "missing entry before", ret->entries[0].index, err);
	if (r < 0) {
		store_content_free(ret);
		return r;
	}
	db->first = ret->count ? ret->entries[0].index : ret->snapshot.index + 1;
	db->last = db->first + ret->count - 1;
	return 0;
}
