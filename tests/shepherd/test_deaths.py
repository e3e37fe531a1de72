# SPDX-License-Identifier: Apache-2.0
"""No orphans after the shepherd's death; restarts of the brain; systemd."""
import os
import signal
import socket
import tempfile
import time

import pytest

from herd import FAKE_BRAIN, Herd, alive, wait_until
from test_tasks import ORPHAN


def start_family(h):
    """A task, a child in its group, and a double-forked one in a session of its own."""
    s = h.spawn(["/usr/bin/python3", "-c", ORPHAN, "100"])
    h.wait_for(lambda: b"\n" in h.out(s["task"]), what="pid of the orphan")
    t = h.spawn(["sh", "-c", "sleep 100 & echo $!; wait"])
    h.wait_for(lambda: b"\n" in h.out(t["task"]), what="pid of the child")
    return [s["pid"], int(h.out(s["task"])), t["pid"], int(h.out(t["task"]))]


def no_groups(h):
    """Groups cannot be made: every tree is hidden."""
    return ["unshare", "-m", "sh", "-c", "umount -a -t cgroup,cgroup2; umount -l /sys/fs/cgroup; "
            'exec "$0" "$@"']


@pytest.mark.parametrize("hidden", [False, True])
def test_death_of_the_shepherd_leaves_nobody(hidden):
    if hidden and os.geteuid() != 0:
        pytest.skip("hiding the cgroup trees needs root")
    with Herd(wrap=no_groups(None) if hidden else ()) as h:
        if hidden:
            s = h.spawn(["true"])
            assert s["isolation"] == "none"
        pids = start_family(h)
        assert all(map(alive, pids))
        begin = time.monotonic()
        os.kill(h.pid, signal.SIGKILL)
        h.process.wait()
        left = h.wait("leftovers")
        assert left["leftovers"] >= 0
        wait_until(lambda: not any(map(alive, pids)), what="end of all tasks")
        wait_until(lambda: not alive(h.brain_pid), what="end of the brain")
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("hidden", [False, True])
def test_next_daemon_kills_what_both_left(hidden):
    if hidden and os.geteuid() != 0:
        pytest.skip("hiding the cgroup trees needs root")
    wrap = no_groups(None) if hidden else ()
    first = Herd(wrap=wrap)
    try:
        first.hello = first.meet()
        pids = start_family(first)
        # Neither gets a chance to clean up.
        os.kill(first.brain_pid, signal.SIGSTOP)
        os.kill(first.pid, signal.SIGKILL)
        first.process.wait()
        assert alive(pids[1]), "the double-forked one lives: nobody was there to kill it"
        first.listener.close()
        with Herd(keep=first.folder, wrap=wrap) as second:
            assert not any(map(alive, pids))
            assert not alive(first.brain_pid)
            assert second.hello["incarnation"] > first.hello["incarnation"]
            assert "were left and are killed" in second.log_text()
    finally:
        first.close()


def test_without_groups_descendants_end_with_their_task():
    if os.geteuid() != 0:
        pytest.skip("hiding the cgroup trees needs root")
    with Herd(wrap=no_groups(None)) as h:
        s = h.spawn(["/usr/bin/python3", "-c", ORPHAN, "0.05"])
        assert s["isolation"] == "none"
        h.wait("exit")
        h.wait_for(lambda: h.finished(s["task"]), what="end of output")
        orphan = int(h.out(s["task"]))
        wait_until(lambda: not alive(orphan), what="end of the orphan")


def test_a_brain_that_dies_again_and_again_is_restarted_ever_later():
    with Herd() as h:
        s = h.spawn(["sleep", "100"])
        times = []
        for _ in range(4):
            begin = time.monotonic()
            h.kill_brain()
            times.append(time.monotonic() - begin)
        assert times[0] < 0.1 < times[2] and times[3] > 0.35, times
        assert alive(s["pid"])


def test_a_brain_that_gives_no_sign_of_life_is_replaced():
    with Herd() as h:
        h.ask("ready", {"watchdog_ms": 300})
        os.kill(h.brain_pid, signal.SIGSTOP)
        hello = h.meet()
        assert hello["brain_starts"] == 2


def test_a_brain_that_cannot_be_started_is_an_error_at_once():
    import subprocess
    with tempfile.TemporaryDirectory() as folder:
        from herd import COPIAD, free_port
        r = subprocess.run([COPIAD, "--state", folder + "/s", "--run", folder + "/r", "--brain",
                            "/nonexistent/brain", "--port", str(free_port())],
                           capture_output=True, text=True, timeout=10)
        assert r.returncode == 1
        assert "/nonexistent/brain" in r.stderr


def test_systemd_is_told(tmp_path):
    path = tempfile.mktemp(prefix="copia-notify-")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as n:
        n.bind(path)
        n.settimeout(10)
        with Herd(env={"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}) as h:
            texts = [n.recv(512).decode() for _ in range(5)]
            assert any(t.startswith("READY=1\nSTATUS=fake") for t in texts)
            assert texts.count("WATCHDOG=1") >= 3
            s = h.spawn(["sh", "-c", "echo ${NOTIFY_SOCKET-none}"])
            h.wait_for(lambda: h.out(s["task"]) == b"none\n", what="environment")
        while (t := n.recv(512).decode()) == "WATCHDOG=1":
            pass
        assert t.startswith("STOPPING=1")
    os.unlink(path)


def test_a_brain_that_asks_and_does_not_listen_is_slowed_down():
    """Each answer arrives, and they wait in the brain's memory and not in the shepherd's."""
    count = 40000
    with Herd() as h:
        s = h.spawn(["sleep", "100"])
        h.tell({"flood": {"task": s["task"], "count": count}})
        got = 0
        while got < count:
            h.wait_for(lambda: h.events, 20, "answers")
            got += sum(k == "done" and "bytes were written" in e["error"] for k, e, _ in h.events)
            h.events.clear()
        assert got == count
        with open(f"/proc/{h.pid}/status") as f:
            status = dict(line.split(":", 1) for line in f)
        if int(status["VmSize"].split()[0]) < 1 << 30:  # a sanitizer maps more, and keeps more
            assert int(status["VmHWM"].split()[0]) < 8 * 1024, status["VmHWM"]
