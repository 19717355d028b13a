"""Shapes of an SVG figure, for the template figure.html.jinja."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

CHAR = 6.7  # width of a character of a figure


@dataclass(frozen=True)
class Rect:
    kind: ClassVar = "rect"
    x: float
    y: float
    width: float
    height: float
    css: str
    title: str = ""


@dataclass(frozen=True)
class Text:
    kind: ClassVar = "text"
    x: float
    y: float
    words: str
    css: str = ""


@dataclass(frozen=True)
class Path:
    kind: ClassVar = "path"
    css: str
    d: str


@dataclass(frozen=True)
class Circle:
    kind: ClassVar = "circle"
    x: float
    y: float
    css: str
    title: str = ""


Shape = Rect | Text | Path | Circle


@dataclass(frozen=True)
class Figure:
    """An SVG image.

    key      the prefix of its ids in the page
    summary  a description for those who cannot see it
    hatched  whether it defines the hatching that the maps use
    """

    key: str
    title: str
    summary: str
    width: int
    height: int
    shapes: Sequence[Shape]
    hatched: bool = False

    @classmethod
    def of(
        cls,
        key: str,
        title: str,
        summary: str,
        size: tuple[float, float],
        shapes: Sequence[Shape],
        hatched: bool = False,
    ) -> Figure:
        """A figure of at least this size."""
        return cls(key, title, summary, math.ceil(size[0]), math.ceil(size[1]), shapes, hatched)


def labelled(layers: int, width: float) -> range:
    """Return the layers whose number fits, for columns of this width."""
    step = 1
    while step * width < 20:
        step *= 2
    return range(0, layers, step)


def power(n: int) -> str:
    """Write a power of ten."""
    return "10" + str(n).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
