/* SPDX-License-Identifier: Apache-2.0 */
/* What people type: node lists, numbers, durations, sizes, ids. A list that was read and shown is
 * read again as the same set. */
#include "base/id.h"
#include "base/nodelist.h"
#include "base/units.h"

#include <assert.h>
#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void list(const char *text)
{
	struct nodelist l = { 0 }, again = { 0 };
	struct err err = { 0 };
	int r = nodelist_parse(text, &l, &err);
	assert(r <= 0 && (r == 0 || *err.msg));
	if (r < 0)
		return;
	struct str shown = { 0 };
	nodelist_show(l.names, l.count, &shown);
	if (shown.len < NODELIST_TEXT_MAX && l.count) {
		r = nodelist_parse(str_text(&shown), &again, &err);
		/* Brackets side by side make names that need more ranges than are read. */
		assert(r == -E2BIG || (r == 0 && again.count == l.count));
	}
	str_free(&shown);
	nodelist_free(&again);
	nodelist_free(&l);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	if (len > 4096)
		return 0;
	char *text = xstrndup((const char *)bytes, len);
	uint64_t u;
	int64_t i;
	struct id id;
	char shown[ID_TEXT];
	list(text);
	(void)parse_u64(text, 0, UINT64_MAX, &u, NULL);
	(void)parse_i64(text, INT64_MIN, INT64_MAX, &i, NULL);
	(void)parse_duration_ms(text, &u, NULL);
	(void)parse_size(text, &u, NULL);
	if (id_parse(text, &id))
		(void)id_show(&id, shown);
	free(text);
	return 0;
}
