"""The contract of a backend: a sequence holds positions, `run` adds tokens to it and returns logits.

`core` computes on the C core, `numpy` with the spec itself. All other code uses this contract alone.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...config import Config
from ...spec.ops import Array, Tap
from ..faults import run_finite

Ids = Any  # a list or an array of integers
Progress = Callable[[float], object]
ALL, LAST = slice(None), slice(-1, None)  # rows of logits to ask for


class Sequence(Protocol):
    """The KV cache of one conversation in a backend. It is freed, or kept for another, when nothing refers to it."""

    @property
    def length(self) -> int:
        """Positions that the cache holds."""

    def rollback(self, length: int) -> None:
        """Keep the first `length` positions. Later results have the same bits as if the others had never existed.

        Raises ValueError for a length that the sequence does not have.
        """

    def fork(self, length: int) -> Sequence:
        """Return a sequence with the first `length` positions. Both share what holds these, and neither changes it.

        Raises ValueError for a length that the sequence does not have.
        """

    def fill(self, length: int, rng: np.random.Generator) -> None:
        """Hold `length` positions without computing them, of random keys and values: to time steps behind them."""


@dataclass(frozen=True)
class Step:
    """Tokens to add to one sequence.

    ids       [T]
    sequence  of the backend that runs the step
    rows      `ALL`, `LAST` or another slice: the tokens whose logits are wanted
    """

    ids: Ids
    sequence: Any
    rows: slice


class Backend(Protocol):
    """Computes logits for one model.

    config       the model's
    context      positions that a sequence can hold
    chunk        tokens that `run` takes best at a time; longer prompts should be cut
    form, kv     names of the weight form and of the cache form, see `qwq_ref.forms`
    isa          instruction set of the kernels; "numpy" where NumPy chooses
    threads      threads that one call may use
    tensors      the checkpoint's tensors by name, in float32; None where the weights are packed
    streams      whether each call reads weights from the disk, so that few calls with many tokens are best
    description  all of this for people, in one line
    """

    config: Config
    context: int
    chunk: int
    form: str
    kv: str
    isa: str
    threads: int
    tensors: Mapping[str, Array] | None

    @property
    def streams(self) -> bool: ...

    @property
    def description(self) -> str: ...

    def sequence(self) -> Sequence:
        """Return an empty sequence."""

    def identity(self) -> dict[str, str]:
        """Return what decides the bits of a cache, by names for people: the weights, as a digest, and the forms."""

    def arrays(self, sequence: Any) -> Listed[Array]:
        """Return the arrays that hold the positions of a sequence, and nothing else. The sequence is used up."""

    def array_shapes(self, length: int) -> list[tuple[tuple[int, ...], np.dtype[Any]]]:
        """Return the shapes and dtypes of the arrays of a sequence of so many positions."""

    def restored(self, length: int, fill: Callable[[Listed[Array]], None]) -> Sequence:
        """Return a sequence of so many positions, whose arrays `fill` has filled. It raises what `fill` raises."""

    def limit_memory(self, size: int) -> None:
        """Let the caches of all sequences have so many bytes at most, but enough for one of a whole context."""

    def missing(self, steps: Listed[Step]) -> float:
        """Return how many more pages (see `engine.pages`) steps need than are left. 0: they can run."""

    def run(
        self, ids: Ids, sequence: Any, rows: slice, tap: Tap | None = None, progress: Progress | None = None
    ) -> Array:
        """Add ids [T] to a sequence of this backend -> logits [rows of T, V].

        rows      `ALL`, `LAST` or another slice: the tokens whose logits are wanted
        tap       called with the spec's names and arrays: the core shows "model.embed_tokens", each layer's
                  "resid_post" and "lm_head", NumPy shows every tap. The last layer's output and the logits may hold
                  the asked rows alone. An array is valid during the call: copy what you keep
        progress  called with the number of tokens computed since its last call, fractions included

        A call that is interrupted or raises leaves the sequence as it was. Raises ValueError for ids that the model
        does not have, or more of them than fit in the context. Raises NonFiniteError for NaN and infinity in places
        from which they would not reach the logits, and for a residual stream that a norm would turn into zeros.
        """

    def run_together(self, steps: Listed[Step], progress: Progress | None = None) -> list[Array]:
        """Run steps of different sequences, as `run`, with one pass over the weights -> the logits of each.

        Each step gets the bits that it gets alone. `progress` counts the tokens of all steps.
        """


def logits(backend: Backend, ids: Ids, model: str | os.PathLike[str] | None = None) -> Array:
    """ids [T] -> logits [T, V]: those of the token after each, from an empty sequence.

    model  where the backend's weights came from, for errors

    Raises ValueError as `Backend.run`, and NonFiniteError for logits that hold NaN or infinity.
    """
    sequence, starts = backend.sequence(), range(0, max(1, len(ids)), backend.chunk)
    return np.concatenate([run_finite(backend, ids[i : i + backend.chunk], sequence, ALL, model) for i in starts])


def integer_ids(ids: Ids) -> Array:
    """ids [T] as an array of integers. Raises ValueError for texts, bytes, booleans, and other numbers."""
    wanted = "token_ids must be a non-empty list of integers"
    if isinstance(ids, str | bytes | bytearray):
        raise ValueError(f"{wanted}, got {type(ids).__name__}")
    if not isinstance(ids, np.ndarray):
        for token in ids:
            if isinstance(token, bool | np.bool_) or not hasattr(token, "__index__"):
                raise ValueError(f"{wanted}, got {token!r:.40}")
        ids = [operator.index(token) for token in ids]
    array: Array = np.asarray(ids) if len(ids) else np.zeros(0, np.int64)
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{wanted}, got {array.dtype} of shape {array.shape}")
    return array


def checked_ids(ids: Ids, config: Config, length: int, context: int) -> Array:
    """ids [T] as an array, if a sequence of `length` positions can take them. Raises ValueError otherwise."""
    array = integer_ids(ids)
    if not len(array):
        raise ValueError(f"token_ids must be a non-empty list of integers, got {array.dtype} of shape {array.shape}")
    if array.min() < 0 or array.max() >= config.V:
        raise ValueError(f"token_ids must be in [0, {config.V}), got {array.min()} to {array.max()}")
    if length + len(array) > context:
        raise ValueError(f"{length + len(array)} token_ids do not fit in a context of {context}")
    return array


def checked_length(length: int, held: int) -> int:
    """A length to roll back to. Raises ValueError for one that the sequence does not have."""
    if not 0 <= length <= held:
        raise ValueError(f"length must be 0 to {held}, got {length}")
    return length


def checked_steps(steps: Listed[Step], config: Config, context: int) -> list[Array]:
    """Return the ids of steps as arrays, if their sequences can take them. Raises ValueError otherwise."""
    if len({id(step.sequence) for step in steps}) < len(steps):
        raise ValueError("steps that run together must be of different sequences")
    return [checked_ids(step.ids, config, step.sequence.length, context) for step in steps]
