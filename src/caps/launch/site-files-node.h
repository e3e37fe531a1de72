/* SPDX-License-Identifier: Apache-2.0 */
/* Files on the disk of a site, handled in a thread of the pool with the rights of a user. Blocking;
 * nothing here touches the loop. */
#pragma once
#include "base/err.h"
#include "base/str.h"

#include <schema/launch.pb-c.h>
#include <sys/types.h>

#define FILE_NO_HASH UINT64_MAX

/* Whose rights a file is touched with. */
struct file_user {
	bool change; /* the daemon is root and becomes the user for a moment */
	uid_t uid;
	gid_t gid;
	gid_t *groups;
	size_t group_count;
};

/* A file that is to be at hand. Texts are owned. */
struct file_wish {
	uint8_t hash[32];
	uint64_t size; /* FILE_NO_HASH: the content is not known */
	mode_t mode;
	char *name, *path;
	struct str cached; /* where its content lies in the node's cache */
};

void file_wish_init(struct file_wish *w, const Copia__LaunchFile *f);
void file_wish_free(struct file_wish *w);

/* Hash of a file (BLAKE2b-256), opened with the rights of `u` (NULL: our own). Errors: those of
 * open(2) and read(2), -EINVAL (no regular file). */
int files_hash(const struct file_user *u, const char *path, uint8_t hash[32], uint64_t *ret_size);
/* True when the file is at its path (or, with `folder`, there under its name) with this content. */
bool files_same(const struct file_user *u, const struct file_wish *w, const char *folder);
bool files_folder_usable(const struct file_user *u, const char *path);

/* Link the cached program to FOLDER/bin/INDEX/NAME. */
int files_link_program(const struct file_user *u, const struct file_wish *w, const char *folder,
		       int index, struct err *err);
/* Copy a file to FOLDER/files/NAME, the user's own; from its path when `in_place`, else from the
 * cache. */
int files_copy_staged(const struct file_user *u, const struct file_wish *w, const char *folder,
		      bool in_place, struct err *err);
/* Hand the filled folder over to the user, who alone can enter it. */
int files_give(const struct file_user *u, const char *folder, struct err *err);
/* Copy the cached file to FOLDER/NAME with the rights of the user: written under another name and
 * renamed over what is there. */
int files_copy_to(const struct file_user *u, const struct file_wish *w, const char *folder,
		  struct err *err);
/* Remove a folder and what is in it; symbolic links are not followed. */
void files_remove_tree(const char *path);
/* Remove the files of the cache that were not used for longest until at most `most` bytes are left.
 */
void files_trim(const char *folder, uint64_t most);
