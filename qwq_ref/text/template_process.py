"""The parent's side of the child process that renders a chat template: start it, ask it, end it.

`template_worker.py` is the child, and lists what limits it. The child gets a socket, three environment variables, and
nothing else: no terminal, no open files, no place in the parent's process group. So Ctrl-C does not reach the child.
It ends when the socket closes. The system closes the socket with the parent, however the parent ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TemplateError
from ..files import StrPath

_WORKER = Path(__file__).with_name("template_worker.py")
_NO_MEMORY = 3  # the worker's exit status when it has no memory left to answer with
_VARIABLES = ("TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # for the right time, and for Python to start at all
_START_SECONDS = 60.0  # the usual start takes a tenth of a second
_PATIENCE, _LEAST_SECONDS = 15, 30.0  # the wall clock's time for each second of the processor's, and at least so much
_DAY = 86400.0  # sockets refuse a timeout of a century
_PYTHON_BYTES = 1 << 26  # more than Python and Jinja use
_NO_SIGNAL: int = getattr(socket, "MSG_NOSIGNAL", 0)  # an error instead of SIGPIPE
_WATCH = sys.platform == "darwin"  # the system limits no memory there, so the parent looks at it
_WATCH_SECONDS = 0.05


class Limits(NamedTuple):
    """The time, text and memory that one rendering may use.

    seconds    time of the processor: other work on the machine does not count
    max_chars  length of the text
    max_bytes  memory for the conversation, all values and the text together
    """

    seconds: float
    max_chars: int
    max_bytes: int


class TemplateProcess:
    """A child process that renders one template within limits.

    The constructor starts the child and does not wait for it; with `start=False`, the first use starts it. The child
    lives as long as this object. A child that breaks a limit is killed, and the next rendering starts another. Threads
    take turns. A forked process starts a child of its own. All methods raise TemplateError, which names `file`.
    """

    def __init__(self, source: str, file: StrPath | None, limits: Limits, *, start: bool = True) -> None:
        self._file = file
        self._limits = limits = limits._replace(seconds=min(limits.seconds, _DAY))
        self._first = _packed({"source": source, **limits._asdict()})
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._ready = False
        _all_processes.add(self)
        if start:
            self._start()

    @property
    def pid(self) -> int | None:
        """The process id of the child, if there is one."""
        return self._child.pid if self._child else None

    def check(self) -> None:
        """Wait until the child has compiled the template."""
        with self._lock:
            self._ready_child()

    def render(self, values: dict[str, Any], spelled: Sequence[tuple[int, int, str]] = ()) -> str:
        """Render the template with `values`, which consist of JSON's types.

        spelled  numbers of a message and of its tool call, whose arguments the caller gave as this JSON text
        """
        request = _packed({"values": values, "spelled": spelled})
        with self._lock:
            return self._text(self._ready_child(), request, _patience(self._limits.seconds))

    def _forget(self) -> None:
        """Leave the child to the process that this one was forked from. There, a thread may hold the lock."""
        self._lock = threading.Lock()
        if self._child is not None:
            self._child.abandon()
        self._child = None

    def _start(self) -> _Child:
        self._ready = False
        try:
            self._child = _taken_spare() or _Child()
            self._child.begin(self._first, self._limits)
        except OSError as problem:
            reason = f"cannot start a process to render in ({problem.strerror or problem})"
            raise TemplateError(self._file, None, reason) from None
        return self._child

    def _ready_child(self) -> _Child:
        child = self._child
        if child is None or not child.alive():  # ended for breaking a limit, or by somebody else
            child = self._start()
        if not self._ready:
            try:
                self._text(child, b"", _START_SECONDS + _patience(self._limits.seconds))
            except TemplateError:
                child.end()
                raise
            self._ready = True
        return child

    def _text(self, child: _Child, request: bytes, seconds: float) -> str:
        try:
            answer = child.exchange(request, seconds)
        except _ChildError as problem:
            raise TemplateError(self._file, None, str(problem)) from None
        if isinstance(answer, str):
            return answer
        line, reason = answer
        raise TemplateError(self._file, f"line {line}" if line else None, reason)


class _ChildError(Exception):
    """The child has ended. The message says why."""


class _Child:
    """One child process, from its start to its end. `end()` kills it; garbage collection and a normal exit do so too.

    Raises OSError where no process can be started.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                _command(),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
                start_new_session=True,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self.pid = self._process.pid
        self.end = weakref.finalize(self, _end, self._process, self._socket)

    def begin(self, first_message: bytes, limits: Limits) -> None:
        """Send the template and its limits. Waits only where they exceed the socket's buffer."""
        self._limits = limits
        self._socket.settimeout(_START_SECONDS)
        self._socket.sendall(first_message, _NO_SIGNAL)

    def alive(self) -> bool:
        return self.end.alive and self._process.poll() is None

    def abandon(self) -> None:
        """Drop the child in a forked process, where it belongs to the parent."""
        self.end.detach()
        self._socket.close()
        self._process.returncode = 0  # or Popen would warn that the process still runs

    def exchange(self, request: bytes, seconds: float) -> str | tuple[int | None, str]:
        """Send a request, and return the text, or the line and the reason why there is none.

        The child has ended after any exception. Raises _ChildError.
        """
        try:
            deadline = time.monotonic() + seconds
            self._socket.settimeout(seconds)
            self._socket.sendall(request, _NO_SIGNAL)
            size = int.from_bytes(self._receive(8, deadline), "big")
            if size > 6 * self._limits.max_chars + (1 << 16):  # JSON needs at most six bytes for a character
                raise ValueError
            return _checked(json.loads(self._receive(size, deadline).decode("utf-8", "surrogatepass")))
        except TimeoutError:
            reason = f"the template's process gives no text within {seconds:g} seconds"
        except (ConnectionError, EOFError):
            reason = self._why_it_ended()
        except (ValueError, RecursionError):  # the template has left Jinja's sandbox, and writes what it likes
            reason = "the template's process sends an answer that cannot be read"
        except BaseException:  # Ctrl-C: nobody will read the answer, and the next request must not
            self.end()
            raise
        self.end()
        raise _ChildError(reason)

    def _receive(self, size: int, deadline: float) -> bytes:
        data = bytearray(size)
        view = memoryview(data)
        while view:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(min(left, _WATCH_SECONDS) if _WATCH else left)
            try:
                count = self._socket.recv_into(view)
            except TimeoutError:
                if _WATCH and _resident_bytes(self.pid) > self._limits.max_bytes + _PYTHON_BYTES:
                    raise _ChildError(self._too_much_memory()) from None
                continue
            if count == 0:
                raise EOFError
            view = view[count:]
        return bytes(data)

    def _why_it_ended(self) -> str:
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "the template's process sends no answer"
        if status == _NO_MEMORY:
            return self._too_much_memory()
        if status in (-signal.SIGPROF, -signal.SIGXCPU):
            return f"the template runs for more than {self._limits.seconds:g} seconds"
        how = f"signal {-status}, {signal.strsignal(-status)}" if status < 0 else f"status {status}"
        return f"the template's process crashes ({how})"

    def _too_much_memory(self) -> str:
        return f"the template needs more than {self._limits.max_bytes:,} bytes of memory"


def _patience(seconds: float) -> float:
    """Return the time that a child gets on the wall clock. A busy machine gives it a small share of a processor."""
    return min(max(_LEAST_SECONDS, _PATIENCE * seconds), _DAY)


def _command() -> list[str]:
    if not sys.executable or getattr(sys, "frozen", False):  # Python is embedded in another program
        raise OSError("sys.executable names no Python")
    folders = []
    for package in ("jinja2", "markupsafe"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise OSError(f"{package} is not installed")
        folders.append(str(Path(spec.origin).absolute().parent.parent))
    return [sys.executable, "-I", "-S", "-W", "ignore", str(_WORKER), *dict.fromkeys(folders)]


def _end(process: subprocess.Popen[bytes], connection: socket.socket) -> None:
    connection.close()
    process.kill()
    process.wait()


def _resident_bytes(pid: int) -> int:
    shown = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True).stdout
    return 1024 * int(shown.strip() or 0)


def _packed(message: dict[str, Any]) -> bytes:
    data = json.dumps(message, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "big") + data


def _checked(answer: Any) -> str | tuple[int | None, str]:
    """Return the parts of an answer. Raises ValueError for an answer that the worker would not give."""
    match answer:
        case {"text": str(text)}:
            return text
        case {"error": str(reason), "line": int() | None as line}:
            return line, reason
    raise ValueError


# --- Of this Python process -------------------------------------------------------------------------------------------

_all_processes: weakref.WeakSet[TemplateProcess] = weakref.WeakSet()
_spare: list[_Child] = []  # at most one


def start_templates() -> None:
    """Start a child process for the next `ChatTemplate`, and do not wait for it.

    A command calls this before it imports NumPy and loads a model, which takes longer than the start. If no process
    can be started, the template's constructor reports that.
    """
    if not _spare:
        with contextlib.suppress(OSError):
            _spare.append(_Child())


def _taken_spare() -> _Child | None:
    try:
        child = _spare.pop()
    except IndexError:
        return None
    return child if child.alive() else None


def _after_fork() -> None:
    while _spare:
        _spare.pop().abandon()
    for process in _all_processes:
        process._forget()


os.register_at_fork(after_in_child=_after_fork)
