"""`compare` and `check`: from a pack and a candidate to a report."""

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
from ..formats import Download, open_floats, resolve
from ..spec.ops import Array
from .adapters import llama_cpp
from .adapters.candidate import Candidate
from .adapters.folders import open_candidate
from .explain.diagnose import Diagnosis, diagnose, visible
from .explain.mistakes import MISTAKES
from .judge.bits import compare_bits
from .judge.compare import Comparison, compare_taps
from .judge.engine import PREFIX, is_mode, read_mode, run_mode
from .judge.theirs import Theirs, declared_precision
from .packs.pack import Golden
from .packs.shipped import open_golden
from .render.report import DivergenceError, Report
from .walk import check_weights

_SMALL = 50_000_000  # parameters of a model on which all mistakes run within seconds

Taps = Mapping[str, Any]
Finder = Callable[[Callable[[Download], object]], Path]
Progress = Callable[[str, int, str], contextlib.AbstractContextManager[Callable[[int], object]]]


def _silent(what: str, total: int, unit: str) -> contextlib.AbstractContextManager[Callable[[int], object]]:
    return contextlib.nullcontext(lambda count: None)


def compare(
    golden: StrPath | Golden,
    theirs: StrPath | Candidate | Taps,
    *,
    model: StrPath | Mapping[str, Array] | Finder | None = None,
    precision: str | Mapping[str, str] | None = None,
    name_map: StrPath | None = None,
    explain: bool = True,
    coverage: bool | None = None,
    verify: bool = True,
    threads: int = 1,
    progress: Progress = _silent,
) -> Report:
    """Compare a candidate's tensors with a golden pack.

    golden     the folder of a pack, or the name of a shipped one (`conformance()`)
    theirs     a folder or file (docs/adapters.md); a Candidate; arrays, as {tap: array} of the prompt or as
               {phase: {tap: array}}; or "qwq:q4", "qwq:q8+fp32": this package's engine in a mode
    model      the weights: a checkpoint, or {name: array}; or a function that finds a checkpoint, and calls its
               argument with a `Download`, which may refuse it; None: those in the pack, if it has them. Without
               weights, operations with weights are not judged on their own inputs, and fewer mistakes can be named
    precision  "fp32", "bf16" or "fp16", or {tap: precision}; None: as the candidate declares, or as its values show.
               A mode of the engine, such as "q8" or "q4+fp32": the bits are compared with `numerics.engine`
    name_map   a YAML or JSON file that maps other names of tensors
    explain    look for the mistake that explains a divergence
    coverage   find the mistakes that these tensors cannot show; None: if the candidate passes and the model is small
    verify     check the SHA-256 of the pack's files first
    threads    threads that share the work on the weights
    progress   progress(what, total, unit) returns a context manager for each long step; its value is called with the
               amount done since its last call

    Raises GoldenError, CheckpointError or ConfigError for broken input, UsageError for impossible options.
    """
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_golden(golden))
        if verify:
            with progress("checking", opened.nbytes(), "B") as update:
                opened.verify(update)
        manifest = opened.manifest
        runs = isinstance(theirs, str) and theirs.startswith(PREFIX) and not os.path.exists(theirs)
        if runs:
            chosen = read_mode(str(theirs).removeprefix(PREFIX))
            weights = _weights(opened, model, stack)
            candidate = run_mode(chosen, manifest.config, _needed(weights, opened, chosen), manifest.phases, threads)
        else:
            candidate = as_candidate(theirs, opened, name_map)
        found, hidden = Diagnosis(), None
        declared = declared_precision(candidate, precision, manifest.config)
        mode = read_mode(declared[""]) if is_mode(declared.get("", "")) else None
        their_taps = None if mode is not None else Theirs(opened, candidate, declared)
        if not runs:  # what is wrong with the candidate is known before weights are downloaded
            weights = _weights(opened, model, stack)
        if mode is not None:
            result = compare_bits(opened, candidate, _needed(weights, opened, mode), mode)
            return _report(golden, opened, candidate, result)
        assert their_taps is not None
        with progress("comparing", opened.nbytes(), "B") as update:
            variants = [mistake for mistake in MISTAKES if mistake.rounding]
            result = compare_taps(opened, their_taps, weights, variants, threads, update)
        if not result.mismatch:
            size = parameters(manifest.config)
            if explain and not result.passed:
                with progress("explaining", size, "weights") as update:
                    found = diagnose(result, their_taps, weights, threads, update)
            small = size <= _SMALL
            if weights is not None and (coverage or (coverage is None and small and result.passed)):
                places = set(candidate.tensors)
                with progress("looking for what cannot be seen", size, "weights") as update:
                    shown = visible(
                        manifest.config, manifest.phases, weights, their_taps.default, places, threads, update
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
    """Call `compare`, and raise DivergenceError, an AssertionError, unless the candidate passes."""
    report = compare(golden, theirs, **options)
    if not report.passed:
        raise DivergenceError(report)
    return report


def as_candidate(
    theirs: StrPath | Candidate | Taps,
    golden: Golden,
    name_map: StrPath | None = None,
) -> Candidate:
    """Return files, arrays or a capture of llama.cpp as a Candidate. Raises GoldenError."""
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


def _needed(weights: Mapping[str, Array] | None, golden: Golden, mode: object) -> Mapping[str, Array]:
    if weights is None:
        raise UsageError(golden.path, "model", f"is needed for {mode}: there are no weights in the pack")
    return weights


def _weights(
    golden: Golden, model: StrPath | Mapping[str, Array] | Finder | None, stack: contextlib.ExitStack
) -> Mapping[str, Array] | None:
    def other(source: str, misfit: str) -> GoldenError:
        return GoldenError(golden.path, "model", f"was recorded from another model than {source}: {misfit}")

    def judge(download: Download) -> bool:
        if (found := download.config.tensors()) != (wanted := golden.manifest.config.tensors()):
            name = next(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
            raise other(download.name, f"{name} has another shape, or is not in both")
        return True

    weights: Mapping[str, Array]
    if isinstance(model, Mapping):
        weights, source = model, "the arrays that were given"
    else:
        if model is None:
            folder = golden.model_path
        elif callable(model):
            folder = model(judge)
        else:
            folder = resolve(model, confirm=judge)
        if folder is None:
            return None
        weights = stack.enter_context(open_floats(folder))
        source = str(folder if model is None or callable(model) else model)
    if misfit := check_weights(golden.manifest.config, weights):
        raise other(source, misfit)
    return weights
