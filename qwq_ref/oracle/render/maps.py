"""The maps: a cell for each tap and layer, coloured by its error."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..graph import BEFORE, LAYER, LOGITS, NORM, absolute
from ..judge.localise import runs
from .drawing import CHAR, Figure, Path, Rect, Shape, Text, labelled, power
from .facts import MEASURED, STATUS, UNUSABLE, Facts, badness, excess, excess_words

_LEVELS, _STRONG = 6, 4  # levels of colour; from the second number on, marks have the colour of the page
_LABELS, _ROW = 190, 15  # width of the names of rows, height of a row
_INSIDE = [op.tap for op in LAYER]
_BEFORE = [op.tap for op in BEFORE]
_AFTER = [NORM, LOGITS]


def draw_maps(facts: Facts) -> list[Figure]:
    """Draw the maps of the prompt and of decoding, after their legend."""
    taps, first, layers = facts["taps"], facts["first"], range(facts["layers"])
    start = facts["phases"][0]["name"]
    steps = len(facts["phases"]) - 1
    decoding = f"In decoding, the worst of {steps} steps" if steps > 1 else "In decoding"
    scale = _Scale.of(taps)
    maps = []
    for name, title in (("prompt", "In the prompt"), ("decoding", decoding)):
        cells = _worst_of_steps(tap for tap in taps if (tap["phase"] == start) == (name == "prompt"))
        if cells:
            here = first is not None and (first["phase"] == start) == (name == "prompt")
            maps.append(_map(name, title, cells, layers, scale, first["tap"] if here else None))
    hatched = any(isinstance(shape, Rect) and shape.css == "h" for one in maps for shape in one.shapes)
    return [_legend(facts, scale, hatched), *maps]


def _worst_of_steps(taps: Iterable[Facts]) -> dict[str, Facts]:
    worst: dict[str, Facts] = {}
    for tap in taps:
        if tap["tap"] not in worst or badness(tap) > badness(worst[tap["tap"]]):
            worst[tap["tap"]] = tap
    return worst


@dataclass(frozen=True)
class _Scale:
    """Colours by the excess: level n begins at factor ** n."""

    factor: int

    @classmethod
    def of(cls, taps: Iterable[Facts]) -> _Scale:
        """Return the finest scale whose last level is that of the worst tap alone."""
        ratios = [excess(tap) for tap in taps if tap["status"] in MEASURED]
        most = max((ratio for ratio in ratios if ratio is not None and math.isfinite(ratio)), default=1.0)
        return cls(next((f for f in (2, 4, 10, 100, 1000) if f**_LEVELS >= most), 10_000))

    def level(self, ratio: float | None) -> int:
        if ratio is None or ratio <= 1:
            return 0
        return _LEVELS - 1 if math.isinf(ratio) else min(_LEVELS - 1, int(math.log(ratio, self.factor) + 1e-9))

    def edge(self, level: int) -> str:
        x = self.factor**level
        return f"{x:,}" if x < 100_000 else power(round(math.log10(x)))

    def css(self, tap: Facts) -> str:
        """Return the class of a tap's cell: the first letter of the status, and the level."""
        status = tap["status"]
        if status in MEASURED:
            return f"{status[0]}{self.level(excess(tap))}"
        return "o" if status == "ok" else "x"


@dataclass(frozen=True)
class _Row:
    """A row of a map. Columns without a cell are hatched."""

    label: str
    columns: range
    cells: dict[int, Facts]

    @property
    def group(self) -> str:
        return self.label.rpartition(".")[0]

    @property
    def missing(self) -> list[int]:
        return [column for column in self.columns if column not in self.cells]


def _map(name: str, title: str, cells: dict[str, Facts], layers: range, scale: _Scale, first: str | None) -> Figure:
    """Draw the computation from top to bottom: taps before the layers, taps of the layers, taps after them."""
    inside = [
        _Row(tap, layers, {n: cells[full] for n in layers if (full := absolute(n, tap)) in cells}) for tap in _INSIDE
    ]
    if not any(row.cells for row in inside):
        inside = []
    before = [_outside_row(tap, layers[:1], cells) for tap in _BEFORE]
    after = [_outside_row(tap, layers[-1:] if inside else layers[:1], cells) for tap in _AFTER]

    width = max(5, min(40, 768 // len(layers)))
    cells_ = _Cells(scale, first)
    y = _draw_rows(cells_, before, width, 2)
    if inside:
        y = _draw_layer_numbers(cells_, len(layers), width, y + 4)
        y = _draw_rows(cells_, inside, width, y) + 4
    y = _draw_rows(cells_, after, width, y)
    summary = _summary([*before, *inside, *after])
    return Figure.of(f"map-{name}", title, summary, (cells_.width, y + 2), cells_.shapes())


def _outside_row(tap: str, columns: range, cells: dict[str, Facts]) -> _Row:
    return _Row(tap.rpartition(".")[2], columns, {columns[0]: cells[tap]} if tap in cells else {})


def _draw_rows(cells: _Cells, rows: Sequence[_Row], width: int, y: int) -> int:
    """Draw rows from `y` down, with cells of this width -> the end of the last row"""
    for i, row in enumerate(rows):
        y += 4 * (i > 0 and row.group != rows[i - 1].group)
        cells.text(_LABELS - 6, y + 11, row.label, "end")
        for first, last in runs(row.missing):
            cells.rect(_LABELS + first * width, y, (last - first + 1) * width - 1, "h", "not compared")
        for column, cell in row.cells.items():
            cells.cell(_LABELS + column * width, y, width - 1, cell)
        y += _ROW
    return y


def _draw_layer_numbers(cells: _Cells, layers: int, width: int, y: int) -> int:
    cells.text(_LABELS - 6, y + 11, "layer", "end")
    for layer in labelled(layers, width):
        cells.text(_LABELS + (layer + 0.5) * width, y + 11, str(layer), "mid")
    return y + _ROW


def _summary(rows: Sequence[_Row]) -> str:
    counts = Counter(cell["status"] for row in rows for cell in row.cells.values())
    counts["missing"] = sum(len(row.missing) for row in rows)
    return ", ".join(f"{n:,} {words[n > 1]}" for status, words in STATUS.items() if (n := counts[status]))


class _Cells:
    """Cells, with marks on top: colour is not the only sign. All marks of a kind are one path."""

    def __init__(self, scale: _Scale, first: str | None = None) -> None:
        self.scale = scale
        self.first = first
        self.width = 0.0
        self.parts: list[Shape] = []
        self.marks: dict[str, str] = {}
        self.outline: list[Shape] = []

    def rect(self, x: float, y: float, width: float, css: str, title: str = "") -> None:
        self.parts.append(Rect(x, y, width, _ROW - 1, css, title))
        self.width = max(self.width, x + width + 2)

    def text(self, x: float, y: float, words: str, css: str = "") -> None:
        self.parts.append(Text(x, y, words, css))
        if css != "end":
            self.width = max(self.width, x + len(words) * CHAR)

    def cell(self, x: float, y: float, width: float, tap: Facts) -> None:
        status, step = tap["status"], "" if tap["phase"] == "prompt" else f" in {tap['phase']}"
        title = f"{tap['tap']}{step}: {STATUS[status][0]}" + ("" if status in UNUSABLE else f", {excess_words(tap)}")
        self.rect(x, y, width, self.scale.css(tap), title)
        self.mark(x, y, width, status, self.scale.level(excess(tap)) >= _STRONG)
        if tap["tap"] == self.first:
            self.outline = [
                Rect(x - 0.5, y - 0.5, width + 1, _ROW, "halo"),
                Rect(x - 2, y - 2, width + 4, _ROW + 3, "f", f"first divergence: {title}"),
            ]

    def mark(self, x: float, y: float, width: float, status: str, strong: bool = False) -> None:
        """Put the mark of a status into the middle of a cell; `strong` for marks on dark colours."""
        x, y, r = x + width / 2, y + (_ROW - 1) / 2, max(1.5, min(3.5, width / 4))
        path = {
            "introduced": f"M{x:g} {y:g}h0",
            "propagated": f"M{x - r:g} {y:g}h{2 * r:g}",
            "beyond": f"M{x - r:g} {y + r:g}l{2 * r:g}-{2 * r:g}",
        }
        for unusable in UNUSABLE:
            path[unusable] = f"M{x - r:g} {y - r:g}l{2 * r:g} {2 * r:g}m0-{2 * r:g}l-{2 * r:g} {2 * r:g}"
        if status in path:
            css = f"m {status}" + (" strong" if strong or status in UNUSABLE else "")
            self.marks[css] = self.marks.get(css, "") + path[status]

    def shapes(self) -> list[Shape]:
        return [*self.parts, *(Path(css, path) for css, path in self.marks.items()), *self.outline]


def _legend(facts: Facts, scale: _Scale, hatched: bool) -> Figure:
    """Explain the colours and marks that occur."""
    found = {tap["status"] for tap in facts["taps"]}
    cells, y, width = _Cells(scale), 2, 52
    scales = [status for status in MEASURED if status in found]
    if scales:
        cells.text(_LABELS - 6, y + 11, "times what is allowed", "end")
        for level in range(_LEVELS):
            cells.text(_LABELS + level * width, y + 11, scale.edge(level))
        cells.text(_LABELS + _LEVELS * width, y + 11, "and more")
        y += _ROW
    for status in scales:
        cells.text(_LABELS - 6, y + 11, STATUS[status][0], "end")
        for level in range(_LEVELS):
            cells.rect(_LABELS + level * width, y, width - 1, f"{status[0]}{level}")
            cells.mark(_LABELS + level * width, y, width - 1, status, level >= _STRONG)
        y += _ROW
    y, x = y + 4 * bool(scales), float(_LABELS)
    others = [("o", "ok", "right", "ok" in found), ("x", "nan", "NaN, infinity or unusable", found & {*UNUSABLE})]
    others += [("h", "", "not compared", hatched), ("f", "", "first divergence", facts["first"])]
    for css, status, words, occurs in others:
        if occurs:
            cells.rect(x, y, 20, css)
            cells.mark(x, y, 20, status)
            cells.text(x + 25, y + 11, words)
            x += 25 + len(words) * CHAR + 14
    about = "What the colours and marks of the maps mean"
    return Figure.of("legend", "Legend", about, (cells.width, y + _ROW + 2), cells.shapes(), hatched=True)
