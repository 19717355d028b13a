"""The accuracy of a suite against the tokens of reasoning: a line for each file of answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .sheet import SMALL, Sheet, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEFT, _WIDE, _TALL, _RIGHT = 0.75, 5.2, 3.0, 1.9  # inches


def draw(facts: dict[str, Any], view: View) -> Figure:
    """Draw the points with their intervals of 95 %, and the budget beside each."""
    from matplotlib.ticker import PercentFormatter

    says = "Share of correct answers, with its interval of 95 %, against the mean tokens of reasoning"
    sheet = Sheet(view, _LEFT + _WIDE + _RIGHT, _TALL + 0.6, says)
    axes = sheet.axes(_LEFT, 0, _WIDE, _TALL)
    for number, run in enumerate(facts["runs"]):
        points = run["points"]
        x = [point["reasoning_tokens"] for point in points]
        y = [point["accuracy"] for point in points]
        bounds = [
            [max(0.0, point["accuracy"] - point["low"]) for point in points],
            [max(0.0, point["high"] - point["accuracy"]) for point in points],
        ]
        colour = view.theme.lines[number % len(view.theme.lines)]
        name = view.letters.text(Path(run["file"]).stem)
        line = axes.errorbar(x, y, bounds, color=colour, marker="o", markersize=4, capsize=2.5, linewidth=1.4)
        line[0].set_gid(f"run-{number}")
        line[0].set_label(name)
        for place, budgets in _places(points).items():
            words = ", ".join(budgets)
            axes.annotate(words, place, (5, -9), textcoords="offset points", fontsize=SMALL, color=colour)
    handles = [container[0] for container in axes.containers]
    axes.legend(
        handles,
        [handle.get_label() for handle in handles],
        loc="upper left",
        bbox_to_anchor=(1.02, 1.02),
        frameon=False,
        borderaxespad=0,
        title="answers",
    )
    axes.set(xlabel="mean tokens of reasoning; beside each point its budget", ylabel="correct", ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.margins(x=0.08)
    axes.grid(True, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return sheet.figure


def _places(points: list[dict[str, Any]]) -> dict[tuple[float, float], list[str]]:
    """Return the budgets at each place: larger ones than a model needs lie on one another."""
    places: dict[tuple[float, float], list[str]] = {}
    for point in points:
        budget = "no limit" if point["budget"] is None else str(point["budget"])
        places.setdefault((point["reasoning_tokens"], point["accuracy"]), []).append(budget)
    return places
