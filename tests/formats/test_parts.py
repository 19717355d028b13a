"""Rows of quantised matrices: what they mean, and the same numbers in a wider format."""

import itertools

import ml_dtypes
import numpy as np
import pytest

from qwq_ref.core import FORMATS, Format
from qwq_ref.core.formats import exists
from qwq_ref.formats.gguf.blocks import NATIVE
from qwq_ref.formats.parts import Parts, common, dequantised, widened

KEPT = list(dict.fromkeys(NATIVE.values()))
KEPT += [Format(codes, group, "zero") for codes, group in (("u4", 128), ("u4", 16), ("u8", 64))]  # AWQ, GPTQ
KEPT += [Format(codes, group, "offset_bf16") for codes, group in (("u4", 64), ("u6", 32), ("u8", 128))]  # MLX


def rows_of(form, seed=0, n=3, K=512):
    rng = np.random.default_rng(seed)
    if not form.group:
        floats = rng.standard_normal((n, K)).astype(np.float32)
        return Parts(floats.astype(np.float16) if form.codes == "fp16" else floats)
    code = rng.integers(-128, 128, (n, K)).astype(np.int8)
    if form.codes != "q8":
        code = rng.integers(0, 2 ** int(form.codes[1]), (n, K)).astype(np.uint8)
    m, super_block = K // form.group, form.scales.startswith("super")
    halves = rng.standard_normal((2, n, K // 256 if super_block else m)).astype(np.float16)
    signed = form.scales == "super"
    subs = rng.integers(-32 if signed else 0, 32 if signed else 64, (2, n, m)).astype(np.int8 if signed else np.uint8)
    if form.scales == "zero":
        return Parts(code, halves[0], zero_point=rng.integers(0, 17, (n, m)).astype(np.uint8))
    if form.scales == "offset_bf16":
        return Parts(code, *(half.astype(ml_dtypes.bfloat16) for half in halves))
    return Parts(
        code,
        halves[0],
        halves[1] if form.scales in ("offset", "super_min") else None,
        subs[0] if super_block else None,
        subs[1] if form.scales == "super_min" else None,
    )


@pytest.mark.parametrize(("first", "second"), [*itertools.combinations_with_replacement(KEPT, 2)], ids=str)
def test_a_common_format_holds_both(first, second):
    to = common(first, second)
    assert exists(to)
    assert to == common(second, first)
    for form in (first, second):
        rows = rows_of(form)
        with np.errstate(all="ignore"):
            assert dequantised(to, widened(rows, form, to)).tobytes() == dequantised(form, rows).tobytes()


PAIRS = {
    ("Q4_0", "Q5_0"): Format("u5", 32, "plain", 16),
    ("Q4_0", "Q8_0"): Format("q8", 32, "plain"),
    ("Q4_1", "Q5_1"): Format("u5", 32, "offset"),
    ("Q4_K", "Q5_K"): Format("u5", 32, "super_min"),
    ("Q2_K", "Q5_K"): Format("u5", 16, "super_min"),
    ("Q3_K", "Q6_K"): Format("u6", 16, "super", 32),
    ("IQ4_XS", "Q6_K"): Format("q8", 16, "super"),
    ("Q4_K", "Q4_K"): Format("u4", 32, "super_min"),
    ("Q4_K", "Q6_K"): FORMATS["fp32"],
    ("F16", "BF16"): FORMATS["fp32"],
    ("F16", "Q8_0"): FORMATS["fp32"],
}


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_smallest_common_format_is_taken(pair):
    assert common(*(NATIVE[name] for name in pair)) == PAIRS[pair]
