"""The end of a command: every fault and every signal becomes an exit status, and one line on stderr.

| status | meaning |
|---|---|
| 0 | success |
| 1 | an error: bad input, a file or a stream that cannot be read or written, too little memory |
| 2 | a wrong use |
| 128 + n | signal n: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP; 141 the reader of stdout went away, without a line |

`kept` adds to the line of an interruption what is kept: `qwq: interrupted: 3 of 8 rows were measured`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from ..errors import FileError, QwqError, UsageError
from .screen import screen
from .streams import require_output

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}


_last = signal.SIGINT  # the signal behind the last KeyboardInterrupt
_deferred: list[int] | None = None  # signals that came in a block of `deferred`; None: no such block runs


def say(line: str) -> None:
    """Print one line on stderr, if that is possible."""
    with contextlib.suppress(OSError):  # of a stream that is not ours
        print(f"qwq: {line}", file=sys.stderr, flush=True)


def run(command: Callable[[], int], verbose: Callable[[], bool]) -> int:
    """Call a command, flush stdout, and return the exit status.

    verbose  asked after an error: whether to raise it, for its traceback

    Passes on SystemExit, and exceptions that are faults of this program.
    """
    try:
        return _flushed(command)
    except BrokenPipeError:
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as stop:
        with contextlib.suppress(FileError, OSError):
            sys.stdout.flush()
        screen.end_line()
        say(": ".join([_WORDS[_last], *getattr(stop, "__notes__", [])[:1]]))
        return 128 + _last
    except QwqError as error:
        if verbose():
            raise
        say(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except (OSError, MemoryError, RuntimeError) as problem:
        line = _system(problem)
        if line is None or verbose():
            raise
        say(line)
        return 1


def _system(problem: Exception) -> str | None:
    """Return the line for an error of the operating system; None for a fault of this program."""
    if isinstance(problem, OSError):
        return str(FileError.from_os(problem, problem.filename or "the system", what=""))
    if isinstance(problem, MemoryError):
        return f"memory: is used up ({problem})" if str(problem) else "memory: is used up"
    return "threads: the system allows no more" if "can't start new thread" in str(problem) else None


def _flushed(command: Callable[[], int]) -> int:
    try:
        status = command()
    except (SystemExit, QwqError, OSError) as end:
        sys.stdout.flush()
        if isinstance(end, SystemExit):
            require_output()
        raise
    sys.stdout.flush()
    return status


@contextlib.contextmanager
def kept(words: Callable[[], str]) -> Iterator[None]:
    """Let the last line after an interruption of the block tell what is kept."""
    try:
        yield
    except KeyboardInterrupt as stop:
        with contextlib.suppress(QwqError):  # of what the words ask for
            stop.add_note(words())
        raise


@contextlib.contextmanager
def signals(own: bool) -> Iterator[None]:
    """Let the first SIGINT, SIGTERM or SIGHUP raise KeyboardInterrupt, and the second end the process at once.

    Signals that are ignored stay ignored: `nohup` ignores SIGHUP, and a shell ignores SIGINT in the background.

    own  whether the process ends after the block: a signal then ends it at once, without Python's traceback
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual: dict[signal.Signals, Any] = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    ours = [number for number, handler in usual.items() if signal.getsignal(number) == handler]

    def stop(number: int, frame: FrameType | None) -> Any:
        global _last
        if _waits(number):
            return
        _last = signal.Signals(number)
        screen.echoes = number == signal.SIGINT
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    global _last
    _last = signal.SIGINT
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL if own else usual[number])


def _waits(number: int) -> bool:
    """Return whether a signal waits for the end of a `deferred` block. A second one does not."""
    if _deferred is None or _deferred:
        return False
    _deferred.append(number)
    return True


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Let a signal that comes in the block raise KeyboardInterrupt at its end: both of two changes happen, or none.

    For short blocks of the main thread.
    """
    global _deferred
    if _deferred is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting = _deferred = []
    try:
        yield
    finally:
        _deferred = None
        for number in waiting[:1]:
            signal.raise_signal(number)


@contextlib.contextmanager
def ctrl_c(act: Callable[[], object] | None = None) -> Iterator[None]:
    """Let each Ctrl-C in the block call `act`; None: raise KeyboardInterrupt, as often as it comes.

    Other signals end the command, as before. An ignored SIGINT stays ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        screen.echoes = True
        if act is None:
            raise KeyboardInterrupt
        act()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handle:  # no other signal has come
            signal.signal(signal.SIGINT, before)


def was_ctrl_c() -> bool:
    """Return whether Ctrl-C is behind the last KeyboardInterrupt, and no signal that must end the command."""
    return _last == signal.SIGINT
