/* SPDX-License-Identifier: Apache-2.0 */
/* Questions that the rest of the core asks about a configuration. */
#pragma once
#include "cluster/raft/plant.h"
#include "cluster/raft/raft.h"

/* The rules of struct raft_config. Errors: -EBADMSG. */
int config_check(const struct raft_config *c, struct err *err);
/* Does it count in any majority? */
bool config_votes(const struct raft_config *c, uint64_t id);
/* Is it alone every majority? */
bool config_is_sole(const struct raft_config *c, uint64_t id);
bool config_same_voters(const struct raft_config *a, const struct raft_config *b);
/* The joint configuration between the two; false when it does not fit RAFT_SERVERS_MAX. */
bool config_join(const struct raft_config *from, const struct raft_config *to,
		 struct raft_config *ret);
/* What follows a joint configuration. */
void config_leave(const struct raft_config *joint, struct raft_config *ret);
/* The largest value that a majority (when joint: both) has reached; `values` are parallel to
 * c->servers. With 1 for yes and 0 for no it answers whether a majority said yes. */
uint64_t config_quorum(const struct raft_config *c, const uint64_t *values);
