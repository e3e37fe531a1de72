/* SPDX-License-Identifier: Apache-2.0 */
#include "caps/launch/split.h"

#include <assert.h>

size_t split(size_t count, size_t arity, struct split_piece ret[SPLIT_DIRECT_MAX])
{
	assert(arity > 0 && arity <= SPLIT_DIRECT_MAX);
	size_t pieces = MIN(count, arity), at = 0;
	for (size_t i = 0; i < pieces; i++) {
		size_t size = count / pieces + (i < count % pieces);
		ret[i] = (struct split_piece){ .at = at, .rest = size - 1 };
		at += size;
	}
	assert(at == count);
	return pieces;
}

size_t split_parent(size_t count, size_t arity, size_t i)
{
	assert(i < count);
	size_t from = 0, parent = SIZE_MAX;
	for (;;) {
		struct split_piece pieces[SPLIT_DIRECT_MAX];
		size_t n = split(count, arity, pieces), k = n - 1;
		while (from + pieces[k].at > i)
			k--;
		if (from + pieces[k].at == i)
			return parent;
		parent = from + pieces[k].at;
		from = parent + 1;
		count = pieces[k].rest;
	}
}
