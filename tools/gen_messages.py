#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Make protobuf-c messages: gen_messages.py PROTOC PROTOC_GEN_C PLAIN_SET OUT_FOLDER NAME...

Files that did not change keep their time, so that a change in one schema file compiles only what
uses it.
"""
import pathlib
import subprocess
import sys
import tempfile

from strip_options import write_if_changed


def main():
    protoc, plugin, plain_set, out, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        # Through protoc and not protoc-c, which newer releases call deprecated.
        subprocess.run(
            [protoc, f"--plugin=protoc-gen-c={plugin}", f"--descriptor_set_in={plain_set}",
             f"--c_out={folder}"] + [f"schema/{name}.proto" for name in names], check=True)
        for name in names:
            for ending in (".pb-c.c", ".pb-c.h"):
                made = pathlib.Path(folder, "schema", name + ending).read_bytes()
                write_if_changed(pathlib.Path(out, name + ending), made)


if __name__ == "__main__":
    main()
