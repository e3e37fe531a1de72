# SPDX-License-Identifier: Apache-2.0
"""Tokens and joining: what must work, and every way in which it must not."""
import re
import time

import pytest

from world import COPIA, Lab, until


@pytest.fixture(scope="module")
def pair():
    """A cluster of n1 alone, and three daemons in no cluster. Nothing was joined by the lab."""
    with Lab(4, bare=True) as lab:
        for node in ("n1", "n2", "n3", "n4"):
            lab.on(node, "sh", "-c", f"setsid {COPIA}d </dev/null >/tmp/log 2>&1 &")
            until(lambda n=node: lab.copia(n, "status", code=None).code == 0, text=f"{node} serves")
        lab.copia("n1", "init", "--name", "one")
        yield lab


def address(lab, node):
    out = lab.on(node, "ip", "-4", "-o", "addr", "show", "scope", "global").out
    return re.search(r"inet ([0-9.]+)/", out).group(1)


def token(lab, *words):
    return lab.copia("n1", "token", *words).out.split()[0]


def join(lab, node, target, *words, **options):
    return lab.copia(node, "join", target, *words, **options)


def test_not_in_a_cluster_is_said(pair):
    result = pair.copia("n2", "nodes", code=None)
    assert result.code != 0 and "in no cluster" in result.err and "copia join" in result.err


def test_expired_token(pair):
    made = time.monotonic()
    t = token(pair, "--expires", "1s")
    until(lambda: time.monotonic() > made + 1.5, text="the token's second is over")
    result = join(pair, "n2", f"{t}@{address(pair, 'n1')}", code=None)
    assert result.code != 0 and "expired" in result.err


def test_wrong_token(pair):
    t = token(pair)
    mistyped = t[:-3] + ("abc" if t[-3:] != "abc" else "bcd")
    result = join(pair, "n2", f"{mistyped}@{address(pair, 'n1')}", code=None)
    assert result.code != 0 and "mistyped" in result.err
    result = join(pair, "n2", f"rubbish@{address(pair, 'n1')}", code=None)
    assert result.code != 0 and "token" in result.err


def test_token_of_another_cluster(pair):
    pair.copia("n4", "init", "--name", "two")
    foreign = pair.copia("n4", "token").out.split()[0]
    result = join(pair, "n2", f"{foreign}@{address(pair, 'n1')}", code=None)
    assert result.code != 0 and "another cluster" in result.err


def test_host_that_does_not_answer(pair):
    result = join(pair, "n2", f"{token(pair)}@{address(pair, 'n2')}:9", "--timeout", "2s", code=None)
    assert result.code != 0 and result.err


def test_join_by_address_then_token_is_used(pair):
    t = token(pair)
    result = join(pair, "n2", f"{t}@{address(pair, 'n1')}")
    assert "one" in result.out
    assert pair.rows("n2")["n2"]["state"] == "up"
    result = join(pair, "n3", f"{t}@{address(pair, 'n1')}", code=None)
    assert result.code != 0 and "used already, by node n2" in result.err


def test_name_taken(pair):
    result = join(pair, "n3", f"{token(pair)}@{address(pair, 'n1')}", "--node", "n2", code=None)
    assert result.code != 0 and "name n2 is taken" in result.err


def test_join_by_name_through_an_agent_from_standard_input(pair):
    """Any member admits; the secret does not stand in the list of processes."""
    result = join(pair, "n3", "-", stdin=f"{token(pair)}@n2\n")
    assert "one" in result.out
    assert set(pair.rows("n3")) == {"n1", "n2", "n3"}


def test_already_joined(pair):
    result = join(pair, "n3", f"{token(pair)}@{address(pair, 'n1')}", code=None)
    assert result.code != 0 and "already in cluster" in result.err


def test_leave_and_join_again(pair):
    pair.copia("n3", "leave")
    until(lambda: "n3" not in pair.rows("n1"), text="n3 is gone")
    until(lambda: "in no cluster" in pair.copia("n3", "nodes", code=None).err, text="n3 knows")
    join(pair, "n3", f"{token(pair)}@{address(pair, 'n1')}")
    numbers = {n: r["number"] for n, r in pair.rows("n1").items()}
    assert numbers["n3"] == max(numbers.values())


def test_token_is_in_no_log(pair):
    t = token(pair)
    join(pair, "n3", f"{t}@{address(pair, 'n1')}", code=None)
    for node in ("n1", "n3"):
        assert t[8:40] not in pair.on(node, "cat", "/tmp/log").out
