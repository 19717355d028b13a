"""Pack the matrices of a quantised file as they are stored: integers and scales go into panels, and none changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from .. import core
from ..config import Config
from ..core import PANEL, Array, Packed
from ..core.magnitude import FLOAT32_MAX, first_beyond
from ..errors import CheckpointError
from ..formats.parts import Parts, widened
from ..formats.source import Kept, Tensors
from ..forms import FileForm
from .packing import Job, Packer
from .plan import EMBEDDING, HEAD, NORM, gate_up_names, layer_names, qkv_names

# (whole, begin, end): pack these rows of a matrix into it -> the number of weights that were read.
_Pack = Callable[[Packed, int, int], int]


class PartsPacker(Packer):
    """A pool of threads that read and pack the matrices of a quantised file."""

    def __init__(
        self,
        config: Config,
        tensors: Tensors,
        kept: Kept,
        form: FileForm,
        threads: int,
        allocate: Callable[[int], Array] = core.aligned,
    ) -> None:
        super().__init__(config, tensors, form, threads, allocate)
        self._kept, self._formats = kept, form.formats

    def jobs(self) -> Iterator[Job]:
        """Start the jobs of all tensors. Each begins when the caller asks for it."""
        config = self._config
        if EMBEDDING in self._plan:
            yield self._packed(EMBEDDING, self._stacked([EMBEDDING]))
        yield self._packed(HEAD, self._stacked([config.head_name]))
        for i in range(config.L):
            norm, qkv, bias, o, post_norm, gate_up, down = layer_names(i)
            yield self._vector(norm, [norm])
            if qkv in self._plan:
                yield self._packed(qkv, self._stacked(qkv_names(i)))
            else:
                for name in qkv_names(i):
                    yield self._packed(name, self._stacked([name]))
            yield self._vector(bias, [name.replace("weight", "bias") for name in qkv_names(i)])
            yield self._packed(o, self._stacked([o]))
            yield self._vector(post_norm, [post_norm])
            yield self._packed(gate_up, self._interleaved(gate_up_names(i)))
            yield self._packed(down, self._stacked([down]))
        yield self._vector(NORM, [NORM])

    def _packed(self, name: str, rows: _Pack) -> Job:
        whole = self._empty(name)
        return Job({name: whole}, self._start(whole.shape, lambda begin, end: rows(whole, begin, end)))

    def _stacked(self, names: Sequence[str]) -> _Pack:
        """Pack matrices of one format, one after another."""
        sizes = [self._tensors.shape(name)[0] for name in names]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        whole_panels = not any(start % PANEL for start in starts)

        def pack(whole: Packed, begin: int, end: int) -> int:
            found = [
                (name, start, max(begin, start), min(end, start + size))
                for name, start, size in zip(names, starts, sizes, strict=True)
                if max(begin, start) < min(end, start + size)
            ]
            if whole_panels:
                return sum(
                    self._pack(name, first - start, last - start, whole.rows(first, last))
                    for name, start, first, last in found
                )
            arrays = [self._parts(name, first - start, last - start).arrays() for name, start, first, last in found]
            joined = Parts(**{key: np.concatenate([each[key] for each in arrays]) for key in arrays[0]})
            joined.pack(_narrow(whole.rows(begin, end), joined.code.shape[1]))
            return int(joined.code.size)

        return pack

    def _interleaved(self, names: Sequence[str]) -> _Pack:
        """Pack gate and up in the order of `core.interleave`; `begin` is a multiple of 64."""
        F = self._tensors.shape(names[0])[0]

        def pack(whole: Packed, begin: int, end: int) -> int:
            first, last, count = begin // 2, min(end // 2, F), 0
            for i, name in enumerate(names):
                out = whole.every_second(begin + i * PANEL, last - first)
                if self._formats[name] == whole.format:
                    count += self._pack(name, first, last, out, step=2)
                else:
                    rows = widened(self._parts(name, first, last), self._formats[name], whole.format)
                    rows.pack(out, step=2)
                    count += rows.code.size
            return count

        return pack

    def _pack(self, name: str, begin: int, end: int, out: Packed, step: int = 1) -> int:
        """Pack rows of a matrix -> the number of weights. Raises CheckpointError for what is not finite."""
        columns = self._tensors.shape(name)[1]
        finite = self._kept.pack(name, begin, end, _narrow(out, columns), step)
        self._tensors.forget(name, begin, end)
        if not finite:
            self._refuse(name, begin, end)
        return (end - begin) * columns

    def _parts(self, name: str, begin: int, end: int) -> Parts:
        """Return rows of a matrix. Raises CheckpointError for a scale, or a float, that is not finite."""
        parts = self._kept.parts(name, begin, end)
        self._tensors.forget(name, begin, end)
        if not parts.is_finite():
            self._refuse(name, begin, end)
        return parts

    def _refuse(self, name: str, begin: int, end: int) -> None:
        """Raise CheckpointError for the first number of these rows that is not finite."""
        found = first_beyond(self._tensors.rows(name, begin, end), FLOAT32_MAX)
        (row, column), what = found if found is not None else ([0, 0], "a scale that is not finite")
        raise CheckpointError(self._tensors.file(name), name, f"holds {what} at {[begin + row, column]}")


def _narrow(out: Packed, columns: int) -> Packed:
    """Return a place for rows of fewer columns: the padding of the MLP adds some to down.

    Packed, missing columns are zeros. No block is missing: the padding ends at a multiple of 32.
    """
    return replace(out, shape=(out.shape[0], columns))
