/* SPDX-License-Identifier: Apache-2.0 */
/* Any words behind any verb: a request that survives the way to the daemon, or a message that says
 * what is wrong. First byte: the verb; words end with a NUL byte. */
#include "base/str.h"
#include "cli/args.h"
#include "cli/nearest.h"
#include "lib/json.h"

#include <assert.h>
#include <errno.h>
#include <jansson.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { WORDS_MAX = 64 };

/* Packed, unpacked and packed again it is the same, and its JSON can be read. */
static void check_request(const struct verb *v, const ProtobufCMessage *m)
{
	size_t size = protobuf_c_message_get_packed_size(m);
	uint8_t *packed = xmalloc(size + 1), *again = xmalloc(size + 1);
	assert(protobuf_c_message_pack(m, packed) == size);
	ProtobufCMessage *back = protobuf_c_message_unpack(v->request, NULL, size, packed);
	assert(back && protobuf_c_message_get_packed_size(back) == size);
	(void)protobuf_c_message_pack(back, again);
	assert(!memcmp(packed, again, size));
	protobuf_c_message_free_unpacked(back, NULL);
	free(packed);
	free(again);
	_cleanup_(str_free) struct str text = { 0 };
	json_message(&text, m, false);
	json_t *json = json_loadb(text.at, text.len, JSON_DECODE_INT_AS_REAL, NULL);
	assert(json);
	json_decref(json);
}

static void check_words(const struct verb *v, char **words, size_t count)
{
	struct err err = { 0 };
	struct args_common common;
	ProtobufCMessage *m = NULL;
	int r = args_read(v, words, count, &m, &common, &err);
	assert(r == 0 || r == -EINVAL || r == -ERANGE);
	if (r < 0)
		assert(!m && *err.msg && err.code == r);
	else
		assert(common.help == !m);
	if (m) {
		check_request(v, m);
		protobuf_c_message_free_unpacked(m, NULL);
	}
	for (size_t i = 0; i + 1 < count; i++) {
		const char *best = NULL;
		nearest_try(words[i], words[i + 1], &best);
		assert(!best || best == words[i + 1]);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	if (!len)
		return 0;
	const struct verb *v = &verbs[bytes[0] % verb_count];
	char *text = xmalloc(len), *words[WORDS_MAX];
	memcpy(text, bytes + 1, len - 1);
	text[len - 1] = '\0';
	size_t count = 0;
	for (char *at = text; at < text + len - 1 && count < WORDS_MAX; at += strlen(at) + 1)
		words[count++] = at;
	check_words(v, words, count);
	free(text);
	return 0;
}
