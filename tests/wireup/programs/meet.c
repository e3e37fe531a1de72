/* SPDX-License-Identifier: Apache-2.0 */
/* An ordinary MPI program: says who it is, sends a token round a ring, adds up. The first argument
 * chooses what else it does: abort, names (publish and look up), spawn, alone (no MPI at all). */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int ring(int rank, int size)
{
	int token = 0;
	if (size == 1)
		return 0;
	if (rank == 0) {
		MPI_Send(&token, 1, MPI_INT, 1, 0, MPI_COMM_WORLD);
		MPI_Recv(&token, 1, MPI_INT, size - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		return token;
	}
	MPI_Recv(&token, 1, MPI_INT, rank - 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
	token += rank;
	MPI_Send(&token, 1, MPI_INT, (rank + 1) % size, 0, MPI_COMM_WORLD);
	return token;
}

static const char *names(int rank)
{
	static char port[MPI_MAX_PORT_NAME] = "none";
	MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
	if (rank == 0 && MPI_Publish_name("copia-test", MPI_INFO_NULL, "port-of-zero"))
		return "unpublished";
	MPI_Barrier(MPI_COMM_WORLD);
	if (MPI_Lookup_name("copia-test", MPI_INFO_NULL, port))
		return "unknown";
	MPI_Barrier(MPI_COMM_WORLD);
	if (rank == 0 && MPI_Unpublish_name("copia-test", MPI_INFO_NULL, "port-of-zero"))
		return "not-withdrawn";
	return port;
}

static const char *spawn(void)
{
	MPI_Comm children;
	int code;
	MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
	MPI_Comm_set_errhandler(MPI_COMM_SELF, MPI_ERRORS_RETURN);
	int r = MPI_Comm_spawn("/bin/true", MPI_ARGV_NULL, 1, MPI_INFO_NULL, 0, MPI_COMM_SELF,
			       &children, &code);
	return r == MPI_SUCCESS ? "spawned" : "refused";
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "", *more = "-";
	if (!strcmp(mode, "alone")) {
		printf("alone\n");
		return 0;
	}
	int rank, size, local_rank, local_size, sum = 0, *app, flag;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	if (!strcmp(mode, "init")) {
		MPI_Finalize();
		return 0;
	}
	MPI_Comm shared;
	MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &shared);
	MPI_Comm_rank(shared, &local_rank);
	MPI_Comm_size(shared, &local_size);
	MPI_Comm_free(&shared);
	int token = ring(rank, size);
	MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
	MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_APPNUM, &app, &flag);
	if (!strcmp(mode, "names"))
		more = names(rank);
	if (!strcmp(mode, "spawn") && rank == 0)
		more = spawn();
	printf("rank %d/%d local %d/%d app %d ring %d sum %d %s\n", rank, size, local_rank,
	       local_size, flag ? *app : -1, token, sum, more);
	fflush(stdout);
	if (!strcmp(mode, "abort") && rank == size - 1)
		MPI_Abort(MPI_COMM_WORLD, 7);
	if (!strcmp(mode, "abort"))
		MPI_Barrier(MPI_COMM_WORLD);
	MPI_Finalize();
	return 0;
}
