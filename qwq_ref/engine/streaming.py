"""Weights of which only a part is in memory: each pass over the layers reads the others, ahead of the computation.

A model of 65 GB then runs on a machine of 8. A pass costs at least the reading, so it should compute many tokens: a
whole prompt, or a token of each of many sequences.
"""

from __future__ import annotations

import bisect
import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from .. import core
from ..config import Config
from ..core import PANEL, Packed, Stop, Stopped
from ..core.formats import ALIGN
from ..core.layer import QKV, LayerWeights
from ..formats.packed import Stored
from ..forms import AnyForm
from ..spec.ops import Array
from .plan import HEAD, NORM, columns_of, layer_names, plan, qkv_names
from .thread import Pool
from .weights import Ready

SLOTS = 2  # one part is computed while the next one is read
_HEARD = 0.05  # seconds between looks at a flag that stops the wait for a part


class WeightReader(Protocol):
    """Reads the tensors of `plan` from a model's files, as often as they are wanted."""

    def fill(self, name: str, out: Packed, begin: int = 0) -> None:
        """Read the rows of a matrix from `begin` on, a multiple of 64, as many as `out` has. Raises CheckpointError."""

    def vector(self, name: str) -> Array:
        """Return a norm or a bias, float32. Raises CheckpointError."""

    def embed(self, ids: Any) -> Array:
        """ids [T] -> float32 [T, D]"""


@dataclass(frozen=True)
class Piece:
    """Rows of a matrix of the plan.

    begin   the first row
    stored  their number, and the format
    """

    name: str
    begin: int
    stored: Stored

    @property
    def nbytes(self) -> int:
        return -(-self.stored.nbytes // ALIGN) * ALIGN


@dataclass(frozen=True)
class Layout:
    """The parts of a model's weights, and which of them are kept in memory.

    parts  the matrices of each layer, and then the pieces of the head
    kept   whether each part stays in memory
    """

    parts: list[list[Piece]]
    kept: list[bool]

    @property
    def sizes(self) -> list[int]:
        """The bytes of each part."""
        return [sum(piece.nbytes for piece in part) for part in self.parts]

    @property
    def slot(self) -> int:
        """The bytes of the largest part that is not kept."""
        return max((size for size, kept in zip(self.sizes, self.kept, strict=True) if not kept), default=0)

    @property
    def streamed(self) -> int:
        """The bytes that a pass reads."""
        return sum(size for size, kept in zip(self.sizes, self.kept, strict=True) if not kept)

    @property
    def nbytes(self) -> int:
        """The bytes of memory for the parts."""
        return sum(self.sizes) - self.streamed + SLOTS * self.slot

    @classmethod
    def of(cls, config: Config, form: AnyForm, memory: int) -> Layout:
        """Lay out a model's weights in so many bytes of memory, or in the fewest that are possible."""
        planned = plan(config, form)
        parts = [pieces_of_layer(planned, i) for i in range(config.L)]
        largest = max(sum(piece.nbytes for piece in part) for part in parts)
        parts += [[piece] for piece in _head_pieces(planned[HEAD], largest)]
        return cls(parts, _spread(cls(parts, [False] * len(parts)), memory))


def _head_pieces(head: Stored, most: int) -> Iterator[Piece]:
    """Divide the head by rows into pieces of at most so many bytes, if that is possible: at least 64 rows of each."""
    V, D = head.shape
    panels = 2 * -(-V // (2 * PANEL))
    rows = max(2 * PANEL, panels * most // max(1, head.nbytes) // 2 * 2 * PANEL)
    for begin in range(0, V, rows):
        yield Piece(HEAD, begin, Stored((min(rows, V - begin), D), head.format))


def _spread(layout: Layout, memory: int) -> list[bool]:
    """Return which parts to keep: as many as fit, evenly spread, so that reading and computing take turns."""
    count = len(layout.parts)
    for keep in range(count, 0, -1):
        kept = [(i + 1) * keep // count > i * keep // count for i in range(count)]
        if Layout(layout.parts, kept).nbytes <= memory:
            return kept
    return [False] * count


class StreamedWeights:
    """See `engine.weights.WeightStore`: a `Layout` of a model's weights, which a `WeightReader` fills.

    The memory of a slot belongs to every second part that is not kept. A thread fills it once the part before is no
    longer needed, also for the pass that comes next.
    """

    def __init__(
        self,
        config: Config,
        form: AnyForm,
        layout: Layout,
        reader: WeightReader,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        """
        progress  called with the number of bytes read since its last call, while the kept parts are read
        """
        self.form, self.layout, self._reader = form, layout, reader
        self._order = [i for i, kept in enumerate(layout.kept) if not kept]  # the parts that are read in each pass
        self._pieces = self._places(config, form)
        self.norm = reader.vector(NORM)
        self.layers = [layer_of(self._pieces[i], reader.vector, i) for i in range(config.L)]
        self.head_pieces = [packed for part in self._pieces[config.L :] for packed in part.values()]
        for part, kept in enumerate(layout.kept):
            if kept:
                self._fill(part)
                if progress is not None:
                    progress(layout.sizes[part])
        self._pool = Pool(1, "qwq-reader")
        self._forget()
        weakref.finalize(self, self._pool.shutdown, wait=False)

    @property
    def streamed(self) -> int:
        return self.layout.streamed

    def embed(self, ids: Any) -> Array:
        return self._reader.embed(ids)

    def _forget(self) -> None:
        """Regard all slots as empty."""
        self._held: list[int | None] = [None] * SLOTS  # the part that each slot holds, or will hold
        self._loads: list[Future[None] | None] = [None] * SLOTS
        self._process = os.getpid()

    @contextmanager
    def reading(self, stop: Stop | None) -> Iterator[Ready]:
        if self._process != os.getpid():  # the reads that went on when this process was forked have no thread here
            self._forget()
        self._ask(0)

        def ready(part: int) -> None:
            self._ask(bisect.bisect_left(self._order, part))
            if not self.layout.kept[part]:
                self._wait(part, stop)

        yield ready
        self._ask(len(self._order))

    def _ask(self, first: int) -> None:
        """Let each slot hold its next part, if it holds another one.

        first  the number of parts, of those that are read, that are no longer needed in this pass
        """
        for slot in range(min(SLOTS, len(self._order))):
            ahead = first + (slot - first) % SLOTS
            part = self._order[ahead if ahead < len(self._order) else slot]
            if self._held[slot] != part:
                self._held[slot] = part
                self._loads[slot] = self._pool.submit(_fill, weakref.ref(self), part)

    def _wait(self, part: int, stop: Stop | None) -> None:
        slot = self._held.index(part)
        load = self._loads[slot]
        assert load is not None
        while not wait([load], _HEARD).done:
            if stop is not None and stop.is_set:
                raise Stopped
        try:
            load.result()
        except BaseException:
            self._held[slot] = None  # it is read again in another pass
            raise

    def _fill(self, part: int) -> None:
        for piece, packed in zip(self.layout.parts[part], self._pieces[part].values(), strict=True):
            self._reader.fill(piece.name, packed, piece.begin)

    def _places(self, config: Config, form: AnyForm) -> list[dict[str, Packed]]:
        """Return the packed matrices of each part, in memory that is still to be filled."""
        slots = [core.aligned(self.layout.slot) for _ in range(min(SLOTS, len(self._order)))]
        found = []
        for part, (pieces, size) in enumerate(zip(self.layout.parts, self.layout.sizes, strict=True)):
            kept = self.layout.kept[part]
            memory = core.aligned(size) if kept else slots[self._order.index(part) % SLOTS]
            ends = list(itertools.accumulate(piece.nbytes for piece in pieces))
            found.append(
                {
                    piece.name: packed_in(piece, memory[end - piece.nbytes :], columns_of(config, form, piece.name))
                    for piece, end in zip(pieces, ends, strict=True)
                }
            )
        return found


def layer_of(found: Mapping[str, Packed], vector: Callable[[str], Array], i: int) -> LayerWeights:
    """Return layer i. `found`: its matrices by the names of the plan; `vector`: name -> a norm or a bias."""
    norm, qkv, bias, o, post_norm, gate_up, down = layer_names(i)
    projections = found[qkv] if qkv in found else QKV(*(found[name] for name in qkv_names(i)))
    vectors = vector(norm), vector(bias), vector(post_norm)
    return LayerWeights(vectors[0], projections, vectors[1], found[o], vectors[2], found[gate_up], found[down])


def pieces_of_layer(planned: Mapping[str, Stored], i: int) -> list[Piece]:
    """Return the matrices of layer i of a plan."""
    names = [name for name in (*layer_names(i), *qkv_names(i)) if name in planned]
    return [Piece(name, 0, planned[name]) for name in names if planned[name].format is not None]


def packed_in(piece: Piece, memory: Array, columns: Array | None) -> Packed:
    """Return a piece in memory that is still to be filled. `columns`: their order, see `plan.columns_of`."""
    stored = piece.stored
    assert stored.format is not None
    return Packed(stored.format, memory[: stored.nbytes], (stored.shape[0], stored.shape[1]), columns)


def _fill(weights: weakref.ref[StreamedWeights], part: int) -> None:
    """Fill a part in the reader's thread, which does not keep the weights of a model that is gone."""
    held = weights()
    if held is not None:
        held._fill(part)
