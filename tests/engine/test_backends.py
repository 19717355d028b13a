"""Both backends keep the contract: rows, taps, roll-backs, refusals. No other code asks which backend it is."""

import ast

import numpy as np
import pytest

from qwq_ref.engine.backends import ALL, LAST, logits
from qwq_ref.spec import forward
from tests.support import hf
from tests.support.checkpoints import weights_of
from tests.support.paths import PACKAGE

IDS = [5, 9, 1, 200, 7, 7, 30, 12]


def test_rows_are_the_requested_ones(random_model):
    backend = random_model.backend
    wanted = logits(backend, IDS)
    assert wanted.shape == (8, random_model.config.V)
    assert wanted.dtype == np.float32
    for rows in (ALL, LAST, slice(2, 5), slice(0, 1), slice(-3, None)):
        sequence = backend.sequence()
        assert np.array_equal(backend.run(IDS, sequence, rows), wanted[rows])
        assert sequence.length == 8


@pytest.mark.parametrize("rows", [ALL, LAST])
def test_taps_are_the_specs(random_folder, random_model, rows):
    """Every layer's output, the embedding and the logits; a tap changes no result."""
    backend, config = random_model.backend, random_model.config
    true, seen = {}, {}
    forward(config, weights_of(random_folder), IDS, tap=true.__setitem__)
    found = backend.run(IDS, backend.sequence(), rows, lambda name, x: seen.__setitem__(name, x.copy()))
    assert np.array_equal(found, backend.run(IDS, backend.sequence(), rows))
    outputs = [f"model.layers.{i}.resid_post" for i in range(config.L)]
    assert set(seen) >= {"model.embed_tokens", *outputs, "lm_head"}
    assert set(seen) == set(true) if backend.tensors is not None else len(seen) == config.L + 2
    for name, x in seen.items():
        whole = true[name]
        wanted = whole[rows] if name in (outputs[-1], "lm_head") and len(x) != len(whole) else whole
        assert hf.nmse(x, wanted) <= 1e-10, name
    assert np.array_equal(seen["lm_head"][-1], found[-1])


def test_progress_counts_tokens(random_model):
    counts = []
    random_model.backend.run(IDS, random_model.backend.sequence(), LAST, progress=counts.append)
    assert sum(counts) == pytest.approx(8)


def test_a_rollback_leaves_no_trace(random_model):
    backend = random_model.backend
    sequence = backend.sequence()
    backend.run(IDS, sequence, LAST)
    wanted = backend.run([3, 4], sequence, ALL)
    for draft in ([9] * 20, [1]):
        sequence.rollback(8)
        backend.run(draft, sequence, LAST)
    sequence.rollback(8)
    assert np.array_equal(backend.run([3, 4], sequence, ALL), wanted)
    for length in (-1, 11):
        with pytest.raises(ValueError, match=f"length must be 0 to 10, got {length}"):
            sequence.rollback(length)
    assert sequence.length == 10


def test_sequences_are_independent(random_model):
    backend = random_model.backend
    one, other = backend.sequence(), backend.sequence()
    backend.run(IDS, one, LAST)
    backend.run(IDS[::-1], other, LAST)
    assert np.array_equal(backend.run([1], one, ALL), run_after(backend, IDS, [1]))


def run_after(backend, before, ids):
    sequence = backend.sequence()
    backend.run(before, sequence, LAST)
    return backend.run(ids, sequence, ALL)


def test_a_filled_sequence_continues(random_model):
    backend, rng = random_model.backend, np.random.default_rng(0)
    sequence = backend.sequence()
    for length in (50, 20, 60):
        sequence.fill(length, rng)
        assert sequence.length == length
        assert np.isfinite(backend.run([1, 2], sequence, LAST)).all()
        assert sequence.length == length + 2


def test_refusals_leave_the_sequence_alone(random_model):
    backend = random_model.backend
    sequence = backend.sequence()
    backend.run(IDS, sequence, LAST)
    V = random_model.config.V
    for ids, words in (
        ([], "must be a non-empty list"),
        ([[1]], "must be a non-empty list"),
        ([0.5], "must be a non-empty list"),
        ([V], "must be in"),
        ([-1], "must be in"),
        ([1] * (backend.context - 7), f"do not fit in a context of {backend.context}"),
    ):
        with pytest.raises(ValueError, match=words):
            backend.run(ids, sequence, LAST)
    assert sequence.length == 8


def test_facts(random_model):
    backend = random_model.backend
    assert backend.config == random_model.config
    assert backend.context == random_model.context == random_model.config.positions
    assert (backend.form, backend.kv) == ("fp32", "fp32")
    assert backend.description.startswith(("core, weights fp32, KV cache fp32, ", "numpy, weights fp32"))


def test_no_code_asks_for_the_class_of_a_backend():
    """`isinstance` on backends would be a second contract."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                assert "Backend" not in ast.unparse(node), path
