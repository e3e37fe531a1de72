/* SPDX-License-Identifier: Apache-2.0 */
/* The tree along which a message or a file goes from the origin to many nodes. Pure.
 *
 * Whoever holds a list of receivers cuts it into at most `arity` pieces of nearly one size, sends
 * to the first of each piece, and hands it the rest of the piece as its own list. */
#pragma once
#include "base/util.h"

enum {
	SPLIT_DIRECT_MAX = 8, /* up to so many receivers all are children of the origin */
	SPLIT_ARITY = 4,
	SPLIT_FILE_ARITY = 2, /* for contents: each node sends few copies */
};

struct split_piece {
	size_t at; /* index of the child in the list; its own list is [at + 1, at + 1 + rest) */
	size_t rest;
};

/* Returns the number of pieces, at most `arity` <= SPLIT_DIRECT_MAX. */
size_t split(size_t count, size_t arity, struct split_piece ret[SPLIT_DIRECT_MAX]);
/* Parent of receiver `i` in the tree that split() makes of `count`; SIZE_MAX: the origin. */
size_t split_parent(size_t count, size_t arity, size_t i);
