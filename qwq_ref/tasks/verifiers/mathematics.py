"""The verifier of mathematics: the last \\boxed{} of an answer, compared with a reference answer by math-verify.

math-verify (the extra `eval`) decides whether two expressions are equal. Its time-outs need SIGALRM, which only the
main thread may use, and SymPy can take all memory. So a worker process compares, one text after another. A worker that
hangs or dies is replaced.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from ...errors import UsageError, printable
from ...sandbox.inside import values
from .extract import answer as after_reasoning
from .messages import message
from .verdict import Verdict

INSTALL = "pip install 'qwq_ref[eval]'"
MOST_CHARS = 1000
_BOX = re.compile(r"\\boxed\s*(?=\{)")
_BRACKET = re.compile(r"\\.|[{}]", re.DOTALL)
_TEXT = re.compile(r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_START_SECONDS = 60.0  # the usual start takes two
_PATIENCE = 5.0  # seconds of the clock for each one of the processor's: a busy machine gives a small share
_START = "import sys; sys.path[:] = {path!r}; from qwq_ref.tasks.verifiers.math_worker import main; main({fd})"


@dataclass(frozen=True)
class Box:
    """The content of a \\boxed{}; None if its bracket is never closed."""

    content: str | None


def boxes(text: str) -> list[Box]:
    """Return the boxes of a text in order, by counting brackets in one pass.

    An escaped bracket does not count. A box within a closed box is a part of its content.
    """
    starts = {match.end() for match in _BOX.finditer(text)}
    closed: dict[int, int] = {}
    open_brackets: list[int] = []
    for match in _BRACKET.finditer(text):
        if match[0] == "{":
            open_brackets.append(match.start())
        elif match[0] == "}" and open_brackets:
            closed[open_brackets.pop()] = match.start()
    found, end = [], -1
    for start in sorted(starts):
        if start > end:
            found.append(Box(text[start + 1 : closed[start]] if start in closed else None))
            end = closed.get(start, end)
    return found


def verify(gold: str, completion: str, *, seconds: float = 10) -> Verdict:
    """Judge the last box of a completion, after </think>, by a reference answer in LaTeX, such as "\\frac{1}{2}".

    seconds  of the processor's time

    Earlier boxes do not count, as for the recipe's categories: a text that boxes every candidate gains nothing.
    """
    started = time.monotonic()
    try:
        why = _judged(gold, completion, seconds)
    except (OSError, ValueError, UsageError) as problem:
        why = f"not judged: {problem}"
    return Verdict(why is None, printable(why or "passed"), time.monotonic() - started)


def require_math_verify() -> None:
    """Raise UsageError where math-verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UsageError(None, None, f"mathematics needs math-verify: {INSTALL}")


def _judged(gold: str, completion: str, seconds: float) -> str | None:
    found = boxes(after_reasoning(completion))
    if not found:
        return "there is no box"
    box = found[-1].content
    if box is None:
        return "the last box is not closed"
    answer = box.strip()
    if not answer:
        return "the box is empty"
    if len(answer) > MOST_CHARS:
        return f"the answer has more than {MOST_CHARS:,} characters"
    gold = gold.strip().strip("$")
    words = _words(gold)
    if words is not None:  # to math-verify, "east" is a product of letters, and "seat" another order of it
        equal: Any = words == _words(answer)
    else:
        require_math_verify()
        equal = _compared(gold, answer, seconds)
    if equal is True:
        return None
    if equal is not False:
        return f"the answer {equal}"
    others = {each.content for each in found} - {box}
    last = f"the last of {len(found)} boxes, which differ" if others else "the box"
    return f"wrong answer in {last}: {answer[:60]} instead of {gold[:60]}"


def _words(text: str) -> str | None:
    """Return a text of words in lower case; None for anything that can be an expression."""
    plain = " ".join(_TEXT.sub(r"\1", text).split()).casefold().rstrip(".")
    return plain if len(plain) > 2 and plain.replace(" ", "").isalpha() else None


# --- Workers ----------------------------------------------------------------------------------------------------------


def _compared(gold: str, answer: str, seconds: float) -> Any:
    """Return True, False, or a reason: a worker's answer, or why there is none. Raises OSError if none can start."""
    worker = _taken()
    try:
        result = worker.asked((gold, answer, float(seconds)), seconds * _PATIENCE)
    except BaseException as problem:
        worker.end()
        if isinstance(problem, (TimeoutError, EOFError, ConnectionError, ValueError)):
            return worker.why_it_ended(seconds)
        raise
    _idle.append(worker)
    return result


def _taken() -> _Worker:
    while True:
        try:
            worker = _idle.pop()
        except IndexError:
            return _Worker()
        if worker.alive():
            return worker
        worker.end()


class _Worker:
    """One worker process. It ends when its channel closes, so with this process at the latest."""

    def __init__(self) -> None:
        self._channel, theirs = socket.socketpair()
        with theirs:
            code = _START.format(path=sys.path, fd=theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._ready = False

    def alive(self) -> bool:
        return self._process.poll() is None

    def asked(self, request: Any, patience: float) -> Any:
        """Return the answer to a request. Raises TimeoutError, EOFError, OSError or ValueError if there is none."""
        if not self._ready:
            message(self._channel, time.monotonic() + _START_SECONDS)
            self._ready = True
        deadline = time.monotonic() + patience
        self._channel.settimeout(patience)
        self._channel.sendall(values.message(request), getattr(socket, "MSG_NOSIGNAL", 0))
        return message(self._channel, deadline)

    def end(self) -> None:
        self._channel.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)  # it may be ending, and its status says why
        self._process.kill()
        self._process.wait()

    def why_it_ended(self, seconds: float) -> str:
        status = self._process.returncode
        if status in (-signal.SIGPROF, -signal.SIGXCPU, -signal.SIGKILL):  # the last one by this process
            return f"takes more than {seconds:g} seconds"
        return f"crashes the comparison (status {status})"

    def forget(self) -> None:
        """Leave the worker to the process that this one was forked from."""
        self._channel.close()
        self._process.returncode = 0


_idle: list[_Worker] = []


def _end_all() -> None:
    while _idle:
        _idle.pop().end()


def _forget_all() -> None:
    while _idle:
        _idle.pop().forget()


atexit.register(_end_all)
os.register_at_fork(after_in_child=_forget_all)
