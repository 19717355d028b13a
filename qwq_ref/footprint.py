"""What a model costs, by arithmetic from its config: parameters, bytes, traffic and operations.

Bytes are exact for fp32 and bf16. For `q8` and `q4` they are those of one scale per group of 64 weights (8.25 and 4.25
bits a weight); norms and biases stay in fp32 there. Decimal GB are 10^9 bytes, GiB are 2^30.
"""

from __future__ import annotations

import dataclasses
import math

from .config import Config

WEIGHT_BITS = {"fp32": 32.0, "bf16": 16.0, "q8": 8.25, "q4": 4.25}
KV_PRECISIONS = ("fp32", "bf16", "int8")


def parameters(config: Config) -> int:
    """How many numbers the model has; a tied head counts once."""
    return sum(math.prod(shape) for shape in config.tensors().values())


def weight_bytes(config: Config, precision: str) -> int:
    """Bytes of all weights at a precision of `WEIGHT_BITS`."""
    return _bytes(config, precision, config.tensors())


def bytes_read_per_token(config: Config, precision: str) -> int:
    """Bytes of weights that one decoded token must read: all, but of an untied embedding only one row."""
    read = config.tensors()
    if not config.tie_word_embeddings:
        read["model.embed_tokens.weight"] = (1, config.D)
    return _bytes(config, precision, read)


def _bytes(config: Config, precision: str, shapes: dict[str, tuple[int, ...]]) -> int:
    bits = WEIGHT_BITS[precision]
    vector_bits = min(bits, 32.0) if bits >= 16 else 32.0
    total = sum(math.prod(shape) * (bits if len(shape) == 2 else vector_bits) for shape in shapes.values())
    return math.ceil(total / 8)


def kv_bytes_per_token(config: Config, precision: str, kv_heads: int | None = None) -> int:
    """Bytes of keys and values of one position over all layers. int8 has one fp32 scale per head and vector."""
    vector = {"fp32": 4 * config.E, "bf16": 2 * config.E, "int8": config.E + 4}[precision]
    return 2 * config.L * (kv_heads or config.K) * vector


def flops_per_token(config: Config, context: int, head: bool = True) -> int:
    """Operations (a multiply-add is two) to decode one token behind `context` others.

    Without `head`, of a token of a prompt, which needs no logits: only the last one does.
    """
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    matrices = [shape for name, shape in config.tensors().items() if len(shape) == 2 and name not in ends]
    if head:
        matrices.append((config.V, config.D))
    attention = 2 * 2 * config.L * config.H * config.E * context  # scores, then the weighted sum
    return 2 * sum(math.prod(shape) for shape in matrices) + attention


def step_bytes(config: Config, context: int, weights: str = "bf16", kv: str = "bf16") -> int:
    """Bytes that decoding one token behind `context` others must read."""
    return bytes_read_per_token(config, weights) + context * kv_bytes_per_token(config, kv)


def gqa_saving(config: Config, context: int) -> tuple[float, float]:
    """-> (share of KV traffic, share of a whole decoding step's traffic) that GQA saves against MHA, in bf16.

    The MHA model has a key and a value head for every query head, so its k and v projections are larger too.
    """
    mha = dataclasses.replace(config, num_key_value_heads=config.H)
    return 1 - config.K / config.H, 1 - step_bytes(config, context) / step_bytes(mha, context)


def human(size: float) -> str:
    """Bytes for people: GiB, or MiB where that reads better."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.2f} MiB"
