"""The log of training runs: a panel for each measure, a line for each run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.ops import Array
from .sheet import SMALL, Sheet, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Measure -> the words above its panel. Those that a log has are drawn, in this order.
_PANELS = {
    "reward": "reward",
    "correct": "part: correct",
    "format": "part: format",
    "language": "part: language",
    "repetition": "part: repetition",
    "truncated": "part: truncated",
    "length": "tokens of an answer",
    "kl": "KL from the reference, nats of an answer",
    "entropy": "entropy, nats of a token",
    "loss": "loss",
    "grad_norm": "norm of the gradient",
    "rate": "learning rate",
}
_REINFORCED = 9  # the panels of reinforcement learning; its loss says nothing about progress
_WIDE, _TALL, _GAP, _BELOW = 2.35, 1.25, 0.62, 0.62  # inches
_LEFT, _COLUMNS, _LEGEND = 0.55, 3, 0.3
_PARTS = 20  # a line is the mean of this part of a run


def draw(facts: dict[str, Any], view: View) -> Figure:
    """Draw each value faintly, and the mean over a twentieth of the run."""
    runs = facts["runs"]
    names = [name for name in _PANELS if name in runs[0]["columns"]]
    if "reward" in names:
        names = names[:_REINFORCED]
    rows = -(-len(names) // _COLUMNS)
    width = _LEFT + _COLUMNS * (_WIDE + _GAP)
    says = f"Each value, and the mean over {100 // _PARTS} % of the run"
    sheet = Sheet(view, width, rows * (_TALL + _BELOW) + _LEGEND, says)
    for number, name in enumerate(names):
        row, column = divmod(number, _COLUMNS)
        axes = sheet.axes(_LEFT + column * (_WIDE + _GAP), _LEGEND + 0.1 + row * (_TALL + _BELOW), _WIDE, _TALL)
        for place, run in enumerate(runs):
            steps, values = (np.array(run["columns"][key]) for key in (next(iter(run["columns"])), name))
            colour = view.theme.lines[place % len(view.theme.lines)]
            axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.3)
            label = view.letters.text(Path(run["folder"]).name)
            axes.plot(steps, smoothed(values), color=colour, linewidth=1.4, gid=f"{name}-{place}", label=label)
        axes.set_title(_PANELS[name], fontsize=SMALL, loc="left")
        axes.tick_params(labelsize=SMALL, length=2)
        axes.grid(True, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        if number == 0:
            axes.legend(
                loc="lower left", bbox_to_anchor=(0, 1.2), ncols=4, frameon=False, borderaxespad=0, fontsize=SMALL
            )
        if row == rows - 1:
            axes.set_xlabel(next(iter(runs[0]["columns"])), fontsize=SMALL)
    return sheet.figure


def smoothed(values: Array) -> Array:
    """values [N] -> [N]

    The mean of a window around each value, which is cut off at both ends.
    """
    half = max(0, len(values) // _PARTS // 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.maximum(np.arange(len(values)) - half, 0), np.minimum(np.arange(len(values)) + half + 1, len(values))
    means: Array = (sums[high] - sums[low]) / (high - low)
    return means
