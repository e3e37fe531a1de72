/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/nearest.h"

#include <limits.h>

unsigned word_distance(const char *a, const char *b)
{
	size_t a_len = strlen(a), b_len = strlen(b);
	if (a_len > NEAREST_MAX || b_len > NEAREST_MAX)
		return UINT_MAX;
	unsigned rows[3][NEAREST_MAX + 1];
	unsigned *before = rows[0], *last = rows[1], *now = rows[2];
	for (size_t j = 0; j <= b_len; j++)
		last[j] = before[j] = (unsigned)j;
	for (size_t i = 1; i <= a_len; i++) {
		now[0] = (unsigned)i;
		for (size_t j = 1; j <= b_len; j++) {
			now[j] = MIN(last[j] + 1, now[j - 1] + 1);
			now[j] = MIN(now[j], last[j - 1] + (a[i - 1] != b[j - 1]));
			if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
				now[j] = MIN(now[j], before[j - 2] + 1);
		}
		unsigned *oldest = before;
		before = last;
		last = now;
		now = oldest;
	}
	return last[b_len];
}

void nearest_try(const char *typed, const char *word, const char **best)
{
	unsigned distance = word_distance(typed, word);
	size_t longest = MAX(strlen(typed), strlen(word));
	/* A beginning of the word is near too: "compl". */
	if (strlen(typed) >= 3 && !strncmp(typed, word, strlen(typed)))
		distance = 1;
	if (distance > 1 + longest / 4 || distance >= longest)
		return;
	if (!*best || distance < word_distance(typed, *best))
		*best = word;
}
