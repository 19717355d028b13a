"""Test vectors of single operations: for somebody who has one kernel, and no model yet.

Each case has inputs that every precision holds exactly (or says which do), the outputs of the spec in float64, and how
far correct implementations in float32, bfloat16 and float16 are from those.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ... import __version__
from ...config import Rope
from ...errors import GoldenError, UsageError
from ...files import StrPath, read_json
from ...formats.safetensors import SafetensorsFile
from ...formats.write import write_atomically, write_safetensors
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
from ..graph import UNIT, loop_linear, loop_rmsnorm
from ..judge.compare import MARGIN
from ..judge.metrics import (
    Distance,
    distance,
    error,
    tidy_scores,
)
from .pack import (
    MANIFEST,
    as_golden_error,
    read_rounding,
    read_version,
)

FORMAT, VERSION = "qwq-vectors", (1, 0)
_MANIFEST_BYTES = 8 << 20
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One call of an operation. Arrays are inputs, the rest are attributes; `y` is the output.

    rounding  precision -> the largest relative error of a correct implementation; absent where the inputs do not fit
              in that precision
    """

    op: str
    name: str
    arrays: Mapping[str, Array]
    attributes: Mapping[str, Any]
    y: Array
    rounding: Mapping[str, float]


def _grid(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> Array:
    """Normal numbers that bfloat16 and float16 both hold."""
    return np.asarray(to_fp16(to_bf16(np.asarray(rng.standard_normal(shape) * scale, np.float32))))


# Operation -> (inputs, dtype, rnd) -> output, as the spec has it; ids, masks and attributes stay what they are.
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
# Other ways that are as right: a plain loop's sums, and a weight that meets the row before its norm does.
_OTHER_WAYS: dict[str, tuple[Callable[[Inputs, Round], Array], ...]] = {
    "linear": (lambda i, rnd: loop_linear(i["x"], i["w"], i.get("b"), rnd),),
    "rmsnorm": (
        lambda i, rnd: loop_rmsnorm(i["x"], i["w"], i["eps"], rnd),
        lambda i, rnd: rnd(i["w"] * i["x"] / np.sqrt(np.mean(i["x"] * i["x"], axis=-1, keepdims=True) + i["eps"])),
    ),
}
_ROUND: dict[str, Round] = {"fp32": exact, "bf16": to_bf16, "fp16": to_fp16}
_SUBNORMAL = {"fp32": 2.0**-149, "bf16": 2.0**-133, "fp16": 2.0**-24}  # the spacing below the normal numbers
_WHOLE = ("ids", "positions", "visible")  # inputs that are counts or bits, in every precision
_ALWAYS_FP32 = ("inv_freq",)


def cases() -> Iterator[Case]:
    """Every case of every operation, the same on every machine."""
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


def write_vectors(out: StrPath) -> int:
    """Write a folder with manifest.json and one safetensors file an operation -> how many cases. docs/pack.md has the
    format. Raises UsageError if the folder exists, or cannot be written; what is interrupted leaves nothing behind."""
    out = Path(out)
    if os.path.lexists(out):
        raise UsageError(out, None, "exists already; vectors are written to a new folder")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        unfinished.mkdir(parents=True)
    except OSError as problem:
        raise UsageError(out, None, f"cannot be written ({problem.strerror})") from None
    try:
        count = _write_vectors(unfinished)
        unfinished.rename(out)
    except BaseException as problem:
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(problem, OSError):
            raise UsageError(out, None, f"cannot be written ({problem.strerror})") from None
        raise
    return count


def _write_vectors(out: Path) -> int:
    tensors: dict[str, dict[str, Array]] = {}
    entries = []
    for case in cases():
        of_op = tensors.setdefault(case.op, {})
        for key, value in (*case.arrays.items(), ("y", case.y)):
            of_op[f"{case.name}/{key}"] = value.astype(np.float32)  # ids, positions and bits are small: exact
        entries.append(
            {
                "op": case.op,
                "case": case.name,
                "inputs": list(case.arrays),
                "attributes": dict(case.attributes),
                "rounding": dict(case.rounding),
            }
        )
    for op, arrays in tensors.items():
        write_safetensors(out / f"{op}.safetensors", arrays, "F32")
    version = ".".join(map(str, VERSION))
    manifest = {"format": FORMAT, "version": version, "made_by": f"qwq_ref {__version__}", "cases": entries}
    text = json.dumps(manifest, indent=1) + "\n"
    write_atomically(out / MANIFEST, lambda file: file.write(text.encode("utf-8")))
    return len(entries)


@dataclass(frozen=True)
class Outcome:
    """One case, held against somebody's result. `problem` is empty where it is right."""

    case: Case
    distance: Distance | None
    allowed: float
    problem: str


def check_op(op: str, function: Callable[..., Any], precision: str = "fp32") -> list[Outcome]:
    """Run somebody's operation over all its cases: `function(**inputs)`, by the names of the spec's arguments.

    Raises AssertionError, with one line for each case that is wrong; UsageError for an unknown operation or precision.
    """
    _check_precision(precision)
    if op not in _RUN:
        raise UsageError(None, "op", f"must be one of {', '.join(_RUN)}, got {op}")
    outcomes = [
        judge(case, function(**case.arrays, **case.attributes), precision)
        for case in cases()
        if case.op == op and precision in case.rounding
    ]
    wrong = [f"{op}, {o.case.name}: {o.problem}" for o in outcomes if o.problem]
    if wrong:
        raise AssertionError("\n".join(wrong))
    return outcomes


def _check_precision(precision: str) -> None:
    if precision not in UNIT:
        raise UsageError(None, "precision", f"must be one of {', '.join(UNIT)}, got {precision}")


def judge(case: Case, theirs: Any, precision: str) -> Outcome:
    """Hold a result against a case. Two results, cos and sin, may be given as a pair. Of hidden scores, whatever is at
    most -60,000 counts as -inf."""
    allowed = MARGIN * case.rounding[precision]
    parts = [np.asarray(part) for part in (theirs if isinstance(theirs, tuple) else (theirs,))]
    if any(part.dtype.kind not in "fiu" for part in parts):
        return Outcome(case, None, allowed, f"is of type {', '.join(str(part.dtype) for part in parts)}, not numbers")
    if len({part.shape for part in parts}) > 1:
        return Outcome(case, None, allowed, f"shapes {', '.join(str(list(part.shape)) for part in parts)}, in one pair")
    y = np.stack(parts) if isinstance(theirs, tuple) else parts[0]
    if y.shape != case.y.shape:
        return Outcome(case, None, allowed, f"shape {list(y.shape)}, not {list(case.y.shape)}")
    if np.isnan(y).any():
        return Outcome(case, None, allowed, f"NaN at {[int(i) for i in np.argwhere(np.isnan(y))[0]]}")
    if case.op == "attention_scores":
        y = tidy_scores(y, case.arrays["visible"] != 0, masked=True)
    far = distance(y, case.y)
    if far.error <= allowed:
        return Outcome(case, far, allowed, "")
    problem = (
        f"error {far.error:.3g}, allowed {allowed:.3g}; the largest difference is {far.max_abs:.3g} at {list(far.at)}"
    )
    return Outcome(case, far, allowed, problem)


def read_vectors(folder: StrPath) -> list[Case]:
    """The cases of a folder that `write_vectors` wrote, all arrays in float32. Raises GoldenError."""
    path = Path(folder) / MANIFEST
    values = read_json(path, _MANIFEST_BYTES, GoldenError)
    newer = read_version(values, path, FORMAT, VERSION) > VERSION
    entries = values.get("cases")
    if not isinstance(entries, list):
        raise GoldenError(path, "cases", f"must be a list, got {str(entries)[:60]}")
    read: dict[tuple[str, str], Case] = {}
    files: dict[str, SafetensorsFile] = {}
    try:
        for i, entry in enumerate(entries):
            op, name, inputs, rounding = _checked_entry(entry, path, f"cases[{i}]")
            if op not in _RUN and newer:
                continue
            if op not in _RUN:
                raise GoldenError(path, f"cases[{i}].op", f"{op[:40]} is no operation")
            if (op, name) in read:
                raise GoldenError(path, f"cases[{i}].case", f"{name} of {op} is there twice")
            if op not in files:
                with as_golden_error():
                    files[op] = SafetensorsFile(path.with_name(f"{op}.safetensors"))
            arrays = {key: _read_array(files[op], f"{name}/{key}") for key in (*inputs, "y")}
            y = arrays.pop("y")
            read[op, name] = Case(op, name, arrays, entry["attributes"], y, rounding)
    finally:
        for file in files.values():
            file.close()
    return list(read.values())


def _checked_entry(entry: Any, path: Path, field: str) -> tuple[str, str, list[str], dict[str, float]]:
    """-> op, case, names of the inputs, rounding by precision."""

    def error(key: str, wanted: str) -> GoldenError:
        return GoldenError(path, f"{field}.{key}", f"must be {wanted}, got {str(entry.get(key))[:60]}")

    if not isinstance(entry, dict):
        raise GoldenError(path, field, "must be an object")
    for key in ("op", "case"):
        if not isinstance(entry.get(key), str) or not _NAME.fullmatch(entry[key]):
            raise error(key, "letters, digits, - and _")
    inputs: Any = entry.get("inputs")
    attributes, rounding = entry.get("attributes"), entry.get("rounding")
    names = isinstance(inputs, list) and all(isinstance(name, str) and _NAME.fullmatch(name) for name in inputs)
    if not names or "y" in inputs or len(set(inputs)) < len(inputs):
        raise error("inputs", "a list of different names, not y")
    if not isinstance(attributes, dict) or not all(type(value) in (int, float) for value in attributes.values()):
        raise error("attributes", "an object of numbers")
    if not isinstance(rounding, dict) or None in rounding.values():
        raise error("rounding", "an object of numbers")
    known = {p: read_rounding(value, path, f"{field}.rounding.{p}") for p, value in rounding.items() if p in UNIT}
    return entry["op"], entry["case"], inputs, known


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def _read_array(file: SafetensorsFile, name: str) -> Array:
    tensor = file.tensors.get(name)
    if tensor is None or tensor.dtype != "F32":
        raise GoldenError(file.path, name, "is missing" if tensor is None else f"must be F32, is {tensor.dtype}")
    with as_golden_error():
        value = file.read(name)
    if np.isnan(value).any():
        raise GoldenError(file.path, name, "holds a NaN")
    return value


def is_vectors(folder: StrPath) -> bool:
    """Whether a folder says that it holds vectors, not a pack."""
    path = Path(folder, MANIFEST)
    return path.is_file() and read_json(path, _MANIFEST_BYTES, GoldenError).get("format") == FORMAT


def compare_vectors(folder: StrPath, theirs: StrPath, precision: str = "fp32") -> list[Outcome]:
    """Hold somebody's outputs against a folder of vectors: THEIRS/OP.safetensors with a tensor CASE (or CASE/y), or
    THEIRS/OP/CASE.npy. Cases that are not there are left out. Raises GoldenError; UsageError for a precision that is
    none."""
    from .npy import npy_file

    _check_precision(precision)
    outcomes = []
    theirs = Path(theirs)
    for case in read_vectors(folder):
        if precision not in case.rounding:
            continue
        array = theirs / case.op / f"{case.name}.npy"
        tensors = theirs / f"{case.op}.safetensors"
        if array.exists():
            outcomes.append(judge(case, npy_file(array).read(), precision))
        elif tensors.exists():
            with as_golden_error():
                file = SafetensorsFile(tensors)
                name = next((n for n in (f"{case.name}/y", case.name) if n in file.tensors), None)
                if name is not None:
                    outcomes.append(judge(case, file.read(name), precision))
                file.close()
    if not outcomes:
        raise GoldenError(theirs, None, f"holds no outputs: expected OP.safetensors or OP/CASE.npy, as in {folder}")
    return outcomes
