#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Programs on a real node: one_node.py BUILD_FOLDER. Starts copiad on loopback, runs what
`copia run` promises, kills the brain meanwhile, and leaves nothing behind."""
import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

BUILD = pathlib.Path(sys.argv.pop(1)).resolve()
COPIA = str(BUILD / "copia")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class OneNode(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = pathlib.Path(tempfile.mkdtemp(prefix="copia-launch-"))
        cls.log = open(cls.dir / "log", "wb")
        cls.daemon = subprocess.Popen(
            [BUILD / "copiad", "--state", cls.dir / "s", "--run", cls.dir / "r", "--port",
             str(free_port()), "--name", "n1", "--brain", BUILD / "copiad-brain"],
            stdin=subprocess.DEVNULL, stdout=cls.log, stderr=cls.log, start_new_session=True)
        os.environ["COPIA_SOCKET"] = str(cls.dir / "r" / "copia.sock")
        cls.until(lambda: cls.copia("status").returncode == 0)
        done = cls.copia("init", "--name", "launch", "--root-tasks", "--address", "127.0.0.1")
        assert done.returncode == 0, done.stderr

    @classmethod
    def tearDownClass(cls):
        cls.daemon.terminate()
        cls.daemon.wait(20)
        cls.log.close()
        shutil.rmtree(cls.dir)

    @classmethod
    def copia(cls, *args, stdin=b"", cwd=None):
        return subprocess.run([COPIA, *args], input=stdin, capture_output=True, timeout=60,
                              cwd=cwd or cls.dir)

    @staticmethod
    def until(what, seconds=20):
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                raise AssertionError("waited in vain")
            time.sleep(0.02)

    def brain(self):
        """Pid of the brain, which is the shepherd's child of that title."""
        children = pathlib.Path(f"/proc/{self.daemon.pid}/task/{self.daemon.pid}/children")
        for pid in children.read_text().split():
            try:
                title = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"copiad: brain"):
                return int(pid)
        return None

    def kill_brain(self):
        self.until(lambda: self.brain())
        pid = self.brain()
        os.kill(pid, signal.SIGKILL)
        self.until(lambda: self.brain() not in (None, pid))

    def fails(self, code, text, *args):
        done = self.copia(*args)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertIn(text, done.stderr.decode())
        self.assertEqual(done.stderr.count(b"\n"), 1)

    def test_exit_codes(self):
        self.assertEqual(self.copia("run", "true").returncode, 0)
        self.fails(3, "rank 0 on n1: exit code 3", "run", "sh", "-c", "exit 3")
        self.fails(139, "killed by signal 11", "run", "sh", "-c", "kill -SEGV $$")
        self.fails(124, "time is over", "run", "--timeout", "300ms", "sleep", "30")
        self.fails(127, "not found", "run", "no-such-program")
        self.fails(126, "not executable", "run", "/etc/passwd")
        self.fails(125, "1 can take work", "run", "-N", "2", "true")
        self.fails(125, "did you mean n1", "run", "--on", "n2", "true")

    def test_wrong_machine(self):
        program = self.dir / "other"
        data = bytearray(pathlib.Path("/bin/true").read_bytes())
        data[18:20] = (22).to_bytes(2, sys.byteorder)  # EM_S390
        program.write_bytes(data)
        program.chmod(0o755)
        self.fails(126, "is built for s390x", "run", str(program))

    def test_failing_rank_ends_the_job(self):
        begin = time.monotonic()
        self.fails(5, "rank 1 on n1: exit code 5", "run", "-n", "3", "sh", "-c",
                   "trap '' TERM; [ $COPIA_RANK = 1 ] && exit 5; sleep 30")
        self.assertLess(time.monotonic() - begin, 2)

    def test_lines_are_whole(self):
        script = ('i=0; while [ $i -lt 2000 ]; do echo "$COPIA_RANK $i '
                  'abcdefghijklmnopqrstuvwxyz"; i=$((i+1)); done')
        done = self.copia("run", "-n", "8", "--label", "sh", "-c", script)
        want = sorted(f"[{r}] {r} {i} abcdefghijklmnopqrstuvwxyz"
                      for r in range(8) for i in range(2000))
        self.assertEqual(sorted(done.stdout.decode().splitlines()), want)

    def test_stdin(self):
        data = os.urandom(8 << 20)
        done = self.copia("run", "-n", "2", "--stdin", "all", "sha256sum", stdin=data)
        want = hashlib.sha256(data).hexdigest().encode()
        self.assertEqual([line.split()[0] for line in done.stdout.splitlines()], [want, want])
        self.assertEqual(self.copia("run", "--stdin", "none", "cat", stdin=b"x").stdout, b"")
        self.assertEqual(self.copia("run", "head", "-c", "3", stdin=data).stdout, data[:3])

    def test_brain_killed_while_bytes_flow(self):
        data = os.urandom(48 << 20)
        run = subprocess.Popen([COPIA, "run", "cat"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
        pid = os.fork()
        if pid == 0:
            run.stdout.close()
            try:
                run.stdin.write(data)
                run.stdin.close()
            finally:
                os._exit(0)
        run.stdin.close()
        out = bytearray()
        killed = 0
        while piece := os.read(run.stdout.fileno(), 1 << 18):
            out += piece
            if len(out) > (killed + 1) * (12 << 20) and killed < 2:
                killed += 1
                self.kill_brain()
        run.stdout.close()
        os.waitpid(pid, 0)
        self.assertEqual(run.wait(60), 0)
        self.assertEqual(killed, 2)
        self.assertEqual(hashlib.sha256(out).digest(), hashlib.sha256(data).digest())

    def test_interrupts(self):
        script = "trap 'echo term; sleep 30' TERM; echo ready; while :; do sleep 0.05; done"
        run = subprocess.Popen([COPIA, "run", "sh", "-c", script], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE)
        self.assertEqual(run.stdout.readline(), b"ready\n")
        run.send_signal(signal.SIGINT)
        self.assertEqual(run.stdout.readline(), b"term\n")
        run.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(20), 130)
        run.stdout.close()

    def test_ps_and_kill(self):
        run = subprocess.Popen([COPIA, "run", "-n", "2", "sleep", "60"],
                               stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        tasks = []

        def two_run():
            tasks[:] = json.loads(self.copia("ps", "--json").stdout)["tasks"]
            return sum(t["command"] == "sleep 60" for t in tasks) == 2
        self.until(two_run)
        mine = [t for t in tasks if t["command"] == "sleep 60"]
        self.assertEqual({t["node"] for t in mine}, {"n1"})
        self.assertEqual(self.copia("kill", "-9", f"{mine[0]['job']}.1").returncode, 0)
        self.assertEqual(run.wait(20), 137)
        self.assertIn(b"rank 1 on n1: killed by signal 9", run.stderr.read())
        run.stderr.close()
        self.assertIn(b"no task or job", self.copia("kill", "n1.99999").stderr)

    def test_files(self):
        (self.dir / "data").write_text("payload\n")
        done = self.copia("run", "-n", "2", "--stage", "data", "cat", "data")
        self.assertEqual(done.stdout, b"payload\npayload\n", done.stderr)
        target = self.dir / "target"
        target.mkdir()
        done = self.copia("copy", "data", f"n1:{target}")
        self.assertEqual((target / "data").read_text(), "payload\n", done.stderr)
        self.fails(125, "/no/such/folder", "copy", "data", "n1:/no/such/folder")
        self.assertEqual(os.listdir(self.dir / "r" / "jobs"), [])
        self.until(lambda: os.listdir(self.dir / "s" / "jobs") == [])

    def test_several_programs(self):
        (self.dir / "programs").write_text(
            '# comment\n0: sh -c "echo boss $COPIA_SIZE"\n1-2: echo worker\n')
        done = self.copia("run", "--file", "programs")
        self.assertEqual(sorted(done.stdout.split(b"\n")),
                         [b"", b"boss 3", b"worker", b"worker"], done.stderr)
        (self.dir / "gap").write_text("0: true\n2: true\n")
        self.fails(2, "rank 1 is missing", "run", "--file", "gap")

    def test_output_folder(self):
        done = self.copia("run", "-n", "2", "--output", "out", "sh", "-c",
                          "echo to $COPIA_RANK; echo err >&2")
        self.assertEqual((done.stdout, done.stderr), (b"", b""))
        self.assertEqual((self.dir / "out" / "001.out").read_text(), "to 1\n")
        self.assertEqual((self.dir / "out" / "000.err").read_text(), "err\n")


if __name__ == "__main__":
    unittest.main()
