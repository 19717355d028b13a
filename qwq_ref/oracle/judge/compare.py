"""Comparing a candidate with a golden pack: the wrong taps, and the first divergence.

A tap has two errors. Its *error* is the distance from the golden value, which grows with every earlier error. Its
*introduced* error is the distance from the result of the reference operation on the candidate's own inputs, so it is
the fault of this operation alone. Both may be `MARGIN` times the error of correct implementations in the candidate's
precision. The pack holds that error of the tap; the error on the candidate's inputs is measured here.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ...config import Config
from ...errors import GoldenError
from ...spec.ops import Array
from ..adapters.candidate import MisfitError
from ..distance import Distance, distance, error
from ..graph import (
    CORRECT,
    LOGITS,
    TRUTH,
    UNIT,
    Op,
    Phase,
    letters,
    tap_names,
)
from ..packs.pack import Golden
from ..packs.sizes import reduce
from ..walk import Stream, Weights, walk
from .localise import localise
from .metrics import MARGIN, logit_metrics
from .theirs import Theirs


@dataclass(frozen=True)
class TapResult:
    """The verdict on one tap of one phase.

    status      ok
                introduced: wrong on the candidate's own inputs
                propagated: too far from the golden value, but right on the candidate's own inputs
                beyond: too far from the golden value; inputs or weights are not known, so its own part is not either
                nan: holds a NaN or infinity
                shape: has another shape than the tap
    distance    from the golden value; None if the pack does not keep the tap or the tensor cannot be measured
    allowed     the largest allowed `distance.error`
    introduced  relative error on the candidate's own inputs; None if it is not known
    own_allowed the largest allowed `introduced`
    where       the wrong part in words; empty if the whole tap is wrong
    """

    phase: str
    tap: str
    status: str
    precision: str
    distance: Distance | None = None
    allowed: float | None = None
    introduced: float | None = None
    own_allowed: float | None = None
    where: str = ""
    note: str = ""

    @property
    def wrong(self) -> bool:
        return self.status != "ok"


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison, in the order of the computation. `render` writes them as text."""

    results: tuple[TapResult, ...]
    missing: tuple[tuple[str, str], ...]
    precision: str
    logits: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
    mismatch: str = ""  # the reason, if nothing was compared: other tokens

    @property
    def first(self) -> TapResult | None:
        """The first divergence: the first wrong result that its inputs alone do not explain."""
        wrong = [result for result in self.results if result.wrong]
        return next((result for result in wrong if result.status != "propagated"), wrong[0] if wrong else None)

    @property
    def drift(self) -> bool:
        """Whether every operation is right on its inputs, but the roundings add up to more than in our own runs."""
        return (
            bool(self.results)
            and all(r.status in ("ok", "propagated") for r in self.results)
            and any(r.wrong for r in self.results)
        )

    @property
    def passed(self) -> bool:
        return not self.mismatch and (self.first is None or self.drift)


class Variant(Protocol):
    """A correct order of rounding that is not Hugging Face's: it makes no larger error, only other bits."""

    @property
    def name(self) -> str: ...

    @property
    def says(self) -> str: ...

    @property
    def replaces(self) -> Callable[[Config], dict[str, Op]]: ...


def compare_taps(
    golden: Golden,
    theirs: Theirs,
    weights: Mapping[str, Array] | None = None,
    variants: Sequence[Variant] = (),
    threads: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> Comparison:
    """Compare every tap that the candidate has and the pack keeps.

    weights   None: operations with weights cannot be judged on the candidate's inputs
    variants  orders of rounding to look for in the bits; a note reports a match
    progress  called with the number of bytes of the pack read since its last call

    Raises GoldenError for a candidate without any tap of the pack, and for weights of another model.
    """
    manifest, candidate = golden.manifest, theirs.candidate
    if mismatch := other_tokens(candidate.token_ids, manifest.token_ids):
        return Comparison((), (), "", None, mismatch=mismatch)
    names = {phase.name for phase in manifest.phases}
    taps = set(tap_names(manifest.config))
    if not any(phase in names and tap in taps for phase, tap in candidate.tensors):
        raise GoldenError(candidate.source, None, "holds no tap of this pack, in none of its phases")
    check = _Check(golden, theirs, progress)
    precisions = sorted({theirs.precision(tap) for _, tap in candidate.tensors if tap in taps})
    plain = [TRUTH, *(arithmetic for name in precisions for arithmetic in CORRECT[name])]
    check.streams = {name: [plain.index(arithmetic) for arithmetic in CORRECT[name]] for name in precisions}
    streams = [Stream(arithmetic) for arithmetic in plain]
    for variant, name in itertools.product(variants, precisions):
        check.variants[variant.name, name] = len(streams)
        streams.append(Stream(CORRECT[name][0], variant.replaces(manifest.config)))
    reader = None if weights is None else Weights(weights, digest=True)
    with np.errstate(all="ignore"):  # a candidate's values may be anything
        walk(manifest.config, manifest.phases, streams, reader, check, threads=threads)
    if reader is not None:
        check_digests(golden, reader)
    order = {tap: i for i, tap in enumerate(tap_names(manifest.config))}
    phase_order = {phase.name: i for i, phase in enumerate(manifest.phases)}
    results = sorted(check.results, key=lambda result: (phase_order[result.phase], order[result.tap]))
    missing = [(phase.name, tap) for phase in manifest.phases for tap in manifest.sizes if not theirs.has(phase, tap)]
    notes = (*candidate.notes, *check.variant_notes({variant.name: variant.says for variant in variants}))
    return Comparison(tuple(_settled(results)), tuple(missing), theirs.default_in_words(), check.logits, notes)


def check_digests(golden: Golden, reader: Weights) -> None:
    """Raise GoldenError unless the weights read so far are those of the recorded model."""
    for name, digest in reader.digests.items():
        if digest != golden.manifest.weights.get(name, digest):
            raise GoldenError(golden.path, f"weights.{name}", "differs: this is not the model that was recorded")


class _Check:
    """The visitor that judges the candidate's values and feeds them into the reference's next operations."""

    def __init__(self, golden: Golden, theirs: Theirs, progress: Callable[[int], object]) -> None:
        self.golden = golden
        self.theirs = theirs
        self.progress = progress
        self.streams: dict[str, list[int]] = {}
        self.results: list[TapResult] = []
        self.logits: dict[str, Any] | None = None
        # The stream of each variant in each precision; the shares of equal bits of each variant and of Hugging Face's
        # order.
        self.variants: dict[tuple[str, str], int] = {}
        self.bits: dict[str, list[tuple[float, float]]] = {}

    def __call__(self, p: int, tap: str, computed: dict[int, Array]) -> Array | None:
        phase = self.theirs.phases[p]
        if not self.theirs.has(phase, tap):
            return None
        precision = self.theirs.precision(tap)
        try:
            value, last = self.theirs.read(phase, tap)
        except MisfitError as problem:
            self.results.append(TapResult(phase.name, tap, "shape", precision, note=str(problem)))
            return None
        axis = letters(tap).index("T")
        if last:
            computed = {s: np.take(result, [-1], axis) for s, result in computed.items()}
        own, own_allowed = self._introduced(value, computed, precision)
        for (variant, of), s in self.variants.items():
            if of == precision != "fp32" and s in computed:
                same = (float(np.mean(value == computed[t])) for t in (s, self.streams[precision][0]))
                self.bits.setdefault(variant, []).append((next(same), next(same)))
        far, allowed = self._error(phase, tap, value, last, precision)
        note = "the last token alone" if last and phase.T > 1 else ""
        bad = _first_nan(value, tap)
        if bad is not None:
            self.results.append(
                TapResult(phase.name, tap, "nan", precision, far, allowed, own, own_allowed, note=f"at {bad}")
            )
            return None
        introduced = own is not None and own_allowed is not None and not own <= own_allowed
        beyond = far is not None and allowed is not None and not far.error <= allowed
        status = "introduced" if introduced else "ok" if not beyond else "beyond" if own is None else "propagated"
        where = ""
        if introduced:
            ways = [computed[s] for s in self.streams[precision]]
            where = localise(value, computed[0], ways, letters(tap), self.theirs.config.E)[0]
        self.results.append(TapResult(phase.name, tap, status, precision, far, allowed, own, own_allowed, where, note))
        return None if last and phase.T > 1 else value

    def _error(
        self, phase: Phase, tap: str, value: Array, last: bool, precision: str
    ) -> tuple[Distance | None, float | None]:
        size = self.golden.manifest.sizes.get(tap)
        if size is None or (last and phase.T > 1 and size not in ("full", "last")):
            return None, None
        right = self.golden.read(phase.name, tap)
        self.progress(right.nbytes)
        if last and size == "full":
            right = np.take(right, [-1], letters(tap).index("T"))
        reduced = reduce(value, letters(tap), "full" if last else size)
        allowed = MARGIN * self.golden.manifest.rounding[phase.name][tap][precision]
        far = distance(reduced, right)
        if tap == LOGITS and size in ("full", "last") and phase.name == "prompt" and np.isfinite(reduced).all():
            self.logits = logit_metrics(reduced, right, allowed)
        return far, allowed

    def variant_notes(self, says: Mapping[str, str]) -> list[str]:
        """Return a note on each variant whose bits the candidate has."""
        notes = []
        for name, shares in self.bits.items():
            theirs, right = np.mean(shares, axis=0)
            if theirs > 0.98 and right < 0.95:
                notes.append(f"{name}: {says[name]} ({theirs:.1%} of all bits agree with that; not an error)")
        return notes

    def _introduced(
        self, value: Array, computed: dict[int, Array], precision: str
    ) -> tuple[float | None, float | None]:
        if 0 not in computed:
            return None, None
        right = computed[0]
        ways = [computed[s] for s in self.streams[precision] if s in computed]
        return error(value, right), MARGIN * allowed_of(ways, right, precision)


def allowed_of(ways: Sequence[Array], right: Array, precision: str) -> float:
    """Return the largest relative error that a correct way to compute a result may have.

    The largest error of the known ways counts, or one more rounding. The error of n numbers is itself a sample. In few
    numbers, another correct way may err by more than all known ones: by 1 / sqrt(2 n) of their errors for each sigma.
    """
    sample = 1 + 3 / np.sqrt(2 * max(right.size, 1))
    return float(max([UNIT[precision]] + [error(way, right) for way in ways]) * sample)


def _settled(results: Sequence[TapResult]) -> list[TapResult]:
    """Blame a wrong q_matmul alone, not the q_proj that adds the bias to it; the same for k and v.

    Both are judged on the layer's normalised input, so that rounding between the two does not count.
    """
    wrong = {(r.phase, r.tap) for r in results if r.status == "introduced" and r.tap.endswith("_matmul")}
    settled = []
    for result in results:
        product = (result.phase, result.tap.removesuffix("_proj") + "_matmul")
        if result.status == "introduced" and result.tap.endswith("_proj") and product in wrong:
            result = dataclasses.replace(result, status="propagated", note="its product is wrong")
        settled.append(result)
    return settled


def _first_nan(value: Array, tap: str) -> list[int] | None:
    wrong = np.isnan(value) | (np.isposinf(value) if tap.endswith(".scores") else np.isinf(value))
    return [int(i) for i in np.unravel_index(int(wrong.argmax()), value.shape)] if wrong.any() else None


def other_tokens(theirs: Sequence[int] | None, ours: Sequence[int]) -> str:
    """Return the first difference in words; empty if there is none, or if the candidate names no tokens."""
    if theirs is None or list(theirs) == list(ours):
        return ""
    if len(theirs) != len(ours):
        return f"other tokens: {len(theirs)} of them, where the pack was recorded on {len(ours)}"
    at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"other tokens: position {at} is {theirs[at]}, where the pack was recorded on {ours[at]}"
