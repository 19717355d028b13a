"""Scores of a suite: pass@k, the mean over samples, and their intervals."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..intervals import bootstrap_interval, wilson_interval
from .records import Record


@dataclass(frozen=True)
class SuiteScore:
    """The result of a suite, or of one of its groups, under one budget.

    n, samples       tasks, and answers to each
    passed           k -> the share of tasks that k answers solve (pass@k, without bias); 1: the mean of all (avg@k)
    low, high        bounds of pass@1 at 95 %: Wilson's for one sample, else by bootstrap over tasks
    tokens, reasoning_tokens  means of an output
    cut              the share of outputs that a limit ended
    parts            name -> the share of the counts that hold
    by_group         the mean of the groups' pass@1, in which each group weighs the same; None without groups
    """

    name: str
    budget: int | None
    n: int
    samples: int
    passed: dict[int, float]
    low: float
    high: float
    tokens: float
    reasoning_tokens: float
    cut: float
    parts: dict[str, float] = field(default_factory=dict)
    by_group: float | None = None

    def row(self) -> dict[str, Any]:
        return {**vars(self), "passed": {f"pass@{k}": value for k, value in self.passed.items()}}


def pass_at(n: int, correct: int, k: int) -> float:
    """Return the probability that k of n answers, drawn without replacement, hold a correct one (Chen et al. 2021)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def scores(name: str, records: Iterable[Record]) -> list[SuiteScore]:
    """Return the score of each budget and group. The whole of a budget has the suite's name, and comes last."""
    by_budget: dict[int | None, list[Record]] = defaultdict(list)
    for one in records:
        by_budget[one.values["budget"]].append(one)
    found = []
    for budget, those in by_budget.items():
        groups: dict[str, list[Record]] = defaultdict(list)
        for one in those:
            groups[one.values["group"]].append(one)
        parts = [_score(group, budget, each) for group, each in groups.items()] if len(groups) > 1 else []
        whole = _score(name, budget, those)
        mean = sum(part.passed[1] for part in parts) / len(parts) if parts else None
        found += [*parts, replace(whole, by_group=mean)]
    return found


def _score(name: str, budget: int | None, records: Sequence[Record]) -> SuiteScore:
    tasks: dict[str, list[bool]] = defaultdict(list)
    parts: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    for one in records:
        tasks[one.values["id"]].append(one.values["correct"])
        for part, (held, of) in one.values["parts"].items():
            parts[part][0] += held
            parts[part][1] += of
    samples = min(map(len, tasks.values()))
    ks = [k for k in (1, *(2**power for power in range(1, 20))) if k < samples] + [samples]
    passed = {k: sum(pass_at(len(t), sum(t), k) for t in tasks.values()) / len(tasks) for k in ks}
    means = [sum(each) / len(each) for each in tasks.values()]
    correct = sum(map(sum, tasks.values()))
    low, high = wilson_interval(correct, len(tasks)) if samples == 1 else bootstrap_interval(means)

    def mean(field: str) -> float:
        return float(sum(one.values[field] for one in records)) / len(records)

    return SuiteScore(
        name,
        budget,
        len(tasks),
        samples,
        passed,
        low,
        high,
        mean("tokens"),
        mean("reasoning_tokens"),
        sum(one.values["finish_reason"] in ("length", "context", "loop") for one in records) / len(records),
        {part: held / of for part, (held, of) in parts.items() if of},
    )
