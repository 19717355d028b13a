"""The core's small operations: every variant gives the bits of spec.fixed, which is near the truth in float64."""

import math
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwq_ref import core
from qwq_ref.config import Config, Rope
from qwq_ref.core import ops as core_ops
from qwq_ref.core._ffi import at as at_of
from qwq_ref.numerics import fixed
from qwq_ref.spec import ops
from tests.support.paths import QWQ_CONFIG

if not core.available():
    assert shutil.which("cc") is None, "there is a compiler, and yet the core was not built: pip install -e . again"
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
ISAS = core.isas()
SIZES = (1, 2, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 130)  # what ends a row in every way
QWQ = Config.from_file(QWQ_CONFIG).rope

numbers = st.one_of(
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 1e30, -1e30, 3e38, -88.8, -104.0, 17.0]).map(
        lambda x: float(np.float32(x))
    ),
)


def matrices(elements=numbers):
    shapes = st.tuples(st.integers(1, 4), st.sampled_from(SIZES))
    return shapes.flatmap(lambda shape: hnp.arrays(np.float32, shape, elements=elements))


def same(got, wanted):
    """Equal to the bit, but for what a NaN looks like."""
    assert got.dtype == wanted.dtype == np.float32
    nan = np.isnan(wanted)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got.view(np.uint32)[~nan], wanted.view(np.uint32)[~nan])


def ulps(got, true):
    """The distance from the truth in units of float32's last place; subnormal ones count as the smallest normal's."""
    _, exponent = np.frexp(np.maximum(np.abs(true), 2.0**-126))
    return np.abs(got - true) / np.ldexp(1.0, exponent - 24)


def every_binade(step):
    """Floats of all signs and exponents, NaNs and infinities among them."""
    return np.arange(0, 1 << 32, step, dtype=np.int64).astype(np.uint32).view(np.float32)


def test_exp_is_the_same_in_every_variant_and_near_the_truth():
    edges = np.array([fixed.EXP_LOWEST, fixed.EXP_HIGHEST, 0, -0.0, np.inf, -np.inf, np.nan, 1, -1], np.float32)
    edges = np.concatenate([edges, np.nextafter(edges[:2], np.float32(np.inf)), np.nextafter(edges[:2], -edges[4])])
    dense = np.linspace(-104, 89, 200_001, dtype=np.float32)
    x = np.concatenate([edges, every_binade(40_009), dense])
    y = fixed.exp(x)
    for isa in ISAS:
        same(core_ops.exp(x, isa), y)
        for n in SIZES:
            same(core_ops.exp(dense[-n:], isa), y[-n:])
    normal = np.abs(x) < 80
    assert ulps(y[normal], np.exp(x[normal].astype(np.float64))).max() < 1.2
    with np.errstate(over="ignore", invalid="ignore"):
        true = np.exp(x.astype(np.float64))
    number = ~np.isnan(x)
    assert np.array_equal(np.isnan(y), ~number)
    assert ((y == 0) == (true < 2.0**-126))[number].all()
    assert (np.isinf(y) == (true > np.finfo(np.float32).max))[number].all()
    inside = number & (y > 0) & np.isfinite(y)
    assert ulps(y[inside], true[inside]).max() < 1.2


@given(matrices(), st.sampled_from([1e-5, 1e-6]), st.integers(0, 9))
def test_rmsnorm(x, eps, seed):
    w = np.random.default_rng(seed).normal(1, 0.5, x.shape[1]).astype(np.float32)
    wanted = fixed.rmsnorm(x, w, eps)
    for isa in ISAS:
        same(core_ops.rmsnorm(x, w, eps, isa, threads=2), wanted)
    tame = (np.abs(x) < 1e15).all(axis=1)
    true = ops.rmsnorm(x[tame].astype(np.float64), w.astype(np.float64), np.float64(np.float32(eps)))
    bound = (x.shape[1] + 8) * 2.0**-24 * np.abs(true) + 2.0**-126
    assert (np.abs(wanted[tame] - true) <= bound).all()


@pytest.mark.parametrize("D", SIZES)
def test_rmsnorm_of_a_row_whose_mean_square_float32_cannot_hold(D):
    """NaN, and not the zeros of a division by infinity; the largest row that float32 holds has numbers."""
    w, edge = np.ones(D, np.float32), np.float32(np.sqrt(float(np.finfo(np.float32).max) / D))
    x = np.ones((6, D), np.float32)
    x[0], x[1], x[2, -1], x[3, 0] = edge * np.float32(0.999), edge * np.float32(1.001), 2e19, np.inf
    x[4], x[5] = 1e30, -np.float32(3.4e38)
    with np.errstate(over="ignore"):
        true = np.isinf(np.mean(x * x, axis=1))  # as the spec sums: at these edges, in any order
    wanted = fixed.rmsnorm(x, w, 1e-6)
    assert np.array_equal(np.isnan(wanted), np.repeat(true[:, None], D, axis=1))
    assert true.tolist() == [False, True, True, True, True, True]
    for isa in ISAS:
        same(core_ops.rmsnorm(x, w, 1e-6, isa), wanted)


@given(matrices())
def test_softmax(x):
    with np.errstate(over="ignore"):
        wanted = fixed.softmax(x)
    for isa in ISAS:
        same(core_ops.softmax(x, isa, threads=2), wanted)
    true = ops.softmax(x.astype(np.float64))
    # x - max is rounded, by up to half of its last bit; beyond -88 nothing is left
    bound = (x.shape[1] + 8) * 2.0**-24 + 2.0**-24 * np.minimum(x.max(axis=1, keepdims=True) - x.astype(np.float64), 90)
    assert (np.abs(wanted - true) <= bound * true + 2.0**-126).all()


@pytest.mark.parametrize("n", SIZES)
def test_the_order_of_sums(n):
    """Ordinary numbers, many rows: two lanes that change places show in one row of twenty."""
    rng = np.random.default_rng(n)
    x, w = rng.standard_normal((300, n)).astype(np.float32), rng.standard_normal(n).astype(np.float32)
    for isa in ISAS:
        same(core_ops.softmax(x, isa), fixed.softmax(x))
        same(core_ops.rmsnorm(x, w, 1e-6, isa), fixed.rmsnorm(x, w, 1e-6))
        same(core_ops.swiglu(x, x, 1.0, isa), fixed.swiglu(x, x))


def test_softmax_of_what_is_no_number():
    for x in (
        [np.nan, 1],
        [1, np.nan],
        [-np.inf, 3],
        [-np.inf, -np.inf],
        [np.inf, 1],
        [np.nan] * 40,
        [*range(40), np.nan],
    ):
        for size in (len(x), 70):
            row = np.float32([x + [-np.inf] * (size - len(x))])
            with np.errstate(invalid="ignore"):
                wanted = fixed.softmax(row)
            for isa in ISAS:
                same(core_ops.softmax(row, isa), wanted)


@given(matrices(), st.sampled_from([1.0, 1.702]))
def test_swiglu(gate, beta):
    up = np.roll(gate, 1, axis=1) * np.float32(0.5)
    with np.errstate(over="ignore"):
        wanted = fixed.swiglu(gate, up, beta)
    for isa in ISAS:
        same(core_ops.swiglu(gate, up, beta, isa, threads=2), wanted)
        both = np.concatenate([gate, up], axis=1)
        F = gate.shape[1]
        same(core_ops.swiglu(both[:, :F], both[:, F:], beta, isa), wanted)
    assert np.isfinite(fixed.swiglu(gate, np.ones_like(gate), beta)).all()


def test_silu_is_within_4_ulp():
    gate = np.linspace(-88.7, 100, 300_001, dtype=np.float32)[None]
    silu = core_ops.swiglu(gate, np.ones_like(gate))
    assert ulps(silu, ops.swiglu(gate.astype(np.float64), np.ones_like(gate, np.float64))).max() < 4
    beyond = np.float32([[-88.8, -1000, -3e38, 3e38]])
    assert np.array_equal(core_ops.swiglu(beyond, np.ones_like(beyond)), np.float32([[-0.0, -0.0, -0.0, 3e38]]))


@given(st.integers(1, 4), st.integers(1, 5), st.sampled_from(SIZES), st.integers(0, 9), st.integers(0, 99))
def test_rope_turns_as_in_the_spec(T, N, half, gap, seed):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((T, N * half * 2 + gap)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = rng.choice(np.float32([0, -0.0, 1e-45, 1e30]))
    cos, sin = rng.uniform(-1, 1, (2, T, half)).astype(np.float32)
    x = rows[:, : N * half * 2].reshape(T, N, half * 2)
    wanted = ops.rope(x, np.concatenate([cos, cos], axis=1), np.concatenate([sin, sin], axis=1))
    for isa in ISAS:
        held = rows.copy()
        view = held[:, : N * half * 2].reshape(T, N, half * 2)
        assert core_ops.rope(view, cos, sin, isa, threads=3) is view
        same(np.ascontiguousarray(view), wanted)
        assert np.array_equal(held[:, N * half * 2 :], rows[:, N * half * 2 :])  # what lies between rows


def yarn(theta=1e6, factor=4.0, original=32768, **more):
    return Rope(theta=theta, type="yarn", factor=factor, original_max_position_embeddings=original, **more)


@pytest.mark.parametrize("rope", [QWQ, yarn(), yarn(truncate=False), Rope(theta=1e4), yarn(1e4, 40.0, 4096)])
@pytest.mark.parametrize("E", [2, 4, 64, 128, 130])
def test_frequencies_have_the_bits_of_the_spec(rope, E):
    same(core_ops.rope_frequencies(rope, E), ops.rope_frequencies(rope, E))


@given(
    st.floats(1.5, 1e9),
    st.integers(1, 128).map(lambda half: 2 * half),
    st.one_of(st.none(), st.tuples(st.floats(1, 64), st.integers(64, 1 << 20), st.booleans())),
)
def test_frequencies_of_other_models(theta, E, stretch):
    rope = Rope(theta=theta)
    if stretch:
        rope = yarn(theta, stretch[0], stretch[1], truncate=stretch[2])
    same(core_ops.rope_frequencies(rope, E), ops.rope_frequencies(rope, E))


def test_powers_are_rounded_correctly():
    """Where the series converge worst, at powers of 2 times nearly sqrt(2), and for many more models."""
    for theta in np.concatenate([2 ** (np.arange(8, 28) + 0.499), np.geomspace(2, 1e9, 400)]):
        same(core_ops.rope_frequencies(Rope(float(theta)), 256), ops.rope_frequencies(Rope(float(theta)), 256))


@pytest.mark.parametrize("rope", [QWQ, yarn()])
def test_tables_are_the_nearest_float32(rope):
    """At every position up to 131,071, for every frequency."""
    frequencies = core_ops.rope_frequencies(rope, 128)
    for inv_freq in frequencies.reshape(4, 16)[[0, 1, 3]]:
        positions = np.arange(0, 131_072)
        cos, sin = core_ops.rope_tables(inv_freq, 1.0, positions)
        angles = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
        for got, true in ((cos, np.cos(angles)), (sin, np.sin(angles))):
            assert np.abs(got - true).max() < 2.0**-24
            large = np.abs(true) > 2.0**-30
            assert ulps(got[large], true[large]).max() < 0.5001


@given(
    hnp.arrays(np.int64, st.integers(1, 9), elements=st.integers(0, 1 << 26)),
    hnp.arrays(np.float32, st.integers(1, 9), elements=st.floats(0, 1, width=32)),
    st.sampled_from([1.0, 1.1386294361119891]),
)
def test_tables_have_the_bits_of_the_spec(positions, inv_freq, scaling):
    got, wanted = core_ops.rope_tables(inv_freq, scaling, positions), fixed.rope_tables(inv_freq, scaling, positions)
    for ours, theirs in zip(got, wanted, strict=True):
        same(ours, theirs)


def test_tables_are_half_of_the_specs():
    inv_freq, positions = ops.rope_frequencies(QWQ, 128), np.arange(0, 40_000, 7)
    halves = fixed.rope_tables(inv_freq, 1.5, positions)
    for half, whole in zip(halves, ops.rope_tables(inv_freq, 1.5, positions, np.float32), strict=True):
        assert np.abs(np.concatenate([half, half], axis=1) - whole).max() < 1.5 * 2.0**-22  # NumPy's is within 2 ulp


choices = st.one_of(numbers, st.sampled_from([np.nan, np.inf, -np.inf, 1.0, 1.0, 2.0]))


@given(
    hnp.arrays(np.float32, st.one_of(st.integers(1, 200), st.sampled_from(SIZES)), elements=choices),
    st.integers(1, 200),
)
def test_argmax_and_top_k(x, k):
    k = min(k, len(x))
    wanted, values = fixed.top_k(x, k)
    for isa in ISAS:
        assert core_ops.argmax(x, isa) == np.argmax(x)
        index, value = core_ops.top_k(x, k, isa)
        assert np.array_equal(index, wanted)
        assert np.array_equal(value.view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_of_a_vocabulary(isa):
    x = np.random.default_rng(0).standard_normal(152_064).astype(np.float32)
    for logits in (x, np.sort(x), np.sort(x)[::-1].copy(), np.round(x), np.full_like(x, -np.inf)):
        assert core_ops.argmax(logits, isa) == np.argmax(logits)
        for k in (1, 40, len(x) if logits is x else 1000):
            index, value = core_ops.top_k(logits, k, isa)
            wanted = np.argsort(-logits, kind="stable")[:k]
            assert np.array_equal(index, wanted)
            assert np.array_equal(value, logits[wanted])


@given(st.integers(0, 2**64 - 1), st.one_of(st.integers(0, 100), st.just(2**64 - 1), st.integers(0, 2**64 - 1)))
def test_uniform_is_numpys_philox(seed, i):
    word = np.random.Philox(key=seed, counter=i).random_raw()
    assert core_ops.uniform(seed, i) == fixed.uniform(seed, i) == (int(word) >> 11) * 2.0**-53
    assert core_ops.uniform(seed, i) == np.random.Generator(np.random.Philox(key=seed, counter=i)).random()


def test_uniform_is_uniform():
    u = np.array([core_ops.uniform(7, i) for i in range(20_000)])
    counts, _ = np.histogram(u, 20, (0, 1))
    assert ((counts - 1000) ** 2 / 1000).sum() < 50  # chi-squared with 19 degrees of freedom: 1 in 7,000
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.03


@pytest.mark.parametrize("isa", ISAS)
def test_nothing_is_written_beyond_a_row_and_threads_and_batches_do_not_matter(isa):
    """Each output lies between NaNs, off any vector's alignment; so does each input."""
    rng = np.random.default_rng(3)
    code, lib, at = core.ISAS.index(isa), core.lib, at_of

    def between(values):
        around = np.full(values.size + 34, np.nan, np.float32)
        around[17:-17] = values.ravel()
        return around, around[17:-17]

    for n in SIZES:
        x, w, gate = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, n), n, (5, n)))
        (_, held_x), (_, held_w), (_, held_gate) = between(x), between(w), between(gate)
        calls = {
            "rmsnorm": lambda y, t, n=n, a=held_x, b=held_w: lib.qwq_rmsnorm(at(y), at(a), at(b), 1e-5, 5, n, code, t),
            "softmax": lambda y, t, n=n, a=held_x: lib.qwq_softmax(at(y), at(a), 5, n, code, t),
            "swiglu": lambda y, t, n=n, a=held_x, g=held_gate: lib.qwq_swiglu(at(y), at(g), at(a), 1, 5, n, n, code, t),
        }
        wanted = {"rmsnorm": fixed.rmsnorm(x, w, 1e-5), "softmax": fixed.softmax(x), "swiglu": fixed.swiglu(gate, x)}
        for name, call in calls.items():
            for threads in (1, 2, 3, 8):
                around, y = between(np.zeros((5, n)))
                assert call(y, threads) == 0
                same(y.reshape(5, n), wanted[name])
                assert np.isnan(around[:17]).all()
                assert np.isnan(around[-17:]).all()
        assert lib.qwq_softmax(at(held_x), at(held_x), 5, n, code, 2) == 0  # in place
        same(held_x.reshape(5, n), wanted["softmax"])


F32 = np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: core_ops.rmsnorm(np.ones((2, 3), F32), np.ones(4, F32), 1e-5), r"w: must have shape \[3\], got \[4\]"),
        (lambda: core_ops.rmsnorm(np.ones(3, F32), np.ones(3, F32), 1e-5), "x: must have 2 dimensions"),
        (lambda: core_ops.rmsnorm(np.ones((2, 0), F32), np.ones(0, F32), 1e-5), "size is impossible"),
        (lambda: core_ops.softmax(np.ones((2, 3), F32), threads=0), "threads: must be 1 to 1024, got 0"),
        (lambda: core_ops.softmax(np.ones((2, 3), F32), "altivec"), "isa: altivec cannot run here"),
        (lambda: core_ops.swiglu(np.ones((2, 3), F32), np.ones((2, 4), F32)), r"up: must have shape \[2, 3\]"),
        (lambda: core_ops.rope(np.ones((2, 1, 4)), *np.ones((2, 2, 2), F32)), "x: is turned in place.*float64"),
        (lambda: core_ops.rope(np.ones((2, 1, 4), F32), *np.ones((2, 2, 4), F32)), r"cos: must have shape \[2, 2\]"),
        (lambda: core_ops.rope(np.ones((2, 1, 3), F32), *np.ones((2, 2, 1), F32)), "size is impossible"),
        (lambda: core_ops.rope(np.ones((2, 4, 8), F32)[:, :, ::2], *np.ones((2, 2, 2), F32)), "x: has strides"),
        (lambda: core_ops.rope(np.ones((4, 1, 4), F32)[::-1], *np.ones((2, 4, 2), F32)), "x: has strides"),
        (lambda: core_ops.rope_frequencies(QWQ, 3), "E: must be even"),
        (lambda: core_ops.rope_frequencies(Rope(theta=1.0), 4), "size is impossible"),
        (lambda: core_ops.rope_frequencies(yarn(factor=math.nan), 4), "size is impossible"),
        (
            lambda: core_ops.rope_tables(np.ones(2, F32), 1.0, np.array([3, -1])),
            "positions: must be 0 to 67108864, got -1",
        ),
        (lambda: core_ops.rope_tables(F32([0.5, 1.5]), 1.0, np.array([3])), "inv_freq: must be 0 to 1"),
        (lambda: core_ops.top_k(np.ones(3, F32), 4), "k: must be 1 to 3, got 4"),
        (lambda: core_ops.top_k(np.ones(3, F32), 0), "k: must be 1 to 3, got 0"),
        (lambda: core_ops.argmax(np.ones(0, F32)), "size is impossible"),
        (lambda: core_ops.uniform(-1, 0), r"seed: must be 0 to 2\^64 - 1, got -1"),
        (lambda: core_ops.uniform(0, 1 << 64), r"i: must be 0 to 2\^64 - 1"),
    ],
)
def test_impossible_calls_are_refused(call, message):
    with pytest.raises(core.CoreError, match=message):
        call()


def test_impossible_pointers_and_sizes_are_refused_in_c():
    lib, ffi = core.lib, core.ffi
    memory = np.zeros(4096, np.uint8)
    base = -(-memory.ctypes.data // 64) * 64
    held = memory.copy()

    def f(offset):
        return ffi.cast("float *", base + offset)

    def i(offset):
        return ffi.cast("int32_t *", base + offset)

    huge = 1 << 62
    align, overlap, size, isa = lib.QWQ_EALIGN, lib.QWQ_EOVERLAP, lib.QWQ_ESIZE, lib.QWQ_EISA
    for code, wanted in [
        (lib.qwq_exp(f(0), f(60), 16, 0), overlap),
        (lib.qwq_exp(f(1), f(64), 16, 0), align),
        (lib.qwq_exp(ffi.NULL, f(64), 16, 0), lib.QWQ_ENULL),
        (lib.qwq_exp(f(0), f(64), huge, 0), size),
        (lib.qwq_exp(f(0), f(64), 16, 9), isa),
        (lib.qwq_rmsnorm(f(0), f(0), f(64), 1, 1, 16, 0, 1), overlap),
        (lib.qwq_rmsnorm(f(0), f(128), f(28), 1, 1, 16, 0, 1), overlap),
        (lib.qwq_rmsnorm(f(0), f(128), f(66), 1, 1, 16, 0, 1), align),
        (lib.qwq_rmsnorm(f(0), f(128), f(64), 1, huge, 16, 0, 1), size),
        (lib.qwq_rmsnorm(f(0), f(128), f(64), 1, 1, 16, 0, 0), size),
        (lib.qwq_rmsnorm(f(0), f(128), f(64), 1, 1, 16, -1, 1), isa),
        (lib.qwq_rope(f(0), f(60), f(256), 1, 1, 16, 16, 0, 1), overlap),
        (lib.qwq_rope(f(0), f(128), f(60), 1, 1, 16, 16, 0, 1), overlap),
        (lib.qwq_rope(f(2), f(128), f(256), 1, 1, 16, 16, 0, 1), align),
        (lib.qwq_rope(f(0), f(128), f(256), 1, 1, 15, 16, 0, 1), size),
        (lib.qwq_rope(f(0), f(128), f(256), 1, 2, 16, 16, 0, 1), size),
        (lib.qwq_rope(f(0), f(128), f(256), 1, huge, 16, 16, 0, 1), size),
        (lib.qwq_rope(f(0), f(128), f(256), 1, 1, 16, 16, len(core.ISAS), 1), isa),
        (lib.qwq_softmax(f(0), f(4), 1, 16, 0, 1), overlap),
        (lib.qwq_softmax(f(0), f(3), 1, 16, 0, 1), align),
        (lib.qwq_softmax(f(0), f(64), 1, 0, 0, 1), size),
        (lib.qwq_swiglu(f(0), f(0), f(64), 1, 1, 16, 16, 0, 1), overlap),
        (lib.qwq_swiglu(f(0), f(64), f(32), 1, 1, 16, 16, 0, 1), overlap),
        (lib.qwq_swiglu(f(0), f(64), f(129), 1, 1, 16, 16, 0, 1), align),
        (lib.qwq_swiglu(f(0), f(64), f(128), 1, 1, 16, 15, 0, 1), size),
        (lib.qwq_argmax(i(0), f(0), 16, 0), overlap),
        (lib.qwq_argmax(i(1), f(64), 16, 0), align),
        (lib.qwq_argmax(i(0), f(64), 1 << 31, 0), size),
        (lib.qwq_top_k(i(0), f(0), f(64), 16, 1, 0), overlap),
        (lib.qwq_top_k(i(0), f(64), f(4), 16, 1, 0), overlap),
        (lib.qwq_top_k(i(0), f(64), f(128), 16, 17, 0), size),
        (lib.qwq_top_k(i(0), f(64), f(128), 16, 0, 0), size),
        (lib.qwq_top_k(i(0), f(64), f(128), 16, 1, 7), isa),
        (lib.qwq_rope_tables(f(0), f(64), f(60), 1, i(256), 1, 32), overlap),
        (lib.qwq_rope_tables(f(0), f(60), f(256), 1, i(512), 1, 32), overlap),
        (lib.qwq_rope_tables(f(0), f(64), f(256), 1, i(513), 1, 32), align),
        (lib.qwq_rope_tables(f(0), f(64), f(256), 1, i(512), 1, 31), size),
        (lib.qwq_rope_frequencies(ffi.NULL, 1e6, 0, 1, 1, 1, 1, 1, 8), lib.QWQ_ENULL),
        (lib.qwq_rope_frequencies(f(0), 1e6, 0, 1, 1, 1, 1, 1, 7), size),
        (lib.qwq_rope_frequencies(f(0), math.nan, 0, 1, 1, 1, 1, 1, 8), size),
    ]:
        assert code == wanted
    assert np.array_equal(memory, held)
    assert lib.qwq_exp(f(0), f(64), 0, 0) == 0
