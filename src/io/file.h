/* SPDX-License-Identifier: Apache-2.0 */
/* Whole small files: read with a limit, replaced without a moment in which they are half there. */
#pragma once
#include "base/err.h"
#include "base/str.h"
#include <sys/types.h>

/* Read a file of at most `max` bytes into *ret, which must be empty. On failure *ret is wiped and
 * empty. Errors: -ENOENT, -EACCES, -EFBIG, -EIO… */
int file_read(const char *path, size_t max, struct str *ret, struct err *err);

/* Replace `path` by `bytes`: written to a new file next to it with exactly `mode`, synced, renamed
 * over the old one, and the folder synced. After a crash at any point, and on failure, `path` is
 * the old file or the new one, whole; the new file's remains are removed.
 * Errors: -ENOSPC and -EDQUOT (the message says how much was needed), -EACCES, -EROFS, -EIO… */
int file_write_atomic(const char *path, const void *bytes, size_t len, mode_t mode,
		      struct err *err);
