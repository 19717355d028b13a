"""The file of a run: one JSON object a line, first the run's facts, then each answer with its verdict.

A later run goes on behind the complete lines. A torn last line, which a killed run leaves, is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ...errors import SuiteError
from ...files import StrPath, parse_json, writes
from ...tasks.verifiers import Verdict
from .answers import Asked, Completion
from .suite import Scored

_VERSION = 1
_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("id", "group", "prompt", "text", "reasoning", "why", "finish_reason"), str),
    **dict.fromkeys(("sample", "seed", "prompt_tokens", "tokens", "reasoning_tokens"), int),
    **dict.fromkeys(("seconds", "judge_seconds"), (int, float)),
    "correct": bool,
    "parts": dict,
}


@dataclass(frozen=True)
class Record:
    """One answer and its verdict: the fields of a line. `budget` may be None, and `begun` stands before `text`."""

    values: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, int, int | None]:
        return self.values["id"], self.values["sample"], self.values["budget"]


def record(asked: Asked, begun: str, completion: Completion, verdict: Verdict) -> Record:
    """Return the record of an answer."""
    task = asked.task
    return Record(
        {
            "id": task.id,
            "group": task.group,
            "sample": asked.sample,
            "budget": asked.budget,
            "seed": asked.seed,
            "prompt": task.prompt,
            "begun": begun,
            **vars(completion),
            "correct": verdict.correct,
            "why": verdict.why,
            "judge_seconds": verdict.seconds,
            "parts": {name: list(pair) for name, pair in verdict.parts.items()} if isinstance(verdict, Scored) else {},
        }
    )


def read_records(path: StrPath) -> tuple[dict[str, Any], list[Record], int]:
    """Return the facts of a run, its answers, and the bytes of the complete lines. Raises SuiteError.

    A file without a complete line has the facts {}.
    """
    with writes(path), open(path, "rb") as file:
        data = file.read()
    lines = data.split(b"\n")[:-1]  # the last part is empty, or a torn line
    facts: dict[str, Any] = {}
    found: dict[tuple[str, int, int | None], Record] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = parse_json(line, path, SuiteError)
        except SuiteError as problem:
            raise SuiteError(path, f"line {number}", problem.problem) from None
        if number == 1:
            if values.get("version") != _VERSION or not isinstance(values.get("run"), dict):
                raise SuiteError(path, "line 1", "is no beginning of a file of answers: move the file away")
            facts = values["run"]
            continue
        one = Record(_checked(values, path, number))
        if one.key in found:
            raise SuiteError(path, f"line {number}, id", f"{one.key[0]!r:.60} comes twice, with the same sample")
        found[one.key] = one
    return facts, [*found.values()], sum(len(line) + 1 for line in lines)


def _checked(values: dict[str, Any], path: StrPath, number: int) -> dict[str, Any]:
    for name, kind in _FIELDS.items():
        value = values.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise SuiteError(path, f"line {number}, {name}", f"is not that of an answer, got {value!r:.40}")
    budget = values.setdefault("budget", None)
    if budget is not None and type(budget) is not int:
        raise SuiteError(path, f"line {number}, budget", f"must be a number of tokens, got {budget!r:.40}")
    return values


class Records:
    """The answers of a run, in a file if there is one. Use it as a context.

    path   None: in memory alone
    facts  of the run: those of the file must be the same

    Entering raises SuiteError for a file of another run, or of another kind, and FileError.
    """

    def __init__(self, path: StrPath | None, facts: Mapping[str, Any]) -> None:
        self._path, self._facts = path, json.loads(json.dumps(dict(facts)))
        self._file: BinaryIO | None = None
        self.all: dict[tuple[str, int, int | None], Record] = {}

    def __enter__(self) -> Records:
        if self._path is not None:
            self._open(self._path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _open(self, path: StrPath) -> None:
        facts, found, end = read_records(path) if Path(path).exists() else ({}, [], 0)
        if end:
            self._require(facts)
        with writes(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by __exit__
            self._file.truncate(end)
        if not end:
            self._write({"version": _VERSION, "run": self._facts})
        self.all = {one.key: one for one in found}

    def _require(self, facts: dict[str, Any]) -> None:
        """Raise SuiteError where the file's run differs from this one."""
        for name in sorted({*facts, *self._facts}):
            theirs, ours = facts.get(name), self._facts.get(name)
            if theirs != ours:
                problem = f"is {theirs!r:.60} in the file, and {ours!r:.60} now: name another file, or move it away"
                raise SuiteError(self._path, name, problem)

    def add(self, one: Record) -> None:
        """Add an answer, and write its line."""
        self.all[one.key] = one
        self._write(one.values)

    def _write(self, values: Mapping[str, Any]) -> None:
        if self._file is None or self._path is None:
            return
        with writes(self._path):
            data = json.dumps(values, ensure_ascii=True).encode() + b"\n"
            while data:
                data = data[self._file.write(data) :]
