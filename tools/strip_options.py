#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Remove everything but messages and enums from a descriptor set: strip_options.py FULL PLAIN.

protobuf-c would otherwise include google/protobuf/descriptor.pb-c.h, which nobody packages, for
the custom options, and would make remote calls of the services, which have their own tables.
The files are also put into a folder, so that C says #include "schema/NAME.pb-c.h".
"""
import pathlib
import sys

from google.protobuf import descriptor_pb2

OPTIONS = ("copia_options.proto", "google/protobuf/descriptor.proto")


def strip_message(message):
    message.ClearField("options")
    for field in message.field:
        # `packed` and the like have no use in proto3 beyond their defaults.
        field.ClearField("options")
        # protobuf-c 1.4 does not know `optional`; what stays is a oneof of one field, in which
        # `_NAME_case` tells whether it is set, with every release of protobuf-c.
        field.ClearField("proto3_optional")
    for inner in message.nested_type:
        keep_map = inner.options.map_entry
        strip_message(inner)
        if keep_map:
            inner.options.map_entry = True
    for enum in message.enum_type:
        strip_enum(enum)


def strip_enum(enum):
    enum.ClearField("options")
    for value in enum.value:
        value.ClearField("options")


def strip_file(file):
    for name in ("options", "service", "extension", "source_code_info"):
        file.ClearField(name)
    file.name = "schema/" + file.name
    kept = ["schema/" + d for d in file.dependency if d not in OPTIONS]
    file.ClearField("dependency")
    file.dependency.extend(kept)
    for message in file.message_type:
        strip_message(message)
    for enum in file.enum_type:
        strip_enum(enum)


def write_if_changed(path, content):
    """Leave an equal file untouched, so that nothing that depends on it is made again."""
    path = pathlib.Path(path)
    if not path.exists() or path.read_bytes() != content:
        path.write_bytes(content)


def main():
    full = descriptor_pb2.FileDescriptorSet.FromString(pathlib.Path(sys.argv[1]).read_bytes())
    plain = descriptor_pb2.FileDescriptorSet()
    for file in full.file:
        if file.name in OPTIONS:
            continue
        strip_file(file)
        plain.file.append(file)
    write_if_changed(sys.argv[2], plain.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
