# SPDX-License-Identifier: Apache-2.0
"""`copia exec`, `copy`, `ps`, `kill`, and files that go down a tree of many nodes."""
import fcntl
import hashlib
import json
import os
import pty
import select
import shutil
import struct
import subprocess
import termios
import time

import pytest

from world import COPIA, Running, fails, shared_folder, until

ALL = ("n1", "n2", "n3", "n4")
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "env", "HOME=/")


@pytest.fixture(scope="module")
def lab(lab4):
    lab4.whole()
    return lab4


@pytest.fixture
def shared():
    path = shared_folder()
    yield path
    shutil.rmtree(path)


# ---------------------------------------------------------------- exec


def execute(lab, *words, **options):
    return lab.copia("n1", "exec", *words, code=None, **options)


def test_exec_lists(lab):
    def on(words):
        return sorted(execute(lab, words, "--", "hostname").out.splitlines())
    assert on("n[1-2,4]") == ["n1: n1", "n2: n2", "n4: n4"]
    assert on("all") == [f"{n}: {n}" for n in ALL]
    assert on("n3") == ["n3"]
    assert execute(lab, "--plain", "n[2-3]", "hostname").out.split() in (["n2", "n3"],
                                                                         ["n3", "n2"])
    fails(execute(lab, "n[5-6]", "true"), 125, "node n5")


def test_exec_features(lab):
    """A feature that nodes report names all that have it."""
    features = lab.rows()["n1"]["facts"]["features"]
    result = execute(lab, features[0], "hostname")
    assert sorted(result.out.splitlines()) == [f"{n}: {n}" for n in ALL], result
    assert lab.copia("n1", "run", "--features", features[0], "-N", "4", "true").code == 0
    fails(lab.copia("n1", "run", "--features", "no-such-feature", "true", code=None), 125,
          "no node can take the work")


def test_exec_fails(lab):
    """The others go on; each failure is a line of its own."""
    result = execute(lab, "all", "sh", "-c", 'case $COPIA_NODE in n[23]) exit 4; esac; echo ok')
    assert result.code == 4 and sorted(result.out.splitlines()) == ["n1: ok", "n4: ok"], result
    assert sorted(result.err.splitlines()) == ["copia exec: n2: exit code 4",
                                               "copia exec: n3: exit code 4"]
    assert execute(lab, "n1").code == 2
    fails(execute(lab, "-t", "n1", "true"), 2, "-t needs a terminal")


class Terminal:
    """A command of n1 that has a terminal of `rows` x `columns`."""

    def __init__(self, lab, *words, rows=33, columns=77):
        self.master, slave = pty.openpty()
        self.size(rows, columns)
        self.process = subprocess.Popen(lab.argv("n1", *words), stdin=slave, stdout=slave,
                                        stderr=slave, start_new_session=True,
                                        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(slave)
        self.seen = b""

    def size(self, rows, columns):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait(self, text, timeout=20):
        end = time.monotonic() + timeout
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            assert ready, self.seen
            try:
                self.seen += os.read(self.master, 65536)
            except OSError:
                raise AssertionError(self.seen) from None
        self.seen = self.seen.split(text, 1)[1]

    def type(self, data):
        os.write(self.master, data)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def test_exec_terminal(lab):
    """Its size arrives, changes of it too, and ^C ends the command there, not the one here."""
    with Terminal(lab, COPIA, "exec", "-t", "n2", "--", "sh", "-c",
                  "trap 'echo caught' INT; tty; stty size; echo ready; "
                  "until read line; do :; done; echo got $line; "
                  "until [ \"$(stty size)\" = '20 50' ]; do sleep 0.02; done; echo resized; "
                  "exit 6") as term:
        term.wait(b"/dev/pts/")
        term.wait(b"33 77")
        term.wait(b"ready")
        term.type(b"\x03")
        term.wait(b"caught")
        term.type(b"words\n")
        term.wait(b"got words")
        term.size(20, 50)
        term.wait(b"resized")
        assert term.process.wait(20) == 6


# ---------------------------------------------------------------- copy


def test_copy(lab, shared):
    data = os.urandom(3 << 20)
    (shared / "data").write_bytes(data)
    (shared / "data").chmod(0o640)
    (shared / "tool").write_text("#!/bin/sh\necho tool\n")
    (shared / "tool").chmod(0o755)
    lab.on("n1", "sh", "-c", f"{COPIA} exec all mkdir -p /tmp/target")
    result = lab.copia("n1", "copy", shared / "data", shared / "tool", "n[2-4]:/tmp/target")
    assert result.out == "" and result.err == "", result
    for node in ("n2", "n3", "n4"):
        out = lab.on(node, "sh", "-c", "cd /tmp/target; sha256sum data; stat -c %a data tool").out
        assert out.split() == [hashlib.sha256(data).hexdigest(), "data", "640", "755"]
    result = lab.copia("n1", "copy", "-v", shared / "data", "n[2-4]:/tmp/target")
    assert "3 in place; 0 bytes of files sent" in result.err, result


def test_copy_overwrites(lab, shared):
    for text in ("one", "two"):
        (shared / "data").write_text(text)
        lab.copia("n1", "copy", shared / "data", "n[2-3]:/tmp")
        assert lab.on("n3", "cat", "/tmp/data").out == text


def test_copy_fails(lab, shared):
    (shared / "data").write_text("x")

    def copy(*words):
        return lab.copia("n1", "copy", *words, code=None)
    fails(copy(shared / "data", "n2:/no/such/dir"), 125, "n2", "/no/such/dir")
    assert copy(shared / "data", "n2:relative").code == 2
    assert copy(shared / "data").code == 2
    result = copy(shared / "missing", "n2:/tmp")
    assert result.code != 0 and str(shared / "missing") in result.err, result
    lab.on("n3", "mkdir", "-p", "/tmp/only-there")
    result = copy(shared / "data", "n[2-3]:/tmp/only-there")
    fails(result, 125, "n2", "/tmp/only-there")
    assert lab.on("n3", "cat", "/tmp/only-there/data").out == "x"


def test_copy_as_a_user(lab, shared):
    """Files come to belong to the user; folders of others are refused."""
    (shared / "data").write_text("x")
    lab.on("n2", "sh", "-c", "mkdir -p /tmp/roots && chmod 755 /tmp/roots")
    fails(lab.on("n1", *NOBODY, COPIA, "copy", shared / "data", "n2:/tmp/roots", code=None), 125,
          "n2", "/tmp/roots", "Permission denied")
    (shared / "data").rename(shared / "own")
    lab.on("n1", *NOBODY, COPIA, "copy", shared / "own", "n2:/tmp")
    assert lab.on("n2", "stat", "-c", "%u:%g", "/tmp/own").out == "65534:65534\n"
    (shared / "secret").write_text("s")
    (shared / "secret").chmod(0o600)
    result = lab.on("n1", *NOBODY, COPIA, "copy", shared / "secret", "n2:/tmp", code=None)
    assert result.code != 0 and "Permission denied" in result.err


# ---------------------------------------------------------------- ps and kill


def tasks(lab, *words, node="n1"):
    return lab.copia(node, "ps", "--json", *words).json()["tasks"]


def test_ps(lab):
    """From any node: every task of the cluster with its id, user, cpu and memory."""
    with Running(lab, "n1", *NOBODY, COPIA, "run", "--on", "n[2-3]", "sh", "-c",
                 "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo ready; sleep 1003; :"
                 ) as job:
        job.wait_lines(2)
        rows = [row for row in tasks(lab, node="n4") if row["user"] == "nobody"]
        assert {(row["node"], row["rank"]) for row in rows} == {("n2", 0), ("n3", 1)}
        for row in rows:
            assert row["id"] == f"{row['node']}:{row['pid']}"
            assert row["uid"] == 65534 and row["job"].startswith("n1.")
            assert row["cpu_ms"] > 0 and row["memory_bytes"] > 100000 and row["processes"] == 2
            assert row["state"] == "sleeping" and row["command"].startswith("sh -c")
            assert lab.on(row["node"], "cat", f"/proc/{row['pid']}/comm").out == "sh\n"
        text = lab.copia("n1", "ps").out
        assert all(row["id"] in text for row in rows) and "MEMORY" in text and "CPU" in text
        name = rows[0]["job"]
        assert len(tasks(lab, name)) == 2
        assert [row["node"] for row in tasks(lab, "--on", "n3", name)] == ["n3"]
        lab.copia("n4", "kill", name)
        assert job.end() == 143
    assert not [row for row in tasks(lab) if row["user"] == "nobody"]


def test_ps_names_who_is_silent(lab):
    lab.lab("pause", "n4")
    try:
        reply = lab.copia("n1", "ps", "--json", "--on", "all", code=None)
        assert reply.json()["silent"] == ["n4"], reply
        text = lab.copia("n1", "ps", "--on", "all", code=None)
        assert text.err == "copia ps: no answer from n4\n", text
    finally:
        lab.lab("resume", "n4")
        lab.whole()


def test_kill(lab):
    """A task by its id, a rank, a job; by name or number of the signal."""
    script = ("for s in USR1 USR2 HUP; do trap \"echo $COPIA_RANK $s\" $s; done; "
              "echo $COPIA_RANK ready; while :; do sleep 0.05; done")
    with Running(lab, "n1", COPIA, "run", "-k", "--on", "n[2-3]", "sh", "-c", script) as job:
        job.wait_lines(2)
        rows = sorted((r for r in tasks(lab) if "ready" in r["command"]),
                      key=lambda row: row["rank"])
        name = rows[0]["job"]
        lab.copia("n4", "kill", "-USR1", rows[1]["id"])
        job.wait_lines(3)
        lab.copia("n4", "kill", "-s", "12", f"{name}.0")
        job.wait_lines(4)
        lab.copia("n4", "kill", "-HUP", name)
        job.wait_lines(6)
        assert sorted(job.lines()) == ["0 HUP", "0 USR2", "0 ready", "1 HUP", "1 USR1", "1 ready"]
        lab.copia("n4", "kill", "-9", rows[0]["id"])
        until(lambda: b"rank 0 on n2: killed by signal 9" in job.err, text="the end is told")
        lab.copia("n4", "kill", "-KILL", name)
        assert job.end() == 137, job
    result = lab.copia("n1", "kill", name, code=None)
    assert result.code != 0 and name in result.err, result
    assert lab.copia("n1", "kill", "-NOSUCH", name, code=None).code == 2


def test_kill_of_others_is_refused(lab):
    with Running(lab, "n1", COPIA, "run", "--on", "n2", "sleep", "1004") as job:
        until(lambda: lab.pids("n2", "sleep 1004"), text="it runs")
        row, = [r for r in tasks(lab) if r["command"] == "sleep 1004"]
        for what in (row["id"], row["job"]):
            result = lab.on("n3", *NOBODY, COPIA, "kill", "-9", what, code=None)
            assert result.code != 0 and "root" in result.err and what in result.err, result
        assert lab.pids("n2", "sleep 1004") == [row["pid"]]
        lab.copia("n3", "kill", row["id"])
        assert job.end() == 143
    with Running(lab, "n1", *NOBODY, COPIA, "run", "--on", "n2", "sleep", "1005") as job:
        until(lambda: lab.pids("n2", "sleep 1005"), text="it runs")
        row, = [r for r in tasks(lab) if r["command"] == "sleep 1005"]
        lab.on("n3", *NOBODY, COPIA, "kill", row["job"])
        assert job.end() == 143


# ---------------------------------------------------------------- a tree of nodes


def sent_bytes(lab):
    """Bytes that each node sent on its network so far."""
    nodes = [f"n{i}" for i in range(1, 11)]
    return {n: int(lab.on(n, "sh", "-c", "cat /sys/class/net/*/statistics/tx_bytes | "
                          "sort -n | tail -1").out) for n in nodes}


def test_tree(fresh_lab):
    """To ten nodes: every one has the file, but its origin does not send it nine times."""
    lab = fresh_lab(10)
    until(lambda: [r["state"] for r in lab.rows().values()] == ["up"] * 10, 40, text="ten nodes")
    size = 12 << 20
    lab.on("n1", "sh", "-c", f"head -c {size} /dev/urandom > /tmp/data")
    want = lab.on("n1", "sha256sum", "/tmp/data").out.split()[0]
    before = sent_bytes(lab)
    words = ("run", "--json", "--on", "all", "--stage", "/tmp/data", "sha256sum", "data")
    rows = [json.loads(line) for line in lab.copia("n1", *words).out.splitlines()]
    sums = [row["text"].split()[0] for row in rows if "text" in row]
    assert sums == [want] * 10
    after = sent_bytes(lab)
    sent = {n: after[n] - before[n] for n in after}
    assert sent["n1"] < 6 * size, sent
    assert sum(n > size for n in sent.values()) > 1, sent
    assert sum(sent.values()) < 11 * size, sent
    rows = [json.loads(line) for line in lab.copia("n1", *words).out.splitlines()]
    done = next(row for row in rows if "file_bytes" in row)
    assert done["file_bytes"] == 0
