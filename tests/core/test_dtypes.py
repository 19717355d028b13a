"""Every pair of a dtype and a format: converted to the right values, or refused in one line."""

import re

import ml_dtypes
import numpy as np
import pytest

from qwq_ref import core
from qwq_ref.core import attention, dtypes, ops
from qwq_ref.core.layer import Layer, LayerWeights
from qwq_ref.numerics import quant

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
BF16 = ml_dtypes.bfloat16
VALUES = np.array([[1.0, -2.0, 0.5, 3.0] * 16, [-0.25, 0.0, 96.0, -1.5] * 16])  # exact in every float type
BITS = VALUES.astype(BF16).view(np.uint16)
FLOATS = {
    "float16": VALUES.astype(np.float16),
    "float32": VALUES.astype(np.float32),
    "float64": VALUES,
    "longdouble": VALUES.astype(np.longdouble),
    "bfloat16": VALUES.astype(BF16),
    "bits": BITS,
    "bits in the other order": BITS.astype(">u2"),
    "float16 in the other order": VALUES.astype(">f2"),
    "float32 in the other order": VALUES.astype(">f4"),
    "float64 in the other order": VALUES.astype(">f8"),
    "a view": np.repeat(VALUES, 2, axis=1).astype(np.float32)[:, ::2],
    "a transposed view": np.asfortranarray(VALUES.astype(BF16)),
    "read-only": np.frombuffer(VALUES.astype(np.float32).tobytes(), np.float32).reshape(VALUES.shape),
}
OTHERS = ["int8", "uint8", "int16", "int32", "uint32", "int64", "bool", "complex64", "object", "U8"]
OTHERS = {name: VALUES.astype(name) for name in OTHERS} | {"float8": VALUES.astype(ml_dtypes.float8_e4m3fn)}


def refused(call, name, words):
    with pytest.raises(core.CoreError, match=f"^{name}: {words}") as caught:
        call()
    assert "\n" not in str(caught.value)


def values_of(packed):
    """The floats of a packed weight, as its products have them."""
    return core.matmul(np.eye(packed.shape[1], dtype=np.float32), packed).T


@pytest.mark.parametrize("form", core.FORMATS)
@pytest.mark.parametrize("kind", FLOATS)
def test_floats_of_every_type_are_quantised_to_the_same_bits(form, kind):
    wanted = core.quantise(VALUES.astype(np.float32), form)
    got = core.quantise(FLOATS[kind], form)
    assert got.packed.tobytes() == wanted.packed.tobytes()
    assert np.allclose(values_of(got), VALUES, atol=4 if form == "q4" else 0.5 if form == "q8" else 0)


@pytest.mark.parametrize("form", core.FORMATS)
@pytest.mark.parametrize("kind", OTHERS)
def test_other_types_are_refused(form, kind):
    refused(lambda: core.quantise(OTHERS[kind], form), "w", r"must be floats, or bfloat16 as uint16 bits, got \w+$")


@pytest.mark.parametrize("name", ["quantise_q4", "quantise_q8"])
@pytest.mark.parametrize("kind", FLOATS)
def test_codes_and_scales_are_those_of_the_reference(name, kind):
    code, scale = getattr(core, name)(FLOATS[kind])
    wanted = getattr(quant, name)(VALUES.astype(np.float32))
    assert np.array_equal(code, wanted[0])
    assert np.array_equal(scale, wanted[1])
    for array in OTHERS.values():
        refused(lambda a=array: getattr(core, name)(a), "w", "must be floats")


@pytest.mark.parametrize(("form", "dtype"), [("bf16", BF16), ("fp16", np.float16)])
def test_narrow_formats_round_to_nearest(form, dtype):
    w = np.random.default_rng(0).normal(0, 1, (40, 70))
    got = core.unpack_rows(core.quantise(w, form), np.arange(40)).view(dtype)
    assert np.array_equal(got, w.astype(np.float32).astype(dtype))


@pytest.mark.parametrize(
    ("form", "dtype", "value", "words"),
    [
        ("fp16", np.float32, 65520.0, r"holds 65520 at \[1, 7\], beyond the range of float16"),
        ("fp16", BF16, -1e30, r"holds -1.*e\+30 at \[1, 7\], beyond the range of float16"),
        ("bf16", np.float32, 3.4e38, r"holds 3\.4e\+38 at \[1, 7\], beyond the range of bfloat16"),
        ("bf16", np.float64, 1e39, r"holds 1e\+39 at \[1, 7\], beyond the range of float32"),
        ("fp32", np.float64, -1e300, r"holds -1e\+300 at \[1, 7\], beyond the range of float32"),
        ("q8", np.float64, 1e300, r"holds 1e\+300 at \[1, 7\], beyond the range of float32"),
        ("q8", np.float32, 8.4e6, r"holds 8\.4e\+06 at \[1, 7\], which q8 does not hold"),
        ("q4", np.float32, -4.2e6, r"holds -4\.2e\+06 at \[1, 7\], which q4 does not hold"),
        ("q4", np.float16, np.nan, r"holds NaN at \[1, 7\], which q4 does not hold"),
        ("q8", BF16, -np.inf, r"holds infinity at \[1, 7\], which q8 does not hold"),
    ],
)
def test_a_number_that_a_format_does_not_hold_is_refused(form, dtype, value, words):
    w = VALUES.astype(dtype)
    w[1, 7] = value
    refused(lambda: core.quantise(w, form), "w", f"{words}$")
    if form in ("q4", "q8") and not np.isfinite(value):
        refused(lambda: getattr(core, f"quantise_{form}")(w), "w", words)


@pytest.mark.parametrize("form", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, BF16])
def test_formats_of_floats_hold_nan_and_infinity(form, dtype):
    w = VALUES.astype(dtype)
    w[0, :3] = np.nan, np.inf, -np.inf
    row = core.unpack_rows(core.quantise(w, form), np.array([0]))
    row = row.view(BF16) if form == "bf16" else row
    assert np.isnan(row[0, 0])
    assert row[0, 1:4].tolist() == [np.inf, -np.inf, 3.0]


def test_an_unknown_format_is_refused():
    refused(lambda: core.quantise(VALUES, "q5"), "format", "must be one of q4, q8, bf16, fp16, fp32, got q5")
    refused(lambda: core.pack(core.Format("q5"), VALUES), "format", r"Format\(codes='q5', .* does not exist")


# --- packing: no number is changed ----------------------------------------------------------------------------------

CODES = np.arange(2 * 64).reshape(2, 64)
SCALE = np.ones((2, 1), np.float16)


@pytest.mark.parametrize("codes", ["q4", "u4", "u5", "u6", "u8", "q8"])
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64", ">i4", "uint64"])
def test_codes_of_every_integer_type_are_packed_alike(codes, dtype):
    kind = core.CODES[codes]
    most = 127 if codes == "q8" else (1 << kind.bits) - 1
    code = CODES % (min(most, 127) + 1)
    wanted = core.pack(core.Format(codes), code.astype(kind.dtype), SCALE)
    assert core.pack(core.Format(codes), code.astype(dtype), SCALE).packed.tobytes() == wanted.packed.tobytes()


@pytest.mark.parametrize(
    ("codes", "dtype", "value", "words"),
    [
        ("q4", np.uint8, 16, "must be 0 to 15, got 16"),
        ("u4", np.uint8, 255, "must be 0 to 15, got 255"),
        ("u5", np.int64, 32, "must be 0 to 31, got 32"),
        ("u6", np.uint8, 64, "must be 0 to 63, got 64"),
        ("u6", np.int8, -1, "must be 0 to 63, got -1"),
        ("u8", np.int16, 256, "must be 0 to 255, got 256"),
        ("u8", np.int8, -1, "must be 0 to 255, got -1"),
        ("q8", np.int64, 128, "must be -128 to 127, got 128"),
        ("q8", np.int64, -129, "must be -128 to 127, got -129"),
        ("q8", np.uint8, 200, "must be -128 to 127, got 200"),
        ("q8", np.int64, 1 << 40, "must be -128 to 127, got 1099511627776"),
        ("q4", np.float32, 1, "must be integers, got float32"),
        ("q8", np.float64, 1.5, "must be integers, got float64"),
        ("u4", bool, True, "must be integers, got bool"),
        ("bf16", np.float32, 1, "must be integers, got float32"),
        ("bf16", np.float16, 1, "must be integers, got float16"),
        ("bf16", np.int64, 65536, "must be 0 to 65535, got 65536"),
        ("bf16", np.int16, -1, "must be 0 to 65535, got -1"),
        ("fp16", np.float32, 1, "must be float16 for fp16, got float32: `quantise` converts"),
        ("fp16", np.uint16, 1, "must be float16 for fp16, got uint16"),
        ("fp16", BF16, 1, "must be float16 for fp16, got bfloat16"),
        ("fp32", np.float64, 1, "must be float32 for fp32, got float64"),
        ("fp32", np.int32, 1, "must be float32 for fp32, got int32"),
        ("fp32", np.uint16, 1, "must be float32 for fp32, got uint16"),
    ],
)
def test_codes_that_would_change_are_refused(codes, dtype, value, words):
    code = np.zeros((2, 64), dtype)
    code[1, 3] = value
    form = core.Format(codes, 64 if core.CODES[codes].groups else 0)
    refused(lambda: core.pack(form, code, SCALE if form.group else None), "code", re.escape(words))


def test_bfloat16_is_packed_as_its_bits():
    wanted = core.pack(core.FORMATS["bf16"], BITS)
    for code in (VALUES.astype(BF16), BITS.astype(np.int64), BITS.astype(">u2")):
        assert core.pack(core.FORMATS["bf16"], code).packed.tobytes() == wanted.packed.tobytes()


@pytest.mark.parametrize(
    ("form", "arrays", "name", "words"),
    [
        (core.Format("u4"), {"scale": np.ones((2, 1), np.int64)}, "scale", "must be floats, got int64"),
        (core.Format("u4"), {"scale": np.ones((2, 1), np.uint16)}, "scale", "must be floats, got uint16"),
        (core.Format("u4"), {"scale": np.full((2, 1), 1e6)}, "scale", r"holds 1e\+06 at \[0, 0\], beyond the range of"),
        (core.Format("u4", 64, "offset"), {"offset": np.full((2, 1), -7e4)}, "offset", "holds -70000 at"),
        (core.Format("u4", 64, "zero"), {"zero_point": np.full((2, 1), 256)}, "zero_point", "must be 0 to 255, got 25"),
        (core.Format("u4", 64, "zero"), {"zero_point": np.full((2, 1), -1)}, "zero_point", "must be 0 to 255, got -1"),
        (core.Format("u4", 64, "zero"), {"zero_point": np.ones((2, 1))}, "zero_point", "must be integers, got float64"),
        (core.Format("u6", 64, "super"), {"sub_scale": np.full((2, 1), 128)}, "sub_scale", "must be -128 to 127, got"),
        (core.Format("u6", 64, "super_min"), {"sub_scale": np.full((2, 1), -1)}, "sub_scale", "must be 0 to 255, got"),
        (core.Format("u6", 64, "super_min"), {"sub_min": np.full((2, 1), 300)}, "sub_min", "must be 0 to 255, got 300"),
    ],
)  # fmt: skip
def test_scales_that_would_change_are_refused(form, arrays, name, words):
    given = {"scale": SCALE, "zero_point": np.zeros((2, 1), np.uint8), "offset": SCALE}
    given |= {"sub_scale": np.ones((2, 1), np.int8), "sub_min": np.ones((2, 1), np.uint8)}
    given = {key: value for key, value in given.items() if key in core.SCALES[form.scales].arrays} | arrays
    refused(lambda: core.pack(form, np.zeros((2, 64), np.uint8), **given), name, words)


def test_gate_and_up_of_two_types_are_refused():
    gate = np.ones((33, 5), np.uint16)
    refused(lambda: core.interleave(gate, np.ones((33, 5), np.float32)), "up", "must be uint16, as gate, got float32")
    refused(
        lambda: core.interleave(gate, np.ones((33, 1), np.uint16)), "up", r"must have shape \[33, 5\], got \[33, 1\]"
    )
    refused(
        lambda: core.unpack_rows(core.pack(core.FORMATS["fp32"], np.ones((3, 5), np.float32)), [0.0]),
        "rows",
        "must be integers",
    )


# --- activations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint16", "int32", "bool", "complex64", "object"])
def test_operations_take_floats_alone(dtype):
    good = np.ones((2, 64), np.float32)
    x = good.astype(dtype)
    weight = core.quantise(good, "q8")
    kv = attention.empty_kv("int8", 2, 1, 64)
    for name, call in {
        "x": [
            lambda: core.matmul(x, weight),
            lambda: core.quantise_activations(x),
            lambda: ops.exp(x[0]),
            lambda: ops.rmsnorm(x, good[0], 1e-5),
            lambda: ops.softmax(x),
            lambda: ops.argmax(x[0]),
            lambda: ops.top_k(x[0], 2),
        ],
        "w": [lambda: ops.rmsnorm(good, x[0], 1e-5)],
        "norm": [lambda: core.matmul(good, weight, norm=x[0])],
        "gate": [lambda: ops.swiglu(x, good)],
        "k": [lambda: attention.append(kv, x[:, None], good[:, None], 0)],
        "v": [lambda: attention.append(kv, good[:, None], x[:, None], 0)],
        "q": [lambda: attention.attention_int8(x[:, None], kv, 0)],
    }.items():
        for one in call:
            refused(one, name, f"must be floats, got {dtype}$")


@pytest.mark.parametrize("dtype", [np.float16, np.float64, BF16, ">f4", ">f8"])
def test_operations_convert_floats(dtype):
    x = np.random.default_rng(0).normal(0, 1, (3, 64)).astype(np.float16)
    weight = core.quantise(x, "fp32")
    wanted = x.astype(np.float32) if dtype != BF16 else x.astype(BF16).astype(np.float32)
    assert np.array_equal(core.matmul(x.astype(dtype), weight), core.matmul(wanted, weight))
    assert np.array_equal(ops.softmax(x.astype(dtype)), ops.softmax(wanted))


def test_a_layer_takes_its_machines_order_of_bytes():
    D, E = 64, 32
    one = core.quantise(np.ones((96, D), np.float32), "fp32")
    square = core.quantise(np.ones((D, 32), np.float32), "fp32")
    gate_up = core.quantise(np.ones((64, D), np.float32), "fp32")
    norm = np.ones(D, ">f4")
    weights = LayerWeights(norm, one, np.ones(96, np.float32), square, norm, gate_up, square)
    refused(lambda: Layer(weights, attention.empty_kv("fp32", 4, 1, E), 1, 1e-5), "input_norm", "must be float32")


def test_integers_are_checked_in_every_type():
    assert dtypes.integers("x", [[1, 2]], np.uint8).dtype == np.uint8
    assert dtypes.integers("x", np.empty((0, 3), np.int64), np.uint8).shape == (0, 3)
