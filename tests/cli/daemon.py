# SPDX-License-Identifier: Apache-2.0
"""A real copiad of its own for a test: state and socket in a new folder, a free port."""
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

START_S, STOP_S = 20, 20


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    def __init__(self, copiad, name="n1"):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="copia-cli-"))
        self.socket = str(self.folder / "run" / "copia.sock")
        for part in ("run", "state"):
            (self.folder / part).mkdir(mode=0o700)
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [copiad, "--state", self.folder / "state", "--run", self.folder / "run",
                 "--port", str(free_port()), "--name", name], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True)

    def __enter__(self):
        end = time.monotonic() + START_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                log = self.log()
                self.__exit__()
                raise RuntimeError(f"copiad did not start:\n{log}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            # Its children are in its session: nothing of it may stay behind.
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self):
        with socket.socket(socket.AF_UNIX) as s:
            return s.connect_ex(self.socket) == 0

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    def brain(self):
        """The process id of the brain, or None while there is none."""
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in children.read_text().split():
            try:
                if b"brain" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                    return int(pid)
            except OSError:
                continue
        return None
