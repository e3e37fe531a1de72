/* SPDX-License-Identifier: Apache-2.0 */
#include "base/nodelist.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static void joined(const char *text, const char *want)
{
	_cleanup_(nodelist_free) struct nodelist l = { 0 };
	struct err err = { 0 };
	assert_int_equal(nodelist_parse(text, &l, &err), 0);
	_cleanup_(str_free) struct str s = { 0 };
	for (size_t i = 0; i < l.count; i++)
		str_printf(&s, "%s%s", i ? " " : "", l.names[i]);
	assert_string_equal(str_text(&s), want);
}

static void refused(const char *text, int code, const char *part)
{
	struct nodelist l = { 0 };
	struct err err = { 0 };
	assert_int_equal(nodelist_parse(text, &l, &err), code);
	assert_null(l.names);
	assert_non_null(strstr(err.msg, part));
}

static void shown(const char *text, const char *want)
{
	_cleanup_(nodelist_free) struct nodelist l = { 0 };
	assert_int_equal(nodelist_parse(text, &l, NULL), 0);
	_cleanup_(str_free) struct str s = { 0 };
	nodelist_show(l.names, l.count, &s);
	assert_string_equal(str_text(&s), want);
}

/* Goal: what people type comes out as names, in their order and without repeats. */
static void lists_are_read(void **state)
{
	(void)state;
	joined("n1", "n1");
	joined("n1,n[3-5,7]", "n1 n3 n4 n5 n7");
	joined("rack[01-03]", "rack01 rack02 rack03");
	joined("r[08-11]", "r08 r09 r10 r11");
	joined("a[1-2]b[3,5]", "a1b3 a1b5 a2b3 a2b5");
	joined("n2,n1,n[1-2],all", "n2 n1 all");
	joined(" n1 , n2\tn3\n", "n1 n2 n3");
	joined("n[0-0]", "n0");
	joined("gpu,host.example.org", "gpu host.example.org");
}

/* Goal: nothing is read half; the message quotes the place. */
static void nonsense_is_refused(void **state)
{
	(void)state;
	refused("", -EINVAL, "missing");
	refused(",", -EINVAL, "missing");
	refused("n1,", -EINVAL, "missing at the end");
	refused("n1,,n2", -EINVAL, "missing before");
	refused("n[1", -EINVAL, "missing");
	refused("n[", -EINVAL, "number");
	refused("n[]", -EINVAL, "number");
	refused("n[3-1]", -EINVAL, "backwards");
	refused("n[a]", -EINVAL, "number");
	refused("n]1", -EINVAL, "]1");
	refused("n1;rm", -EINVAL, ";rm");
	refused("n/1", -EINVAL, "/1");
	refused("n[1-1234567890]", -EINVAL, "number");
	refused("n[1-99999]", -E2BIG, "16384");
	refused("n[1-200]m[1-200]", -E2BIG, "16384");
	refused("a[1][1][1][1][1]", -E2BIG, "brackets");
	_cleanup_(free_p) char *big = xmalloc(NODELIST_TEXT_MAX + 2);
	memset(big, 'a', NODELIST_TEXT_MAX + 1);
	big[NODELIST_TEXT_MAX + 1] = '\0';
	refused(big, -E2BIG, "longer");
}

/* Goal: a list is shown sorted and short, and reads back to the same names. */
static void lists_are_shown(void **state)
{
	(void)state;
	shown("n3,n1,n2,n7", "n[1-3,7]");
	shown("n10,n9,n8,n11", "n[8-11]");
	shown("r09,r08,r10", "r[08-10]");
	shown("n1", "n1");
	shown("n1,n2", "n[1,2]");
	shown("b,a,c1", "a,b,c1");
	shown("n01,n1,n2", "n1,n01,n2");
	shown("n", "n");
}

/* Goal: 16384 names take no quadratic time and are all there. */
static void long_lists_are_fine(void **state)
{
	(void)state;
	_cleanup_(nodelist_free) struct nodelist l = { 0 };
	assert_int_equal(nodelist_parse("n[1-16384],n[1-16384]", &l, NULL), 0);
	assert_int_equal(l.count, 16384);
	_cleanup_(str_free) struct str s = { 0 };
	nodelist_show(l.names, l.count, &s);
	assert_string_equal(str_text(&s), "n[1-16384]");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lists_are_read),
		cmocka_unit_test(nonsense_is_refused),
		cmocka_unit_test(lists_are_shown),
		cmocka_unit_test(long_lists_are_fine),
	};
	return cmocka_run_group_tests_name("nodelist", tests, NULL, NULL);
}
