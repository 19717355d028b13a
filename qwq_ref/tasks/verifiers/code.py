"""The verifiers of programs: a model's text runs in a sandbox, and its results are judged outside of it.

A program never shares a process with its tests. It gets calls with their arguments, or a standard input, and gives
plain data back. So it cannot read expected results, and no object of its own is compared with them.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import SandboxError, printable
from ...sandbox import LIMITS, Contained, Limits, start
from ...sandbox.inside import values
from ...sandbox.process import cpu_seconds, material
from .extract import extract_code
from .messages import message
from .verdict import Verdict

__all__ = ["LIMITS", "Limits", "Measurement", "extract_code", "measure", "verify_function", "verify_streams"]

_GRACE = 0.5  # seconds in which a process that has closed its channel ends


def verify_function(program: str, entry_point: str, tests: str, setup: str = "", *, limits: Limits = LIMITS) -> Verdict:
    """Judge a function by tests, as HumanEval has them.

    program      the model's text, which defines `entry_point`
    tests        trusted code that defines `check(candidate)`, with assertions
    setup        trusted code that the tests may call, such as a prompt's own helper functions

    The candidate of the tests calls the function in another process, and its name means the same there. Its arguments
    are copies, so the tests do not see a change of a list in place. A result that is no plain data equals nothing.
    """
    started = time.monotonic()
    why: str | None
    try:
        why = _run_tests(program, entry_point, tests, setup, limits)
    except (SandboxError, OSError, ValueError) as problem:
        why = f"not run: {problem}"
    return _verdict(why, started)


def _verdict(why: str | None, started: float) -> Verdict:
    return Verdict(why is None, printable(why or "passed"), time.monotonic() - started)


def _run_tests(program: str, name: str, tests: str, setup: str, limits: Limits) -> str | None:
    """Return why the tests fail; None if they pass."""
    verdict, theirs = socket.socketpair()
    with verdict, contextlib.ExitStack() as stack:
        with theirs:
            ours, programs = socket.socketpair()
            with ours, programs:
                given = (setup, tests, name)
                judge = stack.enter_context(start("checks", given, limits, channels=[ours.fileno(), theirs.fileno()]))
                runner = stack.enter_context(start("function", (program, name), limits, channels=[programs.fileno()]))
        judge.deadline = runner.deadline
        try:
            why = message(verdict, judge.deadline)
        except TimeoutError:
            return f"the program {_too_long(limits)}"
        except (EOFError, OSError, ValueError):
            reason = judge.failure(_GRACE) or "end early"
            return f"the tests give no verdict: the process {reason}"
        if why is not None and not isinstance(why, str):
            return "the tests give no verdict"
        ended = runner.failure(_GRACE) if why is not None and why.startswith("the program ends") else None
        return why if ended is None else f"the program {ended}"


def _too_long(limits: Limits) -> str:
    return f"runs for more than {limits.wall:g} seconds"


# --- Standard input to standard output --------------------------------------------------------------------------------


def verify_streams(program: str, cases: Sequence[tuple[str, str]], *, limits: Limits = LIMITS) -> Verdict:
    """Judge a program by what it prints for each input, as programming contests do.

    cases  (standard input, expected output); the first one that fails decides

    Outputs are compared line by line. White space at the ends of lines, and empty lines at the end, do not count.
    """
    started = time.monotonic()
    why: str | None = None if cases else "there are no cases"
    for number, (given, wanted) in enumerate(cases, start=1):
        try:
            why = _run_case(program, given, wanted, limits)
        except (SandboxError, OSError, ValueError) as problem:
            why = f"not run: {problem}"
        if why is not None:
            why = f"case {number} of {len(cases)}: {why}"
            break
    return _verdict(why, started)


def _run_case(program: str, given: str, wanted: str, limits: Limits) -> str | None:
    with (
        material(given.encode("utf-8", "surrogatepass")) as stdin,
        start("stream", (program,), limits, stdin=stdin, output=True) as process,
    ):
        output, errors = process.output()
        reason = process.failure(_GRACE)
    if reason is not None:
        last = errors.decode("utf-8", "replace").strip().rpartition("\n")[2][:200]
        return f"the program {reason}" + (f" ({last})" if last else "")
    found, expected = _lines(output.decode("utf-8", "replace")), _lines(wanted)
    if found == expected:
        return None
    differing = (number for number, pair in enumerate(zip(found, expected, strict=False)) if pair[0] != pair[1])
    place = next(differing, min(len(found), len(expected)))
    return f"wrong answer in line {place + 1}: {_shown(found, place)} instead of {_shown(expected, place)}"


def _lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _shown(lines: list[str], place: int) -> str:
    return repr(lines[place][:60]) if place < len(lines) else "nothing"


# --- Run time ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measurement:
    """The run time of a function on each of some inputs.

    why      "measured", or one line with the reason why not
    seconds  of the processor's time for each input, all threads together: the least of the repetitions
    loading  seconds of loading the program: a table that it makes beforehand is not free
    results  what the function returned; `raised` stands for an exception
    """

    why: str
    seconds: list[float] = field(default_factory=list)
    loading: float = 0.0
    results: list[Any] = field(default_factory=list)

    @property
    def measured(self) -> bool:
        return self.why == "measured"


@dataclass(frozen=True)
class Raised:
    """An exception in place of a result: its line."""

    line: str


def measure(
    program: str, entry_point: str, inputs: Sequence[Sequence[Any]], *, repeats: int = 3, limits: Limits = LIMITS
) -> Measurement:
    """Measure a function's run time in the sandbox: one call for each input, in order, in a fresh process each time.

    inputs  the positional arguments of each call, plain data

    The system's clock of the process counts, read from outside, so the program cannot falsify it. It holds the time to
    read arguments and write results. Threads count, other programs on the machine do not. Results that differ between
    repetitions give no measurement.
    """
    found: Measurement | None = None
    for _ in range(max(1, repeats)):
        try:
            once = _measured_once(program, entry_point, inputs, limits)
        except (SandboxError, OSError, ValueError) as problem:
            once = Measurement(f"not run: {problem}")
        if not once.measured:
            return once
        if found is not None and values.encoded(found.results) != values.encoded(once.results):
            return Measurement("the results differ between two runs")
        least = once.seconds if found is None else [min(pair) for pair in zip(found.seconds, once.seconds, strict=True)]
        loading = once.loading if found is None else min(found.loading, once.loading)
        found = Measurement("measured", least, loading, once.results)
    assert found is not None
    return found


def _measured_once(program: str, name: str, inputs: Sequence[Sequence[Any]], limits: Limits) -> Measurement:
    with _called(program, name, limits) as (process, channel):
        try:
            pid, problem = _sender(channel, process.deadline), message(channel, process.deadline)
            if problem is not None:
                return Measurement(printable(f"the program does not load: {str(problem)[:300]}"))
            loaded = cpu_seconds(pid)
            seconds, results = [], []
            before = loaded
            for arguments in inputs:
                channel.settimeout(max(0.01, process.deadline - time.monotonic()))
                channel.sendall(values.message((tuple(arguments), {})), socket.MSG_NOSIGNAL)
                results.append(_result(message(channel, process.deadline)))
                after = cpu_seconds(pid)
                seconds.append(after - before)
                before = after
        except TimeoutError:
            return Measurement(f"the program {_too_long(limits)}")
        except ValueError as broken:
            return Measurement(printable(f"the program's answer cannot be read: {broken}"))
        except (EOFError, OSError):
            return Measurement(f"the program {process.failure(_GRACE) or 'ends during a call'}")
    return Measurement("measured", seconds, loaded, results)


@contextlib.contextmanager
def _called(program: str, name: str, limits: Limits) -> Iterator[tuple[Contained, socket.socket]]:
    """A process that answers calls of a function, and the channel to it, which tells who sends."""
    channel, theirs = socket.socketpair()
    with channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with theirs:
            process = start("function", (program, name), limits, channels=[theirs.fileno()])
        with process:
            yield process, channel


def _sender(channel: socket.socket, deadline: float) -> int:
    """Wait for a message, and return the process that sent it, by its number outside of the sandbox."""
    channel.settimeout(max(0.01, deadline - time.monotonic()))
    data, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(12), socket.MSG_PEEK)
    if not data:
        raise EOFError
    return int.from_bytes(ancillary[0][2][:4], "little", signed=True)


def _result(answer: Any) -> Any:
    match answer:
        case ("value", value):
            return value
        case ("raised", str(), str(), str(line)):
            return Raised(line)
    raise ValueError("no answer has this form")
