"""The logit lens: the likeliest next tokens after each layer. The last layer is at the top."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.ops import Array
from .sheet import SMALL, Sheet, View, cells, depth, fit_across, length, name_columns, stacked, text_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_WORDS = 48  # tokens of a text whose cells hold words
_CELLS, _NARROW = 12, 56  # tokens in a line, with words and without
_PROBABILITIES = {0.0: "0", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
_RIGHT = 0.95  # inches of the colour bar with its labels


def draw(facts: dict[str, Any], view: View, token: int | None = None) -> Figure:
    """Draw the lens of a text, or of one token.

    token  None: the likeliest token of each layer and token, as words in a short text, and in a long one as the rank
           of the last layer's token. A number: the tokens that the lens lists for this one
    """
    if token is not None:
        return _one(facts, view, token)
    return _words(facts, view) if len(facts["tokens"]) <= _MOST_WORDS else _ranks(facts, view)


def _words(facts: dict[str, Any], view: View) -> Figure:
    lens = facts["lens"]
    ids, probs = np.array(lens["ids"])[::-1, :, 0], np.array(lens["probs"])[::-1, :, 0]
    labels = [view.letters.token(each["text"]) for each in facts["tokens"]]
    says = "Logit lens: the likeliest next token after each layer, below it the token that the model reads"
    lines = text_lines(len(labels), _CELLS)
    left, width, high = 0.85, 0.8, 0.25
    across = fit_across(labels, width)
    tall = high * len(ids)
    tops = stacked(tall + depth(labels[line.start : line.stop], across) for line in lines)
    sheet = Sheet(view, left + width * len(lines[0]) + _RIGHT, tops[-1], says)
    for n, line in enumerate(lines):
        part = slice(line.start, line.stop)
        axes = sheet.axes(left, tops[n], width * len(line), tall)
        words = [[view.letters.token(lens["texts"][str(i)], 11) for i in row[part]] for row in ids]
        mesh = _written(axes, probs[:, part], words, view, f"lens-{n}")
        name_columns(axes, labels[part], across)
        _name_layers(axes, len(ids))
        if n == 0:
            bar = left + width * len(line) + 0.15
            sheet.colour_bar(mesh, bar, 0, tall, _PROBABILITIES, "probability")
    return sheet.figure


def _one(facts: dict[str, Any], view: View, token: int) -> Figure:
    lens = facts["lens"]
    ids, probs = np.array(lens["ids"])[::-1, token], np.array(lens["probs"])[::-1, token]
    label = view.letters.token(facts["tokens"][token]["text"])
    says = f"Logit lens: the likeliest tokens after token {token} “{label}”, for each layer"
    left, width, high = 0.85, 1.15, 0.25
    tall = high * len(ids)
    sheet = Sheet(view, left + width * ids.shape[1] + _RIGHT, tall + 0.6, says)
    axes = sheet.axes(left, 0, width * ids.shape[1], tall)
    words = [[view.letters.token(lens["texts"][str(i)], 11) for i in row] for row in ids]
    mesh = _written(axes, probs, words, view, "lens-0", numbers=True)
    axes.set_xticks(np.arange(ids.shape[1]) + 0.5, labels=[str(n + 1) for n in range(ids.shape[1])])
    axes.set_xlabel("rank")
    _name_layers(axes, len(ids))
    bar = left + width * ids.shape[1] + 0.15
    sheet.colour_bar(mesh, bar, 0, tall, _PROBABILITIES, "probability")
    return sheet.figure


def _ranks(facts: dict[str, Any], view: View) -> Figure:
    from matplotlib.colors import LogNorm

    lens = facts["lens"]
    ranks = np.array(lens["rank"])[::-1]
    labels = [view.letters.token(each["text"]) for each in facts["tokens"]]
    final = [view.letters.token(lens["texts"][str(i)]) for i in np.array(lens["ids"])[-1, :, 0]]
    says = "Logit lens: the rank that each layer gives to the model's next token, which stands above its column"
    lines = text_lines(len(labels), _NARROW)
    left, width, high = 0.85, max(0.17, 6.5 / len(lines[0])), 0.2
    tall, above = high * len(ranks), [length(final[line.start : line.stop]) for line in lines]
    tops = stacked(up + tall + length(labels[line.start : line.stop]) for up, line in zip(above, lines, strict=True))
    sheet = Sheet(view, left + width * len(lines[0]) + _RIGHT, tops[-1], says)
    largest = max(10.0, float(ranks.max()))
    ticks = {10.0**n: f"{10**n:,}" for n in range(9) if 10**n <= largest}
    for n, line in enumerate(lines):
        part = slice(line.start, line.stop)
        axes = sheet.axes(left, tops[n] + above[n], width * len(line), tall)
        # The best rank has the strongest colour: the scale runs over the inverse of the rank.
        mesh = cells(axes, 1 / ranks[:, part], view, LogNorm(1 / largest, 1), f"lens-{n}")
        name_columns(axes, labels[part], across=False)
        _name_layers(axes, len(ranks))
        top = axes.secondary_xaxis("top")
        top.set_xticks(np.arange(len(line)) + 0.5, labels=final[part], rotation=90, fontsize=SMALL)
        top.tick_params(length=0)
        top.spines["top"].set_visible(False)
        if n == 0:
            bar = left + width * len(line) + 0.15
            ticks_of_bar = {1 / rank: words for rank, words in ticks.items()}
            sheet.colour_bar(mesh, bar, above[0], tall, ticks_of_bar, "rank")
    return sheet.figure


def _written(axes: Axes, probs: Array, words: list[list[str]], view: View, name: str, numbers: bool = False) -> Any:
    """Draw cells with words in them, and with `numbers` their probabilities."""
    from matplotlib.colors import Normalize

    norm, colours = Normalize(0, 1), view.theme.colours()
    mesh = cells(axes, probs, view, norm, name)
    for r, row in enumerate(words):
        for c, word in enumerate(row):
            how: dict[str, Any] = {
                "va": "center",
                "fontsize": SMALL,
                "color": view.theme.ink_on(colours(norm(probs[r, c]))),
            }
            if numbers:
                axes.text(c + 0.06, r + 0.52, word, ha="left", **how)
                axes.text(c + 0.94, r + 0.52, f"{probs[r, c]:.2f}", ha="right", **how)
            else:
                axes.text(c + 0.5, r + 0.52, word, ha="center", **how)
    return mesh


def _name_layers(axes: Axes, rows: int) -> None:
    names = [*(str(layer) for layer in range(rows - 2, -1, -1)), "emb."]
    axes.set_yticks(np.arange(rows) + 0.5, labels=names)
    axes.set_ylabel("after layer")
