# SPDX-License-Identifier: Apache-2.0
"""The schema as the generators see it: verbs with their arguments and columns, read from a
descriptor set with options and source comments. Mistakes in the schema end the build here."""
import re
import sys

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# Headings of `copia help` and of the man page, in this order.
GROUPS = [
    ("cluster", "The cluster"),
    ("programs", "Programs"),
    ("insight", "What is going on"),
    ("lab", "A virtual cluster on this machine"),
    ("command", "This command"),
]
PLACEHOLDERS = {"verb": "VERB", "node": "NODE", "nodes": "NODES", "job": "JOB", "lab": "LAB", "labnode": "NODE",
                "file": "FILE", "folder": "FOLDER", "host": "HOST"}
UNITS = {"": None, "ms": "TIME", "bytes": "SIZE"}
AS = ("", "size", "duration", "percent", "time", "id")
VIEWS = ("", "table", "fields", "text", "lines")
FD = descriptor_pb2.FieldDescriptorProto
INTEGERS = {FD.TYPE_INT32, FD.TYPE_INT64, FD.TYPE_UINT32, FD.TYPE_UINT64, FD.TYPE_SINT32,
            FD.TYPE_SINT64, FD.TYPE_FIXED32, FD.TYPE_FIXED64, FD.TYPE_SFIXED32, FD.TYPE_SFIXED64}


class SchemaError(Exception):
    pass


def clean_comment(location):
    """The comment above, else the one behind; lines joined, empty lines part paragraphs."""
    if location is None:
        return ""
    text = location.leading_comments or location.trailing_comments
    if re.match(r"\s*-{8,}", text):
        text = ""
    paragraphs = re.split(r"\n\s*\n", text.strip())
    return "\n".join(" ".join(p.split()) for p in paragraphs)


class Field:
    """One field of a message, with our options and its comment."""

    def __init__(self, proto, options, comment, index, message):
        self.proto, self.options, self.comment = proto, options, comment
        self.index, self.message, self.name = index, message, proto.name
        self.repeated = proto.label == FD.LABEL_REPEATED
        self.is_flag = proto.type == FD.TYPE_BOOL and not self.repeated

    def value(self):
        """What stands for the value in help texts."""
        o = self.options
        if self.is_flag:
            return ""
        if o.value:
            return o.value
        if o.allowed:
            return o.allowed
        if o.unit:
            return UNITS[o.unit]
        if o.complete:
            return PLACEHOLDERS[o.complete]
        numbers = INTEGERS | {FD.TYPE_DOUBLE, FD.TYPE_FLOAT}
        return "N" if self.proto.type in numbers else "TEXT"

    def typed_name(self):
        if self.options.name:
            return self.options.name
        if self.options.positional:
            return self.name.upper().replace("_", "-")
        return self.name.replace("_", "-")


class Message:
    def __init__(self, proto, full_name):
        self.proto, self.full_name, self.fields = proto, full_name, []

    def field(self, name):
        for field in self.fields:
            if field.name == name:
                return field
        raise SchemaError(f"{self.full_name} has no field {name}")


class Verb:
    def __init__(self, method, options, comment, request, reply):
        self.options, self.description = options, comment
        self.words, self.request, self.reply = options.words, request, reply
        self.stream_in, self.stream_out = method.client_streaming, method.server_streaming
        self.view, _, self.view_name = options.view.partition(":")

    @property
    def args(self):
        return [f for f in self.request.fields if not f.options.hidden]

    @property
    def options_typed(self):
        return [f for f in self.args if not f.options.positional]

    @property
    def positionals(self):
        return [f for f in self.args if f.options.positional]

    def usage(self):
        parts = ["copia", self.words]
        if self.options_typed:
            parts.append("[OPTIONS]")
        for f in self.positionals:
            name = f.typed_name()
            if f.repeated and not f.options.rest:
                name += "…"
            parts.append(name if f.options.required else f"[{name}]")
        return " ".join(parts)


class Schema:
    def __init__(self, data):
        full = self._parse(data)
        self.messages, self.verbs, files = {}, [], []
        self.exit_codes = []  # (code, text)
        for file in full.file:
            if file.package == "copia":
                files.append(file)
                self._read_messages(file)
        for file in files:
            self._read_services(file)
        order = {name: i for i, (name, _) in enumerate(GROUPS)}
        self.verbs.sort(key=lambda v: order[v.options.group])
        self._check()

    def _parse(self, data):
        """Read the set knowing our options, so that they are fields and not unknown bytes."""
        pool = descriptor_pool.Default()
        for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
            if file.name == "copia_options.proto":
                pool.AddSerializedFile(file.SerializeToString())
        self._verb_option = pool.FindExtensionByName("copia.verb")
        self._arg_option = pool.FindExtensionByName("copia.arg")
        factory = message_factory.MessageFactory(pool)
        for option, owner in ((self._verb_option, descriptor_pb2.MethodOptions),
                              (self._arg_option, descriptor_pb2.FieldOptions)):
            factory.GetPrototype(option.message_type)
            owner.RegisterExtension(option)
        return descriptor_pb2.FileDescriptorSet.FromString(data)

    def _read_messages(self, file):
        comments = {tuple(l.path): l for l in file.source_code_info.location}
        for i, proto in enumerate(file.message_type):
            self._read_message(proto, f"{file.package}.{proto.name}", comments, (4, i))
        for i, enum in enumerate(file.enum_type):
            if enum.name == "ExitCode":
                self.exit_codes = [(value.number, clean_comment(comments.get((5, i, 2, j))))
                                   for j, value in enumerate(enum.value)]

    def _read_message(self, proto, full_name, comments, path):
        message = Message(proto, full_name)
        # protobuf-c sorts its field table by number; the index is into that table.
        numbers = sorted(f.number for f in proto.field)
        for i, f in enumerate(proto.field):
            message.fields.append(
                Field(f, f.options.Extensions[self._arg_option],
                      clean_comment(comments.get(path + (2, i))), numbers.index(f.number), message))
        self.messages[full_name] = message
        for i, inner in enumerate(proto.nested_type):
            self._read_message(inner, f"{full_name}.{inner.name}", comments, path + (3, i))

    def _read_services(self, file):
        comments = {tuple(l.path): l for l in file.source_code_info.location}
        for i, service in enumerate(file.service):
            for j, method in enumerate(service.method):
                options = method.options.Extensions[self._verb_option]
                if not options.words:
                    continue
                if options.group not in dict(GROUPS):
                    raise SchemaError(f"{options.words}: group {options.group!r} is not one of "
                                      + ", ".join(n for n, _ in GROUPS))
                self.verbs.append(
                    Verb(method, options, clean_comment(comments.get((6, i, 2, j))),
                         self.messages[method.input_type.lstrip(".")],
                         self.messages[method.output_type.lstrip(".")]))

    def row_message(self, verb):
        """The message whose fields are the columns."""
        if verb.view != "table":
            return verb.reply
        field = verb.reply.field(verb.view_name)
        return self.messages[field.proto.type_name.lstrip(".")]

    def columns(self, verb):
        """(field, inner field or None, title, as, wide) of what a reply shows."""
        found = []
        if verb.view not in ("table", "fields", "lines"):
            return found
        for field in self.row_message(verb).fields:
            if field.proto.type != FD.TYPE_MESSAGE:
                found.append(self._column(field, None, field.options.show == "-"))
                continue
            if field.repeated:
                continue
            chosen = field.options.show.split()
            for inner in self.messages[field.proto.type_name.lstrip(".")].fields:
                if inner.proto.type != FD.TYPE_MESSAGE:
                    wide = inner.name not in chosen or inner.options.show == "-"
                    found.append(self._column(field, inner, wide))
        return found

    @staticmethod
    def _column(field, inner, wide):
        f = inner or field
        title = f.options.show
        if title in ("", "-"):
            title = re.sub(r"_(ms|bytes)$", "", f.name).replace("_", " ").upper()
        how = getattr(f.options, "as")
        if not how and f.proto.type != FD.TYPE_STRING:
            how = {"ms": "duration", "bytes": "size"}.get(f.name.rpartition("_")[2], "")
        return field, inner, title, how, wide

    def _check(self):
        seen = set()
        for verb in self.verbs:
            try:
                self._check_verb(verb)
            except SchemaError as error:
                raise SchemaError(f"verb {verb.words!r}: {error}") from None
            if verb.words in seen:
                raise SchemaError(f"verb {verb.words!r} is there twice")
            seen.add(verb.words)

    def _check_verb(self, verb):
        if verb.view not in VIEWS:
            raise SchemaError(f"view {verb.view!r} is not known")
        if verb.view in ("table", "text"):
            field = verb.reply.field(verb.view_name)
            wanted = FD.TYPE_MESSAGE if verb.view == "table" else FD.TYPE_STRING
            if field.proto.type != wanted or (verb.view == "table" and not field.repeated):
                raise SchemaError(f"{verb.view_name} cannot be shown as {verb.view}")
        names, letters, rests = set(), set(), 0
        for f in verb.args:
            o = f.options
            if f.proto.type == FD.TYPE_MESSAGE:
                raise SchemaError(f"field {f.name} is a message: mark it hidden")
            if o.unit not in UNITS:
                raise SchemaError(f"field {f.name}: unit {o.unit!r} is not known")
            if o.complete and o.complete not in PLACEHOLDERS:
                raise SchemaError(f"field {f.name}: complete {o.complete!r} is not known")
            if f.typed_name() in names or (o.letter and o.letter in letters):
                raise SchemaError(f"field {f.name}: its name or letter is taken")
            if not o.positional and f.typed_name() in ("json", "help", "wide", "no-header"):
                raise SchemaError(f"field {f.name}: every verb has --{f.typed_name()} already")
            if len(o.letter) > 1 or o.letter == "h":
                raise SchemaError(f"field {f.name}: letter {o.letter!r} cannot be used")
            names.add(f.typed_name())
            letters.add(o.letter)
            rests += o.positional and f.repeated
        if rests > 1:
            raise SchemaError("more than one repeated positional")
        for _, _, title, how, _ in self.columns(verb):
            if how not in AS:
                raise SchemaError(f"column {title}: as {how!r} is not known")


def missing_texts(schema):
    """What a reader of help and manual would miss; a test wants this empty."""
    for verb in schema.verbs:
        for what, text in (("help", verb.options.help), ("example", verb.options.example),
                           ("a comment above the rpc", verb.description)):
            if not text:
                yield f"{verb.words}: {what} is missing"
        if verb.options.help.endswith("."):
            yield f"{verb.words}: help ends with a full stop"
        if f"copia {verb.words}" not in verb.options.example:
            yield f"{verb.words}: the example does not use the verb"
        for field in verb.args:
            if not field.comment:
                yield f"{verb.words}: field {field.name} has no comment"


def load(path):
    try:
        with open(path, "rb") as file:
            return Schema(file.read())
    except SchemaError as error:
        sys.exit(f"schema: {error}")
