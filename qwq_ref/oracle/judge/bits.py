"""Judging a candidate in a mode of the engine, by its bits.

A mode rounds weights, activations and the cache on purpose, so float32's tolerances do not apply. `numerics.engine`
defines every bit of a mode. A result is right if it has the bits that the mode computes from the candidate's own
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...config import Config
from ...errors import GoldenError
from ...forms import FILE
from ...numerics import engine
from ...spec.ops import Array, embed
from ..adapters.candidate import Candidate, MisfitError
from ..distance import distance, error
from ..graph import (
    COS,
    EMBED,
    LOGITS,
    NORM,
    SIN,
    Phase,
    absolute,
    letters,
    split_name,
    tap_names,
)
from ..packs.pack import Golden
from ..walk import Weights
from . import file_form
from .compare import (
    Comparison,
    TapResult,
    check_digests,
    other_tokens,
)
from .engine import Mode
from .localise import MOST_SPANS, spans
from .metrics import logit_metrics
from .theirs import Theirs

Values = dict[tuple[str, str], Array]  # by phase and tap


def compare_bits(golden: Golden, candidate: Candidate, weights: Mapping[str, Array], mode: Mode) -> Comparison:
    """Compare the bits of every tap that both the candidate and the mode have.

    Of the pack, only the logits are read, to measure the distance of the mode from the truth. A layer is judged on its
    input; if several of its results differ, the first is to blame.

    Raises GoldenError for weights of another model.
    """
    config, phases = golden.manifest.config, golden.manifest.phases
    if mismatch := other_tokens(candidate.token_ids, golden.manifest.token_ids):
        return Comparison((), (), "", None, mismatch=mismatch)
    reader = Weights(weights, digest=True)
    floats = {name: reader.vector(name) for name in config.tensors()}
    of_file = mode.weights == FILE
    prepared = (
        file_form.prepare(config, file_form.quantised(weights))
        if of_file
        else engine.prepare(config, floats, mode.weights)
    )
    check_digests(golden, reader)

    theirs = Theirs(golden, candidate, {"": "fp32"})
    of_tokens = _run(config, prepared, phases, mode.kv, None)
    with np.errstate(all="ignore"):  # a candidate's values may be anything
        of_inputs = _run(config, prepared, phases, mode.kv, theirs)
    results: list[TapResult] = []
    missing: list[tuple[str, str]] = []
    logits = None
    for phase in phases:
        blamed: set[str] = set()
        for tap in tap_names(config):
            place = (phase.name, tap)
            if place not in of_tokens:
                continue
            if not theirs.has(phase, tap):
                missing.append(place)
                continue
            try:
                value, last = theirs.read(phase, tap)
            except MisfitError as problem:
                results.append(TapResult(phase.name, tap, "shape", str(mode), note=str(problem)))
                continue
            right, own = of_tokens[place], of_inputs[place]
            if last:
                axis = letters(tap).index("T")
                right, own = np.take(right, [-1], axis), np.take(own, [-1], axis)
            status, where = "ok" if _same(value, right).all() else "propagated", ""
            if not _same(value, own).all() and _unit(tap) not in blamed:
                blamed.add(_unit(tap))
                status, where = "introduced", _where(value, own, tap)
            if tap == LOGITS and phase is phases[0]:
                logits = _against_truth(golden, phase, value, last)
            far = distance(value, right)
            results.append(TapResult(phase.name, tap, status, str(mode), far, 0.0, error(value, own), 0.0, where))
    if not results:
        raise GoldenError(candidate.source, None, f"holds no tap of {mode} in the phases of this pack")
    return Comparison(tuple(results), tuple(missing), f"{mode}, by its bits", logits, tuple(candidate.notes))


def _run(config: Config, prepared: engine.Prepared, phases: Sequence[Phase], kv: str, theirs: Theirs | None) -> Values:
    """Run the mode phase by phase; with `theirs`, put their values in place at the ends of layers."""
    made: Values = {}
    cache = list(engine.empty_cache(config, kv))
    for phase in phases:

        def keep(tap: str, value: Array, phase: Phase = phase) -> None:
            made.setdefault((phase.name, tap), value)

        def go_on(tap: str, value: Array, phase: Phase = phase) -> Array:
            if theirs is None or not theirs.has(phase, tap):
                return value
            try:
                given, last = theirs.read(phase, tap)
            except MisfitError:
                return value
            return value if last and phase.T > 1 else given.astype(np.float32)

        cos, sin = engine.angles(config, np.arange(phase.start, phase.S))
        keep(COS, cos)
        keep(SIN, sin)
        x = embed(np.array(phase.ids), prepared.vector[f"{EMBED}.weight"])
        keep(EMBED, x)
        x = go_on(EMBED, x)
        for layer in range(config.L):
            keep(absolute(layer, "resid_pre"), x)
            x = go_on(absolute(layer, "resid_pre"), x)
            x, cache[layer] = engine.block(config, prepared, layer, x, cos, sin, cache[layer], keep)
            x = go_on(absolute(layer, "resid_post"), x)
        engine.head(config, prepared, x, keep)
    return made


def _same(value: Array, right: Array) -> Array:
    """Compare the bits of two arrays; any NaN equals any other."""
    equal = (value == right) & (np.signbit(value) == np.signbit(right))
    return np.asarray(equal | (np.isnan(value) & np.isnan(right)))


def _unit(tap: str) -> str:
    """Return the name of the unit that computes a tap: a layer, or the last norm with the head."""
    layer, name = split_name(tap)
    if layer is None or name == "resid_pre":
        return LOGITS if tap == NORM else tap
    return str(layer)


def _where(value: Array, own: Array, tap: str) -> str:
    """Return the tokens that differ, in words; empty if all do."""
    others = tuple(i for i, letter in enumerate(letters(tap)) if letter != "T")
    wrong = np.flatnonzero(~_same(value, own).all(axis=others))
    count = value.shape[letters(tap).index("T")]
    return f"token {spans(wrong, MOST_SPANS)} of {count}" if len(wrong) < count else ""


def _against_truth(golden: Golden, phase: Phase, value: Array, last: bool) -> dict[str, object] | None:
    """Compare the logits with the float64 logits of the pack, if it keeps them."""
    size = golden.manifest.sizes.get(LOGITS)
    if size not in ("full", "last") or not np.isfinite(value).all():
        return None
    right = golden.read(phase.name, LOGITS)
    value, right = (value, right) if size == "full" and not last else (value[-1:], right[-1:])
    return logit_metrics(value, right, error(value, right))
