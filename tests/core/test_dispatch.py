"""The dispatch tables: every function of every rung gives the bits of scalar code; what a rung inherits."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from qwq_ref import core
from qwq_ref.core import attention
from qwq_ref.core.layer import QKV, Layer, LayerWeights, Part, Parts
from tests.support import kernel_tables
from tests.support.paths import ROOT
from tests.tools import sanitize

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
not_again = pytest.mark.skipif("QWQ_SANITIZED" in os.environ, reason="builds the core, and runs on a sanitized one")


def run(*command, env=None):
    return subprocess.run([sys.executable, *map(str, command)], env=env, cwd=ROOT, capture_output=True, text=True)


def test_every_function_of_every_rung_equals_scalar_code(pytestconfig):
    done = run("-m", "tests.tools.checkcore", "--seeds", 50 if pytestconfig.getoption("--long") else 2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for isa in core.isas():
        assert f" {isa} " in done.stdout


def test_a_rung_inherits_only_what_its_processors_can_run():
    for isa in core.ISAS:
        for entry in kernel_tables.entries():
            owner = kernel_tables.owner(entry, isa)
            assert set(core.needs(owner)) <= set(core.needs(isa)), (str(entry), isa, owner)


def test_every_rung_has_functions_of_its_own():
    for isa in core.ISAS[1:]:
        owners = {kernel_tables.owner(entry, isa) for entry in kernel_tables.entries()}
        assert isa in owners


def test_avx_vnni_replaces_products_of_integers_and_inherits_the_rest():
    if "avx2-vnni" not in core.ISAS:
        pytest.skip("the compiler, or the processor's family, has no AVX-VNNI")
    own = [str(e) for e in kernel_tables.entries() if kernel_tables.owner(e, "avx2-vnni") == "avx2-vnni"]
    assert [name for name in own if not name.startswith("ceilings")] == [
        "matmul.wide",
        "matmul.blocks[q4]",
        "attention.scores_int8",
        "attention.weights_int8",
        "attention.values_int8",
    ]


@not_again
@pytest.mark.skipif("avx512_vnni" not in core.features(), reason="needs AVX-512 VNNI")
def test_avx_vnni_has_the_bits_in_its_form_for_avx512(tmp_path):
    """The same code with 256-bit registers of AVX-512, which processors without AVX-VNNI run."""
    library = sanitize.build(tmp_path, "-DQWQ_EVEX_VNNI -O1")
    env = os.environ | {"PYTHONPATH": f"{library}{os.pathsep}{ROOT}"}
    script = "import sys; from tests.tools import checkcore; sys.exit(checkcore.main(sys.argv[1:]))"
    done = run("-P", "-c", script, "--isa", "avx2-vnni", "--seeds", 5, env=env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    checked = re.search(r"(\d+) functions checked, 0 failed", done.stdout)
    assert checked is not None
    assert done.stdout.count("OK") == int(checked[1]) >= 38
    script = "import qwq_ref, sys, pytest; print(qwq_ref.__file__); sys.exit(pytest.main(sys.argv[1:]))"
    options = ("-q", "-p", "no:cacheprovider", "-n", 0, "tests/engine/test_bits.py", "-k", "avx2-vnni")
    done = run("-P", "-c", script, *options, env=env)
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.startswith(str(library))
    assert "3 passed" in done.stdout


def test_q_k_v_apart_have_the_bits_of_the_fused_matrix():
    rng = np.random.default_rng(0)
    D, F, H, K, E, T = 96, 64, 4, 2, 16, 9
    q, k = H * E, K * E

    def floats(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    w, bias, norms = floats(q + 2 * k, D) * np.float32(0.1), floats(q + 2 * k), floats(2, D)
    o, gate_up, down, x0 = floats(D, q), floats(2 * F, D), floats(D, F), floats(T, D)
    cos, sin = floats(T, E // 2), floats(T, E // 2)
    parts = (w[:q], w[q : q + k], w[q + k :])

    def packed(w, form):
        return core.quantise((w.view(np.uint32) >> 16).astype(np.uint16) if form == "bf16" else w, form)

    def step(qkv, form, cache, isa, threads, first):
        rest = (packed(each, form) for each in (o, gate_up, down))
        weights = LayerWeights(norms[0], qkv, bias, next(rest), norms[1], next(rest), next(rest))
        kv, x = attention.empty_kv(cache, T, K, E), x0.copy()
        Layer(weights, kv, H, 1e-6).step(x, Parts([Part(kv.pages, T, 0, T, first)]), cos, sin, isa, threads)
        return x[: T - first]

    for form in core.FORMATS:
        apart = QKV(*(packed(part, form) for part in parts))
        for cache, isa, threads, first in (
            ("int8", "scalar", 1, 0),
            ("fp32", core.isas()[-1], 2, 0),
            ("int8", core.isas()[-1], 1, 8),
        ):
            wanted = step(packed(w, form), form, cache, isa, threads, first)
            assert np.array_equal(step(apart, form, cache, isa, threads, first), wanted)
            assert not np.array_equal(wanted, x0[first:])
    mixed = QKV(*(packed(part, form) for part, form in zip(parts, ("q4", "q8", "bf16"), strict=True)))
    found = [step(mixed, "q8", "int8", isa, threads, 0) for isa in core.isas() for threads in (1, 2)]
    assert all(np.array_equal(each, found[0]) for each in found)
    exact = step(packed(w, "fp32"), "q8", "int8", "scalar", 1, 0)
    assert np.linalg.norm(found[0] - exact) < 0.2 * np.linalg.norm(exact)
    with pytest.raises(core.CoreError, match="k: must have shape"):
        step(QKV(mixed.q, mixed.q, mixed.v), "q8", "int8", "scalar", 1, 0)
