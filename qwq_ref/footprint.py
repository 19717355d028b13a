"""The costs of a model, by arithmetic from its config: parameters, bytes, traffic and operations.

Weights are counted here as a checkpoint stores them, in one dtype. `engine.plan` counts the bytes of each weight form
of this package. Decimal GB are 10^9 bytes, GiB are 2^30.
"""

from __future__ import annotations

import dataclasses
import math

from .config import Config

DTYPE_BYTES = {"fp32": 4, "bf16": 2}
KV_PRECISIONS = ("fp32", "bf16", "int8")


def parameters(config: Config) -> int:
    """Return the number of parameters; a tied head counts once."""
    return sum(math.prod(shape) for shape in config.tensors().values())


def weight_bytes(config: Config, dtype: str) -> int:
    """Return the bytes of all parameters in one dtype of `DTYPE_BYTES`."""
    return parameters(config) * DTYPE_BYTES[dtype]


def bytes_read_per_token(config: Config, dtype: str) -> int:
    """Return the bytes of weights that one decoded token must read: all, but of an untied embedding one row."""
    unread = 0 if config.tie_word_embeddings else (config.V - 1) * config.D
    return (parameters(config) - unread) * DTYPE_BYTES[dtype]


def kv_bytes_per_token(config: Config, precision: str, kv_heads: int | None = None) -> int:
    """Return the bytes of keys and values of one position over all layers.

    int8 has three float32 scales for each head: one for each half of a key, one for a value. `kv_heads` replaces the
    config's.
    """
    pair = {"fp32": 8 * config.E, "bf16": 4 * config.E, "int8": 2 * config.E + 12}[precision]
    return config.L * (kv_heads or config.K) * pair


def flops_per_token(config: Config, context: int, head: bool = True) -> int:
    """Return the operations that decode one token behind `context` others; a multiply-add counts as two.

    head  False: for a token of a prompt, which needs no logits
    """
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    matrices = [shape for name, shape in config.tensors().items() if len(shape) == 2 and name not in ends]
    if head:
        matrices.append((config.V, config.D))
    attention = 2 * 2 * config.L * config.H * config.E * context  # scores, then the weighted sum
    return 2 * sum(math.prod(shape) for shape in matrices) + attention


def gqa_saving(config: Config, context: int) -> tuple[float, float]:
    """Return the shares of KV traffic, and of a decode step's whole traffic, that GQA saves against MHA.

    Weights and cache are in bf16. The MHA model has a key and a value head for every query head, so its k and v
    projections are larger too.
    """
    mha = dataclasses.replace(config, num_key_value_heads=config.H)
    return 1 - config.K / config.H, 1 - _step_bytes(config, context) / _step_bytes(mha, context)


def _step_bytes(config: Config, context: int) -> int:
    """Return the bytes that decoding one token behind `context` others reads, in bf16."""
    return bytes_read_per_token(config, "bf16") + context * kv_bytes_per_token(config, "bf16")


def human(size: float) -> str:
    """Return bytes for people: in GiB, or in the next smaller unit below a tenth of one."""
    if size >= 2**30 / 10:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.2f} MiB" if size >= 2**20 / 10 else f"{size / 2**10:.2f} KiB"
