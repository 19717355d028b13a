"""The residual stream: its root mean square after each layer, and what attention and the MLP add to it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.ops import Array
from .sheet import SMALL, Sheet, View

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MIDDLE = (10, 90)  # percentiles between which a band lies
_LEAST = 1e-30  # in place of zeros, which have no logarithm


def draw(facts: dict[str, Any], view: View) -> Figure:
    """Draw a line for each token, the chosen one in front; below, the two shares of each layer."""
    from matplotlib.ticker import MaxNLocator

    L, T = facts["layers"], len(facts["tokens"])
    rms = np.array(facts["residual"]["rms"])  # [L + 1, T]
    chosen = facts["token"]
    says = f"Residual stream of {T} tokens: root mean square over the channels, after each layer"
    left, right, tall, low = 0.85, 1.5, 2.4, 1.9
    wide = min(9.0, max(4.6, 0.3 * L))
    sheet = Sheet(view, left + wide + right, tall + low + 1.05, says)
    upper, lower = sheet.axes(left, 0, wide, tall), sheet.axes(left, tall + 0.45, wide, low)

    layers = np.arange(-1, L)
    for t in range(T):
        (line,) = upper.plot(layers, rms[:, t], color=view.theme.faint, linewidth=0.7, alpha=max(0.15, 0.8 / T**0.4))
        line.set_gid(f"token-{t}")
    largest = int(rms[-1].argmax())
    for t, colour in ((largest, view.theme.lines[1]), (chosen, view.theme.lines[0])):
        if t == largest == chosen and colour == view.theme.lines[1]:
            continue
        (line,) = upper.plot(layers, rms[:, t], color=colour, linewidth=1.8, marker="o", markersize=3)
        line.set_gid("chosen" if t == chosen else "largest")
    _end_labels(upper, facts, view, rms, {chosen: view.theme.lines[0], **_other(largest, chosen, view)})
    _logarithmic(upper, rms)
    upper.set(ylabel="root mean square", xlim=(-1.4, L - 0.6), xticklabels=[])

    before = rms[:-1]
    for name, words, colour, marker in (
        ("attention", "attention", view.theme.lines[0], "o"),
        ("mlp", "MLP", view.theme.lines[1], "s"),
    ):
        share = np.array(facts["residual"][name]) / np.maximum(before, _LEAST)
        under, over = np.percentile(share, _MIDDLE, axis=1)
        band = lower.fill_between(layers[1:], under, over, color=colour, alpha=0.18, linewidth=0)
        band.set_gid(f"{name}-band")
        (line,) = lower.plot(layers[1:], share[:, chosen], color=colour, marker=marker, markersize=4, label=words)
        line.set_gid(name)
    _logarithmic(lower, np.array([line.get_ydata() for line in lower.get_lines()]))
    lower.set(ylabel="added / stream before", xlabel="layer", xlim=(-1.4, L - 0.6))
    lower.legend(loc="upper left", bbox_to_anchor=(1.02, 1.02), frameon=False, borderaxespad=0, title="added by")
    token = view.letters.token(facts["tokens"][chosen]["text"])
    note = f"lines: token {chosen}\n“{token}”\nbands: the middle\n80 % of the tokens"
    lower.text(1.03, 0.45, note, transform=lower.transAxes, fontsize=SMALL, va="top")
    if T > 2:
        upper.text(1.03, 0.2, "grey lines:\nthe other tokens", transform=upper.transAxes, fontsize=SMALL, va="top")
    lower.xaxis.set_major_locator(MaxNLocator(min(L + 1, 24), integer=True))
    ticks = [int(at) for at in lower.get_xticks() if 0 <= at < L]
    for axes in (upper, lower):
        axes.set_xticks([-1, *ticks])
        axes.grid(True, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    lower.set_xticklabels(["emb.", *map(str, ticks)])
    upper.set_xticklabels([])
    return sheet.figure


def _other(largest: int, chosen: int, view: View) -> dict[int, str]:
    return {} if largest == chosen else {largest: view.theme.lines[1]}


def _end_labels(axes: Axes, facts: dict[str, Any], view: View, rms: Array, tokens: dict[int, str]) -> None:
    """Name lines at their right ends, and keep the names apart."""
    heights = np.log(np.maximum(rms, _LEAST))
    places = sorted((heights[-1, t] / max(np.ptp(heights), 1e-9), t) for t in tokens)
    for n, (_, t) in enumerate(places):
        near = len(places) == 2 and places[1][0] - places[0][0] < 0.08
        shift = 0 if not near else (8 if n else -8)
        axes.annotate(
            f"{t} “{view.letters.token(facts['tokens'][t]['text'])}”",
            (facts["layers"] - 1, rms[-1, t]),
            xytext=(7, shift),
            textcoords="offset points",
            fontsize=SMALL,
            va="center",
            color=tokens[t],
            annotation_clip=False,
        )


def _logarithmic(axes: Axes, values: Array) -> None:
    """A logarithmic scale, with ticks at 1, 2 and 5 where they are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    positive = values[values > 0]
    if not positive.size:
        return
    axes.set_yscale("log")
    decades = math.log10(positive.max() / positive.min())
    axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5) if decades < 3 else (1,), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
