"""One decoder layer: self-attention, then the MLP, each added to the residual stream.

A `Scope` stands for one module of the model. It finds the module's weights and names its results, so that the functions
below hold nothing but the computation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..config import Config
from .ops import Array, Round, Tap, attention, exact, linear, no_tap, rmsnorm, rope, swiglu

KV = tuple[Array, Array]


@dataclass(frozen=True)
class Scope:
    """The weights and results of one module, under names relative to its path.

    weights  full name -> array, for the whole model
    path     the beginning of the module's full names, such as "model.layers.0.mlp."
    dtype    the type to compute in
    rnd      the rounding of every weight and result
    tap      called with the full name and the value of every result
    """

    weights: Mapping[str, Array]
    path: str
    dtype: Any = np.float32
    rnd: Round = exact
    tap: Tap = no_tap

    def inside(self, name: str) -> Scope:
        """The scope of a submodule."""
        return replace(self, path=f"{self.path}{name}.")

    def weight(self, name: str) -> Array:
        """A weight of this module, in the precision of the computation.

        KeyError if the model lacks it; ValueError for integers, which may be the bits of bfloat16.
        """
        w = np.asarray(self.weights[self.path + name])
        if w.dtype.kind not in "fV":  # bfloat16 of ml_dtypes is a V
            raise ValueError(f"{self.path}{name} must be floats, got {w.dtype}")
        return self.rnd(np.asarray(w, self.dtype))

    def result(self, name: str, value: Array) -> Array:
        """Round a result, show it to the tap, and return it. A value that is already rounded stays the same."""
        value = self.rnd(value)
        self.tap(self.path + name, value)
        return value


def block(config: Config, layer: Scope, x: Array, cos: Array, sin: Array, visible: Array, past: KV) -> tuple[Array, KV]:
    """x [T, D], cos [T, E], sin [T, E], visible [T, S] -> [T, D], kv

    One decoder layer: x + self_attention(norm(x)), then x + mlp(norm(x)).

    past  keys and values [S - T, K, E] of the positions before; `kv` holds those of all S
    HF: `Qwen2DecoderLayer`.
    """
    layer.result("resid_pre", x)
    normed = norm(config, layer, "input_layernorm", x)
    attended, kv = self_attention(config, layer.inside("self_attn"), normed, cos, sin, visible, past)
    x = layer.result("resid_mid", x + attended)
    normed = norm(config, layer, "post_attention_layernorm", x)
    x = layer.result("resid_post", x + mlp(config, layer.inside("mlp"), normed))
    return x, kv


def norm(config: Config, scope: Scope, name: str, x: Array) -> Array:
    """x [T, D] -> [T, D]

    `rmsnorm` with the weight of the norm `name`.
    """
    w = scope.weight(f"{name}.weight")
    return scope.result(name, rmsnorm(x, w, config.rms_norm_eps, scope.rnd))


def self_attention(
    config: Config, scope: Scope, x: Array, cos: Array, sin: Array, visible: Array, past: KV
) -> tuple[Array, KV]:
    """x [T, D], cos [T, E], sin [T, E], visible [T, S] -> [T, D], kv

    Make queries, keys and values; turn queries and keys by RoPE; attend to all S positions; mix the heads.
    HF: `Qwen2Attention`.
    """
    q = projection(scope, "q", x).reshape(-1, config.H, config.E)
    k = projection(scope, "k", x).reshape(-1, config.K, config.E)
    v = projection(scope, "v", x).reshape(-1, config.K, config.E)
    q = scope.result("q_rope", rope(q, cos, sin, scope.rnd))
    k = scope.result("k_rope", rope(k, cos, sin, scope.rnd))

    past_k, past_v = past
    k, v = np.concatenate([past_k, k]), np.concatenate([past_v, v])
    heads = scope.result("heads", attention(q, k, v, visible, scope.rnd, scope.result))
    y = linear(heads.reshape(-1, config.H * config.E), scope.weight("o_proj.weight"))
    return scope.result("o_proj", y), (k, v)


def projection(scope: Scope, name: str, x: Array) -> Array:
    """x [T, D] -> [T, n]

    The queries ("q"), keys ("k") or values ("v") of all heads, side by side.
    """
    product = linear(x, scope.weight(f"{name}_proj.weight"))
    scope.result(f"{name}_matmul", product)  # rounded for the tap alone: the model rounds once, after the bias
    return scope.result(f"{name}_proj", product + scope.weight(f"{name}_proj.bias"))


def mlp(config: Config, scope: Scope, x: Array) -> Array:
    """x [T, D] -> [T, D]

    down(swiglu(gate(x), up(x))). HF: `Qwen2MLP`.
    """
    gate = scope.result("gate_proj", linear(x, scope.weight("gate_proj.weight")))
    up = scope.result("up_proj", linear(x, scope.weight("up_proj.weight")))
    act = scope.result("act", swiglu(gate, up, config.swiglu_beta, scope.rnd))
    return scope.result("down_proj", linear(act, scope.weight("down_proj.weight")))
