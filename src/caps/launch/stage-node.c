/* SPDX-License-Identifier: Apache-2.0 */
/* Contents of files on their way down the tree. Each node asks its parent, keeps what comes in its
 * cache (state_dir/cache/HASH), and serves its own children while it still receives. So every byte
 * reaches each node once. The origin has the command read the file.
 *
 *   WANT{offset} up; DATA down; MORE{offset} up as bytes are on disk: at most STAGE_WINDOW is
 *   under way to each child. When a parent cannot be reached or fails, the next ancestor is asked,
 *   from where we are. */
#include "caps/launch/launch-impl-node.h"
#include "caps/launch/site-files-node.h"

#include "base/log.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define CACHE_BYTES_MAX (8ull << 30)

enum { STAGE_WINDOW = 2 << 20, STAGE_CHUNK = 128 * 1024, STAGE_ENTRIES_MAX = 256, TREE_MAX = 64 };

/* A node below us, or one that asked us as its root. */
struct child {
	uint32_t node;
	struct id job;
	uint64_t sent, taken;
	struct child *next;
};

struct waiter {
	struct prepare *p;
	struct waiter *next;
};

struct chunk {
	struct chunk *next;
	uint64_t offset;
	size_t len;
	uint8_t at[];
};

struct entry {
	uint8_t hash[32];
	struct stager *stager;
	struct id job;                           /* for whom it is fetched */
	uint64_t size, received, on_disk, asked; /* asked: of the command, at the root */
	int fd;
	crypto_generichash_state *state;
	uint32_t ancestors[TREE_MAX];
	size_t ancestor_count, ancestor_at;
	uint32_t uid;
	bool whole, writing, dead;
	struct child *children;
	struct waiter *waiters;
	struct chunk *head, **tail;
	uv_fs_t write_req;
	uv_buf_t write_buf;
	UT_hash_handle hh;
};

struct stager {
	struct launch *l;
	struct str cache;
	struct entry *entries;
	uv_work_t trim;
	bool trimming;
};

void stage_cache_path(const struct launch *l, const uint8_t hash[32], struct str *ret)
{
	str_clear(ret);
	str_printf(ret, "%s/", str_text(&l->stager->cache));
	for (int i = 0; i < 32; i++)
		str_printf(ret, "%02x", hash[i]);
}

static void part_path(const struct entry *e, struct str *ret)
{
	stage_cache_path(e->stager->l, e->hash, ret);
	str_puts(ret, ".part");
}

static void entry_serve(struct entry *e);

/* ---------------------------------------------------------------- removal */

static void entry_free(struct entry *e)
{
	struct stager *s = e->stager;
	HASH_DEL(s->entries, e);
	while (e->children) {
		struct child *c = e->children;
		e->children = c->next;
		free(c);
	}
	while (e->waiters) {
		struct waiter *w = e->waiters;
		e->waiters = w->next;
		free(w);
	}
	while (e->head) {
		struct chunk *c = e->head;
		e->head = c->next;
		free(c);
	}
	if (e->fd >= 0)
		(void)close(e->fd);
	sodium_free(e->state);
	free(e);
}

static void send_data(struct launch *l, uint32_t to, const struct id *job, Copia__FileData *d,
		      int *ret_code)
{
	d->job = (ProtobufCBinaryData){ ID_SIZE, (uint8_t *)job->at };
	size_t len = copia__file_data__get_packed_size(d);
	_cleanup_(free_p) uint8_t *at = xmalloc(len);
	(void)copia__file_data__pack(d, at);
	*ret_code =
	    l->node->peers ? peers_send(l->node->peers, to, CHANNEL_STAGE, at, len) : -ENOTCONN;
}

/* Everybody who waits for it hears why it will not come. */
static void entry_fail(struct entry *e, int code, const char *text)
{
	struct launch *l = e->stager->l;
	Copia__FileData d = COPIA__FILE_DATA__INIT;
	int ignored;
	d.hash = (ProtobufCBinaryData){ 32, e->hash };
	d.code = code;
	d.error = (char *)text;
	for (struct child *c = e->children; c; c = c->next)
		send_data(l, c->node, &c->job, &d, &ignored);
	_cleanup_(str_free) struct str part = { 0 };
	part_path(e, &part);
	(void)unlink(str_text(&part));
	struct waiter *w = take_ptr(e->waiters);
	_cleanup_(free_p) char *copy = xstrdup(text);
	if (e->writing)
		e->dead = true; /* the end of the write frees it */
	else
		entry_free(e);
	while (w) {
		struct waiter *next = w->next;
		if (w->p)
			prepare_got(w->p, NULL, code, copy, 0);
		free(w);
		w = next;
	}
}

/* ---------------------------------------------------------------- asking above */

static uint32_t parent_of(const struct entry *e)
{
	return e->ancestor_at < e->ancestor_count ? e->ancestors[e->ancestor_at] : 0;
}

static void ask_command(struct entry *e)
{
	uint64_t upto = MIN(e->size, e->on_disk + STAGE_WINDOW);
	if (upto <= e->asked && e->size)
		return;
	if (!origin_file_want(e->stager->l, &e->job, e->hash, e->asked, upto)) {
		entry_fail(e, -ENOLINK, "the command that has the file has gone");
		return;
	}
	e->asked = upto;
}

static void ask_parent(struct entry *e)
{
	struct launch *l = e->stager->l;
	uint32_t to = parent_of(e);
	if (!to) {
		e->asked = e->received;
		ask_command(e);
		return;
	}
	Copia__FileWant want = COPIA__FILE_WANT__INIT;
	want.hash = (ProtobufCBinaryData){ 32, e->hash };
	want.size_bytes = e->size;
	want.offset = e->received;
	want.ancestors = e->ancestors + e->ancestor_at + 1;
	want.n_ancestors = e->ancestor_count - e->ancestor_at - 1;
	want.uid = e->uid;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_WANT);
	m.want = &want;
	launch_send(l, to, &e->job, &m);
}

/* The parent failed us: the next one above, and behind the last there is nobody. */
static void next_parent(struct entry *e, int code, const char *why)
{
	if (e->ancestor_at + 1 < e->ancestor_count) {
		log_info("launch", "%s cannot send a file (%s); asking %s",
			 launch_name(e->stager->l, parent_of(e)), why,
			 launch_name(e->stager->l, e->ancestors[e->ancestor_at + 1]));
		e->ancestor_at++;
		ask_parent(e);
		return;
	}
	entry_fail(e, code, why);
}

static void tell_more(struct entry *e)
{
	uint32_t to = parent_of(e);
	if (!to) {
		ask_command(e);
		return;
	}
	Copia__FileMore more = COPIA__FILE_MORE__INIT;
	more.hash = (ProtobufCBinaryData){ 32, e->hash };
	more.offset = e->on_disk;
	launch_message m;
	launch_init_message(&m, COPIA__LAUNCH_MESSAGE__BODY_MORE);
	m.more = &more;
	launch_send(e->stager->l, to, &e->job, &m);
}

/* ---------------------------------------------------------------- receiving */

static void trim_work(uv_work_t *w)
{
	struct stager *s = w->data;
	files_trim(str_text(&s->cache), CACHE_BYTES_MAX);
}

static void trim_done(uv_work_t *w, int status)
{
	struct stager *s = w->data;
	s->trimming = false;
	(void)status;
}

static void entry_whole(struct entry *e)
{
	struct launch *l = e->stager->l;
	uint8_t hash[32];
	_cleanup_(str_free) struct str part = { 0 }, path = { 0 };
	(void)crypto_generichash_final(e->state, hash, 32);
	if (memcmp(hash, e->hash, 32) != 0) {
		entry_fail(e, -EBADMSG, "the file changed while it was sent; run it again");
		return;
	}
	part_path(e, &part);
	stage_cache_path(l, e->hash, &path);
	/* Programs are linked from here: whoever may enter the job's folder must be able to run it.
	 */
	if (fchmod(e->fd, 0555) < 0 || rename(str_text(&part), str_text(&path)) < 0) {
		char text[400];
		int code = -errno;
		(void)snprintf(text, sizeof(text), "node %s: write %s: %s",
			       launch_name(l, launch_self(l)), str_text(&path), strerror(-code));
		entry_fail(e, code, text);
		return;
	}
	e->whole = true;
	struct stager *s = e->stager;
	if (!s->trimming) {
		s->trimming = true;
		s->trim.data = s;
		(void)uv_queue_work(l->node->loop, &s->trim, trim_work, trim_done);
	}
	struct waiter *w = take_ptr(e->waiters);
	uint64_t size = MAX(e->size, (uint64_t)1);
	entry_serve(e); /* may free the entry */
	while (w) {
		struct waiter *next = w->next;
		if (w->p)
			prepare_got(w->p, hash, 0, "", size);
		free(w);
		w = next;
	}
}

static void write_next(struct entry *e);

static void on_written(uv_fs_t *req)
{
	struct entry *e = req->data;
	ssize_t n = req->result;
	uv_fs_req_cleanup(req);
	e->writing = false;
	if (e->dead) {
		entry_free(e);
		return;
	}
	struct chunk *c = e->head;
	if (n < (ssize_t)c->len) {
		_cleanup_(str_free) struct str part = { 0 };
		part_path(e, &part);
		char text[400];
		int code = n < 0 ? (int)n : -ENOSPC;
		(void)snprintf(text, sizeof(text), "node %s: write %s: %s",
			       launch_name(e->stager->l, launch_self(e->stager->l)),
			       str_text(&part), strerror(-code));
		entry_fail(e, code, text);
		return;
	}
	e->on_disk += c->len;
	e->head = c->next;
	if (!e->head)
		e->tail = &e->head;
	free(c);
	if (e->on_disk == e->size) {
		entry_whole(e);
		return;
	}
	write_next(e);
	struct launch *l = e->stager->l;
	uint8_t hash[32];
	memcpy(hash, e->hash, 32);
	tell_more(e);
	HASH_FIND(hh, l->stager->entries, hash, 32, e);
	if (e)
		entry_serve(e);
}

static void write_next(struct entry *e)
{
	if (e->writing || !e->head)
		return;
	e->writing = true;
	e->write_buf = uv_buf_init((char *)e->head->at, (unsigned)e->head->len);
	e->write_req.data = e;
	(void)uv_fs_write(e->stager->l->node->loop, &e->write_req, e->fd, &e->write_buf, 1,
			  (int64_t)e->head->offset, on_written);
}

static void entry_data(struct entry *e, const Copia__FileData *d)
{
	if (d->code < 0) {
		next_parent(e, d->code, d->error);
		return;
	}
	if (d->offset != e->received || d->data.len > e->size - e->received || e->dead)
		return; /* of an earlier parent */
	struct chunk *c = xmalloc(sizeof(*c) + d->data.len);
	c->next = NULL;
	c->offset = d->offset;
	c->len = d->data.len;
	memcpy(c->at, d->data.data, d->data.len);
	*e->tail = c;
	e->tail = &c->next;
	(void)crypto_generichash_update(e->state, c->at, c->len);
	e->received += c->len;
	write_next(e);
}

static struct entry *entry_find(struct launch *l, const ProtobufCBinaryData *hash)
{
	struct entry *e = NULL;
	if (hash->len == 32)
		HASH_FIND(hh, l->stager->entries, hash->data, 32, e);
	return e;
}

void stage_from_command(struct launch *l, const Copia__FileData *d)
{
	struct entry *e = entry_find(l, &d->hash);
	if (e && !parent_of(e) && !e->whole)
		entry_data(e, d);
}

void stage_data(struct launch *l, uint32_t from, struct span body)
{
	Copia__FileData *d = copia__file_data__unpack(NULL, body.len, body.at);
	if (!d)
		return;
	struct entry *e = entry_find(l, &d->hash);
	if (e && parent_of(e) == from && !e->whole)
		entry_data(e, d);
	copia__file_data__free_unpacked(d, NULL);
}

/* ---------------------------------------------------------------- serving below */

/* Returns false when the child is done or lost and must go. */
static bool child_serve(struct entry *e, struct child *c)
{
	struct launch *l = e->stager->l;
	_cleanup_(free_p) uint8_t *buf = xmalloc(STAGE_CHUNK);
	while (c->sent < e->on_disk && c->sent - c->taken < STAGE_WINDOW) {
		size_t want = (size_t)MIN(e->on_disk - c->sent, (uint64_t)STAGE_CHUNK);
		ssize_t n = pread(e->fd, buf, want, (off_t)c->sent);
		Copia__FileData d = COPIA__FILE_DATA__INIT;
		d.hash = (ProtobufCBinaryData){ 32, e->hash };
		d.offset = c->sent;
		if (n > 0) {
			d.data = (ProtobufCBinaryData){ (size_t)n, buf };
		} else {
			d.code = n < 0 ? -errno : -EIO;
			d.error = (char *)"its copy of the file cannot be read";
		}
		int code;
		send_data(l, c->node, &c->job, &d, &code);
		if (code == -EAGAIN)
			return true; /* stage_drained() goes on */
		if (code < 0 || n <= 0)
			return false;
		c->sent += (uint64_t)n;
	}
	return c->sent < e->size;
}

static void entry_serve(struct entry *e)
{
	for (struct child **at = &e->children; *at;) {
		struct child *c = *at;
		if (child_serve(e, c)) {
			at = &c->next;
			continue;
		}
		*at = c->next;
		free(c);
	}
	if (e->whole && !e->children && !e->waiters)
		entry_free(e);
}

static struct entry *entry_new(struct launch *l, const uint8_t hash[32], uint64_t size,
			       const struct id *job)
{
	if (HASH_COUNT(l->stager->entries) >= STAGE_ENTRIES_MAX)
		return NULL;
	struct entry *e = xcalloc(1, sizeof(*e));
	memcpy(e->hash, hash, 32);
	e->stager = l->stager;
	e->size = size;
	e->job = *job;
	e->fd = -1;
	e->tail = &e->head;
	e->state = sodium_malloc(sizeof(*e->state));
	(void)crypto_generichash_init(e->state, NULL, 0, 32);
	HASH_ADD(hh, l->stager->entries, hash, 32, e);
	return e;
}

/* Content that the cache has: for serving it. */
static bool entry_open_cached(struct entry *e)
{
	_cleanup_(str_free) struct str path = { 0 };
	stage_cache_path(e->stager->l, e->hash, &path);
	e->fd = open(str_text(&path), O_RDONLY | O_CLOEXEC);
	struct stat st;
	if (e->fd < 0)
		return false;
	if (fstat(e->fd, &st) < 0 || (uint64_t)st.st_size != e->size) {
		(void)close(e->fd);
		e->fd = -1;
		return false;
	}
	(void)futimens(e->fd, NULL); /* used now: it stays for longer */
	e->whole = true;
	e->received = e->on_disk = e->size;
	return true;
}

static int entry_open_part(struct entry *e, const uint32_t *ancestors, size_t count)
{
	_cleanup_(str_free) struct str part = { 0 };
	part_path(e, &part);
	(void)unlink(str_text(&part));
	e->fd = open(str_text(&part), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (e->fd < 0) {
		char text[400];
		int code = -errno;
		(void)snprintf(text, sizeof(text), "node %s: create %s: %s",
			       launch_name(e->stager->l, launch_self(e->stager->l)),
			       str_text(&part), strerror(-code));
		entry_fail(e, code, text);
		return code;
	}
	e->ancestor_count = MIN(count, (size_t)TREE_MAX);
	memcpy(e->ancestors, ancestors, e->ancestor_count * sizeof(*ancestors));
	return 0;
}

/* Ask, unless there is nothing to ask for. */
static void entry_begin(struct entry *e)
{
	if (!e->size)
		entry_whole(e);
	else
		ask_parent(e);
}

int stage_get(struct launch *l, struct prepare *p, const struct id *job, const struct file_wish *f,
	      const uint32_t *ancestors, size_t ancestor_count, uint32_t uid)
{
	struct entry *e;
	HASH_FIND(hh, l->stager->entries, f->hash, 32, e);
	bool fresh = !e;
	if (fresh && !(e = entry_new(l, f->hash, f->size, job))) {
		prepare_got(p, f->hash, -EAGAIN, "too many files are on their way; try again", 0);
		return -EAGAIN;
	}
	if (fresh && entry_open_cached(e)) {
		entry_free(e);
		prepare_got(p, f->hash, 0, "", 0);
		return 0;
	}
	if (e->whole) {
		prepare_got(p, f->hash, 0, "", 0);
		return 0;
	}
	struct waiter *w = xcalloc(1, sizeof(*w));
	w->p = p;
	w->next = e->waiters;
	e->waiters = w;
	e->uid = uid;
	if (!fresh)
		return 0;
	int r = entry_open_part(e, ancestors, ancestor_count);
	if (r == 0)
		entry_begin(e);
	return r;
}

void stage_cancel(struct launch *l, struct prepare *p)
{
	for (struct entry *e = l->stager->entries; e; e = e->hh.next)
		for (struct waiter *w = e->waiters; w; w = w->next)
			if (w->p == p)
				w->p = NULL;
}

static void on_want(struct launch *l, uint32_t from, const struct id *job, const Copia__FileWant *q)
{
	struct entry *e = entry_find(l, &q->hash);
	if (q->hash.len != 32)
		return;
	bool fresh = !e;
	if (fresh && !(e = entry_new(l, q->hash.data, q->size_bytes, job)))
		return;
	struct child *c = xcalloc(1, sizeof(*c));
	c->node = from;
	c->job = *job;
	c->sent = c->taken = q->offset;
	c->next = e->children;
	e->children = c;
	e->uid = q->uid;
	if (fresh && !entry_open_cached(e)) {
		if (entry_open_part(e, q->ancestors, q->n_ancestors) == 0)
			entry_begin(e);
		return;
	}
	entry_serve(e);
}

void stage_message(struct launch *l, uint32_t from, const struct id *job, const launch_message *m)
{
	if (m->body_case == COPIA__LAUNCH_MESSAGE__BODY_WANT) {
		on_want(l, from, job, m->want);
		return;
	}
	bool stop = m->body_case == COPIA__LAUNCH_MESSAGE__BODY_STOP;
	struct entry *e = entry_find(l, stop ? &m->stop->hash : &m->more->hash);
	if (!e)
		return;
	for (struct child **at = &e->children; *at; at = &(*at)->next) {
		struct child *c = *at;
		if (c->node != from)
			continue;
		if (stop) {
			*at = c->next;
			free(c);
		} else {
			c->taken = MAX(c->taken, MIN(m->more->offset, c->sent));
		}
		break;
	}
	entry_serve(e);
}

void stage_session(struct launch *l, uint32_t node, bool up)
{
	struct entry *e, *next;
	if (up)
		return;
	HASH_ITER(hh, l->stager->entries, e, next)
	{
		for (struct child **at = &e->children; *at;) {
			struct child *c = *at;
			if (c->node != node) {
				at = &c->next;
				continue;
			}
			*at = c->next;
			free(c);
		}
		if (!e->whole && !e->dead && parent_of(e) == node)
			next_parent(e, -EHOSTUNREACH, "the node that sent the file was lost");
		else
			entry_serve(e);
	}
}

/* What only this job's command could send comes no more: whoever wants it later asks anew. */
void stage_job_ended(struct launch *l, const struct id *job)
{
	struct entry *e, *next;
	bool found;
	do { /* from the start again: a failure may free other entries */
		found = false;
		HASH_ITER(hh, l->stager->entries, e, next)
		{
			found = !e->whole && !e->dead && !parent_of(e) && !id_compare(&e->job, job);
			if (found)
				break;
		}
		if (found)
			entry_fail(e, -ENOLINK, "the command that has the file has gone");
	} while (found);
}

void stage_drained(struct launch *l, uint32_t node)
{
	struct entry *e, *next;
	(void)node;
	HASH_ITER(hh, l->stager->entries, e, next)
	entry_serve(e);
}

/* ---------------------------------------------------------------- begin and end */

struct removal {
	uv_work_t work;
	char *path;
};

static void remove_work(uv_work_t *w)
{
	struct removal *r = w->data;
	files_remove_tree(r->path);
}

static void remove_done(uv_work_t *w, int status)
{
	struct removal *r = w->data;
	(void)status;
	free(r->path);
	free(r);
}

void stage_folder_remove(struct launch *l, const char *path)
{
	struct removal *r = xcalloc(1, sizeof(*r));
	r->path = xstrdup(path);
	r->work.data = r;
	(void)uv_queue_work(l->node->loop, &r->work, remove_work, remove_done);
}

static int folder(const struct launch *l, const char *name, mode_t mode, struct err *err)
{
	_cleanup_(str_free) struct str path = { 0 };
	str_printf(&path, "%s/%s", l->node->settings.state_dir, name);
	if (mkdir(str_text(&path), mode) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make folder %s: %s", str_text(&path), strerror(errno));
	if (chmod(str_text(&path), mode) < 0)
		return err_set(err, -errno, "set the mode of folder %s: %s", str_text(&path),
			       strerror(errno));
	return 0;
}

/* Users must be able to pass through the state folder of a root's daemon to the folders of their
 * jobs. They cannot list it, and everything else in it keeps them out by its own mode. */
static int state_passable(const struct launch *l, struct err *err)
{
	const char *path = l->node->settings.state_dir;
	struct stat st;
	if (!l->node->settings.root)
		return 0;
	if (stat(path, &st) == 0 && chmod(path, (st.st_mode & 07777) | 0011) == 0)
		return 0;
	return err_set(err, -errno, "set the mode of folder %s: %s", path, strerror(errno));
}

int stage_new(struct launch *l, struct err *err)
{
	if (sodium_init() < 0)
		return err_set(err, -EIO, "libsodium does not start");
	int r = state_passable(l, err);
	if (r == 0)
		r = folder(l, "cache", 0700, err);
	if (r == 0)
		r = folder(l, "jobs", 0711, err);
	if (r < 0)
		return r;
	struct stager *s = xcalloc(1, sizeof(*s));
	s->l = l;
	str_printf(&s->cache, "%s/cache", l->node->settings.state_dir);
	l->stager = s;
	return 0;
}

void stage_free(struct launch *l)
{
	struct entry *e, *next;
	HASH_ITER(hh, l->stager->entries, e, next)
	if (!e->writing)
		entry_free(e);
	str_free(&l->stager->cache);
	free(l->stager);
	l->stager = NULL;
}
