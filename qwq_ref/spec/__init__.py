"""The executable spec: every block of QwQ-32B as a pure NumPy function.

It imports NumPy and the config and nothing else, keeps no state, and takes no fast path. Read `ops.py`, then
`model.py`: together they are the model. `sampling.py` turns logits into the next token.

Shapes come first in every docstring, in the letters of `qwq_ref.config.DIMENSIONS`. There is no batch axis.
"""

from .model import (
    block,
    crop,
    empty_cache,
    forward,
)
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
)
from .sampling import Sampling, distribution, draw

__all__ = [
    "Sampling",
    "attention",
    "block",
    "causal_mask",
    "crop",
    "distribution",
    "draw",
    "embed",
    "empty_cache",
    "forward",
    "linear",
    "rmsnorm",
    "rope",
    "rope_frequencies",
    "rope_tables",
    "softmax",
    "swiglu",
]
