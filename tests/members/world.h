/* SPDX-License-Identifier: Apache-2.0 */
/* A small cluster in memory: commands by name, applied at once with a clock that the test moves. */
#pragma once
#include "caps/members/members.h"

struct world {
	struct members *m;
	uint64_t now_ms;
	struct str result;
	struct err err;
	struct str *record; /* when set: each command, length-prefixed, for the fuzzer's corpus */
};

void world_open(struct world *w); /* empty */
void world_close(struct world *w);
int world_apply(struct world *w, Copia__MembersCommand *c);

int world_init(struct world *w, const char *cluster, const char *node);
int world_token(struct world *w, char which, uint64_t lifetime_ms);
int world_join(struct world *w, char which, const char *name, char attempt);
int world_state(struct world *w, uint32_t number, Copia__NodeState state);
int world_role(struct world *w, uint32_t number, Copia__NodeRole role);
int world_drain(struct world *w, uint32_t number, bool on);
int world_leave(struct world *w, uint32_t number);
int world_certificate(struct world *w, uint32_t number, char which);
int world_key(struct world *w, uint32_t epoch);
int world_set(struct world *w, const char *name, const char *value);
int world_update(struct world *w, uint32_t number, uint64_t incarnation);
int world_resource(struct world *w, const char *name, bool define, bool place, uint32_t on);
int world_resource_ended(struct world *w, const char *name, uint64_t placed);
/* init with n1, and n2…nCOUNT joined. */
void world_with(struct world *w, unsigned count);
