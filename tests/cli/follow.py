#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""A follower survives the death of the brain and misses nothing: follow.py COPIA COPIAD

`copia events -f` is attached, the brain is killed, more happens: every event is printed once, in
order.
"""
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time

from daemon import Daemon

TIME_LIMIT_S = 20


def main():
    _, copia, copiad = sys.argv
    with Daemon(copiad) as daemon:
        env = {**os.environ, "COPIA_SOCKET": daemon.socket}

        def ask(*words):
            subprocess.run([copia, *words], env=env, check=True, timeout=TIME_LIMIT_S,
                           stdout=subprocess.DEVNULL)

        ask("init", "--name", "lab")
        events = queue.Queue()
        with subprocess.Popen([copia, "events", "-f", "--json"], env=env, text=True,
                              stdout=subprocess.PIPE) as follower:
            def read():
                for line in follower.stdout:
                    events.put(json.loads(line))

            threading.Thread(target=read, daemon=True).start()

            def wait_for(kind):
                seen = []
                while not seen or seen[-1]["kind"] != kind:
                    seen.append(events.get(timeout=TIME_LIMIT_S))
                return seen

            try:
                story = wait_for("cluster-made")
                ask("drain", "n1")
                story += wait_for("node-drained")
                brain = daemon.brain()
                os.kill(brain, signal.SIGKILL)
                # The new brain may not be there yet: try until it is.
                end = time.monotonic() + TIME_LIMIT_S
                while subprocess.run([copia, "resume", "n1"], env=env, check=False,
                                     capture_output=True, timeout=TIME_LIMIT_S).returncode:
                    assert time.monotonic() < end, "no new brain"
                    time.sleep(0.02)
                story += wait_for("node-resumed")
                assert daemon.brain() not in (None, brain), "the brain was not replaced"
                revisions = [e["revision"] for e in story]
                assert revisions == sorted(set(revisions)), f"doubled or out of order: {revisions}"
                assert sum(e["kind"] == "node-drained" for e in story) == 1
                assert follower.poll() is None, "the follower ended"
                print(f"{len(story)} events, each once, over the death of brain {brain}")
            finally:
                follower.terminate()


if __name__ == "__main__":
    main()
