/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/nearest.h"
#include "../test.h"

#include <limits.h>

static void distance_counts_edits(void **state)
{
	(void)state;
	assert_int_equal(word_distance("nodes", "nodes"), 0);
	assert_int_equal(word_distance("nodse", "nodes"), 1); /* exchanged neighbours */
	assert_int_equal(word_distance("", "abc"), 3);
	assert_int_equal(word_distance("kitten", "sitting"), 3);
	assert_int_equal(word_distance("ab", "ba"), 1);
}

static void long_words_are_far(void **state)
{
	(void)state;
	char word[NEAREST_MAX + 2];
	memset(word, 'a', sizeof(word) - 1);
	word[sizeof(word) - 1] = '\0';
	assert_int_equal(word_distance(word, word), UINT_MAX);
	word[NEAREST_MAX] = '\0';
	assert_int_equal(word_distance(word, word), 0);
}

static void only_what_could_be_meant_is_offered(void **state)
{
	(void)state;
	const char *best = NULL;
	nearest_try("stauts", "status", &best);
	nearest_try("stauts", "start", &best);
	assert_string_equal(best, "status");
	best = NULL;
	nearest_try("x", "ps", &best);
	nearest_try("frobnicate", "status", &best);
	assert_null(best);
	nearest_try("compl", "completion", &best);
	assert_string_equal(best, "completion");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(distance_counts_edits),
		cmocka_unit_test(long_words_are_far),
		cmocka_unit_test(only_what_could_be_meant_is_offered),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
