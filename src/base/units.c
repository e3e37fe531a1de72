/* SPDX-License-Identifier: Apache-2.0 */
#include "base/units.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>

static int read_digits(const char *text, const char **ret_end, uint64_t *ret, struct err *err)
{
	if (!isdigit((unsigned char)text[0]))
		return err_set(err, -EINVAL, "\"%.40s\" is not a number", text);
	uint64_t value = 0;
	const char *at = text;
	for (; isdigit((unsigned char)*at); at++)
		if (__builtin_mul_overflow(value, 10, &value) ||
		    __builtin_add_overflow(value, (uint64_t)(*at - '0'), &value))
			return err_set(err, -ERANGE, "\"%.40s\" is too large", text);
	*ret_end = at;
	*ret = value;
	return 0;
}

int parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct err *err)
{
	const char *end;
	uint64_t value;
	int r = read_digits(text, &end, &value, err);
	if (r < 0)
		return r;
	if (*end)
		return err_set(err, -EINVAL, "\"%.40s\" is not a whole number", text);
	if (value < min || value > max)
		return err_set(err, -ERANGE, "%llu is not between %llu and %llu",
			       (unsigned long long)value, (unsigned long long)min,
			       (unsigned long long)max);
	*ret = value;
	return 0;
}

int parse_i64(const char *text, int64_t min, int64_t max, int64_t *ret, struct err *err)
{
	bool negative = text[0] == '-';
	uint64_t magnitude;
	int r = parse_u64(text + negative, 0, (uint64_t)INT64_MAX + negative, &magnitude, err);
	if (r < 0)
		return r;
	int64_t value = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
	if (value < min || value > max)
		return err_set(err, -ERANGE, "%lld is not between %lld and %lld", (long long)value,
			       (long long)min, (long long)max);
	*ret = value;
	return 0;
}

struct unit {
	const char *name;
	uint64_t factor;
};

static int read_unit(const char *text, const struct unit *units, const char *allowed, uint64_t *ret,
		     struct err *err)
{
	const char *end;
	uint64_t value;
	int r = read_digits(text, &end, &value, err);
	if (r < 0)
		return r;
	for (const struct unit *u = units; u->name; u++) {
		if (strcmp(end, u->name))
			continue;
		if (__builtin_mul_overflow(value, u->factor, ret))
			return err_set(err, -ERANGE, "\"%.40s\" is too large", text);
		return 0;
	}
	return err_set(err, -EINVAL, "\"%.40s\" does not end in one of: %s", text, allowed);
}

int parse_duration_ms(const char *text, uint64_t *ret_ms, struct err *err)
{
	static const struct unit units[] = { { "", 1000 },   { "ms", 1 },      { "s", 1000 },
					     { "m", 60000 }, { "h", 3600000 }, { "d", 86400000 },
					     { NULL, 0 } };
	return read_unit(text, units, "ms s m h d", ret_ms, err);
}

#define SIZE_UNIT(letter, shift)                                                                   \
	{ letter, 1ULL << (shift) }, { letter "B", 1ULL << (shift) },                              \
	{                                                                                          \
		letter "iB", 1ULL << (shift)                                                       \
	}

int parse_size(const char *text, uint64_t *ret_bytes, struct err *err)
{
	static const struct unit units[] = { { "", 1 },          { "B", 1 },
					     SIZE_UNIT("K", 10), SIZE_UNIT("M", 20),
					     SIZE_UNIT("G", 30), SIZE_UNIT("T", 40),
					     { NULL, 0 } };
	return read_unit(text, units, "K M G T", ret_bytes, err);
}

char *show_size(uint64_t bytes, char buf[32])
{
	static const char *const names[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB" };
	double value = (double)bytes;
	unsigned unit = 0;
	while (value >= 1024 && unit + 1 < ARRAY_LEN(names)) {
		value /= 1024;
		unit++;
	}
	(void)snprintf(buf, 32, unit && value < 100 ? "%.1f %s" : "%.0f %s", value, names[unit]);
	return buf;
}

char *show_duration(uint64_t ms, char buf[32])
{
	unsigned long long s = ms / 1000;
	if (ms < 1000)
		(void)snprintf(buf, 32, "%llu ms", (unsigned long long)ms);
	else if (s < 120)
		(void)snprintf(buf, 32, "%llu s", s);
	else if (s < 7200)
		(void)snprintf(buf, 32, "%llu min", s / 60);
	else if (s < 172800)
		(void)snprintf(buf, 32, "%llu h %llu min", s / 3600, s / 60 % 60);
	else
		(void)snprintf(buf, 32, "%llu d %llu h", s / 86400, s / 3600 % 24);
	return buf;
}
