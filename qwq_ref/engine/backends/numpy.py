"""The spec as a backend: float32 weights, and a cache that is a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listed
from typing import Any

import numpy as np

from ...config import Config
from ...errors import NonFiniteError
from ...spec import crop, forward
from ...spec.model import empty_cache
from ...spec.ops import Array, Tap
from ..digest import digest
from ..faults import TOO_LARGE, divisible
from . import Ids, Progress, Step, checked_ids, checked_length, checked_steps

CHUNK = 256  # tokens of a prompt at a time: the spec holds the scores of so many rows


class Sequence:
    """A cache of the spec, which every step replaces by a longer one."""

    def __init__(self, config: Config) -> None:
        self.config, self.cache = config, empty_cache(config)

    @property
    def length(self) -> int:
        return len(self.cache[0][0])

    def rollback(self, length: int) -> None:
        self.cache = crop(self.cache, checked_length(length, self.length))

    def fork(self, length: int) -> Sequence:
        other = Sequence(self.config)
        other.cache = crop(self.cache, checked_length(length, self.length))
        return other

    def fill(self, length: int, rng: np.random.Generator) -> None:
        shape = (length, *self.cache[0][0].shape[1:])
        self.cache = tuple(
            (rng.standard_normal(shape, np.float32), rng.standard_normal(shape, np.float32)) for _ in self.cache
        )


class NumpyBackend:
    """`spec.forward` in float32. See `Backend`."""

    chunk = CHUNK
    form = kv = "fp32"
    streams = False
    isa, threads = "numpy", 1
    description = "numpy, weights fp32, KV cache fp32"

    def __init__(self, config: Config, tensors: Mapping[str, Array], context: int | None = None) -> None:
        """`tensors`: name -> array, by the names of `config.tensors()`."""
        self.config = config
        self.tensors: Mapping[str, Array] | None = tensors
        self.context = context or config.positions

    def sequence(self) -> Sequence:
        return Sequence(self.config)

    def identity(self) -> dict[str, str]:
        assert self.tensors is not None
        return {"backend": "numpy", "weights form": self.form, "KV cache": self.kv} | {
            "model": digest(self.config, self.tensors.values())
        }

    def arrays(self, sequence: Sequence) -> list[Array]:
        return [np.ascontiguousarray(part) for kept in sequence.cache for part in kept]

    def array_shapes(self, length: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        shape = (length, self.config.K, self.config.E)
        return [(shape, np.dtype(np.float32))] * (2 * self.config.L)

    def restored(self, length: int, fill: Callable[[Listed[Array]], None]) -> Sequence:
        arrays = [np.empty(shape, dtype) for shape, dtype in self.array_shapes(length)]
        fill(arrays)
        sequence = self.sequence()
        sequence.cache = tuple(zip(arrays[::2], arrays[1::2], strict=True))
        return sequence

    def limit_memory(self, size: int) -> None:
        pass  # the spec's caches are values

    def missing(self, steps: Listed[Step]) -> float:
        return 0

    def run(
        self, ids: Ids, sequence: Sequence, rows: slice, tap: Tap | None = None, progress: Progress | None = None
    ) -> Array:
        ids = checked_ids(ids, self.config, sequence.length, self.context)
        assert self.tensors is not None

        def look(name: str, x: Array) -> None:
            if tap is not None:
                tap(name, x)
            if (name == "model.embed_tokens" or name.endswith((".resid_mid", ".resid_post"))) and not divisible(
                x
            ).all():
                raise NonFiniteError(None, name, f"is not finite, or {TOO_LARGE}")

        with np.errstate(all="ignore"):  # as in the core, NaN and infinity pass silently, and are looked for at the end
            logits, sequence.cache = forward(self.config, self.tensors, ids, sequence.cache, look)
        if progress is not None:
            progress(len(ids))
        return logits[rows]

    def run_together(self, steps: Listed[Step], progress: Progress | None = None) -> list[Array]:
        checked_steps(steps, self.config, self.context)
        lengths = [step.sequence.length for step in steps]
        try:
            return [self.run(step.ids, step.sequence, step.rows, progress=progress) for step in steps]
        except BaseException:
            for step, length in zip(steps, lengths, strict=True):
                step.sequence.rollback(length)
            raise
