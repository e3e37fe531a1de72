#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""What the command says, compared letter by letter.
    transcripts.py [--update] [--daemon COPIAD] COPIA FILE...

A transcript is a list of
    $ copia WORDS…            a shell command; `$ tty 60: copia …` runs it on a terminal of 60 columns
    what it prints            both outputs, standard error behind standard output
    [exit 2]                  where it is not 0
and lines that begin with "#: " between them. Tokens are shown as TOKEN. --update writes what came instead of comparing.
Without --daemon there is none to talk to; with it each transcript gets a fresh one of its own.
"""
import argparse
import difflib
import fcntl
import os
import pathlib
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios

from daemon import Daemon

TIME_LIMIT_S = 20


def environment(copia, folder):
    env = {"PATH": f"{pathlib.Path(copia).resolve().parent}:/usr/bin:/bin", "LC_ALL": "C.UTF-8",
           "TZ": "UTC", "HOME": folder, "TERM": "xterm",
           "COPIA_SOCKET": "/nonexistent/copia.sock"}
    # Sanitizers and coverage of the caller hold here, too.
    return {**{k: v for k, v in os.environ.items() if k.endswith("_OPTIONS")}, **env}


def run_plain(command, env, folder):
    done = subprocess.run(["sh", "-c", command], env=env, cwd=folder, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=TIME_LIMIT_S, check=False)
    return (done.stdout + done.stderr).decode(errors="replace"), done.returncode


def run_on_terminal(command, columns, env, folder):
    mine, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(["sh", "-c", command], env=env, cwd=folder, stdin=subprocess.DEVNULL,
                          stdout=theirs, stderr=theirs) as child:
        os.close(theirs)
        got = b""
        while True:
            try:
                more = os.read(mine, 65536)
            except OSError:  # all ends of the other side are closed
                break
            if not more:
                break
            got += more
        os.close(mine)
        code = child.wait(TIME_LIMIT_S)
    return got.decode(errors="replace").replace("\r\n", "\n").replace("\x1b", "\\e"), code


def run(command, env, folder):
    terminal = re.match(r"tty (\d+): (.*)", command)
    if terminal:
        text, code = run_on_terminal(terminal[2], int(terminal[1]), env, folder)
    else:
        text, code = run_plain(command, env, folder)
    # Secrets and addresses differ from run to run.
    text = re.sub(r"copia1-[0-9a-z]{20,}(@\S+)?", lambda m: "TOKEN@HOST" if m[1] else "TOKEN", text)
    if text and not text.endswith("\n"):
        text += "[no line break]\n"
    return text + (f"[exit {code}]\n" if code else "")


def replay(path, env):
    """The transcript as it would be written now. A backslash at the end goes on in the next line."""
    made, count = "", 0
    with tempfile.TemporaryDirectory() as folder:
        lines = iter(path.read_text(encoding="utf-8").splitlines(keepends=True))
        for line in lines:
            if line.startswith("#: "):
                made += line
            if not line.startswith("$ "):
                continue
            made += line
            command = line[2:]
            while command.endswith("\\\n"):
                more = next(lines)
                made += more
                command = command[:-2] + more
            made += run(command.rstrip("\n"), env, folder)
            count += 1
    return made, count


def compare(path, made, update):
    """True when the transcript is as it should be."""
    old = path.read_text(encoding="utf-8")
    if update:
        path.write_text(made, encoding="utf-8")
    elif made != old:
        sys.stdout.writelines(difflib.unified_diff(
            old.splitlines(keepends=True), made.splitlines(keepends=True),
            f"{path.name} (expected)", f"{path.name} (now)"))
        return False
    return True


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--update", action="store_true")
    options.add_argument("--daemon")
    options.add_argument("copia")
    options.add_argument("files", nargs="+", type=pathlib.Path)
    chosen = options.parse_args()
    good = True
    for path in chosen.files:
        with tempfile.TemporaryDirectory() as home:
            env = environment(chosen.copia, home)
            if chosen.daemon:
                with Daemon(chosen.daemon) as daemon:
                    env["COPIA_SOCKET"] = daemon.socket
                    made, count = replay(path, env)
            else:
                made, count = replay(path, env)
        good = compare(path, made, chosen.update) and count > 0 and good
        print(f"{path.name}: {count} commands")
    sys.exit(not good)


if __name__ == "__main__":
    main()
