"""Attention over a stored cache: near the truth, and every variant gives the bits of spec.kv, however it is called."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref import core
from qwq_ref.core import attention as ours
from qwq_ref.numerics import fixed, kv
from qwq_ref.numerics.key_bias import key_bias
from qwq_ref.spec import ops
from tests.support.key_biases import drawn, only_center, turned, turns

if not core.available():
    assert shutil.which("cc") is None, "there is a compiler, and yet the core was not built: pip install -e . again"
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
ISAS = core.isas()
THREADS = (1, 2, 3, 8)
GUARD = 256


def nmse(y, true):
    return float(np.sum((y - true) ** 2) / np.sum(true**2))


def truth(q, k, v):
    """Float64 attention of queries that see every key."""
    visible = np.ones((len(q), len(k)), bool)
    return ops.attention(*(x.astype(np.float64) for x in (q, k, v)), visible)


def guarded_cache(form, capacity, K, E, bias=None, fill=0xFF):
    """A cache that begins as NaNs, exactly as large as it must be, between guard bytes; and a check of those."""
    size = ours.kv_bytes(form, capacity, K, E)
    memory = np.full(size + 2 * GUARD + core.ALIGN, 0xA5, np.uint8)
    start = GUARD + -(memory.ctypes.data + GUARD) % core.ALIGN
    memory[start : start + size] = fill
    bias = None if bias is None else ours.KeyBias.of(bias, capacity, K, E)
    cache = ours.KV.within(form, memory[start : start + size], capacity, K, E, bias)

    def intact():
        return (memory[:start] == 0xA5).all() and (memory[start + size :] == 0xA5).all()

    return cache, intact


def whole(form, isa, q, k, v, window=None, p_bits=0, threads=1, bias=None):
    """All at once: k and v appended, and the queries, the last of their positions, answered."""
    cache, intact = guarded_cache(form, len(k), *k.shape[1:], bias)
    ours.append(cache, k, v, 0, isa, threads)
    pos = len(k) - len(q)
    if form == "fp32":
        y = ours.attention_fp32(q, cache, pos, window, isa, threads)
    else:
        y = ours.attention_int8(q, cache, pos, window, p_bits, isa, threads)
    assert intact()
    return y


def meant(form, q, k, v, window=None, p_bits=0, bias=None):
    visible = ops.causal_mask(len(q), len(k), window)
    if form == "fp32":
        return kv.attention_fp32(q, k, v, visible)
    moved = () if bias is None else (bias.key_gain, bias.center)
    return kv.attention_int8(q, *kv.quantise_kv(k, 2, *moved), *kv.quantise_kv(v), visible, p_bits, bias)


def same(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


# What breaks quantisation and softmax: zeros, subnormals, sizes at both ends, one huge outlier, equal scores, a bias.
KINDS = ("normal", "zero", "subnormal", "tiny", "outlier", "equal", "bias", "sink", "sharp")


def numbers(rng, shape, kind, form):
    x = rng.standard_normal(shape).astype(np.float32)
    if kind == "zero":
        x[:] = 0
    elif kind == "subnormal":
        x *= np.float32(1e-39)
    elif kind == "tiny":
        x *= rng.choice(np.float32([2.0**-101, 2.0**-98, 1e-20, 1]), (shape[0], 1, 1))
    elif kind == "outlier":
        x[rng.integers(shape[0]), :, rng.integers(shape[2])] = 1e30 if form == "int8" else 1e15
    elif kind == "equal":
        x[:] = x[:1]
    elif kind == "bias":
        x[..., 0] += 40
    elif kind == "sink":
        x[0] *= 30
    elif kind == "sharp":
        x *= 4
    return x


@given(
    st.sampled_from(("int8", "fp32")),
    st.integers(1, 20),
    st.one_of(st.integers(0, 70), st.sampled_from([95, 127, 128, 129, 1003, 1023, 1024, 1025, 2047, 2100])),
    st.sampled_from([(1, 1), (1, 2), (1, 5), (2, 3), (2, 4), (1, 6), (1, 7), (2, 8)]),
    st.sampled_from([32, 64, 128, 2, 6, 20, 66]),
    st.sampled_from([None, None, 1, 2, 31, 32, 33, 500, 1024, 5000]),
    st.sampled_from([0, 8, 16]),
    st.tuples(*[st.sampled_from(KINDS)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_every_variant_gives_the_bits_of_the_spec(form, T, before, heads, E, window, p_bits, kinds, seed):
    rng = np.random.default_rng(seed)
    (K, G), S = heads, before + T
    q = numbers(rng, (T, K * G, E), kinds[0], form)
    k, v = (numbers(rng, (S, K, E), kind, form) for kind in kinds[1:])
    if form == "fp32" and kinds[:2] == ("outlier", "outlier"):
        q = np.float32(1e-15) * q  # scores beyond float32's range are nobody's
    bias = drawn(rng, K, E, S)[1] if form == "int8" and rng.random() < 0.5 else None
    wanted = meant(form, q, k, v, window, p_bits, bias)
    assert np.isfinite(wanted).all()
    for isa in ISAS:
        got = whole(form, isa, q, k, v, window, p_bits, int(rng.choice(THREADS)), bias)
        assert same(got, wanted), isa


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sharpness", [0.3, 1, 2, 3, 5])
def test_each_block_decides_between_8_and_16_bits(isa, sharpness):
    """Softmaxes from flat to sharp, where more and more blocks keep 16 bits: which ones do, and nothing else, shows."""
    rng = np.random.default_rng(int(10 * sharpness))
    q, k, v = (rng.standard_normal((n, heads, 32)).astype(np.float32) for n, heads in ((7, 5), (1200, 1), (1200, 1)))
    q *= np.float32(sharpness)
    wanted = [meant("int8", q, k, v, p_bits=p_bits) for p_bits in (0, 8, 16)]
    for p_bits, y in zip((0, 8, 16), wanted, strict=True):
        assert same(whole("int8", isa, q, k, v, p_bits=p_bits), y)
    assert not same(wanted[0], wanted[2])
    if sharpness >= 2:
        assert not same(wanted[0], wanted[1])


@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_far_below_the_largest_score(isa):
    """A token 2^-126 below still counts, one below that does not: here, values show what its weight is."""
    for apart in (1, 1500):  # in one chunk, and in two, which are merged
        for below in np.float32([119, 121, 125, 125.9, 126.1, 127, 140, 1e6]):
            q, k, v = (np.zeros((n, 1, 16), np.float32) for n in (1, apart + 1, apart + 1))
            q[..., 0], k[:, 0, 0], v[0] = 4, -below / fixed.LOG2E, 1e30
            k[-1] = 0
            y = whole("fp32", isa, q, k, v)
            assert same(y, meant("fp32", q, k, v))
            assert (y > 0).all() == (below < 126)


@given(st.integers(0, 2**32 - 1), st.sampled_from(("int8", "fp32")), st.sampled_from([None, 40, 1030]))
def test_pieces_threads_and_roll_backs_do_not_matter(seed, form, window):
    """A prompt in any pieces, tokens one by one, and what was appended, dropped and replaced: the same bits."""
    rng = np.random.default_rng(seed)
    S, K, G, E = int(rng.choice([60, 300, 1100])), 2, 3, 32
    q, k, v = (rng.standard_normal((S, n, E)).astype(np.float32) for n in (K * G, K, K))
    function = ours.attention_int8 if form == "int8" else ours.attention_fp32
    wanted = None
    for _ in range(3):
        isa, threads = str(rng.choice(ISAS[1:] or ISAS)), int(rng.choice(THREADS))
        cache, intact = guarded_cache(form, S, K, E)
        parts, pos = [], 0
        while pos < S:
            T = min(int(rng.choice([1, 2, 7, 16, 17, 33, 200, 1100])), S - pos)
            if rng.random() < 0.3:  # a draft that is then rejected
                ours.append(cache, 3 * k[pos : pos + T] + 1, v[pos : pos + T] - 9, pos, isa)
            ours.append(cache, k[pos : pos + T], v[pos : pos + T], pos, isa, threads)
            parts.append(function(q[pos : pos + T], cache, pos, window, isa=isa, threads=threads))
            pos += T
        y = np.concatenate(parts)
        wanted = y if wanted is None else wanted
        assert same(y, wanted)
        assert intact()


@pytest.mark.parametrize("form", ["int8", "fp32"])
def test_a_cache_is_the_same_in_any_pieces(form):
    rng = np.random.default_rng(0)
    S, K, E = 300, 2, 66
    k, v = (rng.standard_normal((S, K, E)).astype(np.float32) for _ in "kv")
    caches = []
    for isa in ISAS:
        for size in (1, 5, 32, 300):
            cache, intact = guarded_cache(form, S, K, E, fill=0)
            for pos in range(0, S, size):
                ours.append(cache, k[pos : pos + size], v[pos : pos + size], pos, isa, threads=2)
            assert intact()
            caches.append(cache.buffer)
    assert all(np.array_equal(buffer, caches[0]) for buffer in caches)


def test_a_long_context():
    rng = np.random.default_rng(3)
    S, K, G, E = 20_000, 1, 5, 128
    q, k, v = (rng.standard_normal((n, heads, E)).astype(np.float32) for n, heads in ((1, G), (S, K), (S, K)))
    wanted = meant("int8", q, k, v)
    results = [whole("int8", isa, q, k, v, threads=t) for isa in ISAS[1:] or ISAS for t in (1, 2, 8)]
    assert all(same(y, wanted) for y in results)
    assert nmse(wanted, truth(q, k, v)) <= 2e-4


@pytest.mark.parametrize("S", [128, 4096, 32768])
@pytest.mark.parametrize("p_bits", [0, 8, 16])
def test_int8_is_near_the_truth(S, p_bits):
    rng = np.random.default_rng(S)
    q, k, v = (rng.standard_normal((n, 1, 128)).astype(np.float32) for n in (32, S, S))
    true = truth(q, k, v)
    cache, _ = guarded_cache("int8", S + 31, 1, 128)
    ours.append(cache, k, v, 0)
    y = np.concatenate([ours.attention_int8(q[i : i + 1], cache, S - 1, p_bits=p_bits) for i in range(32)])
    assert 1e-5 < nmse(y, true) <= 2e-4


def sink(rng, S, mass, size, common):
    """One query's probability mass goes to token 0, whose value is scaled; all else is flat. `common`: values' mean."""
    q, k, v = (rng.standard_normal((n, 1, 128)).astype(np.float32) for n in (16, S, S))
    v += common * rng.standard_normal((1, 1, 128)).astype(np.float32)
    v[0] *= size
    way = np.full(128, 128**-0.5, np.float32)
    q += (10 - q @ way)[..., None] * way  # every query has 10 along the way that the sink's key goes
    k = 0.02 * (k - (k @ way)[..., None] * way)
    k[0] = way * np.float32(np.log(mass / (1 - mass) * (S - 1)) * 128**0.5 / 10)
    return q, k, v


@pytest.mark.parametrize("S", [128, 4096, 32768])
@pytest.mark.parametrize("common", [0, 1])
def test_a_sink_does_not_drown_the_rest(S, common):
    rng = np.random.default_rng(S)
    for mass in (0.3, 0.6, 0.95):
        for size in (0.1, 0.3, 1):
            q, k, v = sink(rng, S, mass, size, common)
            cache, _ = guarded_cache("int8", S, 1, 128)
            ours.append(cache, k, v, 0)
            y = np.concatenate([ours.attention_int8(q[i : i + 1], cache, S - 1) for i in range(len(q))])
            assert nmse(y, truth(q, k, v)) <= 3e-4, (mass, size)


def test_eight_bits_alone_would_lose_what_lies_beside_a_sink():
    """Why a block may keep 16: where values have a part in common, it is what rounding takes from all of them."""
    q, k, v = sink(np.random.default_rng(0), 128, 0.95, 0.3, 1)
    visible = np.ones((len(q), len(k)), bool)
    ints = (*kv.quantise_kv(k, 2), *kv.quantise_kv(v), visible)
    true = truth(q, k, v)
    narrow, free, wide = (nmse(kv.attention_int8(q, *ints, p_bits), true) for p_bits in (8, 0, 16))
    assert narrow > 4e-4
    assert free < 1.1 * wide < 1e-4


@pytest.mark.parametrize("S", [128, 4096])
def test_a_bias_of_keys_is_taken_off(S):
    rng = np.random.default_rng(S)
    q, k, v = (rng.standard_normal((n, 1, 128)).astype(np.float32) for n in (16, S, S))
    k[..., 7] += 60
    center = np.zeros((1, 128), np.float32)
    center[0, 7] = 60
    true = truth(q, k, v)
    errors = []
    for c in (only_center(center), None):
        cache, _ = guarded_cache("int8", S, 1, 128, c)
        ours.append(cache, k, v, 0)
        errors.append(nmse(np.concatenate([ours.attention_int8(x[None], cache, S - 1) for x in q]), true))
    assert errors[0] <= 2e-4
    assert errors[1] > 5e-3, "the gate of 5e-3 needs the center"


@pytest.mark.parametrize(("pairs", "gate"), [(range(20, 30), 2e-4), (range(64), 1e-3), ([5], 2e-4), ([63], 2e-4)])
@pytest.mark.parametrize("S", [300, 2500])
def test_a_bias_that_rope_turns_is_left_out(S, pairs, gate):
    """A bias of 100 on some pairs of 64, which no fixed vector takes off: reported for models with large biases."""
    rng = np.random.default_rng(S)
    q, k, v = (rng.standard_normal((n, heads, 128)).astype(np.float32) for n, heads in ((9, 4), (S, 2), (S, 2)))
    bias = np.zeros((2, 2, 64), np.float32)
    bias[:, 0, pairs] = 100
    bias = bias.reshape(2, 128)
    found = key_bias(np.zeros((4, 128)), bias, turns(128, S))
    visible = ops.causal_mask(len(q), S, None)
    true = ops.attention(q.astype(np.float64), k + turned(bias, S), v.astype(np.float64), visible)
    k = (k + turned(found.rest, S)).astype(np.float32)
    for isa in ISAS:
        assert nmse(whole("int8", isa, q, k, v, bias=found), true) <= gate
    whole_bias = (k + turned(bias - found.rest, S)).astype(np.float32)
    assert nmse(whole("int8", ISAS[-1], q, whole_bias, v), true) > 4 * gate, (
        "keys that keep it lose what lies beside it"
    )


def test_heads_leave_out_the_pairs_that_move_most():
    bias = np.zeros((2, 2, 8), np.float32)
    bias[0, 0, [0, 1, 2]] = 9, 3, 1  # a fast pair, one that is large enough, and one that is not
    bias[1, 1, [0, 1, 7]] = 1, 1.5, 2.5  # only the last is large; it turns slowly, and the center takes it off
    found = key_bias(np.zeros((2, 16)), bias.reshape(2, 16), turns(16, 1))
    assert found.first.tolist() == [[0, 1], [1, 0]]
    rest = found.rest.reshape(2, 2, 8)
    assert not rest[0, :, :2].any()
    assert rest[1, 1, 7] == 2.5
    assert (found.codes.astype(np.int64) ** 2).sum(-1).max() * 2 < 2**31


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_bias_that_is_no_number_stays_in_the_keys(bad):
    """There it is found: a layer refuses such keys."""
    bias = np.full((1, 16), 5, np.float32)
    bias[0, 3] = bad
    found = key_bias(bias, bias, turns(16, 1))
    assert 3 not in found.first
    assert np.array_equal(found.rest[0, 3], bias[0, 3], equal_nan=True)


@pytest.mark.parametrize("S", [1, 100, 5000])
def test_fp32_is_near_the_truth(S):
    rng = np.random.default_rng(S)
    q, k, v = (rng.standard_normal((n, 1, 128)).astype(np.float32) for n in (8, S, S))
    cache, _ = guarded_cache("fp32", S, 1, 128)
    ours.append(cache, k, v, 0)
    y = np.concatenate([ours.attention_fp32(x[None], cache, S - 1) for x in q])
    assert nmse(y, truth(q, k, v)) <= 1e-12


@given(st.integers(1, 20), st.integers(1, 150), st.sampled_from([None, 1, 9, 64]), st.integers(0, 2**32 - 1))
def test_the_spec_of_a_cache_is_attention(T, before, window, seed):
    """spec.kv against spec.ops, causal and windowed; that of int8 on the values that its integers stand for."""
    rng = np.random.default_rng(seed)
    S = T + before
    q, k, v = (rng.standard_normal((n, h, 32)).astype(np.float32) for n, h in ((T, 6), (S, 2), (S, 2)))
    visible = ops.causal_mask(T, S, window)
    true = ops.attention(*(x.astype(np.float64) for x in (q, k, v)), visible)
    assert nmse(kv.attention_fp32(q, k, v, visible), true) <= 1e-12
    held, floats = [kv.quantise_kv(x, halves) for x, halves in ((q, 2), (k, 2), (v, 1))], q
    q, k, v = (x * np.repeat(scale.astype(np.float64), 32 // scale.shape[-1], axis=-1) for x, scale in held)
    true = ops.attention(q, k, v, visible)
    y = kv.attention_int8(floats, *held[1], *held[2], visible, 16)
    assert np.sum((y - true) ** 2) <= 4 * noise_of_weights(q, k, v, held[2][1][..., 0], visible) + 1e-12 * np.sum(
        true**2
    )


def noise_of_weights(q, k, v, v_scale, visible):
    """The expected squared error of attention whose weights are rounded in blocks of 32, as `kv.weigh_int8` does.

    Rounding to a unit errs by unit / sqrt(12). A block's unit is its largest weight p * v_scale, by 255 * 256.
    """
    shared = q.shape[1] // k.shape[1]
    scores = np.einsum("the,she->hts", q, np.repeat(k, shared, axis=1)) / np.sqrt(q.shape[-1])
    p = np.exp(np.where(visible, scores, -np.inf))
    p /= np.sum(p, axis=-1, keepdims=True)
    w, codes = p * np.repeat(v_scale.T, shared, axis=0)[:, None], np.repeat(v / v_scale[..., None], shared, axis=1)
    noise = 0.0
    for first in range(0, w.shape[-1], kv.BLOCK):
        span = slice(first, first + kv.BLOCK)
        unit = np.max(w[..., span], axis=-1) / kv.UNITS
        seen = np.sum(visible[:, span, None, None] * codes[span] ** 2, axis=1)
        noise += np.sum(unit.T[..., None] ** 2 / 12 * seen)
    return noise


def test_exp2_is_within_its_bound():
    x = np.concatenate([np.linspace(-126, 127, 3_000_001), np.geomspace(1e-30, 1, 9999), -np.geomspace(1e-30, 1, 9999)])
    x = x.astype(np.float32)
    true = np.exp2(x.astype(np.float64))
    ulp = np.spacing(true.astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(fixed.exp2(x) - true) / ulp) < 2.5
    assert np.array_equal(fixed.exp2(np.float32([0, -0.0, -126.01, -1e30, -np.inf])), np.float32([1, 1, 0, 0, 0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c, q: ours.attention_int8(q, c, 9), "positions 9 to 10 do not fit in a cache of 10"),
        (lambda c, q: ours.attention_int8(q, c, -1), "do not fit"),
        (lambda c, q: ours.attention_int8(q[:, :3], c, 0), "has 3 heads, which 2 key-value heads cannot share"),
        (lambda c, q: ours.attention_int8(q[0], c, 0), "3 dimensions"),
        (lambda c, q: ours.attention_int8(q[..., :7], c, 0), "must have shape"),
        (lambda c, q: ours.attention_int8(q, c, 0, window=0), "window: must be 1 or more"),
        (lambda c, q: ours.attention_int8(q, c, 0, p_bits=4), "size is impossible"),
        (lambda c, q: ours.attention_int8(q, c, 0, threads=0), "threads"),
        (lambda c, q: ours.attention_fp32(q, c, 0), "holds int8, not fp32"),
        (lambda c, q: ours.append(c, q, q, 0), "must have shape"),
        (lambda c, q: ours.append(c, q[:, :2], q[:, :2], 0, threads=0), "threads: must be 1 to 1024"),
        (lambda c, q: ours.append(c, q[:, :2], q[:, :2], 9), "do not fit"),
        (lambda c, q: ours.empty_kv("int4", 1, 1, 2), "must be int8 or fp32"),
        (lambda c, q: ours.KeyBias.of(only_center(np.zeros((1, 3))), 1, 1, 2), "rest: must have shape"),
    ],
)
def test_impossible_calls_are_refused(call, message):
    with pytest.raises(core.CoreError, match=message):
        call(ours.empty_kv("int8", 10, 2, 8), np.zeros((2, 4, 8), np.float32))


@pytest.mark.parametrize("form", ["int8", "fp32"])
@pytest.mark.parametrize(("T", "threads"), [(1, 1), (9, 3), (10, 2), (40, 3)])
def test_results_and_scratch_are_kept_within(form, T, threads):
    """Guard bytes around both: 48 rows share the work by chunk, more by rows."""
    S, H, K, E, isa = 1100, 5, 1, 32, core.ISAS.index(ISAS[-1])
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, h, E)).astype(np.float32) for n, h in ((T, H), (S, K), (S, K)))
    cache, _ = guarded_cache(form, S, K, E)
    ours.append(cache, k, v, 0)
    y = np.full(T * H * E + 2 * GUARD, 7, np.float32)
    kv = ours.c_kv(cache)
    queries = core.ffi.new("qwq_queries *", {"pos": S - T, "T": T, "H": H})
    size = core.lib.qwq_attention_scratch(kv, queries, threads)
    scratch = np.full(size + 2 * GUARD, 0xA5, np.uint8)

    def at(array, kind):
        return core.ffi.cast(kind, array.ctypes.data)

    stop = core.Stop()
    stop.set()
    queries.stop = stop.flag
    arguments = (at(y[GUARD:], "float *"), kv, at(q, "float *"), at(scratch[GUARD:], "void *"), queries, isa, threads)
    assert core.lib.qwq_attention(*arguments) == core.lib.QWQ_ESTOP
    assert (y == 7).sum() > 2 * GUARD, "it was computed all the same"
    queries.stop = core.ffi.NULL
    assert core.lib.qwq_attention(*arguments) == 0
    assert same(y[GUARD:-GUARD].reshape(T, H, E), meant(form, q, k, v))
    assert (y[:GUARD] == 7).all()
    assert (y[-GUARD:] == 7).all()
    assert (scratch[:GUARD] == 0xA5).all()
    assert (scratch[-GUARD:] == 0xA5).all()


def test_a_buffer_out_of_line_is_refused():
    cache = ours.empty_kv("int8", 10, 1, 8)
    memory = np.zeros(len(cache.buffer) + 2 * core.ALIGN, np.uint8)
    start = -memory.ctypes.data % core.ALIGN + 1
    moved = ours.KV.within("int8", memory[start : start + len(cache.buffer)], 10, 1, 8)
    with pytest.raises(core.CoreError, match="align"):
        ours.append(moved, np.zeros((1, 1, 8)), np.zeros((1, 1, 8)), 0)
    with pytest.raises(core.CoreError, match="align"):
        ours.attention_int8(np.zeros((1, 1, 8)), moved, 0)
