"""The memory that a model needs, and the weight form and context that fit."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import footprint
from ..config import Config
from ..errors import MemoryLimitError, UsageError
from ..footprint import human
from ..forms import FILE, FORMS, KV_FORMS, AnyForm, FileForm, cache_form
from ..host import memory
from .backends.core import CHUNK
from .backends.numpy import CHUNK as NUMPY_CHUNK
from .cache import cache_bytes
from .pieces import SLICE
from .plan import model_bytes

# The memory that a model needs with a number of positions: purpose -> bytes.
Needs = Callable[[int], dict[str, int]]
_STEP = 1 << 24  # bytes to which advice is rounded: the process itself does not always take the same


@dataclass(frozen=True)
class Budget:
    """The memory that a model may take.

    maximum   a wish of the user, in bytes, for the whole process; None: all that is available
    parallel  sequences to make room for
    rows      rows of logits that each sequence's step may ask for
    reading   bytes that the model's source holds while it is read
    """

    maximum: int | None = None
    parallel: int = 1
    rows: int = 1
    reading: int = 0

    @property
    def available(self) -> int:
        free = memory.available_bytes()
        return free if self.maximum is None else max(0, min(free, self.maximum - memory.process_bytes()))

    def require(self, parts: dict[str, int], model: str | os.PathLike[str], available: int) -> None:
        """Raise MemoryLimitError, with the sum and what would be enough, if a model does not fit.

        parts      purpose -> bytes
        available  as it was when the parts were chosen
        """
        reason, held = None, memory.process_bytes()
        if self.maximum is not None and self.maximum - held < memory.available_bytes():
            enough = -(-(sum(parts.values()) + held) // _STEP) * _STEP >> 20
            held_of_it = f"the process holds {human(held)} of max-memory already"
            reason = f": {held_of_it}; a max-memory of {enough} MiB is enough"
        memory.require(parts, model, available, reason)


ALL_OF_IT = Budget()


def numpy_needs(config: Config) -> Needs:
    """Return the needs of the NumPy backend."""
    # The spec's cache is a value: while it grows, one layer's old and new keys and values exist side by side.
    per_position = footprint.kv_bytes_per_token(config, "fp32") * (config.L + 1) // config.L

    def needs(context: int) -> dict[str, int]:
        """Return the bytes. Scratch is a chunk of the prompt: logits, MLP activations, or three arrays of scores."""
        widest = max(config.V, 4 * config.F, 3 * config.H * context)
        scratch = np.dtype(np.float32).itemsize * min(NUMPY_CHUNK, context) * widest
        weights = footprint.weight_bytes(config, "fp32")
        return {"weights": weights, "KV cache": per_position * context, "scratch": scratch}

    return needs


def core_needs(config: Config, form: AnyForm, kv: str, budget: Budget = ALL_OF_IT) -> Needs:
    """Return the needs of the C core with one weight form and one cache form of `forms`."""
    return packed_needs(config, model_bytes(config, form), kv, budget)


def packed_needs(config: Config, weights: int, kv: str, budget: Budget = ALL_OF_IT) -> Needs:
    """Return the needs of the C core with so many bytes of packed weights."""
    streams = 4 * CHUNK * config.D * (budget.parallel - 1)  # residual streams beside the first
    logits = 4 * config.V * (budget.rows * budget.parallel - 1)

    def needs(context: int) -> dict[str, int]:
        """Return the bytes. Scratch is that of packing, and later a chunk of the prompt."""
        packing = packing_bytes(config) + budget.reading
        chunk = 4 * CHUNK * (8 * config.D + 3 * config.F + 2 * (config.H + 2 * config.K) * config.E)
        cache = cache_bytes(config, kv, context) * budget.parallel
        return {"weights": weights, "KV cache": cache, "scratch": max(packing, chunk) + streams + logits}

    return needs


def packing_bytes(config: Config) -> int:
    """Return the scratch while weights are packed: rows as floats and as codes."""
    return 20 * min(SLICE, config.D * max(2 * config.F, config.V))


def available_forms(stored: Mapping[str, int], packed: Sequence[str] = (), swiglu_beta: float = 1.0) -> list[str]:
    """Return the weight forms that a model can be loaded in, the most exact first.

    stored       dtype -> bytes of its checkpoint
    packed       the forms that it holds packed; it has no others then
    swiglu_beta  of the config. It is folded into weights, which are bfloat16 afterwards only for a power of two
    """
    if packed:
        return [form for form in (FILE, *FORMS) if form in packed]
    kept = set(stored) if math.frexp(swiglu_beta)[0] == 0.5 else set()
    return [name for name, form in FORMS.items() if form.only_from is None or kept == {form.only_from}]


def candidates(
    stored: Mapping[str, int], packed: Sequence[str] = (), swiglu_beta: float = 1.0, kept: FileForm | None = None
) -> list[AnyForm]:
    """Return the forms from which `load` chooses, the most exact first.

    kept  the form of a quantised file, which is exact. Of others, only smaller ones make sense

    Of `available_forms`, fp32 is left out where bf16 keeps a checkpoint exactly.
    """
    if kept is not None:
        others = [name for name, form in FORMS.items() if (name in packed if packed else not form.floats)]
        return [kept, *others]
    forms = available_forms(stored, packed, swiglu_beta)
    exact = any(FORMS[form].only_from for form in forms)
    return [form for form in forms if packed or not exact or form != "fp32"]


def fitting_forms(
    config: Config,
    forms: Sequence[AnyForm],
    kv: str | None,
    context: int | None,
    model: str | os.PathLike[str],
    others: Sequence[AnyForm] = (),
    budget: Budget = ALL_OF_IT,
) -> tuple[AnyForm, str, int]:
    """Return the first weight form that fits, its cache form, and the context.

    forms    to try, in this order
    kv       None: the cache form that goes with each
    context  None: `least_context` must fit, and the result is as large as memory allows
    others   more forms that the model can be loaded in, which an error may advise

    Raises MemoryLimitError, UsageError.
    """
    for form in forms:
        cache = kv or cache_form(form)
        try:
            return form, cache, fitting_context(config, context, model, core_needs(config, form, cache, budget), budget)
        except MemoryLimitError as error:
            if form == forms[-1]:
                advice = _advice(config, [*forms, *others], context, budget)
                raise MemoryLimitError(error.file, error.field, f"{error.problem}{advice}") from None
    raise AssertionError("there is always a candidate")


def _advice(config: Config, forms: Sequence[AnyForm], context: int | None, budget: Budget) -> str:
    """Return the end of an error: the choice that fits, with the wanted context if possible; "" if none fits."""
    available = budget.available
    best: tuple[int, str, str] | None = None
    of_file: list[AnyForm] = [form for form in dict.fromkeys(forms) if isinstance(form, FileForm)]
    for form in of_file + [form for form in FORMS if form in forms]:
        for kv in (cache_form(form), KV_FORMS[-1]):
            largest = largest_context(config, core_needs(config, form, kv, budget), available)
            if largest >= (context or least_context(config)):
                return f"; weights {form} with KV cache {kv} fit"
            found = (largest, str(form), kv)
            best = found if best is None else max(best, found)
    if best is None or best[0] < 1:
        return ""
    return f"; weights {best[1]} with KV cache {best[2]} and a context of {best[0]} tokens fit"


def fitting_context(
    config: Config, context: int | None, model: str | os.PathLike[str], needs: Needs, budget: Budget = ALL_OF_IT
) -> int:
    """Return the context to make room for: the given one, or the model's whole, half, quarter ... that fits.

    Raises MemoryLimitError if the given one, or else `least_context`, does not fit; UsageError for an impossible one.
    """
    limit = check_context(config, context)
    available = budget.available
    wanted = context or least_context(config)
    budget.require(needs(wanted), model, available)
    if context is not None:
        return context
    largest = limit
    while largest > wanted and sum(needs(largest).values()) > available:
        largest //= 2
    return max(largest, wanted)


def check_context(config: Config, context: int | None) -> int:
    """Return the most positions that a model was made for. Raises UsageError for a context with more."""
    limit = config.positions
    if context is not None and not 1 <= context <= limit:
        raise UsageError(None, "ctx-size", f"must be 1 to {limit}, which the model was made for, got {context}")
    return limit


def least_context(config: Config) -> int:
    """Return the smallest context that a model is loaded with, unless the user asks for a smaller one."""
    return min(config.positions, NUMPY_CHUNK)


def largest_context(config: Config, needs: Needs, available: int) -> int:
    """Return the largest context that `fitting_context` accepts; 0 if not even one position fits."""
    fits, beyond = 0, config.positions + 1
    while beyond - fits > 1:  # needs grow with the context
        middle = (fits + beyond) // 2
        if sum(needs(middle).values()) <= available:
            fits = middle
        else:
            beyond = middle
    return fits
