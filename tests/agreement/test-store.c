/* SPDX-License-Identifier: Apache-2.0 */
/* The durable log on a real disk: killed writers, damage, foreign stores, full disks. */
#include "io/store.h"

#include "base/rng.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const struct store_identity self = { .cluster = { .at = "cluster-of-test" }, .node = 7 };

#define ACKNOWLEDGED (UINT64_C(1) << 63) /* in what a killed writer said */

struct fixture {
	char dir[64];
	uv_loop_t loop;
	struct store *store;
	struct store_content content;
	uint64_t written, saved, received;
	int received_r, trouble;
	unsigned troubles;
	struct str received_bytes, read_bytes;
	char text[512];
	int read_r;
	bool read;
	int ack_fd;
};

static void on_written(void *ctx, uint64_t number)
{
	struct fixture *f = ctx;
	assert_true(number > f->written);
	f->written = number;
	number |= ACKNOWLEDGED;
	if (f->ack_fd >= 0 && write(f->ack_fd, &number, sizeof(number)) != sizeof(number))
		abort();
}

static void on_saved(void *ctx, uint64_t index)
{
	((struct fixture *)ctx)->saved = index;
}

static void on_received(void *ctx, uint64_t index, int r, struct span bytes, const char *why)
{
	struct fixture *f = ctx;
	f->received = index;
	f->received_r = r;
	str_clear(&f->received_bytes);
	str_add(&f->received_bytes, bytes.at, bytes.len);
}

static void on_trouble(void *ctx, int code, const char *text)
{
	struct fixture *f = ctx;
	f->trouble = code;
	f->troubles++;
	snprintf(f->text, sizeof(f->text), "%s", text ? text : "");
}

static int open_as(struct fixture *f, const struct store_identity *who, struct err *err)
{
	struct store_events events = { .ctx = f,
				       .written = on_written,
				       .saved = on_saved,
				       .received = on_received,
				       .trouble = on_trouble };
	f->written = 0;
	return store_open(&f->store, &f->loop, f->dir, who, &events, &f->content, err);
}

static void open_it(struct fixture *f)
{
	struct err err = { 0 };
	if (open_as(f, &self, &err) < 0)
		fail_msg("%s", err.msg);
}

static void close_it(struct fixture *f)
{
	f->store = store_close(f->store);
	store_content_free(&f->content);
	while (uv_run(&f->loop, UV_RUN_ONCE))
		;
}

static void begin(struct fixture *f)
{
	struct err err = { 0 };
	*f = (struct fixture){ .ack_fd = -1 };
	strcpy(f->dir, "store-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(uv_loop_init(&f->loop), 0);
	if (store_create(f->dir, &self, NULL, &err) < 0)
		fail_msg("%s", err.msg);
}

static void end(struct fixture *f)
{
	static const char *const names[] = { "log.db", "log.db-wal", "log.mark", "log.new",
					     "log.new-wal" };
	char path[128];
	for (size_t i = 0; i < ARRAY_LEN(names); i++) {
		snprintf(path, sizeof(path), "%s/%s", f->dir, names[i]);
		unlink(path);
	}
	assert_int_equal(rmdir(f->dir), 0);
	assert_int_equal(uv_loop_close(&f->loop), 0);
	str_free(&f->received_bytes);
	str_free(&f->read_bytes);
}

/* The body of entry `index` of term `term`: checkable without a record of what was written. */
static size_t body(uint64_t index, uint64_t term, uint8_t buf[600])
{
	struct rng r;
	rng_seed(&r, index * 1000003 + term);
	size_t len = rng_below(&r, 10) == 0 ? 0 : 1 + rng_below(&r, 599);
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)rng_next(&r);
	return len;
}

static void append(struct fixture *f, uint64_t number, uint64_t first, unsigned count,
		   uint64_t term, bool state)
{
	uint8_t buf[16][600];
	struct store_entry e[16];
	assert_true(count <= 16);
	for (unsigned i = 0; i < count; i++)
		e[i] = (struct store_entry){ .index = first + i,
					     .term = term,
					     .type = 2,
					     .len = (uint32_t)body(first + i, term, buf[i]),
					     .data = buf[i] };
	struct store_write w = {
		.has_state = state, .term = term, .vote = term % 5, .entries = e, .count = count
	};
	store_write(f->store, number, &w);
}

static void check_entry(const struct store_entry *e)
{
	uint8_t buf[600];
	assert_int_equal(e->len, body(e->index, e->term, buf));
	assert_int_equal(e->type, 2);
	if (e->len)
		assert_memory_equal(e->data, buf, e->len);
}

static void wait_written(struct fixture *f, uint64_t number)
{
	while (f->written < number)
		uv_run(&f->loop, UV_RUN_ONCE);
}

/* Goal: what was acknowledged is there after a clean restart, with term and vote. */
static void written_is_read_back(void **state)
{
	struct fixture f;
	begin(&f);
	open_it(&f);
	assert_int_equal(f.content.count, 0);
	assert_int_equal(f.content.term, 0);
	append(&f, 1, 1, 10, 3, true);
	append(&f, 2, 11, 5, 4, true);
	wait_written(&f, 2);
	close_it(&f);
	open_it(&f);
	assert_int_equal(f.content.term, 4);
	assert_int_equal(f.content.vote, 4);
	assert_int_equal(f.content.count, 15);
	for (size_t i = 0; i < 15; i++) {
		assert_int_equal(f.content.entries[i].index, i + 1);
		check_entry(&f.content.entries[i]);
	}
	close_it(&f);
	end(&f);
}

/* Goal: truncation, replacement without truncation, and a gap leave a log without gaps. */
static void log_never_has_gaps(void **state)
{
	struct fixture f;
	begin(&f);
	open_it(&f);
	append(&f, 1, 1, 10, 1, true);
	store_write(f.store, 2, &(struct store_write){ .truncate_from = 8 });
	append(&f, 3, 8, 2, 2, false);
	append(&f, 4, 6, 1, 3, false); /* replaces 6 and all behind */
	wait_written(&f, 4);
	close_it(&f);
	open_it(&f);
	assert_int_equal(f.content.count, 6);
	assert_int_equal(f.content.entries[5].term, 3);
	/* A snapshot that ends behind the log: what comes then begins a new log. */
	struct store_snapshot meta = { .index = 50, .term = 3, .size_bytes = 5 };
	store_snapshot_piece(f.store, &meta, true, true, 0, (struct span){ (uint8_t *)"hello", 5 });
	append(&f, 1, 51, 3, 4, false);
	wait_written(&f, 1);
	assert_int_equal(f.received, 50);
	assert_int_equal(f.received_r, 0);
	assert_string_equal(str_text(&f.received_bytes), "hello");
	close_it(&f);
	open_it(&f);
	assert_int_equal(f.content.snapshot.index, 50);
	assert_string_equal(str_text(&f.content.bytes), "hello");
	assert_int_equal(f.content.count, 3);
	assert_int_equal(f.content.entries[0].index, 51);
	close_it(&f);
	end(&f);
}

/* Goal: entries behind a received snapshot stay only when the log agrees with its end. */
static void received_snapshot_cuts_the_log(void **state)
{
	for (unsigned same = 0; same < 2; same++) {
		struct fixture f;
		begin(&f);
		open_it(&f);
		append(&f, 1, 1, 10, 1, true);
		struct store_snapshot meta = { .index = 5, .term = same ? 1 : 2, .size_bytes = 4 };
		store_snapshot_piece(f.store, &meta, true, false, 0,
				     (struct span){ (uint8_t *)"ab", 2 });
		store_snapshot_piece(f.store, &meta, false, true, 2,
				     (struct span){ (uint8_t *)"cd", 2 });
		while (!f.received)
			uv_run(&f.loop, UV_RUN_ONCE);
		assert_int_equal(f.received_r, 0);
		close_it(&f);
		open_it(&f);
		assert_int_equal(f.content.snapshot.index, 5);
		assert_int_equal(f.content.count, same ? 5 : 0);
		close_it(&f);
		end(&f);
	}
}

/* Goal: pieces in the wrong order or of the wrong sum spoil that snapshot and nothing else. */
static void bad_pieces_are_refused(void **state)
{
	struct fixture f;
	begin(&f);
	open_it(&f);
	struct store_snapshot meta = { .index = 5, .term = 1, .size_bytes = 4 };
	struct span two = { (uint8_t *)"ab", 2 };
	append(&f, 1, 1, 3, 1, true);
	store_snapshot_piece(f.store, &meta, true, false, 0, two);
	store_snapshot_piece(f.store, &meta, false, true, 3, two);
	append(&f, 2, 4, 3, 1, false);
	wait_written(&f, 2);
	while (!f.received)
		uv_run(&f.loop, UV_RUN_ONCE);
	assert_int_equal(f.received_r, -EBADMSG);
	f.received = 0;
	store_snapshot_piece(f.store, &meta, true, true, 0, two); /* two bytes short */
	while (!f.received)
		uv_run(&f.loop, UV_RUN_ONCE);
	assert_int_equal(f.received_r, -EBADMSG);
	assert_int_equal(f.trouble, 0);
	close_it(&f);
	open_it(&f);
	assert_int_equal(f.content.snapshot.index, 0);
	assert_int_equal(f.content.count, 6);
	close_it(&f);
	end(&f);
}

static void on_read(void *ctx, int r, struct span bytes)
{
	struct fixture *f = ctx;
	f->read = true;
	f->read_r = r;
	str_clear(&f->read_bytes);
	str_add(&f->read_bytes, bytes.at, bytes.len);
}

/* Goal: a large own snapshot is read back in any parts; compaction removes what it covers. */
static void snapshot_replaces_entries(void **state)
{
	struct fixture f;
	begin(&f);
	open_it(&f);
	uint64_t number = 0;
	for (uint64_t i = 1; i < 1600; i += 16)
		append(&f, ++number, i, 16, 1, i == 1);
	struct str bytes = { 0 };
	for (uint32_t i = 0; i < 250000; i++)
		str_add(&bytes, &i, sizeof(i));
	struct store_snapshot meta = {
		.index = 1500, .term = 1, .size_bytes = bytes.len, .meta = { (uint8_t *)"who", 3 }
	};
	store_snapshot_save(f.store, &meta, &bytes);
	wait_written(&f, number);
	while (f.saved != 1500)
		uv_run(&f.loop, UV_RUN_ONCE);
	store_read(f.store, 1500, 399996, 500008, on_read, &f);
	while (!f.read)
		uv_run(&f.loop, UV_RUN_ONCE);
	assert_int_equal(f.read_r, 0);
	assert_int_equal(f.read_bytes.len, 500008);
	uint32_t first;
	memcpy(&first, f.read_bytes.at, sizeof(first));
	assert_int_equal(first, 99999);
	f.read = false;
	store_read(f.store, 1500, 999999, 2, on_read, &f);
	while (!f.read)
		uv_run(&f.loop, UV_RUN_ONCE);
	assert_int_equal(f.read_r, -ENOENT);
	store_compact(f.store, 1480, (uint64_t[]){ 1500 }, 1);
	append(&f, ++number, 1601, 1, 1, false);
	wait_written(&f, number);
	meta.index = 1601;
	meta.size_bytes = 0;
	store_snapshot_save(f.store, &meta, &bytes);
	while (f.saved != 1601)
		uv_run(&f.loop, UV_RUN_ONCE);
	store_compact(f.store, 1500, (uint64_t[]){ 1601 }, 1);
	/* Background work has no event of its own: it is done when a later snapshot is. */
	meta.index = 1602;
	close_it(&f);
	open_it(&f);
	assert_int_equal(f.content.snapshot.index, 1601);
	assert_int_equal(f.content.snapshot.size_bytes, 0);
	assert_int_equal(f.content.meta.len, 3);
	assert_true(f.content.entries[0].index <= 1500);
	assert_int_equal(f.content.entries[f.content.count - 1].index, 1601);
	close_it(&f);
	end(&f);
}

/* ---- killed writers ---- */

/* Write until killed; each acknowledgement goes to `fd`. */
static void write_for_ever(struct fixture *f, int fd, uint64_t seed)
{
	struct rng r;
	rng_seed(&r, seed);
	f->ack_fd = fd;
	/* The parent's loop is not for the child. */
	uv_loop_t *loop = &f->loop;
	memset(loop, 0, sizeof(*loop));
	if (uv_loop_init(loop) < 0)
		abort();
	open_it(f);
	uint64_t number = 0, next = f->content.count
					? f->content.entries[f->content.count - 1].index + 1
					: f->content.snapshot.index + 1;
	uint64_t term = f->content.term + 1, saved = 0;
	for (;;) {
		unsigned count = 1 + (unsigned)rng_below(&r, 16);
		next += count;
		if (write(fd, &next, sizeof(next)) != sizeof(next))
			abort();
		number++;
		append(f, number, next - count, count, term, rng_chance(&r, 100) || number == 1);
		if (rng_chance(&r, 30)) {
			struct str bytes = { 0 };
			str_printf(&bytes, "%d", (int)next);
			for (int i = 0; i < 60000; i++)
				str_add(&bytes, "snapshot", 8);
			struct store_snapshot meta = { .index = next - 1,
						       .term = term,
						       .size_bytes = bytes.len };
			wait_written(f, number);
			store_snapshot_save(f->store, &meta, &bytes);
		}
		if (f->saved != saved) {
			saved = f->saved;
			store_compact(f->store, saved - MIN(saved, 20u), &saved, 1);
		}
		if (rng_chance(&r, 300))
			wait_written(f, number);
		else
			uv_run(loop, UV_RUN_NOWAIT);
	}
}

/* The writer says the end of each write before it hands it over, and the number of each write that
 * was acknowledged. */
static uint64_t highest_acknowledged(const struct str *said)
{
	const size_t count = said->len / 8;
	uint64_t *ends = calloc(count + 1, sizeof(*ends)), acked = 0;
	size_t writes = 0;
	for (size_t i = 0; i < count; i++) {
		uint64_t value;
		memcpy(&value, said->at + i * 8, 8);
		if (value & ACKNOWLEDGED)
			acked = value & ~ACKNOWLEDGED;
		else
			ends[++writes] = value;
	}
	assert_true(acked <= writes);
	uint64_t last = acked ? ends[acked] - 1 : 0;
	free(ends);
	return last;
}

/* Kill the writer after it said a random number of things; returns what it said. */
static uint64_t run_and_kill(struct fixture *f, uint64_t seed, uint64_t wanted)
{
	int fds[2], status;
	assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		close(fds[0]);
		write_for_ever(f, fds[1], seed);
	}
	close(fds[1]);
	struct str said = { 0 };
	char some[512];
	ssize_t got;
	bool killed = false;
	while ((got = read(fds[0], some, sizeof(some))) > 0) {
		str_add(&said, some, (size_t)got);
		if (!killed && said.len >= wanted * 8)
			killed = kill(pid, SIGKILL) == 0;
	}
	close(fds[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	uint64_t acked = highest_acknowledged(&said);
	str_free(&said);
	return acked;
}

/* Goal: kill -9 at random moments, 200 times on the same store: nothing acknowledged is lost, and
 * every entry is as it was written. */
static void killed_writer_loses_nothing(void **state)
{
	struct fixture f;
	struct rng r;
	uint64_t seed = 20260101, total = 0;
	const char *rounds = getenv("COPIA_STORE_KILLS");
	rng_seed(&r, seed);
	begin(&f);
	for (unsigned round = 0; round < (rounds ? (unsigned)strtoul(rounds, NULL, 10) : 200);
	     round++) {
		uint64_t acked = run_and_kill(&f, seed + round, 1 + rng_below(&r, 300));
		total += acked;

		open_it(&f);
		uint64_t last = f.content.count ? f.content.entries[f.content.count - 1].index
						: f.content.snapshot.index;
		if (last < acked)
			fail_msg("seed %d round %u: %d acknowledged, %d there", (int)seed, round,
				 (int)acked, (int)last);
		for (size_t i = 0; i < f.content.count; i++)
			check_entry(&f.content.entries[i]);
		close_it(&f);
	}
	assert_true(total > 0);
	end(&f);
}

/* ---- damage ---- */

/* Overwrite the first place where `what` stands in a file. Returns whether it was found. */
static bool corrupt(const char *dir, const char *name, const void *what, size_t len)
{
	char path[128];
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	int fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	off_t size = lseek(fd, 0, SEEK_END);
	char *all = malloc((size_t)size + 1);
	assert_int_equal(pread(fd, all, (size_t)size, 0), size);
	char *found = memmem(all, (size_t)size, what, len);
	if (found) {
		uint8_t flipped = (uint8_t)(*found ^ 0x10);
		assert_int_equal(pwrite(fd, &flipped, 1, found - all), 1);
	}
	free(all);
	close(fd);
	return found;
}

/* Goal: one flipped bit in an entry in the database is found, and nothing of the store is used. */
static void damaged_entry_is_refused(void **state)
{
	struct fixture f;
	struct err err = { 0 };
	uint8_t buf[600];
	begin(&f);
	open_it(&f);
	append(&f, 1, 1, 16, 1, true);
	close_it(&f);
	size_t len = body(4, 1, buf);
	assert_true(len > 16);
	assert_true(corrupt(f.dir, "log.db", buf, len));
	/* What is in the WAL too would be read from there; closing has copied all of it. */
	char wal[128];
	snprintf(wal, sizeof(wal), "%s/log.db-wal", f.dir);
	assert_int_equal(unlink(wal), 0);
	assert_int_equal(open_as(&f, &self, &err), -EUCLEAN);
	assert_non_null(strstr(err.msg, "checksum of entry 4"));
	assert_non_null(strstr(err.msg, "join again"));
	assert_int_equal(f.content.count, 0);
	end(&f);
}

/* Goal: a rotten place in the WAL, which silently ends the log for SQLite, is found. */
static void lost_acknowledged_writes_are_noticed(void **state)
{
	struct fixture f;
	struct err err = { 0 };
	uint8_t buf[600];
	begin(&f);
	pid_t pid = fork();
	if (pid == 0) {
		uv_loop_init(&f.loop);
		open_it(&f);
		for (uint64_t i = 1; i < 20; i++) {
			append(&f, i, i, 1, 1, i == 1);
			wait_written(&f, i);
		}
		_exit(0); /* without a checkpoint */
	}
	int status;
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	size_t len = body(4, 1, buf);
	assert_true(corrupt(f.dir, "log.db-wal", buf, len));
	assert_int_equal(open_as(&f, &self, &err), -EUCLEAN);
	assert_non_null(strstr(err.msg, "acknowledged writes are missing"));
	end(&f);
}

/* Goal: the store of another cluster, of another node, a second user, and no store at all. */
static void foreign_stores_are_refused(void **state)
{
	struct fixture f, second;
	struct err err = { 0 };
	struct store_identity other = self;
	begin(&f);
	other.node = 8;
	assert_int_equal(open_as(&f, &other, &err), -EXDEV);
	assert_non_null(strstr(err.msg, "belongs to node number 7"));
	other = self;
	other.cluster.at[0] ^= 1;
	assert_int_equal(open_as(&f, &other, &err), -EXDEV);
	assert_non_null(strstr(err.msg, "belongs to cluster"));
	assert_int_equal(store_create(f.dir, &self, NULL, &err), -EEXIST);
	open_it(&f);
	second = f;
	assert_int_equal(open_as(&second, &self, &err), -EBUSY);
	close_it(&f);
	strcpy(second.dir, "store-none");
	assert_int_equal(open_as(&second, &self, &err), -ENOENT);
	end(&f);
}

/* ---- full disk ---- */

/* Goal: with no space left nothing is acknowledged and the trouble is told; with space again the
 * same writes go on by themselves, and none is lost. A limit of the file size stands in for the
 * full disk: it fails in the same write() and works without root. */
static void full_disk_holds_and_goes_on(void **state)
{
	struct fixture f;
	struct rlimit was, small;
	begin(&f);
	open_it(&f);
	append(&f, 1, 1, 16, 1, true);
	wait_written(&f, 1);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
	small = was;
	small.rlim_cur = 4 << 20;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	uint64_t number = 1, next = 17;
	for (unsigned i = 0; i < 2000; i++, next += 16)
		append(&f, ++number, next, 16, 1, false);
	while (!f.trouble)
		uv_run(&f.loop, UV_RUN_ONCE);
	assert_true(f.written < number);
	assert_true(strlen(f.text) > 0);
	uint64_t held = f.written;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
	wait_written(&f, number);
	assert_true(f.written > held);
	while (f.trouble)
		uv_run(&f.loop, UV_RUN_ONCE);
	close_it(&f);
	open_it(&f);
	assert_int_equal(f.content.count, next - 1);
	for (size_t i = 0; i < f.content.count; i++)
		check_entry(&f.content.entries[i]);
	close_it(&f);
	end(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(written_is_read_back),
		cmocka_unit_test(log_never_has_gaps),
		cmocka_unit_test(received_snapshot_cuts_the_log),
		cmocka_unit_test(bad_pieces_are_refused),
		cmocka_unit_test(snapshot_replaces_entries),
		cmocka_unit_test(damaged_entry_is_refused),
		cmocka_unit_test(lost_acknowledged_writes_are_noticed),
		cmocka_unit_test(foreign_stores_are_refused),
		cmocka_unit_test(full_disk_holds_and_goes_on),
		cmocka_unit_test(killed_writer_loses_nothing),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
