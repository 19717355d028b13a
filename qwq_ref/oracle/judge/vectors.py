"""Judging the results of single operations against the test vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import GoldenError, UsageError
from ...files import StrPath
from ...formats.safetensors import SafetensorsFile
from ..distance import Distance, distance
from ..graph import UNIT
from ..packs.npy import npy_file
from ..packs.pack import as_golden_error
from ..packs.vector_cases import OPERATIONS, Case, cases
from ..packs.vectors import read_vectors
from .metrics import MARGIN, tidy_scores


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case. `problem` is empty if the result is right."""

    case: Case
    distance: Distance | None
    allowed: float
    problem: str


def check_op(op: str, function: Callable[..., Any], precision: str = "fp32") -> list[Outcome]:
    """Run an operation over all its cases, as `function(**inputs)`, with the names of the spec's arguments.

    Raises AssertionError with one line for each wrong case; UsageError for an unknown operation or precision.
    """
    _check_precision(precision)
    if op not in OPERATIONS:
        raise UsageError(None, "op", f"must be one of {', '.join(OPERATIONS)}, got {op}")
    outcomes = [
        judge(case, function(**case.arrays, **case.attributes), precision)
        for case in cases()
        if case.op == op and precision in case.rounding
    ]
    wrong = [f"{op}, {o.case.name}: {o.problem}" for o in outcomes if o.problem]
    if wrong:
        raise AssertionError("\n".join(wrong))
    return outcomes


def _check_precision(precision: str) -> None:
    if precision not in UNIT:
        raise UsageError(None, "precision", f"must be one of {', '.join(UNIT)}, got {precision}")


def judge(case: Case, theirs: Any, precision: str) -> Outcome:
    """Compare a result with a case.

    cos and sin may be given as a tuple. Scores of hidden keys that are at most -60,000 count as -inf.
    """
    allowed = MARGIN * case.rounding[precision]
    parts = [np.asarray(part) for part in (theirs if isinstance(theirs, tuple) else (theirs,))]
    if any(part.dtype.kind not in "fiu" for part in parts):
        return Outcome(case, None, allowed, f"is of type {', '.join(str(part.dtype) for part in parts)}, not numbers")
    if len({part.shape for part in parts}) > 1:
        return Outcome(case, None, allowed, f"shapes {', '.join(str(list(part.shape)) for part in parts)}, in one pair")
    y = np.stack(parts) if isinstance(theirs, tuple) else parts[0]
    if y.shape != case.y.shape:
        return Outcome(case, None, allowed, f"shape {list(y.shape)}, not {list(case.y.shape)}")
    if np.isnan(y).any():
        return Outcome(case, None, allowed, f"NaN at {[int(i) for i in np.argwhere(np.isnan(y))[0]]}")
    if case.op == "attention_scores":
        y = tidy_scores(y, case.arrays["visible"] != 0, masked=True)
    far = distance(y, case.y)
    if far.error <= allowed:
        return Outcome(case, far, allowed, "")
    problem = (
        f"error {far.error:.3g}, allowed {allowed:.3g}; the largest difference is {far.max_abs:.3g} at {list(far.at)}"
    )
    return Outcome(case, far, allowed, problem)


def compare_vectors(folder: StrPath, theirs: StrPath, precision: str = "fp32") -> list[Outcome]:
    """Compare the outputs in a folder with a folder of vectors.

    theirs  holds OP.safetensors with a tensor CASE (or CASE/y), or OP/CASE.npy; missing cases are left out

    Raises GoldenError; UsageError for an unknown precision.
    """
    _check_precision(precision)
    outcomes = []
    theirs = Path(theirs)
    for case in read_vectors(folder):
        if precision not in case.rounding:
            continue
        array = theirs / case.op / f"{case.name}.npy"
        tensors = theirs / f"{case.op}.safetensors"
        if array.exists():
            outcomes.append(judge(case, npy_file(array).read(), precision))
        elif tensors.exists():
            with as_golden_error():
                file = SafetensorsFile(tensors)
                name = next((n for n in (f"{case.name}/y", case.name) if n in file.tensors), None)
                if name is not None:
                    outcomes.append(judge(case, file.read(name), precision))
                file.close()
    if not outcomes:
        raise GoldenError(theirs, None, f"holds no outputs: expected OP.safetensors or OP/CASE.npy, as in {folder}")
    return outcomes
