"""A mistake, and functions that change lines of the table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....config import Config
from ....spec.ops import Array, to_bf16
from ...graph import BEFORE, LAYER, Op, after

Values = list[Array]
Replaces = Callable[[Config], dict[str, Op]]  # (config) -> the changed lines of the table, by tap
MATRICES = tuple(op.tap for op in LAYER if op.matrix)


@dataclass(frozen=True)
class Mistake:
    """A named change to the reference.

    name      the name in reports
    says      one line: what the candidate does, and what is right
    needs     the properties of a pack in which the mistake shows
    replaces  (config) -> the changed lines of the table, by tap; {} if the config gives the same results with and
              without the mistake
    sources   the kinds of weights that it can be made with, see `matrix.kind_of`; empty: all
    rounding  whether it only rounds in another order, which the bits of bfloat16 or float16 results show
    """

    name: str
    says: str
    needs: str
    replaces: Replaces = field(repr=False)
    sources: tuple[str, ...] = ()
    rounding: bool = False


def line(config: Config, tap: str) -> Op:
    """Return the right line of the table."""
    return next(op for op in (*BEFORE, *LAYER, *after(config)) if op.tap == tap)


def changed(*taps: str, **fields: Any) -> Replaces:
    """Replace fields in the lines of `taps`."""
    return lambda config: {tap: dataclasses.replace(line(config, tap), **fields) for tap in taps}


def only(condition: Callable[[Config], bool], replaces: Replaces) -> Replaces:
    """Restrict a mistake to the configs that meet a condition."""
    return lambda config: replaces(config) if condition(config) else {}


def round_to_bf16(x: Array) -> Array:
    """Round to bfloat16, and keep the type."""
    rounded: Array = to_bf16(np.asarray(x, np.float32)).astype(x.dtype)
    return rounded
