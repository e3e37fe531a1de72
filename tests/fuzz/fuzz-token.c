/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens and addresses as people type them. What is taken can be written and read again; every
 * single wrong character of it is noticed; no message quotes it. */
#include "wire/token.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

static void check_taken(const struct token *t)
{
	char text[TOKEN_TEXT], wrong[TOKEN_TEXT];
	struct token again;
	assert(token_decode(token_encode(t, text), &again, NULL) == 0);
	assert(memcmp(&again, t, sizeof(again)) == 0);
	for (size_t i = 7; i < TOKEN_TEXT - 1; i++) {
		memcpy(wrong, text, sizeof(wrong));
		wrong[i] = wrong[i] == 'x' ? 'y' : 'x';
		assert(token_decode(wrong, &again, NULL) == -EBADMSG);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
	char *text = xstrndup((const char *)bytes, len);
	char host[TOKEN_HOST_TEXT], again_host[TOKEN_HOST_TEXT], shown[TOKEN_HOST_TEXT + 16];
	uint16_t port = 0, again_port = 0;
	struct token t;
	struct err err = { 0 };

	int r = token_decode(text, &t, &err);
	assert(r == 0 || r == -EINVAL || r == -EPROTONOSUPPORT || r == -EBADMSG);
	if (r == 0)
		check_taken(&t);
	else
		assert(*err.msg && (strlen(text) < 12 || !strstr(err.msg, text)));

	if (token_host_parse(text, 7, host, &port, &err) == 0) {
		assert(*host && port);
		(void)snprintf(shown, sizeof(shown), strchr(host, ':') ? "[%s]:%u" : "%s:%u", host,
			       port);
		assert(token_host_parse(shown, 1, again_host, &again_port, NULL) == 0);
		assert(strcmp(host, again_host) == 0 && port == again_port);
	}
	if (token_target_parse(text, 7, &t, host, &port, &err) == 0)
		check_taken(&t);
	free(text);
	return 0;
}
