"""A candidate: the tensors of somebody else's implementation, whatever of them there is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...spec.ops import Array

Loader = Callable[[], Array]


@dataclass(frozen=True)
class Candidate:
    """Tensors by (phase, tap), read when they are asked for. Missing ones are normal.

    source     what to call it in a report: a folder, a file
    tensors    (phase, tap) -> a function that reads it: floating point, in any shape that `fit` takes
    token_ids  what the model was run on, if it says so
    precision  "fp32", "bf16" or "fp16" by tap, or for all under ""; what is not declared is told from the values
    unknown    names in the source that are no tap: reported, not compared
    notes      what an adapter had to decide: reported
    """

    source: str
    tensors: Mapping[tuple[str, str], Loader]
    token_ids: Sequence[int] | None = None
    precision: Mapping[str, str] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    notes: Sequence[str] = ()


class MisfitError(ValueError):
    """A tensor's shape is not that of its tap, nor one that can be taken for it."""


def fit(array: Array, shape: tuple[int, ...], tokens: int = 0) -> tuple[Array, bool]:
    """An array as a candidate gave it -> (in the tap's own shape, whether it is the last row alone).

    Implementations add a batch axis of 1, flatten heads or split them, or keep heads before tokens (Hugging Face's
    [1, H, T, E]; where there are as many tokens as heads, nobody can tell, and it is refused). A prompt whose last row
    alone was computed is compared there; `tokens` is its axis of tokens. Raises MisfitError for anything else.
    """
    if len(shape) == 3 and shape[0] == shape[1] > 1 and tokens == 0 and array.ndim > 3:
        raise MisfitError(
            f"shape {list(array.shape)} may have heads or tokens first: leave out the batch axis, tokens first"
        )
    squeezed = tuple(n for n in array.shape if n != 1)
    wanted = tuple(n for n in shape if n != 1)
    if squeezed == wanted or (array.size == np.prod(shape) and _merges(squeezed, wanted)):
        return array.reshape(shape), False
    heads_first = len(shape) == 3 and array.shape[-3:] == (shape[1], shape[0], shape[2])
    if heads_first and array.size == np.prod(shape):
        return np.swapaxes(array.reshape(shape[1], shape[0], shape[2]), 0, 1), False
    last = (*shape[:tokens], 1, *shape[tokens + 1 :])
    if array.size == np.prod(last) and _merges(squeezed, tuple(n for n in last if n != 1)):
        return array.reshape(last), True
    raise MisfitError(f"shape {list(array.shape)}, but the tap is {list(shape)}")


def _merges(ours: tuple[int, ...], theirs: tuple[int, ...]) -> bool:
    """Whether one of two shapes is the other with neighbouring trailing axes merged: [T, H E] and [T, H, E]."""
    short, long = sorted((ours, theirs), key=len)
    return short == long or (len(short) >= 1 and short[:-1] == long[: len(short) - 1])
