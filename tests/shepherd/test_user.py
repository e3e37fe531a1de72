# SPDX-License-Identifier: Apache-2.0
"""An ordinary user's daemon: what works, and what says why it does not."""
import hashlib
import os
import signal

import pytest

from herd import Herd, alive, wait_until
from test_deaths import start_family
from test_streams import WRITER

USER = 65534 if os.geteuid() == 0 else None


@pytest.fixture
def herd():
    with Herd(user=USER) as h:
        yield h


def test_tasks_run_and_say_what_falls_away(herd):
    _, out, _ = herd.run(["id", "-u"])
    assert int(out) == (USER or os.geteuid())
    facts = {f["name"]: f for f in herd.hello["facts"]}
    assert not facts["users"]["ok"]
    for f in facts.values():
        assert f["ok"] or (f["loss"] and f["remedy"]), f


def test_other_users_are_refused(herd):
    s = herd.spawn(["true"], set_user=True, uid=0, gid=0)
    assert s["code"] < 0 and "cannot start tasks of user 0" in s["error"]


def test_output_is_whole_over_a_death_of_the_brain(herd):
    s = herd.spawn(["/usr/bin/python3", "-c", WRITER, "20000000"])
    herd.wait_for(lambda: len(herd.out(s["task"])) > 5_000_000, 30, "output")
    herd.kill_brain()
    herd.wait_for(lambda: herd.finished(s["task"]) and herd.finished(s["task"], 2), 60, "end")
    assert hashlib.sha256(herd.out(s["task"])).hexdigest() == herd.out(s["task"], 2).decode()


def test_two_hundred_tasks(herd):
    batch = [herd.spawn_message(["/bin/sh", "-c", f"echo {i}"]) for i in range(200)]
    herd.request("spawn", {"tasks": batch})
    for i, m in enumerate(batch):
        herd.wait("exit", lambda e, m=m: e["task"] == m["task"], 30)
        herd.wait_for(lambda m=m: herd.finished(m["task"]), 30)
        assert herd.out(m["task"]) == f"{i}\n".encode()


def test_death_of_the_shepherd_leaves_nobody(herd):
    pids = start_family(herd)
    os.kill(herd.pid, signal.SIGKILL)
    herd.process.wait()
    assert herd.wait("leftovers")["leftovers"] >= 1
    wait_until(lambda: not any(map(alive, pids)), what="end of all tasks")
