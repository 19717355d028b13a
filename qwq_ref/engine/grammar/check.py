"""Compile a grammar in a child process with limits, before anything is computed with it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

from ...errors import UsageError
from .request import Grammar, require
from .worker import BYTES, SECONDS

_WORKER = Path(__file__).with_name("worker.py")
_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")  # for Python to start at all
_PATIENCE = 60.0  # seconds: the limit is one of the processor's time, which a busy machine stretches
# Of llguidance, for each answer. A state of the lexer takes up to 2 kB.
LIMITS = {"max_lexer_states": 50_000, "verbose_errors": False}
_known: dict[bytes, tuple[str, str] | None] = {}  # by a digest of the grammar: field and problem, or None
_MOST_KNOWN = 10_000
_one_at_a_time = threading.Lock()  # so that hostile grammars of many clients need the memory of one


def check(grammar: Grammar) -> None:
    """Raise UsageError for a grammar that does not compile within 2 seconds and 512 MiB: it names the field."""
    folder = require()
    digest = hashlib.sha256(repr((grammar, folder)).encode()).digest()
    with _one_at_a_time:
        if digest not in _known:
            if len(_known) >= _MOST_KNOWN:
                _known.clear()
            _known[digest] = _fault(grammar, folder)
        if (fault := _known[digest]) is not None:
            raise UsageError(None, *fault)


def _fault(grammar: Grammar, folder: str) -> tuple[str, str] | None:
    """Return the field of a grammar that does not compile, and why; None for one that does."""
    fields = {source: field for field, source in reversed([*grammar.parts, (grammar.parts[0][0], grammar.source)])}
    sources = list(reversed(fields))
    try:
        found = _first_bad(sources, folder)
    except _CrashError as crash:
        for source in sources if len(sources) > 1 else ():  # which one was it?
            try:
                _first_bad([source], folder)
            except _CrashError:
                return fields[source], str(crash)
        return fields[sources[0]], str(crash)
    return None if found is None else (fields[sources[found[0]]], first_line(found[1]))


class _CrashError(Exception):
    """The child has no answer. The message says why."""


def _first_bad(sources: list[str], folder: str) -> tuple[int, str] | None:
    """Return the number of the first grammar that does not compile, and the message of llguidance; or None.

    Raises _CrashError where a grammar breaks the limits, and UsageError where no process can be started.
    """
    command = [sys.executable, "-I", "-S", "-W", "ignore", str(_WORKER), json.dumps(LIMITS), folder]
    try:
        child = subprocess.run(
            command,
            input=json.dumps(sources).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: os.environ[name] for name in _VARIABLES if name in os.environ},
            timeout=_PATIENCE,
            check=True,
            start_new_session=True,
        )
        answer = json.loads(child.stdout)
    except (subprocess.SubprocessError, ValueError):
        limits = f"{SECONDS} seconds and {BYTES >> 20:,} MiB"
        raise _CrashError(f"is too complex: it does not compile within {limits}") from None
    except OSError as problem:
        reason = f"cannot be compiled: no process can be started ({problem.strerror or problem})"
        raise UsageError(None, "response_format", reason) from None
    return None if answer is None else (answer[0], answer[1])


def first_line(problem: str) -> str:
    """Return the reason in llguidance's message, without its dumps."""
    text = problem.partition("\n<")[0].partition("\n   1 |")[0]
    text = re.sub(r"^at \d+\(\d+\): ", "", text.strip()).removeprefix("failed to compile JSON schema: ")
    return " ".join(text.split())[:300]
