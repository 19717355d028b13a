"""What of a model fits in memory: the bytes that it needs, the context, and the form of its weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .. import footprint
from ..config import Config
from ..errors import MemoryLimitError, UsageError
from ..forms import FORMS
from ..host import memory
from .backends.core import CHUNK
from .backends.numpy import CHUNK as NUMPY_CHUNK
from .cache import cache_bytes
from .packing import SLICE
from .plan import model_bytes

# What a model needs in memory, with so many positions: what for -> bytes.
Needs = Callable[[int], dict[str, int]]


def numpy_needs(config: Config) -> Needs:
    """Of the spec itself, in float32."""
    # The spec's cache is a value: while it grows, the old and the new one exist side by side, for one layer's pair.
    per_position = footprint.kv_bytes_per_token(config, "fp32") * (config.L + 1) // config.L

    def needs(context: int) -> dict[str, int]:
        """A chunk of the prompt: logits, MLP activations, and three arrays of scores."""
        widest = max(config.V, 4 * config.F, 3 * config.H * context)
        scratch = np.dtype(np.float32).itemsize * min(NUMPY_CHUNK, context) * widest
        weights = footprint.weight_bytes(config, "fp32")
        return {"weights": weights, "KV cache": per_position * context, "scratch": scratch}

    return needs


def core_needs(config: Config, form: str, kv: str) -> Needs:
    """Of the C core, with weights of `weights.FORMS` and a cache "fp32" or "int8"."""
    weights = model_bytes(config, form)

    def needs(context: int) -> dict[str, int]:
        """While weights are packed, some rows are there in float32 and in codes; later, a chunk of the prompt."""
        packing = 20 * min(SLICE, config.D * max(2 * config.F, config.V))
        chunk = 4 * CHUNK * (8 * config.D + 3 * config.F + 2 * (config.H + 2 * config.K) * config.E)
        return {"weights": weights, "KV cache": cache_bytes(config, kv, context), "scratch": max(packing, chunk)}

    return needs


def available_forms(stored: Mapping[str, int], packed: Sequence[str] = ()) -> list[str]:
    """Return the weight forms that a model can be loaded in, the most exact first.

    stored  dtype -> bytes of its checkpoint
    packed  the forms that it holds packed; it has no others then
    """
    if packed:
        return [form for form in FORMS if form in packed]
    return [name for name, form in FORMS.items() if form.only_from is None or set(stored) == {form.only_from}]


def candidates(stored: Mapping[str, int], packed: Sequence[str] = ()) -> list[str]:
    """Return those of `available_forms` from which `load` chooses: not fp32, where bf16 keeps a checkpoint exactly."""
    forms = available_forms(stored, packed)
    exact = any(FORMS[form].only_from for form in forms)
    return [form for form in forms if packed or not exact or form != "fp32"]


def fitting_forms(
    config: Config, forms: Sequence[str], kv: str | None, context: int | None, model: str | os.PathLike[str]
) -> tuple[str, str, int]:
    """-> weights, kv and context: of some forms the first that fits, with the context, or else with a short one.

    Raises MemoryLimitError, UsageError.
    """
    for form in forms:
        cache = kv or FORMS[form].kv
        try:
            return form, cache, fitting_context(config, context, model, core_needs(config, form, cache))
        except MemoryLimitError:
            if form == forms[-1]:
                raise
    raise AssertionError("there is always a candidate")


def fitting_context(config: Config, context: int | None, model: str | os.PathLike[str], needs: Needs) -> int:
    """The context to make room for. Raises MemoryLimitError if it, or with none given a small one, does not fit."""
    limit = config.positions
    if context is not None and not 1 <= context <= limit:
        raise UsageError(None, "ctx-size", f"must be 1 to {limit}, which the model was made for, got {context}")
    available = memory.available_bytes()
    wanted = context or least_context(config)
    memory.require(needs(wanted), model, available)
    if context is not None:
        return context
    largest = limit
    while largest > wanted and sum(needs(largest).values()) > available:
        largest //= 2
    return max(largest, wanted)


def least_context(config: Config) -> int:
    """The smallest that a model is loaded with, unless a smaller one is asked for."""
    return min(config.positions, NUMPY_CHUNK)


def largest_context(config: Config, needs: Needs, available: int) -> int:
    """The largest that `fitting_context` accepts when it is asked for; 0 if not even one position fits."""
    fits, beyond = 0, config.positions + 1
    while beyond - fits > 1:  # needs grow with the context
        middle = (fits + beyond) // 2
        if sum(needs(middle).values()) <= available:
            fits = middle
        else:
            beyond = middle
    return fits
