# SPDX-License-Identifier: Apache-2.0
"""At most one: a program that runs in one place, whatever happens to nodes, brains and network.

The program writes its node's name and the time into one folder that all nodes share, again and
again. Nodes of a lab have one clock, so the times of two places tell whether both ever ran at once:
the intervals from first to last line of each run must not overlap."""
import pathlib
import time

import pytest

from world import Lab, until

NAMES = ("n1", "n2", "n3", "n4")
# One file for each run. The last line of a run that is killed may be half.
PROGRAM = """
exec 3>>"$1/$(uname -n).$$.$(date +%s%N)"
while :; do date +%s.%N >&3; sleep 0.01; done
"""


@pytest.fixture
def place(tmp_path):
    """A lab of four nodes that share a folder, and in it the resource `clock`."""
    with Lab(4, share=tmp_path) as lab:
        lab.whole()
        lab.insist("n1", "set", "root-tasks", "on")
        lab.insist("n1", "resource", "clock", "--", "/bin/sh", "-c", PROGRAM, "clock", tmp_path)
        place = Place(lab, tmp_path)
        place.owner()
        yield place
        place.check()


class Place:
    def __init__(self, lab, folder):
        self.lab, self.folder = lab, pathlib.Path(folder)

    def runs(self):
        """(node, first, last) of each run that wrote something, by time."""
        found = []
        for path in self.folder.iterdir():
            times = [float(t) for t in path.read_text().split("\n")[:-1] if t]
            if times:
                found.append((path.name.split(".")[0], times[0], times[-1]))
        return sorted(found, key=lambda run: run[1])

    def check(self):
        runs = self.runs()
        for (one, _, end), (other, begin, _) in zip(runs, runs[1:]):
            assert end < begin, f"{one} until {end}, {other} from {begin}: {runs}"

    def fresh(self):
        """The node whose run wrote a moment ago."""
        runs = [r for r in self.runs() if time.time() - r[2] < 0.3]
        return runs[-1][0] if runs else None

    def owner(self, other_than=None, timeout=30):
        """Wait until it runs (elsewhere); the node."""
        return until(lambda: (n := self.fresh()) and n != other_than and n, timeout,
                     text=f"it runs, not on {other_than}: {self.runs()[-3:]}")

    def asker(self, *but):
        return next(n for n in NAMES if n not in but)

    def processes(self, node):
        return self.lab.pids(node, "/bin/sh -c \nexec 3>>") or \
            [p for p in self.lab.pids(node, "/bin/sh -c") if p]


def test_runs_in_one_place_until_removed(place):
    owner = place.owner()
    lab = place.lab
    assert [n for n in NAMES if place.processes(n)] == [owner]
    assert any(e["text"] == f"resource clock goes to node {owner}" for e in lab.events())
    again = lab.copia("n2", "resource", "clock", "--", "true", code=None)
    assert again.code != 0 and "exists already" in again.err
    lab.copia("n3", "resource", "clock", "--remove")
    until(lambda: lab.kinds("resource-removed"), text="removed")
    assert not any(place.processes(n) for n in NAMES)
    missing = lab.copia("n1", "resource", "clock", "--remove", code=None)
    assert missing.code == 4 and "no resource" in missing.err


def test_node_killed(place):
    owner = place.owner()
    place.lab.lab("kill", owner)
    new = place.owner(owner)
    place.lab.lab("start", owner)
    place.lab.wait_state(owner, "up", new)
    until(lambda: place.lab.works(owner), text="commands")
    assert place.owner() == new


def test_brain_of_owner_hangs_or_dies(place):
    """The lease is the shepherds' affair: a brain that hangs or dies moves nothing."""
    owner = place.owner()
    lab = place.lab
    if lab.leader() == owner:
        lab.insist(owner, "leader", next(n for n, r in lab.rows().items()
                                        if r["role"] == "controller"))
        until(lambda: lab.leader() not in (None, owner), text="another one leads")
    owner = place.owner()
    asker = place.asker(owner)
    since = lab.now(asker)
    brain = lab.signal(owner, "copiad: brain", "STOP")
    # As long as many leases: what is to happen at the end of one would have happened.
    begin = time.monotonic()
    until(lambda: time.monotonic() > begin + 2, text="leases pass")
    assert place.fresh() == owner
    lab.on(owner, "kill", "-CONT", brain)
    until(lambda: lab.works(owner), text="it works again")
    before = place.processes(owner)
    killed = lab.signal(owner, "copiad: brain")
    until(lambda: lab.pids(owner, "copiad: brain") not in ([], [killed]), text="a new brain")
    until(lambda: lab.works(owner), text="it works")
    begin = time.monotonic()
    until(lambda: time.monotonic() > begin + 2, text="orders came again")
    assert place.fresh() == owner
    # The shell itself; what it starts for a moment comes and goes.
    assert min(before) in place.processes(owner)
    assert not lab.kinds("node-down", "resource", node=asker, since=since)


def test_leader_changes(place):
    """A new leader goes on renewing, or waits for the end of what the old one granted."""
    lab = place.lab
    for _ in range(3):
        place.owner()
        leader = until(lab.leader, text="a leader")
        killed = lab.signal(leader, "copiad: brain")
        until(lambda n=leader, k=killed: lab.pids(n, "copiad: brain") not in ([], [k]),
              text="a new brain")
        until(lambda n=leader: lab.works(n), text="it works")
    place.owner()


def test_owner_cut_off(place):
    """Its shepherd ends the program by itself, before it starts elsewhere (check() tells)."""
    owner = place.owner()
    for other in NAMES:
        if other != owner:
            place.lab.lab("cut", owner, other)
    new = place.owner(owner)
    assert not place.processes(owner)
    place.lab.lab("heal")
    place.lab.whole(node=new)
    assert place.owner() == new and not place.processes(owner)


def test_leader_with_the_resource_cut_off(place):
    """The leader owns it and is cut off together with an agent: the majority takes over."""
    lab = place.lab
    owner = place.owner()
    if lab.rows()[owner]["role"] == "agent":
        lab.insist("n1", "drain", owner)
        agent, owner = owner, place.owner(owner)
        lab.insist("n1", "resume", agent)
    if lab.leader() != owner:
        lab.insist("n1", "leader", owner)
        until(lambda: lab.leader() == owner, text=f"{owner} leads")
    place.owner()
    for other in NAMES:
        if other != owner:
            lab.lab("cut", owner, other)
    new = place.owner(owner)
    assert not place.processes(owner)
    lab.lab("heal")
    lab.whole(node=new)
    assert place.owner() == new


def test_drained_and_forgotten(place):
    """Drained: it ends there first. All drained: it waits. A node removed by force: elsewhere."""
    owner = place.owner()
    lab = place.lab
    lab.insist("n1", "drain", owner)
    new = place.owner(owner)
    lab.insist("n1", "resume", owner)
    assert not place.processes(owner)
    lab.insist(place.asker(new), "leave", new, "--force")
    last = place.owner(new)
    for node in NAMES:
        if node != new:
            lab.insist(last, "drain", node)
    until(lambda: not any(place.processes(n) for n in NAMES) and
          lab.kinds("resource", node=last)[-1]["text"] == "resource clock is nowhere now",
          text="nowhere")
    lab.insist(last, "resume", last)
    until(lambda: place.fresh() == last, text=f"it runs on {last}, which alone takes work")
