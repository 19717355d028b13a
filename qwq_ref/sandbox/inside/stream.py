"""Role: run a program from its standard input to its standard output."""

from __future__ import annotations

import os
import sys

from . import values


def main(material: int) -> None:
    (program,) = values.receive(material)
    os.close(material)
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    status = 1
    try:
        exec(compile(program, "<program>", "exec"), module.__dict__)
        sys.stdout.flush()
        return
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
    except BaseException as problem:
        os.write(2, f"\n{values.line(problem)}".encode("utf-8", "replace"))
    try:
        sys.stdout.flush()
    finally:
        os._exit(status & 255)
