"""The cases of the test vectors: inputs of every operation, and the spec's outputs in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...config import Rope
from ...spec import (
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
from ...spec.ops import (
    Array,
    Round,
    attention_heads,
    attention_scores,
    exact,
    to_bf16,
    to_fp16,
)
from ..distance import error
from ..graph import UNIT, loop_linear, loop_rmsnorm

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    arrays      the inputs
    attributes  the numbers among the arguments, such as eps
    y           the output
    rounding    precision -> the largest relative error of a correct implementation; a precision that cannot hold the
                inputs is left out
    """

    op: str
    name: str
    arrays: Mapping[str, Array]
    attributes: Mapping[str, Any]
    y: Array
    rounding: Mapping[str, float]


def _grid(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    """Return normally distributed numbers that bfloat16 and float16 both hold exactly."""
    return np.asarray(to_fp16(to_bf16(np.asarray(rng.standard_normal(shape) * scale, np.float32))))


# Operation -> the spec's function: (inputs, rnd) -> output.
_RUN: dict[str, Callable[[Inputs, Round], Array]] = {
    "embed": lambda i, rnd: embed(i["ids"], i["w"]),
    "linear": lambda i, rnd: linear(i["x"], i["w"], i.get("b"), rnd),
    "rmsnorm": lambda i, rnd: rmsnorm(i["x"], i["w"], i["eps"], rnd),
    "rope": lambda i, rnd: rope(i["x"], i["cos"], i["sin"], rnd),
    "rope_tables": lambda i, rnd: np.stack(
        rope_tables(i["inv_freq"], i["scaling"], i["positions"], i["inv_freq"].dtype, rnd)
    ),
    "softmax": lambda i, rnd: rnd(softmax(i["x"])),
    "attention_scores": lambda i, rnd: attention_scores(i["q"], i["k"], i["visible"], rnd),
    "attention_heads": lambda i, rnd: attention_heads(i["probs"], i["v"], rnd),
    "attention": lambda i, rnd: attention(i["q"], i["k"], i["v"], i["visible"], rnd),
    "swiglu": lambda i, rnd: swiglu(i["gate"], i["up"], rnd=rnd),
}
# Other correct orders: a plain loop's sums, and a weight that multiplies the row before the root divides it.
_OTHER_WAYS: dict[str, tuple[Callable[[Inputs, Round], Array], ...]] = {
    "linear": (lambda i, rnd: loop_linear(i["x"], i["w"], i.get("b"), rnd),),
    "rmsnorm": (
        lambda i, rnd: loop_rmsnorm(i["x"], i["w"], i["eps"], rnd),
        lambda i, rnd: rnd(i["w"] * i["x"] / np.sqrt(np.mean(i["x"] * i["x"], axis=-1, keepdims=True) + i["eps"])),
    ),
}
OPERATIONS = tuple(_RUN)
_ROUND: dict[str, Round] = {"fp32": exact, "bf16": to_bf16, "fp16": to_fp16}
_SUBNORMAL = {"fp32": 2.0**-149, "bf16": 2.0**-133, "fp16": 2.0**-24}  # the spacing of subnormal numbers
_WHOLE = ("ids", "positions", "visible")  # integers and masks, which no precision changes
_ALWAYS_FP32 = ("inv_freq",)


def cases() -> Iterator[Case]:
    """Yield every case of every operation. The cases are identical on every machine."""
    for op, name, inputs in _all_inputs():
        yield _measured(op, name, inputs)


def _all_inputs() -> Iterator[tuple[str, str, Inputs]]:
    rng = np.random.default_rng(20)
    w = _grid(rng, 53, 24)
    yield "embed", "first-last-repeated", {"ids": np.array([0, 52, 7, 7]), "w": w}

    x, w, b = _grid(rng, 5, 37), _grid(rng, 29, 37, scale=0.2), _grid(rng, 29, scale=0.3)
    yield "linear", "bias", {"x": x, "w": w, "b": b}
    yield "linear", "no-bias", {"x": x, "w": w}
    yield "linear", "one-row", {"x": x[:1], "w": w}
    yield "linear", "long-sum", {"x": _grid(rng, 3, 5120), "w": _grid(rng, 7, 5120, scale=1 / 64)}
    yield (
        "linear",
        "cancels",
        {"x": np.concatenate([x, -x], axis=1), "w": np.concatenate([w, w + to_fp16(w / 64)], axis=1)},
    )
    yield "linear", "small-integers", {"x": np.round(4 * x), "w": np.round(8 * w)}
    yield "linear", "channel-x-4096", {"x": x * np.where(np.arange(37) == 3, 4096, 1).astype(np.float32), "w": w}

    x, w = _grid(rng, 4, 40), to_bf16(1 + _grid(rng, 40, scale=0.25))
    outlier = np.where(np.arange(40) == 11, 1024, 1).astype(np.float32)
    for name, given, eps in (
        ("usual", x, 1e-5),
        ("one-row", x[:1], 1e-5),
        ("channel-x-1024", x * outlier, 1e-5),
        ("near-eps", to_bf16(x * np.float32(2**-8)), 1e-5),
        ("zero-row", x * np.array([[1], [0], [1], [0]], np.float32), 1e-5),
        ("eps-1e-6", to_bf16(x * np.float32(2**-10)), 1e-6),
        ("subnormal", x * np.float32(2.0**-133), 1e-5),
        ("1e18", x * np.float32(2.0**60), 1e-5),
    ):
        yield "rmsnorm", name, {"x": given, "w": w, "eps": eps}
    yield "rmsnorm", "negative-weights", {"x": x, "w": -w, "eps": 1e-5}

    plain, long = Rope(1e6), Rope(1e6, "yarn", 4.0, 32768)
    for name, positions in (
        ("from-0", np.arange(7)),
        ("from-32765", np.arange(32_765, 32_772)),
        ("at-131071", np.array([131_071])),
    ):
        for kind, how in (("", plain), ("-yarn", long)):
            inv_freq = rope_frequencies(how, 128)
            yield (
                "rope_tables",
                name + kind,
                {"inv_freq": inv_freq, "scaling": how.attention_scaling, "positions": positions},
            )
    cos, sin = (to_fp16(to_bf16(t)) for t in rope_tables(rope_frequencies(plain, 16), 1.0, np.arange(5), np.float32))
    yield "rope", "three-heads", {"x": _grid(rng, 5, 3, 16), "cos": cos, "sin": sin}
    yield "rope", "one-token", {"x": _grid(rng, 1, 3, 16), "cos": cos[:1], "sin": sin[:1]}
    yield "rope", "first-half", {"x": _grid(rng, 5, 3, 16) * (np.arange(16) < 8), "cos": cos, "sin": sin}

    x = _grid(rng, 6, 50, scale=3)
    infinite = np.where(np.arange(50) > np.arange(6)[:, None] * 9, -np.inf, x).astype(np.float32)
    yield "softmax", "usual", {"x": x}
    yield "softmax", "masked", {"x": infinite}
    yield "softmax", "all-equal", {"x": np.full((2, 7), 3, np.float32)}
    yield "softmax", "one-takes-all", {"x": x + np.where(np.arange(50) == 5, 512, 0).astype(np.float32)}
    yield "softmax", "far-below-zero", {"x": to_bf16(x - 4096)}
    yield "softmax", "one-key", {"x": x[:, :1]}

    q, k, v = _grid(rng, 6, 10, 8), _grid(rng, 9, 2, 8), _grid(rng, 9, 2, 8)
    biased = to_bf16(k + np.where(np.arange(8) == 1, 40, 0).astype(np.float32))
    masks = {
        "gqa-cached": causal_mask(6, 9),
        "window-3": causal_mask(6, 9, 3),
    }
    for name, visible in masks.items():
        yield "attention_scores", name, {"q": q, "k": k, "visible": visible}
        yield "attention", name, {"q": q, "k": k, "v": v, "visible": visible}
    yield "attention", "decode", {"q": q[:1], "k": k, "v": v, "visible": causal_mask(1, 9)}
    yield "attention", "key-bias-40", {"q": q, "k": biased, "v": v, "visible": causal_mask(6, 9)}
    yield "attention", "mha", {"q": q[:, :2], "k": k, "v": v, "visible": causal_mask(6, 9)}
    yield "attention", "mqa", {"q": q, "k": k[:, :1], "v": v[:, :1], "visible": causal_mask(6, 9)}
    sink = np.where(np.arange(9)[:, None, None] == 0, 4, 1) * k
    yield (
        "attention",
        "sink",
        {"q": np.abs(q), "k": np.abs(sink).astype(np.float32), "v": v, "visible": causal_mask(6, 9)},
    )
    probs = to_fp16(to_bf16(softmax(_grid(rng, 10, 6, 9).astype(np.float64))))
    yield "attention_heads", "gqa", {"probs": probs, "v": v}

    gate, up = _grid(rng, 3, 44, scale=2), _grid(rng, 3, 44)
    yield "swiglu", "usual", {"gate": gate, "up": up}
    yield (
        "swiglu",
        "sweep",
        {"gate": np.linspace(-100, 100, 201, dtype=np.float32)[None], "up": np.ones((1, 201), np.float32)},
    )
    yield (
        "swiglu",
        "signed-zeros",
        {"gate": np.array([[0.0, -0.0, 1, -1]], np.float32), "up": np.array([[-1.0, 1, -0.0, 0]], np.float32)},
    )


def _measured(op: str, name: str, inputs: Inputs) -> Case:
    arrays = {key: np.asarray(value) for key, value in inputs.items() if isinstance(value, np.ndarray)}
    attributes = {key: value for key, value in inputs.items() if key not in arrays}

    def run(function: Callable[[Inputs, Round], Array], dtype: Any, rnd: Round) -> Array:
        typed = {key: value if key in _WHOLE else np.asarray(value, dtype) for key, value in arrays.items()}
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            return function(typed | attributes, rnd)

    y = run(_RUN[op], np.float64, exact)
    rounding = {}
    for precision, rnd in _ROUND.items():
        moved = [key for key in arrays if key not in (*_WHOLE, *_ALWAYS_FP32) and not _holds(arrays[key], rnd)]
        if moved:
            continue
        ways = [run(_RUN[op], np.float32, rnd), rnd(run(_RUN[op], np.float32, exact))]
        ways += [run(way, np.float32, rnd) for way in _OTHER_WAYS.get(op, ())]
        worst = max(error(way, y) for way in ways)
        if math.isfinite(worst):
            norm = float(np.linalg.norm(y[np.isfinite(y)]))
            smallest = _SUBNORMAL[precision] / 2 * math.sqrt(y.size) / norm if norm else 0.0
            rounding[precision] = float(f"{max(UNIT[precision], worst, smallest):.4g}")
    return Case(op, name, arrays, attributes, y.astype(np.float32), rounding)


def _holds(x: Array, rnd: Round) -> bool:
    return bool(np.array_equal(rnd(np.asarray(x, np.float32)), x))
