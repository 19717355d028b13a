"""The oracle: are my numbers right, and if not, where and why?

    from qwq_ref import oracle

    def test_my_model():
        oracle.check("gqa", my_taps)          # {"model.layers.0.self_attn.q_proj": array, ...}

`check` raises `DivergenceError`, an AssertionError that tells where it first goes wrong, and which mistake does that;
`compare` returns the same as a `Report`. `record` makes a golden pack of any model.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GoldenError, UsageError
from ..files import StrPath
from ..footprint import parameters
from ..formats import Checkpoint, resolve
from ..spec.ops import Array
from .adapters import llama_cpp
from .adapters.candidate import Candidate
from .adapters.folders import open_candidate
from .adapters.torch_hooks import torch_taps
from .explain.diagnose import Diagnosis, diagnose, visible
from .judge.bits import compare_bits
from .judge.compare import Comparison, Theirs, compare_taps
from .judge.engine import (
    PREFIX,
    engine_taps,
    is_mode,
    read_mode,
    run_mode,
)
from .packs.pack import Golden
from .packs.record import record
from .packs.vectors import check_op
from .render.report import DivergenceError, Report
from .walk import check_weights

__all__ = [
    "Candidate",
    "DivergenceError",
    "Golden",
    "Report",
    "check",
    "check_op",
    "compare",
    "conformance",
    "engine_taps",
    "path",
    "record",
    "torch_taps",
]

_SMALL = 50_000_000  # parameters of a model on which every mistake can be tried within seconds
_CONFORMANCE = Path(__file__).parent / "conformance"

Taps = Mapping[str, Any]
Progress = Callable[[str, int, str], contextlib.AbstractContextManager[Callable[[int], object]]]


def _silent(what: str, total: int, unit: str) -> contextlib.AbstractContextManager[Callable[[int], object]]:
    return contextlib.nullcontext(lambda count: None)


def conformance() -> list[str]:
    """Names of the packs that ship inside: small models with their weights, to start with."""
    return sorted(path.name for path in _CONFORMANCE.iterdir() if path.is_dir()) if _CONFORMANCE.is_dir() else []


def path(name: str) -> Path:
    """The folder of a pack that ships inside. Raises UsageError."""
    if name not in conformance():
        raise UsageError(None, "golden", f"{name[:60]} is not among {', '.join(conformance())}")
    return _CONFORMANCE / name


def open_golden(golden: StrPath | Golden) -> contextlib.AbstractContextManager[Golden]:
    """A pack by its folder, or by the name of one that ships inside; an open one stays open. Raises GoldenError."""
    if isinstance(golden, Golden):
        return contextlib.nullcontext(golden)
    name = os.fspath(golden)
    if not os.path.exists(name) and name in conformance():
        return Golden.open(_CONFORMANCE / name)
    return Golden.open(name)


def compare(
    golden: StrPath | Golden,
    theirs: StrPath | Candidate | Taps,
    *,
    model: StrPath | Mapping[str, Array] | None = None,
    precision: str | Mapping[str, str] | None = None,
    name_map: StrPath | None = None,
    explain: bool = True,
    coverage: bool | None = None,
    verify: bool = True,
    threads: int = 1,
    progress: Progress = _silent,
) -> Report:
    """Hold a candidate's tensors against a golden pack.

    golden     a pack's folder, or the name of one that ships inside (`conformance()`)
    theirs     a folder or file (see docs/adapters.md), a Candidate, or arrays: {tap: array} of the prompt, or
               {phase: {tap: array}}; or "qwq:q4", "qwq:q8+fp32": this package's engine, with such weights and cache
    model      the weights: a checkpoint, or arrays by name. None: those in the pack, if it has them. Without any,
               operations that have weights cannot be told from their inputs, and fewer mistakes can be named
    precision  "fp32", "bf16" or "fp16", or by tap; None: as the candidate says, or as its values look. Or a mode of
               the engine, "q8", "q4+fp32": then bits are judged, and by `numerics.engine`
    name_map   a YAML or JSON file, for tensors that are called otherwise
    explain    look for the mistake that explains a divergence
    coverage   find out which mistakes these tensors could not show; None: if all is right and the model is small
    verify     hold the pack's files against their SHA-256 first
    threads    that share the work where there are weights
    progress   progress(what, total, unit) is a context manager whose value is called with what was done of the total
               since its last call: for each step that can take long

    Raises GoldenError, CheckpointError or ConfigError for broken input, UsageError for impossible options.
    """
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_golden(golden))
        if verify:
            with progress("checking", opened.nbytes(), "B") as update:
                opened.verify(update)
        weights = _weights(opened, model, stack)
        manifest = opened.manifest
        if isinstance(theirs, str) and theirs.startswith(PREFIX) and not os.path.exists(theirs):
            chosen = read_mode(theirs.removeprefix(PREFIX))
            candidate = run_mode(chosen, manifest.config, _needed(weights, opened, chosen), manifest.phases, threads)
        else:
            candidate = as_candidate(theirs, opened, name_map)
        declared = _declared(candidate, precision)
        if is_mode(declared):
            mode = read_mode(declared)
            result = compare_bits(opened, candidate, _needed(weights, opened, mode), mode)
            return _report(golden, opened, candidate, result)
        with progress("comparing", opened.nbytes(), "B") as update:
            result = compare_taps(opened, candidate, weights, precision, threads, update)
        hidden = None
        found = None
        if not result.mismatch:
            their_taps = Theirs(opened, candidate, precision)
            size = parameters(manifest.config)
            if explain and not result.passed:
                with progress("explaining", size, "weights") as update:
                    found = diagnose(result, their_taps, weights, threads, update)
            small = size <= _SMALL
            if weights is not None and (coverage or (coverage is None and small and result.passed)):
                places = set(candidate.tensors)
                with progress("looking for what cannot be seen", size, "weights") as update:
                    shown = visible(
                        manifest.config, manifest.phases, weights, their_taps.declared[""], places, threads, update
                    )
                hidden = tuple(name for name, place in shown.items() if place is None)
        return _report(golden, opened, candidate, result, found, weights is not None, hidden)


def _report(
    golden: StrPath | Golden,
    opened: Golden,
    candidate: Candidate,
    result: Comparison,
    found: Diagnosis | None = None,
    with_weights: bool = True,
    hidden: tuple[str, ...] | None = None,
) -> Report:
    return Report(
        str(golden.path if isinstance(golden, Golden) else golden),
        candidate.source,
        opened.manifest,
        result,
        found or Diagnosis(),
        with_weights,
        hidden,
        unknown=tuple(candidate.unknown),
    )


def check(golden: StrPath | Golden, theirs: StrPath | Candidate | Taps, **options: Any) -> Report:
    """`compare`, and raise DivergenceError, an AssertionError, unless all is right."""
    report = compare(golden, theirs, **options)
    if not report.passed:
        raise DivergenceError(report)
    return report


def as_candidate(
    theirs: StrPath | Candidate | Taps,
    golden: Golden,
    name_map: StrPath | None = None,
) -> Candidate:
    """Whatever somebody calls their tensors, as a Candidate."""
    if isinstance(theirs, Candidate):
        return theirs
    if isinstance(theirs, Mapping):
        phases = {phase.name for phase in golden.manifest.phases}
        nested = theirs if set(theirs) <= phases else {"prompt": theirs}
        return Candidate(
            "arrays",
            {(phase, tap): partial(np.asarray, array) for phase, taps in nested.items() for tap, array in taps.items()},
        )
    if (Path(theirs) / llama_cpp.INDEX).is_file():
        return llama_cpp.read_dump(theirs)
    return open_candidate(theirs, golden.manifest.config, name_map)


def _declared(candidate: Candidate, precision: str | Mapping[str, str] | None) -> str:
    """The precision of all taps that is not that of one; empty if there is none."""
    if isinstance(precision, str):
        return precision
    return ({} if precision is None else precision).get("") or candidate.precision.get("", "")


def _needed(weights: Mapping[str, Array] | None, golden: Golden, mode: object) -> Mapping[str, Array]:
    if weights is None:
        raise UsageError(golden.path, "model", f"is needed for {mode}: there are no weights in the pack")
    return weights


def _weights(
    golden: Golden, model: StrPath | Mapping[str, Array] | None, stack: contextlib.ExitStack
) -> Mapping[str, Array] | None:
    weights: Mapping[str, Array]
    if isinstance(model, Mapping):
        weights, source = model, "the arrays that were given"
    else:
        folder = golden.model_path if model is None else resolve(model)
        if folder is None:
            return None
        weights, source = stack.enter_context(Checkpoint.open(folder)), str(folder if model is None else model)
    if misfit := check_weights(golden.manifest.config, weights):
        raise GoldenError(golden.path, "model", f"was recorded from another model than {source}: {misfit}")
    return weights
