# SPDX-License-Identifier: Apache-2.0
"""What the tests of `copia lab` share: the program, labs in folders of their own, traces."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
BUILD = pathlib.Path(os.environ.get("COPIA_BUILD", ROOT / "build")).resolve()
PYTHON = "/usr/bin/python3"


def program(name):
    for place in (BUILD, BUILD / "lab"):
        if (place / name).exists():
            return str(place / name)
    raise FileNotFoundError(f"{name} is not in {BUILD} or {BUILD}/lab: build it first")


class Lab:
    """One lab; its state is in a folder of the test, so that no two tests meet."""

    def __init__(self, folder, name="lab", command=None, environment=None):
        self.name = name
        self.folder = pathlib.Path(folder)
        self.command = command or [program("copia-lab")]
        self.environment = dict(os.environ, COPIA_LAB_DIR=str(folder), **(environment or {}))

    def start(self, verb, *words, **options):
        return subprocess.Popen([*self.command, verb, "--lab", self.name, *map(str, words)],
                                env=self.environment, text=True, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)

    def run(self, verb, *words, code=0, timeout=60):
        """Run a verb; fails unless it ends with `code` (None: any)."""
        process = self.start(verb, *words)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        if code is not None and process.returncode != code:
            pytest.fail(f"lab {verb} {words}: exit code {process.returncode}\n{out}\n{err}")
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def up(self, *words, **options):
        return self.run("up", "--bare", *words, **options)

    def sh(self, node, script, **options):
        return self.run("exec", node, "--", "sh", "-c", script, **options).stdout

    def python(self, node, script, *words, **options):
        return self.run("exec", node, "--", PYTHON, "-c", textwrap.dedent(script), *words,
                        **options).stdout

    def start_python(self, node, script, *words):
        return self.start("exec", node, "--", PYTHON, "-c", textwrap.dedent(script), *map(str, words))

    def status(self):
        return json.loads(self.run("status", "--json").stdout)

    def node(self, name):
        return next(n for n in self.status()["nodes"] if n["name"] == name)

    def state_folder(self):
        return self.folder / self.name


@pytest.fixture
def make_lab(tmp_path):
    """Makes labs that are taken down at the end of the test, whatever happened."""
    made = []

    def make(name="lab", **options):
        made.append(Lab(tmp_path / "labs", name, **options))
        return made[-1]

    yield make
    for lab in made:
        lab.run("down", code=None)


@pytest.fixture
def lab(make_lab):
    return make_lab()


def cgroups():
    found = set()
    for place, folders, _ in os.walk("/sys/fs/cgroup"):
        found.update(os.path.join(place, f) for f in folders if f.startswith("copia-lab"))
    return found


def traces(lab):
    """Everything of this lab that can be seen on the machine (where others work, too)."""
    where = str(lab.folder)
    links = {name for name in os.listdir("/sys/class/net") if re.fullmatch(r"n\d+|hub", name)}
    with open("/proc/self/mountinfo", encoding="utf-8") as file:
        mounts = {line for line in file if where in line or "copia-lab" in line}
    processes = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = pathlib.Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
            environment = pathlib.Path("/proc", pid, "environ").read_bytes()
        except OSError:
            continue
        if b"copia-labinit" in command and where.encode() in environment:
            processes.add(command)
    groups = {g for g in cgroups() if any(g.endswith(tail) for tail in group_names(lab))}
    return {"links": links, "mounts": mounts, "processes": processes, "groups": groups,
            "folder": lab.state_folder().exists()}


def group_names(lab):
    """The name of the lab's control groups: from its name and the path of its folder."""
    value = 0xCBF29CE484222325
    for byte in str(lab.state_folder()).encode():
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return [f"copia-lab-{lab.name}-{(value ^ value >> 32) & 0xFFFFFFFF:08x}"]


def alive(pid):
    try:
        return pathlib.Path("/proc", str(pid), "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def as_user(tmp_path_factory):
    """A command prefix and folder for an ordinary user; the programs are copied to where that
    user can reach them, because a build folder may be in a closed home."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    if subprocess.run(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
                       "unshare", "-Ur", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system does not let ordinary users make user namespaces")
    place = pathlib.Path(subprocess.run(["mktemp", "-d", "/tmp/copia-lab-user.XXXXXX"], check=True,
                                        capture_output=True, text=True).stdout.strip())
    for name in ("copia-lab", "copia-labinit"):
        shutil.copy(program(name), place / name)
    os.chown(place, 65534, 65534)
    yield place, ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
                  str(place / "copia-lab")]
    shutil.rmtree(place, ignore_errors=True)


if sys.version_info < (3, 11):  # Debian 12's
    raise RuntimeError("run the tests with Debian's python3")
