# SPDX-License-Identifier: Apache-2.0
"""What the benches share: a lab, figures from rounds in turns, one kind of table."""
import atexit
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "system"))
from world import BUILD, COPIA, Lab, call, until  # noqa: E402,F401

RESULTS = os.environ.get("COPIA_BENCH_RESULTS")  # a file that bench/run sums up


def stop(number, frame):
    """So that labs and etcd end in their own `finally` when somebody ends the bench."""
    sys.exit(128 + number)


for sig in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(sig, stop)


def built(name):
    """A program that bench/run built."""
    return str(BUILD / "bench" / name)


def peer(*names):
    """The first of these programs that is installed; None with a line of text."""
    for name in names:
        if found := shutil.which(name):
            return found
    print(f"({' or '.join(names)} is not installed: skipped; tools/install-deps bench)")
    return None


def scratch(where=None):
    """A folder that ends with the bench; `where` says on which disk."""
    folder = tempfile.mkdtemp(prefix="copia-bench-", dir=where)
    atexit.register(shutil.rmtree, folder, True)
    return folder


def lab_dir(lab):
    return pathlib.Path(status(lab)["dir"])


def status(lab):
    return lab.lab("status", "--json").json()


def node_pids(lab):
    """Process number of each node's first process, as seen from here."""
    return {n["name"]: n["pid"] for n in status(lab)["nodes"]}


def processes(init, title):
    """Processes below a node's first one whose title begins so, as seen from here."""
    found, todo = [], [init]
    while todo:
        pid = todo.pop()
        try:
            todo += map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            words = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if words.startswith(title.encode()):
            found.append(pid)
    return found


class Worker:
    """A process that measures when a line tells it to, so that rounds can be in turns."""

    def __init__(self, argv, cwd=None):
        self.argv = argv
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, cwd=cwd)
        atexit.register(self.stop)
        if self.process.stdout.readline().strip() != "ready":
            raise RuntimeError(f"did not start: {argv}")

    def begin(self, text=""):
        self.process.stdin.write(f"{text}\n")
        self.process.stdin.flush()

    def result(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"ended: {self.argv}")
        return line

    def ask(self, text=""):
        self.begin(text)
        return list(map(int, self.result().split()))

    def stop(self):
        if self.process.poll() is not None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Spawner(Worker):
    """Starts programs and takes their time; see bench/spawn."""

    def __init__(self, enter=()):
        super().__init__([*enter, sys.executable, "-c", (HERE / "spawn").read_text()],
                         cwd=BUILD)  # which all nodes see: launchers go to their own folder there

    def run(self, argv):
        """Microseconds and exit code."""
        return self.ask(json.dumps([str(a) for a in argv]))

    def ms(self, argv):
        us, code = self.run(argv)
        if code:
            raise RuntimeError(f"exit code {code}: {' '.join(map(str, argv))}")
        return us / 1000


def share(values, part):
    """The value below which `part` of them lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def median(values):
    return share(values, 0.5)


class Table:
    """Rows of figures; a row with a target says whether it is met, and bench/run counts it."""

    def __init__(self, title):
        self.rows = []
        self.title = title

    def add(self, what, values, unit, ratio="", target="", met=None):
        text = [f"{share(values, p):,.{0 if median(values) >= 1000 else 2}f}" for p in (.5, .1, .9)]
        verdict = "" if met is None else "met" if met else "MISSED"
        self.rows.append((what, text[0], text[1], text[2], unit, ratio, target, verdict))

    def show(self):
        rows = [(self.title, "median", "p10", "p90", "", "ratio", "target", "")] + self.rows
        widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
        print()
        for row in rows:
            cells = [c.rjust(w) if 1 <= i <= 3 else c.ljust(w)
                     for i, (c, w) in enumerate(zip(row, widths))]
            print("  ".join(cells).rstrip())
        sys.stdout.flush()
        if RESULTS:
            with open(RESULTS, "a", encoding="utf-8") as f:
                for r in self.rows:
                    if r[-1]:
                        f.write(json.dumps(r) + "\n")
