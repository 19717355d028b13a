"""Choose the form and the context of a model that is streamed, and the layers that stay in memory."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..config import Config
from ..errors import UsageError
from ..forms import FORMS, AnyForm, FileForm, cache_form
from .fit import Budget, check_context, least_context, packed_needs, packing_bytes
from .plan import EMBEDDING, plan
from .streaming import Layout

CONTEXT = 4096  # positions to make room for where nobody asks for a number


def streamed_form(
    weights: AnyForm | None, forms: Sequence[AnyForm], packed: Sequence[str], model: str | os.PathLike[str]
) -> AnyForm:
    """Return the form in which a model's weights are read in each pass.

    weights  the wanted form; None: the first of `forms` that can be streamed
    packed   the forms that the model holds packed

    Raises UsageError for a form that each pass would have to round anew.
    """
    for form in forms if weights is None else [weights]:
        if isinstance(form, FileForm) or form in packed or FORMS[form].floats:
            return form
    problem = f"{weights} would be rounded anew in each pass: convert the model first, or take bf16 or fp32"
    raise UsageError(model, "weights", problem)


def fitting_layout(
    config: Config,
    form: AnyForm,
    kv: str | None,
    context: int | None,
    model: str | os.PathLike[str],
    budget: Budget,
) -> tuple[str, int, Layout, dict[str, int]]:
    """Return the cache form, the context, the layout, and the memory: purpose -> bytes.

    context  None: `CONTEXT`, or the largest half, quarter and so on that fits

    Raises MemoryLimitError if two layers, or the given context, do not fit; UsageError for an impossible context.
    """
    limit, least = check_context(config, context), least_context(config)
    cache, available = kv or cache_form(form), budget.available
    planned = plan(config, form)
    planned.pop(EMBEDDING, None)  # its rows are read when they are needed
    vectors = sum(stored.nbytes for stored in planned.values() if stored.format is None)
    needs = packed_needs(config, vectors, cache, budget)
    room = context or min(limit, CONTEXT)
    while True:
        parts = needs(room)
        parts["scratch"] += packing_bytes(config) + budget.reading  # while a layer is computed, another one is packed
        layout = Layout.of(config, form, available - sum(parts.values()))
        parts["weights"] += layout.nbytes
        if context is None and room > least and sum(parts.values()) > available:
            room = max(least, room // 2)
            continue
        budget.require(parts, model, available)
        return cache, room, layout, parts
