"""A checkpoint's weights as the core reads them: packed one by one, so that little more than the result is held."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import core
from ..config import Config
from ..core.layer import LayerWeights
from ..spec.ops import Array, to_bf16

# What --weights takes: the form of the layers' matrices, and that of the head, whose errors are seen most.
FORMS = {"fp32": ("fp32", "fp32"), "bf16": ("bf16", "bf16"), "q8": ("q8", "q8"), "q4": ("q4", "q8")}


@dataclass(frozen=True)
class ModelWeights:
    """All layers, the embedding [V, D] (float32, or bfloat16 as uint16), the last norm, the head."""

    form: str
    embedding: Array
    layers: list[LayerWeights]
    norm: Array
    head: core.Packed


def model_bytes(config: Config, form: str) -> int:
    """What `pack_weights` makes, by arithmetic."""
    layer_form, head_form = FORMS[form]
    D, q, k = config.D, config.H * config.E, config.K * config.E
    F = -(-config.F // 32) * 32
    shapes = [(q + 2 * k, D), (D, q), (2 * F, D), (D, F)]
    layer = sum(core.packed_bytes(core.FORMATS[layer_form], shape) for shape in shapes) + 4 * (2 * D + q + 2 * k)
    embedding = config.V * _row_bytes(config, form)
    return config.L * layer + embedding + core.packed_bytes(core.FORMATS[head_form], (config.V, D)) + 4 * D


def step_bytes(config: Config, form: str) -> int:
    """Of these, what decoding a token reads: all, but of the embedding one row."""
    return model_bytes(config, form) - (config.V - 1) * _row_bytes(config, form)


def _row_bytes(config: Config, form: str) -> int:
    """Of the embedding."""
    return config.D * (4 if form == "fp32" else 2)


def pack_weights(
    config: Config,
    weights: Mapping[str, Array],
    form: str,
    threads: int,
    progress: Callable[[int], object] | None = None,
) -> ModelWeights:
    """name -> float32 arrays, read one at a time -> packed weights. `progress` hears of the float32 bytes read.

    bf16 takes the upper half of each float32, which is all of it for a bfloat16 checkpoint; of others it cuts nothing
    silently: CoreError.
    """
    layer_form, head_form = FORMS[form]

    def take(name: str) -> Array:
        array: Array = np.ascontiguousarray(weights[name], np.float32)
        if progress is not None:
            progress(array.nbytes)
        return array

    def pack(w: Array, form: str) -> core.Packed:
        if form == "bf16" and np.any(w.view(np.uint32) & 0xFFFF):
            raise core.CoreError(None, "weights", "are not bfloat16 in this checkpoint: take fp32, q8 or q4")
        return core.quantise(_bf16_bits(w) if form == "bf16" else w, form, threads=threads)

    layers = []
    for layer in range(config.L):
        path = f"model.layers.{layer}."
        names = [f"{path}self_attn.{name}_proj" for name in "qkv"]
        qkv = pack(np.concatenate([take(f"{name}.weight") for name in names]), layer_form)
        # silu(beta g) u / beta is what a beta means: it is folded into the weights.
        gate, up = take(f"{path}mlp.gate_proj.weight"), take(f"{path}mlp.up_proj.weight")
        if config.swiglu_beta != 1:
            gate, up = gate * np.float32(config.swiglu_beta), up / np.float32(config.swiglu_beta)
        gate_up = pack(core.interleave(gate, up), layer_form)
        del gate, up
        down = take(f"{path}mlp.down_proj.weight")
        down = np.pad(down, ((0, 0), (0, gate_up.shape[0] // 2 - down.shape[1])))
        layers.append(
            LayerWeights(
                take(f"{path}input_layernorm.weight"),
                qkv,
                np.concatenate([take(f"{name}.bias") for name in names]),
                pack(take(f"{path}self_attn.o_proj.weight"), layer_form),
                take(f"{path}post_attention_layernorm.weight"),
                gate_up,
                pack(down, layer_form),
            )
        )
    embedding = take("model.embed_tokens.weight")
    head = pack(embedding if config.tie_word_embeddings else take(config.head_name), head_form)
    if form != "fp32":
        embedding = _bf16_bits(embedding)
    return ModelWeights(form, embedding, layers, take("model.norm.weight"), head)


def embed(ids: Any, embedding: Array) -> Array:
    """ids [T], embedding [V, D] -> float32 [T, D]"""
    rows: Array = embedding[ids]
    return rows if rows.dtype == np.float32 else np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)


def _bf16_bits(w: Array) -> Array:
    """float32 -> bfloat16 as uint16, rounded to nearest"""
    upper: Array = np.right_shift(to_bf16(w).view(np.uint32), 16).astype(np.uint16)
    return upper
