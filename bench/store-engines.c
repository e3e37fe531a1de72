/* SPDX-License-Identifier: Apache-2.0 */
/* Which embedded store for the log? One durable commit of an entry in SQLite (several settings) and
 * in LMDB, beside one write and fdatasync of the same disk, in turns in one run.
 *
 *   store-engines [FOLDER]
 *
 * docs/agreement-store.md has the result and what was chosen. */
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { COMMITS = 500, ROUNDS = 3, ENTRY = 100, ENTRY_MAX = 1 << 20 };

static uint8_t data[ENTRY_MAX];
static uint64_t took[COMMITS];

static uint64_t now_us(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static int compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;
	return *x < *y ? -1 : *x > *y;
}

static void show(const char *name)
{
	qsort(took, COMMITS, sizeof(*took), compare);
	printf("%-58s p50 %5llu  p90 %5llu  p99 %6llu us\n", name,
	       (unsigned long long)took[COMMITS / 2], (unsigned long long)took[COMMITS * 9 / 10],
	       (unsigned long long)took[COMMITS * 99 / 100]);
	(void)fflush(stdout);
}

static void die(const char *what)
{
	(void)fprintf(stderr, "%s: %s\n", what, strerror(errno));
	abort();
}

static void clean(void)
{
	static const char *const names[] = { "t.raw",    "t.db",  "t.db-wal",
					     "t.db-shm", "t.mdb", "t.mdb-lock" };
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unlink(names[i]);
}

enum raw { RAW_GROWING, RAW_OVER, RAW_ALLOCATED };

static void do_raw(enum raw how, const char *name)
{
	int fd = open("t.raw", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (fd < 0)
		die("t.raw");
	for (unsigned i = 0; how == RAW_OVER && i < COMMITS * 4096 / ENTRY_MAX + 1; i++)
		if (write(fd, data, ENTRY_MAX) != ENTRY_MAX)
			die("write");
	if (how == RAW_ALLOCATED && posix_fallocate(fd, 0, COMMITS * 4096))
		die("fallocate");
	fsync(fd);
	for (unsigned i = 0; i < COMMITS; i++) {
		uint64_t from = now_us();
		if (pwrite(fd, data, 4096, (off_t)i * 4096) != 4096 || fdatasync(fd) < 0)
			die("write");
		took[i] = now_us() - from;
	}
	close(fd);
	show(name);
}

/* ---- SQLite ---- */

struct setting {
	int page;
	bool exclusive, prepared;
	unsigned entries, size;
};

static void sql(sqlite3 *db, const char *text)
{
	char *why;
	if (sqlite3_exec(db, text, NULL, NULL, &why) != SQLITE_OK) {
		(void)fprintf(stderr, "%s: %s\n", text, why);
		abort();
	}
}

static sqlite3 *sqlite_begin(const struct setting *s)
{
	sqlite3 *db;
	char text[100];
	if (sqlite3_open("t.db", &db) != SQLITE_OK)
		die("t.db");
	(void)snprintf(text, sizeof(text), "PRAGMA page_size = %d", s->page);
	sql(db, text);
	if (s->exclusive)
		sql(db, "PRAGMA locking_mode = EXCLUSIVE");
	sql(db, "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
		"PRAGMA wal_autocheckpoint = 0;"
		"CREATE TABLE log (i INTEGER PRIMARY KEY, term INTEGER, sum INTEGER, data BLOB)");
	if (s->prepared)
		sql(db, "CREATE TABLE pad (b BLOB); INSERT INTO pad VALUES (zeroblob(8388608));"
			"DROP TABLE pad; PRAGMA wal_checkpoint(RESTART)");
	return db;
}

static void step(sqlite3 *db, sqlite3_stmt *st)
{
	if (sqlite3_step(st) != SQLITE_DONE) {
		(void)fprintf(stderr, "%s\n", sqlite3_errmsg(db));
		abort();
	}
	sqlite3_reset(st);
}

static void do_sqlite(const struct setting *s)
{
	static const char *const texts[3] = { "INSERT INTO log VALUES (?, 3, 77777777777, ?)",
					      "BEGIN IMMEDIATE", "COMMIT" };
	sqlite3 *db = sqlite_begin(s);
	sqlite3_stmt *st[3];
	int64_t index = 1;
	char name[100];
	for (int i = 0; i < 3; i++)
		sqlite3_prepare_v2(db, texts[i], -1, &st[i], NULL);
	for (unsigned i = 0; i < COMMITS; i++) {
		uint64_t from = now_us();
		step(db, st[1]);
		for (unsigned k = 0; k < s->entries; k++) {
			sqlite3_bind_int64(st[0], 1, index++);
			sqlite3_bind_blob(st[0], 2, data, (int)s->size, SQLITE_STATIC);
			step(db, st[0]);
		}
		step(db, st[2]);
		took[i] = now_us() - from;
	}
	for (int i = 0; i < 3; i++)
		sqlite3_finalize(st[i]);
	sqlite3_close(db);
	(void)snprintf(name, sizeof(name), "SQLite, page %d%s%s: %u x %u bytes", s->page,
		       s->exclusive ? ", exclusive" : "", s->prepared ? ", WAL prepared" : "",
		       s->entries, s->size);
	show(name);
}

/* ---- LMDB ---- */

static void lm(int r)
{
	if (r) {
		(void)fprintf(stderr, "lmdb: %s\n", mdb_strerror(r));
		abort();
	}
}

static void do_lmdb(unsigned flags, unsigned entries, unsigned size)
{
	MDB_env *env;
	MDB_txn *txn;
	MDB_dbi dbi;
	uint64_t index = 1;
	char name[100];
	lm(mdb_env_create(&env));
	lm(mdb_env_set_mapsize(env, (size_t)1 << 30));
	lm(mdb_env_open(env, "t.mdb", MDB_NOSUBDIR | flags, 0600));
	lm(mdb_txn_begin(env, NULL, 0, &txn));
	lm(mdb_dbi_open(txn, NULL, MDB_INTEGERKEY, &dbi));
	lm(mdb_txn_commit(txn));
	for (unsigned i = 0; i < COMMITS; i++) {
		uint64_t from = now_us();
		lm(mdb_txn_begin(env, NULL, 0, &txn));
		for (unsigned k = 0; k < entries; k++, index++) {
			MDB_val key = { sizeof(index), &index }, value = { size, data };
			lm(mdb_put(txn, dbi, &key, &value, MDB_APPEND));
		}
		lm(mdb_txn_commit(txn));
		took[i] = now_us() - from;
	}
	mdb_env_close(env);
	(void)snprintf(name, sizeof(name), "LMDB%s: %u x %u bytes",
		       flags & MDB_WRITEMAP ? ", writable map" : "", entries, size);
	show(name);
}

int main(int argc, char **argv)
{
	static const struct setting settings[] = {
		{ 4096, false, false, 1, ENTRY },    { 4096, true, false, 1, ENTRY },
		{ 4096, true, true, 1, ENTRY },      { 1024, true, true, 1, ENTRY },
		{ 8192, true, true, 1, ENTRY },      { 4096, true, true, 64, ENTRY },
		{ 4096, true, true, 1, 64 * ENTRY },
	};
	if (argc > 1 && chdir(argv[1]) < 0)
		die(argv[1]);
	memset(data, 7, sizeof(data));
	for (unsigned round = 0; round < ROUNDS; round++) {
		do_raw(RAW_GROWING, "4 KiB + fdatasync, growing file");
		do_raw(RAW_ALLOCATED, "4 KiB + fdatasync, blocks allocated, never written");
		do_raw(RAW_OVER, "4 KiB + fdatasync, overwriting");
		for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
			clean();
			do_sqlite(&settings[i]);
		}
		for (unsigned i = 0; i < 4; i++) {
			clean();
			do_lmdb(i == 1 ? MDB_WRITEMAP : 0, i == 2 ? 64 : 1,
				i == 3 ? 64 * ENTRY : ENTRY);
		}
	}
	clean();
	return 0;
}
