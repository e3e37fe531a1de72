/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/token.h"

#include "base/units.h"
#include <assert.h>
#include <errno.h>

enum {
	PAYLOAD_SIZE = TOKEN_SECRET_SIZE + TOKEN_FINGERPRINT_SIZE,
	CODED_SIZE = PAYLOAD_SIZE + 2,
	DIGITS = CODED_SIZE * 8 / 5
};

static const char name[] = "copia", version[] = "1";
static const char digits[] = "0123456789abcdefghjkmnpqrstvwxyz";

static_assert(CODED_SIZE * 8 % 5 == 0, "no padding: every text has one meaning");
static_assert(TOKEN_TEXT == sizeof(name) - 1 + sizeof(version) - 1 + 1 + DIGITS + 1, "text");

/* CRC-16/CCITT-FALSE: finds every change within 16 neighbouring bits, so every single wrong
 * character and every exchange of two neighbours. */
static uint16_t crc16(const uint8_t *at, size_t len)
{
	uint16_t crc = 0xffff;
	for (size_t i = 0; i < len; i++) {
		crc = (uint16_t)(crc ^ at[i] << 8);
		for (int bit = 0; bit < 8; bit++)
			crc = (uint16_t)(crc & 0x8000 ? crc << 1 ^ 0x1021 : crc << 1);
	}
	return crc;
}

char *token_encode(const struct token *t, char buf[TOKEN_TEXT])
{
	uint8_t coded[CODED_SIZE];
	memcpy(coded, t->secret, TOKEN_SECRET_SIZE);
	memcpy(coded + TOKEN_SECRET_SIZE, t->authority, TOKEN_FINGERPRINT_SIZE);
	uint16_t crc = crc16(coded, PAYLOAD_SIZE);
	coded[PAYLOAD_SIZE] = (uint8_t)(crc >> 8);
	coded[PAYLOAD_SIZE + 1] = (uint8_t)crc;

	char *to = buf;
	memcpy(to, name, sizeof(name) - 1), to += sizeof(name) - 1;
	memcpy(to, version, sizeof(version) - 1), to += sizeof(version) - 1;
	*to++ = '-';
	for (size_t i = 0; i < DIGITS; i++) {
		size_t bit = i * 5;
		unsigned pair = coded[bit / 8] << 8;
		if (bit / 8 + 1 < CODED_SIZE)
			pair |= coded[bit / 8 + 1];
		*to++ = digits[pair >> (11 - bit % 8) & 31];
	}
	*to = '\0';
	explicit_bzero(coded, sizeof(coded));
	return buf;
}

static char lower(char c)
{
	return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c;
}

static int digit_value(char c)
{
	c = lower(c);
	c = c == 'o' ? '0' : c == 'i' || c == 'l' ? '1' : c;
	const char *found = c ? strchr(digits, c) : NULL;
	return found ? (int)(found - digits) : -1;
}

/* The part behind "copia1-". */
static int decode_digits(const char *text, size_t len, struct token *ret, struct err *err)
{
	uint8_t coded[CODED_SIZE] = { 0 };
	int r = len == DIGITS ? 0 : -EBADMSG;
	for (size_t i = 0; !r && i < DIGITS; i++) {
		int value = digit_value(text[i]);
		if (value < 0) {
			r = -EBADMSG;
			break;
		}
		size_t bit = i * 5;
		unsigned pair = (unsigned)value << (11 - bit % 8);
		coded[bit / 8] |= (uint8_t)(pair >> 8);
		if (bit / 8 + 1 < CODED_SIZE)
			coded[bit / 8 + 1] |= (uint8_t)pair;
	}
	if (!r && crc16(coded, PAYLOAD_SIZE) !=
		      (uint16_t)(coded[PAYLOAD_SIZE] << 8 | coded[PAYLOAD_SIZE + 1]))
		r = -EBADMSG;
	if (!r) {
		memcpy(ret->secret, coded, TOKEN_SECRET_SIZE);
		memcpy(ret->authority, coded + TOKEN_SECRET_SIZE, TOKEN_FINGERPRINT_SIZE);
	} else if (len != DIGITS) {
		err_set(err, r,
			"token is mistyped: it has %zu characters behind the '-' instead of %d; "
			"copy it whole from the output of 'copia token'",
			len, DIGITS);
	} else {
		err_set(err, r,
			"token is mistyped: its check does not fit; copy it again from the output "
			"of 'copia token'");
	}
	explicit_bzero(coded, sizeof(coded));
	return r;
}

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static int decode(const char *text, size_t len, struct token *ret, struct err *err)
{
	while (len && is_blank(text[0]))
		text++, len--;
	while (len && is_blank(text[len - 1]))
		len--;

	size_t at = 0;
	while (at < sizeof(name) - 1 && at < len && lower(text[at]) == name[at])
		at++;
	size_t number = at;
	while (number < len && number < at + 6 && text[number] >= '0' && text[number] <= '9')
		number++;
	if (at < sizeof(name) - 1 || number == at || number == len || text[number] != '-')
		return err_set(err, -EINVAL,
			       "this is not a join token: one begins with '%s%s-'; make one with "
			       "'copia token' on a node of the cluster",
			       name, version);
	if (number - at != sizeof(version) - 1 || memcmp(text + at, version, number - at) != 0)
		return err_set(err, -EPROTONOSUPPORT,
			       "token was made by another version of Copia: install the same "
			       "version on both machines");
	return decode_digits(text + number + 1, len - number - 1, ret, err);
}

int token_decode(const char *text, struct token *ret, struct err *err)
{
	return decode(text, strlen(text), ret, err);
}

static int parse_port(const char *text, uint16_t *ret, struct err *err)
{
	uint64_t port;
	int r = parse_u64(text, 1, 65535, &port, NULL);
	if (r < 0)
		return err_set(err, r, "port is not a number from 1 to 65535");
	*ret = (uint16_t)port;
	return 0;
}

/* What names and addresses consist of: keeps blanks, slashes and a second '@' out. */
static bool is_host(const char *text, size_t len)
{
	if (!len || len >= TOKEN_HOST_TEXT || text[0] == '-' || text[0] == '%')
		return false;
	for (size_t i = 0; i < len; i++) {
		char c = lower(text[i]);
		if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || strchr(".:-_%", c)))
			return false;
	}
	return true;
}

int token_host_parse(const char *text, uint16_t default_port, char ret_host[TOKEN_HOST_TEXT],
		     uint16_t *ret_port, struct err *err)
{
	const char *host = text, *port = NULL;
	size_t len = strlen(text);
	if (*text == '[') {
		const char *end = strchr(text, ']');
		if (!end || (end[1] && end[1] != ':'))
			return err_set(err, -EINVAL,
				       "address is not of the form [IPV6] or [IPV6]:PORT");
		host = text + 1;
		len = (size_t)(end - host);
		port = end[1] ? end + 2 : NULL;
		if (!memchr(host, ':', len))
			return err_set(err, -EINVAL, "only an IPv6 address goes into brackets");
	} else {
		const char *colon = strchr(text, ':');
		if (colon && !strchr(colon + 1, ':')) { /* two colons: a bare IPv6 address */
			len = (size_t)(colon - text);
			port = colon + 1;
		}
	}
	if (!is_host(host, len))
		return err_set(err, -EINVAL,
			       "host is missing or not a name, IPv4 or IPv6 address; the form is "
			       "HOST[:PORT]");
	uint16_t number = default_port;
	int r = port ? parse_port(port, &number, err) : 0;
	if (r < 0)
		return r;
	memcpy(ret_host, host, len);
	ret_host[len] = '\0';
	*ret_port = number;
	return 0;
}

int token_target_parse(const char *text, uint16_t default_port, struct token *ret,
		       char ret_host[TOKEN_HOST_TEXT], uint16_t *ret_port, struct err *err)
{
	while (is_blank(*text))
		text++;
	const char *at = strchr(text, '@');
	if (!at)
		return err_set(err, -EINVAL,
			       "no host: the form is TOKEN@HOST[:PORT], with a node of the "
			       "cluster as HOST");
	/* Blanks behind it come with copying, like those before it. */
	size_t len = strlen(at + 1);
	while (len && is_blank(at[len]))
		len--;
	char rest[TOKEN_HOST_TEXT + 16];
	if (len >= sizeof(rest))
		return err_set(err, -EINVAL, "host is longer than %d characters",
			       TOKEN_HOST_TEXT - 1);
	memcpy(rest, at + 1, len);
	rest[len] = '\0';

	struct token token;
	char host[TOKEN_HOST_TEXT];
	uint16_t port = 0;
	int r = decode(text, (size_t)(at - text), &token, err);
	if (!r)
		r = token_host_parse(rest, default_port, host, &port, err);
	if (!r) {
		*ret = token;
		memcpy(ret_host, host, sizeof(host));
		*ret_port = port;
	}
	explicit_bzero(&token, sizeof(token));
	return r;
}
