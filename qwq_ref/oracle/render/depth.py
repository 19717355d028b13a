"""The plot of the error over depth: one tap in all layers, in the prompt and in decoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..graph import LAYER, split_name
from ..judge.localise import runs, spans
from .drawing import Circle, Figure, Path, Rect, Shape, Text, labelled, power
from .facts import Facts, number, ratio

_LEFT, _TOP, _HEIGHT = 64, 24, 220  # of the plot in its figure
_INSIDE = [op.tap for op in LAYER]


@dataclass(frozen=True)
class _Series:
    """Error and allowed error of one tap by layer, the worst of its phases. An infinite error is None."""

    name: str
    points: dict[int, tuple[float | None, float]]


@dataclass(frozen=True)
class _Axes:
    """Layers from left to right; the logarithm of errors from bottom to top."""

    layers: int
    low: float
    high: float

    @classmethod
    def of(cls, layers: int, series: Iterable[_Series]) -> _Axes:
        values = [math.log10(x) for one in series for point in one.points.values() for x in point if x] or [0.0]
        span = max(values) - min(values)
        room = max(0.15, 0.06 * span, (1 - span) / 2)  # a decade at least, so that there are ticks
        return cls(layers, min(values) - room, max(values) + room)

    @property
    def width(self) -> int:
        return max(320, min(768, 40 * self.layers))

    def x(self, layer: int) -> float:
        return round(_LEFT + (layer + 0.5) * self.width / self.layers, 1)

    def y(self, error: float | None) -> float:
        """Return the height of an error: zero is at the bottom, infinity at the top."""
        share = 1.0 if error is None else 0.0
        if error:
            share = (math.log10(error) - self.low) / (self.high - self.low)
        return round(_TOP + _HEIGHT * (1 - share), 1)

    def ticks(self) -> list[float]:
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        step = 1 + int(self.high - self.low) // 8
        within = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        ticks = [m * 10.0**n for n in decades if n % step == 0 for m in within]
        return [tick for tick in ticks if self.low <= math.log10(tick) <= self.high]


def draw_depth(facts: Facts) -> tuple[str, Figure] | None:
    """Draw the tap that most layers have -> (its name, the plot); None if no tap of a layer was measured"""
    taps = [tap for tap in facts["taps"] if tap["allowed"] is not None and split_name(tap["tap"])[0] is not None]
    if not taps:
        return None
    name = _most_frequent(split_name(tap["tap"])[1] for tap in taps)
    taps = [tap for tap in taps if split_name(tap["tap"])[1] == name]
    start = facts["phases"][0]["name"]
    parts = {
        "prompt": [tap for tap in taps if tap["phase"] == start],
        "decoding": [tap for tap in taps if tap["phase"] != start],
    }
    series = [_Series(words, _points(some)) for words, some in parts.items() if some]
    axes = _Axes.of(facts["layers"], series)
    first_layer = None if facts["first"] is None else split_name(facts["first"]["tap"])[0]
    drawn = [*_frame(axes), *_marker(axes, first_layer), *_keys(axes, series)]
    for n, one in enumerate(series):
        drawn += _lines(axes, n, one)
    summary = "; ".join(map(_in_words, series))
    size = (_LEFT + axes.width + 180, _TOP + _HEIGHT + 40)
    return name, Figure.of("depth", f"Error of {name} by layer", summary, size, drawn)


def _most_frequent(names: Iterable[str]) -> str:
    """Return the most frequent tap; of several, the last in a layer."""
    counts = Counter(names)
    return max(reversed(_INSIDE), key=lambda name: counts[name])


def _points(taps: Iterable[Facts]) -> dict[int, tuple[float | None, float]]:
    points: dict[int, tuple[float, Facts]] = {}
    for tap in taps:
        layer, share = split_name(tap["tap"])[0], ratio(tap["error"], tap["allowed"])
        assert layer is not None
        assert share is not None
        if layer not in points or share > points[layer][0]:
            points[layer] = share, tap
    return {layer: (tap["error"], tap["allowed"]) for layer, (_, tap) in sorted(points.items())}


def _frame(axes: _Axes) -> Iterable[Shape]:
    yield Rect(_LEFT, _TOP, axes.width, _HEIGHT, "plot")
    for tick in axes.ticks():
        yield Path("grid", f"M{_LEFT} {axes.y(tick):g}h{axes.width}")
        yield Text(_LEFT - 6, axes.y(tick) + 4, _tick(tick), "end")
    bottom = _TOP + _HEIGHT
    for layer in labelled(axes.layers, axes.width / axes.layers):
        yield Text(axes.x(layer), bottom + 16, str(layer), "mid")
    yield Text(_LEFT + axes.width / 2, bottom + 34, "layer", "mid")


def _marker(axes: _Axes, layer: int | None) -> Iterable[Shape]:
    """Mark the layer of the first divergence."""
    if layer is not None:
        x = axes.x(layer)
        yield Path("at", f"M{x:g} {_TOP}v{_HEIGHT}")
        yield Text(x, _TOP - 5, "first divergence", "end" if layer > axes.layers / 2 else "")


def _lines(axes: _Axes, n: int, series: _Series) -> Iterable[Shape]:
    """Draw the errors with a point at each, and the allowed errors. Lines are broken at missing layers."""
    for css, which in (("l", 1), ("s", 0)):
        path = ""
        for first, last in runs(list(series.points)):
            spots = [f"{axes.x(i):g} {axes.y(series.points[i][which]):g}" for i in range(first, last + 1)]
            path += f"M{'L'.join(spots)}" + "m-9 0h18" * (first == last)
        yield Path(f"{css}{n}", path)
    for layer, (error, allowed) in series.points.items():
        words = f"layer {layer}, {series.name}: error {number(error, 'infinite')}, allowed {number(allowed)}"
        yield _point(n, axes.x(layer), axes.y(error), words)


def _point(n: int, x: float, y: float, title: str = "") -> Shape:
    return Rect(x - 3, y - 3, 6, 6, f"d{n}", title) if n else Circle(x, y, "d0", title)


def _keys(axes: _Axes, series: Sequence[_Series]) -> Iterable[Shape]:
    x, y = _LEFT + axes.width + 12, _TOP + 8
    for n, one in enumerate(series):
        yield Path(f"s{n}", f"M{x} {y}h28")
        yield _point(n, x + 14, y)
        yield Text(x + 34, y + 4, f"error, {one.name}")
        yield Path(f"l{n}", f"M{x} {y + 18}h28")
        yield Text(x + 34, y + 22, f"allowed, {one.name}")
        y += 36


def _in_words(series: _Series) -> str:
    over = [layer for layer, (error, allowed) in series.points.items() if error is None or error > allowed]
    if not over:
        return f"{series.name}: within what is allowed in each layer"
    return f"{series.name}: more than allowed in layer {spans(over)}"


def _tick(x: float) -> str:
    n = math.floor(math.log10(x) + 1e-9)
    if -4 < n < 5:
        return f"{x:g}"
    m = round(x / 10.0**n)
    return power(n) if m == 1 else f"{m}·{power(n)}"
