"""Paper for a picture: its size in inches, axes at places on it, cells of a map, and the file.

Everything is placed by arithmetic and no display is needed, so that the same data give the same bytes.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError
from ..spec.ops import Array
from .letters import Letters, columns, cut, for_pixels, widest
from .theme import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "pip install 'qwq_ref[plot]'"
KINDS = ("svg", "png")
SMALL, USUAL, LARGE = 7.5, 9.0, 11.0  # points
_COLUMN = 0.6 / 72  # inches of a half-width character, for each point of its size
_EDGE = 0.15  # inches around everything
_BAR = 1.2  # inches of the shortest colour bar
_MOST_CELLS = 6000  # of a map in an SVG that are drawn one by one; more become one embedded picture
_DPI = 160


@dataclass(frozen=True)
class View:
    """The look of a picture.

    title    the text that the picture is about; it is cut to one line
    letters  of its labels
    theme    its colours
    """

    title: str
    letters: Letters
    theme: Theme

    @classmethod
    def of(cls, kind: str, title: str, texts: Sequence[str], dark: bool) -> View:
        """`texts`: everything else that may be written into the picture."""
        letters = for_pixels([title, *texts]) if kind == "png" else Letters()
        return cls(title, letters, DARK if dark else LIGHT)


class Sheet:
    """A figure on which places are inches from its left and its top, below the two lines of its heading."""

    def __init__(self, view: View, width: float, height: float, says: str) -> None:
        from matplotlib.figure import Figure

        self.view, self.top = view, 0.62
        self.width = max(width, 4.6, _EDGE * 2 + columns(says) * USUAL * _COLUMN)
        self.height = max(height, _BAR + 0.15) + self.top
        self.figure: Figure = Figure(figsize=(self.width, self.height), dpi=_DPI)
        most = int((self.width - 2 * _EDGE) / (LARGE * _COLUMN * 1.08))
        self._write(0.26, cut(view.letters.text(view.title), most), LARGE, weight="bold")
        self._write(0.48, says, USUAL)

    def _write(self, top: float, text: str, size: float, **how: Any) -> None:
        self.figure.text(_EDGE / self.width, 1 - top / self.height, text, fontsize=size, **how)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        place = (left / self.width, 1 - (self.top + top + height) / self.height)
        return self.figure.add_axes((*place, width / self.width, height / self.height))

    def colour_bar(
        self, mesh: Any, left: float, top: float, height: float, ticks: dict[float, str], label: str
    ) -> None:
        """Draw a scale beside a map of so many inches; it is never too short for its ticks."""
        axes = self.axes(left, top, 0.14, max(height, _BAR))
        bar = self.figure.colorbar(mesh, cax=axes, label=label)
        bar.set_ticks(list(ticks), labels=list(ticks.values()))
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=SMALL)
        bar.ax.set_ylabel(label, fontsize=SMALL)
        bar.outline.set_visible(False)
        solids: Any = bar.solids
        solids.set(rasterized=False, clip_on=False, edgecolor="face", linewidth=0.3)  # no seams between steps


def cells(axes: Axes, values: Array, view: View, norm: Any, name: str, lines: bool = True) -> Any:
    """Draw values [rows, columns] as a map, the first row at the top; NaN stays paper. `name` is its id in an SVG."""
    rows, count = values.shape
    mesh = axes.pcolormesh(
        np.arange(count + 1),
        np.arange(rows + 1),
        np.ma.masked_invalid(values),
        cmap=view.theme.colours(),
        norm=norm,
        rasterized=rows * count > _MOST_CELLS,
        clip_on=False,
    )
    mesh.set_gid(name)
    if lines:
        how: dict[str, Any] = {"colors": view.theme.paper, "linewidth": 0.8}
        axes.hlines(np.arange(1, rows), 0, count, **how)
        axes.vlines(np.arange(1, count), 0, rows, **how)
    axes.set(xlim=(0, count), ylim=(rows, 0))
    axes.tick_params(length=0, labelsize=SMALL)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return mesh


def fit_across(labels: Sequence[str], width: float) -> bool:
    """Whether each label is narrow enough for a column of so many inches; they are written upwards otherwise."""
    return widest(labels) * SMALL * _COLUMN < width


def name_columns(axes: Axes, labels: list[str], across: bool, at: list[float] | None = None) -> None:
    """Write labels below the columns of a map."""
    places = [n + 0.5 for n in range(len(labels))] if at is None else at
    axes.set_xticks(places, labels=labels, rotation=0 if across else 90, fontsize=SMALL)


def length(labels: Sequence[str]) -> float:
    """Return the inches of the longest label, with the gap before it."""
    return widest(labels) * SMALL * _COLUMN + 0.08


def depth(labels: Sequence[str], across: bool) -> float:
    """Return the inches that labels take below a map."""
    return 0.22 if across else length(labels)


def stacked(heights: Iterable[float], gap: float = 0.22) -> list[float]:
    """Return the tops of parts that stand below one another, and the end of the last one."""
    return [0.0, *itertools.accumulate(height + gap for height in heights)]


def text_lines(count: int, most: int) -> list[range]:
    """Cut columns into lines of about the same length, as a text is, with at most `most` in each."""
    number = -(-count // most)
    size = -(-count // number)
    return [range(begin, min(begin + size, count)) for begin in range(0, count, size)]


def require_matplotlib() -> None:
    """Raise UsageError if matplotlib is not installed. It is not imported yet, and will not talk about its caches."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(None, "out", f"needs matplotlib, which is missing: {INSTALL}")
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def kind_of(path: str) -> str:
    """Return "svg" or "png", from the name of a file. Raises UsageError for other names."""
    kind = path.rpartition(".")[2].lower() if "." in path else ""
    if kind not in KINDS:
        raise UsageError(None, "out", f"must end in .svg or .png, got {path[-60:]}")
    return kind


@contextmanager
def drawing(view: View) -> Iterator[None]:
    """Set up matplotlib for the block, whatever settings this machine has."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings():
        # An SVG keeps the letters that FONT lacks. Its reader has fonts of their own.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": ["sans-serif"],
                "font.sans-serif": [*view.letters.fonts],
                "font.size": USUAL,
                "text.parse_math": False,  # a token may be $
                "axes.formatter.use_mathtext": False,
                "axes.linewidth": 0.6,
                "svg.fonttype": "none",
                "svg.hashsalt": "qwq_ref",
                **view.theme.settings(),
            }
        )
        yield


def rendered(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a file, without a date. Call it within `drawing`."""
    made = io.BytesIO()
    nothing = {"Date": None} if kind == "svg" else {"Software": None}
    figure.savefig(made, format=kind, metadata=nothing)
    return _compact(made.getvalue().decode()).encode() if kind == "svg" else made.getvalue()


_NUMBER = r"(-?[\d.]+)"
_CELL = re.compile(
    rf'<path d="M {_NUMBER} {_NUMBER} \nL {_NUMBER} \2 \nL \3 {_NUMBER} \nL \1 \4 \nL \1 \2 \n" style="([^"]*)"/>\n *'
)


def _compact(svg: str) -> str:
    """Write the cells of maps in a quarter of their length, and leave out those without a colour."""

    def short(cell: re.Match[str]) -> str:
        if "fill: none" in cell[5] or "opacity: 0" in cell[5]:
            return ""
        x, y, right, bottom = (f"{float(number):.2f}".rstrip("0").rstrip(".") for number in cell.groups()[:4])
        colour = re.fullmatch(r"fill: (#\w{6})", cell[5])
        how = f'fill="{colour[1]}"' if colour else f'style="{cell[5]}"'
        return f'<path d="M{x} {y}H{right}V{bottom}H{x}z" {how}/>\n'

    return _CELL.sub(short, svg)
