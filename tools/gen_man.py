#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Fill a manual page in scdoc with what the schema says: gen_man.py SCHEMA_SET TEMPLATE OUT.scd

A line @VERBS@, @OPTIONS@ or @EXIT_CODES@ of the template is replaced.
"""
import pathlib
import re
import sys

import copia_schema

# What C knows of these is in src/cli/args.c; a test compares.
COMMON = [("--json", "Print JSON: field names as in the schema, 64-bit numbers as numbers, words of "
           "an enum in small letters, bytes in hexadecimal. Streams print one object a line."),
          ("--wide", "Show all columns."),
          ("--no-header", "No headings above columns."),
          ("-h*, *--help", "Explain this verb.")]


def escape(text):
    return re.sub(r"([\\*_`#\[\]|;~<>])", r"\\\1", text)


def prose(text):
    """Paragraphs; what stands between backquotes is typed, and bold."""
    def one(paragraph):
        parts = paragraph.split("`")
        return "".join(f"*{escape(p)}*" if i % 2 and p else escape(p)
                       for i, p in enumerate(parts))
    return "\n\n".join(one(p) for p in text.split("\n"))


def entry(head, text):
    body = text.replace("\n\n", "\n\n\t")
    return f"{head}\n\t{body}\n\n"


def argument(field):
    o = field.options
    name = field.typed_name()
    if o.positional:
        head = f"_{escape(name)}_"
    else:
        letter = f"*-{o.letter}*, " if o.letter else ""
        value = field.value()
        head = f"{letter}*--{escape(name)}*" + (f" _{escape(value)}_" if value else "")
    text = prose(field.comment)
    if o.positional and o.allowed:
        text += f" One of {escape(o.allowed)}."
    if o.fallback:
        text += f" Default: {escape(o.fallback)}."
    if o.dash:
        text += f" Also typed as -{escape(field.value())}."
    return entry(head, text.strip() or "(see above)")


def verb_text(verb):
    # scdoc takes headings as they are.
    out = f"## {verb.usage()}\n\n{prose(verb.description)}\n\n"
    if verb.options.root:
        out += "Only root and the user that runs the daemon may do this.\n\n"
    for field in verb.positionals + verb.options_typed:
        out += argument(field)
    return out + f"Example: *{escape(verb.options.example)}*\n\n"


def all_verbs(schema):
    out = ""
    for name, title in copia_schema.GROUPS:
        verbs = [v for v in schema.verbs if v.options.group == name]
        if verbs:
            out += f"# {title.upper()}\n\n" + "".join(verb_text(v) for v in verbs)
    return out


def main():
    _, set_path, template, out_path = sys.argv
    schema = copia_schema.load(set_path)
    pieces = {
        "@VERBS@\n": all_verbs(schema),
        "@OPTIONS@\n": "".join(entry(f"*{name}*", prose(text)) for name, text in COMMON),
        "@EXIT_CODES@\n": "".join(entry(f"*{code}*", prose(text))
                                  for code, text in schema.exit_codes),
    }
    text = pathlib.Path(template).read_text(encoding="utf-8")
    for mark, piece in pieces.items():
        text = text.replace(mark, piece)
    text = re.sub(r"\n{3,}", "\n\n", text)
    pathlib.Path(out_path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
