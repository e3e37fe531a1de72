/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/members/members-node.h"

#include "io/file.h"
#include "io/pki.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { IDENTITY_FILE_MAX = 16 << 20, IDENTITY_ROOM_BYTES = 1 << 20 };

/* Written in this order, so that node.crt, which comes last, means that all are there. */
static const struct {
	const char *name;
	size_t offset;
	mode_t mode;
} files[] = {
	{ "authority.crt", offsetof(struct identity, authority), 0644 },
	{ "view", offsetof(struct identity, view), 0600 },
	{ "node.key", offsetof(struct identity, key), 0600 },
	{ "node.crt", offsetof(struct identity, cert), 0644 },
};

static struct str *field(const struct identity *i, size_t at)
{
	return (struct str *)((char *)i + files[at].offset);
}

static const char *path_of(const char *state_dir, const char *name, char buf[4096])
{
	(void)snprintf(buf, 4096, "%s/identity/%s", state_dir, name);
	return buf;
}

void identity_free(struct identity *i)
{
	pki_wipe(&i->key);
	str_free(&i->authority);
	str_free(&i->cert);
	str_free(&i->view);
}

static int read_names(const char *state_dir, struct identity *i, struct err *err)
{
	char path[4096];
	struct pki_cert cert;
	int r = pki_verify(pki_span(&i->authority), pki_span(&i->cert), &cert, err);
	if (r < 0)
		return err_wrap(err, r, "%s", path_of(state_dir, "node.crt", path));
	i->cluster = cert.cluster;
	i->number = cert.node;
	Copia__View *v = copia__view__unpack(NULL, i->view.len, (const uint8_t *)i->view.at);
	if (!v)
		return err_set(err, -EBADMSG, "%s is damaged; remove the folder and join again",
			       path_of(state_dir, "view", path));
	for (size_t k = 0; k < v->n_nodes; k++)
		if (v->nodes[k]->number == i->number)
			(void)snprintf(i->name, sizeof(i->name), "%s", v->nodes[k]->name);
	copia__view__free_unpacked(v, NULL);
	return 0;
}

int identity_load(const char *state_dir, struct identity *ret, struct err *err)
{
	char path[4096];
	struct identity i = { 0 };
	if (access(path_of(state_dir, "node.crt", path), F_OK) < 0 && errno == ENOENT)
		return 1;
	int r = 0;
	for (size_t k = 0; k < ARRAY_LEN(files) && r == 0; k++)
		r = file_read(path_of(state_dir, files[k].name, path), IDENTITY_FILE_MAX,
			      field(&i, k), err);
	if (r == 0)
		r = read_names(state_dir, &i, err);
	if (r < 0) {
		identity_free(&i);
		return r;
	}
	*ret = i;
	return 0;
}

int identity_save(const char *state_dir, const struct identity *i, struct err *err)
{
	char path[4096];
	(void)snprintf(path, sizeof(path), "%s/identity", state_dir);
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make folder %s: %s", path, strerror(errno));
	for (size_t k = 0; k < ARRAY_LEN(files); k++) {
		const struct str *text = field(i, k);
		int r = file_write_atomic(path_of(state_dir, files[k].name, path), text->at,
					  text->len, files[k].mode, err);
		if (r < 0)
			return r;
	}
	return 0;
}

int identity_room(const char *state_dir, struct err *err)
{
	char path[4096];
	(void)snprintf(path, sizeof(path), "%s/identity", state_dir);
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return err_set(err, -errno, "make folder %s: %s", path, strerror(errno));
	struct str nothing = { 0 };
	str_reserve(&nothing, IDENTITY_ROOM_BYTES);
	memset(nothing.at, 0, IDENTITY_ROOM_BYTES);
	int r = file_write_atomic(path_of(state_dir, "room", path), nothing.at, IDENTITY_ROOM_BYTES,
				  0600, err);
	(void)unlink(path);
	str_free(&nothing);
	return r;
}

int identity_save_view(const char *state_dir, const struct identity *i, struct err *err)
{
	char path[4096];
	return file_write_atomic(path_of(state_dir, "view", path), i->view.at, i->view.len, 0600,
				 err);
}

int identity_remove(const char *state_dir, struct err *err)
{
	char path[4096], old[4096], kept[4096];
	int r = 0;
	for (size_t k = ARRAY_LEN(files); k-- > 0;)
		if (unlink(path_of(state_dir, files[k].name, path)) < 0 && errno != ENOENT)
			r = err_set(err, -errno, "remove %s: %s", path, strerror(errno));
	/* The log may be needed by whoever finds out that leaving was a mistake. */
	(void)snprintf(old, sizeof(old), "%s/log", state_dir);
	(void)snprintf(kept, sizeof(kept), "%s/log.left-%lld", state_dir, (long long)time(NULL));
	if (rename(old, kept) < 0 && errno != ENOENT)
		r = err_set(err, -errno, "set aside %s: %s", old, strerror(errno));
	return r;
}
