# SPDX-License-Identifier: Apache-2.0
"""Starting, limiting, signalling and ending tasks."""
import os
import signal
import time

import pytest

from herd import COPIAD, Herd, alive, wait_until


@pytest.fixture(scope="module")
def herd():
    with Herd() as h:
        yield h


def test_exit_code_output_and_usage_arrive(herd):
    x, out, err = herd.run(["sh", "-c", "echo out; echo err >&2; i=0; while [ $i -lt 20000 ]; "
                            "do i=$((i+1)); done; exit 7"])
    assert (x["status"], x["signal"]) == (7, 0)
    assert (out, err) == (b"out\n", b"err\n")
    assert x["user_us"] + x["system_us"] > 1000
    assert x["max_rss_bytes"] > 100_000


def test_death_by_signal_is_told_apart(herd):
    x, _, _ = herd.run(["sh", "-c", "kill -SEGV $$"])
    assert x["signal"] == signal.SIGSEGV


@pytest.mark.parametrize("argv, fields, text", [
    (["/nonexistent/x"], {}, "/nonexistent/x"),
    (["no-such-program"], {}, "no such program in PATH"),
    (["/etc/passwd"], {}, "not executable"),
    (["/etc"], {}, "is a folder"),
    (["true"], {"cwd": "/nonexistent"}, "working folder /nonexistent"),
    (["true"], {"cwd": "relative"}, "not an absolute path"),
    (["true"], {"stdout": {"mode": 2, "path": "/nonexistent/out"}}, "/nonexistent/out"),
    ([], {}, "no program"),
    (["true"], {"limits": [{"resource": 99}]}, "limit 99"),
    (["true"], {"cpus": "00" * 127 + "80"}, "CPUs"),
])
def test_what_cannot_start_says_why(herd, argv, fields, text):
    s = herd.spawn(argv, **fields)
    assert s["code"] < 0
    assert text in s["error"]


def test_wrong_files_say_what_they_are(herd, tmp_path):
    def make(name, content):
        p = tmp_path / name
        p.write_bytes(content)
        p.chmod(0o755)
        return str(p)

    with open("/bin/true", "rb") as f:
        elf = bytearray(f.read())
    own = elf[18]
    elf[18], elf[19] = (183, 0) if own == 62 else (62, 0)
    cases = [(make("arm", bytes(elf)), "wrong architecture: built for "),
             (make("text", b"hello\n"), "neither a program nor a script"),
             (make("empty", b""), "empty"),
             (make("script", b"#!/nonexistent/sh\n"), "interpreter /nonexistent/sh does not exist")]
    for path, text in cases:
        s = herd.spawn([path])
        assert s["code"] < 0 and text in s["error"], s


def test_staged_program_and_script_run_from_a_descriptor(herd, tmp_path):
    script = tmp_path / "s"
    script.write_text("#!/bin/sh\necho staged $1\n")
    script.chmod(0o755)
    for path, argv, want in (("/bin/echo", ["e", "hi"], b"hi\n"),
                             (str(script), ["s", "yes"], b"staged yes\n")):
        s = herd.spawn(argv, staged=True, exe_index=0, files=[path])
        assert s["code"] == 0, s["error"]
        herd.wait_for(lambda: herd.finished(s["task"]), what="output")
        assert herd.out(s["task"]) == want


def test_environment_descriptors_umask_and_session(herd, tmp_path):
    given = tmp_path / "given"
    given.write_text("content")
    x, out, _ = herd.run(["sh", "-c", "umask; echo $PMI_FD; cat <&$PMI_FD; echo; env | grep COPIA; "
                          "cut -d' ' -f1,5,6 /proc/$$/stat; ls /proc/$$/fd | tr '\\n' ' '"],
                         set_umask=True, umask=0o27, files=[str(given)],
                         env=["PATH=/usr/bin:/bin", "COPIA_TASK=forged"],
                         **{"pass": [{"index": 0, "env": "PMI_FD"}]})
    lines = out.decode().split("\n")
    assert lines[:3] == ["0027", "3", "content"]
    marks = {line for line in lines if line.startswith("COPIA")}
    st = os.stat(herd.state)
    assert marks == {f"COPIA_TASK={x['task']}", f"COPIA_NODE_STATE={herd.state}",
                     f"COPIA_NODE_MARK={st.st_dev:x}-{st.st_ino:x}"}
    stat = lines[6].split()
    assert stat[0] == stat[1] == stat[2], "leads its own session and group"
    assert lines[7].split() == ["0", "1", "2", "3"], "inherits nothing else"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_user_groups_and_limits(herd):
    _, out, _ = herd.run(["sh", "-c", "id -u; id -g; id -G; ulimit -n; ulimit -Hc; nice; "
                          "cat /proc/self/oom_score_adj; chrt -p $$ | head -1"],
                         set_user=True, uid=65534, gid=65533, groups=[1001, 1002], nice=3,
                         limits=[{"resource": 7, "soft": 100, "hard": 200},
                                 {"resource": 4, "soft": 0, "hard": 0}])
    lines = out.decode().split("\n")
    assert lines[:2] == ["65534", "65533"]
    assert sorted(lines[2].split()) == ["1001", "1002", "65533"]
    assert lines[3:7] == ["100", "0", "3", "0"]
    assert "SCHED_OTHER" in lines[7]


def test_open_files_limit_is_what_it_was_for_the_daemon(herd):
    _, out, _ = herd.run(["sh", "-c", "ulimit -Sn"])
    import resource
    assert int(out) == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_output_to_files(herd, tmp_path):
    p = tmp_path / "out"
    p.write_text("old\n")
    x, _, _ = herd.run(["sh", "-c", "echo new; echo err >&2"], cwd=str(tmp_path),
                       stdout={"mode": 2, "path": "out", "append": True}, stderr={"mode": 3})
    assert x["status"] == 0
    assert p.read_text() == "old\nnew\nerr\n"


def test_binding_to_a_cpu(herd):
    last = max(os.sched_getaffinity(0))
    mask = bytearray(last // 8 + 1)
    mask[last // 8] = 1 << last % 8
    _, out, _ = herd.run(["sh", "-c", "grep Cpus_allowed_list /proc/self/status"],
                         cpus=bytes(mask).hex())
    assert out.split()[1] == str(last).encode()


def test_signals_reach_the_whole_task(herd):
    s = herd.spawn(["sh", "-c", "trap 'echo got; exit 3' USR1; sleep 100 & echo $!; wait"])
    herd.wait_for(lambda: b"\n" in herd.out(s["task"]), what="pid of the child")
    child = int(herd.out(s["task"]).split()[0])
    assert alive(child)
    herd.ask("kill", {"task": s["task"], "signal": int(signal.SIGUSR1)})
    x = herd.wait("exit", lambda e: e["task"] == s["task"])
    assert x["status"] == 3
    wait_until(lambda: not alive(child), what="end of the child")


def test_grace_ends_in_kill(herd):
    s = herd.spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"])
    herd.wait_for(lambda: herd.out(s["task"]) == b"ready\n", what="ready")
    begin = time.monotonic()
    herd.ask("kill", {"task": s["task"], "grace_ms": 300})
    x = herd.wait("exit", lambda e: e["task"] == s["task"])
    assert x["signal"] == signal.SIGKILL and x["why"] == "asked"
    assert 0.28 < time.monotonic() - begin < 2


def test_kill_of_a_job_reaches_its_tasks_only(herd):
    job, other = os.urandom(16).hex(), os.urandom(16).hex()
    mine = [herd.spawn(["sleep", "100"], job=job) for _ in range(3)]
    spared = herd.spawn(["sleep", "100"], job=other)
    done = herd.ask("kill", {"job": job, "signal": 9})
    assert done["count"] == 3
    for s in mine:
        herd.wait("exit", lambda e, s=s: e["task"] == s["task"])
    assert alive(spared["pid"])
    herd.ask("kill", {"task": spared["task"], "signal": 9})
    herd.wait("exit", lambda e: e["task"] == spared["task"])


ORPHAN = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(100)
    os._exit(0)
os.wait()
time.sleep(float(sys.argv[1]))
"""


def test_what_a_task_leaves_behind_ends_with_it(herd):
    s = herd.spawn(["/usr/bin/python3", "-c", ORPHAN, "0.05"])
    herd.wait("exit", lambda e: e["task"] == s["task"])
    herd.wait_for(lambda: herd.finished(s["task"]), what="end of output")
    orphan = int(herd.out(s["task"]))
    wait_until(lambda: not alive(orphan), what="end of the orphan")


def test_children_are_kept_on_request(herd):
    s = herd.spawn(["/usr/bin/python3", "-c", ORPHAN, "0.05"], keep_children=True)
    herd.wait("exit", lambda e: e["task"] == s["task"])
    orphan = int(herd.out(s["task"]))
    assert alive(orphan)
    os.kill(orphan, signal.SIGKILL)


def test_two_hundred_tasks_at_once(herd):
    herd.run(["true"])
    batch = [herd.spawn_message(["/bin/sh", "-c", f"echo {i}"]) for i in range(200)]
    herd.request("spawn", {"tasks": batch})
    for i, m in enumerate(batch):
        s = herd.wait("spawned", lambda e, m=m: e["task"] == m["task"], 20)
        assert s["code"] == 0, s["error"]
        herd.wait("exit", lambda e, m=m: e["task"] == m["task"], 20)
        herd.wait_for(lambda m=m: herd.finished(m["task"]), 20)
        assert herd.out(m["task"]) == f"{i}\n".encode()
        herd.ask("release", {"task": m["task"]})


def test_bad_requests_get_clear_errors(herd):
    unknown = os.urandom(16).hex()
    for kind, body, text in [
            ("kill", {"task": unknown, "signal": 9}, "no such task"),
            ("kill", {"signal": 9}, "neither task nor job"),
            ("kill", {"task": unknown, "signal": 999}, "does not exist"),
            ("consume", {"task": unknown, "stream": 1, "upto": 5}, "no such task"),
            ("release", {"task": "0011"}, "16 bytes")]:
        done = herd.ask(kind, body)
        assert done["code"] < 0 and text in done["error"], done
    s = herd.spawn(["sleep", "100"])
    again = herd.spawn_message(["true"])
    again["task"] = s["task"]
    herd.request("spawn", {"tasks": [again]})
    assert "exists" in herd.wait("spawned", lambda e: e["task"] == s["task"])["error"]
    assert "still runs" in herd.ask("release", {"task": s["task"]})["error"]
    done = herd.ask("consume", {"task": s["task"], "stream": 1, "upto": 5})
    assert "only 0 bytes" in done["error"]
    herd.ask("kill", {"task": s["task"], "signal": 9})
    herd.wait("exit", lambda e: e["task"] == s["task"])


def test_second_daemon_on_the_same_state_names_the_first(herd):
    import subprocess
    r = subprocess.run([COPIAD, "--state", herd.state, "--run", herd.folder + "/run2", "--port",
                        "1"], capture_output=True, text=True, timeout=10)
    assert r.returncode == 1
    assert f"in use by copiad {herd.pid}" in r.stderr


def test_facts_tell_what_works(herd):
    facts = {f["name"]: f for f in herd.hello["facts"]}
    assert {"realtime", "mlock", "cgroup", "nofile", "oom", "users", "heartbeat4"} <= set(facts)
    for f in facts.values():
        assert f["detail"]
        assert f["ok"] or (f["loss"] and f["remedy"])


def test_memory_limit_is_enforced_and_told(herd):
    facts = {f["name"]: f for f in herd.hello["facts"]}
    if "memory yes" not in facts["cgroup-limits"]["detail"]:
        pytest.skip("no memory controller here")
    x, _, _ = herd.run(["/usr/bin/python3", "-c", "b = bytearray(200 << 20); print(len(b))"],
                       cgroup={"memory_bytes": 32 << 20, "required": True}, seconds=30)
    assert x["signal"] == signal.SIGKILL and x["out_of_memory"]


def test_nothing_is_left_after_the_daemon_stops():
    with Herd() as h:
        s = h.spawn(["/usr/bin/python3", "-c", ORPHAN, "100"])
        h.wait_for(lambda: b"\n" in h.out(s["task"]), what="orphan")
        orphan = int(h.out(s["task"]))
        groups = open(h.state + "/cgroups").read().split("\n")
        h.process.terminate()
        h.wait("stopping")
        x = h.wait("exit")
        assert x["why"] == "daemon stopped"
        h.link.close()
        assert h.process.wait(15) == 0
        assert not alive(orphan) and not alive(s["pid"])
        for line in filter(None, groups):
            assert not os.path.exists(line.split()[1])
