# SPDX-License-Identifier: Apache-2.0
"""Output is never lost or doubled, input arrives exactly once, whatever happens to the brain."""
import fcntl
import hashlib
import os
import struct
import termios

import pytest

from herd import COPIAD_OTHER, Herd, alive, wait_until

WRITER = """
import hashlib, os, random, sys
r, h, left = random.Random(1), hashlib.sha256(), int(sys.argv[1])
while left:
    b = r.randbytes(min(left, r.choice([1, 100, 4096, 70000])))
    h.update(b)
    left -= len(b)
    while b:
        b = b[os.write(1, b):]
os.write(2, h.hexdigest().encode())
"""
READER = """
import hashlib, os, sys
h, n = hashlib.sha256(), 0
while b := os.read(0, 65536):
    h.update(b)
    n += len(b)
print(n, h.hexdigest(), flush=True)
"""


@pytest.fixture
def herd():
    with Herd() as h:
        yield h


def task_state(h):
    """What the next brain is told of the one task, before anything else happens."""
    return next(e for k, e, _ in h.events if k == "task")


def test_slow_receiver_pushes_back_and_loses_nothing(herd):
    herd.auto_ack = False
    s = herd.spawn(["/usr/bin/python3", "-c", WRITER, "5000000"])
    herd.wait_for(lambda: len(herd.out(s["task"])) > 300_000, what="first output")
    while herd.pump(0.2):
        pass
    assert len(herd.out(s["task"])) <= 2 << 20, "no unbounded buffer"
    assert not herd.finished(s["task"])
    herd.auto_ack = True
    herd.ack(s["task"], 1)
    herd.wait_for(lambda: herd.finished(s["task"]) and herd.finished(s["task"], 2), 30, "end")
    assert hashlib.sha256(herd.out(s["task"])).hexdigest() == herd.out(s["task"], 2).decode()


def test_output_is_whole_over_deaths_of_the_brain(herd):
    size = 50_000_000
    s = herd.spawn(["/usr/bin/python3", "-c", WRITER, str(size)])
    task = s["task"]
    for part in (1, 2, 3, 4):
        herd.wait_for(lambda: len(herd.out(task)) > part * size // 5, 30, "a part")
        hello = herd.kill_brain()
        assert hello["brain_starts"] == part + 1 and "signal 9" in hello["brain_end"]
        assert alive(s["pid"])
    herd.wait_for(lambda: herd.finished(task) and herd.finished(task, 2), 60, "end")
    assert len(herd.out(task)) == size
    assert hashlib.sha256(herd.out(task)).hexdigest() == herd.out(task, 2).decode()


def test_output_of_an_ended_task_waits_for_the_next_brain(herd):
    herd.auto_ack = False
    s = herd.spawn(["sh", "-c", "echo kept; echo err >&2; exit 4"])
    herd.wait("exit")
    herd.kill_brain()
    state = herd.wait("task") if any(k == "task" for k, _, _ in herd.events) else None
    assert state and state["exit"]["status"] == 4
    herd.auto_ack = True
    herd.outputs.clear()
    herd.wait_for(lambda: herd.finished(s["task"]) and herd.finished(s["task"], 2), what="output")
    assert (herd.out(s["task"]), herd.out(s["task"], 2)) == (b"kept\n", b"err\n")
    herd.ack(s["task"], 1)
    herd.wait("consumed", lambda e: e["ended"] and e["consumed"] == 5)
    assert herd.ask("release", {"task": s["task"]})["code"] == 0


def test_input_arrives_exactly_once_over_deaths_of_the_brain(herd):
    data = os.urandom(8_000_000)
    s = herd.spawn(["/usr/bin/python3", "-c", READER], stdin=1)
    task, at, deaths = s["task"], 0, 0
    pumped = 0
    while at < len(data):
        part = data[at:at + 600_000]
        herd.send_input(task, part)
        at += len(part)
        if deaths < 4 and at > (deaths + 1) * len(data) // 5:
            # In the middle: some of it is pumped, some staged, some still in the brain.
            herd.wait("pumped", lambda e: e["pumped"] > pumped)
            deaths += 1
            herd.kill_brain()
            at = pumped = task_state(herd)["stdin_pumped"]
    herd.send_input(task, b"", close=True)
    herd.wait("exit", seconds=30)
    herd.wait_for(lambda: herd.finished(task), what="output")
    assert deaths == 4
    assert herd.out(task).decode().split() == [str(len(data)), hashlib.sha256(data).hexdigest()]


def test_input_that_nobody_reads_is_told(herd):
    s = herd.spawn(["sh", "-c", "exec <&-; echo closed; exec sleep 100"], stdin=1)
    herd.wait_for(lambda: herd.out(s["task"]) == b"closed\n", what="closed")
    herd.send_input(s["task"], b"x" * 10)
    herd.wait("pumped", lambda e: e["closed"])
    herd.ask("kill", {"task": s["task"], "signal": 9})
    herd.wait("exit")


def test_a_terminal_has_size_and_control(herd):
    s = herd.spawn(["sh", "-c", "tty; stty size; read x; stty size; echo got $x; exec cat"],
                   pty=True, rows=30, cols=100)
    seen = lambda: herd.terminals.get(s["task"], b"")
    herd.wait_for(lambda: b"30 100" in seen(), what="size")
    assert b"/dev/pts/" in seen()
    herd.ask("winsize", {"task": s["task"], "rows": 50, "cols": 120})
    herd.send_input(s["task"], b"word\n")
    herd.wait_for(lambda: b"got word" in seen() and b"50 120" in seen(), what="answer")
    herd.send_input(s["task"], b"cat\n")
    herd.wait_for(lambda: seen().count(b"cat\r\n") == 2, what="cat, which takes no signal half")
    herd.send_input(s["task"], b"\x03")
    assert herd.wait("exit")["signal"] == 2, "interrupt comes from the terminal"


TICKER = """
import os, sys, time
for i in range(int(sys.argv[1])):
    os.write(1, b"%09d\\n" % i)
    if i % 1000 == 0:
        time.sleep(0.005)
"""


def test_upgrade_keeps_running_tasks_and_their_output(herd):
    lines = 600_000
    ended = herd.spawn(["sh", "-c", "exit 9"])
    herd.wait("exit")
    reader = herd.spawn(["/usr/bin/python3", "-c", READER], stdin=1)
    herd.send_input(reader["task"], b"before ")
    herd.wait("pumped", lambda e: e["pumped"] == 7)
    s = herd.spawn(["/usr/bin/python3", "-c", TICKER, str(lines)])
    for part in (1, 2):
        herd.wait_for(lambda: len(herd.out(s["task"])) > part * 10 * lines // 5, 30, "output")
        herd.request("upgrade", {})
        herd.link.settimeout(10)
        with pytest.raises(EOFError):
            herd.wait("nothing", seconds=10)
        herd.link.close()
        hello = herd.meet()
        assert hello["upgraded"] and hello["pid"] == herd.pid
        assert hello["incarnation"] == herd.hello["incarnation"]
        states = {e["task"]: e for k, e, _ in herd.events if k == "task"}
        assert states[ended["task"]]["exit"]["status"] == 9
        assert states[reader["task"]]["stdin_pumped"] == 7
    herd.send_input(reader["task"], b"after", close=True)
    herd.wait("exit", lambda e: e["task"] == reader["task"])
    herd.wait_for(lambda: herd.finished(reader["task"]), what="reader")
    assert herd.out(reader["task"]).split()[1].decode() == hashlib.sha256(b"before after").hexdigest()
    x = herd.wait("exit", lambda e: e["task"] == s["task"], 60)
    assert x["status"] == 0 and x["max_rss_bytes"] > 0
    herd.wait_for(lambda: herd.finished(s["task"]), 30, "end")
    assert herd.out(s["task"]) == b"".join(b"%09d\n" % i for i in range(lines))


def test_upgrade_to_a_program_that_cannot_take_over_is_refused(herd):
    s = herd.spawn(["sleep", "100"])
    for path, text in ((COPIAD_OTHER, "cannot take over"), ("/nonexistent/copiad", "/nonexistent"),
                       ("/bin/false", "cannot take over")):
        done = herd.ask("upgrade", {"path": path})
        assert done["code"] < 0 and text in done["error"]
    assert alive(s["pid"])


def test_program_that_does_not_know_the_table_gives_the_word_back(herd, tmp_path):
    liar = tmp_path / "copiad"
    liar.write_text(f'#!/bin/sh\n[ "$1" = --can-take ] && exit 0\nexec {COPIAD_OTHER} "$@"\n')
    liar.chmod(0o755)
    s = herd.spawn(["sh", "-c", "read x; echo $x"], stdin=1)
    herd.request("upgrade", {"path": str(liar)})
    with pytest.raises(EOFError):
        herd.wait("nothing", seconds=10)
    herd.link.close()
    hello = herd.meet()
    assert hello["pid"] == herd.pid and hello["upgraded"]
    assert "knows 99" in herd.log_text()
    assert alive(s["pid"])
    herd.send_input(s["task"], b"still here\n")
    herd.wait("exit")
    herd.wait_for(lambda: herd.finished(s["task"]), what="output")
    assert herd.out(s["task"]) == b"still here\n"
