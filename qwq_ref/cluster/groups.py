"""The tokens of a pass, divided into groups that follow each other through the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..engine.backends import ALL, Step
from ..engine.backends.stage import StagePiece

_LEAST = 32  # tokens of a group at least: with fewer, a weight that is read serves too few
NONE = slice(0, 0)  # no rows


def groups(ids: Sequence[list[int]], steps: Sequence[Step], most: int) -> list[list[StagePiece]]:
    """Divide the tokens of steps into groups of about one size, about so many at most. A long step is divided, too.

    A group has at most one piece of a sequence, and the pieces of a sequence come in their order.
    """
    total = sum(map(len, ids))
    size = -(-total // max(1, min(most, total // _LEAST)))
    found: list[list[StagePiece]] = [[]]
    room = size
    for piece in _pieces(ids, steps, size):
        if found[-1] and len(piece.ids) > room:
            found.append([])
            room = size
        found[-1].append(piece)
        room -= len(piece.ids)
    return found


def _pieces(ids: Sequence[list[int]], steps: Sequence[Step], size: int) -> Iterator[StagePiece]:
    """Yield the tokens of each step, at most so many at a time, with the wanted rows among them."""
    for each, step in zip(ids, steps, strict=True):
        start = step.sequence.length
        wanted = range(len(each))[step.rows]
        for begin in range(0, len(each), size):
            end = min(begin + size, len(each))
            rows = [row - begin for row in wanted if begin <= row < end]
            chosen = ALL if len(rows) == end - begin else NONE
            if rows and chosen is NONE:
                chosen = slice(rows[0], rows[-1] + 1, wanted.step)
            yield StagePiece(step.sequence.number, start + begin, each[begin:end], chosen)
