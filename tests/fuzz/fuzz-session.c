/* SPDX-License-Identifier: Apache-2.0 */
/* Greetings and refusals from strangers: what is taken means the same when written and read again.
 */
#include "wire/session.h"

#include <assert.h>
#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct session_message m, again;
	char text[SESSION_TEXT_MAX + 1];
	int r = session_read((struct span){ bytes, len }, &m, NULL);
	assert(r == 0 || r == -EPROTO);
	if (r < 0)
		return 0;
	assert(m.type > 0 && m.type < SESSION_TYPE_COUNT && m.code < SESSION_CODE_COUNT);
	assert(m.body.len <= len);
	for (const char *c = session_text(m.body, text); *c; c++)
		assert(*c >= ' ' && *c < 127);

	struct str out = { 0 };
	session_write(&out, &m);
	r = session_read((struct span){ (const uint8_t *)out.at, out.len }, &again, NULL);
	assert(r == 0 && again.type == m.type && again.code == m.code && again.node == m.node);
	assert(again.order == m.order && again.incarnation == m.incarnation);
	assert(id_compare(&again.cluster, &m.cluster) == 0);
	assert(again.version_min == m.version_min && again.version_max == m.version_max);
	uint16_t version = session_version(m.version_min, m.version_max, 1, 3);
	assert(version <= 3 && (!version || version <= m.version_max));
	str_free(&out);
	return 0;
}
