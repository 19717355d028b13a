"""Mistakes of the residual stream."""

from __future__ import annotations

import dataclasses

from ...graph import add, same
from .base import Mistake, Replaces, changed, line


def _sums(mid: tuple[str, ...] | None, post: tuple[str, ...] | None) -> Replaces:
    """Change the terms of the sums in the residual stream: of resid_mid, of resid_post."""
    given = {"resid_mid": mid, "resid_post": post}
    return lambda config: {
        tap: dataclasses.replace(line(config, tap), inputs=inputs, run=add if len(inputs) > 1 else same)
        for tap, inputs in given.items()
        if inputs
    }


MISTAKES = (
    Mistake(
        "residual-from-norm",
        "attention and MLP are added to their normalised inputs; they are added to the stream",
        "any tokens",
        _sums(("input_layernorm", "self_attn.o_proj"), ("post_attention_layernorm", "mlp.down_proj")),
    ),
    Mistake(
        "residual-missing",
        "attention and MLP replace the stream; they are added to it",
        "any tokens",
        _sums(("self_attn.o_proj",), ("mlp.down_proj",)),
    ),
    Mistake(
        "mlp-in-parallel",
        "the MLP reads the stream from before attention (as in parallel blocks); it reads it from after",
        "any tokens",
        changed("post_attention_layernorm", inputs=("resid_pre",)),
    ),
)
