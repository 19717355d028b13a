"""The C core: every variant gives the bits of spec.quant, whatever instructions, threads and batch."""

import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwq_ref import core
from qwq_ref.numerics import fixed, quant

if not core.available():
    assert shutil.which("cc") is None, "there is a compiler, and yet the core was not built: pip install -e . again"
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
ISAS = core.isas()
THREADS = (1, 2, 3, 8)

# What breaks quantisation: zeros of both signs, subnormals, ties, sizes at both ends, one huge outlier.
numbers = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 2.0**-101, 1e30, -1e30, 0.5, 63.5, -127.0, 1 / 3]).map(
        lambda x: float(np.float32(x))
    ),
)


FORMATS = [
    *(core.FORMATS[name] for name in ("q4", "q8", "bf16", "fp16", "fp32")),
    *(core.Format("q8", group) for group in (16, 32, 128)),  # 32: GGUF's Q8_0
    *(core.Format("u4", group, "zero") for group in (32, 64, 128)),  # 128: AWQ, GPTQ
    core.Format("u4", 32, "plain", zero_point=8),  # Q4_0
    core.Format("u4", 32, "offset"),  # Q4_1
    *(core.Format(codes, 64, "offset_bf16") for codes in ("u4", "u6")),  # MLX
    core.Format("u4", 128, "offset_bf16"),
    core.Format("u4", 32, "super_min"),  # Q4_K
    core.Format("u5", 32, "plain", zero_point=16),  # Q5_0
    core.Format("u5", 32, "offset"),  # Q5_1
    core.Format("u5", 32, "super_min"),  # Q5_K
    core.Format("u6", 16, "super", zero_point=32),  # Q6_K
    core.Format("u4", 16, "super_min"),  # Q2_K
    core.Format("u4", 16, "super", zero_point=4),  # Q3_K
    core.Format("q8", 32, "super"),  # IQ4_XS
    core.Format("q8", 64, "super"),
    core.Format("u6", 128, "zero"),
    core.Format("u8", 32, "plain", zero_point=128),
    core.Format("u8", 64, "plain", zero_point=255),
    *(core.Format("u8", group, "zero") for group in (16, 32, 64, 128)),  # GPTQ
    core.Format("u8", 64, "offset"),  # MLX
    core.Format("u8", 32, "super", zero_point=130),
    core.Format("u8", 64, "super", zero_point=1),
    core.Format("u8", 16, "super_min"),
    core.Format("u8", 64, "super_min"),
]


Q4, U4 = core.FORMATS["q4"], core.Format("u4", 64, "zero")
CODES = np.zeros((3, 64), np.uint8)


def name_of(form):
    return f"{form.codes}-{form.group}-{form.scales}"


def random_weight(rng, form, n, k, largest=False):
    """A weight packed, and what it means: its levels, scale and offset, or the floats; zero to whole groups of 64.

    largest: every code is, and no zero is taken off it.
    """
    if not form.group:
        w = rng.standard_normal((n, k)).astype(np.float32)
        if form.codes == "bf16":
            bits = w.view(np.uint32) >> 16
            return core.pack(form, bits.astype(np.uint16)), (bits << 16).astype(np.uint32).view(np.float32)
        w = w.astype(np.float16) if form.codes == "fp16" else w
        return core.pack(form, w), w
    m, blocks = -(-k // form.group), -(-k // 256)
    parts = {"scale": rng.choice([0.0, 6e-8, 1e-4, 0.01, -1.0, 60_000.0], (n, m)).astype(np.float16)}
    if form.codes == "q8":
        code = rng.integers(-128, 128, (n, k)).astype(np.int8)
        code[rng.random(code.shape) < (1 if largest else 0.2)] = rng.choice([-128, 127])
        levels = code
    else:
        code = rng.integers(0, 2 ** int(form.codes[1]), (n, k), dtype=np.uint8)
        most = 2 ** int(form.codes[1]) - 1
        code[rng.random(code.shape) < (1 if largest else 0.2)] = most if largest else rng.choice([0, most])
        levels = quant.CODEBOOK[code] if form.codes == "q4" else code.astype(np.int32) - form.zero_point
    offset = None
    if form.scales == "zero":
        most_zero = 255 if form.codes == "u8" else 16
        parts["zero_point"] = rng.integers(0, 1 if largest else most_zero + 1, (n, m), dtype=np.uint8)
        levels = quant.levels(padded(code, m * form.group), parts["zero_point"])[:, :k]
    if form.scales.startswith("offset"):
        half = ml_dtypes.bfloat16 if form.scales == "offset_bf16" else np.float16
        parts["scale"] = parts["scale"].astype(half)
        offset = parts["offset"] = rng.standard_normal((n, m)).astype(half)
    scale = parts["scale"].astype(np.float32)
    if form.scales.startswith("super"):
        parts["scale"] = rng.standard_normal((n, blocks)).astype(np.float16)
        signed = form.scales == "super"
        parts["sub_scale"] = rng.integers(-128 if signed else 0, 128 if signed else 64, (n, m)).astype(np.int8)
        scale = quant.super_scale(parts["scale"], padded(parts["sub_scale"], blocks * 256 // form.group))[:, :m]
    if form.scales == "super_min":
        parts["sub_scale"] = parts["sub_scale"].astype(np.uint8)
        parts["offset"] = rng.standard_normal((n, blocks)).astype(np.float16)
        parts["sub_min"] = rng.integers(0, 64, (n, m)).astype(np.uint8)
        offset = -quant.super_scale(parts["offset"], padded(parts["sub_min"], blocks * 256 // form.group))[:, :m]
    return core.pack(form, code, **parts), (levels, scale, offset)


def padded(x, columns):
    return np.pad(x, ((0, 0), (0, columns - x.shape[1])))


def meaning(x, form, weight):
    """What the spec makes of it, in bits."""
    k = -(-x.shape[1] // 64) * 64
    x = padded(x, k)
    if not form.group:
        return quant.matmul_floats(x, padded(weight, k)).view(np.uint32)
    levels, scale, offset = weight
    m = -(-k // form.group)
    k = m * form.group
    x, levels, scale = padded(x, k), padded(levels, k), padded(scale, m)
    return quant.matmul_integers(x, levels, scale, offset if offset is None else padded(offset, m)).view(np.uint32)


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 7), st.just(192)), elements=numbers))
def test_activations_are_quantised_as_in_the_spec(x):
    q, ratio, scale = quant.quantise_activations(x)
    assert np.abs(q.astype(int)).max() <= 127
    for isa in ISAS:
        ours, step, our_scale = core.quantise_activations(x, isa)
        assert np.array_equal(ours, q)
        assert np.array_equal(quant.RATIOS[step], ratio)
        assert np.array_equal(our_scale.view(np.uint32), scale.view(np.uint32))


def test_a_ratio_that_is_met_is_taken():
    """The smallest ratio at which a group's magnitudes are within 127, and not the next larger one."""
    largest = np.concatenate([quant.RATIOS, np.nextafter(quant.RATIOS[1:], np.float32(2)), [1e-9, 0]])
    x = np.zeros((1, 64 * len(largest)), np.float32)
    x[0, ::64] = largest
    for isa in ISAS:
        _, step, _ = core.quantise_activations(x, isa)
        assert step[0].tolist() == [*range(64), *range(63), 63, 63]


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_comes_through(odd):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 192)).astype(np.float32)
    x[3, 100] = odd
    packed, _ = random_weight(rng, Q4, 40, 192)
    with np.errstate(invalid="ignore"):
        assert np.isnan(quant.quantise_activations(x)[2]).ravel().tolist() == [t == 3 for t in range(8)]
    for isa in ISAS:
        assert np.isnan(core.matmul(x, packed, isa=isa)).any(axis=1).tolist() == [t == 3 for t in range(8)]


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(128)), elements=numbers))
def test_weights_are_quantised_as_in_the_spec(w):
    code, scale = quant.quantise_q4(w)
    for isa in ISAS:
        ours, our_scale = core.quantise_q4(w, isa, threads=2)
        assert np.array_equal(our_scale.view(np.uint16), scale.view(np.uint16)), isa
        assert np.array_equal(ours, code), isa


@pytest.mark.parametrize(("heavy", "most"), [(False, 0.083), (True, 0.102)])
def test_how_near_q4_comes_to_weights(heavy, most):
    """Relative RMS error; Q4_0 has 0.086 on normal weights, and 0.104 on heavy-tailed ones, with more bits."""
    rng = np.random.default_rng(0)
    w = (rng.standard_t(5, (64, 4096)) if heavy else rng.standard_normal((64, 4096))).astype(np.float32)
    code, scale = core.quantise_q4(w)
    error = np.linalg.norm(quant.dequantise(quant.CODEBOOK[code], scale) - w) / np.linalg.norm(w)
    assert 0.07 < error < most


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(128)), elements=numbers))
def test_q8_weights_are_quantised_as_in_the_spec(w):
    q, scale = quant.quantise_q8(w)
    for isa in ISAS:
        ours, our_scale = core.quantise_q8(w, isa, threads=2)
        assert np.array_equal(our_scale.view(np.uint16), scale.view(np.uint16)), isa
        assert np.array_equal(ours, q), isa
    step = np.repeat(scale.astype(np.float64), quant.GROUP, axis=1)
    held = step * 127 * (1 - 1e-3) >= np.abs(w)  # what float16's range does not cut
    assert (np.abs(q * step - w)[held] <= (step / 2 * (1 + 1e-4))[held]).all()


def test_how_near_q8_comes_to_weights():
    w = np.random.default_rng(0).standard_normal((64, 4096)).astype(np.float32)
    error = np.sum((quant.dequantise(*core.quantise_q8(w)) - w) ** 2) / np.sum(w**2)
    assert 1e-5 < error <= 6e-5


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
@given(st.integers(1, 20), st.integers(1, 70), st.integers(1, 20), st.integers(0, 2**32 - 1))
@settings(max_examples=settings.default.max_examples // 4)  # for each of 33 formats
def test_matmul_is_the_spec_to_the_bit(form, T, N, sixteens, seed):
    rng = np.random.default_rng(seed)
    K = sixteens * (32 if form.group != 16 else 16)
    x = (rng.standard_normal((T, K)) * rng.choice([1, 1e3], (T, 1))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    packed, weight = random_weight(rng, form, N, K)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = meaning(x, form, weight)
    for isa in ISAS:
        got = core.matmul(x, packed, isa=isa, threads=int(rng.choice(THREADS)))
        assert np.array_equal(got.view(np.uint32), wanted), isa


@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_sums_hold_the_largest_numbers(form):
    """All codes and activations at their largest, of either sign: nothing saturates on the way."""
    rng = np.random.default_rng(0)
    packed, weight = random_weight(rng, form, 33, 256, largest=True)
    x = np.repeat(np.float32([[1], [-1]]), 256, axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        wanted = meaning(x, form, weight)
    for isa in ISAS:
        for T in (1, 7, 20):
            got = core.matmul(np.resize(x, (T, 256)), packed, isa=isa).view(np.uint32)
            assert np.array_equal(got, np.resize(wanted, (T, 33))), (isa, T)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("group", [16, 32, 64, 128])
def test_the_smallest_code_and_the_largest_zero_point(group, sign):
    """q8 holds -128, and u8 every code beside every zero point: of either sign, no sum saturates."""
    x = np.full((7, 256), sign, np.float32)
    scale = np.ones((33, 256 // group), np.float16)
    lowest = np.full((33, 256), -128, np.int8)
    zeros = np.full(scale.shape, 255, np.uint8)
    for isa in ISAS:
        for T in (1, 7):
            q8 = core.matmul(x[:T], core.pack(core.Format("q8", group), lowest, scale), isa=isa)
            assert np.all(q8 == sign * -128 * 256)
            u8 = core.pack(core.Format("u8", group, "zero"), lowest.view(np.uint8) * 0, scale, zero_point=zeros)
            assert np.all(core.matmul(x[:T], u8, isa=isa) == sign * -255 * 256)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMATS, ids=name_of)
def test_threads_and_batches_do_not_matter(form, isa):
    rng = np.random.default_rng(0)
    packed, _ = random_weight(rng, form, 100, 1088 if isa != "scalar" else 320)
    x = rng.standard_normal((65, packed.shape[1])).astype(np.float32)
    whole = core.matmul(x, packed, isa=isa)
    for threads in THREADS:
        assert np.array_equal(core.matmul(x, packed, isa=isa, threads=threads), whole, equal_nan=True)
    for size in (1, 2, 3, 4, 5, 7, 31, 33, 63):
        parts = [core.matmul(x[i : i + size], packed, isa=isa, threads=2) for i in range(0, len(x), size)]
        assert np.array_equal(np.concatenate(parts), whole, equal_nan=True)


@pytest.mark.parametrize("isa", ISAS[1:])
def test_many_tokens_are_taken_in_blocks(isa):
    """More tokens than a panel's results are kept for, and a number that leaves each kind of last tile."""
    rng = np.random.default_rng(0)
    packed, _ = random_weight(rng, core.FORMATS["q4"], 40, 128)
    x = rng.standard_normal((1100, 128)).astype(np.float32)
    one = np.concatenate([core.matmul(row[None], packed, isa=isa) for row in x])
    for T in (516, 517, 518, 521, 1100):
        assert np.array_equal(core.matmul(x[:T], packed, isa=isa, threads=2), one[:T])


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_fused(isa):
    rng = np.random.default_rng(0)
    packed, _ = random_weight(rng, core.FORMATS["q8"], 50, 128)
    x, bias, residual = (rng.standard_normal(shape).astype(np.float32) for shape in ((9, 128), 50, (9, 50)))
    plain = core.matmul(x, packed, isa=isa)
    assert np.array_equal(core.matmul(x, packed, bias=bias, isa=isa), plain + bias)
    assert np.array_equal(core.matmul(x, packed, bias=bias, residual=residual, isa=isa), residual + (plain + bias))
    into = residual.copy()
    assert core.matmul(x, packed, residual=into, out=into, isa=isa) is into
    assert np.array_equal(into, residual + plain)
    norm = rng.standard_normal(128).astype(np.float32)
    normed = core.matmul(fixed.rmsnorm(x, norm, 1e-6), packed, isa=isa)
    for threads in THREADS:
        assert np.array_equal(core.matmul(x, packed, norm=norm, eps=1e-6, isa=isa, threads=threads), normed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["q4", "fp32"])
@pytest.mark.parametrize(("T", "F"), [(1, 70), (7, 64), (30, 200)])
def test_gate_and_up_together(isa, form, T, F):
    rng = np.random.default_rng(0)
    x, gate, up = (rng.standard_normal(shape).astype(np.float32) for shape in ((T, 128), (F, 128), (F, 128)))
    both = core.quantise(core.interleave(gate, up), form)
    apart = [core.matmul(x, core.quantise(w, form), isa=isa) for w in (gate, up)]
    for threads in THREADS:
        got = core.matmul(x, both, swiglu=True, isa=isa, threads=threads)
        assert np.array_equal(got[:, :F], fixed.swiglu(*apart))
        assert not got[:, F:].any()


@pytest.mark.parametrize("form", [f for f in FORMATS if not f.group], ids=name_of)
def test_floats_are_multiplied_within_their_bound(form):
    """Exact on small integers; else within gamma_n |x||w| of float64, and NMSE <= 1e-12."""
    rng = np.random.default_rng(0)
    w = rng.integers(-8, 9, (40, 320)).astype(np.float32)
    x = rng.integers(-8, 9, (7, 320)).astype(np.float32)
    bits = {"bf16": (w.view(np.uint32) >> 16).astype(np.uint16), "fp16": w.astype(np.float16), "fp32": w}[form.codes]
    assert np.array_equal(core.matmul(x, core.pack(form, bits)), x @ w.T)
    packed, w = random_weight(rng, form, 40, 27_648)
    x = rng.standard_normal((7, 27_648)).astype(np.float32)
    true = x.astype(np.float64) @ w.astype(np.float64).T
    error = core.matmul(x, packed) - true
    n, u = x.shape[1], 2.0**-24
    assert (
        np.abs(error) <= n * u / (1 - n * u) * (np.abs(x).astype(np.float64) @ np.abs(w).astype(np.float64).T)
    ).all()
    assert np.sum(error**2) <= 1e-12 * np.sum(true**2)


def test_what_it_computes_is_near_the_product():
    """Against float64 and the true weights: what int8 activations cost, and no more."""
    rng = np.random.default_rng(1)
    code = rng.integers(0, 16, (64, 512), dtype=np.uint8)
    scale = np.full((64, 8), 0.01, np.float16)
    x = rng.standard_normal((16, 512)).astype(np.float32)
    true = x.astype(np.float64) @ quant.dequantise(quant.CODEBOOK[code], scale).astype(np.float64).T
    error = np.sum((core.matmul(x, core.pack(core.FORMATS["q4"], code, scale)) - true) ** 2) / np.sum(true**2)
    assert 1e-6 < error < 1e-4


def test_outlying_channels_do_not_drown_the_others():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 5120))
    x[:, rng.choice(5120, 4, replace=False)] *= 60
    q, step, scale = core.quantise_activations(x.astype(np.float32))
    scales = np.repeat((quant.RATIOS[step] * scale).astype(np.float64), quant.GROUP, axis=1)
    error = np.sum((q * scales - x) ** 2) / np.sum(x**2)
    assert error <= 3e-4


def test_the_core_knows_the_specs_group():
    assert core.lib.QWQ_GROUP == quant.GROUP


def test_an_instruction_set_is_forced_and_what_cannot_run_is_refused():
    assert core.chosen_isa() == ISAS[-1]
    assert core.chosen_isa("scalar") == "scalar"
    with pytest.raises(core.CoreError, match="isa: altivec cannot run here; scalar"):
        core.chosen_isa("altivec")
    script = "from qwq_ref import core; print(core.chosen_isa())"
    for isa in ISAS:
        done = subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"QWQ_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == isa


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: core.pack(Q4, np.zeros((3, 64), np.uint8)), "scale: is needed"),
        (lambda: core.pack(Q4, np.zeros((3, 64), np.uint8), np.zeros((3, 2), np.float16)), "scale: must have shape"),
        (lambda: core.pack(Q4, np.zeros(64, np.uint8), np.zeros(1, np.float16)), "2 dimensions"),
        (lambda: core.pack(core.Format("q4", 32), np.zeros((3, 64)), np.zeros((3, 2))), "does not exist"),
        (lambda: core.pack(core.Format("q3"), np.zeros((3, 64)), np.zeros((3, 1))), "does not exist"),
        (lambda: core.pack(core.FORMATS["fp32"], np.zeros((3, 64)), np.zeros((3, 1))), "scale: is not part"),
        (
            lambda: core.pack(U4, np.zeros((3, 64), np.uint8), np.ones((3, 1)), zero_point=np.full((3, 1), 17)),
            "does not fit",
        ),
        (lambda: core.matmul(np.zeros((2, 128), np.float32), packed_64()), "128 columns, and the weight 64"),
        (lambda: core.matmul(np.zeros((2, 64), np.float32), packed_64(), bias=np.zeros(4)), "bias: must have shape"),
        (lambda: core.matmul(np.zeros((2, 64), np.float32), packed_64(), threads=0), "threads: must be 1 to 1024"),
        (lambda: core.quantise_activations(np.zeros((2, 65), np.float32)), "size is impossible"),
    ],
)
def test_impossible_calls_are_refused(call, message):
    with pytest.raises(core.CoreError, match=message):
        call()


def packed_64():
    return core.pack(Q4, np.zeros((3, 64), np.uint8), np.zeros((3, 1), np.float16))


@pytest.mark.parametrize(
    "form", [core.Format("u4", 128, "zero"), core.Format("u5", 16, "zero"), Q4, core.FORMATS["fp32"]]
)
@pytest.mark.parametrize("T", [1, 3, 20])
def test_an_order_of_columns(form, T):
    """GPTQ's order: the activations are taken in it, after they are normalised."""
    rng = np.random.default_rng(T)
    for K in (128, 320, 200):
        packed, _ = random_weight(rng, form, 70, K)
        x, norm = rng.standard_normal((T, K)).astype(np.float32), rng.standard_normal(K).astype(np.float32)
        order = rng.permutation(K).astype(np.int32)
        ordered = core.Packed(packed.format, packed.packed, packed.shape, order)
        for isa in ISAS:
            for threads in (1, 3):
                plain = core.matmul(x[:, order], packed, isa=isa, threads=threads)
                assert core.matmul(x, ordered, isa=isa, threads=threads).tobytes() == plain.tobytes()
            normed = core.matmul(fixed.rmsnorm(x, norm, 1e-5)[:, order], packed, isa=isa)
            assert core.matmul(x, ordered, norm=norm, eps=1e-5, isa=isa).tobytes() == normed.tobytes()
        if form is not Q4:
            rows = np.arange(70)
            assert np.array_equal(core.unpack_rows(ordered, rows)[:, order], core.unpack_rows(packed, rows))


def test_an_order_that_is_none():
    packed, _ = random_weight(np.random.default_rng(0), U4, 3, 64)
    x = np.zeros((1, 64), np.float32)
    for columns, words in (
        (np.arange(64), "columns: must be contiguous int32, got int64"),
        (np.arange(63, dtype=np.int32), "columns"),
        (np.arange(1, 65, dtype=np.int32), "format"),
        (np.arange(-1, 63, dtype=np.int32), "format"),
    ):
        with pytest.raises(core.CoreError, match=words):
            core.matmul(x, core.Packed(packed.format, packed.packed, packed.shape, columns))
