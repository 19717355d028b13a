"""Where a step of a model stopped to be finite. The step is computed again, so that good steps cost nothing."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ..errors import NonFiniteError
from ..spec.ops import Array
from .backends import LAST, Backend, Ids

_LAYER = re.compile(r"model\.layers\.(\d+)\.resid_post")


def find_fault(backend: Backend, sequence: Any, ids: Ids) -> str:
    """Return, in a few words, the first place in a step where a number is not finite.

    sequence  as it was before the step, and as it is afterwards
    ids       the tokens of the step
    """
    start, found = sequence.length, ""

    def look(name: str, x: Array) -> None:
        nonlocal found
        layer = _LAYER.fullmatch(name)
        if found or not (layer or name in ("model.embed_tokens", "lm_head")):
            return
        bad = ~np.isfinite(x).all(axis=-1)
        if not bad.any():
            return
        row = int(bad.argmax())
        position = start + len(ids) - len(x) + row  # the last layer may show the last tokens alone
        if layer:
            found = f"the output of layer {layer[1]}, at position {position}, is the first that is not finite"
        elif name == "lm_head":
            what = "NaN" if np.isnan(x[row]).any() else "infinity"
            found = f"the logits hold {what}, and all layers are finite: the last norm or the output head is at fault"
        else:
            found = f"the embedding of token {ids[position - start]}, at position {position}, is not finite"

    try:
        backend.run(ids, sequence, LAST, look)
    except NonFiniteError as problem:
        found = found or f"{problem.field}: {problem.problem}"
    sequence.rollback(start)
    return found or "not finite the first time, finite when computed again: check the memory of this machine"
