#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Every verb is explained everywhere.
    texts.py COPIA SCHEMA_SET COPIA.1.scd COPIA.1 COMPLETION.bash COPIAD COPIAD.8.scd

Each has help, a description, an example and described arguments in the schema; `copia VERB --help`
shows them; copia(1) has a section; completion offers the verb, its options and nothing wrong.
"""
import re
import shutil
import subprocess
import sys

TOOLS = __file__.rsplit("/tests/", 1)[0] + "/tools"
sys.path.insert(0, TOOLS)
import copia_schema  # noqa: E402

faults = []
checks = 0


def check(good, text):
    global checks
    checks += 1
    if not good:
        faults.append(text)


def plain(text):
    return " ".join(text.split())


def check_help(copia, verb):
    done = subprocess.run([copia, *verb.words.split(), "--help"], capture_output=True, text=True,
                          check=False)
    text = plain(done.stdout)
    check(done.returncode == 0, f"copia {verb.words} --help: exit {done.returncode}")
    check(text.startswith(f"Usage: {verb.usage()} "), f"copia {verb.words} --help: usage")
    check(plain(verb.description) in text, f"copia {verb.words} --help: description")
    check(verb.options.example in text, f"copia {verb.words} --help: example")
    for field in verb.args:
        check(plain(field.comment) in text, f"copia {verb.words} --help: {field.name}")
        if not field.options.positional:
            check(f"--{field.typed_name()}" in text, f"copia {verb.words} --help: {field.name}")


def check_examples(copia, verb):
    """An example is accepted as it stands: what fails is only that there is no daemon."""
    for command in re.findall(r"copia [^|&;<>()]*", verb.options.example):
        # The lab would really act, help and completion need no daemon.
        if verb.options.local:
            continue
        words = command.split("'")[0].split() + (["x"] if "'" in command else [])
        done = subprocess.run([copia] + words[1:], capture_output=True, text=True, check=False,
                              env={"COPIA_SOCKET": "/nonexistent/copia.sock"}, timeout=20,
                              stdin=subprocess.DEVNULL)
        check(done.returncode != 2, f"example of {verb.words}: {done.stderr}")


def bare(text):
    """Without what scdoc needs to set it in bold or as it stands."""
    return plain(re.sub(r"[\\*_`]", "", text))


def check_form(path):
    if shutil.which("groff"):
        done = subprocess.run(["groff", "-k", "-man", "-Tutf8", "-ww", "-z", path],
                              capture_output=True, text=True, check=False)
        check(not done.stderr, f"groff complains about the manual: {done.stderr}")


def check_manual(text, verb):
    check(bare(f"## {verb.usage()} {verb.description}") in text,
          f"copia(1) has no section for {verb.words}")
    check(bare(f"Example: {verb.options.example}") in text,
          f"copia(1) has no example for {verb.words}")
    for field in verb.options_typed:
        check(bare(f"--{field.typed_name()}") in text,
              f"copia(1): --{field.typed_name()} is missing")


def completions(script, lines):
    """What bash would offer for each line; no daemon is asked."""
    program = (f". '{script}'\n_copia_ask() {{ printf 'n1\\nn2\\n'; }}\n"
               "while IFS= read -r COMP_LINE; do\n"
               "  COMP_POINT=${#COMP_LINE}; COMP_WORDS=($COMP_LINE); COMP_CWORD=${#COMP_WORDS[@]}\n"
               "  COMPREPLY=(); _copia; printf '%s\\n' \"${COMPREPLY[*]}\"\ndone\n")
    done = subprocess.run(["bash", "-c", program], input="\n".join(lines) + "\n",
                          capture_output=True, text=True, check=False)
    check(not done.stderr, f"completion: {done.stderr}")
    return dict(zip(lines, done.stdout.split("\n")))


def check_completion(script, schema):
    first, second = {}, {}
    for verb in schema.verbs:
        words = verb.words.split()
        first.setdefault(words[0], verb)
        second[f"copia {verb.words[:-1]}"] = words[-1]
    lines = ["copia ", "copia nod", "copia drain ", "copia drain n", "copia init --profile ",
             "copia init --profile=", "copia lab ", "copia rotate ", "copia events -",
             "copia run --on n1,", "copia run -n 2 --mpi p", "copia kill -s TERM n",
             "copia run true --mp"]
    options = {f"copia {v.words} --": v for v in schema.verbs}
    got = completions(script, lines + list(options) + list(second))
    offered = got["copia "].split()
    check(sorted(offered) == sorted(first) or set(offered) == set(first),
          f"completion offers {offered}")
    for line, last in second.items():
        check(last in got[line].split(), f"completion of {line!r}: {got[line]!r}")
    for line, verb in options.items():
        if any(f.options.rest for f in verb.positionals) and not verb.options_typed:
            continue
        wanted = {"--" + f.typed_name() for f in verb.options_typed} | {"--json", "--help"}
        check(wanted <= set(got[line].split()), f"completion of {line!r}: {got[line]!r}")
    for line, wanted in [("copia nod", "nodes"), ("copia drain ", "n1 n2"),
                         ("copia drain n", "n1 n2"), ("copia init --profile ", "fast lan wan"),
                         ("copia init --profile=", "fast lan wan"),
                         ("copia rotate ", "keys certificates all"),
                         ("copia run --on n1,", "n1,all n1,n1 n1,n2"),
                         ("copia run -n 2 --mpi p", "pmix pmi1")]:
        check(got[line] == wanted, f"completion of {line!r}: {got[line]!r}, not {wanted!r}")
    check("-f" in got["copia events -"].split(), "completion knows no letters")
    check("--mpi" not in got["copia run true --mp"].split(),
          "completion offers options behind the program")


def check_daemon(copiad, source):
    """Options of the daemon, as it tells them, stand in its manual."""
    done = subprocess.run([copiad, "--help"], capture_output=True, text=True, check=True)
    with open(source, encoding="utf-8") as file:
        text = bare(file.read())
    options = re.findall(r"^ *(--[a-z-]+)", done.stdout, re.MULTILINE)
    check(len(options) > 3, "copiad --help tells no options")
    for option in options:
        check(option in text, f"copiad(8): {option} is missing")


def main():
    _, copia, set_path, source, manual, script, copiad, daemon_source = sys.argv
    schema = copia_schema.load(set_path)
    for fault in copia_schema.missing_texts(schema):
        check(False, fault)
    with open(source, encoding="utf-8") as file:
        text = bare(file.read())
    check_form(manual)
    for verb in schema.verbs:
        check_help(copia, verb)
        check_examples(copia, verb)
        check_manual(text, verb)
    check_completion(script, schema)
    check_daemon(copiad, daemon_source)
    for code, meaning in schema.exit_codes:
        check(bare(meaning) in text, f"copia(1): exit code {code}")
    print("\n".join(faults))
    print(f"{len(schema.verbs)} verbs, {checks} checks, {len(faults)} failed")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
