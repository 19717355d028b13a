"""The subject of `qwq plot` that reads files of answers: budget."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FileError, SuiteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..plots.sheet import View

SUBJECTS = {
    "budget": (
        "how accuracy grows with the tokens of reasoning",
        "Draw the accuracy against the mean tokens of reasoning, one line for each file of `qwq eval --suite NAME "
        "--think-budget N,... -o FILE`.",
    )
}


def add_arguments(parser: argparse.ArgumentParser, subject: str) -> None:
    parser.add_argument("files", nargs="+", metavar="FILE", help="answers of `qwq eval --suite NAME -o FILE`")


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the points of each file, the least budget first. Raises SuiteError and FileError."""
    from ..eval.suites.records import read_records
    from ..eval.suites.score import scores

    runs = []
    for path in options.files:
        if not Path(path).is_file():
            raise FileError(path, None, "is no file")
        about, records, _ = read_records(path)
        if not records or not isinstance(about.get("suite"), str):
            raise SuiteError(path, None, "holds no answers yet")
        whole = [row for row in scores(about["suite"], records) if row.name == about["suite"]]
        points = [
            {
                "budget": row.budget,
                "n": row.n,
                "samples": row.samples,
                "accuracy": row.passed[1],
                "low": row.low,
                "high": row.high,
                "reasoning_tokens": row.reasoning_tokens,
                "tokens": row.tokens,
            }
            for row in sorted(whole, key=lambda row: float("inf") if row.budget is None else row.budget)
        ]
        runs.append({"file": path, "suite": about["suite"], "points": points})
    return {"runs": runs}


def words(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the title of a picture, and all other texts that it may show."""
    suites = sorted({run["suite"] for run in facts["runs"]})
    return f"Accuracy and reasoning: {', '.join(suites)}", [Path(run["file"]).stem for run in facts["runs"]]


def draw(options: argparse.Namespace, facts: dict[str, Any], view: View) -> Figure:
    from ..plots import budget

    return budget.draw(facts, view)
