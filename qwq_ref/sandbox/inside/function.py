"""Role: load a program, and answer calls of one of its functions.

The first message on the channel answers the loading: None, or the line of an exception. Then each message
(arguments, keywords) gets ("value", value), or ("raised", name of a built-in exception, its text, its line).
"""

from __future__ import annotations

import builtins
import os
import sys

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main(channel: int, material: int) -> None:
    program, name = values.receive(material)
    os.close(material)
    try:
        function = _loaded(program, name)
        answer = values.message(None)
    except BaseException as problem:  # of any kind: the program chooses
        values.send(channel, values.message(values.line(problem)))
        return
    while True:
        values.send(channel, answer)
        try:
            arguments, keywords = values.receive(channel)
        except EOFError:
            return
        answer = _answer(function, arguments, keywords)


def _loaded(program: str, name: str) -> Any:
    module = type(sys)("program")
    sys.modules["program"] = module  # dataclasses look for their module
    exec(compile(program, "<program>", "exec"), module.__dict__)
    if name not in module.__dict__:
        raise NameError(f"the program defines no {name}")
    return module.__dict__[name]


def _answer(function: Any, arguments: Any, keywords: Any) -> bytes:
    try:
        return values.message(("value", function(*arguments, **keywords)))
    except BaseException as problem:
        kinds = [kind.__name__ for kind in type(problem).__mro__ if getattr(builtins, kind.__name__, None) is kind]
        return values.message(("raised", kinds[0], values.text(problem), values.line(problem)))
