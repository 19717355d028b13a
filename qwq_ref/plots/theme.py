"""The colours of a picture, on light and on dark paper.

Colours of lines are those of Okabe and Ito, which people with any colour vision can tell apart. A scale runs through
one hue, from the paper to its opposite in lightness, so that it can be read in grey, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Theme:
    """Colours by their use; `scale` has the colours of a scale, from the lowest value to the highest."""

    paper: str
    ink: str
    faint: str
    grid: str
    mark: str
    lines: tuple[str, ...]
    scale: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """Return the settings of matplotlib."""
        inks = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "legend.labelcolor")
        papers = ("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor")
        return {
            **dict.fromkeys(inks, self.ink),
            **dict.fromkeys(papers, self.paper),
            "axes.edgecolor": self.faint,
            "grid.color": self.grid,
            "legend.edgecolor": self.grid,
        }

    def colours(self) -> Any:
        """Return the scale as a colour map."""
        from matplotlib.colors import LinearSegmentedColormap

        return LinearSegmentedColormap.from_list("scale", list(self.scale), N=101)

    def ink_on(self, rgba: Any) -> str:
        """Return the colour of letters on a colour of the scale: the one with more contrast."""
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgba[:3]]
        luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"


LIGHT = Theme(
    paper="#ffffff",
    ink="#1a1a1a",
    faint="#8a8a8a",
    grid="#e2e2e2",
    mark="#d55e00",
    lines=("#0072b2", "#d55e00", "#009e73", "#aa4a7d", "#8a6100", "#1a1a1a"),
    scale=("#f7fafd", "#c6dbef", "#6baed6", "#2171b5", "#08306b"),
)
DARK = Theme(
    paper="#16181d",
    ink="#e8e8e8",
    faint="#8a8f98",
    grid="#33373f",
    mark="#e69f00",
    lines=("#56b4e9", "#e69f00", "#2ecc9b", "#cc79a7", "#f0e442", "#e8e8e8"),
    scale=("#1e222a", "#1f4068", "#2f6fa8", "#7fb8e6", "#eef7ff"),
)
