# SPDX-License-Identifier: Apache-2.0
"""What others may not see, and what they may not do."""
import pathlib
import re
import subprocess
import threading

import pytest

from world import COPIA, Lab, until

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
RETRY = (0, 6, 7)  # done, "try again", "no leader just now"


@pytest.fixture(autouse=True)
def whole(request):
    if "lab4" in request.fixturenames:
        request.getfixturevalue("lab4").whole()


# ---------------------------------------------------------------- the wire


class Capture:
    """tcpdump on a node's network while the block runs."""

    def __init__(self, lab, node, path):
        self.lab, self.node, self.path = lab, node, pathlib.Path(path)

    def __enter__(self):
        self.dump = subprocess.Popen(
            self.lab.argv(self.node, "tcpdump", "-Z", "root", "-U", "-s", "0", "-i", "eth0",
                          "-w", self.path),
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert "listening on" in self.dump.stderr.readline()
        return self

    def __exit__(self, *exc):
        pid, = self.lab.pids(self.node, "tcpdump")
        self.lab.on(self.node, "kill", "-INT", pid)
        self.dump.communicate(timeout=30)

    def count(self, expression):
        out = self.lab.on(self.node, "tcpdump", "-nn", "-r", self.path, expression).out
        return len(out.splitlines())


def test_nothing_readable_on_the_wire(tmp_path):
    with Lab(3, bare=True, share=tmp_path) as lab:
        for node in ("n1", "n2", "n3"):
            lab.start_daemon(node)
        with Capture(lab, "n1", tmp_path / "one") as one, Capture(lab, "n2", tmp_path / "two") as two:
            lab.copia("n1", "init", "--name", "clustername", "--node", "firstnode")
            secret = lab.token().out.split()[0]
            lab.copia("n2", "join", "-", "--node", "secondnode",
                      stdin=f"{secret}@{lab.address('n1')}\n")
            lab.join("n3", "n2")
            lab.wait_controllers(3)
            lab.insist("n3", "drain", "secondnode", "--reason", "reasonofdrain")
            lab.insist("n2", "resume", "secondnode")
            lab.insist("n2", "rotate", "all")
            until(lambda: len(lab.kinds("certificate")) >= 3, text="new certificates")
            lab.insist("n2", "explain", "node", "firstnode")
            assert any("reasonofdrain" in e["text"] for e in lab.events("n3"))
            lab.on("n2", *NOBODY, COPIA, "run", "-n", "3", "-N", "3", "echo", "textofprogram")
            another = lab.token("n3").out.split()[0]
        texts = ["clustername", "firstnode", "secondnode", "reasonofdrain", "textofprogram",
                 "certificate", "BEGIN", "drain", "token", "joined", "echo"]
        texts += [t[i:i + 12] for t in (secret, another) for i in range(0, len(t) - 12, 12)]
        for capture in (one, two):
            raw = capture.path.read_bytes()
            assert capture.count("tcp port 26742") > 50
            assert capture.count("udp port 26742") > 20
            assert capture.count("not port 26742 and not arp and not icmp6 and not ip6 proto 0"
                                 ) == 0
            assert [t for t in texts if t.encode() in raw] == []


# ---------------------------------------------------------------- who is no member

CLIENT = """
import socket, ssl, sys
host, cert, key = sys.argv[1:]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.load_cert_chain(cert, key)
plain = socket.create_connection((host, 26742), timeout=20)
try:
    s = context.wrap_socket(plain)
    s.sendall(b"\\0" * 64)
    while s.recv(4096):
        pass
    print("closed")
except (ssl.SSLError, ConnectionError) as e:
    print("refused", e)
"""


STATE = "/var/lib/copia/identity/"


def try_certificate(lab, node, target):
    return lab.on(node, "/usr/bin/python3", "-c", CLIENT, lab.address(target),
                  STATE + "node.crt", STATE + "node.key").out


def test_revoked_node_stays_out(lab4):
    victim = next(n for n, r in lab4.rows().items() if r["role"] == "agent")
    leader = lab4.leader()
    number = lab4.rows()[victim]["number"]
    lab4.copia(leader, "leave", victim, "--force")
    assert victim not in lab4.rows(leader)
    since = lab4.now(leader)
    until(lambda: "ESTAB" not in lab4.on(victim, "ss", "-Htn").out, text="its sessions end")
    assert any(e["kind"] == "node-removed" for e in lab4.events(leader))
    for _ in range(2):
        result = until(lambda: (r := lab4.token(victim, code=None, timeout=30)).code and r,
                       text="its commands fail")
        assert result.code in (7, 3), result
        assert "refused" in try_certificate(lab4, victim, leader) or \
            "closed" in try_certificate(lab4, victim, leader)
        # Not after a restart either, with all that it has on its disk.
        lab4.lab("kill", victim)
        assert lab4.lab("start", victim).code == 0
    # It sends heartbeats on; they are refused and make no node come up.
    assert victim not in lab4.rows(leader)
    assert not [e for e in lab4.events(leader)
                if e["revision"] > since and e["object"] == f"node {victim}"]
    # It may come back as a new node only.
    lab4.lab("kill", victim)
    lab4.lab("start", victim)
    lab4.on(victim, "sh", "-c", "kill -9 $(pidof copiad) 2>/dev/null; true")
    until(lambda: not lab4.pids(victim, "copiad"), text="the daemon has ended")
    lab4.on(victim, "find", "/var/lib/copia", "-mindepth", "1", "-delete")
    lab4.lab("kill", victim)
    lab4.lab("start", victim)
    until(lambda: lab4.copia(victim, "status", code=None).code == 0, text="it serves")
    lab4.join(victim, leader)
    assert lab4.rows(leader)[victim]["number"] > number


def test_foreign_cluster(tmp_path):
    with Lab(2, bare=True) as lab:
        for node in ("n1", "n2"):
            lab.start_daemon(node)
            lab.copia(node, "init", "--name", "same")
        assert lab.status("n1")["cluster_id"] != lab.status("n2")["cluster_id"]
        out = try_certificate(lab, "n2", "n1")
        assert "refused" in out or "closed" in out
        until(lambda: "audit" in lab.on("n1", "cat", "/tmp/log").out.split("asked for \"init\"")[1]
              or "peers" in lab.on("n1", "cat", "/tmp/log").out, text="the log tells")
        refused = lab.copia("n2", "join", "-", stdin=f"{lab.token().out.split()[0]}@"
                            f"{lab.address('n1')}\n", code=None)
        assert refused.code != 0 and "already in cluster" in refused.err
        assert lab.works("n1") and set(lab.rows("n1")) == {"n1"}


# ---------------------------------------------------------------- rotation


def test_rotation_under_load(lab4):
    """New keys and certificates, again and again, while commands go on from two nodes."""
    since = lab4.now()
    leader = lab4.leader()
    askers = [n for n in lab4.rows() if n != leader][1:]
    stop, bad, done = threading.Event(), [], []

    def load(node):
        while not stop.is_set():
            result = lab4.token(node, code=None, timeout=30)
            (done if result.code == 0 else bad).append(result)

    threads = [threading.Thread(target=load, args=(node,)) for node in askers]
    for thread in threads:
        thread.start()
    try:
        for turn in range(1, 4):
            lab4.insist(askers[0], "rotate", "keys")
            lab4.insist(askers[1], "rotate", "certificates")
            until(lambda n=4 * turn: len(lab4.kinds("certificate", since=since)) >= n,
                  text=f"certificates of turn {turn}")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert [r for r in bad if r.code not in RETRY] == []
    assert len(done) > 10 and len(done) > len(bad)
    assert len(lab4.kinds("keys-rotated", since=since)) == 3
    assert not lab4.kinds("node-down", since=since)
    assert all(r["state"] == "up" for r in lab4.rows().values())


# ---------------------------------------------------------------- people

ALLOWED = [["nodes"], ["status"], ["events"], ["explain", "cluster"], ["explain", "node", "n1"],
           ["doctor"], ["ps"]]
REFUSED = [["token"], ["drain", "n2"], ["resume", "n2"], ["leave", "n2"],
           ["leave", "n2", "--force"], ["leader", "n2"], ["rotate", "all"],
           ["set", "controllers", "1"], ["set", "root-tasks", "on"], ["init"],
           ["join", "x@n1"], ["resource", "r", "--", "true"]]


def test_ordinary_user(lab4):
    lab4.insist("n1", "set", "root-tasks", "off")
    before = lab4.now()
    for words in ALLOWED:
        result = lab4.on("n3", *NOBODY, COPIA, *words, code=None)
        assert result.code in (0, 1) if words == ["doctor"] else result.code == 0, (words, result)
    for words in REFUSED:
        result = lab4.on("n3", *NOBODY, COPIA, *words, code=None)
        assert result.code == 5 and "root" in result.err, (words, result)
    log = lab4.log("n3")
    for words in REFUSED:
        assert re.search(rf'audit: refused "{words[0]}" to user \S+ \(uid 65534\)', log), words
    assert lab4.now() == before
    # What it may run, it runs as itself; root's programs are refused unless the cluster allows it.
    out = lab4.on("n3", *NOBODY, COPIA, "run", "-n", "2", "-N", "2", "id", "-u").out
    assert out.split() == ["65534", "65534"]
    result = lab4.copia("n3", "run", "id", code=None)
    assert result.code != 0 and "tasks of root are not allowed" in result.err


def test_state_is_private(lab4):
    def modes(words):
        out = lab4.on("n1", "find", *words, "-printf", "%m %p\n").out
        return {path: mode for mode, path in (line.split(" ", 1) for line in out.splitlines())}
    # Others may pass through it to what is theirs, at most.
    assert modes(["/var/lib/copia", "-maxdepth", "0"])["/var/lib/copia"] in ("700", "711")
    for folder in ("identity", "log"):
        found = modes([f"/var/lib/copia/{folder}"])
        assert found.pop(f"/var/lib/copia/{folder}") == "700"
        # Certificates may be read by everybody, what else is there by nobody.
        assert found
        assert all(mode == "600" or path.endswith(".crt") for path, mode in found.items()), found
    result = lab4.on("n1", *NOBODY, "ls", "/var/lib/copia", code=None)
    assert result.code != 0


def test_token_is_seen_by_nobody(lab4):
    """Neither in a log nor in the list of processes while it is used."""
    node = next(n for n, r in lab4.rows().items() if r["role"] == "agent")
    asker = lab4.leader()
    lab4.copia(node, "leave")
    until(lambda: "in no cluster" in lab4.copia(node, "nodes", code=None).err, text="it left")
    secret = lab4.token(asker).out.split()[0]
    watch = "for i in 1 2 3 4 5 6 7 8 9; do cat /proc/[0-9]*/cmdline; done 2>/dev/null"
    join = subprocess.Popen(lab4.argv(node, COPIA, "join", "-"), stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: lab4.pids(node, f"{COPIA} join"), text="it waits for the token")
    join.stdin.write(f"{secret}@{lab4.address(asker)}\n")
    join.stdin.flush()
    seen = lab4.on(node, "sh", "-c", watch).out
    out, err = join.communicate(timeout=30)
    assert join.returncode == 0, err
    seen += lab4.on(node, "sh", "-c", watch).out + out + err
    assert "join" in seen
    for text in [seen] + [lab4.log(n) for n in ("n1", "n2", "n3", "n4")]:
        assert all(secret[i:i + 12] not in text for i in range(0, len(secret) - 12, 4))
