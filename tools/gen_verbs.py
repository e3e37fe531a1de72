#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Make the table of verbs in C: gen_verbs.py SCHEMA_SET OUT.c SCHEMA_NAME..."""
import re
import sys

import copia_schema
from strip_options import write_if_changed


def quoted(text):
    for old, new in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(old, new)
    return f'"{text}"'


def flag(value):
    return "true" if value else "false"


def c_descriptor(message):
    """copia.NodeRow -> copia__node_row__descriptor, as protobuf-c writes it."""
    def snake(name):
        # protobuf-c puts a dash of its own before each capital, but not before the first letter.
        return re.sub(r"(?<!^)([A-Z])", r"_\1", name).lower()
    return "__".join(snake(part) for part in message.full_name.split(".")) + "__descriptor"


def arg_row(field):
    o = field.options
    letter = f"'{o.letter}'" if o.letter else "0"
    return (f"\t{{ .field = {field.index}, .name = {quoted(field.typed_name())}, "
            f".value = {quoted(field.value())},\n"
            f"\t  .description = {quoted(field.comment)},\n"
            f"\t  .unit = {quoted(o.unit)}, .complete = {quoted(o.complete)}, "
            f".fallback = {quoted(o.fallback)}, .allowed = {quoted(o.allowed)},\n"
            f"\t  .least = {o.least}u, .most = {o.most}u, .letter = {letter}, "
            f".positional = {flag(o.positional)}, .rest = {flag(o.rest)},\n"
            f"\t  .required = {flag(o.required)}, .hidden = {flag(o.hidden)}, "
            f".dash = {flag(o.dash)} }},\n")


def column_row(column):
    field, inner, title, how, wide = column
    return (f"\t{{ .field = {field.index}, .inner = {inner.index if inner else -1}, "
            f".title = {quoted(title)}, .as = {quoted(how)}, .wide = {flag(wide)} }},\n")


def verb_row(schema, verb, i):
    o = verb.options
    view = "VERB_" + (verb.view or "own").upper()
    view_field = verb.reply.field(verb.view_name).index if verb.view_name else 0
    args = len(verb.request.fields)
    columns = len(schema.columns(verb))
    return (f"\t{{ .words = {quoted(o.words)}, .help = {quoted(o.help)}, "
            f".group = {quoted(o.group)},\n"
            f"\t  .description = {quoted(verb.description)},\n"
            f"\t  .example = {quoted(o.example)},\n"
            f"\t  .local = {flag(o.local)}, .leader = {flag(o.leader)}, .root = {flag(o.root)}, "
            f".stream_in = {flag(verb.stream_in)}, .stream_out = {flag(verb.stream_out)},\n"
            f"\t  .view = {view}, .view_field = {view_field},\n"
            f"\t  .request = &{c_descriptor(verb.request)}, "
            f".reply = &{c_descriptor(verb.reply)},\n"
            f"\t  .args = {f'args_{i}' if args else 'NULL'}, .arg_count = {args},\n"
            f"\t  .columns = {f'columns_{i}' if columns else 'NULL'}, "
            f".column_count = {columns} }},\n")


def table_text(schema, names):
    out = ["/* Made of schema/ by tools/gen_verbs.py. */\n", '#include "schema/verb.h"\n']
    out += [f'#include "schema/{name}.pb-c.h"\n' for name in names]
    out.append("#include <string.h>\n\n")
    for i, verb in enumerate(schema.verbs):
        if verb.request.fields:
            out.append(f"static const struct verb_arg args_{i}[] = {{\n")
            out += [arg_row(field) for field in verb.request.fields]
            out.append("};\n")
        columns = schema.columns(verb)
        if columns:
            out.append(f"static const struct verb_column columns_{i}[] = {{\n")
            out += [column_row(column) for column in columns]
            out.append("};\n")
    out.append("const struct verb verbs[] = {\n")
    out += [verb_row(schema, verb, i) for i, verb in enumerate(schema.verbs)]
    out.append("};\nconst size_t verb_count = sizeof(verbs) / sizeof(verbs[0]);\n")
    out.append("const struct verb_group verb_groups[] = {\n")
    out += [f"\t{{ {quoted(name)}, {quoted(title)} }},\n" for name, title in copia_schema.GROUPS]
    out.append("};\nconst size_t verb_group_count = sizeof(verb_groups) / "
               "sizeof(verb_groups[0]);\n")
    out.append("const struct verb_exit verb_exits[] = {\n")
    out += [f"\t{{ {code}, {quoted(text)} }},\n" for code, text in schema.exit_codes]
    out.append("};\nconst size_t verb_exit_count = sizeof(verb_exits) / sizeof(verb_exits[0]);\n")
    out.append("const struct verb *verb_find(const char *words)\n{\n"
               "\tfor (size_t i = 0; i < verb_count; i++)\n"
               "\t\tif (!strcmp(verbs[i].words, words))\n\t\t\treturn &verbs[i];\n"
               "\treturn NULL;\n}\n")
    return "".join(out)


def main():
    _, set_path, out_path, *names = sys.argv
    schema = copia_schema.load(set_path)
    write_if_changed(out_path, table_text(schema, names).encode())


if __name__ == "__main__":
    main()
