# SPDX-License-Identifier: Apache-2.0
"""`copia run`: where ranks run, what they are given, how a job ends, and what travels to nodes."""
import collections
import json
import shutil
import time

import pytest

from world import COPIA, Running, fails, shared_folder, until

ALL = ("n1", "n2", "n3", "n4")


@pytest.fixture(scope="module")
def lab(lab4):
    lab4.whole()
    return lab4


@pytest.fixture
def shared():
    path = shared_folder()
    yield path
    shutil.rmtree(path)


def run(lab, *words, node="n1", **options):
    return lab.copia(node, "run", *words, code=None, **options)


def places(lab, *words):
    result = run(lab, *words, "hostname")
    assert result.code == 0, result
    return collections.Counter(result.out.split())


# ---------------------------------------------------------------- where


def test_number_of_ranks(lab):
    assert places(lab) == {"n1": 1}
    cores = int(lab.on("n1", "nproc").out)
    assert places(lab, "-n", str(cores)) == {"n1": cores}
    assert places(lab, "-n", str(4 * cores)) == dict.fromkeys(ALL, cores)
    assert sum(places(lab, "-n", str(4 * cores + 1)).values()) == 4 * cores + 1


def test_number_of_nodes(lab):
    assert places(lab, "-N", "3").total() == 3
    spread = places(lab, "-N", "3", "-n", "7")
    assert len(spread) == 3 and spread.total() == 7


def test_on_and_exclude(lab):
    assert places(lab, "--on", "n[2-3]") == {"n2": 1, "n3": 1}
    assert places(lab, "--on", "n[1-2,4]") == {"n1": 1, "n2": 1, "n4": 1}
    assert places(lab, "--on", "all") == dict.fromkeys(ALL, 1)
    assert places(lab, "--on", "all", "--exclude", "n[1,3]") == {"n2": 1, "n4": 1}
    assert places(lab, "-n", "3", "--exclude", "n1", "--per-node", "1") == \
        {"n2": 1, "n3": 1, "n4": 1}


def test_per_node(lab):
    assert places(lab, "--per-node", "3") == {"n1": 3}
    assert places(lab, "--per-node", "3", "--on", "n[3-4]") == {"n3": 3, "n4": 3}
    assert places(lab, "--per-node", "2", "-N", "4") == dict.fromkeys(ALL, 2)
    assert places(lab, "--per-node", "1", "-n", "4") == dict.fromkeys(ALL, 1)


def test_more_than_there_is(lab):
    fails(run(lab, "-N", "5", "true"), 125, "5 nodes wanted", "4 can take work", "copia nodes")
    fails(run(lab, "-n", "9", "--per-node", "2", "true"), 125, "9 ranks wanted", "8 fit")
    fails(run(lab, "-n", "2", "-N", "3", "true"), 125, "2 ranks cannot run on 3 nodes")
    fails(run(lab, "--on", "all", "--exclude", "all", "true"), 125, "no node can take the work")


def test_unknown_node(lab):
    fails(run(lab, "--on", "n44", "true"), 125, "node n44", "did you mean n4?")
    fails(run(lab, "--on", "somewhere", "true"), 125, "node somewhere", "copia nodes")
    fails(run(lab, "--exclude", "n5", "true"), 125, "--exclude", "node n5")
    fails(run(lab, "--on", "n[1-", "true"), 125, "n[1-")


def test_drained_node(lab):
    lab.copia("n1", "drain", "n3", "--reason", "new disk")
    try:
        fails(run(lab, "--on", "n3", "true"), 125, "node n3 is drained: new disk")
        assert places(lab, "--on", "all") == {"n1": 1, "n2": 1, "n4": 1}
        assert "n3" not in places(lab, "-n", "9")
    finally:
        lab.copia("n1", "resume", "n3")
    assert places(lab, "--on", "n3") == {"n3": 1}


# ---------------------------------------------------------------- what ranks are given


def test_label(lab):
    result = run(lab, "--on", "n[1-2]", "--label", "sh", "-c",
                 "hostname; echo wrong $COPIA_RANK >&2")
    assert sorted(result.out.splitlines()) == ["[0] n1", "[1] n2"], result
    assert sorted(result.err.splitlines()) == ["[0] wrong 0", "[1] wrong 1"]


def test_output_folder(lab, shared):
    result = run(lab, "--on", "n[1-4]", "--output", shared / "new", "sh", "-c",
                 "hostname; echo wrong $COPIA_RANK >&2")
    assert (result.code, result.out, result.err) == (0, "", "")
    for rank, node in enumerate(ALL):
        assert (shared / "new" / f"00{rank}.out").read_text() == f"{node}\n"
        assert (shared / "new" / f"00{rank}.err").read_text() == f"wrong {rank}\n"
    fails(run(lab, "--output", "/proc/none", "true"), 125, "--output /proc/none")


def test_environment(lab):
    result = run(lab, "--on", "n2", "--env", "A=x y", "--env", "B=", "sh", "-c",
                 'echo "$A|$B|$C|$COPIA_RANK|$COPIA_SIZE|$COPIA_NODE"')
    assert result.out == "x y|||0|1|n2\n", result
    fails(run(lab, "--env", "=x", "true"), 2, "NAME=VALUE")


def test_chdir(lab):
    assert run(lab, "--on", "n[1-2]", "--chdir", "/usr/lib", "pwd").out == "/usr/lib\n" * 2
    lab.on("n1", "mkdir", "-p", "/tmp/only-here")
    fails(run(lab, "--on", "n[1-2]", "--chdir", "/tmp/only-here", "true"), 125,
          "n2", "/tmp/only-here")
    fails(run(lab, "--chdir", "/no/such", "true"), 125, "/no/such")


def test_folder_of_the_caller(lab):
    """Where it is missing the ranks start elsewhere, and a line says so."""
    lab.on("n1", "mkdir", "-p", "/tmp/only-here")
    result = lab.on("n1", "sh", "-c", f"cd /tmp/only-here; exec {COPIA} run --on n[1-2] pwd")
    assert len(result.out.split()) == 2 and "/tmp/only-here" in result.out.split(), result
    assert "n2: folder /tmp/only-here is not there" in result.err, result


def test_several_programs(lab, shared):
    programs = shared / "programs"
    programs.write_text("# a comment\n0: sh -c 'echo boss $COPIA_SIZE'\n"
                        "2,3: echo \"two words\"\n1: hostname\n")
    result = run(lab, "--file", programs, "--label", "--on", "n[1-4]",
                 "--per-node", "1")
    assert sorted(result.out.splitlines()) == \
        ["[0] boss 4", "[1] n2", "[2] two words", "[3] two words"], result
    programs.write_text("0: true\n*: hostname\n")
    assert run(lab, "--file", programs, "-n", "5").out.count("\n") == 4
    programs.write_text("0: true\n2: true\n")
    fails(run(lab, "--file", programs), 2, str(programs), "rank 1 is missing")
    programs.write_text("0: true\n0: true\n")
    fails(run(lab, "--file", programs), 2, "rank 0 is there twice")
    programs.write_text("true\n")
    fails(run(lab, "--file", programs), 2, "line 1", "RANKS: PROG ARGS")


# ---------------------------------------------------------------- how it ends


def test_exit_codes(lab, shared):
    assert run(lab, "-n", "4", "true").code == 0
    fails(run(lab, "--on", "n2", "sh", "-c", "exit 3"), 3, "rank 0 on n2: exit code 3")
    fails(run(lab, "--on", "n2", "sh", "-c", "kill -SEGV $$"), 139, "rank 0 on n2",
          "signal 11")
    fails(run(lab, "/etc/passwd"), 126, "/etc/passwd", "not executable")
    fails(run(lab, "/usr"), 126, "/usr")
    fails(run(lab, "no-such-program"), 127, "no-such-program", "not found")
    fails(run(lab, "/no/such/program"), 127, "/no/such/program")


def test_interpreter_is_missing(lab, shared):
    script = shared / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    fails(run(lab, "--on", "n2", script), 127, "n2", str(script))


def test_timeout(lab):
    fails(run(lab, "--on", "n[1-4]", "--timeout", "200ms", "sleep", "1000"), 124, "time is over")
    assert not lab.pids("n2", "sleep 1000")


def test_first_failure_counts_and_ends_the_job(lab, shared):
    """The others are ended, at the latest by KILL; one line says which rank, where and why."""
    begin = time.monotonic()
    result = run(lab, "--on", "n[1-4]", "sh", "-c",
                 f"trap '' TERM; echo x >> {shared}/$COPIA_RANK; "
                 f"if [ $COPIA_RANK = 2 ]; then until [ -s {shared}/0 -a -s {shared}/1 "
                 f"-a -s {shared}/3 ]; do sleep 0.02; done; exit 7; fi; sleep 1001")
    fails(result, 7, "rank 2 on n3: exit code 7")
    assert time.monotonic() - begin < 10
    assert not any(lab.pids(node, "sleep 1001") for node in ALL)


def test_keep_going(lab):
    result = run(lab, "--on", "n[1-4]", "--keep-going", "sh", "-c",
                 "[ $COPIA_RANK = 1 ] && exit 9; hostname")
    assert result.code == 9 and sorted(result.out.split()) == ["n1", "n3", "n4"], result
    assert "rank 1 on n2: exit code 9" in result.err


TRAPS = ("trap 'echo $COPIA_RANK term' TERM; trap 'echo $COPIA_RANK usr1' USR1; "
         "echo $COPIA_RANK ready; while :; do sleep 0.05; done")


@pytest.mark.parametrize("name,number", [("INT", 2), ("TERM", 15)])
def test_interrupts(lab, name, number):
    """The first ends ranks by TERM, the second by KILL."""
    with Running(lab, "n1", COPIA, "run", "--on", "n[1-2]", "sh", "-c", TRAPS) as job:
        job.wait_lines(2)
        job.signal("USR1")
        job.wait_lines(4)
        job.signal(name)
        job.wait_lines(6)
        assert job.process.poll() is None
        job.signal(name)
        assert job.end() == 128 + number, job
        assert sorted(job.lines()) == [f"{rank} {word}" for rank in (0, 1)
                                       for word in ("ready", "term", "usr1")]


def test_third_interrupt_leaves(lab):
    """Even when the brain does not answer; the ranks are ended when it does again."""
    with Running(lab, "n1", COPIA, "run", "--on", "n[1-2]", "sh", "-c", TRAPS) as job:
        job.wait_lines(2)
        job.signal("TERM")
        job.wait_lines(4)
        brain = lab.signal("n1", "copiad: brain", "STOP")
        job.signal("TERM")
        job.signal("TERM")
        assert job.end() == 130, job
        assert "left; job n1." in job.text()
        lab.on("n1", "kill", "-CONT", brain, code=None)
    for node in ("n1", "n2"):
        until(lambda n=node: not lab.pids(n, "sh -c trap"), text="no rank is left")


def test_command_killed(lab):
    """kill -9 of the command: nobody wants the job any more, its ranks end."""
    with Running(lab, "n1", COPIA, "run", "--on", "n[1-3]", "sleep", "1002") as job:
        for node in ("n1", "n2", "n3"):
            until(lambda n=node: lab.pids(n, "sleep 1002"), text="the ranks run")
        job.signal("KILL")
        job.end()
    for node in ("n1", "n2", "n3"):
        until(lambda n=node: not lab.pids(n, "sleep 1002"), text="no rank is left")


# ---------------------------------------------------------------- files


def sent(lab, *words, node="n1", code=0):
    """Bytes of files that a job sent to nodes."""
    result = run(lab, "--json", *words, node=node)
    assert result.code == code, result
    rows = [json.loads(line) for line in result.out.splitlines()]
    return next(row for row in rows if "file_bytes" in row), rows


PROGRAM = "#!/bin/sh\necho travelled to $COPIA_NODE {}\n"


def put(lab, node, path, text, mode="755"):
    lab.on(node, "sh", "-c", f"cat > '{path}' && chmod {mode} '{path}'", stdin=text)


def test_program_travels(lab):
    """A program that only the origin has; the second run sends no byte of it."""
    put(lab, "n1", "/tmp/prog", PROGRAM.format("x" * 50000))
    done, rows = sent(lab, "--on", "all", "/tmp/prog")
    texts = [row["text"].split()[2] for row in rows if "text" in row]
    assert sorted(texts) == list(ALL)
    assert done["file_bytes"] > 3 * 50000
    done, rows = sent(lab, "--on", "all", "/tmp/prog")
    assert len([row for row in rows if "text" in row]) == 4
    assert done["file_bytes"] == 0
    put(lab, "n1", "/tmp/prog", PROGRAM.format("y" * 50000))
    done, rows = sent(lab, "--on", "all", "/tmp/prog")
    assert done["file_bytes"] > 3 * 50000
    assert all("yyy" in row["text"] for row in rows if "text" in row)


def test_program_in_place(lab):
    """What all nodes have does not travel."""
    done, _ = sent(lab, "--on", "all", "/bin/true")
    assert done["file_bytes"] == 0


def test_stage(lab):
    put(lab, "n1", "/tmp/input one", "payload " * 5000, "640")
    words = ("--on", "all", "--stage", "/tmp/input one", "sh", "-c",
             'wc -c < "input one"; stat -c %a "$COPIA_STAGE/files/input one"')
    result = run(lab, *words)
    assert result.out.split().count("40000") == 4, result
    assert result.out.split().count("640") == 4, result
    done, _ = sent(lab, *words)
    assert done["file_bytes"] == 0
    fails(run(lab, "--stage", "/no/such", "true"), 127, "--stage", "/no/such")


def test_other_architecture(lab, shared):
    program = shared / "other"
    data = bytearray(open("/bin/true", "rb").read())
    data[18:20] = (22).to_bytes(2, "little")
    program.write_bytes(data)
    program.chmod(0o755)
    fails(run(lab, "--on", "n2", program), 126, str(program), "is built for s390x", "n2")


def test_program_missing_on_one_node_only(lab):
    """It is at the same place on the others; this one gets it from the origin."""
    for node in ("n1", "n2", "n3"):
        put(lab, node, "/tmp/common", PROGRAM.format("z" * 3000))
    done, rows = sent(lab, "--on", "all", "/tmp/common")
    assert len([row for row in rows if "text" in row]) == 4
    assert 3000 < done["file_bytes"] < 4000


def test_command_missing_on_one_node_only(lab):
    """`exec` looks commands up on the nodes: the others do it, and one line names the one."""
    for node in ("n1", "n2", "n3"):
        put(lab, node, "/tmp/local", "#!/bin/sh\nhostname\n")
    result = lab.copia("n1", "exec", "all", "/tmp/local", code=None)
    assert sorted(result.out.splitlines()) == ["n1: n1", "n2: n2", "n3: n3"], result
    fails(result, 127, "n4", "/tmp/local")


@pytest.mark.parametrize("full", ["n3", "n1"])
def test_disk_full(lab, full):
    """A cache folder that can take nothing, on a node and on the origin itself."""
    put(lab, "n1", "/tmp/large", PROGRAM.format(full + "w" * 200000))
    cache = lab.on(full, "sh", "-c", "ls -d /var/lib/copia/cache").out.strip()
    lab.on(full, "mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", cache)
    try:
        fails(run(lab, "--on", "n[2-4]", "/tmp/large"), 125, f"node {full}: write {cache}/",
              "No space left on device")
        assert run(lab, "--on", "all", "hostname").code == 0
    finally:
        until(lambda: lab.on(full, "umount", cache, code=None).code == 0, 10,
              text=f"nothing is open in the cache of {full}")
    assert run(lab, "--on", "n[2-4]", "/tmp/large").code == 0
