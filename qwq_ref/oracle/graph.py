"""The model as a table: for each tap, its inputs, and the operation of the spec that computes it.

The table describes the data flow of `spec.forward`, and calls the spec's operations. A test checks that all taps of
both have the same bits. The oracle needs the table for three reasons. It can run any operation on the inputs of a
candidate. A known mistake is a change of one or two lines. Many streams (precisions, mistakes) can share one pass over
the weights.

Names of taps and weights are relative to their layer, unless they begin with `model.` or `lm_head`. An input with a
`*` stands for the tap of all phases up to this one, one behind another: the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..spec import (
    causal_mask,
    linear,
    rmsnorm,
    rope,
    rope_frequencies,
    rope_tables,
    softmax,
    swiglu,
)
from ..spec.ops import (
    Array,
    Round,
    attention_heads,
    attention_scores,
    exact,
    to_bf16,
    to_fp16,
)
from .matrix import Matrix

PREVIOUS = "^"  # the input of a layer: the output of the layer before it, or the embedding


@dataclass(frozen=True)
class Phase:
    """One call of the model: the prompt or a decode step. Its tokens have the positions start, start + 1, ..."""

    name: str
    start: int
    ids: tuple[int, ...]

    @property
    def T(self) -> int:
        return len(self.ids)

    @property
    def S(self) -> int:
        return self.start + len(self.ids)


def phases_of(token_ids: Sequence[int], decode: int) -> tuple[Phase, ...]:
    """Split tokens into a prompt and `decode` decode steps, as if the model had sampled the last tokens."""
    ids = tuple(int(token) for token in token_ids)
    first = len(ids) - decode
    steps = (Phase(f"decode-{i}", first + i, (ids[first + i],)) for i in range(decode))
    return (Phase("prompt", 0, ids[:first]), *steps)


@dataclass(frozen=True)
class At:
    """The phase, the layer and the arithmetic of an operation."""

    config: Config
    phase: Phase
    layer: int
    dtype: type[np.floating]
    rnd: Round
    linear: Callable[[Array, Array, Array | None, Round], Array]
    rmsnorm: Callable[[Array, Array, float, Round], Array]

    def visible(self) -> Array:
        return causal_mask(self.phase.T, self.phase.S, self.config.window(self.layer))

    def positions(self) -> Array:
        return np.arange(self.phase.start, self.phase.S)

    def heads(self, x: Array) -> Array:
        return x.reshape(len(x), -1, self.config.E)


Run = Callable[[At, list[Array], list[Array]], Array]


@dataclass(frozen=True)
class Op:
    """One line of the table.

    tap      the name of the result
    shape    its dimensions, in the letters of `config.DIMENSIONS`
    inputs   the taps that it is computed from
    run      (at, inputs, weights) -> result; the weights are the matrix, then the vectors
    matrix   a weight [out, in]; `run` may get any block of its rows, with the same rows of the vectors
    vectors  weights [n]
    change   (config, the whole matrix) -> the wrong one that a mistake makes of it first, float32 [out, in]
    """

    tap: str
    shape: tuple[str, ...]
    inputs: tuple[str, ...]
    run: Run
    matrix: str | None = None
    vectors: tuple[str, ...] = ()
    change: Callable[[Config, Matrix], Array] | None = None


def project(at: At, values: list[Array], weights: list[Array]) -> Array:
    return at.linear(values[0], weights[0], weights[1] if len(weights) > 1 else None, at.rnd)


def norm(at: At, values: list[Array], weights: list[Array]) -> Array:
    return at.rmsnorm(values[0], weights[0], at.config.rms_norm_eps, at.rnd)


def add(at: At, values: list[Array], weights: list[Array]) -> Array:
    return at.rnd(values[0] + values[1])


def same(at: At, values: list[Array], weights: list[Array]) -> Array:
    return values[0]


def turn(at: At, values: list[Array], weights: list[Array]) -> Array:
    return rope(at.heads(values[0]), values[1], values[2], at.rnd)


def tables(at: At) -> tuple[Array, Array]:
    config = at.config
    inv_freq = rope_frequencies(config.rope, config.E)
    return rope_tables(inv_freq, config.rope.attention_scaling, at.positions(), at.dtype, at.rnd)


def score(at: At, values: list[Array], weights: list[Array]) -> Array:
    return attention_scores(values[0], values[1], at.visible(), at.rnd)


def mix(at: At, values: list[Array], weights: list[Array]) -> Array:
    return attention_heads(values[0], at.heads(values[1]), at.rnd)


def gather(at: At, values: list[Array], weights: list[Array]) -> Array:
    return weights[0]  # the rows of this phase's tokens; the whole table is not read


COS, SIN, EMBED = "model.rotary_emb.cos", "model.rotary_emb.sin", "model.embed_tokens"
NORM, LOGITS = "model.norm", "lm_head"

BEFORE = (
    Op(COS, ("T", "E"), (), lambda at, values, weights: tables(at)[0]),
    Op(SIN, ("T", "E"), (), lambda at, values, weights: tables(at)[1]),
    Op(EMBED, ("T", "D"), (), gather, "model.embed_tokens.weight"),
)


def _projection(name: str, heads: str) -> tuple[Op, Op]:
    path, shape, inputs = f"self_attn.{name}", ("T", f"{heads}*E"), ("input_layernorm",)
    return (
        Op(f"{path}_matmul", shape, inputs, project, f"{path}_proj.weight"),
        Op(f"{path}_proj", shape, inputs, project, f"{path}_proj.weight", (f"{path}_proj.bias",)),
    )


LAYER = (
    Op("resid_pre", ("T", "D"), (PREVIOUS,), same),
    Op("input_layernorm", ("T", "D"), ("resid_pre",), norm, vectors=("input_layernorm.weight",)),
    *_projection("q", "H"),
    *_projection("k", "K"),
    *_projection("v", "K"),
    Op("self_attn.q_rope", ("T", "H", "E"), ("self_attn.q_proj", COS, SIN), turn),
    Op("self_attn.k_rope", ("T", "K", "E"), ("self_attn.k_proj", COS, SIN), turn),
    Op("self_attn.scores", ("H", "T", "S"), ("self_attn.q_rope", "*self_attn.k_rope"), score),
    Op(
        "self_attn.probs",
        ("H", "T", "S"),
        ("self_attn.scores",),
        lambda at, values, weights: at.rnd(softmax(values[0])),
    ),
    Op("self_attn.heads", ("T", "H", "E"), ("self_attn.probs", "*self_attn.v_proj"), mix),
    Op(
        "self_attn.o_proj",
        ("T", "D"),
        ("self_attn.heads",),
        lambda at, values, weights: project(at, [values[0].reshape(len(values[0]), -1)], weights),
        "self_attn.o_proj.weight",
    ),
    Op("resid_mid", ("T", "D"), ("resid_pre", "self_attn.o_proj"), add),
    Op("post_attention_layernorm", ("T", "D"), ("resid_mid",), norm, vectors=("post_attention_layernorm.weight",)),
    Op("mlp.gate_proj", ("T", "F"), ("post_attention_layernorm",), project, "mlp.gate_proj.weight"),
    Op("mlp.up_proj", ("T", "F"), ("post_attention_layernorm",), project, "mlp.up_proj.weight"),
    Op(
        "mlp.act",
        ("T", "F"),
        ("mlp.gate_proj", "mlp.up_proj"),
        lambda at, values, weights: swiglu(values[0], values[1], at.config.swiglu_beta, at.rnd),
    ),
    Op("mlp.down_proj", ("T", "D"), ("mlp.act",), project, "mlp.down_proj.weight"),
    Op("resid_post", ("T", "D"), ("resid_mid", "mlp.down_proj"), add),
)


def after(config: Config) -> tuple[Op, ...]:
    """Return the end of the table. The head may be the embedding."""
    return (
        Op(NORM, ("T", "D"), (PREVIOUS,), norm, vectors=("model.norm.weight",)),
        Op(LOGITS, ("T", "V"), (NORM,), project, config.head_name),
    )


def absolute(layer: int, name: str) -> str:
    """Return the full name of a tap or weight of a layer."""
    return name if name.startswith(("model.", LOGITS)) else f"model.layers.{layer}.{name}"


def tap_names(config: Config) -> list[str]:
    """Return the names of all taps, in the order of the computation."""
    inner = [f"model.layers.{layer}.{op.tap}" for layer in range(config.L) for op in LAYER]
    return [*(op.tap for op in BEFORE), *inner, *(op.tap for op in after(config))]


def split_name(tap: str) -> tuple[int | None, str]:
    """Split the full name of a tap into its layer (None outside the layers) and its name in the table."""
    parts = tap.split(".", 3)
    if tap.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
        return int(parts[2]), parts[3]
    return None, tap


_SHAPES = {op.tap: op.shape for op in (*BEFORE, *LAYER)} | {NORM: ("T", "D"), LOGITS: ("T", "V")}


def letters(tap: str) -> tuple[str, ...]:
    """Return the dimensions of a tap, by letter. Raises KeyError for an unknown name."""
    return _SHAPES[split_name(tap)[1]]


def shape_of(tap: str, config: Config, phase: Phase) -> tuple[int, ...]:
    """Return the shape of a tap in a phase."""
    sizes = {"T": phase.T, "S": phase.S} | {name: getattr(config, name) for name in "DFHKEV"}
    return tuple(int(np.prod([sizes[part] for part in letter.split("*")])) for letter in letters(tap))


_CHUNK = 64


def _chunk_sum(parts: Iterable[Array]) -> Array:
    """Add up parts with a rounding error as large as that of a loop that adds one product at a time.

    Such a loop over n products has an error of about u sqrt(n / 6), where u is the unit of float32. It is correct, but
    the error is far larger than that of a BLAS. Sums of 64 products, with every partial sum rounded to 8 u, have the
    same error in a sixty-fourth of the time.
    """
    total = np.zeros((), np.float32)
    for part in parts:
        bits = np.asarray(total + part, np.float32).view(np.uint32)
        total = ((bits + 3 + ((bits >> 3) & 1)) & np.uint32(0xFFFFFFF8)).view(np.float32)
    return total


def loop_linear(x: Array, w: Array, b: Array | None, rnd: Round) -> Array:
    """Compute `linear` with the rounding of a plain loop. float32 only."""
    chunks = range(0, x.shape[1], _CHUNK)
    y = _chunk_sum(x[:, i : i + _CHUNK] @ w[:, i : i + _CHUNK].T for i in chunks)
    return rnd(y if b is None else y + b)


def loop_rmsnorm(x: Array, w: Array, eps: float, rnd: Round) -> Array:
    """Compute `rmsnorm` with the rounding of a plain loop, and with a division by the root. float32 only."""
    chunks = range(0, x.shape[1], _CHUNK)
    total = _chunk_sum(np.sum(x[:, i : i + _CHUNK] ** 2, axis=-1, keepdims=True) for i in chunks)
    return rnd(w * rnd(x / np.sqrt(total / np.float32(x.shape[1]) + np.float32(eps))))


Kind = tuple[type[np.floating], Round]


@dataclass(frozen=True)
class Arithmetic:
    """One correct way to compute: a type, a rounding, and the places of the rounding.

    order  "eager" rounds where Hugging Face's eager model does; "fused" rounds the results of fused kernels alone, not
           scores and probabilities; "loop" is eager, but sums one product after another
    """

    dtype: type[np.floating]
    rnd: Round = exact
    order: str = "eager"

    @property
    def kind(self) -> Kind:
        """The type and the rounding of inputs."""
        return self.dtype, self.rnd

    def run(self, op: Op, config: Config, phase: Phase, layer: int, values: list[Array], weights: list[Array]) -> Array:
        """Run one operation. `values` and `weights` have this type already."""
        fused = self.order == "fused"
        ways = (loop_linear, loop_rmsnorm) if self.order == "loop" else (linear, rmsnorm)
        at = At(config, phase, layer, self.dtype, exact if fused else self.rnd, *ways)
        result = op.run(at, values, weights)
        if fused and op.tap not in ("self_attn.scores", "self_attn.probs"):
            result = self.rnd(result)
        return result


TRUTH = Arithmetic(np.float64)
# The largest relative error of rounding once.
UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
# The arithmetics of correct implementations in each precision. Tolerances are measured over all of a row.
CORRECT: dict[str, tuple[Arithmetic, ...]] = {
    "fp32": tuple(Arithmetic(np.float32, exact, order) for order in ("eager", "loop")),
    "bf16": tuple(Arithmetic(np.float32, to_bf16, order) for order in ("eager", "fused", "loop")),
    "fp16": tuple(Arithmetic(np.float32, to_fp16, order) for order in ("eager", "fused", "loop")),
}
