"""The choices for a model on this machine: each weight form and cache form, with the context that fits in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .. import core
from ..config import Config
from ..forms import FILE, KV_FORMS, AnyForm, FileForm, cache_form
from . import fit

ROOMY = 8_192  # positions that a reasoning model should have: with less, smaller weights are the better choice
SPARE = 256 << 20  # bytes that a recommended context leaves: less may be available when it is tried


@dataclass(frozen=True)
class Choice:
    """One weight form with one cache form.

    weight_bytes     bytes of the weights
    largest_context  positions that fit now; 0 if not even one fits
    missing_bytes    memory that is missing for the least context that a model is loaded with; 0 where it fits
    """

    weights: str
    kv: str
    weight_bytes: int
    largest_context: int
    missing_bytes: int


def choices(
    config: Config,
    stored: Mapping[str, int],
    available: int,
    packed: Sequence[str] = (),
    kept: FileForm | None = None,
) -> list[Choice]:
    """Return all that `load` can be asked for: the most exact weights first, then the most exact cache.

    stored, packed  as for `fit.available_forms`
    available       bytes of memory
    kept            the form of a quantised file
    """
    pairs: list[tuple[AnyForm, str]] = [] if packed else [("fp32", "fp32")]
    if core.available():
        forms: list[AnyForm] = [kept] if kept else []
        forms += [form for form in fit.available_forms(stored, packed, config.swiglu_beta) if form != FILE]
        pairs = [(form, kv) for form in forms for kv in KV_FORMS]
    table = []
    for form, kv in pairs:
        needs = _needs(config, form, kv)
        least = needs(fit.least_context(config))
        missing = max(0, sum(least.values()) - available)
        largest = fit.largest_context(config, needs, available)
        table.append(Choice(str(form), kv, least["weights"], largest, missing))
    return table


def best_choice(
    config: Config,
    stored: Mapping[str, int],
    table: list[Choice],
    available: int,
    packed: Sequence[str] = (),
    kept: FileForm | None = None,
) -> tuple[Choice, int] | None:
    """Return the most exact of `choices` with room to reason, or else the one with the most room; and its context.

    None: nothing fits.
    """
    sensible = [("fp32", "fp32")]
    names: dict[str, AnyForm] = {str(kept): kept} if kept else {}
    if core.available():
        # A smaller cache than a form's own saves memory; a larger one takes it from the weights' exactness.
        forms = fit.candidates(stored, packed, config.swiglu_beta, kept)
        sensible = [(str(form), kv) for form in forms for kv in KV_FORMS[KV_FORMS.index(cache_form(form)) :]]
    ordered = sorted(
        (choice for choice in table if (choice.weights, choice.kv) in sensible and not choice.missing_bytes),
        key=lambda choice: sensible.index((choice.weights, choice.kv)),
    )
    least, roomy = fit.least_context(config), min(config.positions, ROOMY)
    rooms = []
    for choice in ordered:
        needs = _needs(config, names.get(choice.weights, choice.weights), choice.kv)
        room = fit.largest_context(config, needs, available - min(SPARE, available // 16))
        if room < config.positions:
            room = room // least * least
        rooms.append((choice, max(room, least)))
    return next((pair for pair in rooms if pair[1] >= roomy), max(rooms, key=lambda pair: pair[1], default=None))


def _needs(config: Config, form: AnyForm, kv: str) -> fit.Needs:
    return fit.core_needs(config, form, kv) if core.available() else fit.numpy_needs(config)
