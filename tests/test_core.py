"""The C core: every variant gives the bits of spec.quant, whatever instructions, threads and batch."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qwq_ref import core
from qwq_ref.spec import quant

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


def weights(rng, n, k):
    code = rng.integers(0, 16, (n, k), dtype=np.uint8)
    scale = rng.choice([0.0, 6e-8, 1e-4, 0.01, 1.0, 60_000.0], (n, k // quant.GROUP)).astype(np.float16)
    return code, scale


@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 7), st.just(128)), elements=numbers))
def test_activations_are_quantised_as_in_the_spec(x):
    q, scale = quant.quantise_activations(x)
    assert np.abs(q.astype(int)).max() <= 127
    for isa in ISAS:
        ours, our_scale = core.quantise_activations(x, isa)
        assert np.array_equal(ours, q)
        assert np.array_equal(our_scale.view(np.uint32), scale.view(np.uint32))


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
    error = np.linalg.norm(quant.dequantise_q4(code, scale) - w) / np.linalg.norm(w)
    assert 0.07 < error < most


@given(st.integers(1, 14), st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_matmul_q4_is_the_spec_to_the_bit(T, N, groups, seed):
    rng = np.random.default_rng(seed)
    code, scale = weights(rng, N, groups * quant.GROUP)
    x = (rng.standard_normal((T, groups * quant.GROUP)) * rng.choice([1, 1e3], (T, 1))).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = 0
    wanted = quant.matmul_q4(x, code, scale).view(np.uint32)
    packed = core.pack_q4(code, scale)
    for isa in ISAS:
        got = core.matmul(x, packed, isa, threads=int(rng.choice(THREADS)))
        assert np.array_equal(got.view(np.uint32), wanted), isa


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


@given(st.integers(1, 14), st.integers(1, 70), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_matmul_q8_is_the_spec_to_the_bit(T, N, groups, seed):
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (N, groups * quant.GROUP)).astype(np.int8)
    q[rng.random(q.shape) < 0.2] = rng.choice([-127, 127])
    scale = rng.choice([0.0, 6e-8, 0.01, 1.0], (N, groups)).astype(np.float16)
    x = rng.choice([-1e3, -1, 0.3, 1, 1e3], (T, groups * quant.GROUP)).astype(np.float32)
    wanted = quant.matmul_q8(x, q, scale).view(np.uint32)
    packed = core.pack_q8(q, scale)
    for isa in ISAS:
        got = core.matmul(x, packed, isa, threads=int(rng.choice(THREADS)))
        assert np.array_equal(got.view(np.uint32), wanted), isa


@pytest.mark.parametrize("isa", ISAS)
def test_threads_and_batches_do_not_matter(isa):
    rng = np.random.default_rng(0)
    code, scale = weights(rng, 100, 320)
    packed = core.pack_q4(code, scale)
    x = rng.standard_normal((65, 320)).astype(np.float32)
    whole = core.matmul(x, packed, isa)
    for threads in THREADS:
        assert np.array_equal(core.matmul(x, packed, isa, threads), whole)
    for size in (1, 2, 3, 4, 5, 7, 31, 33, 63):
        parts = [core.matmul(x[i : i + size], packed, isa, 2) for i in range(0, len(x), size)]
        assert np.array_equal(np.concatenate(parts), whole)


def test_what_it_computes_is_near_the_product():
    """Against float64 and the true weights: what int8 activations cost, and no more."""
    rng = np.random.default_rng(1)
    code = rng.integers(0, 16, (64, 512), dtype=np.uint8)
    scale = np.full((64, 8), 0.01, np.float16)
    x = rng.standard_normal((16, 512)).astype(np.float32)
    true = x.astype(np.float64) @ quant.dequantise_q4(code, scale).astype(np.float64).T
    error = np.sum((core.matmul(x, core.pack_q4(code, scale)) - true) ** 2) / np.sum(true**2)
    assert 1e-6 < error < 1e-4


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
        (lambda: core.pack_q4(np.zeros((3, 65), np.uint8), np.zeros((3, 1), np.float16)), "multiple of 64"),
        (lambda: core.pack_q4(np.zeros((3, 64), np.uint8), np.zeros((3, 2), np.float16)), "scale: must have shape"),
        (lambda: core.pack_q4(np.zeros(64, np.uint8), np.zeros(1, np.float16)), "2 dimensions"),
        (lambda: core.matmul(np.zeros((2, 128), np.float32), packed_64()), "128 columns, and the weight 64"),
        (lambda: core.matmul(np.zeros((2, 64), np.float32), packed_64(), threads=0), "size is impossible"),
        (lambda: core.quantise_activations(np.zeros((2, 65), np.float32)), "size is impossible"),
    ],
)
def test_impossible_calls_are_refused(call, message):
    with pytest.raises(core.CoreError, match=message):
        call()


def packed_64():
    return core.pack_q4(np.zeros((3, 64), np.uint8), np.zeros((3, 1), np.float16))
