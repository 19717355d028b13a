"""The sampling of a command: how tokens are drawn, who says so, and what may surprise."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from .screen import tell

if TYPE_CHECKING:
    from ..engine.model import Model
    from ..formats import GenerationConfig


def tell_sampling(options: argparse.Namespace, model: Model, **asked: Any) -> None:
    """Print what may surprise of a command's sampling, unless a temperature was asked for; with -v, print all of it.

    asked  what the options ask for; None where the model's own counts
    """
    model.told = True
    facts = facts_of(options, model, **asked)
    if asked.get("temperature") is None:
        tell_surprises(model.defaults)
    if options.verbose:
        values = ", ".join(
            f"{name.replace('_', '-')} {value:g}" for name, value in facts.items() if isinstance(value, float | int)
        )
        tell(f"sampling: {values}; from {' and '.join(facts['from'])}")


def facts_of(options: argparse.Namespace, model: Model, **asked: Any) -> dict[str, Any]:
    """Return a command's sampling for JSON: the fields of `Sampling`, and where they are from."""
    path = model.defaults.path
    sources = [] if path is None else [model.defaults.assumed or path.name]
    sources += ["the command line"] * bool(options.typed & {*asked})
    return dataclasses.asdict(model.sampling(**asked)) | {"from": sources or ["defaults"]}


def tell_surprises(defaults: GenerationConfig) -> None:
    """Print what a user may not expect of a model's own sampling."""
    for line in defaults.surprises("--temp X"):
        tell(f"qwq: {line}")
