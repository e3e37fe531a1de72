# SPDX-License-Identifier: Apache-2.0
"""`copia lab` without copiad: nodes, network, faults, and that nothing is left behind."""
import itertools
import json
import os
import pathlib
import pty
import random
import select
import signal
import subprocess
import time

import pytest

from lab_fixtures import Lab, PYTHON, alive, as_user, lab, make_lab, program, traces  # noqa: F401

WORDS = itertools.count()

# Datagrams with the word argv[3] to argv[1]:7000.
SEND = """
    import socket, sys
    host, count, word = sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    s = socket.socket(family, socket.SOCK_DGRAM)
    for _ in range(count):
        s.sendto(word, (host, 7000))
"""
# Says "ready", then how many of them came until argv[2] seconds of silence. The word tells them from
# those that an earlier sender's kernel kept until it found out the address.
RECEIVE = """
    import socket, sys
    s = socket.socket(socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET, socket.SOCK_DGRAM)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    s.bind(("", 7000))
    print("ready", flush=True)
    s.settimeout(float(sys.argv[2]))
    count = 0
    try:
        while True:
            count += s.recv(100) == sys.argv[3].encode()
    except TimeoutError:
        print(count)
"""


def deliver(lab, sender, receiver, count=20, family=4):
    """How many of `count` datagrams arrive."""
    word = f"word{next(WORDS)}"
    address = lab.node(receiver)["ipv4" if family == 4 else "ipv6"]
    process = lab.start_python(receiver, RECEIVE, family, 1, word)
    assert process.stdout.readline() == "ready\n"
    lab.python(sender, SEND, address, str(count), word)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return int(out)


def test_up_makes_nodes_with_spaces_of_their_own(lab):
    """Goal: each node differs from the machine and from each other in all namespaces."""
    lab.up(3)
    spaces = ("net", "mnt", "pid", "uts", "ipc", "cgroup")
    show = "for s in %s; do readlink /proc/self/ns/$s; done; hostname" % " ".join(spaces)
    seen = [lab.sh(f"n{i}", show).split() for i in (1, 2, 3)]
    seen.append([os.readlink(f"/proc/self/ns/{s}") for s in spaces] + [os.uname().nodename])
    for column in zip(*seen):
        assert len(set(column)) == 4, column
    assert [s[-1] for s in seen[:3]] == ["n1", "n2", "n3"]


def test_a_node_looks_like_a_machine(lab):
    """Goal: own /proc, /sys, /tmp, /dev/shm, /run, /var/lib/copia, names and loopback."""
    lab.up(2)
    lab.sh("n1", "touch /tmp/x /dev/shm/x /run/x /var/lib/copia/x")
    assert lab.sh("n2", "ls /tmp/x /dev/shm/x /run/x /var/lib/copia/x 2>/dev/null", code=2) == ""
    assert not any(os.path.exists(f"{d}/x") for d in ("/dev/shm", "/run", "/var/lib/copia"))
    assert lab.sh("n1", "cat /etc/hostname") == "n1\n"
    assert sorted(lab.sh("n1", "ls /sys/class/net").split()) == ["eth0", "lo"]
    assert "copia-labinit" in lab.sh("n1", "cat /proc/1/cmdline")
    assert lab.sh("n1", "getent ahostsv4 n2 | head -1").split()[0] == lab.node("n2")["ipv4"]
    assert lab.sh("n1", "test -d /run/copia && echo yes") == "yes\n"
    lab.python("n1", """
        import socket
        a = socket.create_server(("127.0.0.1", 0))
        socket.create_connection(a.getsockname())
        socket.getaddrinfo(socket.gethostname(), 1)
    """)
    # the nodes cannot see each other's state
    assert lab.sh("n1", f"ls -A {lab.state_folder()} 2>/dev/null; true") == ""


def test_a_program_is_visible_although_its_folder_is_covered(make_lab, tmp_path):
    """Goal: --share keeps a folder below /tmp visible."""
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "word").write_text("seen")
    lab = make_lab()
    lab.up(1, "--share", tmp_path / "share")
    assert lab.sh("n1", f"cat {tmp_path}/share/word") == "seen"


def test_up_again_starts_only_what_is_missing(lab):
    """Goal: idempotent, and grows."""
    lab.up(2)
    before = lab.status()
    lab.up(2)
    lab.up()
    assert lab.status() == before
    lab.run("kill", "n2")
    lab.up(4)
    after = lab.status()
    assert [n["name"] for n in after["nodes"]] == ["n1", "n2", "n3", "n4"]
    assert after["nodes"][0] == before["nodes"][0] and after["pid"] == before["pid"]
    assert {n["state"] for n in after["nodes"]} == {"running"}
    assert lab.sh("n1", "getent ahostsv4 n4 | head -1").split()[0] == lab.node("n4")["ipv4"]
    assert deliver(lab, "n1", "n4") == 20
    lab.up(1)
    assert len(lab.status()["nodes"]) == 4


def test_twelve_nodes_start_quickly(lab):
    """Goal: well below 10 s; without copiad 1.5 s is a lot already on an idle machine."""
    begin = time.monotonic()
    lab.up(12)
    assert time.monotonic() - begin < 5
    assert {n["state"] for n in lab.status()["nodes"]} == {"running"}


def test_exec_passes_everything_through(lab):
    """Goal: exit code, signals, input, output, error, folder, environment."""
    lab.up(1)
    assert lab.run("exec", "n1", "--", "sh", "-c", "exit 7", code=7)
    assert lab.run("exec", "n1", "sh", "-c", "kill -9 $$", code=137)
    assert "no such program" in lab.run("exec", "n1", "no-such-program", code=127).stderr
    assert "ermission" in lab.run("exec", "n1", "/etc/passwd", code=126).stderr
    split = lab.run("exec", "n1", "sh", "-c", "echo out; echo err >&2")
    assert (split.stdout, split.stderr) == ("out\n", "err\n")
    piped = subprocess.run([*lab.command, "exec", "n1", "--", "wc", "-c"], input=b"x" * 1000000,
                           env=lab.environment, cwd="/usr/share", capture_output=True, timeout=60,
                           check=True)
    assert piped.stdout == b"1000000\n"
    where = subprocess.run([*lab.command, "exec", "n1", "pwd"], env=lab.environment, check=True,
                           cwd="/usr/share", capture_output=True, timeout=60)
    assert where.stdout == b"/usr/share\n"
    # words that look like options belong to the command
    assert lab.run("exec", "n1", "echo", "--lab", "x").stdout == "--lab x\n"


def test_exec_forwards_signals(lab):
    """Goal: what is sent to the command reaches the program."""
    lab.up(1)
    process = lab.start("exec", "n1", "sh", "-c",
                        'trap "echo got; exit 9" TERM; echo ready; while :; do sleep 0.05; done')
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "got\n"
    assert process.returncode == 9


def talk(command, environment, steps):
    """In a terminal of its own: wait for each text, then type the answer; returns the exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe(command[0], command, environment)
    seen, said = b"", b""
    end = time.monotonic() + 20
    ended = os.pidfd_open(pid)
    try:
        for expected, answer in [*steps, (None, b"")]:
            while expected is None or expected not in seen:
                ready, _, _ = select.select([terminal, ended], [], [], max(0, end - time.monotonic()))
                assert ready, (expected, said)
                if terminal in ready:
                    try:
                        seen += (more := os.read(terminal, 4096))
                        said += more
                        continue
                    except OSError:  # the other side of the terminal was closed
                        pass
                select.select([ended], [], [], 20)
                assert expected is None, (expected, said)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            seen = seen[seen.index(expected) + len(expected):]
            os.write(terminal, answer)
    finally:
        try:
            signal.pidfd_send_signal(ended, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(ended)
        os.close(terminal)


def test_exec_keeps_the_terminal(lab):
    """Goal: a shell in a node has job control, Ctrl-C and Ctrl-Z."""
    lab.up(1)
    # the word comes from the program that is to be interrupted, not from the shell before it starts;
    # "exit" twice: the first may find that its killed job still counts as stopped
    # the quotes keep the word that is waited for out of the echo of what is typed
    code = talk([*lab.command, "exec", "n1", "--", "bash", "--norc", "--noprofile", "-i"],
                dict(lab.environment, PS1="ask> "), [
                    (b"ask> ", b"tty > /dev/null && sh -c 'echo o\"\"n; exec sleep 100'\n"),
                    (b"on\r\n", b"\x03"), (b"^C", b"sh -c 'echo t\"\"wo; exec sleep 100'\n"),
                    (b"two\r\n", b"\x1a"), (b"Stopped", b"kill -9 %1\nexit 5\nexit 5\n")])
    assert code == 5


def test_kill_is_a_power_loss_and_start_brings_the_state_back(lab):
    """Goal: all processes gone, volatile files gone, /var/lib/copia kept, no farewell sent."""
    lab.up(2)
    lab.sh("n2", "echo kept > /var/lib/copia/f; echo lost > /tmp/f")
    server = lab.start_python("n2", """
        import socket
        s = socket.create_server(("", 7001))
        print("ready", flush=True)
        c, _ = s.accept()
        c.recv(1)
    """)
    assert server.stdout.readline() == "ready\n"
    client = lab.start_python("n1", """
        import socket
        c = socket.create_connection(("n2", 7001))
        print("connected", flush=True)
        c.settimeout(1.5)
        try:
            print("heard", c.recv(1))
        except TimeoutError:
            print("silence")
    """)
    assert client.stdout.readline() == "connected\n"
    before = lab.node("n2")
    mac = lab.sh("n2", "cat /sys/class/net/eth0/address")
    lab.run("kill", "n2")
    assert server.wait(20) == 137
    assert client.communicate(timeout=20)[0] == "silence\n"
    assert lab.node("n2")["state"] == "off" and not alive(before["pid"])
    assert "is off" in lab.run("exec", "n2", "true", code=1).stderr
    lab.run("start", "n2")
    assert lab.sh("n2", "cat /var/lib/copia/f; test -e /tmp/f || echo gone") == "kept\ngone\n"
    assert lab.sh("n2", "cat /sys/class/net/eth0/address") == mac
    assert deliver(lab, "n1", "n2") == 20


COUNT = """
    import time
    with open("/dev/shm/count", "w") as f:
        i = 0
        while True:
            f.seek(0)
            f.write(str(i))
            f.flush()
            if i == 0:
                print("ready", flush=True)
            i += 1
            time.sleep(0.001)
"""


def check_pause(lab):
    lab.up(2)
    counter = lab.start_python("n2", COUNT)
    assert counter.stdout.readline() == "ready\n"
    file = pathlib.Path("/proc", str(lab.node("n2")["pid"]), "root/dev/shm/count")
    lab.run("pause", "n2")
    assert lab.node("n2")["state"] == "paused"
    assert "is paused" in lab.run("exec", "n2", "true", code=1).stderr
    before = file.read_text()
    time.sleep(0.2)  # that nothing happens can only be seen by waiting
    assert file.read_text() == before
    assert lab.node("n1")["state"] == "running"
    lab.run("resume", "n2")
    assert lab.node("n2")["state"] == "running"
    end = time.monotonic() + 20
    while file.read_text() in (before, ""):
        assert time.monotonic() < end
    lab.run("pause", "n2")
    lab.run("kill", "n2")
    assert counter.wait(20) == 137


def test_pause_stops_all_processes_of_the_node(lab):
    """Goal: no instruction is run between pause and resume; a paused node can be killed."""
    check_pause(lab)


def test_cut_lets_nothing_pass(lab):
    """Goal: both directions, both protocols, only this pair; a node cannot undo it; heal can."""
    lab.up(3)
    assert deliver(lab, "n1", "n2") == 20
    lab.run("cut", "n1", "n2")
    for a, b in (("n1", "n2"), ("n2", "n1")):
        for family in (4, 6):
            assert deliver(lab, a, b, family=family) == 0
    assert deliver(lab, "n1", "n3") == 20 and deliver(lab, "n3", "n2", family=6) == 20
    lab.run("kill", "n1")
    lab.run("start", "n1")
    assert deliver(lab, "n1", "n2") == 0
    assert lab.status()["cuts"] == [{"from": "n1", "to": "n2"}, {"from": "n2", "to": "n1"}]
    lab.run("heal")
    assert lab.status()["cuts"] == []
    assert deliver(lab, "n1", "n2") == 20 and deliver(lab, "n2", "n1", family=6) == 20


def test_cut_takes_lists(lab):
    """Goal: n1 alone on one side; heal of one pair leaves the others cut."""
    lab.up(3)
    lab.run("cut", "n1", "n[2-3]")
    assert deliver(lab, "n1", "n2") == 0 and deliver(lab, "n3", "n1") == 0
    assert deliver(lab, "n2", "n3") == 20
    lab.run("heal", "n1", "n2")
    assert deliver(lab, "n1", "n2") == 20 and deliver(lab, "n1", "n3") == 0


def test_cut_of_one_way_leaves_the_other(lab):
    """Goal: asymmetric, also with cold tables of neighbours."""
    lab.up(2)
    lab.run("cut", "n1", "n2", "--one-way")
    assert deliver(lab, "n2", "n1") == 20 and deliver(lab, "n2", "n1", family=6) == 20
    assert deliver(lab, "n1", "n2") == 0 and deliver(lab, "n1", "n2", family=6) == 0


def test_loss_loses_its_share(lab):
    """Goal: 20 % of 2000 is 400 +- 90 (five standard deviations); 0 % ends it."""
    lab.up(2)
    lab.run("loss", "n1", "n2", "20")
    assert lab.status()["losses"][0]["percent"] == 20
    assert abs(deliver(lab, "n1", "n2", 2000) - 1600) < 90
    lab.run("loss", "n1", "n2", "0")
    assert deliver(lab, "n1", "n2", 2000) == 2000


def test_two_labs_do_not_meet(make_lab):
    """Goal: same node names, no packets between them; the end of one leaves the other."""
    one, two = make_lab("one"), make_lab("two")
    one.up(2)
    two.up(2)
    assert deliver(one, "n1", "n2") == 20 and deliver(two, "n1", "n2") == 20
    receiver = two.start_python("n2", RECEIVE, 4, 1, "x")
    assert receiver.stdout.readline() == "ready\n"
    one.sh("n1", f"{PYTHON} -c \"import socket; s = socket.socket(2, 2);"
                 f" s.sendto(b'x', ('{two.node('n2')['ipv4']}', 7000))\" 2>/dev/null; true")
    assert receiver.communicate(timeout=20)[0] == "0\n"
    one.run("down")
    assert deliver(two, "n1", "n2") == 20


def test_down_leaves_nothing(lab):
    """Goal: processes, links, mounts, control groups and files are as before."""
    before = traces(lab)
    lab.up(3)
    sleeper = lab.start("exec", "n2", "sh", "-c", "setsid sleep 1000 & mkdir -p /tmp/a/b; echo on; wait")
    assert sleeper.stdout.readline() == "on\n"
    lab.sh("n1", "mkdir -p /var/lib/copia/a/b; touch /var/lib/copia/a/b/c; chmod 0 /var/lib/copia/a")
    lab.run("cut", "n1", "n2")
    lab.run("pause", "n3")
    pids = [n["pid"] for n in lab.status()["nodes"]] + [lab.status()["pid"]]
    assert traces(lab) != before
    lab.run("down")
    assert sleeper.wait(20) == 137
    assert not any(map(alive, pids))
    assert traces(lab) == before
    assert not lab.folder.exists()


def test_down_works_while_an_exec_is_stopped(lab):
    """Goal: a suspended "lab exec" in some shell does not hold up the end of the lab."""
    lab.up(1)
    process = lab.start("exec", "n1", "sh", "-c", "echo on; sleep 1000")
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    lab.run("down", timeout=30)
    assert process.wait(20) == 137


@pytest.mark.parametrize("victim", ["hub", "node"])
def test_a_killed_process_of_the_lab_is_seen_and_replaced(lab, victim):
    """Goal: status tells, up repairs, the state stays."""
    lab.up(2)
    lab.sh("n2", "echo kept > /var/lib/copia/f")
    pid = lab.status()["pid"] if victim == "hub" else lab.node("n2")["pid"]
    descriptor = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([descriptor], [], [], 20)
    os.close(descriptor)
    assert lab.node("n2")["state"] == "off"
    assert lab.status()["state"] == ("off" if victim == "hub" else "up")
    lab.up()
    assert lab.sh("n2", "cat /var/lib/copia/f") == "kept\n"
    assert deliver(lab, "n1", "n2") == 20


def test_a_command_killed_half_way_leaves_a_lab_that_can_go_on_or_down(make_lab):
    """Goal: SIGKILL of "up" at any moment; then "up" completes it, "down" removes it."""
    source = random.Random(os.environ.get("COPIA_SEED", "1"))
    for turn in range(12):
        lab = make_lab(f"half-{turn}")
        before = traces(lab)
        process = lab.start("up", "--bare", "6", start_new_session=True)
        time.sleep(source.random() * 0.25)  # the moment is the test
        process.kill()
        process.communicate()
        if turn % 2:
            lab.up(6, timeout=30)
            assert {n["state"] for n in lab.status()["nodes"]} == {"running"}
            assert deliver(lab, "n1", "n6") == 20
        lab.run("down", code=None, timeout=30)
        assert traces(lab) == before, f"turn {turn}"


def test_a_down_killed_half_way_can_be_repeated(make_lab):
    """Goal: nothing is left after the second."""
    source = random.Random(os.environ.get("COPIA_SEED", "2"))
    for turn in range(8):
        lab = make_lab(f"half-{turn}")
        before = traces(lab)
        lab.up(4)
        process = lab.start("down", start_new_session=True)
        time.sleep(source.random() * 0.06)  # the moment is the test
        process.kill()
        process.communicate()
        lab.run("down", code=None, timeout=30)
        assert traces(lab) == before, f"turn {turn}"


def test_one_command_at_a_time(lab):
    """Goal: the second says who holds the lab, and changes nothing."""
    lab.up(1)
    hold = """if True:
        import fcntl, os, sys
        f = open(sys.argv[1], "r+")
        fcntl.flock(f, fcntl.LOCK_EX)
        start = open("/proc/self/stat").read().rsplit(")", 1)[1].split()[19]
        f.write(f"{os.getpid()} {start}\\n")
        f.truncate()
        f.flush()
        print("held", flush=True)
        sys.stdin.read()
    """
    holder = subprocess.Popen([PYTHON, "-c", hold, str(lab.state_folder() / "lock")],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    for verb in (["up", "--bare"], ["kill", "n1"], ["down"], ["cut", "n1", "n1"]):
        said = lab.run(*verb, code=1).stderr
        assert f"being changed by another command (pid {holder.pid})" in said
    assert lab.run("exec", "n1", "hostname").stdout == "n1\n"
    assert lab.node("n1")["state"] == "running"
    holder.communicate(b"")
    lab.run("kill", "n1")


BAD = [  # words, exit code, what the message says
    (["up", "0"], 2, "1 to 64"), (["up", "65"], 2, "1 to 64"), (["up", "x"], 2, "1 to 64"),
    (["up", "-1"], 2, "no option"), (["up", "2", "3"], 2, "usage"), (["up", "--share"], 2, "value"),
    (["exec", "n1"], 2, "usage"), (["exec", "n3", "ls"], 1, "no node n3"),
    (["exec", "m1", "ls"], 2, "no node of a lab"), (["kill", "n01"], 2, "no node of a lab"),
    (["kill", "n[1-"], 2, "node list"), (["start", "n99999999999"], 2, "no node"),
    (["cut", "n1"], 2, "usage"), (["cut", "n1", "n1"], 2, "itself"), (["cut", "n1", "n7"], 1, "n7"),
    (["loss", "n1", "n2"], 2, "usage"), (["loss", "n1", "n2", "101"], 2, "101"),
    (["loss", "n1", "n2", "-1"], 2, ""), (["loss", "n1", "n2", "1e1"], 2, "percentage"),
    (["heal", "n1"], 2, "two nodes"), (["status", "x"], 2, "usage"), (["bogus"], 2, "no verb"),
    (["down", "now"], 2, "usage"), (["status", "--lab"], 2, "value"),
    (["status", "--lab", "UPPER"], 2, "lab name"), (["status", "--lab", "../x"], 2, "lab name"),
    (["status", "--lab", "other"], 1, "no lab other"), (["down", "--lab", "other"], 1, "no lab other"),
    (["exec", "--lab", "other", "n1", "ls"], 1, "no lab other"),
]


def test_bad_input_is_refused_with_a_reason(lab):
    """Goal: exit code and a message for each, and the lab is as it was."""
    lab.up(2)
    before = lab.status()
    for words, code, text in BAD:
        done = subprocess.run([*lab.command, *words], env=lab.environment, text=True, timeout=60,
                              capture_output=True, check=False)
        assert (done.returncode, text in done.stderr) == (code, True), (words, done)
    assert lab.status() == before
    lab.run("kill", "n2")
    assert "off already" in lab.run("kill", "n2", code=1).stderr
    assert "is off" in lab.run("pause", "n2", code=1).stderr


def test_a_lab_that_cannot_be_made_leaves_no_folder(make_lab, tmp_path):
    """Goal: a missing program is named."""
    lab = make_lab(command=[str(tmp_path / "alone")])
    (tmp_path / "alone").write_bytes(pathlib.Path(program("copia-lab")).read_bytes())
    (tmp_path / "alone").chmod(0o755)
    done = lab.up(1, code=None)
    if done.returncode == 0:
        pytest.skip("Copia is installed on this machine")
    assert done.returncode == 1 and "copia-labinit" in done.stderr
    assert not lab.state_folder().exists()


def test_an_ordinary_user_has_labs_too(as_user):
    """Goal: up, exec, cut, pause by signals or groups, kill, start, down without root."""
    place, command = as_user
    user = Lab(place / "labs", "mine", command, {"HOME": str(place)})
    before = traces(user)
    try:
        user.up(3)
        assert user.sh("n1", "id -u; hostname").split() == ["0", "n1"]
        assert deliver(user, "n1", "n2") == 20
        user.run("cut", "n1", "n2")
        assert deliver(user, "n1", "n2") == 0 and deliver(user, "n1", "n3", family=6) == 20
        user.run("heal")
        check_pause(user)
        user.run("start", "n2")
        assert deliver(user, "n1", "n2") == 20
    finally:
        user.run("down", code=None)
    assert traces(user) == before


def test_a_refusal_of_user_namespaces_names_the_switch(make_lab):
    """Goal: in a place where the kernel forbids them, the message says what to do."""
    lab = make_lab()
    script = f"""echo 0 > /proc/sys/user/max_user_namespaces && exec {program('copia-lab')} up --bare 1"""
    ordinary = ["unshare", "-U", "--map-user=1000", "--map-group=1000", "--keep-caps"]
    if subprocess.run([*ordinary, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system does not let us make a user namespace to try it in")
    done = subprocess.run([*ordinary, "sh", "-c", script], env=lab.environment, text=True,
                          capture_output=True, check=False, timeout=60)
    assert done.returncode == 1 and "max_user_namespaces" in done.stderr, done
    assert not lab.state_folder().exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts control groups")
def test_with_version_2_groups_alone(make_lab, tmp_path):
    """Goal: the layout of a plain Debian: only cgroup2, on /sys/fs/cgroup."""
    script = f"""
        set -e
        umount -R /sys/fs/cgroup 2>/dev/null || umount -Rl /sys/fs/cgroup
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        lab() {{ v=$1; shift; {program('copia-lab')} $v --lab v2 "$@"; }}
        trap 'lab down' EXIT
        lab up 2 --bare
        lab exec n1 -- sh -c 'cat /proc/self/cgroup; ls /sys/fs/cgroup | tr "\\n" " "; mkdir /sys/fs/cgroup/t && rmdir /sys/fs/cgroup/t'
        lab pause n2
        lab status
        lab resume n2
        lab exec n2 true
        lab pause n2
    """
    lab = make_lab("v2")
    before = traces(lab)
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], env=lab.environment, text=True,
                          capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done
    assert "0::/init" in done.stdout and "cgroup.procs" in done.stdout
    assert "n2    paused" in done.stdout
    assert traces(lab) == before


def test_status_is_for_people_and_programs(lab):
    """Goal: the same facts in both forms."""
    lab.up(2)
    lab.run("loss", "n1", "n2", "2.5", "--one-way")
    facts = json.loads(lab.run("status", "--json").stdout)
    assert facts["losses"] == [{"from": "n1", "to": "n2", "percent": 2.5}]
    text = lab.run("status").stdout
    for node in facts["nodes"]:
        assert f"{node['name']:5} running" in text and node["ipv4"] in text and node["ipv6"] in text
    assert "n1 --> n2  2.5 %" in text
