/* SPDX-License-Identifier: Apache-2.0 */
/* A library that computes, for looks at processes. */

void spin(void);

__attribute__((visibility("default"))) void spin(void)
{
	for (volatile unsigned long i = 0;; i++)
		;
}
