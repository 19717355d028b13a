"""Mistakes of the embedding and the head."""

from __future__ import annotations

import math

from ....config import Config
from ...graph import EMBED, LOGITS, Op
from .base import Mistake, changed


def _tied(config: Config) -> dict[str, Op]:
    if config.tie_word_embeddings:
        return {}
    return changed(LOGITS, matrix="model.embed_tokens.weight")(config)


MISTAKES = (
    Mistake("head-tied", "the head is the embedding; this config's is its own", "tie_word_embeddings false", _tied),
    Mistake(
        "embedding-scaled",
        "the embedding is multiplied by sqrt(hidden_size) (Gemma's way)",
        "any tokens",
        changed(EMBED, run=lambda at, values, weights: at.rnd(weights[0] * math.sqrt(at.config.D))),
    ),
)
