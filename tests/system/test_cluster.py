# SPDX-License-Identifier: Apache-2.0
"""Making a cluster, joining it, looking at it, leaving it."""
import re

import pytest

from world import COPIA, call, until


@pytest.fixture(autouse=True)
def whole(lab4):
    """Each test starts with all four nodes up and three controllers."""
    lab4.wait_controllers(3)
    for name in lab4.rows():
        lab4.wait_state(name, "up")


def test_every_node_sees_the_same_cluster(lab4):
    views = [{name: (r["state"], r["role"]) for name, r in lab4.rows(n).items()}
             for n in ("n1", "n2", "n3", "n4")]
    assert views[0].keys() == {"n1", "n2", "n3", "n4"}
    assert all(view == views[0] for view in views)


def test_nodes_show_facts_and_load(lab4):
    until(lambda: all(r.get("load") for r in lab4.rows().values()), text="load of all nodes")
    for row in lab4.rows().values():
        facts, load = row["facts"], row["load"]
        assert facts["cores"] >= 1 and facts["memory_bytes"] > 1 << 20
        assert facts["kernel"] and "core" in facts["topology"]
        assert set(load) >= {"r15s", "r1m", "r15m", "ut", "pg", "io", "ls", "it", "tmp_bytes",
                             "swp_bytes", "mem_bytes"}
        assert 0 <= load["ut"] <= 1 and load["mem_bytes"] > 0


def test_status_is_well(lab4):
    status = lab4.status()
    assert status["health"] == "ok" and status["nodes_up"] == 4
    assert status["leader"] == lab4.leader()
    assert status["engine"] == "raft"


def test_one_port_tcp_and_udp(lab4):
    out = lab4.on("n2", "ss", "-Hlntu").out
    ports = {line.split()[4].rsplit(":", 1)[1] for line in out.splitlines()}
    assert ports == {"26742"}, out


def test_process_titles(lab4):
    assert len(lab4.pids("n3", "copiad: shepherd")) == 1
    assert len(lab4.pids("n3", "copiad: brain")) == 1


def test_events_are_the_same_everywhere_and_in_order(lab4):
    stories = [lab4.events(n) for n in ("n1", "n4")]
    revisions = [e["revision"] for e in stories[0]]
    assert revisions == sorted(revisions)
    last = stories[1][-1]["revision"]
    assert [e["text"] for e in stories[0] if e["revision"] <= last] == \
        [e["text"] for e in stories[1]]
    assert any(e["kind"] == "node-joined" for e in stories[0])


def test_drain_and_resume(lab4):
    lab4.copia("n2", "drain", "n4", "--reason", "new disk")
    row = lab4.rows("n3")["n4"]
    assert row["state"] == "drained" and row["reason"] == "new disk"
    assert "new disk" in lab4.copia("n1", "explain", "node", "n4").out
    lab4.copia("n3", "resume", "n4")
    assert lab4.rows("n1")["n4"]["state"] == "up"


def test_leadership_moves_by_command_and_on_drain(lab4):
    old = lab4.leader()
    other = next(n for n, r in lab4.rows().items() if r["role"] == "controller")
    lab4.copia("n4", "leader", other)
    until(lambda: lab4.leader() == other, text=f"{other} leads")
    lab4.copia("n1", "drain", other)
    until(lambda: lab4.leader() not in (None, other), text="leadership left the drained node")
    lab4.copia("n1", "resume", other)
    assert old


def test_agent_cannot_lead(lab4):
    agent = next(n for n, r in lab4.rows().items() if r["role"] == "agent")
    result = lab4.copia("n1", "leader", agent, code=None)
    assert result.code != 0 and "no controller" in result.err


@pytest.mark.parametrize("kind,words", [("node", ["n2"]), ("leader", []), ("cluster", [])])
def test_explain(lab4, kind, words):
    out = lab4.copia("n4", "explain", kind, *words).out
    assert len(out.splitlines()) >= 2


def test_unknown_node_names_the_nearest(lab4):
    result = lab4.copia("n1", "drain", "n44", code=None)
    assert result.code == 4 and 'no node "n44"' in result.err and "n4" in result.err


def test_rotation_while_everything_runs(lab4):
    before = {n: r["number"] for n, r in lab4.rows().items()}
    lab4.copia("n2", "rotate", "all")
    until(lambda: sum(e["kind"] == "certificate" for e in lab4.events()) >= 4, text="certificates")
    lab4.on("n3", "ls", "/var/lib/copia/identity")
    assert {n: r["number"] for n, r in lab4.rows().items()} == before
    assert all(r["state"] == "up" for r in lab4.rows().values())
    assert any(e["kind"] == "keys-rotated" for e in lab4.events())
    # With the new certificate a session can be made anew.
    lab4.lab("kill", "n4")
    lab4.wait_state("n4", "down")
    lab4.lab("start", "n4")
    lab4.wait_state("n4", "up")


def test_init_again_is_refused(lab4):
    result = lab4.copia("n1", "init", code=None)
    assert result.code != 0 and "already in cluster" in result.err


def test_doctor_names_what_falls_away(lab4):
    reply = lab4.copia("n1", "doctor", "--json").json()
    assert reply["findings"]
    for finding in reply["findings"]:
        assert finding["level"] == "ok" or (finding["what"] and finding["effect"])


def test_ordinary_user_may_look_but_not_change(lab4):
    as_nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    assert lab4.on("n1", *as_nobody, COPIA, "nodes").out
    result = lab4.on("n1", *as_nobody, COPIA, "drain", "n2", code=None)
    assert result.code == 5 and "only root" in result.err


def test_help_needs_no_daemon():
    result = call(COPIA, "help")
    assert result.code == 0 and re.search(r"^ +nodes ", result.out, re.M)
