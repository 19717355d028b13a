"""Role: run a function's tests, with a `candidate` that lives in another process.

The tests are trusted, and what the candidate returns is not. One message to the verdict's channel says how they end:
None, or the reason why they fail.
"""

from __future__ import annotations

import builtins
import os
import sys

from . import values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any


class _ProgramError(BaseException):
    """The program ends, or says something that is no answer."""


def main(channel: int, verdict: int, material: int) -> None:
    setup, tests, name = values.receive(material)
    os.dup2(2, 1)  # what the tests print is nobody's verdict
    try:
        reason = _run(setup, tests, name, channel)
    except BaseException as problem:  # exit() in the tests is no success either
        reason = f"the tests fail: {values.line(problem)}"
    values.send(verdict, values.message(reason))


def _run(setup: str, tests: str, name: str, channel: int) -> str | None:
    try:
        problem = values.receive(channel)
    except EOFError:
        return "the program ends while it loads"
    except ValueError as broken:
        return f"the program's answer cannot be read: {values.line(broken)}"
    if problem is not None:
        return f"the program does not load: {str(problem)[:300]}"
    module = type(sys)("tests")
    sys.modules["tests"] = module
    candidate = _Candidate(channel)
    exec(compile(setup, "<setup>", "exec"), module.__dict__)
    module.__dict__[name] = candidate  # HumanEval's problem 33 calls the function by its name
    exec(compile(tests, "<tests>", "exec"), module.__dict__)
    return _checked(module, candidate, tests.splitlines())


def _checked(module: ModuleType, candidate: _Candidate, lines: list[str]) -> str | None:
    reason = None
    if "check" not in module.__dict__:
        return "the tests define no check"
    try:
        module.__dict__["check"](candidate)
    except _ProgramError:
        pass
    except AssertionError as failed:
        reason = f"wrong answer: {_where(failed, lines)}"
    except BaseException as problem:
        reason = f"{values.line(problem)}, at: {_where(problem, lines)}"
    return candidate.ended or reason  # tests may catch any exception; a program that ended never passes


def _where(problem: BaseException, lines: list[str]) -> str:
    """Return the line of the tests that an exception passed last."""
    found, trace = "?", problem.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<tests>" and trace.tb_lineno <= len(lines):
            found = lines[trace.tb_lineno - 1]
        trace = trace.tb_next
    return " ".join(found[:200].split())


class _Candidate:
    """The program's function, called over the channel. `ended` says why no call can be answered any more."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self.ended: str | None = None

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        match self._answer(values.message((arguments, keywords))):
            case ("value", value):
                return value
            case ("raised", str(name), str(text), str(line)):
                raise _exception(name, text, line)
        self.ended = self.ended or "the program's answer cannot be read"
        raise _ProgramError

    def _answer(self, request: bytes) -> Any:
        if self.ended is None:
            try:
                values.send(self._channel, request)
                return values.receive(self._channel)
            except (EOFError, OSError):
                self.ended = "the program ends during a call"
            except ValueError as broken:
                self.ended = f"the program's answer cannot be read: {values.line(broken)}"
        return None


def _exception(name: str, text: str, line: str) -> Exception:
    """Return an exception like the program's. One that is not meant to be caught becomes one that tests can catch."""
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # UnicodeDecodeError wants more
            pass
    return RuntimeError(line)
