# SPDX-License-Identifier: Apache-2.0
"""Start a real copiad and play its brain through fake-brain."""
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time

COPIAD = os.environ["COPIAD"]
COPIAD_OTHER = os.environ["COPIAD_OTHER"]
FAKE_BRAIN = os.environ["FAKE_BRAIN"]
PATH = "/usr/local/bin:/usr/bin:/bin"


def new_id():
    return os.urandom(16).hex()


def alive(pid):
    """True while the process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(check, seconds=5.0, what="condition"):
    """For things that give no event: other processes' ends, files."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        select.select([], [], [], 0.005)
    raise AssertionError(f"{what}: not within {seconds} s")


def free_port(address="127.0.0.1"):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind((address, 0))
        return s.getsockname()[1]


class Output:
    """The far receiver of one stream: takes each byte once, by its offset."""

    def __init__(self):
        self.bytes = bytearray()
        self.finished = False
        self.repeated = 0

    def take(self, offset, data):
        have = len(self.bytes)
        assert offset <= have, f"gap: have {have}, got {offset}"
        self.repeated += min(len(data), have - offset)
        self.bytes += data[have - offset:]


class Herd:
    def __init__(self, user=None, bind=None, port=None, args=(), wrap=(), env=None, keep=None):
        self.folder = keep or tempfile.mkdtemp(prefix="copia-test-")
        self.state = os.path.join(self.folder, "state")
        self.path = os.path.join(self.folder, "control")
        self.listener = socket.socket(socket.AF_UNIX)
        if os.path.exists(self.path):
            os.unlink(self.path)
        self.listener.bind(self.path)
        self.listener.listen(4)
        if user is not None:
            for p in (self.folder, self.path):
                os.chown(p, user, user)
        copiad, brain = COPIAD, FAKE_BRAIN
        if user is not None:  # the build folder may be closed to that user
            copiad = shutil.copy(COPIAD, os.path.join(self.folder, "copiad"))
            brain = shutil.copy(FAKE_BRAIN, os.path.join(self.folder, "fake-brain"))
        self.port = port or free_port(bind or "127.0.0.1")
        self.link = None
        self.buffer = b""
        self.events = []
        self.outputs = {}
        self.terminals = {}
        self.brain_pid = None
        self.auto_ack = True
        self.calls = 0
        self.log = open(os.path.join(self.folder, "log"), "ab")
        command = [*wrap, copiad, "--state", self.state, "--run", os.path.join(self.folder, "run"),
                   "--port", str(self.port), "--brain", brain, *args]
        if bind:
            command += ["--bind", bind]
        extra = {"user": user, "group": user, "extra_groups": []} if user is not None else {}
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL, cwd="/",
            env={**os.environ, "COPIA_TEST_SOCKET": self.path, **(env or {})}, **extra)
        self.pid = self.process.pid

    def __enter__(self):
        self.hello = self.meet()
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
            if self.brain_pid and alive(self.brain_pid):
                os.kill(self.brain_pid, signal.SIGCONT)
            self.process.terminate()
            if self.link:
                self.link.close()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.listener.close()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_text(self):
        with open(os.path.join(self.folder, "log")) as f:
            return f.read()

    # ------------------------------------------------------------ the brain's link

    def meet(self, seconds=10.0):
        """The next brain comes up; returns its Hello."""
        self.listener.settimeout(seconds)
        try:
            self.link, _ = self.listener.accept()
        except TimeoutError:
            raise AssertionError("no brain came:\n" + self.log_text()) from None
        self.buffer = b""
        self.events.clear()
        hello = self.wait("hello", seconds=seconds)
        self.wait("tasks_sent", seconds=seconds)
        return hello

    def read_frame(self, seconds):
        end = time.monotonic() + seconds
        while True:
            if len(self.buffer) >= 8:
                text_len, bytes_len = struct.unpack_from("=II", self.buffer)
                if len(self.buffer) >= 8 + text_len + bytes_len:
                    text = self.buffer[8:8 + text_len]
                    data = self.buffer[8 + text_len:8 + text_len + bytes_len]
                    self.buffer = self.buffer[8 + text_len + bytes_len:]
                    return json.loads(text), data
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.link], [], [], left)[0]:
                return None, None
            self.read_some()

    def pump(self, seconds=0.0):
        """Take one frame; False when none came."""
        frame, data = self.read_frame(seconds)
        if frame is None:
            return False
        if "brain" in frame:
            self.brain_pid = frame["brain"]
        elif "output" in frame:
            o = frame["output"]
            out = self.outputs.setdefault((o["task"], o["stream"]), Output())
            out.take(o["offset"], data)
            out.finished |= o.get("finished", False)
            if self.auto_ack:
                self.ack(o["task"], o["stream"])
        elif "terminal" in frame:
            self.terminals.setdefault(frame["terminal"]["task"], bytearray()).extend(data)
        elif "event" in frame:
            kind = next(k for k, v in frame["event"].items() if k != "call" and v is not None)
            self.events.append((kind, frame["event"][kind], frame["event"]["call"]))
        else:
            self.events.append((next(iter(frame)), frame, 0))
        return True

    def wait(self, kind, check=lambda e: True, seconds=10.0, call=None):
        """The first event of this kind for which `check` holds; it is taken away."""
        end = time.monotonic() + seconds
        seen = 0
        while True:
            for i in range(seen, len(self.events)):
                k, e, c = self.events[i]
                if k == kind and (call is None or c == call) and check(e):
                    del self.events[i]
                    return e
            seen = len(self.events)
            left = end - time.monotonic()
            if left <= 0 or not self.pump(left):
                raise AssertionError(f"no {kind}; events: {self.events[-5:]}\n{self.log_text()[-2000:]}")

    def wait_for(self, check, seconds=10.0, what="condition"):
        end = time.monotonic() + seconds
        while not check():
            left = end - time.monotonic()
            if left <= 0 or not self.pump(left):
                raise AssertionError(f"{what}: not within {seconds} s\n{self.log_text()[-2000:]}")

    def tell(self, message, data=b""):
        text = json.dumps(message).encode()
        out = memoryview(struct.pack("=II", len(text), len(data)) + text + data)
        # Reading meanwhile: the brain may be waiting for us to take something.
        while out:
            reading, writing, _ = select.select([self.link], [self.link], [], 10)
            assert reading or writing, "the brain takes nothing"
            if writing:
                try:
                    out = out[self.link.send(out, socket.MSG_DONTWAIT):]
                except (BrokenPipeError, ConnectionResetError):
                    raise EOFError("the brain went away") from None
            elif reading:
                self.read_some()

    def read_some(self):
        try:
            part = self.link.recv(1 << 20)
        except ConnectionResetError:
            part = b""
        if not part:
            raise EOFError("the brain went away")
        self.buffer += part

    def request(self, kind, body, files=()):
        self.calls += 1
        self.tell({"request": {"call": self.calls, kind: body}, "files": list(files)})
        return self.calls

    def ask(self, kind, body, **kw):
        """A request that is answered by Done; returns it."""
        return self.wait("done", call=self.request(kind, body), **kw)

    def ack(self, task, stream):
        self.tell({"ack": {"task": task, "stream": stream,
                           "upto": len(self.outputs[(task, stream)].bytes)}})

    def send_input(self, task, data, close=False):
        self.tell({"input": {"task": task, "close": close}}, data)

    # ------------------------------------------------------------ tasks

    def spawn_message(self, argv, **fields):
        return {"task": new_id(), "argv": [str(a) for a in argv], "env": [f"PATH={PATH}"], **fields}

    def spawn(self, argv, files=(), **fields):
        """Start one task; returns its Spawned."""
        m = self.spawn_message(argv, **fields)
        self.request("spawn", {"tasks": [m]}, files)
        return self.wait("spawned", lambda e: e["task"] == m["task"])

    def run(self, argv, seconds=10.0, **fields):
        """Start a task and wait for its end; returns exit, stdout, stderr."""
        s = self.spawn(argv, **fields)
        assert s["code"] == 0, s["error"]
        task = s["task"]
        x = self.wait("exit", lambda e: e["task"] == task, seconds)
        for stream, has in ((1, s["fds"]["stdout"]), (2, s["fds"]["stderr"])):
            if has:
                self.wait_for(lambda st=stream: self.finished(task, st), seconds, "end of output")
        self.ask("release", {"task": task})
        return x, self.out(task, 1), self.out(task, 2)

    def finished(self, task, stream=1):
        o = self.outputs.get((task, stream))
        return bool(o and o.finished)

    def out(self, task, stream=1):
        o = self.outputs.get((task, stream))
        return bytes(o.bytes) if o else b""

    def kill_brain(self):
        """SIGKILL; returns the Hello of the next one."""
        os.kill(self.brain_pid, signal.SIGKILL)
        self.link.close()
        return self.meet()
