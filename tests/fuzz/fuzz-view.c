/* SPDX-License-Identifier: Apache-2.0 */
/* A view from a leader gone mad: refused or taken over whole, never a crash. */
#include "caps/members/members.h"

#include <assert.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	Copia__View *v = copia__view__unpack(NULL, len, bytes);
	if (!v)
		return 0;
	struct members *m = members_new();
	struct err err = { 0 };
	int r = members_merge(m, v, &err);
	if (r > 0) {
		Copia__View *own = members_view(m, 0);
		struct members *again = members_new();
		(void)members_merge(again, own, &err);
		assert(again->state->n_nodes == m->state->n_nodes);
		copia__view__free_unpacked(own, NULL);
		members_free(again);
	}
	members_free(m);
	copia__view__free_unpacked(v, NULL);
	return 0;
}
