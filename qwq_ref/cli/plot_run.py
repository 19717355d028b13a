"""The subject of `qwq plot` that reads the folders of training runs: run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..plots.sheet import View

SUBJECTS = {
    "run": (
        "how a training run went",
        "Draw the log of runs of `qwq train`: reward, its parts, length, KL divergence and entropy of reinforcement "
        "learning, or loss, gradient norm and rate of the other stages. One line for each folder.",
    )
}


def add_arguments(parser: argparse.ArgumentParser, subject: str) -> None:
    parser.add_argument("folders", nargs="+", metavar="DIR", help="the folder of a run")


def facts(options: argparse.Namespace) -> dict[str, Any]:
    """Return the columns of each log. Raises UsageError, and CheckpointError for a log that is damaged."""
    from ..errors import UsageError
    from ..train.folder import LOG, read_log

    runs = [{"folder": folder, "columns": read_log(Path(folder) / LOG)} for folder in options.folders]
    first = next(iter(runs[0]["columns"]))
    for run in runs:
        if next(iter(run["columns"])) != first:
            raise UsageError(run["folder"], "stage", f"is another than that of {options.folders[0]}: draw it alone")
    return {"runs": runs}


def words(facts: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the title of a picture, and all other texts that it may show."""
    names = [Path(run["folder"]).name for run in facts["runs"]]
    return f"Training: {', '.join(names)}", names


def draw(options: argparse.Namespace, facts: dict[str, Any], view: View) -> Figure:
    from ..plots import run

    return run.draw(facts, view)
