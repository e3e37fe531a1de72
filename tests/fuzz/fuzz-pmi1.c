/* SPDX-License-Identifier: Apache-2.0 */
/* PMI-1 as hostile ranks may speak it. The input is cut at the byte 0x1e into turns of two local
 * ranks; what one node has to say in a barrier comes back to it as the result. Whatever comes in:
 * replies are whole lines and bounded, and a broken rank gets no more of them. */
#include "caps/wireup/pmi1.h"
#include <assert.h>
#include <errno.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { RANKS = 2, TURN_END = 0x1e };

struct state {
	struct pmi1 *pmi1;
	unsigned broken;
	bool asked[RANKS];
};

static void on_event(void *ctx, const struct pmi1_event *e)
{
	struct state *s = ctx;
	assert(e->local < RANKS);
	if (e->kind == PMI1_FULL) {
		assert(pmi1_waiting(s->pmi1) == RANKS);
		assert(pmi1_release(s->pmi1, e->bytes, NULL) == 0);
		assert(pmi1_waiting(s->pmi1) == 0);
	} else if (e->kind == PMI1_BROKEN) {
		assert(*e->text && e->code < 0);
		assert(!(s->broken & 1U << e->local));
		s->broken |= 1U << e->local;
	} else if (e->kind == PMI1_PUBLISH || e->kind == PMI1_LOOKUP || e->kind == PMI1_UNPUBLISH) {
		s->asked[e->local] = true;
	}
}

static void turn(struct state *s, uint32_t local, const uint8_t *bytes, size_t len)
{
	struct str *out = pmi1_out(s->pmi1, local);
	bool was_broken = s->broken & 1U << local;
	pmi1_feed(s->pmi1, local, bytes, len);
	if (s->asked[local])
		pmi1_named(s->pmi1, local, len % 2, "port");
	s->asked[local] = false;
	assert(!was_broken || !out->len);
	assert(!out->len || out->at[out->len - 1] == '\n');
	/* The last reply before the limit may be as long as a value. */
	assert(out->len <= PMI1_OUT_MAX + 2 * PMI1_VALUE_MAX);
	str_clear(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	struct state s = { 0 };
	struct pmi1_setup setup = { .kvsname = "k",
				    .mapping = "(vector,(0,1,2))",
				    .size = RANKS,
				    .local_count = RANKS,
				    .hook = on_event,
				    .ctx = &s };
	assert(pmi1_new(&s.pmi1, &setup, NULL) == 0);
	uint32_t local = 0;
	while (len) {
		const uint8_t *end = memchr(bytes, TURN_END, len);
		size_t part = end ? (size_t)(end - bytes) : len;
		turn(&s, local, bytes, part);
		local = (local + 1) % RANKS;
		bytes += part + (end != NULL);
		len -= part + (end != NULL);
	}
	for (uint32_t i = 0; i < RANKS; i++)
		pmi1_hangup(s.pmi1, i);
	pmi1_free(s.pmi1);
	return 0;
}
