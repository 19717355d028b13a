"""This package's own engine as a `Candidate`: a backend runs the phases and shows every layer's output.

A layer is one call into C, so the core shows nothing within it. The last norm is part of the head's product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from ...config import Config
from ...engine.backends import ALL, LAST, Backend
from ...engine.backends.core import CoreBackend
from ...engine.packing import pack_weights
from ...engine.reading import read_model
from ...errors import UsageError
from ...forms import FILE, FORMS, KV_FORMS
from ...spec.ops import Array
from ..adapters.candidate import Candidate, check_phases
from ..graph import (
    EMBED,
    LOGITS,
    Phase,
    absolute,
)
from .file_form import quantised

MODES = (*FORMS, FILE)  # the weight forms of modes
PREFIX = "qwq:"  # stands before a mode, in the place of a candidate's files


@dataclass(frozen=True)
class Mode:
    """A weight form with a cache form, such as q4+int8."""

    weights: str
    kv: str

    def __str__(self) -> str:
        return f"{self.weights}+{self.kv}"

    @property
    def precision(self) -> str:
        """The precision that a candidate in this mode declares: floats are computed and judged as float32."""
        floats = self.weights != FILE and FORMS[self.weights].floats
        return "fp32" if floats and self.kv == "fp32" else str(self)


def is_mode(precision: str) -> bool:
    """Return whether a declared precision is a mode, where bits are compared, and not errors."""
    return "+" in precision or precision == FILE or (precision in FORMS and not FORMS[precision].floats)


def read_mode(text: str) -> Mode:
    """Return the mode of a text: "q4+fp32", or "q4" with the cache that goes with it. Raises UsageError.

    With "file", int8 goes: the form of the file is not known yet.
    """
    weights, plus, kv = text.partition("+")
    if not plus and weights in MODES:
        kv = "int8" if weights == FILE else FORMS[weights].kv
    if weights not in MODES or kv not in KV_FORMS:
        forms = f"{', '.join(MODES)}, and + {' or '.join(KV_FORMS)} for the cache"
        raise UsageError(None, "mode", f"must be one of {forms}; got {text[:40]}")
    return Mode(weights, kv)


def run_mode(
    mode: Mode, config: Config, weights: Mapping[str, Array], phases: Sequence[Phase], threads: int = 1
) -> Candidate:
    """Pack weights into a mode and run the phases. Raises CoreError where the core is not built.

    Raises UsageError for the form of a file, if the weights are of none that is quantised.
    """
    if mode.weights == FILE:
        source = quantised(weights)
        packed = read_model(source, source.kept.form, threads)
    else:
        packed = pack_weights(config, weights, mode.weights, threads)
    return engine_taps(CoreBackend(config, packed, phases[-1].S, mode.kv, threads=threads), phases)


def engine_taps(
    backend: Backend, phases: Sequence[Phase], chunk: int | None = None, all_logits: bool = True
) -> Candidate:
    """Run the phases on a backend -> embedding, every layer's output, logits.

    chunk       tokens that a step takes at most; None: a whole phase
    all_logits  False: as generation runs. The last layer's output and the logits are then those of each phase's last
                token, and the backend may leave out the others

    Raises UsageError for phases that do not begin at 0 and follow each other.
    """
    check_phases(phases)
    outputs = [absolute(i, "resid_post") for i in range(backend.config.L)]
    shown, partly = {EMBED, *outputs, LOGITS}, (outputs[-1], LOGITS)
    pieces: dict[tuple[str, str], list[Array]] = {}
    phase = phases[0]

    def keep(tap: str, x: Array) -> None:
        if tap not in shown:
            return
        if all_logits or tap not in partly:
            pieces.setdefault((phase.name, tap), []).append(x.copy())
        else:
            pieces[phase.name, tap] = [x[-1:].copy()]

    sequence = backend.sequence()
    for phase in phases:
        for start in range(0, phase.T, chunk or phase.T):
            ids = phase.ids[start : start + (chunk or phase.T)]
            backend.run(ids, sequence, ALL if all_logits else LAST, keep)
    return Candidate(
        source=backend.description,
        tensors={place: partial(np.concatenate, several) for place, several in pieces.items()},
        token_ids=[token for phase in phases for token in phase.ids],
        precision={"": Mode(backend.form, backend.kv).precision},
    )
