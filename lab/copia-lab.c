/* SPDX-License-Identifier: Apache-2.0 */
/* "copia lab" as a program of its own, for machines and tests without the rest of Copia. */
#include "lab.h"

#include <stdio.h>

int main(int argc, char **argv)
{
	if (argc < 2) {
		(void)lab_main(1, (char *[]){ "help", NULL });
		return LAB_USAGE;
	}
	return lab_main(argc - 1, argv + 1);
}
