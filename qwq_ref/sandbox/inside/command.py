"""Role: become another program. Nothing of Python remains."""

from __future__ import annotations

import os

from . import values


def main(material: int) -> None:
    command, variables = values.receive(material)
    os.close(material)
    try:
        os.execve(command[0], command, variables)
    except OSError as problem:
        os.write(2, f"{command[0]}: {problem.strerror}\n".encode("utf-8", "replace"))
        os._exit(127)
