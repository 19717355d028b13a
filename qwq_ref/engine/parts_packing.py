"""Pack the matrices of a quantised file as they are stored: integers and scales go into panels, and none changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..config import Config
from ..core import PANEL, Packed
from ..core.magnitude import FLOAT32_MAX, first_beyond
from ..errors import CheckpointError
from ..formats.packed import columns_name
from ..formats.parts import Parts, widened
from ..formats.source import Kept, Tensors
from ..forms import FileForm
from .pieces import Job, Pieces, Target
from .plan import EMBEDDING, HEAD, NORM, columns_of, gate_up_names, layer_names, plan, qkv_names

# (out, begin, end): pack these rows of a matrix into `out`, which holds them alone -> the number of weights read.
_Pack = Callable[[Packed, int, int], int]


class PartsPacker(Pieces):
    """A pool of threads that read and pack the matrices of a quantised file."""

    def __init__(
        self, config: Config, tensors: Tensors, kept: Kept, form: FileForm, threads: int, target: Target
    ) -> None:
        super().__init__(plan(config, form), tensors, threads, target)
        self._config, self._form, self._kept, self._formats = config, form, kept, form.formats

    def jobs(self) -> Iterator[Job]:
        """Return the jobs that fill all tensors, in the order of the computation."""
        config = self._config
        if EMBEDDING in self._plan:
            yield self._stacked(EMBEDDING, [EMBEDDING])
        yield self._stacked(HEAD, [config.head_name])
        for i in range(config.L):
            norm, qkv, bias, o, post_norm, gate_up, down = layer_names(i)
            yield self._vector(norm, [norm])
            if qkv in self._plan:
                yield self._stacked(qkv, qkv_names(i))
            else:
                for name in qkv_names(i):
                    yield self._stacked(name, [name])
            yield self._vector(bias, [name.replace("weight", "bias") for name in qkv_names(i)])
            yield self._stacked(o, [o])
            yield self._vector(post_norm, [post_norm])
            yield self._interleaved(gate_up, gate_up_names(i))
            yield self._stacked(down, [down])
        yield self._vector(NORM, [NORM])
        for name in [name for name in self._plan if columns_name(name) in self._plan]:
            yield self._columns(name)

    def _packed(self, name: str, sources: Sequence[str], pack: _Pack) -> Job:
        format, K = self._plan[name].format, self._plan[name].shape[1]
        assert format is not None

        def piece(begin: int, end: int) -> int:
            data = self._target.room(name, begin, end)
            count = pack(Packed(format, data, (end - begin, K)), begin, end)
            self._target.put(name, begin, end, data)
            return count

        return Job([name], sources, piece)

    def _columns(self, name: str) -> Job:
        """Store the order of the columns of a matrix."""

        def piece(begin: int, end: int) -> int:
            data = self._target.room(columns_name(name), begin, end)
            order = columns_of(self._config, self._form, name)
            assert order is not None
            data.view(np.int32)[:] = order[begin:end]
            self._target.put(columns_name(name), begin, end, data)
            return 0

        return Job([columns_name(name)], [], piece)

    def _stacked(self, result: str, names: Sequence[str]) -> Job:
        """Pack matrices of one format, one after another."""
        sizes = [self._tensors.shape(name)[0] for name in names]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        whole_panels = not any(start % PANEL for start in starts)

        def pack(out: Packed, begin: int, end: int) -> int:
            found = [
                (name, start, max(begin, start), min(end, start + size))
                for name, start, size in zip(names, starts, sizes, strict=True)
                if max(begin, start) < min(end, start + size)
            ]
            if whole_panels:
                return sum(
                    self._pack(name, first - start, last - start, out.rows(first - begin, last - begin))
                    for name, start, first, last in found
                )
            arrays = [self._parts(name, first - start, last - start).arrays() for name, start, first, last in found]
            joined = Parts(**{key: np.concatenate([each[key] for each in arrays]) for key in arrays[0]})
            joined.pack(_narrow(out, joined.code.shape[1]))
            return int(joined.code.size)

        return self._packed(result, names, pack)

    def _interleaved(self, result: str, names: Sequence[str]) -> Job:
        """Pack gate and up in the order of `core.interleave`; `begin` is a multiple of 64."""
        F = self._tensors.shape(names[0])[0]

        def pack(out: Packed, begin: int, end: int) -> int:
            first, last, count = begin // 2, min(end // 2, F), 0
            for i, name in enumerate(names):
                of_name = out.every_second(i * PANEL, last - first)
                if self._formats[name] == out.format:
                    count += self._pack(name, first, last, of_name, step=2)
                else:
                    rows = widened(self._parts(name, first, last), self._formats[name], out.format)
                    rows.pack(of_name, step=2)
                    count += rows.code.size
            return count

        return self._packed(result, names, pack)

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
