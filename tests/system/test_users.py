# SPDX-License-Identifier: Apache-2.0
"""Whose tasks they are: the asking user's, with its groups, umask and limits, and never more."""
import shutil

import pytest

from world import COPIA, Running, fails, shared_folder, until

SECOND = 31234  # a user that no passwd file knows


def user(uid, *groups):
    return ("setpriv", "--reuid", uid, "--regid", uid,
            *(("--groups", ",".join(groups)) if groups else ("--clear-groups",)),
            "env", "HOME=/")


@pytest.fixture(scope="module")
def lab(lab3):
    lab3.whole()
    return lab3


@pytest.fixture
def shared():
    path = shared_folder()
    yield path
    shutil.rmtree(path)


@pytest.mark.parametrize("uid,groups", [(65534, ()), (65534, ("5", "20")),
                                        (SECOND, ("7", "12", "40"))])
def test_user_and_groups(lab, uid, groups):
    """On the node of the asker and on another one, by run and by exec."""
    numbers = {str(uid), *groups}
    for words in (("run", "--on", "n[1-2]"), ("exec", "--plain", "n[1-2]")):
        out = lab.on("n1", *user(uid, *groups), COPIA, *words, "sh", "-c",
                     "echo $(id -u) $(id -g) $(id -G)").out.splitlines()
        assert len(out) == 2
        for line in out:
            own, group, *every = line.split()
            assert (own, group, set(every)) == (str(uid), str(uid), numbers), line


def test_groups_given_up(lab):
    """A process that dropped groups of its user does not get them back."""
    out = lab.on("n1", "setpriv", "--groups", "0", COPIA, "run", "--on", "n2", "id", "-G").out
    assert out == "0\n"


def test_no_capabilities(lab):
    out = lab.on("n1", *user(65534), COPIA, "run", "--on", "n[1-2]", "grep", "-E",
                 "Cap(Eff|Prm|Inh|Amb)", "/proc/self/status").out
    assert {line.split()[1] for line in out.splitlines()} == {"0" * 16}


def test_umask_and_limits(lab):
    out = lab.on("n1", *user(65534), "sh", "-c",
                 f"umask 027; ulimit -n 123; ulimit -c 0; ulimit -s 4096; "
                 f"exec {COPIA} run --on n[1-2] sh -c 'umask; ulimit -n; ulimit -c; ulimit -s'").out
    assert sorted(out.split()) == sorted(["0027", "123", "0", "4096"] * 2)


def test_rights_are_the_users(lab, shared):
    (shared / "secret").write_text("secret")
    (shared / "secret").chmod(0o600)
    result = lab.on("n1", *user(65534), COPIA, "run", "--on", "n2", "cat", shared / "secret",
                    code=None)
    assert result.code == 1 and "Permission denied" in result.err
    result = lab.on("n1", *user(65534), COPIA, "run", "--stage", shared / "secret", "true",
                    code=None)
    assert result.code not in (0, None) and "Permission denied" in result.err


def test_cached_file_of_another_user(lab, shared):
    """Content in the cache of a node is no way round a file's permissions."""
    (shared / "s").write_text("secret" * 100)
    (shared / "s").chmod(0o600)
    lab.copia("n1", "run", "--on", "n2", "--stage", shared / "s", "true")
    result = lab.on("n2", *user(65534), "sh", "-c", "cat /var/lib/copia/cache/*", code=None)
    assert result.code != 0 and "secret" not in result.out


def test_root_refused(lab):
    lab.copia("n1", "set", "root-tasks", "off")
    try:
        for verb in (("run", "true"), ("run", "--on", "n2", "true"), ("exec", "n2", "true")):
            fails(lab.copia("n1", *verb, code=None), 125, "tasks of root are not allowed",
                  "copia set root-tasks on")
        until(lambda: lab.copia("n3", "run", "true", code=None).code == 125,
              text="every node knows it")
        assert lab.on("n1", *user(65534), COPIA, "run", "--on", "n2", "id", "-u").out == "65534\n"
    finally:
        lab.copia("n1", "set", "root-tasks", "on")
    until(lambda: lab.copia("n1", "run", "--on", "n2", "true", code=None).code == 0,
          text="allowed again")


def test_users_own_daemon(lab):
    """copiad of an ordinary user: a cluster of its own beside the machine's, for this user."""
    own = user(65534)
    env = ("COPIA_SOCKET=/tmp/own/run/copia.sock",)
    lab.on("n3", "sh", "-c", "mkdir -p /tmp/own && chown 65534:65534 /tmp/own")
    lab.on("n3", *own, "sh", "-c",
           f"setsid {COPIA}d --state /tmp/own/state --run /tmp/own/run --port 27001 "
           "</dev/null >/tmp/own/log 2>&1 & echo $! >/tmp/own/pid")

    def copia(*words, who=own, **options):
        return lab.on("n3", *who, *env, COPIA, *words, **options)
    try:
        until(lambda: copia("status", code=None).code == 0, text="it serves")
        copia("init", "--name", "own")
        until(lambda: copia("run", "true", code=None).code == 0, text="it runs programs")
        assert copia("run", "-n", "2", "id", "-u").out == "65534\n" * 2
        assert copia("status", "--json").json()["cluster"] == "own"
        doctor = copia("doctor", code=None)
        assert "root" in doctor.out, doctor
        other = copia("run", "true", who=user(SECOND), code=None)
        assert other.code != 0 and other.err, other
        with Running(lab, "n3", *own, *env, COPIA, "run", "sleep", "1006"):
            until(lambda: lab.pids("n3", "sleep 1006"), text="a task runs")
            lab.on("n3", "sh", "-c", "kill -KILL $(cat /tmp/own/pid)")
            until(lambda: not lab.pids("n3", "sleep 1006"), text="no orphan")
    finally:
        lab.on("n3", "sh", "-c", "kill -KILL $(cat /tmp/own/pid)", code=None)
    assert lab.rows("n3")["n3"]["state"] == "up"
