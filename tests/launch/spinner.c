/* SPDX-License-Identifier: Apache-2.0 */
/* spinner WHERE [LIBRARY]: a process that spends its time in one place: main, library, sleep, or
 * thread (the first thread in the library, a second one in the program). Says so by a byte. */
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>
#include <unistd.h>

static void *spin_here(void *unused)
{
	for (volatile unsigned long i = 0;; i++)
		;
	return unused;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	void *library = dlopen(argv[2], RTLD_NOW);
	void (*spin)(void) = NULL;
	pthread_t thread;
	if (!library)
		return 3;
	*(void **)&spin = dlsym(library, "spin");
	if (!spin)
		return 4;
	if (!strcmp(argv[1], "thread") && pthread_create(&thread, NULL, spin_here, NULL))
		return 5;
	if (write(STDOUT_FILENO, "x", 1) != 1)
		return 6;
	if (!strcmp(argv[1], "main"))
		(void)spin_here(NULL);
	while (!strcmp(argv[1], "sleep"))
		(void)pause();
	spin();
}
