"""Suites: problems of others, or of a file, with exact judges. One interface for all: see `suite`."""

from __future__ import annotations

import importlib
from typing import Any

from ...errors import UsageError, did_you_mean
from .suite import Suite

# Name -> the options that it takes beside `data`. A module has its name.
_OPTIONS: dict[str, tuple[str, ...]] = {
    "humaneval": ("form",),
    "gsm8k": (),
    "aime": (),
    "livecodebench": ("start", "end"),
    "livebench": (),
    "ifeval": (),
    "generated": ("lean",),
    "jsonl": (),
}
NAMES = tuple(name for name in _OPTIONS if name != "jsonl")
_NEED_NONE = ("humaneval", "generated")  # have problems of their own
_FILE = ".jsonl"


def open_suite(name: str, data: str | None = None, **options: str | None) -> Suite:
    """Return a suite by its name, or that of a file of one's own. Raises UsageError, SuiteError and FileError.

    name     of NAMES, or a file that ends in .jsonl
    data     the file of its problems
    options  `form`: the way to ask; `start` and `end`: the first and the last date of problems; `lean`: the file that
             names the programs of Lean. None: the suite's own
    """
    kind = "jsonl" if name.endswith(_FILE) else name
    if kind not in NAMES and kind != "jsonl":
        near = did_you_mean(name, NAMES)
        raise UsageError(None, "suite", f"there is no {name!r:.40}{near}; there are {', '.join(NAMES)} and FILE.jsonl")
    given: dict[str, Any] = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if option not in _OPTIONS[kind]:
            raise UsageError(None, option, f"has no effect on the suite {kind}")
    if kind == "jsonl":
        if data is not None:
            raise UsageError(None, "data", "does not go together with a file as the suite")
        data = name
    elif data is None and kind not in _NEED_NONE:
        raise UsageError(None, "data", f"is missing: name the file with the problems of {kind}")
    found: Suite = getattr(importlib.import_module(f"{__name__}.{kind}"), kind)(data, **given)
    return found
