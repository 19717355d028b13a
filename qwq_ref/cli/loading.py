"""Load the model of a command that computes text: find it, judge its memory, tell what computes."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from .. import core
from ..engine.ahead import check_choices, check_small, expected_memory
from ..engine.fit import Budget
from ..engine.loader import load_source
from ..engine.model import Model
from ..footprint import parameters
from ..formats import open_source, recognise
from .ending import kept
from .models import locate
from .options import chosen_rope
from .progress import progress_bar
from .screen import tell

_LARGE = 1 << 30  # bytes of a model, whose memory is announced even without -v


def load_model(
    options: argparse.Namespace,
    choices: dict[str, Any],
    context: int | None,
    chat_template: str | None = None,
    chat: bool = False,
    rows: int = 1,
) -> Model:
    """Load the model that the options name. Before its weights are downloaded, everything else is checked.

    choices  of `options.engine_choices`
    context  positions to make room for; None: as many as fit
    chat     whether the command asks with a chat template, which the model then needs
    rows     rows of logits that each step of a sequence may ask for

    Call `options.check_rope_options` first. Raises a QwqError.
    """
    rope = functools.cache(functools.partial(chosen_rope, options))  # says what it assumes, once
    needed = {"context": context, **{name: choices[name] for name in ("backend", "weights", "kv")}}
    check_choices(**choices, chat_template=chat_template)
    budget = Budget(options.max_memory, options.parallel or 1, rows)
    path = locate(
        options,
        lambda model: expected_memory(model, rope=rope(model.config), budget=budget, **needed),
        lambda folder: check_small(folder, chat_template, text=True, chat=chat),
    )
    recognise.require(path)

    def announce(line: str, size: int) -> None:
        if options.verbose or size >= _LARGE:
            tell(line)

    with open_source(path) as source:
        not_loaded = kept(lambda: "the model was not loaded yet")
        with not_loaded, progress_bar("loading", parameters(source.config), "weights") as progress:
            model = load_source(
                source,
                path,
                **choices,
                context=context,
                rope=rope(source.config),
                chat_template=chat_template,
                text=True,
                budget=budget,
                progress=progress,
                announce=announce,
            )
    if options.backend is None and not core.available():
        tell("qwq: the C core is not built: NumPy computes, in fp32 and slowly (see qwq doctor)")
    if options.verbose:
        tell(f"backend: {model.backend.description}")
        tell(f"context: {model.context} tokens")
    return model
