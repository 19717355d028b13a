"""Some successive layers of a model: one of the stages that the model's layers are divided into.

A stage takes the residual stream [T, D] of the stage before it, and gives that behind its own layers; the first takes
token ids, and the last gives logits. Each holds the keys and values of its own layers. The bits are those of
`CoreBackend`, of which it is a part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Listed
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from ... import core
from ...config import Config
from ...core import Packed, Stop
from ...forms import AnyForm
from ...spec.ops import Array, Tap
from ..plan import HEAD, NORM, columns_of, plan
from ..streaming import Piece, WeightReader, layer_of, packed_in, pieces_of_layer
from ..weights import Ready
from . import Step
from .core import CoreBackend, Sequence


@dataclass(frozen=True)
class Span:
    """Layers [begin, end) of a model of L layers."""

    begin: int
    end: int
    L: int

    @property
    def starts(self) -> bool:
        return self.begin == 0

    @property
    def ends(self) -> bool:
        return self.end == self.L

    def config(self, config: Config) -> Config:
        """Return the config of these layers alone."""
        types = config.layer_types[self.begin : self.end]
        return dataclasses.replace(config, num_hidden_layers=self.end - self.begin, layer_types=types)


def spans(config: Config, form: AnyForm, count: int) -> list[Span]:
    """Divide the layers of a model into so many stages, of which the largest has as few bytes as possible.

    The last one has the head, too. Raises ValueError for more stages than layers.
    """
    if not 1 <= count <= config.L:
        raise ValueError(f"{config.L} layers cannot be {count} stages")
    sizes = [sum(piece.nbytes for piece in part) for part in _parts(config, form)]
    sizes[-2:] = [sum(sizes[-2:])]  # the last layer and the head
    low, high = max(sizes), sum(sizes)
    while low < high:  # the least size of the largest stage with which so many are enough
        middle = (low + high) // 2
        low, high = (low, middle) if len(_cuts(sizes, middle, count)) <= count else (middle + 1, high)
    cuts = _cuts(sizes, low, count)
    return [Span(begin, end, config.L) for begin, end in zip([0, *cuts], cuts, strict=False)]


def _cuts(sizes: list[int], most: int, count: int) -> list[int]:
    """Return the end of each stage of at most so many bytes, with a layer at least for each of `count` stages."""
    cuts: list[int] = []
    size = 0
    for i, each in enumerate(sizes):
        few = len(sizes) - i <= count - 1 - len(cuts)  # as many layers are left as stages
        if i and (size + each > most or few):
            cuts.append(i)
            size = 0
        size += each
    return [*cuts, len(sizes)]


def _parts(config: Config, form: AnyForm) -> list[list[Piece]]:
    """Return the matrices of each layer, and then the head."""
    planned = plan(config, form)
    return [*(pieces_of_layer(planned, i) for i in range(config.L)), [Piece(HEAD, 0, planned[HEAD])]]


def span_bytes(config: Config, form: AnyForm, span: Span) -> int:
    """Return the bytes of the weights of a stage."""
    parts = _parts(config, form)[span.begin : span.end + span.ends]
    return sum(piece.nbytes for part in parts for piece in part)


class StageWeights:
    """The weights of a stage, as `WeightStore`. Rows of the embedding are read when they are needed."""

    streamed = 0

    def __init__(self, config: Config, form: AnyForm, span: Span, reader: WeightReader) -> None:
        """`config`: the whole model's."""
        self.form, self.span, self._reader = form, span, reader
        memory, used = core.aligned(span_bytes(config, form, span)), 0
        found: list[dict[str, Packed]] = []
        for part in _parts(config, form)[span.begin : span.end + span.ends]:
            found.append({})
            for piece in part:
                packed = packed_in(piece, memory[used:], columns_of(config, form, piece.name))
                reader.fill(piece.name, packed)
                found[-1][piece.name] = packed
                used += piece.nbytes
        self.layers = [layer_of(found[i - span.begin], reader.vector, i) for i in range(span.begin, span.end)]
        self.norm = reader.vector(NORM) if span.ends else np.empty(0, np.float32)
        self.head_pieces = [found[-1][HEAD]] if span.ends else []

    def embed(self, ids: Any) -> Array:
        return self._reader.embed(ids)

    def reading(self, stop: Stop | None) -> AbstractContextManager[Ready]:
        return nullcontext(lambda part: None)


@dataclass(frozen=True)
class StagePiece:
    """Tokens of one sequence for every stage.

    sequence  its number
    start     positions that it holds before
    ids       [T]
    rows      the tokens whose logits are wanted
    """

    sequence: int
    start: int
    ids: list[int]
    rows: slice


@dataclass(frozen=True)
class Note:
    """A change of a sequence in all stages: keep its first `length` positions, or share them with a new one.

    length  None: drop the sequence
    new     the number of the new sequence; None: none is made
    """

    sequence: int
    length: int | None = None
    new: int | None = None


@dataclass(frozen=True)
class Flow:
    """The result of a stage: x, or what went wrong before there was one.

    x        [T, D], or the logits [rows, V] of the last stage
    taps     names and arrays, if they were asked for
    lost     the sequences whose positions some stage does not hold
    problem  the error of a stage
    """

    x: Array | None = None
    taps: Listed[tuple[str, Array]] = ()
    lost: Listed[int] = ()
    problem: Exception | None = None


class Stage(CoreBackend):
    """The layers of a span, and the sequences by their numbers. One thread uses it."""

    def __init__(
        self, config: Config, weights: StageWeights, context: int, kv: str, isa: str | None, threads: int
    ) -> None:
        """`config`: the whole model's."""
        span = weights.span
        super().__init__(span.config(config), weights, context, kv, isa, threads)
        self.first, self.ends = span.begin, span.ends
        self._held: dict[int, Sequence] = {}

    def note(self, notes: Listed[Note]) -> None:
        """Change sequences. Those that are not there are left out: a step that needs them will say so."""
        for note in notes:
            held = self._held.get(note.sequence)
            if held is None:
                continue
            if note.length is None:
                del self._held[note.sequence]
            elif note.length <= held.length:
                if note.new is None:
                    held.rollback(note.length)
                else:
                    self._held[note.new] = held.fork(note.length)

    def flow(self, pieces: Listed[StagePiece], before: Flow | None, tapped: bool = False) -> Flow:
        """Run pieces of different sequences, behind the stage whose result is `before`; None: from the embedding.

        A sequence forgets its positions behind the start of its piece.
        """
        if before is not None and (before.lost or before.problem is not None):
            return before
        steps, lost = [], []
        for piece in pieces:
            held = self._held.get(piece.sequence)
            if held is None and piece.start == 0:
                held = self._held[piece.sequence] = self.sequence()
            if held is None or held.length < piece.start:
                lost.append(piece.sequence)
                continue
            if held.length > piece.start:
                held.rollback(piece.start)
            steps.append(Step(piece.ids, held, piece.rows))
        if lost:
            return Flow(lost=lost)
        taps = [] if before is None else [*before.taps]
        tap: Callable[[str, Array], None] = lambda name, x: taps.append((name, x.copy()))  # noqa: E731
        looks: Tap | None = tap if tapped else None
        try:
            return Flow(self._through(steps, None if before is None else before.x, looks), taps)
        except Exception as problem:
            return Flow(taps=taps, problem=problem)
