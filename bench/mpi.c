/* SPDX-License-Identifier: Apache-2.0 */
/* Starts, counts the ranks, ends. A number as argument: what the number of ranks must be, so that
 * singletons are no fast result. */
#include <mpi.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int size;
	MPI_Init(&argc, &argv);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	MPI_Finalize();
	return argc > 1 && size != atoi(argv[1]);
}
