"""Attention: the text below a map, and one row for each head, layer or query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .sheet import Sheet, View, cells, depth, fit_across, length, name_columns, stacked, text_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST = 56  # tokens in a line
_TICKS = {0.0: "0", 0.01: "0.01", 0.1: "0.1", 0.25: "0.25", 0.5: "0.5", 1.0: "1"}
_RIGHT = 0.95  # inches of the colour bar with its labels
_LABELLED = 64  # tokens of a matrix that all have a label


def draw(facts: dict[str, Any], view: View) -> Figure:
    """Draw the attention of one head, if the facts hold a whole one; else that of one token.

    One layer has a row for each head. Several layers have a row each, the mean of their heads.
    """
    return _matrix(facts, view) if "matrix" in facts["attention"] else _rows(facts, view)


def _norm() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.5, 0, 1)  # small probabilities are the rule in a long text


def _rows(facts: dict[str, Any], view: View) -> Figure:
    attention, token = facts["attention"], facts["token"]
    query = np.array(attention["query"])  # [n, H, S]
    labels = [view.letters.token(each["text"]) for each in facts["tokens"][: token + 1]]
    if len(query) == 1:
        values, names = query[0], [str(h) for h in range(facts["heads"])]
        kind, says = "head", f"layer {attention['layers'][0]}, one row for each head"
    else:
        values, names = query.mean(axis=1), [str(layer) for layer in attention["layers"]]
        kind, says = "layer", "one row for each layer, the mean of its heads"
    says = f"Attention from token {token} “{labels[-1]}” to the text up to it: {says}"

    lines = text_lines(token + 1, _MOST)
    width = min(0.5, max(0.17, 6.5 / len(lines[0])))
    across = fit_across(labels, width)
    tall, left = 0.2 * len(values), 0.62
    tops = stacked(tall + depth(labels[line.start : line.stop], across) for line in lines)
    sheet = Sheet(view, left + width * len(lines[0]) + _RIGHT, tops[-1], says)
    for n, line in enumerate(lines):
        axes = sheet.axes(left, tops[n], width * len(line), tall)
        part = slice(line.start, line.stop)
        mesh = cells(axes, values[:, part], view, _norm(), f"attention-{n}")
        name_columns(axes, labels[part], across)
        every = -(-len(values) // max(1, int(tall / 0.13)))
        axes.set_yticks(np.arange(0, len(values), every) + 0.5, labels=names[::every])
        axes.set_ylabel(kind)
        if n == 0:
            bar = left + width * len(line) + 0.15
            sheet.colour_bar(mesh, bar, 0, tall, _TICKS, "probability")
    return sheet.figure


def _matrix(facts: dict[str, Any], view: View) -> Figure:
    attention, T = facts["attention"], len(facts["tokens"])
    layer, head = attention["layers"][0], attention["head"]
    values = np.full((T, T), np.nan)
    for t, row in enumerate(attention["matrix"][0]):
        values[t, : t + 1] = row
    says = f"Attention of layer {layer}, head {head}: each row is a token, and its columns the tokens that it looks at"

    every = -(-T // _LABELLED)
    shown = range(0, T, every)
    labels = [view.letters.token(facts["tokens"][t]["text"]) for t in shown]
    if every > 1:
        labels = [f"{t} {label}" for t, label in zip(shown, labels, strict=True)]
    side = min(0.4, max(0.17, 4.5 / T)) * T if every == 1 else 0.17 * _LABELLED
    left = length(labels) + 0.4
    across = every == 1 and fit_across(labels, side / T)
    sheet = Sheet(view, left + side + _RIGHT, side + depth(labels, across) + 0.45, says)
    axes = sheet.axes(left, 0, side, side)
    mesh = cells(axes, values, view, _norm(), "attention-0", lines=every == 1)
    places = [t + 0.5 for t in shown]
    name_columns(axes, labels, across, places)
    axes.set_yticks(places, labels=labels)
    axes.set(xlabel="token that is looked at", ylabel="token that looks")
    sheet.colour_bar(mesh, left + side + 0.15, 0, min(side, 3.0), _TICKS, "probability")
    return sheet.figure
