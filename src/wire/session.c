/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/session.h"

#include <assert.h>
#include <errno.h>

enum { START_SIZE = 1 + 2 + 2, HELLO_SIZE = START_SIZE + ID_SIZE + 4 + 8 + 8 };

static void put(struct str *out, uint64_t value, size_t size)
{
	uint8_t bytes[8];
	assert(size <= sizeof(bytes));
	for (size_t i = 0; i < size; i++)
		bytes[i] = (uint8_t)(value >> 8 * i);
	str_add(out, bytes, size);
}

static uint64_t get(const uint8_t **at, size_t size)
{
	uint64_t value = 0;
	for (size_t i = 0; i < size; i++)
		value |= (uint64_t)(*at)[i] << 8 * i;
	*at += size;
	return value;
}

void session_write(struct str *out, const struct session_message *m)
{
	assert(m->type > 0 && m->type < SESSION_TYPE_COUNT);
	put(out, m->type, 1);
	put(out, m->version_min, 2);
	put(out, m->version_max, 2);
	switch (m->type) {
	case SESSION_HELLO:
		str_add(out, m->cluster.at, ID_SIZE);
		put(out, m->node, 4);
		put(out, m->incarnation, 8);
		put(out, m->order, 8);
		break;
	case SESSION_REFUSE:
		put(out, m->code, 2);
		str_add(out, m->body.at, MIN(m->body.len, (size_t)SESSION_TEXT_MAX));
		break;
	default:
		str_add(out, m->body.at, m->body.len);
	}
}

int session_read(struct span bytes, struct session_message *ret, struct err *err)
{
	const uint8_t *at = bytes.at, *end = bytes.at + bytes.len;
	if (bytes.len < START_SIZE)
		return err_set(err, -EPROTO, "session message of %zu bytes is too short",
			       bytes.len);
	struct session_message m = { .type = (enum session_type)get(&at, 1) };
	m.version_min = (uint16_t)get(&at, 2);
	m.version_max = (uint16_t)get(&at, 2);
	if (m.type == 0 || m.type >= SESSION_TYPE_COUNT)
		return err_set(err, -EPROTO, "session message of unknown type %u", m.type);
	if (m.version_min == 0 || m.version_min > m.version_max)
		return err_set(err, -EPROTO, "session message with impossible versions");

	if (m.type == SESSION_HELLO) {
		if (bytes.len < HELLO_SIZE)
			return err_set(err, -EPROTO, "greeting of %zu bytes is too short",
				       bytes.len);
		memcpy(m.cluster.at, at, ID_SIZE);
		at += ID_SIZE;
		m.node = (uint32_t)get(&at, 4);
		m.incarnation = get(&at, 8);
		m.order = get(&at, 8);
	} else if (m.type == SESSION_REFUSE) {
		if (end - at < 2)
			return err_set(err, -EPROTO, "refusal without a code");
		unsigned code = (unsigned)get(&at, 2);
		m.code = code < SESSION_CODE_COUNT ? (enum session_code)code : SESSION_OTHER;
	}
	if (m.type != SESSION_HELLO)
		m.body = (struct span){ at, (size_t)(end - at) };
	*ret = m;
	return 0;
}

uint16_t session_version(uint16_t min_a, uint16_t max_a, uint16_t min_b, uint16_t max_b)
{
	uint16_t highest = MIN(max_a, max_b);
	return highest >= min_a && highest >= min_b ? highest : 0;
}

char *session_text(struct span body, char buf[SESSION_TEXT_MAX + 1])
{
	size_t len = MIN(body.len, (size_t)SESSION_TEXT_MAX);
	for (size_t i = 0; i < len; i++)
		buf[i] = body.at[i] >= ' ' && body.at[i] < 127 ? (char)body.at[i] : '?';
	buf[len] = '\0';
	return buf;
}
