"""Pack the matrices of a quantised file as they are stored: integers and scales go into panels, and none changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from .. import core
from ..config import Config
from ..core import PANEL, Array, Format
from ..core.magnitude import FLOAT32_MAX, first_beyond, within
from ..errors import CheckpointError
from ..formats.parts import Parts, widened
from ..formats.source import Kept, Tensors
from ..forms import FileForm
from .packing import Job, Packer
from .plan import EMBEDDING, HEAD, NORM, gate_up_names, layer_names, qkv_names

# (begin, end) -> these rows of a matrix in the format of the plan, and the number of weights that were read.
_Rows = Callable[[int, int], tuple[Parts, int]]


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
            yield self._packed(gate_up, self._interleaved(gate_up, gate_up_names(i)))
            yield self._packed(down, self._stacked([down]))
        yield self._vector(NORM, [NORM])

    def _packed(self, name: str, rows: _Rows) -> Job:
        whole = self._empty(name)

        def piece(begin: int, end: int) -> int:
            parts, count = rows(begin, end)
            parts = _padded(parts, whole.format, whole.shape[1])
            core.pack(whole.format, out=whole.rows(begin, end), **vars(parts))
            return count

        return Job({name: whole}, self._start(whole.shape, piece))

    def _stacked(self, names: Sequence[str]) -> _Rows:
        """Return the rows of matrices of one format, one matrix after another."""
        sizes = [self._tensors.shape(name)[0] for name in names]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]

        def parts(begin: int, end: int) -> tuple[Parts, int]:
            found = [
                self._parts(name, max(begin, start) - start, min(end, start + size) - start)
                for name, start, size in zip(names, starts, sizes, strict=True)
                if max(begin, start) < min(end, start + size)
            ]
            arrays = [each.arrays() for each in found]
            joined = {key: np.concatenate([each[key] for each in arrays]) for key in arrays[0]}
            return (found[0] if len(found) == 1 else Parts(**joined)), sum(each.code.size for each in found)

        return parts

    def _interleaved(self, result: str, names: Sequence[str]) -> _Rows:
        """Return the rows of gate and up as `core.interleave` orders them; `begin` is a multiple of 64."""
        to, F = self._plan[result].format, self._tensors.shape(names[0])[0]
        assert to is not None

        def parts(begin: int, end: int) -> tuple[Parts, int]:
            first, last = begin // 2, min(end // 2, F)
            both = [widened(self._parts(name, first, last), self._formats[name], to) for name in names]
            arrays = [each.arrays() for each in both]
            rows = {key: self._pairs([each[key] for each in arrays], (end - begin) // (2 * PANEL)) for key in arrays[0]}
            return Parts(**rows), sum(each.code.size for each in both)

        return parts

    @staticmethod
    def _pairs(arrays: Sequence[Array], panels: int) -> Array:
        """gate [n, m], up [n, m] -> [64 panels, m]: 32 rows of each in turn, and zeros where rows are missing"""
        pairs = np.zeros((panels, 2, PANEL, arrays[0].shape[1]), arrays[0].dtype)
        for i, rows in enumerate(arrays):
            whole = len(rows) // PANEL
            pairs[:whole, i] = rows[: whole * PANEL].reshape(whole, PANEL, -1)
            if len(rows) % PANEL:
                pairs[whole, i, : len(rows) % PANEL] = rows[whole * PANEL :]
        return pairs.reshape(panels * 2 * PANEL, -1)

    def _parts(self, name: str, begin: int, end: int) -> Parts:
        """Return rows of a matrix. Raises CheckpointError for a scale, or a float, that is not finite."""
        parts = self._kept.parts(name, begin, end)
        self._tensors.forget(name, begin, end)
        numbers = (
            [parts.code] if parts.scale is None else [parts.scale, *([] if parts.offset is None else [parts.offset])]
        )
        for each in numbers:
            if not within(each, FLOAT32_MAX):
                self._refuse(name, begin, end)
        return parts

    def _refuse(self, name: str, begin: int, end: int) -> None:
        """Raise CheckpointError for the first number of these rows that is not finite."""
        found = first_beyond(self._tensors.rows(name, begin, end), FLOAT32_MAX)
        (row, column), what = found if found is not None else ([0, 0], "a scale that is not finite")
        raise CheckpointError(self._tensors.file(name), name, f"holds {what} at {[begin + row, column]}")


def _padded(parts: Parts, format: Format, columns: int) -> Parts:
    """Return rows with the columns of down that the padding of the MLP adds: their activations are zero.

    No format with super-blocks lacks any, because whole blocks of 256 columns are a multiple of 32.
    """
    missing = columns - parts.code.shape[1]
    if not missing:
        return parts
    code = np.pad(parts.code, ((0, 0), (0, missing)))
    groups = -(-columns // format.group) if format.group else 0
    wider = {
        name: np.pad(value, ((0, 0), (0, groups - value.shape[1])))
        for name, value in parts.arrays().items()
        if name != "code" and value.shape[1] < groups
    }
    return replace(parts, code=code, **wider)
