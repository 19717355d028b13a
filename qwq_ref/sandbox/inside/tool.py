"""Role: run another program on some files, and give back its status, its output and some of its files."""

from __future__ import annotations

import os

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_MOST_BYTES = 1 << 23  # of a file that is given back
_INPUT, _OUTPUT = "standard-input", "standard-output"


def main(material: int) -> None:
    """Write (status, content by name) to the standard output, which the program does not get."""
    command, variables, files, links, given, wanted = values.receive(material)
    os.close(material)
    os.set_inheritable(1, False)
    for name, content in {**files, _INPUT: given}.items():
        with open(_made(name), "wb") as file:
            file.write(content)
    for name, target in links.items():
        os.symlink(target, _made(name))
    status = _run(command, variables)
    found = {name: _content(name) for name in wanted}
    values.send(1, values.message((status, {**found, "": _content(_OUTPUT)})))


def _made(name: str) -> str:
    """Return a name, after making its folder."""
    if os.path.dirname(name):
        os.makedirs(os.path.dirname(name), exist_ok=True)
    return name


def _run(command: list[str], variables: dict[str, str]) -> int:
    """Return the status of a program; that of a signal is 128 and its number, and 127 stands for none that starts."""
    opens: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, _INPUT, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, _OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
    ]
    os.environ.clear()
    os.environ.update(variables)  # the search for the program takes PATH of these
    try:
        pid = os.posix_spawnp(command[0], command, variables, file_actions=opens)
    except OSError as problem:
        os.write(2, f"{command[0]}: {problem.strerror}\n".encode("utf-8", "replace"))
        return 127
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)


def _content(name: str) -> bytes | None:
    """Return the content of a file: None if there is none. A link or a device is none."""
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            return file.read(_MOST_BYTES)
    except OSError:
        return None
