/* SPDX-License-Identifier: Apache-2.0 */
/* Small words used everywhere: cleanup, ownership transfer, limits, checked allocation.
 *
 * Locals that own something carry _cleanup_(x_p); take_ptr() hands the ownership over. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define _cleanup_(f)               __attribute__((cleanup(f)))
#define _printf_(f, a)             __attribute__((format(printf, f, a)))
#define _unused_                   __attribute__((unused))
#define ARRAY_LEN(a)               (sizeof(a) / sizeof((a)[0]))
#define CONTAINER(p, type, member) ((type *)((char *)(p)-offsetof(type, member)))

#define MIN(a, b)                                                                                  \
	({                                                                                         \
		__auto_type min_a_ = (a);                                                          \
		__auto_type min_b_ = (b);                                                          \
		min_a_ < min_b_ ? min_a_ : min_b_;                                                 \
	})
#define MAX(a, b)                                                                                  \
	({                                                                                         \
		__auto_type max_a_ = (a);                                                          \
		__auto_type max_b_ = (b);                                                          \
		max_a_ > max_b_ ? max_a_ : max_b_;                                                 \
	})

/* Give up ownership: returns the pointer and leaves NULL behind. */
#define take_ptr(p)                                                                                \
	({                                                                                         \
		__auto_type take_tmp_ = (p);                                                       \
		(p) = NULL;                                                                        \
		take_tmp_;                                                                         \
	})

/* For _cleanup_: frees what a `char *`, `void *`… local points to. */
static inline void free_p(void *pp)
{
	free(*(void **)pp);
}

/* Allocation that never returns NULL: the process ends with a message when memory is gone.
 * For small, bounded objects; what outsiders can make large is allocated with malloc() and its
 * failure is an error like any other. */
void *xmalloc(size_t size);
void *xcalloc(size_t count, size_t size);
void *xrealloc(void *old, size_t size);
char *xstrdup(const char *text);
char *xstrndup(const char *text, size_t len);
void *xmemdup(const void *from, size_t size);

/* Borrowed bytes. */
struct span {
	const uint8_t *at;
	size_t len;
};
