"""A contained process: its limits, its start, its output, and its end."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import IO, Any, NamedTuple

from ..errors import SandboxError
from . import seccomp, view, ways
from .inside import values

_START = (
    "import sys;sys.path.append({code!r});from inside import confine as c,{role} as r;"
    "c.require_parent({lifeline});c.confine({limits});r.main({fds})"
)
_VARIABLES = {
    "HOME": view.HOME,
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",  # a set has the same order in every run
    "TZ": "UTC",
    "MALLOC_ARENA_MAX": "1",  # or the C library reserves 64 MiB of addresses for each thread
}
_CLOCK_OF_PROCESS = 2  # the clock of all threads: <linux/posix-timers_types.h>
_NO_TIME, _CRASHED = 24, (4, 6, 7, 8, 11)  # SIGXCPU; SIGILL, SIGABRT, SIGBUS, SIGFPE, SIGSEGV


class Limits(NamedTuple):
    """The resources that a program may use.

    memory     bytes of addresses, Python included
    seconds    of the processor's time, rounded up to whole ones
    wall       seconds on the clock
    output     bytes that are read of its output; more ends it
    disk       bytes of the folder in memory that it can write in
    threads    at most; a machine's own limit may be lower
    processes  whether it may start other processes
    """

    memory: int = 1 << 28
    seconds: float = 10.0
    wall: float = 10.0
    output: int = 1 << 24
    disk: int = 1 << 24
    threads: int = 64
    processes: bool = False


LIMITS = Limits()


class Contained:
    """A process in a sandbox, and everything that it starts. It ends with the `with` block, however that ends."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits, lifeline: int) -> None:
        self._process = process
        self._lifeline: int | None = lifeline  # a process that starts while this closes does not go on
        self._limits = limits
        self.deadline = time.monotonic() + limits.wall

    def __enter__(self) -> Contained:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """Kill the process and all that it started, if it runs. Its files are in memory, and go with it."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        if self._process.poll() is None:
            self._process.kill()  # the first process of its namespace dies with it, and then the others
            self._process.wait()
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe:
                pipe.close()

    def output(self) -> tuple[bytes, bytes]:
        """Return the standard output, and the last bytes of the standard error, once the process has ended.

        A process that writes too much, or takes too long, is killed; `failure` then says so.
        """
        collected = _Collected(self._process, self._limits.output)
        collected.read(self.deadline)
        if collected.problem is not None:
            self._killed_for = collected.problem
            self.end()
        else:
            self._wait()
        return bytes(collected.output), bytes(collected.errors)

    _killed_for: str | None = None

    def _wait(self) -> None:
        try:
            self._process.wait(max(0.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._killed_for = "time"
            self.end()

    def failure(self, patience: float = 0.0) -> str | None:
        """Return why the process ended, in a few words, such as "runs for more than 10 seconds"; None for success.

        patience  seconds to wait for its end, after which it counts as running well
        """
        if self._killed_for == "time":
            return f"runs for more than {self._limits.wall:g} seconds"
        if self._killed_for == "output":
            return f"writes more than {self._limits.output:,} bytes"
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        number = -status if status < 0 else status - 128
        if number == _NO_TIME or (number == 9 and self._process.returncode > 0):
            return f"computes for more than {self._limits.seconds:g} seconds"
        if number in _CRASHED:
            return f"crashes with signal {number}"
        return f"ends with status {status}" if status else None

    def expire(self) -> None:
        """End a process whose time on the clock is over."""
        self._killed_for = "time"
        self.end()


class _Collected:
    """The output of a process, as far as it is kept."""

    def __init__(self, process: subprocess.Popen[bytes], most: int) -> None:
        self._process, self._most = process, most
        self.output, self.errors = bytearray(), bytearray()
        self.problem: str | None = None

    def read(self, deadline: float) -> None:
        with selectors.DefaultSelector() as selector:
            for pipe in (self._process.stdout, self._process.stderr):
                if pipe is not None:
                    selector.register(pipe, selectors.EVENT_READ)
            while selector.get_map() and self.problem is None:
                left = deadline - time.monotonic()
                ready = selector.select(left) if left > 0 else []
                if not ready:
                    self.problem = "time"
                for key, _ in ready:
                    self._take(selector, key.fileobj)

    def _take(self, selector: selectors.BaseSelector, pipe: Any) -> None:
        data = os.read(pipe.fileno(), 1 << 16)
        if not data:
            selector.unregister(pipe)
        elif pipe is self._process.stdout:
            self.output += data
            if len(self.output) > self._most:
                self.problem = "output"
        else:
            self.errors = (self.errors + data)[-4096:]


@contextlib.contextmanager
def material(data: bytes) -> Iterator[int]:
    """A file in memory that cannot be changed, to hand to a process. Yield its descriptor."""
    fd = os.memfd_create("material", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        values.send(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        yield fd
    finally:
        os.close(fd)


def start(
    role: str,
    given: object,
    limits: Limits = LIMITS,
    *,
    channels: Sequence[int] = (),
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    output: bool = False,
    folders: Sequence[str] = (),
    way: str | None = None,
) -> Contained:
    """Start a process in a sandbox, in the role of a module of `inside`.

    given     plain data that the role receives
    channels  descriptors that it gets before that
    output    whether its output is read, with `Contained.output`
    folders   that it can read beside Python's
    way       the containment; by default, the best of this machine

    Raises SandboxError where nothing contains a program, or none can be started.
    """
    way = way or ways.require_containment()
    with material(seccomp.program(limits.processes)) as filter_fd, material(values.message(given)) as given_fd:
        passed = [*channels, given_fd]
        theirs, ours = os.pipe()
        numbers = limits.memory, math.ceil(limits.seconds), limits.disk, limits.threads, ways.new_user()
        code = _START.format(
            code=view.CODE,
            role=role,
            lifeline=theirs,
            limits=",".join(map(str, numbers)),
            fds=",".join(map(str, passed)),
        )
        seen = view.options(limits.disk, folders)
        python = [view.python(), "-s", "-S", "-P", "-B", "-c", code]
        try:
            process = subprocess.Popen(
                [*ways.command(way, filter_fd, seen), *python],
                stdin=stdin,
                stdout=subprocess.PIPE if output else subprocess.DEVNULL,
                stderr=subprocess.PIPE if output else subprocess.DEVNULL,
                pass_fds=[*passed, filter_fd, theirs],
                env=_VARIABLES,
                cwd="/",
                umask=0o022,  # for the folders that bubblewrap makes
                start_new_session=True,  # Ctrl-C is for this process, which then ends the other
            )
        except OSError as problem:
            os.close(ours)
            raise SandboxError(None, None, f"cannot start a process ({problem.strerror or problem})") from None
        finally:
            os.close(theirs)
    return Contained(process, limits, ours)


def tried(way: str) -> str | None:
    """Return why a small program does not run in a containment; None if it runs."""
    try:
        with start("stream", ("print(6 * 7)",), LIMITS, output=True, way=way) as process:
            output, errors = process.output()
            if output == b"42\n" and process.failure(1.0) is None:
                return None
            words = " ".join(errors.decode("utf-8", "replace").split())
            return (words or process.failure() or "does not run a program")[:300]
    except SandboxError as problem:
        return problem.problem


def cpu_seconds(pid: int) -> float:
    """Return the processor's time that all threads of a process have taken. Raises OSError if there is none."""
    return time.clock_gettime((~pid << 3) | _CLOCK_OF_PROCESS)
