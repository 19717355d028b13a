"""Diagnosis: the known mistakes that make a candidate's wrong taps.

Every mistake of the catalogue runs beside the reference, on the candidate's own inputs as far as it has them. A mistake
explains a wrong tap if its prediction differs from the candidate by no more than rounding. A right tap that a mistake
changes contradicts it. The first cause explains the first divergence; of several such mistakes, it explains most other
taps with the fewest contradictions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...config import Config
from ...spec.ops import Array
from ..adapters.candidate import MisfitError
from ..distance import error
from ..graph import (
    CORRECT,
    TRUTH,
    UNIT,
    Phase,
    absolute,
    letters,
    split_name,
    tap_names,
)
from ..judge.compare import Comparison, TapResult, allowed_of
from ..judge.localise import localise
from ..judge.metrics import MARGIN, seen, sentinel_for
from ..judge.theirs import Theirs
from ..walk import Stream, Weights, walk
from .mistakes import Mistake, possible

Place = tuple[str, str]  # phase, tap
_LAYERS = 4  # at most so many layers are tried: each mistake costs a pass of the model over them

_ALIKE = 1.5  # remainders whose ratio is smaller do not tell two mistakes apart
_BITS = 0.5
_SAME = 1e-9
_REPRODUCED = 0.5  # share of the squared error; a mistake with large rounding would fit everything without this limit


@dataclass(frozen=True)
class Cause:
    """A mistake that reproduces wrong taps to within rounding.

    explains  the wrong taps that it explains
    against   the number of right taps that it would change
    share     the share of the squared error that it reproduces at the first of the taps
    equals    names of other mistakes with the same prediction here
    """

    mistake: Mistake
    explains: tuple[Place, ...]
    against: int
    share: float
    equals: tuple[str, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """The result of a diagnosis.

    causes       the cause of the first divergence, then those of the taps that it does not explain
    unexplained  wrong taps that no known mistake explains, in the order of the computation
    nearest      the mistake closest to the first unexplained tap, and the share of the squared error that it reproduces
    tried        the number of mistakes that were tried; 0 if none could be
    """

    causes: tuple[Cause, ...] = ()
    unexplained: tuple[Place, ...] = ()
    nearest: tuple[str, float] | None = None
    tried: int = 0


@dataclass
class _Evidence:
    """The predictions of one mistake at the wrong taps.

    explains  the remaining error at each tap that it explains, in units of the rounding of the right result
    bits      the share of bit-identical elements, in the candidate's own precision
    share     the share of the squared error that it reproduces, also at taps that it does not explain
    against   the number of right taps that it would change
    """

    explains: dict[Place, float] = field(default_factory=dict)
    bits: dict[Place, float] = field(default_factory=dict)
    share: dict[Place, float] = field(default_factory=dict)
    against: int = 0


def diagnose(
    comparison: Comparison,
    theirs: Theirs,
    weights: Mapping[str, Array] | None,
    threads: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> Diagnosis:
    """Find the causes of a comparison's first divergence, and of the remaining wrong taps.

    progress  called with the number of parameters read since its last call
    """
    first = comparison.first
    if first is None or comparison.passed or first.status not in ("introduced", "beyond", "propagated"):
        return Diagnosis()
    config, phases = theirs.config, theirs.phases
    tried = possible(config, weights)
    trial = _Trial(theirs, tried, comparison)
    with np.errstate(all="ignore"):  # wrong models overflow
        walk(
            config,
            phases,
            trial.streams,
            None if weights is None else Weights(weights, progress=progress),
            trial,
            _layers_to_try(comparison, theirs),
            threads,
        )
    return _conclude(trial, tried)


def _layers_to_try(comparison: Comparison, theirs: Theirs) -> Collection[int]:
    """Return the layer of the first divergence, its next, other wrong layers, the first and the last.

    All layers are returned if the candidate lacks the inputs of these.
    """
    L = theirs.config.L
    bad = [split_name(r.tap)[0] for r in comparison.results if r.status in ("introduced", "beyond")]
    wanted = dict.fromkeys([layer for layer in bad if layer is not None][:1])
    first = next(iter(wanted), 0)
    wanted |= dict.fromkeys([first + 1, *(layer for layer in bad if layer is not None), 0, L - 1])
    chosen = [layer for layer in wanted if layer is not None and layer < L][:_LAYERS]
    for layer in [*chosen, L]:
        if layer == 0:
            continue
        known = (absolute(layer - 1, "resid_post"), absolute(layer, "resid_pre"))
        if not all(any(theirs.has(phase, tap) for tap in known) for phase in theirs.phases):
            return range(L)
    return chosen


class _Trial:
    """The visitor that collects the predictions of all mistakes."""

    def __init__(
        self, theirs: Theirs, tried: Mapping[str, tuple[Mistake, Mapping[str, object]]], comparison: Comparison
    ) -> None:
        self.theirs = theirs
        self.evidence = {name: _Evidence() for name in tried}
        self.wrong: dict[Place, float] = {}
        self.status = {(r.phase, r.tap): r for r in comparison.results}
        precisions = sorted({theirs.precision(tap) for _, tap in theirs.candidate.tensors})
        arithmetics = [TRUTH, *(arithmetic for name in precisions for arithmetic in CORRECT[name])]
        self.streams = [Stream(arithmetic) for arithmetic in arithmetics]
        self.ways = {name: [arithmetics.index(a) for a in CORRECT[name]] for name in precisions}
        self.exact: dict[str, int] = {}
        self.rounded: dict[tuple[str, str], int] = {}
        for name, (_, replaces) in tried.items():
            self.exact[name] = len(self.streams)
            self.streams.append(Stream(TRUTH, replaces))  # type: ignore[arg-type]
            for precision in precisions:
                self.rounded[name, precision] = len(self.streams)
                self.streams.append(Stream(CORRECT[precision][0], replaces))  # type: ignore[arg-type]

    def __call__(self, p: int, tap: str, computed: dict[int, Array]) -> Array | None:
        phase = self.theirs.phases[p]
        result = self.status.get((phase.name, tap))
        if result is None or result.status in ("shape", "nan"):
            return None
        try:
            value, last = self.theirs.read(phase, tap)
        except MisfitError:
            return None
        if 0 in computed:
            axis = letters(tap).index("T")
            if last:
                computed = {s: np.take(x, [-1], axis) for s, x in computed.items()}
            self._judge((phase.name, tap), value, computed, result)
        return None if last and phase.T > 1 else value

    def _judge(self, place: Place, value: Array, computed: dict[int, Array], result: TapResult) -> None:
        precision, dims = result.precision, letters(place[1])
        right = computed[0]
        ways = [computed[s] for s in self.ways[precision]]
        allowed = MARGIN * allowed_of(ways, right, precision)
        wrong = result.note != "its product is wrong" and not error(value, right) <= allowed
        part = localise(value, right, ways, dims, self.theirs.config.E)[1] if wrong else None
        if place[1].endswith(".scores"):
            sentinel = sentinel_for(right)
            value, right = seen(value, sentinel), seen(right, sentinel)
            computed = {s: seen(x, sentinel) for s, x in computed.items()}
            ways = [computed[s] for s in self.ways[precision]]
        if part is not None:
            axis, indices = part
            value, right = np.take(value, indices, axis), np.take(right, indices, axis)
            ways = [np.take(way, indices, axis) for way in ways]
        noise = max(_size(way - right) for way in ways)
        size = _size(right)
        off = _size(value - right)
        unit = max(noise, UNIT[precision] * size)
        if wrong:
            self.wrong[place] = off
        for name, s in self.exact.items():
            if s not in computed:
                continue
            predicted, rounded = computed[s], computed[self.rounded[name, precision]]
            if part is not None:
                predicted, rounded = np.take(predicted, indices, axis), np.take(rounded, indices, axis)
            own_size = _size(predicted)
            # Its own rounding; or that of the right result, scaled, which more correct ways have measured.
            own = max(_size(rounded - predicted), UNIT[precision] * own_size, noise * own_size / (size or 1.0))
            residual = _size(value - predicted)
            evidence = self.evidence[name]
            if wrong:
                if not np.isfinite(residual):
                    continue
                evidence.share[place] = 1 - (residual / off) ** 2 if off > 0 else 0.0
                if residual <= MARGIN * own and evidence.share[place] > _REPRODUCED:
                    evidence.explains[place] = residual / unit if unit > 0 else 0.0
                    evidence.bits[place] = float(np.mean(rounded == value)) if precision != "fp32" else 0.0
            elif not residual <= MARGIN * own and _size(predicted - right) > MARGIN * max(
                noise, UNIT[precision] * size
            ):
                evidence.against += 1


def _size(x: Array) -> float:
    """Return the root of the sum of squares, in float64; infinity for a NaN."""
    flat = np.asarray(x, np.float64).ravel()
    total = float(flat @ flat)
    return float(np.sqrt(total)) if total == total else np.inf


def _conclude(trial: _Trial, tried: Mapping[str, tuple[Mistake, object]]) -> Diagnosis:
    order = {tap: i for i, tap in enumerate(tap_names(trial.theirs.config))}
    phase_order = {phase.name: i for i, phase in enumerate(trial.theirs.phases)}
    left = sorted(trial.wrong, key=lambda place: (phase_order[place[0]], order[place[1]]))
    causes: list[Cause] = []
    unexplained: list[Place] = []
    most_bits = {place: max(e.bits.get(place, 0.0) for e in trial.evidence.values()) for place in left}
    while left:
        first = left[0]
        fitting = [name for name, evidence in trial.evidence.items() if first in evidence.explains]
        if not fitting:
            unexplained.append(left.pop(0))
            continue

        def rank(name: str, left: Sequence[Place] = tuple(left)) -> tuple[int, int]:
            evidence = trial.evidence[name]
            return (-len(set(evidence.explains) & set(left)), evidence.against)

        def nearness(name: str, left: Sequence[Place] = tuple(left)) -> float:
            """Return a measure to compare mistakes that explain the same taps: the share of unequal bits if most bits
            are equal, or else the remaining error."""
            evidence = trial.evidence[name]
            places = [place for place in left if place in evidence.explains]
            if np.mean([most_bits[place] for place in places]) > _BITS:
                return float(1 - np.mean([evidence.bits[place] for place in places]))
            return float(np.mean([evidence.explains[place] ** 2 for place in places]))

        fitting.sort(key=lambda name: (rank(name), nearness(name)))
        chosen = fitting[0]
        # Of mistakes with equal predictions, the first in the catalogue is chosen.
        same = [name for name, evidence in trial.evidence.items() if _alike(evidence, trial.evidence[chosen])]
        best = same[0]
        alike = [n for n in fitting if rank(n) == rank(chosen) and nearness(n) < _ALIKE * nearness(chosen)]
        equals = list(dict.fromkeys(name for name in (*same, *alike) if name != best))
        evidence = trial.evidence[best]
        explained = tuple(place for place in left if any(place in trial.evidence[name].explains for name in same))
        causes.append(Cause(tried[best][0], explained, evidence.against, evidence.share[first], tuple(equals)))
        left = [place for place in left if place not in explained]
    nearest = None
    if unexplained:
        shares = {name: e.share[unexplained[0]] for name, e in trial.evidence.items() if unexplained[0] in e.share}
        best_name = max(shares, key=lambda name: shares[name], default=None)
        if best_name is not None and shares[best_name] > 0.5:
            nearest = best_name, shares[best_name]
    return Diagnosis(tuple(causes), tuple(unexplained), nearest, len(tried))


def _alike(a: _Evidence, b: _Evidence) -> bool:
    """Whether two mistakes predict the same at all taps."""
    return (
        a.share.keys() == b.share.keys()
        and a.against == b.against
        and all(abs(share - b.share[place]) < _SAME for place, share in a.share.items())
    )


def visible(
    config: Config,
    phases: Sequence[Phase],
    weights: Mapping[str, Array],
    precision: str,
    taps: Collection[Place] | None = None,
    threads: int = 1,
    progress: Callable[[int], object] = lambda count: None,
) -> dict[str, Place | None]:
    """Find the first place where each mistake changes a result by more than `precision` allows -> {name: place or None}

    taps  the places that a candidate has; None: all

    Mistakes that make no difference with this config, or with weights from these files, are left out.
    """
    tried = {name: replaces for name, (_, replaces) in possible(config, weights).items()}
    streams = [Stream(TRUTH), *(Stream(arithmetic) for arithmetic in CORRECT[precision])]
    ways = range(1, len(streams))
    first = {name: len(streams) + i for i, name in enumerate(tried)}
    streams += [Stream(TRUTH, replaces) for replaces in tried.values()]
    found: dict[str, Place | None] = dict.fromkeys(tried)
    earliest = dict.fromkeys(tried, len(phases))  # results come by operation, but a model runs by phase

    def visit(p: int, tap: str, computed: dict[int, Array]) -> Array | None:
        place = (phases[p].name, tap)
        if taps is not None and place not in taps:
            return None
        right = computed[0]
        allowed = MARGIN * allowed_of([computed[s] for s in ways], right, precision)
        for name, s in first.items():
            if p < earliest[name] and s in computed and not error(computed[s], right) <= allowed:
                found[name], earliest[name] = place, p
        return right

    with np.errstate(all="ignore"):
        walk(config, phases, streams, Weights(weights, progress=progress), visit, threads=threads)
    return found
