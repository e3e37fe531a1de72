/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target without a fuzzer: over each file of its corpus, and over simple mutations of
 * it from a fixed seed. So `make check` holds what `make fuzz` once found. */
#include "base/rng.h"
#include "base/util.h"

#include <dirent.h>
#include <stdio.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

enum { INPUT_MAX = 1 << 20, MUTATIONS = 200 };

static size_t read_input(const char *folder, const char *name, uint8_t *to)
{
	char path[4096];
	(void)snprintf(path, sizeof(path), "%s/%s", folder, name);
	FILE *f = fopen(path, "rb");
	size_t len = f ? fread(to, 1, INPUT_MAX, f) : 0;
	if (f)
		fclose(f);
	return len;
}

/* The exact size on the heap, so that a sanitizer sees each byte read beyond the end. */
static void run(const uint8_t *bytes, size_t len)
{
	uint8_t *copy = xmemdup(bytes, len);
	(void)LLVMFuzzerTestOneInput(copy, len);
	free(copy);
}

static size_t mutate(struct rng *r, uint8_t *bytes, size_t len)
{
	for (uint64_t k = 1 + rng_below(r, 4); k > 0 && len > 0; k--) {
		size_t at = rng_below(r, len);
		switch (rng_below(r, 4)) {
		case 0:
			bytes[at] ^= (uint8_t)(1U << rng_below(r, 8));
			break;
		case 1:
			bytes[at] = (uint8_t)rng_next(r);
			break;
		case 2:
			len = at;
			break;
		default:
			bytes[at] = 0xff;
		}
	}
	return len;
}

int main(int argc, char **argv)
{
	struct rng r;
	unsigned files = 0;
	rng_seed(&r, 1);
	uint8_t *input = xmalloc(INPUT_MAX), *changed = xmalloc(INPUT_MAX);
	run(input, 0);
	DIR *d = argc > 1 ? opendir(argv[1]) : NULL;
	for (const struct dirent *e; d && (e = readdir(d));) {
		if (e->d_name[0] == '.')
			continue;
		size_t len = read_input(argv[1], e->d_name, input);
		files++;
		run(input, len);
		for (int i = 0; i < MUTATIONS; i++) {
			memcpy(changed, input, len);
			run(changed, mutate(&r, changed, len));
		}
	}
	if (d)
		closedir(d);
	free(input);
	free(changed);
	printf("%u inputs with %d mutations each\n", files, MUTATIONS);
	return files ? 0 : 1;
}
