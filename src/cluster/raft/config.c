/* SPDX-License-Identifier: Apache-2.0 */
/* Sets of servers: editing, encoding, majorities. */
#include "cluster/raft/config.h"
#include <assert.h>
#include <errno.h>

enum { CONFIG_VERSION = 1, SERVER_SIZE = 9 };

bool raft_config_set(struct raft_config *c, uint64_t id, unsigned roles)
{
	if (id == 0)
		return false;
	unsigned at = 0;
	while (at < c->count && c->servers[at].id < id)
		at++;
	if (at < c->count && c->servers[at].id == id) {
		c->servers[at].roles = roles;
		return true;
	}
	if (c->count == RAFT_SERVERS_MAX)
		return false;
	memmove(&c->servers[at + 1], &c->servers[at], (c->count - at) * sizeof(c->servers[0]));
	c->servers[at] = (struct raft_server){ .id = id, .roles = roles };
	c->count++;
	return true;
}

void raft_config_remove(struct raft_config *c, uint64_t id)
{
	for (unsigned i = 0; i < c->count; i++) {
		if (c->servers[i].id != id)
			continue;
		c->count--;
		memmove(&c->servers[i], &c->servers[i + 1], (c->count - i) * sizeof(c->servers[0]));
		return;
	}
}

unsigned raft_config_roles(const struct raft_config *c, uint64_t id)
{
	for (unsigned i = 0; i < c->count; i++)
		if (c->servers[i].id == id)
			return c->servers[i].roles;
	return 0;
}

static unsigned count_role(const struct raft_config *c, unsigned role)
{
	unsigned n = 0;
	for (unsigned i = 0; i < c->count; i++)
		n += (c->servers[i].roles & role) != 0;
	return n;
}

bool raft_config_is_joint(const struct raft_config *c)
{
	return count_role(c, RAFT_VOTER_OLD) > 0;
}

bool raft_config_equal(const struct raft_config *a, const struct raft_config *b)
{
	if (a->count != b->count)
		return false;
	for (unsigned i = 0; i < a->count; i++)
		if (a->servers[i].id != b->servers[i].id ||
		    a->servers[i].roles != b->servers[i].roles)
			return false;
	return true;
}

size_t raft_config_encode(const struct raft_config *c, uint8_t buf[RAFT_CONFIG_SIZE_MAX])
{
	assert(c->count <= RAFT_SERVERS_MAX);
	uint8_t *at = buf;
	*at++ = CONFIG_VERSION;
	*at++ = (uint8_t)c->count;
	for (unsigned i = 0; i < c->count; i++) {
		for (unsigned b = 0; b < 8; b++)
			*at++ = (uint8_t)(c->servers[i].id >> (8 * b));
		*at++ = (uint8_t)c->servers[i].roles;
	}
	return (size_t)(at - buf);
}

int config_check(const struct raft_config *c, struct err *err)
{
	if (c->count == 0 || c->count > RAFT_SERVERS_MAX)
		return err_set(err, -EBADMSG, "configuration: %u servers", c->count);
	for (unsigned i = 0; i < c->count; i++) {
		const struct raft_server *s = &c->servers[i];
		unsigned known = RAFT_VOTER | RAFT_VOTER_OLD | RAFT_LEARNER;
		unsigned both = RAFT_VOTER | RAFT_LEARNER;
		if (s->id == 0 || (i > 0 && s->id <= c->servers[i - 1].id))
			return err_set(err, -EBADMSG, "configuration: ids not in order at %u", i);
		if (s->roles == 0 || (s->roles & ~known) || (s->roles & both) == both)
			return err_set(err, -EBADMSG, "configuration: server %llu has roles %u",
				       (unsigned long long)s->id, s->roles);
	}
	if (count_role(c, RAFT_VOTER) == 0)
		return err_set(err, -EBADMSG, "configuration: no voter");
	return 0;
}

int raft_config_decode(const uint8_t *data, size_t len, struct raft_config *ret, struct err *err)
{
	if (len < 2 || data[0] != CONFIG_VERSION || data[1] > RAFT_SERVERS_MAX ||
	    len != 2 + (size_t)data[1] * SERVER_SIZE)
		return err_set(err, -EBADMSG, "configuration: malformed, %zu bytes", len);
	struct raft_config c = { .count = data[1] };
	const uint8_t *at = data + 2;
	for (unsigned i = 0; i < c.count; i++, at += SERVER_SIZE) {
		for (unsigned b = 0; b < 8; b++)
			c.servers[i].id |= (uint64_t)at[b] << (8 * b);
		c.servers[i].roles = at[8];
	}
	int r = config_check(&c, err);
	if (r < 0)
		return r;
	*ret = c;
	return 0;
}

void raft_bootstrap(const struct raft_config *c, uint8_t buf[RAFT_CONFIG_SIZE_MAX],
		    struct raft_entry *ret)
{
	size_t len = raft_config_encode(c, buf);
	*ret = (struct raft_entry){
		.index = 1, .term = 1, .type = RAFT_CONFIG, .len = (uint32_t)len, .data = buf
	};
}

bool config_votes(const struct raft_config *c, uint64_t id)
{
	return (raft_config_roles(c, id) & (RAFT_VOTER | RAFT_VOTER_OLD)) != 0;
}

bool config_is_sole(const struct raft_config *c, uint64_t id)
{
	if (!config_votes(c, id))
		return false;
	for (unsigned i = 0; i < c->count; i++)
		if (c->servers[i].id != id && (c->servers[i].roles & (RAFT_VOTER | RAFT_VOTER_OLD)))
			return false;
	return true;
}

bool config_same_voters(const struct raft_config *a, const struct raft_config *b)
{
	if (count_role(a, RAFT_VOTER) != count_role(b, RAFT_VOTER))
		return false;
	for (unsigned i = 0; i < a->count; i++)
		if ((a->servers[i].roles & RAFT_VOTER) &&
		    !(raft_config_roles(b, a->servers[i].id) & RAFT_VOTER))
			return false;
	return true;
}

bool config_join(const struct raft_config *from, const struct raft_config *to,
		 struct raft_config *ret)
{
	struct raft_config c = *to;
	for (unsigned i = 0; i < from->count; i++) {
		const struct raft_server *s = &from->servers[i];
		if ((s->roles & RAFT_VOTER) &&
		    !raft_config_set(&c, s->id, raft_config_roles(to, s->id) | RAFT_VOTER_OLD))
			return false;
	}
	*ret = c;
	return true;
}

void config_leave(const struct raft_config *joint, struct raft_config *ret)
{
	struct raft_config c = { 0 };
	for (unsigned i = 0; i < joint->count; i++) {
		unsigned roles = joint->servers[i].roles & ~(unsigned)RAFT_VOTER_OLD;
		if (roles)
			c.servers[c.count++] = (struct raft_server){ joint->servers[i].id, roles };
	}
	*ret = c;
}

/* The largest value that a majority of the servers with `role` has reached. */
static uint64_t majority_of(const struct raft_config *c, unsigned role, const uint64_t *values)
{
	uint64_t sorted[RAFT_SERVERS_MAX];
	unsigned n = 0;
	for (unsigned i = 0; i < c->count; i++) {
		if (!(c->servers[i].roles & role))
			continue;
		unsigned at = n++;
		for (; at > 0 && sorted[at - 1] < values[i]; at--)
			sorted[at] = sorted[at - 1];
		sorted[at] = values[i];
	}
	assert(n > 0);
	return sorted[n / 2];
}

uint64_t config_quorum(const struct raft_config *c, const uint64_t *values)
{
	uint64_t now = majority_of(c, RAFT_VOTER, values);
	if (planted(PLANT_NEW_MAJORITY_ONLY) || !raft_config_is_joint(c))
		return now;
	return MIN(now, majority_of(c, RAFT_VOTER_OLD, values));
}
