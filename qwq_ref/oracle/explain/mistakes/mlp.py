"""Mistakes of the MLP."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from ....config import Config
from ....spec.ops import Array
from ...graph import Op, Run
from .base import Mistake, Replaces, changed, line


def _activated(how: Callable[[Array], Array]) -> Replaces:
    run: Run = lambda at, values, weights: at.rnd(at.rnd(how(values[0])) * values[1])  # noqa: E731
    return changed("mlp.act", run=run)


def _silu(x: Array, beta: float = 1.0) -> Array:
    scaled = beta * x
    return np.asarray(x * np.exp(np.minimum(scaled, 0)) / (1 + np.exp(-np.abs(scaled))))


def _gelu_tanh(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _gelu_erf(x: Array) -> Array:
    return np.asarray(x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))).astype(x.dtype)


def _gate_up_weights_swapped(config: Config) -> dict[str, Op]:
    gate, up = line(config, "mlp.gate_proj"), line(config, "mlp.up_proj")
    return {
        gate.tap: dataclasses.replace(gate, matrix=up.matrix),
        up.tap: dataclasses.replace(up, matrix=gate.matrix),
    }


MISTAKES = (
    Mistake(
        "gate-up-swapped",
        "SiLU is applied to up_proj instead of to gate_proj: the two are swapped",
        "any tokens",
        changed("mlp.act", inputs=("mlp.up_proj", "mlp.gate_proj")),
    ),
    Mistake(
        "gate-up-weights-swapped",
        "the weights of gate_proj and up_proj are swapped",
        "any tokens",
        _gate_up_weights_swapped,
    ),
    Mistake("gelu", "the MLP uses GELU (erf); it is SiLU", "any tokens", _activated(_gelu_erf)),
    Mistake("gelu-tanh", "the MLP uses GELU (tanh); it is SiLU", "any tokens", _activated(_gelu_tanh)),
    Mistake(
        "quick-gelu",
        "the MLP uses x sigmoid(1.702 x); SiLU is x sigmoid(x)",
        "any tokens",
        _activated(lambda x: _silu(x, 1.702)),
    ),
    Mistake(
        "swish-beta-ln2",
        "the MLP uses x sigmoid(x ln 2), as some descriptions have it; SiLU is x sigmoid(x)",
        "any tokens",
        _activated(lambda x: _silu(x, math.log(2))),
    ),
    Mistake("relu", "the MLP uses ReLU; it is SiLU", "any tokens", _activated(lambda x: np.maximum(x, 0))),
    Mistake(
        "activation-missing",
        "the MLP multiplies gate and up without an activation",
        "any tokens",
        _activated(lambda x: x),
    ),
)
