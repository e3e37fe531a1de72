# SPDX-License-Identifier: Apache-2.0
"""Twelve nodes in one lab, with the daemon, and an ordinary user's own lab and own daemon."""
import os
import time

import pytest

from world import COPIA, Lab, call, until

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


def test_twelve_nodes(capfd):
    begun = time.monotonic()
    with Lab(12) as lab:
        up = time.monotonic() - begun
        until(lambda: sum(r["state"] == "up" for r in lab.rows().values()) == 12,
              text="twelve nodes are up")
        everywhere = time.monotonic() - begun
        assert set(lab.rows("n12")) == {f"n{k}" for k in range(1, 13)}
        lab.whole(3)
        result = lab.on("n7", *NOBODY, COPIA, "run", "-N", "12", "--label", "hostname")
        assert {line.split()[-1] for line in result.out.splitlines()} == set(lab.rows())
    down = time.monotonic() - begun - everywhere
    with capfd.disabled():
        print(f" [twelve nodes: lab up {up:.1f} s, all up {everywhere:.1f} s, rest {down:.1f} s]",
              end="")


def as_nobody(*words, home, **options):
    env = dict(os.environ, HOME=str(home), XDG_RUNTIME_DIR=str(home), USER="nobody")
    for other in ("XDG_STATE_HOME", "COPIA_LAB_DIR"):  # folders of the one who runs the tests
        env.pop(other, None)
    return call(*(NOBODY if os.geteuid() == 0 else []), *words, env=env, **options)


@pytest.fixture
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    for part in (folder, folder.parent, folder.parent.parent):
        os.chmod(part, 0o755)
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)
    return folder


def test_lab_of_an_ordinary_user(home):
    """A lab works, or the words say what the machine does not allow and what helps."""
    name = f"u{os.getpid()}"
    try:
        result = as_nobody(COPIA, "lab", "up", "2", "--lab", name, home=home)
        if result.code != 0:
            assert "user namespace" in result.err and "root" in result.err, result
            return
        rows = as_nobody(COPIA, "lab", "exec", "--lab", name, "n1", "--", COPIA, "nodes", home=home)
        assert "n1" in rows.out and "n2" in rows.out
    finally:
        assert as_nobody(COPIA, "lab", "down", "--lab", name, home=home).code == 0


def test_daemon_of_an_ordinary_user():
    """Own state folder, own port: a whole cluster of one, and doctor says what falls away."""
    with Lab(1, bare=True) as lab:
        lab.on("n1", "sh", "-c", "install -d -o 65534 -g 65534 /tmp/home && "
               "cp /dev/null /tmp/log && "
               "chown 65534 /tmp/log")
        env = ["env", "-u", "XDG_STATE_HOME", "HOME=/tmp/home", "XDG_RUNTIME_DIR=/tmp/home"]
        me = NOBODY + env
        lab.on("n1", *me, "sh", "-c",
               f"setsid {COPIA}d --port 30000 </dev/null >/tmp/log 2>&1 &")
        until(lambda: lab.on("n1", *me, COPIA, "status", code=None).code == 0, text="it serves")
        lab.on("n1", *me, COPIA, "init", "--name", "mine")
        assert "up" in lab.on("n1", *me, COPIA, "nodes").out
        assert lab.on("n1", *me, COPIA, "run", "-n", "2", "echo", "hello").out == "hello\nhello\n"
        assert lab.on("n1", "ls", "/tmp/home/.local/state/copia/identity").out
        out = lab.on("n1", "ss", "-Hlntu").out
        assert {line.split()[4].rsplit(":", 1)[1] for line in out.splitlines()} == {"30000"}
        doctor = lab.on("n1", *me, COPIA, "doctor", "--json")
        levels = {f["level"] for f in doctor.json()["findings"]}
        assert levels & {"note", "warning", "problem"}
        lab.signal("n1", "copiad: shepherd", "TERM")
        until(lambda: not lab.pids("n1", "copiad"), text="it has ended")
