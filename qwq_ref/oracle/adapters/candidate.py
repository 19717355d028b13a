"""The candidate: the tensors of the implementation under test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...errors import UsageError
from ...spec.ops import Array
from ..graph import Phase

Loader = Callable[[], Array]


@dataclass(frozen=True)
class Candidate:
    """Tensors by (phase, tap), each read on demand. Taps may be missing.

    source     the name in reports: a folder, a file
    tensors    (phase, tap) -> a function that reads the tensor: floating point, in any shape that `fit` accepts
    token_ids  the ids that the model was run on; None if they are not known
    precision  "fp32", "bf16" or "fp16" by tap, or for all taps under ""; a missing default is detected from the values
    unknown    names in the source that are no tap; they are reported, not compared
    notes      decisions of the adapter, for the report
    """

    source: str
    tensors: Mapping[tuple[str, str], Loader]
    token_ids: Sequence[int] | None = None
    precision: Mapping[str, str] = field(default_factory=dict)
    unknown: Sequence[str] = ()
    notes: Sequence[str] = ()


def check_phases(phases: Sequence[Phase]) -> None:
    """Raise UsageError unless the phases begin at position 0 and follow each other without a gap."""
    if not phases or any(phase.start != sum(p.T for p in phases[:i]) for i, phase in enumerate(phases)):
        raise UsageError(None, "phases", "must begin at position 0 and follow each other without a gap")


class MisfitError(ValueError):
    """A tensor whose shape fits its tap in no accepted layout."""


def fit(array: Array, shape: tuple[int, ...], tokens: int = 0) -> tuple[Array, bool]:
    """Bring a candidate's array into the shape of its tap -> (array, whether it is the last row only)

    tokens  the axis of tokens

    Accepted are a batch axis of 1, flattened or split heads, and heads before tokens, as in Hugging Face's
    [1, H, T, E]. With as many tokens as heads, the last form is ambiguous and refused. An array of one row is the last
    token's. Raises MisfitError for any other shape.
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
    """Whether two shapes differ only by merged trailing axes: [T, H E] and [T, H, E]."""
    short, long = sorted((ours, theirs), key=len)
    return short == long or (len(short) >= 1 and short[:-1] == long[: len(short) - 1])
