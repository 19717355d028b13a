"""This package's own engine as a `Candidate`: the C core runs the phases, and every layer's output is kept.

A layer is one call into C, so nothing within it can be looked at; the last norm is part of the head's product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from ...config import Config
from ...core.layer import Layer
from ...engine.backends.core import CoreBackend
from ...engine.fit import own_kv
from ...engine.weights import FORMS, pack_weights
from ...errors import UsageError
from ...spec.ops import Array
from ..adapters.candidate import Candidate
from ..graph import (
    EMBED,
    LOGITS,
    Phase,
    absolute,
)

WEIGHTS, KV = tuple(FORMS), ("fp32", "int8")
PREFIX = "qwq:"  # what stands before a mode in the place of somebody's files


@dataclass(frozen=True)
class Mode:
    """How the engine computes: the form of its weights, and that of its cache."""

    weights: str
    kv: str

    def __str__(self) -> str:
        return f"{self.weights}+{self.kv}"

    @property
    def precision(self) -> str:
        """What a candidate in this mode declares: floats are judged as float32, which they are computed in."""
        return "fp32" if self.weights in ("fp32", "bf16") and self.kv == "fp32" else str(self)


def is_mode(precision: str) -> bool:
    """Whether a declared precision is a mode, in which bits are judged, and none in which errors are."""
    return "+" in precision or precision in ("q8", "q4")


def read_mode(text: str) -> Mode:
    """ "q4", which has the engine's own cache for it, or "q4+fp32". Raises UsageError."""
    weights, plus, kv = text.partition("+")
    if not plus:
        kv = own_kv(weights)
    if weights not in WEIGHTS or kv not in KV:
        forms = f"{', '.join(WEIGHTS)}, and + {' or '.join(KV)} for the cache"
        raise UsageError(None, "mode", f"must be one of {forms}; got {text[:40]}")
    return Mode(weights, kv)


def run_mode(
    mode: Mode, config: Config, weights: Mapping[str, Array], phases: Sequence[Phase], threads: int = 1
) -> Candidate:
    """Pack weights into a mode, and run the phases. Raises CoreError where the core is not built."""
    packed = pack_weights(config, weights, mode.weights, threads)
    return engine_taps(CoreBackend(config, packed, phases[-1].S, mode.kv, threads=threads), phases)


def engine_taps(
    backend: CoreBackend, phases: Sequence[Phase], chunk: int | None = None, all_logits: bool = True
) -> Candidate:
    """Run the phases through the engine -> embedding, every layer's output, logits.

    chunk       tokens that a step takes at most; None: a phase whole
    all_logits  False: as generation runs, where the end of the last layer and the head are computed for the last token
                of a step alone; then those results are the last token's

    UsageError for phases that do not begin at 0 and follow each other.
    """
    if not phases or any(phase.start != sum(p.T for p in phases[:i]) for i, phase in enumerate(phases)):
        raise UsageError(None, "phases", "must begin at position 0 and follow each other without a gap")
    pieces: dict[tuple[str, str], list[Array]] = {}
    sequence = backend.sequence()
    layers = sequence.layers
    phase = phases[0]
    outputs = (absolute(len(layers) - 1, "resid_post"), LOGITS)

    def keep(tap: str, x: Array) -> None:
        if all_logits or tap not in outputs:
            pieces.setdefault((phase.name, tap), []).append(x.copy())
        else:
            pieces[phase.name, tap] = [x[-1:].copy()]

    sequence.layers = [_Watched(layer, i, keep) for i, layer in enumerate(layers)]  # type: ignore[misc]
    for phase in phases:
        for start in range(0, phase.T, chunk or phase.T):
            ids = phase.ids[start : start + (chunk or phase.T)]
            keep(LOGITS, backend.run(ids, sequence, slice(None) if all_logits else slice(-1, None)))
    sequence.layers = layers
    return Candidate(
        source=str(backend),
        tensors={place: partial(np.concatenate, several) for place, several in pieces.items()},
        token_ids=[token for phase in phases for token in phase.ids],
        precision={"": Mode(backend.form, backend.kv).precision},
    )


class _Watched:
    """A layer that shows what it leaves; the first also what it is given."""

    def __init__(self, layer: Layer, number: int, keep: Callable[[str, Array], None]) -> None:
        self.layer, self.number, self.keep = layer, number, keep

    def step(self, x: Array, *rest: Any) -> None:
        if self.number == 0:
            self.keep(EMBED, x)
        self.layer.step(x, *rest)
        self.keep(absolute(self.number, "resid_post"), x)
