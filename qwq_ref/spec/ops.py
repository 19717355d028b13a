"""The operations of a Qwen2 block: pure functions from arrays to arrays.

An operation computes in the precision of its inputs: float32, or float64 for the truth that every implementation is
compared with. In both, `rnd` is `exact`. bfloat16 and float16 are emulated: values are stored in float32, and `rnd`
rounds them where Hugging Face's eager model of that type rounds. Sums inside a matmul, a norm or a softmax are not
rounded on the way.

"HF" names the function in `transformers/models/qwen2/modeling_qwen2.py` that an operation follows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..config import Rope

Array = NDArray[Any]
Round = Callable[[Array], Array]
Tap = Callable[[str, Array], object]


def exact(x: Array) -> Array:
    """x [...] -> [...]

    The array itself, without rounding.
    """
    return x


def to_bf16(x: Array) -> Array:
    """x [...] -> [...]

    The nearest bfloat16, ties to even, stored in float32: a bfloat16 is the upper half of a float32.
    """
    bits = np.asarray(x, np.float32).view(np.uint32)
    tie_to_even = (bits >> 16) & 1
    rounded = (bits + 0x7FFF + tie_to_even) & 0xFFFF0000
    return np.where(np.isnan(x), np.float32(np.nan), rounded.view(np.float32))


def to_fp16(x: Array) -> Array:
    """x [...] -> [...]

    The nearest float16, ties to even, stored in float32. Values beyond 65,504 become infinite.
    """
    with np.errstate(over="ignore"):
        return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def no_tap(name: str, value: Array) -> None:
    """value [...]

    The tap that does nothing.
    """


def embed(ids: Array, w: Array) -> Array:
    """ids [T], w [V, D] -> [T, D]

    Row `ids[t]` of the table for each token. IndexError for an id beyond it. HF: `nn.Embedding`.
    """
    return w[ids]


def linear(x: Array, w: Array, b: Array | None = None, rnd: Round = exact) -> Array:
    """x [T, n], w [m, n], b [m] -> [T, m]

    y = x w^T + b, rounded once, after the bias, as in torch. The weight is [out, in]. HF: `nn.Linear`.
    """
    y = x @ w.T
    if b is not None:
        y = y + b
    return rnd(y)


def rmsnorm(x: Array, w: Array, eps: float, rnd: Round = exact) -> Array:
    """x [T, D], w [D] -> [T, D]

    y = w * x / sqrt(mean(x^2) + eps). The normalised x is rounded *before* it is multiplied by the weight: the other
    order changes a quarter of all bfloat16 outputs. Zhang & Sennrich 2019, arXiv:1910.07467; HF: `Qwen2RMSNorm`.
    """
    mean_square = np.mean(x * x, axis=-1, keepdims=True)
    normalised = x * (1 / np.sqrt(mean_square + eps))
    return rnd(w * rnd(normalised))


def rope_frequencies(rope: Rope, E: int) -> Array:
    """-> [E/2]

    The radians per position of each pair of dimensions, theta^(-2i/E), in float32 in every precision. YaRN changes
    them: see `yarn_frequencies`.

    At position 131,071 the last bit of a frequency moves an angle by up to 8e-3 radians, so the spec fixes the bits.
    Libraries differ in the frequencies by up to 2 ulp. Here the exponent 2i/E is rounded to float32. The power is
    computed in float64 and rounded once, which gives the correctly rounded float32 power. The reciprocal is float32.
    """
    exponents = np.arange(0, E, 2, dtype=np.float32) / np.float32(E)
    periods = (rope.theta ** exponents.astype(np.float64)).astype(np.float32)  # the positions that turn a pair by 1
    return yarn_frequencies(rope, periods) if rope.type == "yarn" else 1 / periods


def yarn_frequencies(rope: Rope, periods: Array) -> Array:
    """periods [n] -> [n]

    The frequencies of YaRN, from the plain periods. Pairs that turn more than `beta_fast` times within the trained
    length keep their frequency. Pairs that turn less than `beta_slow` times are slowed by `factor`. A linear ramp joins
    the two. Peng et al. 2023, arXiv:2309.00071, section 3.2; HF: `_compute_yarn_parameters`.
    """
    n = len(periods)

    def pair_of(turns: float) -> float:
        """The pair that turns so many times within the trained length."""
        return n * math.log(rope.original_max_position_embeddings / (turns * 2 * math.pi)) / math.log(rope.theta)

    low, high = pair_of(rope.beta_fast), pair_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * n - 1)  # HF clips at E - 1, although there are only E/2 pairs
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(n, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = 1 - ramp
    slowed = 1 / (np.float32(rope.factor) * periods)
    blend: Array = slowed * (1 - keep) + 1 / periods * keep  # 1 - keep, not ramp: HF's rounding, to the bit
    return blend


def rope_tables(
    inv_freq: Array, scaling: float, positions: Array, dtype: Any, rnd: Round = exact
) -> tuple[Array, Array]:
    """inv_freq [E/2], positions [T] -> cos [T, E], sin [T, E]

    cos and sin of position * frequency, times YaRN's `attention_scaling`. Both halves of E are equal. The angle is
    computed in `dtype`: in float32 its error reaches 4e-3 radians at position 131,071.
    HF: `Qwen2RotaryEmbedding.forward`.
    """
    angles = positions.astype(dtype)[:, None] * inv_freq.astype(dtype)
    angles = np.concatenate([angles, angles], axis=-1)
    return rnd(np.cos(angles) * scaling), rnd(np.sin(angles) * scaling)


def rope(x: Array, cos: Array, sin: Array, rnd: Round = exact) -> Array:
    """x [T, N, E], cos [T, E], sin [T, E] -> [T, N, E]

    Rotate the pairs (i, i + E/2) of each head by the angles of its position. The pairs are halves, not neighbours.
    Su et al. 2021, arXiv:2104.09864; HF: `apply_rotary_pos_emb`.
    """
    first, second = np.split(x, 2, axis=-1)
    turned = np.concatenate([-second, first], axis=-1)
    return rnd(rnd(x * cos[:, None]) + rnd(turned * sin[:, None]))


def causal_mask(T: int, S: int, window: int | None = None) -> Array:
    """-> [T, S]

    True where a query may look: at its own position and at those before it. With a window, it sees the last `window`
    keys alone, its own included. The T queries are the last of the S positions.
    HF: `sliding_window_causal_mask_function`.
    """
    query = np.arange(S - T, S)[:, None]
    key = np.arange(S)[None, :]
    visible = key <= query
    if window is not None:
        visible = visible & (key > query - window)
    return visible


def softmax(x: Array) -> Array:
    """x [..., S] -> [..., S]

    exp(x - max x) / sum. The shift by the maximum keeps exp from overflowing and does not change the result.
    """
    e: Array = np.exp(x - np.max(x, axis=-1, keepdims=True))
    normalised: Array = e / np.sum(e, axis=-1, keepdims=True)
    return normalised


def attention_scores(q: Array, k: Array, visible: Array, rnd: Round = exact) -> Array:
    """q [T, H, E], k [S, K, E], visible [T, S] -> [H, T, S]

    q k^T / sqrt(E), and -inf where not visible. G = H / K neighbouring query heads share one key head: query head h
    reads key head h // G. Ainslie et al. 2023, arXiv:2305.13245; HF: `repeat_kv`.
    """
    (T, H, E), (S, K, _) = q.shape, k.shape
    q_KGTE = q.reshape(T, K, H // K, E).transpose(1, 2, 0, 3)
    k_K1ES = k.transpose(1, 2, 0)[:, None]
    scores_KGTS = rnd(rnd(q_KGTE @ k_K1ES) * E**-0.5)
    return np.where(visible, scores_KGTS, -np.inf).reshape(H, T, S)


def attention_heads(probs: Array, v: Array, rnd: Round = exact) -> Array:
    """probs [H, T, S], v [S, K, E] -> [T, H, E]

    The average of the values for each query head, weighted by its probabilities. Heads share values as they share keys.
    """
    (H, T, S), (_, K, E) = probs.shape, v.shape
    probs_KGTS = probs.reshape(K, H // K, T, S)
    v_K1SE = v.transpose(1, 0, 2)[:, None]
    heads_KGTE = rnd(probs_KGTS @ v_K1SE)
    return heads_KGTE.transpose(2, 0, 1, 3).reshape(T, H, E)


def attention(q: Array, k: Array, v: Array, visible: Array, rnd: Round = exact, tap: Tap = no_tap) -> Array:
    """q [T, H, E], k [S, K, E], v [S, K, E], visible [T, S] -> [T, H, E]

    softmax(q k^T / sqrt(E)) v. Taps "scores" and "probs", both [H, T, S].
    Vaswani et al. 2017, arXiv:1706.03762; HF: `eager_attention_forward`.
    """
    scores = attention_scores(q, k, visible, rnd)
    tap("scores", scores)
    probs = rnd(softmax(scores))
    tap("probs", probs)
    return attention_heads(probs, v, rnd)


def swiglu(gate: Array, up: Array, beta: float = 1.0, rnd: Round = exact) -> Array:
    """gate [T, F], up [T, F] -> [T, F]

    swish_beta(gate) * up, with swish_beta(x) = x * sigmoid(beta x); beta = 1 is SiLU, which the published model uses.
    Shazeer 2020, arXiv:2002.05202; HF: `Qwen2MLP`.
    """
    # The argument of exp is never positive. HF's 1 / (1 + exp(-x)) overflows below -88.7 and gives 0; this does not.
    scaled = beta * gate
    sigmoid = np.exp(np.minimum(scaled, 0)) / (1 + np.exp(-np.abs(scaled)))
    return rnd(rnd(gate * sigmoid) * up)
