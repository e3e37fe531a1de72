/* SPDX-License-Identifier: Apache-2.0 */
/* The connection to this node's copia-wireup: found (after a restart of the brain) or started when
 * it is needed; frames wait until it is there. */
#pragma once
#include "caps/launch/launch-impl-node.h"

#include <schema/wireup.pb-c.h>

struct wire_link;

struct wire_link *wire_link_new(struct launch *l);
void wire_link_free(struct wire_link *w);
/* Make sure that the helper runs. Its failure comes by wire_lost(). */
void wire_link_need(struct wire_link *w);
/* Send or queue a frame, with a duplicate of `fd` unless -1. */
void wire_link_send(struct wire_link *w, Copia__WireupFrame *f, int fd);
bool wire_link_event(struct wire_link *w, const Copia__Shepherd__Event *e, struct task_fds *fds);

/* wire-node.c: frames that came, and the end of the helper. */
void wire_frame(struct launch *l, Copia__WireupFrame *f);
void wire_lost(struct launch *l, const char *why);
