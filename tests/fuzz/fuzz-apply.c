/* SPDX-License-Identifier: Apache-2.0 */
/* A run of commands against the replicated state: length-prefixed MembersCommands. Whatever comes,
 * the invariants hold, and equal histories give equal states. */
#include "caps/members/members.h"

#include <assert.h>
#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void play(struct members *m, const uint8_t *bytes, size_t len)
{
	uint64_t now_ms = 1000000;
	while (len >= 2) {
		size_t size = bytes[0] | (size_t)bytes[1] << 8;
		bytes += 2;
		len -= 2;
		size = MIN(size, len);
		Copia__MembersCommand *c = copia__members_command__unpack(NULL, size, bytes);
		struct str result = { 0 };
		struct err err = { 0 };
		now_ms += 700;
		if (c) {
			int r = members_apply(m, m->revision + 1, now_ms, c, &result, &err);
			assert(r <= 0);
			assert(r == 0 || *err.msg || r == -ENOENT);
			copia__members_command__free_unpacked(c, NULL);
		}
		str_free(&result);
		if (members_in_cluster(m))
			members_check(m);
		bytes += size;
		len -= size;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct members *a = members_new(), *b = members_new();
	struct str sa = { 0 }, sb = { 0 };
	play(a, bytes, len);
	play(b, bytes, len);
	members_save(a, &sa);
	members_save(b, &sb);
	assert(sa.len == sb.len && !memcmp(sa.at, sb.at, sa.len));
	if (members_in_cluster(a)) {
		struct err err = { 0 };
		assert(members_load(b, (const uint8_t *)sa.at, sa.len, &err) == 0);
		members_check(b);
	}
	str_free(&sa);
	str_free(&sb);
	members_free(a);
	members_free(b);
	return 0;
}
