"""The result of every verifier."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether a completion solves a problem.

    A verifier that cannot judge returns a verdict too, which is not correct. It never raises for a completion.

    why      one line: "passed", or the reason why not
    seconds  time that the verifier took
    """

    correct: bool
    why: str
    seconds: float
