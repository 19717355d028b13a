"""The model over a batch, forward and backward: the loss, and its gradient by every weight.

Tokens are rows. B sequences of T tokens are [B T, D] to every operation but attention, so each linear map is one
matmul. The block is the spec's. It computes each array only if it is not given: a forward gives it x alone, and a
backward gives it the arrays that gradient checkpointing kept. So a backward reads the same bits in every mode:

    none       keep every array that the backward reads
    selective  keep the results of matmuls with a weight; recompute norms, probabilities and swiglu
    full       keep the input of each block; recompute the rest (Chen et al. 2016, arXiv:1604.06174)

A batch is computed in pieces of a few sequences, small enough for the arrays of a block to stay in the processor's
caches. Threads share the pieces. The pieces' gradients are added in order, so the result has the same bits for any
number of threads. BLAS should use one thread for each: OMP_NUM_THREADS=1, OPENBLAS_NUM_THREADS=1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Literal, NamedTuple, Protocol

import numpy as np

from ..config import Config
from ..engine.faults import divisible
from ..spec.ops import (
    Array,
    causal_mask,
    embed,
    linear,
    rmsnorm,
    rope,
    rope_frequencies,
    rope_tables,
    swiglu,
)
from .gradients import (
    attention_probs,
    attention_vjp,
    cross_entropy,
    embed_vjp,
    linear_vjp,
    mixed,
    rmsnorm_vjp,
    rope_vjp,
    swiglu_vjp,
)

Weights = Mapping[str, Array]
Gradients = dict[str, Array]
Checkpointing = Literal["none", "selective", "full"]

KEPT: dict[Checkpointing, tuple[str, ...]] = {
    "none": ("x", "attn_in", "q", "k", "v", "probs", "heads", "mid", "mlp_in", "gate", "up", "act"),
    "selective": ("x", "q", "k", "v", "heads", "mid", "gate", "up"),
    "full": ("x",),
}


class Batch(NamedTuple):
    """The input of a training step, all [B, T]: tokens, the token that should follow each, and the weight of each.

    Several sequences may be packed into one row. A new one begins at every change of `segments` along the row, at
    position 0; it sees nothing of those before. Padding is a segment of its own, with weights of 0.
    """

    ids: Array
    targets: Array
    weight: Array
    segments: Array | None = None


class Step(NamedTuple):
    """The loss of a batch, its gradient by each weight, and the bytes that its forward kept for the backward."""

    loss: float
    grads: Gradients
    kept_bytes: int


class Cache(Protocol):
    """Keys and values of earlier passes."""

    def extend(self, layer: int, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """k [B, T, K, E], v [B, T, K, E] -> [B, S, K, E], [B, S, K, E], visible [..., T, S]

        Store the keys and values of this pass, and return all, with those that each query may see.
        """


class Common(NamedTuple):
    """The inputs that all blocks of one pass share.

    ids, segments  [B, T]
    cos, sin       RoPE's tables, a row for each token [B T, E]
    cache          keys and values of earlier passes; None if there are none, as in training
    """

    config: Config
    weights: Weights
    ids: Array
    segments: Array | None
    cos: Array
    sin: Array
    cache: Cache | None = None

    def weight(self, layer: int, name: str) -> Array:
        return self.weights[f"model.layers.{layer}.{name}"]

    def visible(self, layer: int) -> Array:
        T = self.ids.shape[1]
        return causal_mask(T, T, self.config.window(layer))

    def reach(self, layer: int, k: Array, v: Array) -> tuple[Array, Array, Array]:
        """Return all keys and values that the queries of this pass may see, and which of them each query sees."""
        return (k, v, self.visible(layer)) if self.cache is None else self.cache.extend(layer, k, v)


class Tape(NamedTuple):
    """The arrays that a forward keeps for its backward, which uses them up from the end."""

    common: Common
    blocks: list[dict[str, Array]]
    x: Array  # after the last block
    hidden: Array  # after the last norm

    @property
    def kept_bytes(self) -> int:
        kept = [array for block in self.blocks for array in block.values()]
        return sum(array.nbytes for array in (*kept, self.x, self.hidden))


def loss_and_grads(
    config: Config,
    weights: Weights,
    batch: Batch,
    workers: int = 1,
    checkpointing: Checkpointing = "none",
    piece: int = 8,
) -> Step:
    """-> step

    The weighted mean cross-entropy of a batch over its positions, and the gradient by each of `config.tensors()`.

    weights  by those names, all float32 or all float64; everything is computed in their type
    workers  threads that share the batch
    piece    sequences computed at a time

    Raises ValueError for token ids or targets outside the vocabulary, and if all weights are 0.
    """
    for name, ids in (("ids", batch.ids), ("targets", batch.targets)):
        if ids.min() < 0 or ids.max() >= config.V:
            raise ValueError(f"{name} must be in [0, {config.V}), got {ids.min()} to {ids.max()}")
    total = float(batch.weight.sum())

    def run(start: int) -> Step:
        rows = slice(start, start + piece)
        segments = None if batch.segments is None else batch.segments[rows]
        logits, tape = forward(config, weights, batch.ids[rows], segments, checkpointing)
        kept = tape.kept_bytes
        loss, dlogits = cross_entropy(logits, batch.targets[rows], batch.weight[rows], total)
        return Step(loss, backward(tape, dlogits), kept)

    with ThreadPoolExecutor(workers) as pool:
        return _sum(pool.map(run, range(0, len(batch.ids), piece)))


def forward(
    config: Config,
    weights: Weights,
    ids: Array,
    segments: Array | None = None,
    checkpointing: Checkpointing = "none",
) -> tuple[Array, Tape]:
    """ids [B, T], segments [B, T] -> logits [B, T, V], tape

    The spec's `forward` for each sequence of a batch, and the tape for `backward`.
    """
    table = weights["model.embed_tokens.weight"]
    if segments is not None:
        segments = _numbered(segments)
    inv_freq = rope_frequencies(config.rope, config.E)
    at = _positions(ids, segments).reshape(-1)
    tables = rope_tables(inv_freq, config.rope.attention_scaling, np.arange(ids.shape[1]), table.dtype)
    common = Common(config, weights, ids, segments, tables[0][at], tables[1][at])

    x, blocks = embed(ids.reshape(-1), table), []
    for layer in range(config.L):
        x, kept = block(common, layer, x, KEPT[checkpointing])
        blocks.append(kept)
    hidden = rmsnorm(x, weights["model.norm.weight"], config.rms_norm_eps)
    logits = linear(hidden, weights[config.head_name]).reshape(*ids.shape, -1)
    return logits, Tape(common, blocks, x, hidden)


def backward(tape: Tape, dlogits: Array, dhidden: Array | None = None) -> Gradients:
    """dlogits [B, T, V], dhidden [B, T, D] -> grads

    The gradient by each weight. `dhidden` is the gradient of a second head, which reads `tape.hidden`. The tape is
    empty afterwards.
    """
    common, config, weights = tape.common, tape.common.config, tape.common.weights
    grads: Gradients = {}
    dlogits = dlogits.reshape(-1, config.V)
    dx, grads[config.head_name], _ = linear_vjp(tape.hidden, weights[config.head_name], None, dlogits)
    if dhidden is not None:
        dx += dhidden.reshape(dx.shape)
    dx, grads["model.norm.weight"] = rmsnorm_vjp(tape.x, weights["model.norm.weight"], config.rms_norm_eps, dx)
    for layer in reversed(range(config.L)):
        arrays = _block_arrays(common, layer, tape.blocks.pop())
        dx = _block_vjp(common, layer, arrays, dx, grads)
    table = "model.embed_tokens.weight"
    dtable = embed_vjp(common.ids, weights[table], dx)
    grads[table] = grads[table] + dtable if config.tie_word_embeddings else dtable
    return {name: grads[name] for name in config.tensors()}


def block(common: Common, layer: int, x: Array, keep: Sequence[str] = ()) -> tuple[Array, dict[str, Array]]:
    """x [N, D] -> [N, D], kept

    The spec's block for all rows of a batch, and the arrays of these names. A row too large for a norm becomes NaN:
    the spec would make zeros of it, whose logits and loss are finite.
    """
    arrays = _block_arrays(common, layer, {"x": x})
    y = arrays["mid"] + linear(arrays["act"], common.weight(layer, "mlp.down_proj.weight"))
    y[~divisible(y)] = np.nan
    return y, {name: arrays[name] for name in keep}


def _block_arrays(common: Common, layer: int, known: Mapping[str, Array]) -> dict[str, Array]:
    """-> arrays

    All arrays of a block but its output, in the spec's order; those in `known` are not computed again.
    """
    config, weight, arrays = common.config, partial(common.weight, layer), dict(known)

    def once(name: str, compute: Callable[[], Array]) -> Array:
        if name not in arrays:
            arrays[name] = compute()
        return arrays[name]

    def norm(name: str, x: Array) -> Array:
        return rmsnorm(x, weight(f"{name}.weight"), config.rms_norm_eps)

    def project(name: str) -> Array:
        y = linear(arrays["attn_in"], weight(f"self_attn.{name}_proj.weight"), weight(f"self_attn.{name}_proj.bias"))
        return y.reshape(len(y), -1, config.E)

    def batched(x: Array) -> Array:
        return x.reshape(*common.ids.shape, -1, config.E)

    x = arrays["x"]
    once("attn_in", lambda: norm("input_layernorm", x))
    q = once("q", lambda: batched(rope(project("q"), common.cos, common.sin)))
    k = once("k", lambda: batched(rope(project("k"), common.cos, common.sin)))
    v = once("v", lambda: batched(project("v")))
    keys, values, visible = common.reach(layer, k, v)
    probs = once("probs", lambda: attention_probs(q, keys, visible, common.segments))
    heads = once("heads", lambda: mixed(probs, values).reshape(len(x), -1))
    mid = once("mid", lambda: x + linear(heads, weight("self_attn.o_proj.weight")))

    mlp_in = once("mlp_in", lambda: norm("post_attention_layernorm", mid))
    gate = once("gate", lambda: linear(mlp_in, weight("mlp.gate_proj.weight")))
    up = once("up", lambda: linear(mlp_in, weight("mlp.up_proj.weight")))
    once("act", lambda: swiglu(gate, up, config.swiglu_beta))
    return arrays


def _block_vjp(common: Common, layer: int, arrays: dict[str, Array], dy: Array, grads: Gradients) -> Array:
    """dy [N, D] -> [N, D]

    The gradient by a block's input, from the gradient by its output. Those by its weights are put into `grads`.
    """
    config, weight, path = common.config, partial(common.weight, layer), f"model.layers.{layer}."

    def linear_back(name: str, x: Array, dy: Array, biased: bool = False) -> Array:
        b = weight(f"{name}.bias") if biased else None
        dx, grads[f"{path}{name}.weight"], db = linear_vjp(x, weight(f"{name}.weight"), b, dy)
        if db is not None:
            grads[f"{path}{name}.bias"] = db
        return dx

    def norm_back(name: str, x: Array, dy: Array) -> Array:
        dx, grads[f"{path}{name}.weight"] = rmsnorm_vjp(x, weight(f"{name}.weight"), config.rms_norm_eps, dy)
        return dx

    def project_back(name: str, dy: Array) -> Array:
        return linear_back(f"self_attn.{name}_proj", arrays["attn_in"], dy.reshape(len(arrays["x"]), -1), biased=True)

    def rope_back(dy: Array) -> Array:
        return rope_vjp(common.cos, common.sin, dy.reshape(len(common.cos), -1, config.E))

    dact = linear_back("mlp.down_proj", arrays["act"], dy)
    dgate, dup = swiglu_vjp(arrays["gate"], arrays["up"], config.swiglu_beta, dact)
    dmlp_in = linear_back("mlp.gate_proj", arrays["mlp_in"], dgate)
    dmlp_in += linear_back("mlp.up_proj", arrays["mlp_in"], dup)
    dmid = norm_back("post_attention_layernorm", arrays["mid"], dmlp_in)
    dmid += dy

    q, k, v = arrays["q"], arrays["k"], arrays["v"]
    dheads = linear_back("self_attn.o_proj", arrays["heads"], dmid).reshape(q.shape)
    dq, dk, dv = attention_vjp(q, k, v, common.visible(layer), dheads, common.segments, arrays["probs"])
    dattn_in = project_back("q", rope_back(dq))
    dattn_in += project_back("k", rope_back(dk))
    dattn_in += project_back("v", dv)
    dx = norm_back("input_layernorm", arrays["x"], dattn_in)
    dx += dmid
    return dx


def _numbered(segments: Array) -> Array:
    """segments [B, T] -> [B, T]

    The segments of each row as 0, 1, ... A number that comes again later in a row is another segment.
    """
    changes = np.diff(segments, axis=1, prepend=segments[:, :1]) != 0
    return np.cumsum(changes, axis=1)


def _positions(ids: Array, segments: Array | None) -> Array:
    """ids [B, T], segments [B, T] -> [B, T]

    The position of each token in its sequence.
    """
    places = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    if segments is None:
        return places
    begins = np.diff(segments, axis=1, prepend=-1) != 0
    return places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)


def _sum(steps: Iterable[Step]) -> Step:
    """Add up the pieces of a batch, in their order."""
    first, *rest = steps
    loss, grads, kept_bytes = first
    for step in rest:
        loss += step.loss
        kept_bytes += step.kept_bytes
        for name, grad in step.grads.items():
            grads[name] += grad
    return Step(loss, grads, kept_bytes)
