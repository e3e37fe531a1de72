# SPDX-License-Identifier: Apache-2.0
"""Programs of MPICH and Open MPI on lab nodes: they meet, they end, and nothing hangs."""
import os
import pathlib
import re
import shutil
import subprocess
import time

import pytest
import world

PROGRAMS = world.BUILD / "mpi-programs"  # the lab's nodes share the build folder
MEET = pathlib.Path(__file__).parents[1] / "wireup" / "programs" / "meet.c"
LIMIT = 60  # of any run, in seconds

# A program that takes its time: WHERE SECONDS.
SLOW = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	int rank, size;
	double seconds = atof(argv[2]), from;
	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	printf("rank %d/%d begins %d\n", rank, size, (int)getpid());
	fflush(stdout);
	from = MPI_Wtime();
	if (!strcmp(argv[1], "loop"))
		for (int on = 1; on;) {
			on = MPI_Wtime() - from < seconds;
			MPI_Bcast(&on, 1, MPI_INT, 0, MPI_COMM_WORLD);
			usleep(1000);
		}
	printf("rank %d/%d worked\n", rank, size);
	fflush(stdout);
	MPI_Finalize();
	if (!strcmp(argv[1], "after") && rank == 0)
		sleep((unsigned)seconds);
	if (!strcmp(argv[1], "after"))
		printf("rank %d/%d after\n", rank, size);
	return 0;
}
"""

# Ranks of a library whose MPI_Finalize begins with PMI's barrier: the last rank comes later, because
# it computes or sleeps. (MPICH's own ranks come to that barrier only when all are in MPI_Finalize.)
LATE = r"""#!/usr/bin/python3
import os, socket, sys, time
rank, size = int(os.environ["PMI_RANK"]), int(os.environ["PMI_SIZE"])
server = socket.socket(fileno=int(os.environ["PMI_FD"])).makefile("rw", newline="\n")
def ask(what):
    server.write(f"cmd={what}\n")
    server.flush()
    return server.readline()
ask("init pmi_version=1 pmi_subversion=1")
name = ask("get_my_kvsname").split("kvsname=")[1].strip()
ask(f"put kvsname={name} key=k{rank} value={rank}")
ask("barrier_in")
print(f"rank {rank}/{size} begins {os.getpid()}", flush=True)
end = time.monotonic() + float(sys.argv[2])
if rank == size - 1 and sys.argv[1] == "compute":
    while time.monotonic() < end:
        sum(range(100000))
if rank == size - 1 and sys.argv[1] == "sleep":
    time.sleep(float(sys.argv[2]))
print(f"rank {rank}/{size} worked", flush=True)
ask("barrier_in")
ask("finalize")
"""

HUNG = re.compile(r"copia run: \d+ ranks hung in MPI_Finalize \(a known fault of UCX over TCP\) and "
                  r"were ended after (\S+) s; the program's own work was complete\n")


@pytest.fixture(scope="module", params=["mpich", "openmpi"])
def mpi(request):
    """Programs of one MPI: an object with name, meet, slow."""
    return programs(request.param)


def programs(name):
    compiler = shutil.which(f"mpicc.{name}")
    if not compiler:
        pytest.skip(f"{name} is not installed")
    PROGRAMS.mkdir(exist_ok=True)
    source = PROGRAMS / "slow.c"
    source.write_text(SLOW)

    class Mpi:
        def __repr__(self):
            return name
    made = Mpi()
    made.name, made.meet, made.slow = name, PROGRAMS / f"meet-{name}", PROGRAMS / f"slow-{name}"
    for target, text in ((made.meet, MEET), (made.slow, source)):
        subprocess.run([compiler, "-O1", "-o", target, text], check=True, timeout=LIMIT)
    return made


@pytest.fixture(scope="module")
def mpich():
    return programs("mpich")


def run(lab, *words, node="n1", env=None):
    """copia run; the result has `seconds`, and `hung`: whether a hang of MPI_Finalize was told."""
    begin = time.monotonic()
    result = lab.copia(node, "run", *words, code=None, timeout=LIMIT, env=env)
    result.seconds = time.monotonic() - begin
    found = HUNG.search(result.err)
    result.hung = bool(found)
    result.other = HUNG.sub("", result.err)
    return result


def met(result, ranks, nodes, apps=None):
    """Every rank met all others, exactly once, and nothing else was said."""
    assert result.code == 0, result
    assert result.other == "", result
    seen = {}
    for line in result.out.splitlines():
        rank, size, local, total = map(int, re.match(
            r"rank (\d+)/(\d+) local (\d+)/(\d+)", line).groups())
        assert rank not in seen and size == ranks and local < total == ranks // nodes, result
        assert f"sum {ranks * (ranks - 1) // 2} " in line, result
        seen[rank] = int(re.search(r"app (-?\d+)", line).group(1))
    assert sorted(seen) == list(range(ranks)), result
    if apps:
        assert [seen[r] for r in range(ranks)] == apps, result


def fits(mpi):
    return ["auto", "pmi1"] if mpi.name == "mpich" else ["auto", "pmix"]


def test_four_ranks_on_one_node(lab4, mpi):
    met(run(lab4, "-n", 4, "--on", "n1", mpi.meet), 4, 1)


def test_four_ranks_on_four_nodes(lab4, mpi):
    for how in fits(mpi):
        met(run(lab4, "-n", 4, "--per-node", 1, "--mpi", how, mpi.meet), 4, 4)


def test_sixteen_ranks(lab4, mpi):
    met(run(lab4, "-n", 16, "--per-node", 4, mpi.meet), 16, 4)


def test_two_programs(lab4, mpi):
    twin = mpi.meet.with_name(mpi.meet.name + "-twin")
    shutil.copy(mpi.meet, twin)
    table = PROGRAMS / f"programs-{mpi.name}"
    table.write_text(f"0-1: {mpi.meet}\n2-3: {twin}\n")
    met(run(lab4, "--per-node", 1, "--file", table), 4, 4, [0, 0, 1, 1])


def test_abort_gives_its_code(lab4, mpi):
    result = run(lab4, "-n", 4, "--per-node", 1, mpi.meet, "abort")
    assert result.code == 7, result
    # Open MPI's rank may have exited before its word has come to the origin.
    assert re.search(r"copia run: rank 3 on n\d: (called MPI_Abort with|exit) code 7", result.err), result
    assert result.seconds < 10, result


def test_ranks_that_run_alone_are_told(lab4, mpi):
    result = run(lab4, "-n", 2, "--per-node", 1, "--mpi", "none", mpi.meet)
    assert result.code == 0, result
    assert result.out.count("rank 0/1") == 2, result
    assert "2 of 2 ranks of this MPI program never asked for their partners" in result.err, result


# ---------------------------------------------------------------- MPI_Finalize


def test_hang_in_finalize_is_told(lab4, mpich):
    """MPICH's own fault is met in most runs; then the job ends with its result and one line."""
    hung = 0
    for _ in range(3):
        result = run(lab4, "-n", 4, "--per-node", 1, mpich.meet)
        met(result, 4, 4)
        if result.hung:
            hung += 1
            assert 10 <= result.seconds < 14, (result, result.seconds)
            assert result.err.count("\n") == 1, result
        else:
            assert result.seconds < 5, (result, result.seconds)
    print(f"{hung} of 3 runs hung")


@pytest.fixture(scope="module")
def late():
    PROGRAMS.mkdir(exist_ok=True)
    path = PROGRAMS / "late.py"
    path.write_text(LATE)
    path.chmod(0o755)
    return path


FOUR = ("-n", 4, "--per-node", 1, "--mpi", "pmi1")


def test_rank_that_computes_is_waited_for(lab4, late):
    result = run(lab4, *FOUR, late, "compute", 14)
    assert result.code == 0 and result.err == "", result
    assert result.out.count("worked") == 4 and result.seconds > 13, (result, result.seconds)


def test_rank_that_sleeps_is_waited_for(lab4, late):
    """It is in the C library all the time, which proves nothing; the user is told how it is."""
    result = run(lab4, *FOUR, late, "sleep", 14)
    assert result.code == 0, result
    assert result.out.count("worked") == 4 and result.seconds > 13, (result, result.seconds)
    assert re.search(r"ranks 0, 1, 2 wait in MPI_Finalize since 10 s; rank 3 on n\d did not arrive "
                     r"there, and sleep", result.err), result
    assert result.err.count("\n") == 1, result


def test_work_behind_finalize_is_waited_for(lab4, mpich):
    result = run(lab4, "-n", 2, "--on", "n1", mpich.slow, "after", 13)
    assert result.code == 0 and result.other == "", result
    assert result.out.count("after") == 2 and result.seconds > 12, (result, result.seconds)


def test_given_time_for_finalize_holds(lab4, late):
    result = run(lab4, *FOUR, "--finalize-timeout", "2s", late, "compute", 50)
    assert result.code == 124 and result.seconds < 6, (result, result.seconds)
    assert "rank 3 still computed when --finalize-timeout was over" in result.err, result
    result = run(lab4, *FOUR, "--finalize-timeout", "2s", late, "sleep", 50)
    assert result.code == 0 and result.seconds < 6, (result, result.seconds)
    assert "ended 2 s after the first waited in MPI_Finalize" in result.err, result


# ---------------------------------------------------------------- what goes wrong


def begin(lab, *words):
    """Start a job whose ranks say a line; returns it and, by rank, their pids, when all have."""
    job = subprocess.Popen(lab.argv("n1", world.COPIA, "run", "--label", *words), text=True,
                           stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    pids = {}
    for line in job.stdout:
        found = re.search(r"rank (\d+)/(\d+) begins (\d+)", line)
        if found:
            pids[int(found.group(1))] = int(found.group(3))
            if len(pids) == int(found.group(2)):
                break
    return job, pids


def finished(job):
    try:
        out, err = job.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        job.kill()
        job.communicate()
        raise
    return job.returncode, out, err


def test_killed_rank_ends_the_job(lab4, mpi):
    job, pids = begin(lab4, "-n", 4, "--per-node", 1, mpi.slow, "loop", 50)
    rows = lab4.copia("n1", "ps", "--json").json()["tasks"]
    row, = [r for r in rows if r["rank"] == 2]
    at = time.monotonic()
    lab4.on(row["node"], "kill", "-KILL", row["id"].rsplit(":", 1)[1])
    code, _, err = finished(job)
    assert code == 137 and time.monotonic() - at < 2, (code, err, time.monotonic() - at)
    lines = [line for line in HUNG.sub("", err).splitlines() if line.startswith("copia run:")]
    assert lines == [f"copia run: rank 2 on {row['node']}: killed by signal 9 (Killed)"], err


def test_brain_dies_in_the_loop(lab4, mpi):
    job, _ = begin(lab4, "-n", 4, "--per-node", 1, mpi.slow, "loop", 4)
    lab4.signal("n3", "copiad: brain")
    code, out, err = finished(job)
    assert code == 0 and out.count("worked") == 4, (code, out, err)


def test_brain_dies_in_init(lab4, mpi):
    """Either the job meets, or it ends with an error; it does not hang."""
    for delay in (0.05, 0.3):
        job = subprocess.Popen(
            lab4.argv("n1", world.COPIA, "run", "-n", "4", "--per-node", "1", mpi.slow, "loop", "1"),
            text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(delay)  # no event tells that ranks are within MPI_Init
        lab4.signal("n3", "copiad: brain")
        code, out, err = finished(job)
        assert code == 0 and out.count("worked") == 4, (delay, code, out, err)


# ---------------------------------------------------------------- networks


@pytest.fixture
def many_networks(lab4):
    """20 more interfaces on two nodes, with the same addresses on both, and a default route that
    leads nowhere."""
    nodes, extra = ("n2", "n3"), 20
    script = "".join(f"ip link add extra{i} type veth peer name far{i} && ip addr add 172.31.{i}.1/24 dev extra{i} "
                     f"&& ip link set far{i} up && ip link set extra{i} up;" for i in range(extra))
    script += "ip route replace default via 172.31.0.254 dev extra0"
    undo = "".join(f"ip link del extra{i};" for i in range(extra))
    routes = {node: lab4.on(node, "ip", "route", "show", "default").out.strip() for node in nodes}
    try:
        for node in nodes:
            lab4.on(node, "sh", "-ec", script)
        yield
    finally:
        for node in nodes:
            lab4.on(node, "sh", "-c", undo, code=None)
            if routes[node]:
                lab4.on(node, "sh", "-c", f"ip route replace {routes[node]}")


def test_many_networks(lab4, mpi, many_networks):
    result = run(lab4, "-n", 4, "--per-node", 1, mpi.meet)
    met(result, 4, 4)
    assert result.hung or result.seconds < 5, result.seconds


@pytest.fixture
def firewall(fresh_lab):
    """A lab in which n2 drops what n3 begins, but for Copia's own port."""
    lab = fresh_lab(4)
    if lab.on("n2", "nft", "--version", code=None).code != 0:
        pytest.skip("nft is not installed")
    lab.on("n2", "nft", "add table inet wall; add chain inet wall in "
           "{ type filter hook input priority 0; }; add rule inet wall in "
           f"ip saddr {lab.address('n3')} tcp dport != 26742 tcp flags & (syn|ack) == syn drop")
    return lab


def test_firewall_between_nodes_is_told(firewall, mpi):
    lab = firewall
    result = run(lab, "-n", 4, "--per-node", 1, mpi.meet)
    assert result.code == 125, result
    assert result.seconds < 2, result.seconds
    assert re.search(rf"node n3 cannot connect to node n2 at {re.escape(lab.address('n2'))}, TCP port "
                     r"\d+: no answer within 1 s; .* let a firewall between the two pass TCP ports "
                     r"\d+-\d+, or skip this check with --no-check", result.err), result
    assert result.err.count("\n") == 1, result
    # The others are not concerned, and a check that went well is remembered.
    met(run(lab, "-n", 2, "--per-node", 1, "--on", "n1,n4", mpi.meet), 2, 2)
    # Without MPI nothing is tried.
    assert run(lab, "-n", 4, "--per-node", 1, "true").code == 0
    # Who does not want the check gets what MPI makes of it, for as long as he likes.
    result = run(lab, "-n", 4, "--per-node", 1, "--no-check", "--timeout", "3s", mpi.meet)
    assert "cannot connect" not in result.err, result
