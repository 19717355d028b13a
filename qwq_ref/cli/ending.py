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
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType
from typing import Any

from ..errors import FileError, QwqError, UsageError
from .screen import screen
from .streams import require_output

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}


_last = signal.SIGINT  # the signal behind the last KeyboardInterrupt
_interrupt: Any = None  # the handler that raises it
_cancel: Any = None  # the handler that cancels the coroutine of `run_loop` instead
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

    global _last, _interrupt
    _last, _interrupt = signal.SIGINT, stop
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL if own else usual[number])


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine in an event loop, and cancel it at a signal that raises KeyboardInterrupt elsewhere.

    Raises KeyboardInterrupt when the loop has ended. A handler that raised it within the loop would end any of its
    tasks, or its own bookkeeping. Only a block of `blocking` is ended so.
    """
    import asyncio

    heeded = [number for number in _WORDS if signal.getsignal(number) is _interrupt]
    came: list[int] = []

    async def cancellable() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel(number: int, frame: FrameType | None) -> None:
            try:
                _interrupt(number, frame)
            except KeyboardInterrupt:
                came.append(number)
                loop.call_soon_threadsafe(task.cancel)

        global _cancel
        _cancel = cancel
        for number in heeded:
            signal.signal(number, cancel)
        await main

    try:
        asyncio.run(cancellable())
    except asyncio.CancelledError:
        if not came:
            raise
    finally:
        if not came:
            _exchange(_cancel, _interrupt)
    if came:
        raise KeyboardInterrupt


@contextlib.contextmanager
def blocking() -> Iterator[None]:
    """Let a signal raise KeyboardInterrupt in a block of a coroutine of `run_loop` that waits for the system."""
    _exchange(_cancel, _interrupt)
    try:
        yield
    finally:
        _exchange(_interrupt, _cancel)


def _exchange(old: Any, new: Any) -> None:
    for number in _WORDS:
        if old is not None and signal.getsignal(number) is old:
            signal.signal(number, new)


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
