"""The executable spec: every block of QwQ-32B as a pure NumPy function.

It imports NumPy and the config and nothing else, keeps no state, and takes no fast path. Read it in this order:

    ops.py       the operations: RMSNorm, RoPE, attention, SwiGLU
    block.py     one decoder layer, made of them
    model.py     all layers, from token ids to logits, with a KV cache
    sampling.py  from logits to the next token
    generate.py  the loop that writes text

Each docstring begins with the shapes, in the letters of `qwq_ref.config.DIMENSIONS`. There is no batch axis.
"""

from .block import Scope, block, mlp, norm, projection, self_attention
from .generate import generate
from .model import crop, empty_cache, forward
from .ops import (
    attention,
    causal_mask,
    embed,
    linear,
    rmsnorm,
    rope,
    rope_frequencies,
    rope_tables,
    softmax,
    swiglu,
    yarn_frequencies,
)
from .sampling import Sampling, distribution, draw

__all__ = [
    "Sampling",
    "Scope",
    "attention",
    "block",
    "causal_mask",
    "crop",
    "distribution",
    "draw",
    "embed",
    "empty_cache",
    "forward",
    "generate",
    "linear",
    "mlp",
    "norm",
    "projection",
    "rmsnorm",
    "rope",
    "rope_frequencies",
    "rope_tables",
    "self_attention",
    "softmax",
    "swiglu",
    "yarn_frequencies",
]
