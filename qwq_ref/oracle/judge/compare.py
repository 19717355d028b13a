"""Holding a candidate against a golden pack: which taps are right, where it first goes wrong, and what came of that.

Two errors of a tap are told apart. Its *error* is its distance from the golden value; it grows with all that went wrong
before. Its *introduced* error is its distance from what the reference operation makes of the candidate's own inputs;
only this operation can be to blame for it. Each is allowed `MARGIN` times what correct implementations in the
candidate's precision have: at that tap as measured in the pack, and on those inputs as measured here.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import GoldenError, UsageError
from ...spec import causal_mask
from ...spec.ops import Array, to_bf16, to_fp16
from ..adapters.candidate import Candidate, MisfitError, fit
from ..explain.mistakes import BY_NAME, MISTAKES
from ..graph import (
    CORRECT,
    LOGITS,
    TRUTH,
    UNIT,
    Phase,
    letters,
    shape_of,
    split_name,
    tap_names,
)
from ..packs.pack import PRECISIONS, Golden
from ..packs.sizes import reduce
from ..walk import Stream, Weights, walk
from .metrics import (
    Distance,
    distance,
    error,
    logit_metrics,
    seen,
    sentinel_for,
    tidy_scores,
)

MARGIN = 4.0
_HIDDEN_PROBABILITY = 1e-6


@dataclass(frozen=True)
class TapResult:
    """What became of one tap of one phase.

    status      ok; introduced: wrong, on inputs that are what they are; propagated: beyond what is allowed, but right
                on its inputs; beyond: the same, where its own part cannot be told (its inputs or the weights are not
                known); nan; shape
    distance    from the golden value; None where the pack does not keep it, or it could not be measured
    allowed     relative error, of `distance.error`
    introduced  relative error on the candidate's own inputs; None where that is not known
    own_allowed the same for it
    where       in words, if only a part of it is wrong
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
    """The numbers of a comparison, in the order of the computation; `report` puts them into words."""

    results: tuple[TapResult, ...]
    missing: tuple[tuple[str, str], ...]
    precision: str
    logits: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()
    mismatch: str = ""  # why nothing was compared: other tokens, nothing in common

    @property
    def first(self) -> TapResult | None:
        """The first divergence: the first result that is wrong and not only because its inputs were."""
        wrong = [result for result in self.results if result.wrong]
        return next((result for result in wrong if result.status != "propagated"), wrong[0] if wrong else None)

    @property
    def drift(self) -> bool:
        """Every operation is right on its inputs, yet their roundings add up to more than in our own runs."""
        return (
            bool(self.results)
            and all(r.status in ("ok", "propagated") for r in self.results)
            and any(r.wrong for r in self.results)
        )

    @property
    def passed(self) -> bool:
        return not self.mismatch and (self.first is None or self.drift)


class Theirs:
    """A candidate's tensors in the shapes of their taps, each checked once it is read."""

    def __init__(self, golden: Golden, candidate: Candidate, precision: str | Mapping[str, str] | None) -> None:
        self.config = golden.manifest.config
        self.phases = golden.manifest.phases
        self.candidate = candidate
        self.declared = dict(candidate.precision)
        if precision is not None:
            self.declared |= {"": precision} if isinstance(precision, str) else dict(precision)
        for tap, name in self.declared.items():
            if name not in PRECISIONS:
                raise UsageError(None, f"precision of {tap}" if tap else "precision", f"must be one of {_PRECISIONS}")
        self.detected = "" not in self.declared
        if self.detected:
            self.declared[""] = self._detect()

    def has(self, phase: Phase, tap: str) -> bool:
        return (phase.name, tap) in self.candidate.tensors

    def read(self, phase: Phase, tap: str) -> tuple[Array, bool]:
        """(float array in the tap's shape, whether it is the last row alone). Raises MisfitError."""
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
        """Whether the probabilities show that hidden keys were looked at: then scores without a mask are no accident
        of where they were tapped."""
        probs = tap.removesuffix("scores") + "probs"
        if not self.has(phase, probs):
            return False
        try:
            return bool((np.abs(self.read(phase, probs)[0]) > _HIDDEN_PROBABILITY)[:, ~visible].any())
        except (MisfitError, IndexError):
            return False

    def _all_keys(self, array: Array, phase: Phase, tap: str) -> Array:
        """Scores or probabilities of a cache that has dropped what the window hides: it holds the last of S keys."""
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
        """As declared for this tap, for its name within a layer, or for all."""
        return self.declared.get(tap, self.declared.get(split_name(tap)[1], self.declared[""]))

    def _detect(self) -> str:
        """The precision that the values betray. Of all taps but the embedding, which may be exact in any."""
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


_PRECISIONS = ", ".join(PRECISIONS)


def compare_taps(
    golden: Golden,
    candidate: Candidate,
    weights: Mapping[str, Array] | None = None,
    precision: str | Mapping[str, str] | None = None,
    threads: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> Comparison:
    """Compare every tap that both sides have.

    weights    the model's, to tell introduced from propagated error at the operations that use them
    precision  "fp32", "bf16" or "fp16", or by tap (its name, or that within a layer; "" for the rest)
    progress   called with the number of bytes of golden values held against theirs since its last call

    Raises GoldenError for a broken pack, UsageError for a precision that is none.
    """
    manifest = golden.manifest
    if candidate.token_ids is not None and list(candidate.token_ids) != manifest.token_ids:
        return Comparison((), (), "", None, mismatch=other_tokens(list(candidate.token_ids), manifest.token_ids))
    names = {phase.name for phase in manifest.phases}
    taps = set(tap_names(manifest.config))
    if not any(phase in names and tap in taps for phase, tap in candidate.tensors):
        raise GoldenError(candidate.source, None, "holds no tap of this pack, in none of its phases")
    theirs = Theirs(golden, candidate, precision)
    check = _Check(golden, theirs, progress)
    precisions = sorted({theirs.precision(tap) for _, tap in candidate.tensors if tap in taps})
    plain = [TRUTH, *(arithmetic for name in precisions for arithmetic in CORRECT[name])]
    check.streams = {name: [plain.index(arithmetic) for arithmetic in CORRECT[name]] for name in precisions}
    streams = [Stream(arithmetic) for arithmetic in plain]
    for mistake, name in itertools.product([m for m in MISTAKES if m.rounding], precisions):
        check.roundings[mistake.name, name] = len(streams)
        streams.append(Stream(CORRECT[name][0], mistake.replaces(manifest.config)))
    reader = None if weights is None else Weights(weights, digest=True)
    with np.errstate(all="ignore"):  # a candidate's values may be anything
        walk(manifest.config, manifest.phases, streams, reader, check, threads=threads)
    if reader is not None:
        check_digests(golden, reader)
    order = {tap: i for i, tap in enumerate(tap_names(manifest.config))}
    phase_order = {phase.name: i for i, phase in enumerate(manifest.phases)}
    results = sorted(check.results, key=lambda result: (phase_order[result.phase], order[result.tap]))
    missing = [(phase.name, tap) for phase in manifest.phases for tap in manifest.sizes if not theirs.has(phase, tap)]
    kind = theirs.declared[""] + (" (told from the values)" if theirs.detected else "")
    notes = (*candidate.notes, *check.rounding_notes())
    return Comparison(tuple(_settled(results)), tuple(missing), kind, check.logits, notes)


def check_digests(golden: Golden, reader: Weights) -> None:
    """Raise GoldenError unless what was read are the weights that a pack was recorded from."""
    for name, digest in reader.digests.items():
        if digest != golden.manifest.weights.get(name, digest):
            raise GoldenError(golden.path, f"weights.{name}", "differs: this is not the model that was recorded")


class _Check:
    """The visitor: sees what the reference makes of the candidate's inputs, and hands on what the candidate made."""

    def __init__(self, golden: Golden, theirs: Theirs, progress: Callable[[int], object]) -> None:
        self.golden = golden
        self.theirs = theirs
        self.progress = progress
        self.streams: dict[str, list[int]] = {}
        self.results: list[TapResult] = []
        self.logits: dict[str, Any] | None = None
        # Mistakes that are only a matter of rounding, by precision: their streams, and the share of bits they get right
        # beside that of Hugging Face's order.
        self.roundings: dict[tuple[str, str], int] = {}
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
        for (mistake, of), s in self.roundings.items():
            if of == precision != "fp32" and s in computed:
                same = (float(np.mean(value == computed[t])) for t in (s, self.streams[precision][0]))
                self.bits.setdefault(mistake, []).append((next(same), next(same)))
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

    def rounding_notes(self) -> list[str]:
        """Of roundings that are no error, but not Hugging Face's."""
        notes = []
        for name, shares in self.bits.items():
            theirs, right = np.mean(shares, axis=0)
            if theirs > 0.98 and right < 0.95:
                notes.append(f"{name}: {BY_NAME[name].says} ({theirs:.1%} of all bits agree with that; not an error)")
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
    """The largest relative error of correct ways to compute a result: one more rounding of it is always correct."""
    return max([UNIT[precision]] + [error(way, right) for way in ways])


def _settled(results: Sequence[TapResult]) -> list[TapResult]:
    """q_proj is made from what q_matmul is made from: where the product is wrong, the sum with the bias is not to
    blame. Both are judged on the layer's normalised input, so that rounding between the two does not count."""
    wrong = {(r.phase, r.tap) for r in results if r.status == "introduced" and r.tap.endswith("_matmul")}
    settled = []
    for result in results:
        product = (result.phase, result.tap.removesuffix("_proj") + "_matmul")
        if result.status == "introduced" and result.tap.endswith("_proj") and product in wrong:
            result = dataclasses.replace(result, status="propagated", note="its product is wrong")
        settled.append(result)
    return settled


def localise(
    value: Array, right: Array, ways: Sequence[Array], dims: Sequence[str], E: int
) -> tuple[str, tuple[int, Array] | None]:
    """Where a wrong result is wrong -> (in words, (axis, indices) of the narrowest part), if it is a part.

    A slice along an axis is wrong if its error is beyond MARGIN times the largest error of the correct ways in it.
    Of an axis of heads that are flattened, slices are heads of `E` channels.
    """
    sentinel = sentinel_for(right)
    value, right, *ways = (seen(np.asarray(x, np.float64), sentinel) for x in (value, right, *ways))
    differences = [way - right for way in ways]
    best: tuple[float, str, tuple[int, Array] | None] = (1.0, "", None)
    for axis, letter in enumerate(dims):
        width = E if letter.endswith("*E") else 1
        count = right.shape[axis] // width
        if count == 1 or letter not in _SLICES:
            continue

        def by_slice(x: Array, axis: int = axis, width: int = width) -> Array:
            others = tuple(i for i in range(x.ndim) if i != axis)
            return np.asarray(np.sum(x**2, axis=others).reshape(-1, width).sum(axis=1))

        noise = np.max([by_slice(d) for d in differences] + [by_slice(right) * 2.0**-48], axis=0)
        bad = np.flatnonzero(by_slice(value - right) > MARGIN**2 * noise)
        share = len(bad) / count
        if 0 < share < best[0]:
            words = f"{_SLICES[letter]} {spans(bad)} of {count}"
            if share > 0.5 and _SLICES[letter] in ("channel", "logit"):
                words = ""  # noise hides some of many: nothing to tell anybody
            indices = (bad[:, None] * width + np.arange(width)).ravel()
            best = (share, words, (axis, indices))
    return best[1], best[2]


_SLICES = {
    "T": "token",
    "S": "key",
    "H": "head",
    "K": "key-value head",
    "H*E": "head",
    "K*E": "key-value head",
    "D": "channel",
    "F": "channel",
    "V": "logit",
}


def spans(indices: Array) -> str:
    """0, 1, 2, 5 -> "0-2, 5"."""
    breaks = np.flatnonzero(np.diff(indices) != 1)
    starts, ends = [0, *(breaks + 1)], [*breaks, len(indices) - 1]
    spans = [f"{indices[a]}" if a == b else f"{indices[a]}-{indices[b]}" for a, b in zip(starts, ends, strict=True)]
    return ", ".join(spans if len(spans) <= 6 else [*spans[:5], f"and {len(indices)} in all"])


def _first_nan(value: Array, tap: str) -> list[int] | None:
    wrong = np.isnan(value) | (np.isposinf(value) if tap.endswith(".scores") else np.isinf(value))
    return [int(i) for i in np.unravel_index(int(wrong.argmax()), value.shape)] if wrong.any() else None


def other_tokens(theirs: list[int], ours: list[int]) -> str:
    if len(theirs) != len(ours):
        return f"other tokens: {len(theirs)} of them, where the pack was recorded on {len(ours)}"
    at = next(i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b)
    return f"other tokens: position {at} is {theirs[at]}, where the pack was recorded on {ours[at]}"
