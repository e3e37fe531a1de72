# SPDX-License-Identifier: Apache-2.0
"""Deaths and cuts: of brains, shepherds, nodes and the network between them."""
import subprocess

import pytest

from world import COPIA, Lab, until

ALL = ("n1", "n2", "n3", "n4")


@pytest.fixture(autouse=True)
def whole(request):
    """Tests that share a lab begin with all nodes up and three controllers, and leave no node down
    by mistake."""
    if "lab4" in request.fixturenames:
        lab = request.getfixturevalue("lab4")
        assert lab.lab("heal").code == 0
        lab.whole()


def by_role(lab, role, node="n1"):
    return until(lambda: next((name for name, row in lab.rows(node).items()
                               if row["role"] == role), None), text=f"a {role}")


def others(name):
    return [n for n in ALL if n != name]


# ---------------------------------------------------------------- brains


@pytest.mark.parametrize("role", ["agent", "controller", "leader"])
def test_brain_killed(lab4, role):
    """The shepherd goes on: nobody sees the node go down, and the brain is back at once."""
    node = by_role(lab4, role)
    before, since = lab4.rows(), lab4.now()
    shepherd, = lab4.pids(node, "copiad: shepherd")
    killed = lab4.signal(node, "copiad: brain")
    until(lambda: lab4.pids(node, "copiad: brain") not in ([], [killed]), text="a new brain")
    until(lambda: lab4.copia(node, "status", code=None).code == 0, text="it serves")
    until(lambda: lab4.works(node), text="commands through it")
    for other in ALL:
        until(lambda n=other: lab4.leader(n), text=f"{other} knows a leader")
    assert lab4.pids(node, "copiad: shepherd") == [shepherd]
    assert not lab4.kinds("node-down", since=since)
    after = lab4.rows()
    assert {n: r["number"] for n, r in after.items()} == {n: r["number"] for n, r in before.items()}
    assert all(r["state"] == "up" for r in after.values())


def test_brain_stopped_is_replaced_or_waited_for(lab4):
    """A leader's brain that hangs loses the leadership; when it goes on it follows."""
    node = by_role(lab4, "leader")
    asker = others(node)[0]
    since = lab4.now(asker)
    lab4.signal(node, "copiad: brain", "STOP")
    until(lambda: lab4.leader(asker) not in (None, node), text="another one leads")
    assert lab4.works(asker)
    lab4.signal(node, "copiad: brain", "CONT")
    until(lambda: lab4.leader(node) == lab4.leader(asker) is not None, text="they agree")
    assert not lab4.kinds("node-down", node=asker, since=since)


# ---------------------------------------------------------------- shepherds


def daemon_state(lab, node):
    rows = lab.lab("status").out.splitlines()
    return next(line for line in rows if line.startswith(node + " "))


def test_shepherd_killed_leaves_nothing(lab4):
    """The brain ends the node's tasks and itself; started again, the node is itself again."""
    node = by_role(lab4, "agent")
    asker = others(node)[0]
    number = lab4.rows(asker)[node]["number"]
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    task = subprocess.Popen(lab4.argv(asker, *nobody, COPIA, "run", "-n", "1", "--on", node,
                                      "sleep", "1234"), stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: lab4.pids(node, "sleep 1234"), text="the task runs")
        lab4.signal(node, "copiad: shepherd")
        until(lambda: not lab4.pids(node, "copiad") and not lab4.pids(node, "sleep 1234"),
              text="no process is left")
        lab4.wait_state(node, "down", asker)
        assert task.wait(timeout=30) != 0
    finally:
        task.kill()
        task.communicate()
    lab4.lab("kill", node)
    assert lab4.lab("start", node).code == 0
    lab4.wait_state(node, "up", asker)
    assert lab4.rows(node)[node]["number"] == number


@pytest.mark.parametrize("role", ["agent", "leader"])
def test_upgrade_in_place(lab4, role):
    """SIGUSR2: shepherd and brain become the program on disk; the cluster sees no death."""
    node = by_role(lab4, role)
    asker = others(node)[0]
    since = lab4.now(asker)
    brain, = lab4.pids(node, "copiad: brain")
    shepherd = lab4.signal(node, "copiad: shepherd", "USR2")
    until(lambda: lab4.pids(node, "copiad: brain") not in ([], [brain]), text="a new brain")
    until(lambda: lab4.works(node), text="commands through it")
    until(lambda: lab4.works(asker), text="commands")
    assert lab4.pids(node, "copiad: shepherd") == [shepherd]
    assert not lab4.kinds("node-down", node=asker, since=since)
    assert lab4.rows(asker)[node]["state"] == "up"


# ---------------------------------------------------------------- nodes


def test_leader_node_killed(lab4):
    node = by_role(lab4, "leader")
    asker = others(node)[0]
    lab4.lab("kill", node)
    until(lambda: lab4.leader(asker) not in (None, node), text="another one leads")
    until(lambda: lab4.works(asker), text="commands")
    lab4.wait_state(node, "down", asker)
    lab4.lab("start", node)
    lab4.wait_state(node, "up", asker)
    until(lambda: lab4.leader(node) == lab4.leader(asker) is not None, text="they agree")


def story(lab, node):
    """All events but those of this moment: restarts tell of new ones."""
    return [(e["revision"], e["kind"], e["text"]) for e in lab.events(node)]


def test_all_nodes_killed_at_once(lab4):
    lab4.copia("n1", "set", "root-tasks", "on")
    lab4.copia("n1", "drain", "n4", "--reason", "kept over the end")
    before = story(lab4, "n1")
    cluster = lab4.status()["cluster_id"]
    numbers = {n: r["number"] for n, r in lab4.rows().items()}
    lab4.lab("kill", "n[1-4]")
    assert lab4.lab("start", "n[1-4]").code == 0
    for node in ALL:
        until(lambda n=node: lab4.leader(n), text=f"{node} knows a leader")
    for node in ALL:
        assert lab4.status(node)["cluster_id"] == cluster
        assert story(lab4, node)[:len(before)] == before
    assert {n: r["number"] for n, r in lab4.rows().items()} == numbers
    until(lambda: lab4.rows().get("n4", {}).get("state") == "drained", text="n4 is drained")
    assert lab4.rows()["n4"]["reason"] == "kept over the end"
    lab4.copia("n1", "resume", "n4")
    lab4.copia("n1", "set", "root-tasks", "off")


def leader_but_not(lab, node):
    """The leader; leadership is taken from `node`, which may take a few attempts."""
    leader = lab.leader(node)
    if leader != node:
        return leader
    lab.copia(node, "leader", by_role(lab, "controller", node), code=None)
    return None


def test_leaders_killed_under_commands(lab4):
    """Leader after leader is lost while tokens are made: what was acknowledged is there, once."""
    made = len(lab4.kinds("token-made"))
    acknowledged, asked = 0, 0
    for _ in range(3):
        node = until(lambda: leader_but_not(lab4, "n4"), text="another one than n4 leads")
        running = [subprocess.Popen(lab4.argv("n4", COPIA, "token"), stdin=subprocess.DEVNULL,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                   for _ in range(6)]
        lab4.lab("kill", node)
        for one in running:
            out, err = one.communicate(timeout=30)
            assert one.returncode in (0, 6, 7), (out, err)
            acknowledged += one.returncode == 0
            asked += 1
        lab4.lab("start", node)
        lab4.whole(node="n4")
    # One that was answered with "look whether it was done" may have been done; none was done twice.
    count = len(lab4.kinds("token-made")) - made
    assert acknowledged <= count <= asked
    assert acknowledged > 0
    stories = [[e for e in story(lab4, n) if e[1] == "token-made"] for n in ALL]
    assert all(s == stories[0] for s in stories)


# ---------------------------------------------------------------- the network


def test_minority_says_so_and_majority_goes_on(lab4):
    leader = by_role(lab4, "leader")
    agent = by_role(lab4, "agent")
    rest = [n for n in ALL if n not in (leader, agent)]
    for near in (leader, agent):
        for far in rest:
            lab4.lab("cut", near, far)
    until(lambda: lab4.leader(rest[0]) in rest, text="the majority has a leader")
    until(lambda: lab4.works(rest[1]), text="the majority goes on")
    for near in (leader, agent):
        result = until(lambda n=near: (r := lab4.token(n, code=None, timeout=30)).code == 7 and r,
                       text=f"{near} says that there is no leader")
        assert "leader" in result.err
        assert "leader" in lab4.status(near)["health"]
    lab4.wait_state(agent, "down", rest[0])
    lab4.lab("heal")
    lab4.whole(node=rest[0])
    for near in (leader, agent):
        until(lambda n=near: lab4.leader(n) == lab4.leader(rest[0]) is not None, text="agreement")
        until(lambda n=near: story(lab4, n) == story(lab4, rest[0]), text="the same story")


def test_one_way_cut(lab4):
    """A controller that is heard but hears nobody harms nobody, and is well after the cut."""
    node = by_role(lab4, "controller")
    rest = others(node)
    leader = lab4.leader()
    for far in rest:
        assert lab4.lab("cut", far, node, "--one-way").code == 0
    until(lambda: lab4.works(rest[0]), text="the rest goes on")
    result = until(lambda: (r := lab4.token(node, code=None, timeout=30)).code == 7 and r,
                   text="it says that there is no leader")
    assert "leader" in result.err
    until(lambda: lab4.works(rest[1]), text="the rest goes on")
    lab4.lab("heal")
    lab4.whole(node=leader)
    until(lambda: lab4.works(node), text="it works")


# ---------------------------------------------------------------- coming, going, changing


def test_drain_moves_leadership(lab4):
    leader = lab4.leader()
    lab4.copia(leader, "drain", leader)
    until(lambda: lab4.leader() not in (None, leader), text="leadership moved")
    assert lab4.rows()[leader]["role"] == "controller"
    lab4.copia(leader, "resume", leader)


def test_leader_leaves(lab4):
    leader = lab4.leader()
    asker = others(leader)[0]
    lab4.copia(leader, "leave")
    until(lambda: lab4.leader(asker) not in (None, leader) and leader not in lab4.rows(asker),
          text="it is gone")
    lab4.wait_controllers(3, asker)
    until(lambda: "in no cluster" in lab4.copia(leader, "nodes", code=None).err, text="it knows")
    number = max(r["number"] for r in lab4.rows(asker).values())
    lab4.join(leader, asker)
    until(lambda: lab4.rows(leader).get(leader, {}).get("state") == "up", text="it is back")
    assert lab4.rows(leader)[leader]["number"] > number


def test_sole_node_killed_after_commands(fresh_lab):
    """Acknowledged is on the disk."""
    lab = fresh_lab(1)
    for _ in range(3):
        before = len(lab.kinds("token-made"))
        for _ in range(5):
            lab.token()
        lab.lab("kill", "n1")
        lab.lab("start", "n1")
        until(lambda: lab.leader(), text="it leads")
        assert len(lab.kinds("token-made")) == before + 5


def test_controllers_leave_down_to_one(fresh_lab):
    """Two nodes have one controller; when that one leaves, the other has taken over."""
    lab = fresh_lab(2)
    controller = lab.leader()
    other = "n2" if controller == "n1" else "n1"
    until(lambda: lab.rows(other), text="both are there")
    lab.copia(controller, "leave")
    until(lambda: lab.leader(other) == other and set(lab.rows(other)) == {other}, text="alone")
    assert lab.works(other)
    result = lab.copia(other, "leave", code=None)
    assert result.code != 0 and "last of the cluster" in result.err


@pytest.fixture
def fast():
    """Five nodes in a lab where a test may empty a node's state folder: profile fast."""
    names = [f"n{i}" for i in range(1, 6)]
    with Lab(5, bare=True) as lab:
        for node in names:
            lab.start_daemon(node)
        lab.copia("n1", "init", "--name", "five", "--profile", "fast")
        for node in names[1:4]:
            lab.join(node)
        lab.wait_controllers(3)
        yield lab


def test_lost_controller_is_replaced(fast):
    lost = by_role(fast, "controller")
    agent = by_role(fast, "agent")
    asker = next(n for n in ("n1", "n2", "n3", "n4") if n != lost)
    old = fast.rows(asker)[lost]["number"]
    fast.lab("kill", lost)
    until(lambda: fast.rows(asker).get(agent, {}).get("role") in ("controller", "leader") and
          fast.rows(asker)[lost]["role"] == "agent", text="the agent took its place")
    # Its disk was replaced: nothing is left of what it was.
    fast.lab("start", lost)
    fast.on(lost, "find", "/var/lib/copia", "-mindepth", "1", "-delete")
    fast.start_daemon(lost)
    refused = fast.join(lost, asker, code=None)
    assert refused.code != 0 and "is taken" in refused.err and "--force" in refused.err
    fast.copia(asker, "leave", lost, "--force")
    fast.join(lost, asker)
    until(lambda: fast.rows(asker).get(lost, {}).get("state") == "up", text="it is back")
    assert fast.rows(asker)[lost]["number"] > old


def test_five_controllers_and_back(fast):
    fast.join("n5")
    fast.copia("n1", "set", "controllers", "5")
    fast.wait_controllers(5)
    fast.copia("n1", "set", "controllers", "3")
    fast.wait_controllers(3)
    until(lambda: fast.works("n5"), text="commands")
    refused = fast.copia("n1", "set", "controllers", "4", code=None)
    assert refused.code != 0 and "even" in refused.err
