"""Compile a grammar in a child process with limits, before anything is computed with it."""

from __future__ import annotations

import functools
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
_one_at_a_time = threading.Lock()  # so that hostile grammars of many clients need the memory of one


def check(grammar: Grammar) -> None:
    """Raise UsageError for a grammar that does not compile within 2 seconds and 512 MiB: it names the field."""
    folder = require()
    with _one_at_a_time:
        _check(grammar, folder)


def _check(grammar: Grammar, folder: str) -> None:
    parts = [*grammar.parts, (grammar.parts[0][0], grammar.source)]
    if (found := _fault(tuple(source for _, source in parts), folder)) is None:
        return
    number, problem = found
    if number is None and len({source for _, source in parts}) > 1:  # the child has crashed: ask for each part alone
        alone = (_fault((source,), folder) for _, source in parts)
        number = next((at for at, fault in enumerate(alone) if fault is not None), 0)
    raise UsageError(None, parts[number or 0][0], problem)


@functools.lru_cache(256)
def _fault(sources: tuple[str, ...], folder: str) -> tuple[int | None, str] | None:
    """Return the number of the first grammar that does not compile, None if it is not known, and why; or None."""
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-W", "ignore", str(_WORKER), json.dumps(LIMITS), folder],
            input=json.dumps([*dict.fromkeys(sources)]).encode(),
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
        return None, f"is too complex: it does not compile within {SECONDS} seconds and {BYTES >> 20:,} MiB"
    return None if answer is None else (sources.index([*dict.fromkeys(sources)][answer[0]]), first_line(answer[1]))


def first_line(problem: str) -> str:
    """Return the reason in llguidance's message, without its dumps."""
    text = problem.partition("\n<")[0].partition("\n   1 |")[0]
    text = re.sub(r"^at \d+\(\d+\): ", "", text.strip()).removeprefix("failed to compile JSON schema: ")
    return " ".join(text.split())[:300]
