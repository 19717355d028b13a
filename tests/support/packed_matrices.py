"""The matrices of a loaded model: what their packed numbers mean."""

import ml_dtypes
import numpy as np

from qwq_ref import core
from qwq_ref.core import PANEL
from qwq_ref.core.layer import QKV


def _rows(packed):
    """All rows of a packed weight as float32."""
    found = core.unpack_rows(packed, np.arange(packed.shape[0]))
    return found.view(ml_dtypes.bfloat16).astype(np.float32) if found.dtype == np.uint16 else found.astype(np.float32)


def packed_matrices(config, weights):
    """The matrices of `ModelWeights`, by the names of `Config.tensors`: what their packed numbers mean, in float32."""
    found = {"model.embed_tokens.weight": _rows(weights.embedding), "lm_head.weight": _rows(weights.head)}
    H, K = config.H * config.E, config.K * config.E
    for i, layer in enumerate(weights.layers):
        path = f"model.layers.{i}"
        if isinstance(layer.qkv, QKV):
            q, k, v = (_rows(getattr(layer.qkv, name)) for name in "qkv")
        else:
            q, k, v = np.split(_rows(layer.qkv), [H, H + K])
        pairs = _rows(layer.gate_up).reshape(-1, 2, PANEL, config.D)
        gate, up = (pairs[:, j].reshape(-1, config.D)[: config.F] for j in (0, 1))
        found |= {f"{path}.self_attn.{name}_proj.weight": value for name, value in zip("qkv", (q, k, v), strict=True)}
        found |= {f"{path}.mlp.gate_proj.weight": gate, f"{path}.mlp.up_proj.weight": up}
        found[f"{path}.self_attn.o_proj.weight"] = _rows(layer.o)
        found[f"{path}.mlp.down_proj.weight"] = _rows(layer.down)[:, : config.F]
    return found
