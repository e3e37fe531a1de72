/* SPDX-License-Identifier: Apache-2.0 */
#include "world.h"

#include <assert.h>
#include <stdio.h>

#define SEND(name, upper, init)                                                                    \
	Copia__MembersCommand cmd = COPIA__MEMBERS_COMMAND__INIT;                                  \
	cmd.body_case = COPIA__MEMBERS_COMMAND__BODY_##upper;                                      \
	cmd.name = &(init);                                                                        \
	return world_apply(w, &cmd)

static uint8_t *fill(uint8_t *at, size_t len, char which)
{
	memset(at, which, len);
	return at;
}

void world_open(struct world *w)
{
	*w = (struct world){ .m = members_new(), .now_ms = 1000000 };
}

void world_close(struct world *w)
{
	members_free(w->m);
	str_free(&w->result);
}

int world_apply(struct world *w, Copia__MembersCommand *c)
{
	if (w->record) {
		size_t size = copia__members_command__get_packed_size(c);
		uint8_t prefix[2] = { (uint8_t)size, (uint8_t)(size >> 8) };
		str_add(w->record, prefix, 2);
		str_reserve(w->record, size);
		(void)copia__members_command__pack(c, (uint8_t *)w->record->at + w->record->len);
		w->record->len += size;
	}
	str_clear(&w->result);
	w->err = (struct err){ 0 };
	int r = members_apply(w->m, w->m->revision + 1, w->now_ms, c, &w->result, &w->err);
	if (members_in_cluster(w->m))
		members_check(w->m);
	return r;
}

int world_init(struct world *w, const char *cluster, const char *node)
{
	uint8_t id[16], key[32], print[32];
	char *addresses[] = { "10.0.0.1" };
	Copia__Node first = COPIA__NODE__INIT;
	first.name = (char *)node;
	first.addresses = addresses;
	first.n_addresses = 1;
	first.port = 26742;
	first.incarnation = 1;
	first.fingerprint = (ProtobufCBinaryData){ 32, fill(print, 32, 'F') };
	Copia__InitCommand c = COPIA__INIT_COMMAND__INIT;
	c.cluster_id = (ProtobufCBinaryData){ 16, fill(id, 16, 'I') };
	c.cluster_name = (char *)cluster;
	c.key_master = (ProtobufCBinaryData){ 32, fill(key, 32, 'K') };
	c.profile = "lan";
	c.first = &first;
	SEND(init, INIT, c);
}

int world_token(struct world *w, char which, uint64_t lifetime_ms)
{
	uint8_t hash[32];
	Copia__TokenCommand c = COPIA__TOKEN_COMMAND__INIT;
	c.hash = (ProtobufCBinaryData){ 32, fill(hash, 32, which) };
	c.lifetime_ms = lifetime_ms;
	c.by = "root";
	SEND(token, TOKEN, c);
}

int world_join(struct world *w, char which, const char *name, char attempt)
{
	uint8_t hash[32], tried[16];
	char *addresses[] = { "10.0.0.2" };
	Copia__Node node = COPIA__NODE__INIT;
	node.name = (char *)name;
	node.addresses = addresses;
	node.n_addresses = 1;
	node.port = 26742;
	node.incarnation = 1;
	Copia__JoinCommand c = COPIA__JOIN_COMMAND__INIT;
	c.token_hash = (ProtobufCBinaryData){ 32, fill(hash, 32, which) };
	c.attempt = (ProtobufCBinaryData){ 16, fill(tried, 16, attempt) };
	c.node = &node;
	SEND(join, JOIN, c);
}

int world_state(struct world *w, uint32_t number, Copia__NodeState state)
{
	Copia__StateCommand c = COPIA__STATE_COMMAND__INIT;
	c.number = number;
	c.state = state;
	c.reason = "test";
	SEND(state, STATE, c);
}

int world_role(struct world *w, uint32_t number, Copia__NodeRole role)
{
	Copia__RoleCommand c = COPIA__ROLE_COMMAND__INIT;
	c.number = number;
	c.role = role;
	c.reason = "test";
	SEND(role, ROLE, c);
}

int world_drain(struct world *w, uint32_t number, bool on)
{
	Copia__DrainCommand c = COPIA__DRAIN_COMMAND__INIT;
	c.number = number;
	c.on = on;
	c.by = "root";
	SEND(drain, DRAIN, c);
}

int world_leave(struct world *w, uint32_t number)
{
	Copia__LeaveCommand c = COPIA__LEAVE_COMMAND__INIT;
	c.number = number;
	c.by = "root";
	SEND(leave, LEAVE, c);
}

int world_certificate(struct world *w, uint32_t number, char which)
{
	uint8_t print[32];
	Copia__CertificateCommand c = COPIA__CERTIFICATE_COMMAND__INIT;
	c.number = number;
	c.fingerprint = (ProtobufCBinaryData){ 32, fill(print, 32, which) };
	SEND(certificate, CERTIFICATE, c);
}

int world_key(struct world *w, uint32_t epoch)
{
	uint8_t key[32];
	Copia__KeyCommand c = COPIA__KEY_COMMAND__INIT;
	c.epoch = epoch;
	c.key_master = (ProtobufCBinaryData){ 32, fill(key, 32, (char)('a' + epoch)) };
	c.by = "root";
	SEND(key, KEY, c);
}

int world_set(struct world *w, const char *name, const char *value)
{
	Copia__SettingCommand c = COPIA__SETTING_COMMAND__INIT;
	c.name = (char *)name;
	c.value = (char *)value;
	c.by = "root";
	SEND(setting, SETTING, c);
}

int world_update(struct world *w, uint32_t number, uint64_t incarnation)
{
	Copia__UpdateCommand c = COPIA__UPDATE_COMMAND__INIT;
	c.number = number;
	c.incarnation = incarnation;
	SEND(update, UPDATE, c);
}

int world_resource(struct world *w, const char *name, bool define, bool place, uint32_t on)
{
	char *argv[] = { "true" };
	Copia__Resource r = COPIA__RESOURCE__INIT;
	r.argv = argv;
	r.n_argv = 1;
	Copia__ResourceCommand c = COPIA__RESOURCE_COMMAND__INIT;
	c.name = (char *)name;
	c.define = define ? &r : NULL;
	c.place = place;
	c.place_on = on;
	c.remove = !define && !place;
	SEND(resource, RESOURCE, c);
}

int world_resource_ended(struct world *w, const char *name, uint64_t placed)
{
	Copia__ResourceCommand c = COPIA__RESOURCE_COMMAND__INIT;
	c.name = (char *)name;
	c.place = true;
	c.ended = true;
	c.placed = placed;
	SEND(resource, RESOURCE, c);
}

void world_with(struct world *w, unsigned count)
{
	world_open(w);
	int r = world_init(w, "lab", "n1");
	assert(r == 0);
	for (unsigned i = 2; i <= count; i++) {
		char name[16];
		(void)snprintf(name, sizeof(name), "n%u", i);
		r = world_token(w, (char)i, 60000);
		assert(r == 0);
		r = world_join(w, (char)i, name, 'x');
		assert(r == 0);
	}
}
