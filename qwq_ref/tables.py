"""Tables of text: aligned columns for a terminal, and Markdown.

`qwq eval` prints each row as soon as its category is measured, so the widths must be known before the last row is.
Libraries for tables take all rows at once; that is why this small module exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

GAP = "  "  # between two columns


@dataclass(frozen=True)
class Table:
    """The columns of a table; cells are text, already formatted.

    headings  one a column
    align     one character a column: < aligns to the left, > to the right
    widths    the least width of each column; () for none
    """

    headings: Sequence[str]
    align: str
    widths: Sequence[int] = ()

    def __post_init__(self) -> None:
        if len(self.align) != len(self.headings) or set(self.align) - set("<>"):
            raise ValueError(f"{len(self.headings)} columns, aligned as {self.align!r}")

    def text(self, rows: Iterable[Sequence[str]]) -> str:
        """Return the headings and the rows as lines; each column is as wide as its longest cell."""
        lines = [self.headings, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        fitted = Table(self.headings, self.align, [max(pair) for pair in zip(widths, self._least(), strict=True)])
        return "\n".join(fitted.line(line) for line in lines)

    def line(self, cells: Sequence[str]) -> str:
        """Return one line in the least widths, for a table that grows while it is printed."""
        padded = [f"{cell:{side}{width}}" for cell, side, width in zip(cells, self.align, self._least(), strict=True)]
        return GAP.join(padded).rstrip()

    def markdown(self, rows: Iterable[Sequence[str]]) -> str:
        """Return a table of Markdown."""
        rule = ["---" if side == "<" else "---:" for side in self.align]
        lines = [[cell.replace("|", "\\|") for cell in cells] for cells in (self.headings, *rows)]
        return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])

    def _least(self) -> Sequence[int]:
        return self.widths or [0] * len(self.headings)


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and their meanings in two columns, without headings."""
    pairs = list(rows)
    table = Table(("name", "meaning"), "<<", (max((len(name) for name, _ in pairs), default=0), 0))
    return "\n".join(table.line(pair) for pair in pairs)
