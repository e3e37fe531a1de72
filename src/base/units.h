/* SPDX-License-Identifier: Apache-2.0 */
/* Strict reading of numbers, durations and sizes, and writing them for people. Nothing is read
 * half: "12x", "", " 1" and overflow are errors whose message quotes the text. */
#pragma once
#include "base/err.h"

/* Decimal number in [min, max]. Errors: -EINVAL, -ERANGE. */
int parse_u64(const char *text, uint64_t min, uint64_t max, uint64_t *ret, struct err *err);
int parse_i64(const char *text, int64_t min, int64_t max, int64_t *ret, struct err *err);
/* "250ms", "3s", "5m", "2h", "1d"; a bare number means seconds. Result in milliseconds. */
int parse_duration_ms(const char *text, uint64_t *ret_ms, struct err *err);
/* "4096", "64K", "1M", "2G", "1T" (powers of 1024; optional "B" or "iB"). Result in bytes. */
int parse_size(const char *text, uint64_t *ret_bytes, struct err *err);

/* "1.5 GiB", "350 ms", "2 d 3 h"; both return `buf`. */
char *show_size(uint64_t bytes, char buf[32]);
char *show_duration(uint64_t ms, char buf[32]);
