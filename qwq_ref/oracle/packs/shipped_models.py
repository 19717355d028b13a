"""The models of the conformance set: small ones, in which every mistake shows that their config can show.

`python -m qwq_ref.oracle.packs.shipped_models DIR` records the packs again. A test compares them with the shipped ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...config import Config
from ...files import StrPath
from ...spec.ops import Array, to_bf16
from .record import record

DECODE = 3
_BASE: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 88,
    "vocab_size": 71,
    "num_attention_heads": 10,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
}
# Name -> what the model tests, changes of the config, number of tokens.
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    "gqa": ("grouped-query attention, five query heads to a key-value head; a key bias of 20", {}, 17),
    "tied": (
        "a tied head, one query head to a key-value head; weights on a 4-bit grid",
        {"tie_word_embeddings": True, "num_attention_heads": 3, "num_key_value_heads": 3, "rope_theta": 1e4},
        13,
    ),
    "window": (
        "a sliding window of 5 in all layers but the first",
        {"num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
        15,
    ),
    "yarn": (
        "YaRN x 4, beyond the original length of 16",
        {
            "num_attention_heads": 6,
            "head_dim": 32,  # at 16 dimensions, YaRN's ramp has no middle
            "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        },
        33,
    ),
}


def model(name: str) -> tuple[Config, dict[str, Array], list[int]]:
    """Return config, weights that bfloat16 holds, and token ids. The embedding is small, so that eps matters."""
    _, changes, tokens = MODELS[name]
    config = Config.from_dict(_BASE | changes)
    rng = np.random.default_rng(sum(name.encode()))
    weights = {}
    for key, shape in config.tensors().items():
        value = rng.standard_normal(shape)
        if key.endswith("norm.weight"):
            value = 1 + 0.3 * value
        elif key.endswith("bias"):
            value = 0.3 * value
            if name == "gqa" and "k_proj" in key:
                value[1] += 20
        elif "embed_tokens" in key:
            value = 0.01 * value
        else:
            value = value / np.sqrt(shape[-1])
            if name == "tied":
                value = on_grid(value)
        weights[key] = to_bf16(value.astype(np.float32))
    return config, weights, [int(token) for token in rng.integers(0, config.V, tokens)]


def on_grid(w: Array) -> Array:
    """Round each row to 16 multiples of a step, like dequantised 4-bit weights: w [out, in] -> [out, in]"""
    step = 2.0 ** np.ceil(np.log2(np.abs(w).max(axis=1, keepdims=True) / 8))
    return np.asarray(np.clip(np.round(w / step), -8, 7) * step)


def build(folder: StrPath, names: Sequence[str] = tuple(MODELS)) -> None:
    """Record the packs, each in a folder with its name."""
    for name in names:
        config, weights, ids = model(name)
        record(
            config, weights, Path(folder) / name, ids, DECODE, name=f"{name}: {MODELS[name][0]}", include_weights=True
        )


if __name__ == "__main__":
    build(sys.argv[1])
