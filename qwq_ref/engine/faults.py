"""Steps whose logits are finite, and for others the place where they stopped to be.

A step that fails is computed again to find the place, so that good steps cost nothing.
"""

from __future__ import annotations

import os
import re
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import NonFiniteError
from ..spec.ops import Array

if TYPE_CHECKING:
    from .backends import Backend, Ids, Progress
    from .session import Request

_LAYER = re.compile(r"model\.layers\.(\d+)\.resid_(mid|post)")
TOO_LARGE = "float32 cannot hold its mean square"


def run_finite(
    backend: Backend,
    ids: Ids,
    sequence: Any,
    rows: slice,
    model: str | os.PathLike[str] | None = None,
    step: str | None = None,
    progress: Progress | None = None,
) -> Array:
    """Run a step, as `Backend.run` -> logits [rows of T, V], all finite.

    model  where the backend's weights came from, for errors
    step   the name of the step in errors; None: its positions

    Raises NonFiniteError with the place of the fault. The sequence then is as it was before.
    """
    start = sequence.length
    try:
        logits = backend.run(ids, sequence, rows, progress=progress)
        if not logits.size or (isfinite(logits.max()) and isfinite(logits.min())):  # each is NaN if one is
            return logits
    except NonFiniteError:
        pass
    sequence.rollback(start)
    step = step or f"positions {start} to {start + len(ids) - 1}"
    raise NonFiniteError(model, step, _find_fault(backend, sequence, ids, rows))


def run_together(
    backend: Backend, requests: list[Request], model: str | os.PathLike[str] | None = None
) -> list[Array | NonFiniteError]:
    """Run the steps of requests with one pass over the weights -> for each, its finite logits or its error.

    A step at fault, whose error is that of `run_finite`, leaves its sequence as it was. It costs the others a pass.
    """
    steps = [request.step for request in requests]
    starts = [step.sequence.length for step in steps]
    total = sum(len(step.ids) for step in steps)

    def tell(count: float) -> None:
        for request in requests:
            if request.progress is not None:
                request.progress(count * len(request.step.ids) / total)

    try:
        found = backend.run_together(steps, tell)
        if all(not logits.size or (isfinite(logits.max()) and isfinite(logits.min())) for logits in found):
            return [*found]
    except NonFiniteError:
        pass
    for step, start in zip(steps, starts, strict=True):
        step.sequence.rollback(start)
    each: list[Array | NonFiniteError] = []
    for request in requests:
        step = request.step
        try:
            each.append(run_finite(backend, step.ids, step.sequence, step.rows, model, request.name))
        except NonFiniteError as problem:
            each.append(problem)
    return each


def run_finite_together(
    backend: Backend, requests: list[Request], model: str | os.PathLike[str] | None = None
) -> list[Array]:
    """Run the steps of requests with one pass over the weights -> the logits of each, all finite.

    Raises NonFiniteError as `run_finite`, for the first of them at fault. All sequences then are as they were before.
    """
    sequences = [request.step.sequence for request in requests]
    starts = [sequence.length for sequence in sequences]
    found = run_together(backend, requests, model)
    for each in found:
        if isinstance(each, NonFiniteError):
            for sequence, start in zip(sequences, starts, strict=True):
                sequence.rollback(start)
            raise each
    return [each for each in found if not isinstance(each, NonFiniteError)]


def divisible(x: Array) -> Array:
    """x [..., D] -> bool [...]: whether a norm can divide a row by its root mean square.

    Of other rows, which hold a NaN or an infinity or have a mean square beyond their type, the spec makes NaN or zeros.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        finite: Array = np.isfinite(np.mean(x * x, axis=-1))  # the sum of `spec.rmsnorm`, to the bit
    return finite


def _find_fault(backend: Backend, sequence: Any, ids: Ids, rows: slice) -> str:
    """Return, in a few words, the first place in a step where a number is not finite, or too large for a norm.

    sequence  as it was before the step, and as it is afterwards
    ids       the tokens of the step
    rows      those whose logits are wanted
    """
    start, found = sequence.length, ""

    def look(name: str, x: Array) -> None:
        nonlocal found
        layer = _LAYER.fullmatch(name)
        if found or not (layer or name in ("model.embed_tokens", "lm_head")):
            return
        bad = ~(np.isfinite(x).all(axis=-1) if name == "lm_head" else divisible(x))
        if not bad.any():
            return
        row = int(bad.argmax())
        position = start + len(ids) - len(x) + row  # the last layer may show the last tokens alone
        if name == "lm_head":
            what = "NaN" if np.isnan(x[row]).any() else "infinity"
            found = f"the logits hold {what}, and all layers are finite: the last norm or the output head is at fault"
            return
        largest, fault = float(np.abs(x[row]).max()), "is not finite"
        where = f"the embedding of token {ids[position - start]}"
        if layer:
            part = "output" if layer[2] == "post" else "residual stream after the attention"
            where, fault = f"the {part} of layer {layer[1]}", "is the first that is not finite"
        if isfinite(largest):
            fault = f"reaches {largest:.3g}: {TOO_LARGE}"
        found = f"{where}, at position {position}, {fault}"

    try:
        backend.run(ids, sequence, rows, look)
    except NonFiniteError as problem:
        found = found or f"{problem.field}: {problem.problem}"
    sequence.rollback(start)
    return found or "not finite the first time, finite when computed again: check the memory of this machine"
