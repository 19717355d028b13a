"""The model as a table: for each tap, what it is made from, and the operation of the spec that makes it.

`spec.forward` says the same in the order of the computation, and a test holds every tap of both equal to the bit. The
table adds what an oracle needs. Any operation can be run on given inputs: those of somebody else's model. A mistake is
a change of one or two of its lines. And many streams (precisions, mistakes) can share one pass over the weights.

Names of taps and weights are relative to their layer, unless they begin with `model.` or `lm_head`. An input with a
`*` is that of this phase behind those of all earlier ones: the key-value cache.
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

PREVIOUS = "^"  # what a layer reads: the layer before it, or the embedding


@dataclass(frozen=True)
class Phase:
    """One call of the model: the prompt, or a step of decoding. Its tokens sit at positions start, start + 1, ..."""

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
    """A prompt, and its last `decode` tokens fed one at a time, as a model would see them that had sampled them."""
    ids = tuple(int(token) for token in token_ids)
    first = len(ids) - decode
    steps = (Phase(f"decode-{i}", first + i, (ids[first + i],)) for i in range(decode))
    return (Phase("prompt", 0, ids[:first]), *steps)


@dataclass(frozen=True)
class At:
    """Where an operation runs, and in which arithmetic."""

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
    inputs   the taps that it is made from
    run      (at, inputs, weights) -> result; the weights are the matrix, then the vectors
    matrix   a weight [out, in], of which `run` may be given any block of rows, with the vectors cut alike
    vectors  weights [n]
    change   what a mistake does to the whole matrix before it is used
    """

    tap: str
    shape: tuple[str, ...]
    inputs: tuple[str, ...]
    run: Run
    matrix: str | None = None
    vectors: tuple[str, ...] = ()
    change: Callable[[Config, Array], Array] | None = None


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
    return weights[0]  # the rows of this phase's tokens: nobody reads the whole table for them


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
    """The end of the table; the head may be the embedding."""
    return (
        Op(NORM, ("T", "D"), (PREVIOUS,), norm, vectors=("model.norm.weight",)),
        Op(LOGITS, ("T", "V"), (NORM,), project, config.head_name),
    )


def absolute(layer: int, name: str) -> str:
    """The full name of a tap or weight that a layer's operation names."""
    return name if name.startswith(("model.", LOGITS)) else f"model.layers.{layer}.{name}"


def tap_names(config: Config) -> list[str]:
    """Every tap, in the order of the computation."""
    inner = [f"model.layers.{layer}.{op.tap}" for layer in range(config.L) for op in LAYER]
    return [*(op.tap for op in BEFORE), *inner, *(op.tap for op in after(config))]


def split_name(tap: str) -> tuple[int | None, str]:
    """A tap's full name -> its layer (None outside the layers), and its name in the table."""
    parts = tap.split(".", 3)
    if tap.startswith("model.layers.") and len(parts) == 4 and parts[2].isdigit():
        return int(parts[2]), parts[3]
    return None, tap


_SHAPES = {op.tap: op.shape for op in (*BEFORE, *LAYER)} | {NORM: ("T", "D"), LOGITS: ("T", "V")}


def letters(tap: str) -> tuple[str, ...]:
    """The dimensions of a tap, by letter. KeyError for a name that is none."""
    return _SHAPES[split_name(tap)[1]]


def shape_of(tap: str, config: Config, phase: Phase) -> tuple[int, ...]:
    """The shape of a tap in a phase."""
    sizes = {"T": phase.T, "S": phase.S} | {name: getattr(config, name) for name in "DFHKEV"}
    return tuple(int(np.prod([sizes[part] for part in letter.split("*")])) for letter in letters(tap))


_CHUNK = 64


def _chunk_sum(parts: Iterable[Array]) -> Array:
    """A sum whose rounding is as large as that of a loop that adds one product at a time.

    A loop over n products makes an error of u sqrt(n / 6), where u is float32's unit: far more than a BLAS makes, and
    as correct. The same error comes from adding up the sums of 64 products each, and rounding every partial sum to 8 u,
    which takes a sixty-fourth of the time.
    """
    total = np.zeros((), np.float32)
    for part in parts:
        bits = np.asarray(total + part, np.float32).view(np.uint32)
        total = ((bits + 3 + ((bits >> 3) & 1)) & np.uint32(0xFFFFFFF8)).view(np.float32)
    return total


def loop_linear(x: Array, w: Array, b: Array | None, rnd: Round) -> Array:
    """`linear` as a plain loop would sum it. float32 only."""
    chunks = range(0, x.shape[1], _CHUNK)
    y = _chunk_sum(x[:, i : i + _CHUNK] @ w[:, i : i + _CHUNK].T for i in chunks)
    return rnd(y if b is None else y + b)


def loop_rmsnorm(x: Array, w: Array, eps: float, rnd: Round) -> Array:
    """`rmsnorm` as a plain loop would sum it, with a division where the other multiplies. float32 only."""
    chunks = range(0, x.shape[1], _CHUNK)
    total = _chunk_sum(np.sum(x[:, i : i + _CHUNK] ** 2, axis=-1, keepdims=True) for i in chunks)
    return rnd(w * rnd(x / np.sqrt(total / np.float32(x.shape[1]) + np.float32(eps))))


Kind = tuple[type[np.floating], Round]


@dataclass(frozen=True)
class Arithmetic:
    """One correct way to compute: a type, a rounding, and where it is applied.

    order  "eager" rounds where Hugging Face's eager model does; "fused" rounds only results that leave a fused kernel
           (scores and probabilities do not); "loop" is eager, but sums one product after the other
    """

    dtype: type[np.floating]
    rnd: Round = exact
    order: str = "eager"

    @property
    def kind(self) -> Kind:
        """What values are made to before they are computed with."""
        return self.dtype, self.rnd

    def run(self, op: Op, config: Config, phase: Phase, layer: int, values: list[Array], weights: list[Array]) -> Array:
        """One operation. `values` and `weights` are of this type already."""
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
# What a correct implementation may do in each precision. Tolerances are measured over all of a row.
CORRECT: dict[str, tuple[Arithmetic, ...]] = {
    "fp32": tuple(Arithmetic(np.float32, exact, order) for order in ("eager", "loop")),
    "bf16": tuple(Arithmetic(np.float32, to_bf16, order) for order in ("eager", "fused", "loop")),
    "fp16": tuple(Arithmetic(np.float32, to_fp16, order) for order in ("eager", "fused", "loop")),
}
