# SPDX-License-Identifier: Apache-2.0
"""A virtual cluster for the system tests: real daemons in the lab, driven by the real command."""
import itertools
import json
import os
import pathlib
import re
import subprocess
import tempfile
import threading
import time

BUILD = pathlib.Path(os.environ.get("COPIA_BUILD", pathlib.Path(__file__).parents[2] / "build"))
COPIA = str(BUILD / "copia")
SERIAL = itertools.count(1)


class Result:
    """What a command left: code, out, err."""

    def __init__(self, done):
        self.code, self.out, self.err = done.returncode, done.stdout, done.stderr

    def __repr__(self):
        return f"code {self.code}\n--- out\n{self.out}\n--- err\n{self.err}"

    def json(self):
        return json.loads(self.out)


def call(*words, timeout=60, stdin=None, env=None):
    """Run a command to its end; never hangs longer than `timeout`."""
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=timeout,
                          input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
                          env=env, check=False)
    return Result(done)


def until(what, timeout=20, every=0.05, text=""):
    """Wait for a condition that only looking can tell; returns its first true value."""
    end = time.monotonic() + timeout
    while True:
        value = what()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not so within {timeout} s: {text or what}")
        time.sleep(every)


class Lab:
    """One lab; use as a context manager, `down` comes in any case."""

    def __init__(self, nodes=4, bare=False, share=None):
        self.name = f"t{os.getpid()}x{next(SERIAL)}"
        self.nodes, self.bare, self.share = nodes, bare, share

    def __enter__(self):
        words = ["up", str(self.nodes)] + (["--bare"] if self.bare else [])
        words += ["--share", str(self.share)] if self.share else []
        try:
            result = self.lab(*words, timeout=120)
            assert result.code == 0, result
        except BaseException:
            self.lab("down")
            raise
        return self

    def __exit__(self, *exc):
        result = self.lab("down", timeout=120)
        assert result.code == 0, result

    def lab(self, verb, *words, **options):
        return call(COPIA, "lab", verb, "--lab", self.name, *words, **options)

    def argv(self, node, *words):
        """For Popen: a command inside a node."""
        return [COPIA, "lab", "exec", "--lab", self.name, node, "--", *map(str, words)]

    def on(self, node, *words, code=0, **options):
        """Run a command inside a node; its exit code must be `code` (None: any)."""
        result = call(*self.argv(node, *words), **options)
        assert code is None or result.code == code, result
        return result

    def copia(self, node, *words, **options):
        return self.on(node, COPIA, *words, **options)

    def insist(self, node, *words, timeout=20, **options):
        """The same, again while the answer is "no leader" (7) or "busy" (6): leaders change."""
        result = until(lambda: (r := self.copia(node, *words, code=None, **options)).code
                       not in (6, 7) and r, timeout, text=f"{node}: copia {words}")
        assert result.code == 0, result
        return result

    def rows(self, node="n1", *words):
        """`copia nodes` as a dictionary by name; {} while the cluster does not answer."""
        result = self.copia(node, "nodes", "--json", *words, code=None)
        return {row["name"]: row for row in result.json()["nodes"]} if result.code == 0 else {}

    def status(self, node="n1"):
        return self.copia(node, "status", "--json").json()

    def leader(self, node="n1"):
        for name, row in self.rows(node).items():
            if row["role"] == "leader":
                return name
        return None

    def wait_state(self, name, state, node="n1", timeout=20):
        until(lambda: self.rows(node).get(name, {}).get("state") == state, timeout,
              text=f"{name} is {state}: {self.rows(node).get(name)}")

    def wait_controllers(self, count, node="n1", timeout=30):
        until(lambda: sum(row["role"] in ("leader", "controller")
                          for row in self.rows(node).values()) == count, timeout,
              text=f"{count} controllers")

    def pids(self, node, title):
        """Process numbers inside the node, by what `ps` shows."""
        out = self.on(node, "ps", "-eo", "pid,args").out
        return [int(line.split()[0]) for line in out.splitlines()[1:]
                if line.split(None, 1)[1].startswith(title)]

    def signal(self, node, title, name="KILL"):
        """Send a signal to the one process of the node with this title; returns its number."""
        pid, = self.pids(node, title)
        self.on(node, "kill", f"-{name}", pid)
        return pid

    def token(self, node="n1", **options):
        """Make a token: the command that changes the state and shows it by one event."""
        return self.copia(node, "token", **options)

    def works(self, node="n1"):
        """Does a command that the cluster must agree on go through?"""
        return self.token(node, code=None, timeout=30).code == 0

    def whole(self, controllers=3, node="n1"):
        """Wait until every node of the cluster is up and there are as many controllers."""
        self.wait_controllers(controllers, node)
        until(lambda: (rows := self.rows(node)) and
              all(row["state"] == "up" for row in rows.values()),
              text=f"every node is up for {node}")
        for one in self.rows(node):
            until(lambda n=one: self.leader(n), text=f"{one} reaches a leader")

    def log(self, node):
        """What the daemons of the node wrote, where the lab keeps it."""
        where = self.lab("status").out.splitlines()[0].rsplit("state in ", 1)[1]
        return pathlib.Path(where, "nodes", node, "log").read_text(errors="replace")

    def kinds(self, *kinds, node="n1", since=0):
        """Events of these kinds behind a revision."""
        return [e for e in self.events(node) if e["kind"] in kinds and e["revision"] > since]

    def now(self, node="n1"):
        """Revision of the newest event."""
        return self.events(node)[-1]["revision"]

    def start_daemon(self, node):
        """copiad by hand, in a lab that started none; its log is /tmp/log in the node."""
        self.on(node, "sh", "-c", f"setsid {COPIA}d </dev/null >>/tmp/log 2>&1 &")
        until(lambda: self.copia(node, "status", code=None).code == 0, text=f"{node} serves")

    def address(self, node):
        out = self.on(node, "ip", "-4", "-o", "addr", "show", "scope", "global").out
        return re.search(r"inet ([0-9.]+)/", out).group(1)

    def join(self, node, by="n1", **options):
        secret = self.insist(by, "token").out.split()[0]
        return self.copia(node, "join", "-", stdin=f"{secret}@{self.address(by)}\n", **options)

    def events(self, node="n1"):
        out = self.copia(node, "events", "--json", "--lines", "1000").out
        return [json.loads(line) for line in out.splitlines() if line.strip()]


# ---------------------------------------------------------------- programs


class Running:
    """A command of a node that goes on while the test does: `with Running(lab, "n1", …) as run`.
    What it writes is read in the background, so that it never waits for the test; with
    `reads=False` the test reads run.process.stdout itself. It is dead at the end in any case."""

    def __init__(self, lab, node, *words, stdin=subprocess.DEVNULL, reads=True):
        self.lab, self.node = lab, node
        self.out, self.err = bytearray(), bytearray()
        self.changed = threading.Condition()
        self.process = subprocess.Popen(
            lab.argv(node, "sh", "-c", 'echo $$ >&2; exec "$@"', "sh", *words), stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.pid = int(self.process.stderr.readline())
        streams = [(self.process.stderr, self.err)]
        streams += [(self.process.stdout, self.out)] if reads else []
        self.threads = [threading.Thread(target=self.read, args=s, daemon=True) for s in streams]
        for thread in self.threads:
            thread.start()

    def read(self, stream, into):
        while piece := os.read(stream.fileno(), 1 << 18):
            with self.changed:
                into += piece
                self.changed.notify_all()

    def wait_out(self, test, timeout=30):
        """Wait until test(output so far) holds."""
        with self.changed:
            assert self.changed.wait_for(lambda: test(bytes(self.out)), timeout), self

    def lines(self):
        return self.out.decode().splitlines()

    def wait_lines(self, count, timeout=30):
        self.wait_out(lambda out: out.count(b"\n") >= count, timeout)

    def signal(self, name):
        self.lab.on(self.node, "kill", f"-{name}", self.pid)

    def end(self, timeout=60):
        """Wait for its end; returns its exit code."""
        code = self.process.wait(timeout)
        for thread in self.threads:
            thread.join(timeout)
        return code

    def text(self):
        return self.err.decode()

    def __repr__(self):
        return f"code {self.process.poll()}\n--- out\n{bytes(self.out[-2000:])}\n--- err\n{self.text()}"

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.process.kill()
            self.lab.on(self.node, "kill", "-KILL", self.pid, code=None)
        self.process.wait()
        for thread in self.threads:
            thread.join(10)
        self.process.stdout.close()
        self.process.stderr.close()


def shared_folder():
    """A folder that all nodes and all users see; the caller removes it."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="test-", dir=BUILD))
    path.chmod(0o777)
    return path


def kill_brain(lab, node):
    """SIGKILL to the brain, and wait until the next one has its place."""
    killed = lab.signal(node, "copiad: brain")
    until(lambda: lab.pids(node, "copiad: brain") not in ([], [killed]), text="a new brain")


def fails(result, code, *texts, lines=1):
    """A failure is one line, and says all of these."""
    assert result.code == code, result
    assert all(text in result.err for text in texts), result
    assert result.err.count("\n") == lines, result
    return result
