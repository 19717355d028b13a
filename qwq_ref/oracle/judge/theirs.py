"""The candidate as the judge sees it: every tensor in the shape of its tap, with its precision."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np

from ...config import Config
from ...errors import UsageError, did_you_mean
from ...spec import causal_mask
from ...spec.ops import Array, to_bf16, to_fp16
from ..adapters.candidate import Candidate, MisfitError, fit
from ..graph import Phase, letters, shape_of, split_name, tap_names
from ..packs.manifest import PRECISIONS
from ..packs.pack import Golden
from .metrics import tidy_scores

_HIDDEN_PROBABILITY = 1e-6


def declared_precision(
    candidate: Candidate, precision: str | Mapping[str, str] | None, config: Config
) -> dict[str, str]:
    """Return the precision by tap, and of all other taps under "", if there is one: the caller's, or the candidate's.

    precision  of all taps, or by tap; None: as the candidate declares
    """
    given = {"": precision} if isinstance(precision, str) else dict(precision or {})
    names = tap_names(config)
    known = {"": None, **dict.fromkeys(names), **dict.fromkeys(split_name(name)[1] for name in names)}
    for tap in given.keys() - known.keys():
        raise UsageError(None, "precision", f"{tap} is no tap of this config{did_you_mean(tap, known, 1)}")
    return {**candidate.precision, **given}


class Theirs:
    """A candidate's tensors in the shapes of their taps. A tensor is checked when it is read.

    declared  as `declared_precision` returns it; a default that is missing is detected. Raises UsageError for an
              unknown precision
    """

    def __init__(self, golden: Golden, candidate: Candidate, declared: Mapping[str, str]) -> None:
        self.config = golden.manifest.config
        self.phases = golden.manifest.phases
        self.candidate = candidate
        self.declared = declared
        for tap, name in declared.items():
            if name not in PRECISIONS:
                of = f"of {tap} " if tap else ""
                raise UsageError(None, "precision", f"{of}must be one of {', '.join(PRECISIONS)}, got {name[:40]}")

    def has(self, phase: Phase, tap: str) -> bool:
        return (phase.name, tap) in self.candidate.tensors

    def read(self, phase: Phase, tap: str) -> tuple[Array, bool]:
        """Return (a float array in the tap's shape, whether it is the last row only). Raises MisfitError."""
        array = np.asarray(self.candidate.tensors[phase.name, tap]())
        if array.dtype.kind != "f":
            raise MisfitError(f"is {array.dtype}, not floating point")
        value, last = fit(self._all_keys(array, phase, tap), shape_of(tap, self.config, phase), letters(tap).index("T"))
        if value.dtype.itemsize < 4:
            value = value.astype(np.float32)
        if tap.endswith(".scores"):
            layer = split_name(tap)[0]
            assert layer is not None
            visible = causal_mask(phase.T, phase.S, self.config.window(layer))[-1 if last else 0 :]
            value = tidy_scores(value, visible, self._looks_at_hidden(phase, tap, visible))
        return value, last

    def _looks_at_hidden(self, phase: Phase, tap: str, visible: Array) -> bool:
        """Whether the probabilities give weight to hidden keys. If they do not, scores without a mask were taken before
        the mask was applied."""
        probs = tap.removesuffix("scores") + "probs"
        if not self.has(phase, probs):
            return False
        try:
            return bool((np.abs(self.read(phase, probs)[0]) > _HIDDEN_PROBABILITY)[:, ~visible].any())
        except (MisfitError, IndexError):
            return False

    def _all_keys(self, array: Array, phase: Phase, tap: str) -> Array:
        """Pad scores or probabilities of a cache that holds only the last keys, because the window hides the others."""
        layer, name = split_name(tap)
        if name not in ("self_attn.scores", "self_attn.probs") or layer is None:
            return array
        window = self.config.window(layer)
        if window is None or not array.ndim or not min(window, phase.S) <= array.shape[-1] < phase.S:
            return array
        hidden = -np.inf if name == "self_attn.scores" else 0.0
        before = [(0, 0)] * (array.ndim - 1) + [(phase.S - array.shape[-1], 0)]
        return np.pad(array, before, constant_values=hidden)

    def precision(self, tap: str) -> str:
        """Return the precision declared for this tap, for its name within a layer, or for all taps."""
        name = split_name(tap)[1]
        return self.declared.get(tap) or self.declared.get(name) or self.default

    @functools.cached_property
    def default(self) -> str:
        """The precision of all taps without one of their own."""
        return self.declared.get("") or self._detect()

    def default_in_words(self) -> str:
        """Return the default precision, and whether it was detected, for a report."""
        return self.default + ("" if self.declared.get("") else " (told from the values)")

    def _detect(self) -> str:
        """Return the precision that the values of a sample of taps have. The embedding is left out: it may be exact in
        any precision."""
        names = [key for key in self.candidate.tensors if not key[1].endswith(("embed_tokens", "0.resid_pre"))]
        halves = {"bf16": 0, "fp16": 0}
        step = max(1, len(names) // 8)
        sample = names[::step]
        for key in sample:
            value = np.asarray(self.candidate.tensors[key]())
            if value.dtype.kind != "f":
                continue
            for name, rnd in (("bf16", to_bf16), ("fp16", to_fp16)):
                with np.errstate(over="ignore", invalid="ignore"):
                    halves[name] += int(np.array_equal(rnd(value), value, equal_nan=True))
        best = max(halves, key=lambda name: halves[name])
        return best if 2 * halves[best] > len(sample) else "fp32"
