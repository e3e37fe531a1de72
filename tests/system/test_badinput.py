# SPDX-License-Identifier: Apache-2.0
"""Bad input and bad surroundings: each gets a clear error or harms nobody; nothing acknowledged is
lost and the daemon lives. Tokens, names and joining: test_join.py. Programs: test_run*.py."""
import base64
import re
import select
import subprocess
import time

import pytest

from world import COPIA, call, until

PORT = 26742
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
RSS_MAX_KIB = 96 * 1024  # with sanitizers, too; a leak of a flood is more than that

# Put before programs that run inside a node: speaks the protocol of the unix socket by hand.
CLIENT = r'''
import os, resource, socket, ssl, struct, subprocess, sys, time

def varint(n):
    out = b""
    while True:
        out += bytes([n & 127 | (128 if n > 127 else 0)])
        n >>= 7
        if not n:
            return out

def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value

def packed(number, verb, body=b"", version=1, last=True):
    return (field(1, number) + field(2, verb) + field(3, body) + field(6, int(last)) +
            field(7, version))

def framed(*words, **named):
    message = packed(*words, **named)
    return struct.pack("<I", len(message)) + message

def dial(seconds=10):
    s = socket.socket(socket.AF_UNIX)
    s.connect("/run/copia/copia.sock") # waits when many do
    s.settimeout(seconds)
    return s

def exactly(s, size):
    data = b""
    while len(data) < size:
        more = s.recv(size - len(data))
        if not more:
            raise EOFError
        data += more
    return data

def answer(s):
    return exactly(s, struct.unpack("<I", exactly(s, 4))[0])

def is_closed(s):
    try:
        return s.recv(1 << 16) == b""
    except ConnectionError:
        return True

def limit():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
'''


def inside(lab, node, text, *words, **options):
    """Run a Python program inside a node; returns what it printed."""
    return lab.on(node, "/usr/bin/python3", "-c", CLIENT + text, *words, **options).out


def begin(lab, node, text, *words):
    """The same, going on: a process whose standard input keeps it alive."""
    return subprocess.Popen(lab.argv(node, "/usr/bin/python3", "-c", CLIENT + text, *words),
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def rss_kib(lab, node, title):
    pid, = lab.pids(node, title)
    status = lab.on(node, "cat", f"/proc/{pid}/status").out
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1))


class Peace:
    """Around an attack: same brains and shepherds, no node-down, memory bounded, all up after."""

    def __init__(self, lab, node="n1"):
        self.lab, self.node = lab, node

    def __enter__(self):
        self.lab.whole(len(self.lab.rows()))
        self.pids = self.daemons()
        self.since = self.lab.now()
        return self

    def daemons(self):
        return [self.lab.pids(n, f"copiad: {part}") for n in self.lab.rows()
                for part in ("shepherd", "brain")]

    def __exit__(self, kind, *exc):
        if kind:
            return
        self.lab.whole(len(self.lab.rows()))
        assert self.lab.works()
        assert self.daemons() == self.pids
        assert not self.lab.kinds("node-down", since=self.since)
        for part in ("shepherd", "brain"):
            assert rss_kib(self.lab, self.node, f"copiad: {part}") < RSS_MAX_KIB, part


def bare(fresh_lab, nodes=1):
    return fresh_lab(nodes, bare=True)


def daemon_log(lab, node):
    return lab.on(node, "cat", "/tmp/log", code=None).out


def cluster(lab, *nodes):
    """n1 makes a cluster, the others join."""
    lab.start_daemon("n1")
    lab.copia("n1", "init", "--name", "one")
    for node in nodes:
        lab.start_daemon(node)
        lab.join(node)
    lab.whole(min(3, 1 + len(nodes)) if nodes else 1)


def story(lab, node="n1"):
    return [(e["revision"], e["kind"], e["text"]) for e in lab.events(node)]


# ---------------------------------------------------------------- wrong words


@pytest.mark.parametrize("words,what", [
    (["-N", "9", "true"], "9 nodes wanted, 3 can take work"),
    (["-n", "1000000", "true"], "wanted"),
    (["-N", "-1", "true"], "is not a number"),
    (["-n", "-1", "true"], "is not a number"),
    (["--on", "n9", "true"], 'n9'),
    (["--on", "n[1-", "true"], "n[1-"),
    (["--exclude", "all", "true"], "node"),
])
def test_run_wants_what_is_not_there(lab3, words, what):
    result = lab3.on("n1", *NOBODY, COPIA, "run", *words, code=None)
    assert result.code in (2, 125) and what in result.err, result
    assert len(result.err.strip().splitlines()) <= 3, result


def verbs():
    """All verbs of the command, as the completion knows them."""
    out = call(COPIA, "help").out
    found = re.findall(r"^  ([a-z][a-z ]*?)  +\S", out, re.M)
    assert {"nodes", "run", "lab up", "init"} <= set(found)
    return found


@pytest.mark.parametrize("verb", verbs())
def test_wrong_usage_is_code_2(verb):
    for extra in (["--no-such-option"], ["--json=maybe"]):
        result = call(COPIA, *verb.split(), *extra)
        own = 125 if verb in ("run", "exec") else 2
        assert result.code in (2, own), (verb, extra, result)
        assert result.err and "Traceback" not in result.err


@pytest.mark.parametrize("words", [
    ["no-such-verb"], ["nodse"], ["drain"], ["resume"], ["join"], ["leader"], ["set", "profile"],
    ["set", "colour", "red"], ["rotate", "everything"], ["explain", "weather"], ["copy"],
    ["init", "--profile", "warp"], ["token", "--expires", "soon"], ["token", "--expires", "0s"],
    ["token", "--expires", "9999999999999999999999h"], ["events", "--lines", "1001"],
    ["events", "--lines", "-1"], ["nodes", "a", "b", "c"], ["join", "x", "--timeout", "-5s"],
    ["drain", "n1", "--reason"], [""],
])
def test_wrong_values_are_code_2(words):
    result = call(COPIA, *words)
    assert result.code == 2 and result.err and not result.out, result


# ---------------------------------------------------------------- the unix socket


def test_socket_garbage(lab3):
    """Garbage and frames that are too large close the connection; half frames just wait."""
    with Peace(lab3):
        out = inside(lab3, "n1", r'''
for bad in (b"\xff" * 64, os.urandom(4096), struct.pack("<I", (1 << 20) + 1) + b"x",
            struct.pack("<I", 5) + b"\xff" * 5, b"GET / HTTP/1.1\r\n\r\n"):
    s = dial()
    s.sendall(bad)
    # Random bytes that say a small length wait for the rest: end it.
    s.shutdown(socket.SHUT_WR)
    assert is_closed(s), bad[:16]
half = [dial() for _ in range(50)]
for s in half:
    s.sendall(framed(1, "status")[:-3])
s = dial()
s.sendall(framed(1, "status"))
assert answer(s)
# A frame of exactly the greatest size is one.
s = dial()
room = (1 << 20) - len(packed(1, "status", b"\xff" * 1000000)) + 1000000
s.sendall(framed(1, "status", b"\xff" * room))
assert b"malformed" in answer(s)
# In single bytes it is the same.
s = dial()
for byte in framed(1, "status"):
    s.send(bytes([byte]))
assert answer(s)
print("done")
''')
        assert out == "done\n"


def test_socket_wrong_calls(lab3):
    """Unknown verb, another version, a malformed request: each is told, the connection goes on."""
    out = inside(lab3, "n1", r'''
s = dial()
s.sendall(framed(1, "fly-to-the-moon") + framed(2, "status", version=7) +
          framed(3, "status", b"\xff\xff") + framed(4, "nodes", b"\x08") + framed(5, "x" * 100000))
for _ in range(5):
    print(answer(s))
s.sendall(framed(6, "status"))
print(answer(s))
''')
    lines = out.splitlines()
    assert "does not know" in lines[0] and "different versions" in lines[0]
    assert "copia speaks protocol 7, this node's copiad" in lines[1]
    assert "install the same version of both" in lines[1]
    assert "the request is malformed" in lines[2] and "the request is malformed" in lines[3]
    assert "does not know" in lines[4]
    assert "one" in lines[5] or "n1" in lines[5]


def test_socket_too_many_calls(lab3):
    """The 65th open call of a connection is refused, the others go on."""
    out = inside(lab3, "n1", r'''
s = dial()
follow = field(1, 1) + field(3, 1)
s.sendall(b"".join(framed(n, "events", follow, last=False) for n in range(1, 101)))
refused = 0
while refused < 36:
    refused += b"more than 64 calls" in answer(s)
print(refused)
t = dial()
t.sendall(framed(1, "status"))
print(len(answer(t)) > 20)
''')
    assert out == "36\nTrue\n"


def test_socket_full(lab3):
    """4,000 idle connections of an ordinary user: others are served."""
    with Peace(lab3):
        many = subprocess.Popen(lab3.argv("n1", *NOBODY, "/usr/bin/python3", "-c", CLIENT + r'''
limit()
kept = [dial() for _ in range(4000)]
print(len(kept), flush=True)
sys.stdin.read()
'''), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert many.stdout.readline() == "4000\n"
            assert set(lab3.rows("n1")) == {"n1", "n2", "n3"}
            assert lab3.works("n1")
        finally:
            many.communicate("")


def test_socket_of_one_user_does_not_shut_out_others(lab3):
    """As many connections as can be: root still reaches the daemon."""
    many = subprocess.Popen(lab3.argv("n1", *NOBODY, "/usr/bin/python3", "-c", CLIENT + r'''
limit()
kept = [dial() for _ in range(5000)]
print(len(kept), flush=True)
sys.stdin.read()
'''), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert many.stdout.readline() == "5000\n"
        assert lab3.copia("n1", "status").code == 0
    finally:
        many.communicate("")


def test_follower_that_never_reads(lab3):
    """Events go on for others; what waits for the deaf one is bounded."""
    with Peace(lab3):
        deaf = begin(lab3, "n1", r'''
s = dial()
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
s.sendall(framed(1, "events", field(1, 1) + field(3, 1000), last=False))
print("follows", flush=True)
sys.stdin.read()
''')
        try:
            assert deaf.stdout.readline() == "follows\n"
            before = lab3.now()
            for k in range(3):
                lab3.copia("n2", "drain", "n3", "--reason", f"r{k}" * 50)
                lab3.copia("n2", "resume", "n3")
            until(lambda: lab3.now() >= before + 6, text="events for others")
        finally:
            deaf.communicate("")


def test_caller_that_never_reads(lab3):
    """Replies that nobody takes are bounded: reading stops until they are taken."""
    with Peace(lab3):
        before = rss_kib(lab3, "n1", "copiad: brain")
        deaf = begin(lab3, "n1", r'''
s = dial(2)
request = b"".join(framed(n, "doctor") for n in range(1, 1001))
sent = 0
try:
    while sent < 200:
        s.sendall(request)
        sent += 1
except TimeoutError:
    pass
print(sent, flush=True)
sys.stdin.read()
''')
        try:
            assert int(deaf.stdout.readline()) < 200
            assert lab3.copia("n1", "status").code == 0
            assert rss_kib(lab3, "n1", "copiad: brain") - before < 32 * 1024
        finally:
            deaf.communicate("")


def test_client_killed_in_the_middle_of_run(lab3):
    """Its job ends, nothing of it is left, and the next one runs."""
    with Peace(lab3):
        run = subprocess.Popen(lab3.argv("n1", "sh", "-c", "echo $$ >/tmp/client.pid; exec \"$@\"",
                                         "sh", *NOBODY, COPIA, "run", "-N", "3", "sleep", "4321"),
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE)
        try:
            for node in ("n1", "n2", "n3"):
                until(lambda n=node: lab3.pids(n, "sleep 4321"), text=f"the rank on {node}")
            lab3.on("n1", "sh", "-c", "kill -9 $(cat /tmp/client.pid)")
            for node in ("n1", "n2", "n3"):
                until(lambda n=node: not lab3.pids(n, "sleep 4321"), text=f"{node} is rid of it")
        finally:
            run.kill()
            run.communicate()
        assert lab3.on("n1", *NOBODY, COPIA, "run", "-N", "3", "true").code == 0


# ---------------------------------------------------------------- the port


def test_port_garbage_and_floods(lab3):
    """Random bytes, half a handshake, and 200 connections a second for three seconds."""
    with Peace(lab3):
        attack = begin(lab3, "n3", r'''
limit()
to = (sys.argv[1], 26742)
hello = ssl.MemoryBIO(), ssl.MemoryBIO()
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
tls.check_hostname = False
half = tls.wrap_bio(*hello)
try:
    half.do_handshake()
except ssl.SSLWantReadError:
    pass
client_hello = hello[1].read()
kinds = (os.urandom(2000), client_hello, client_hello[:40], b"\x16\x03\x01\xff\xff" + b"x" * 9000,
         b"GET / HTTP/1.1\r\n\r\n", b"", b"\x16", b"\x00" * 100)
kept = []
start = time.monotonic()
for k in range(600):
    s = socket.create_connection(to, 5)
    try:
        s.sendall(kinds[k % len(kinds)])
    except ConnectionError:
        pass
    kept.append(s)
    time.sleep(max(0, start + k / 200 - time.monotonic())) # the rate is what is tested
print(len(kept), flush=True)
sys.stdin.read()
''', lab3.address("n1"))
        try:
            while attack.poll() is None:
                assert set(lab3.rows("n1")) == {"n1", "n2", "n3"}
                assert lab3.works("n2")
                if has_printed(attack):
                    break
        finally:
            attack.communicate("")
        assert attack.returncode == 0


def has_printed(process):
    return bool(select.select([process.stdout], [], [], 0)[0])


def test_heartbeat_port_flood(lab3):
    """100,000 packets of garbage, some in the form of heartbeats."""
    with Peace(lab3):
        out = inside(lab3, "n3", r'''
to = (sys.argv[1], 26742)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
bad = [os.urandom(size) for size in (0, 1, 32, 96, 112, 128, 160, 1400)]
for k in range(100000):
    s.sendto(bad[k % len(bad)], to)
print("sent")
''', lab3.address("n1"), timeout=60)
        assert out == "sent\n"
        assert set(lab3.rows("n1")) == {"n1", "n2", "n3"}


def test_ten_thousand_idle_connections(lab3):
    """From two nodes at once; every member still gets its session and its answers."""
    with Peace(lab3):
        many = [begin(lab3, node, r'''
limit()
kept = []
for _ in range(5000):
    kept.append(socket.create_connection((sys.argv[1], 26742), 10))
print(len(kept), flush=True)
sys.stdin.read()
''', lab3.address("n1")) for node in ("n2", "n3")]
        try:
            for one in many:
                assert one.stdout.readline() == "5000\n"
            for node in ("n1", "n2"):
                assert set(lab3.rows(node)) == {"n1", "n2", "n3"}
        finally:
            for one in many:
                one.communicate("")


def test_new_session_under_idle_connections(lab3):
    """A node whose brain starts anew gets through to one that strangers besiege."""
    lab3.whole()
    since = lab3.now()
    many = begin(lab3, "n3", r'''
limit()
kept = [socket.create_connection((sys.argv[1], 26742), 10) for _ in range(2000)]
print(len(kept), flush=True)
sys.stdin.read()
''', lab3.address("n1"))
    try:
        assert many.stdout.readline() == "2000\n"
        old = lab3.signal("n2", "copiad: brain")
        until(lambda: lab3.pids("n2", "copiad: brain") not in ([], [old]), text="a new brain")
        until(lambda: lab3.works("n2"), text="commands through it")
    finally:
        many.communicate("")
    assert not lab3.kinds("node-down", since=since)


# ---------------------------------------------------------------- versions


TLS = r'''
# A session as copiad makes it, greeting with a version of ours.
def session(to, own, kind, version, rest):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    tls.set_alpn_protocols(["copia"])
    if own:
        tls.load_cert_chain("/var/lib/copia/identity/node.crt", "/var/lib/copia/identity/node.key")
    s = tls.wrap_socket(socket.create_connection(to, 10))
    s.settimeout(10)
    message = struct.pack("<BHH", kind, version, version) + rest
    s.sendall(struct.pack("<IBB", len(message), 1, 0) + message)
    size, channel, flags = struct.unpack("<IBB", exactly(s, 6))
    body = exactly(s, size)
    print(body[0], body[5:].decode(errors="replace"))
'''


def test_version_of_another_node(lab3):
    """With a true certificate, but another protocol: refused, and both sides say why."""
    with Peace(lab3):
        identity = lab3.status("n2")["cluster_id"]
        number = lab3.rows()["n2"]["number"]
        out = inside(lab3, "n2", TLS + r'''
session((sys.argv[1], 26742), True, 1, 99,
        bytes.fromhex(sys.argv[2].replace("-", "")) + struct.pack("<IQQ", int(sys.argv[3]), 1, 1))
''', lab3.address("n1"), identity, number)
        assert out.startswith("2 ") and "version mismatch" in out
        assert f"node {number} speaks protocol 99 to 99" in out and "install" in out, out
        until(lambda: "version mismatch" in lab3.log("n1"), text="the log says it")


def test_version_of_a_newcomer(lab3):
    """A machine that wants to join with another protocol is told, before its token counts."""
    out = inside(lab3, "n2", TLS + r'''
session((sys.argv[1], 26742), False, 3, 99, b"not read")
''', lab3.address("n1"))
    assert out.startswith("2 ") and "version mismatch: you speak protocol 99 to 99" in out


# ---------------------------------------------------------------- full disks


def small_disk(lab, node, size="24m"):
    lab.on(node, "mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "small", "/var/lib/copia")


def fill(lab, node):
    """To the last byte, and a bit more is tried."""
    lab.on(node, "sh", "-c", "dd if=/dev/zero of=/var/lib/copia/fill bs=64k 2>/dev/null; "
           "dd if=/dev/zero of=/var/lib/copia/fill2 bs=1 count=4096 2>/dev/null; "
           "! dd if=/dev/zero of=/var/lib/copia/fill3 bs=1 count=4096 2>/dev/null")


def make_space(lab, node):
    lab.on(node, "sh", "-c", "rm -f /var/lib/copia/fill*")


class Writer:
    """Drains and resumes n4; knows which reasons were acknowledged as a change."""

    def __init__(self, lab):
        self.lab, self.told, self.resumed, self.count = lab, [], True, 0

    def write(self, node):
        self.count += 1
        text = f"reason {self.count}."
        done = self.lab.copia(node, "drain", "n4", "--reason", text + "x" * 60000, code=None,
                              timeout=30)
        # Draining what is drained is no change and leaves no event.
        if done.code == 0 and self.resumed:
            self.told.append(text)
        self.resumed = self.lab.copia(node, "resume", "n4", code=None).code == 0
        return done.code == 0 and self.resumed


def test_full_disk_on_a_controller(fresh_lab):
    """The leader's disk: another one leads and commands go on; the node says what is wrong; what
    was acknowledged is in the story of every node."""
    lab = bare(fresh_lab, 4)
    small_disk(lab, "n1")
    cluster(lab, "n2", "n3", "n4")
    assert lab.leader() == "n1"
    fill(lab, "n1")
    writer = Writer(lab)
    health = "ok"
    # Its log has some room made before: write until it notices.
    while writer.count < 300 and (health == "ok" or lab.leader("n2") in (None, "n1")):
        writer.write("n2")
        health = lab.status("n1")["health"]
    assert "cannot be written" in health and "make space" in health, health
    until(lambda: writer.write("n3"), text="the cluster goes on")
    assert lab.rows("n2")["n1"]["state"] == "up"
    make_space(lab, "n1")
    until(lambda: writer.write("n3") and lab.status("n1")["health"] == "ok", text="it recovers")
    assert len(writer.told) > 10
    for node in ("n1", "n2", "n3", "n4"):
        until(lambda n=node: lab.now(n) >= lab.now("n3"), text=f"{node} has all")
        texts = " ".join(e["text"] for e in lab.events(node))
        lost = [text for text in writer.told if text not in texts]
        assert not lost, f"{node}: {lost} of {len(writer.told)}"
    until(lambda: lab.works("n1"), text="commands through n1")


def test_full_disk_of_the_only_controller(fresh_lab):
    """Nothing can be agreed on, and that is said; with space it goes on by itself."""
    lab = bare(fresh_lab)
    small_disk(lab, "n1")
    cluster(lab)
    fill(lab, "n1")
    told = 0
    for _ in range(400):
        result = lab.copia("n1", "drain", "n1", "--reason", "y" * 60000, code=None)
        if result.code:
            break
        lab.copia("n1", "resume", "n1", code=None)
        told += 1
    assert result.code and re.search("cannot be written|No space|full", result.err), result
    assert "cannot be written" in lab.status()["health"]
    brain = lab.pids("n1", "copiad: brain")
    make_space(lab, "n1")
    until(lambda: lab.works(), text="it goes on")
    assert lab.status()["health"] == "ok"
    assert lab.pids("n1", "copiad: brain") == brain


def test_full_disk_on_a_newcomer(fresh_lab):
    """Joining fails with the file's name, leaves nothing half, and works with space."""
    lab = bare(fresh_lab, 2)
    cluster(lab)
    small_disk(lab, "n2")
    lab.start_daemon("n2")
    fill(lab, "n2")
    result = lab.join("n2", code=None)
    assert result.code != 0 and "/var/lib/copia" in result.err, result
    assert "No space left" in result.err, result
    assert "in no cluster" in lab.copia("n2", "nodes", code=None).err
    make_space(lab, "n2")
    lab.join("n2")
    lab.wait_state("n2", "up")


# ---------------------------------------------------------------- clocks

SHIM = r'''
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
static time_t shift(void) { const char *s = getenv("TEST_SHIFT_S"); return s ? atol(s) : 0; }
int clock_gettime(clockid_t c, struct timespec *ret)
{
	static int (*real)(clockid_t, struct timespec *);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
	int r = real(c, ret);
	if (r == 0 && (c == CLOCK_REALTIME || c == CLOCK_REALTIME_COARSE))
		ret->tv_sec += shift();
	return r;
}
int gettimeofday(struct timeval *restrict ret, void *restrict zone)
{
	struct timespec t;
	int r = clock_gettime(CLOCK_REALTIME, &t);
	ret->tv_sec = t.tv_sec;
	ret->tv_usec = t.tv_nsec / 1000;
	return r;
}
time_t time(time_t *ret)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	if (ret)
		*ret = t.tv_sec;
	return t.tv_sec;
}
'''


def shifted_daemon(lab, node, shim, seconds):
    lab.on(node, "sh", "-c", "base64 -d >/tmp/clock.so", stdin=shim)
    lab.on(node, "sh", "-c", f"LD_PRELOAD=/tmp/clock.so TEST_SHIFT_S={seconds} "
           f"setsid {COPIA}d </dev/null >>/tmp/log 2>&1 &")
    until(lambda: lab.copia(node, "status", code=None).code == 0, text=f"{node} serves")
    for part in ("shepherd", "brain"):
        pid, = lab.pids(node, f"copiad: {part}")
        assert "clock.so" in lab.on(node, "cat", f"/proc/{pid}/maps").out


def test_clocks_an_hour_off(fresh_lab, tmp_path):
    """One node an hour ahead, one behind: joining, leading, tokens and leases are as ever."""
    source, library = tmp_path / "clock.c", tmp_path / "clock.so"
    source.write_text(SHIM)
    done = call("cc", "-shared", "-fPIC", "-O1", "-o", library, source)
    assert done.code == 0, done
    shim = base64.b64encode(library.read_bytes()).decode()
    lab = bare(fresh_lab, 4)
    cluster(lab)
    for node, seconds in (("n2", 3600), ("n3", -3600)):
        shifted_daemon(lab, node, shim, seconds)
        lab.join(node)
    lab.whole(3)
    lab.start_daemon("n4")
    since = lab.now()
    lab.copia("n1", "set", "root-tasks", "on")
    lab.copia("n1", "resource", "clock", "--", "sleep", "9876")
    until(lambda: sum(bool(lab.pids(n, "sleep 9876")) for n in ("n1", "n2", "n3")) == 1,
          text="the resource runs")
    for leader in ("n2", "n3", "n1"):
        lab.copia("n1", "leader", leader)
        until(lambda n=leader: lab.leader() == n, text=f"{leader} leads")
        until(lab.works, text="commands")
        # A token of one leader is neither expired early nor for ever.
        short = lab.copia("n1", "token", "--expires", "1s").out.split()[0]
        begun = time.monotonic()
        until(lambda: time.monotonic() > begun + 1.2, text="its second is over")
        result = lab.copia("n4", "join", f"{short}@{lab.address('n1')}", code=None)
        assert result.code != 0 and "expired" in result.err, result
    # Made under one clock, judged under another.
    long = lab.copia("n1", "token", "--expires", "10m").out.split()[0]
    lab.copia("n1", "leader", "n2")
    until(lambda: lab.leader() == "n2", text="n2 leads")
    lab.copia("n4", "join", f"{long}@{lab.address('n3')}")
    lab.wait_state("n4", "up")
    lab.copia("n1", "rotate", "all")
    until(lambda: sum(e["kind"] == "certificate" for e in lab.events()) >= 4, text="certificates")
    assert sum(len(lab.pids(n, "sleep 9876")) for n in ("n1", "n2", "n3", "n4")) == 1
    assert not lab.kinds("node-down", since=since)


# ---------------------------------------------------------------- ports taken, folders in use

HOLD = r'''
s = socket.socket(socket.AF_INET6, getattr(socket, sys.argv[1]))
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", 26742))
if sys.argv[1] == "SOCK_STREAM":
    s.listen()
print("held", flush=True)
sys.stdin.read()
'''


def hold(lab, node, kind):
    process = begin(lab, node, HOLD, kind)
    assert process.stdout.readline() == "held\n"
    return process


def test_udp_port_taken(fresh_lab):
    """The daemon does not start: port and remedy are named."""
    lab = bare(fresh_lab)
    holder = hold(lab, "n1", "SOCK_DGRAM")
    try:
        result = lab.on("n1", COPIA + "d", code=None, timeout=10)
        assert result.code == 1 and "UDP port 26742" in result.err, result
        assert "another program uses it" in result.err and "--port" in result.err, result
        assert not lab.pids("n1", "copiad")
    finally:
        holder.communicate("")
    lab.start_daemon("n1")


def test_tcp_port_taken_at_init_and_join(fresh_lab):
    """The verb says so and nothing is half done: with the port free it works."""
    lab = bare(fresh_lab, 2)
    cluster(lab)
    holder = hold(lab, "n2", "SOCK_STREAM")
    try:
        lab.start_daemon("n2")
        for verb in (lambda: lab.copia("n2", "init", code=None), lambda: lab.join("n2", code=None)):
            result = verb()
            assert result.code != 0 and "port 26742 is taken" in result.err, result
            assert "in no cluster" in lab.copia("n2", "nodes", code=None).err
    finally:
        holder.communicate("")
    lab.join("n2")
    lab.wait_state("n2", "up")


def brain_starts(log):
    return len(re.findall(r"restarted in \d+ ms", log))


def refuses_slowly(lab, node, what):
    """The brain gives up with this reason, again and again, but not at full speed."""
    until(lambda: brain_starts(daemon_log(lab, node)) >= 5, text="five starts")
    log = daemon_log(lab, node)
    assert re.search(what, log), log
    waits = [int(ms) for ms in re.findall(r"restarted in (\d+) ms", log)]
    assert waits == sorted(waits) and waits[-1] >= 400, waits
    assert not re.search("signal (11|6)", log), log


def start_unserved(lab, node):
    lab.on(node, "sh", "-c", f"setsid {COPIA}d </dev/null >/tmp/log 2>&1 &")


def stop_daemon(lab, node):
    lab.signal(node, "copiad: shepherd", "TERM")
    until(lambda: not lab.pids(node, "copiad"), text="the daemon has ended")


def test_tcp_port_taken_at_start(fresh_lab):
    """Of a member: it says so in the log, waits longer each time, and comes up when it is free."""
    lab = bare(fresh_lab)
    cluster(lab)
    stop_daemon(lab, "n1")
    holder = hold(lab, "n1", "SOCK_STREAM")
    try:
        start_unserved(lab, "n1")
        refuses_slowly(lab, "n1", "port 26742 is taken by another program: stop it")
    finally:
        holder.communicate("")
    until(lambda: lab.copia("n1", "nodes", code=None).code == 0, text="it serves")


def test_second_daemon(fresh_lab):
    lab = bare(fresh_lab)
    cluster(lab)
    shepherd, = lab.pids("n1", "copiad: shepherd")
    for extra in ([], ["--port", "26743", "--run", "/tmp/other"]):
        result = lab.on("n1", COPIA + "d", *extra, code=None, timeout=10)
        assert result.code == 1, result
        assert f"/var/lib/copia is in use by copiad {shepherd}" in result.err, result
        assert "--state" in result.err
    assert lab.works()


def test_state_folder_not_writable(fresh_lab):
    lab = bare(fresh_lab)
    lab.on("n1", "mount", "-t", "tmpfs", "-o", "ro", "readonly", "/var/lib/copia")
    result = lab.on("n1", COPIA + "d", code=None, timeout=10)
    assert result.code == 1 and "/var/lib/copia/copiad.lock" in result.err, result
    assert "Read-only" in result.err
    result = lab.on("n1", *NOBODY, COPIA + "d", "--state", "/proc/nothing", "--run", "/tmp/r",
                    code=None, timeout=10)
    assert result.code == 1 and "/proc/nothing" in result.err, result
    result = lab.on("n1", *NOBODY, COPIA + "d", "--state", "/root", "--run", "/tmp/r", code=None,
                    timeout=10)
    assert result.code == 1 and "/root" in result.err and "Permission" in result.err, result


# ---------------------------------------------------------------- damaged state

FLIP = r'''
path, at = sys.argv[1], float(sys.argv[2])
with open(path, "r+b") as f:
    size = f.seek(0, 2)
    f.seek(int(size * at))
    old = f.read(64)
    f.seek(int(size * at))
    f.write(bytes(b ^ 255 for b in old))
'''


@pytest.mark.parametrize("name", ["node.key", "node.crt", "authority.crt", "view"])
def test_damaged_identity(fresh_lab, name):
    lab = bare(fresh_lab)
    cluster(lab)
    stop_daemon(lab, "n1")
    path = f"/var/lib/copia/identity/{name}"
    lab.on("n1", "cp", path, "/tmp/good")
    inside(lab, "n1", FLIP, path, "0" if name == "view" else "0.4")
    before = lab.on("n1", "sha256sum", path).out
    start_unserved(lab, "n1")
    refuses_slowly(lab, "n1", re.escape(path) if name in ("view", "node.crt") else
                   f"/var/lib/copia/identity.*{'authority' if name == 'authority.crt' else name}")
    assert lab.on("n1", "sha256sum", path).out == before
    lab.on("n1", "cp", "/tmp/good", path)
    until(lambda: lab.copia("n1", "nodes", code=None).code == 0, text="it serves")


@pytest.mark.parametrize("kind", ["head", "pages", "wal", "wal-head", "everything", "short"])
def test_damaged_log(fresh_lab, kind):
    """The whole story is still there (in the write-ahead file), or the node refuses and names the
    file; nothing is thrown away, and with the good file back it serves."""
    lab = bare(fresh_lab)
    cluster(lab)
    before = story(lab)
    stop_daemon(lab, "n1")
    lab.on("n1", "cp", "-a", "/var/lib/copia/log", "/tmp/good")
    lab.on("n1", "sh", "-c", "cd /var/lib/copia/log && " + {
        "head": "printf damaged | dd of=log.db conv=notrunc 2>/dev/null",
        "pages": "head -c 60000 /dev/urandom | dd of=log.db bs=4096 seek=1 conv=notrunc 2>&1",
        "wal": "head -c 60000 /dev/urandom | dd of=log.db-wal bs=4096 seek=1 conv=notrunc 2>&1",
        "wal-head": "printf damaged | dd of=log.db-wal conv=notrunc 2>&1",
        "everything": "for f in log.db*; do s=$(stat -c %s $f); head -c $s /dev/urandom >$f; done",
        "short": "truncate -s 5000 log.db",
    }[kind])
    # What is whole in one file may be put into the other; the damaged one is evidence.
    damaged = "/var/lib/copia/log/log.db" + ("-wal" if kind.startswith("wal") else "")
    sums = lab.on("n1", "sha256sum", damaged).out
    start_unserved(lab, "n1")

    def refused():
        log = daemon_log(lab, "n1")
        return "/var/lib/copia/log" in log and re.search("damaged|malformed|not a database", log)

    until(lambda: refused() or lab.rows(), text="it refuses or serves")
    assert not re.search("signal (11|6)", daemon_log(lab, "n1"))
    if not refused():
        assert kind in ("head", "short", "wal-head") and story(lab)[:len(before)] == before
        return
    assert lab.on("n1", "sha256sum", damaged, code=None).out == sums
    stop_daemon(lab, "n1")
    lab.on("n1", "sh", "-c", "rm -r /var/lib/copia/log; cp -a /tmp/good /var/lib/copia/log")
    lab.start_daemon("n1")
    until(lab.rows, text="it serves")
    assert story(lab)[:len(before)] == before
