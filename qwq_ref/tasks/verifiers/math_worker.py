"""The child process that compares two answers with math-verify. `mathematics.py` starts it.

SymPy can take all time and memory for a short text, in code that no signal handler interrupts. So the system limits
this process: RLIMIT_AS, and a timer of the processor's time whose signal ends it. Answers are read as LaTeX alone. The
other reader of math-verify evaluates Python, so it is left out.

A request is (gold, answer, seconds), a message of `sandbox.inside.values`. Its answer is True, False, or a reason.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from typing import Any

from ...sandbox.inside import values

MEMORY = 1 << 29  # bytes beside those of SymPy
READY = "ready"


def main(channel: int) -> None:
    """Answer requests until the channel closes, which it does with the parent."""
    logging.disable()
    import math_verify  # takes a second

    judged(math_verify, "\\frac{1}{2}", "0.5")  # loads what SymPy imports late
    _confine()
    values.send(channel, values.message(READY))
    while True:
        try:
            gold, answer, seconds = values.receive(channel)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            result = judged(math_verify, gold, answer)
        except MemoryError:
            result = f"needs more than {MEMORY:,} bytes of memory"
        except Exception as problem:  # of SymPy: any
            result = f"cannot be compared ({values.line(problem)})"
        signal.setitimer(signal.ITIMER_PROF, 0)
        values.send(channel, values.message(result))


def judged(math_verify: Any, gold: str, answer: str) -> bool | str:
    """Return whether two answers are equal, or why they cannot be compared. Raises whatever SymPy raises."""
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]
    # Time-outs are this process's: those of math-verify make an answer wrong without a word.
    limits = {"parsing_timeout": None, "raise_on_error": True}
    wanted = math_verify.parse(f"\\boxed{{{gold}}}", config, **limits)
    if not wanted:
        return "the reference answer cannot be read"
    found = math_verify.parse(f"\\boxed{{{answer}}}", config, **limits)
    if not found:
        return "cannot be read"
    return bool(math_verify.verify(wanted, found, timeout_seconds=None, raise_on_error=True))


def _confine() -> None:
    try:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        now = 1 << 30  # no /proc: more than Python and SymPy need
    for which, limit in (("AS", now + MEMORY), ("FSIZE", 0), ("CORE", 0), ("NPROC", 0)):
        number = getattr(resource, f"RLIMIT_{which}")
        hard = resource.getrlimit(number)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(number, (limit, limit))
    os.umask(0o777)
