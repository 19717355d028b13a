"""Sequences whose rows go through a layer as one get the bits that each gets alone, on every rung."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwq_ref import core
from qwq_ref.config import Config
from qwq_ref.engine.backends import Step
from qwq_ref.engine.backends.core import CoreBackend
from qwq_ref.engine.packing import pack_weights
from tests.support.models import config_values, random_weights

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
# More query heads than one pass holds for 10 tokens, and a window in the first of two layers.
CONFIG = Config.from_dict(
    config_values(num_hidden_layers=2, max_position_embeddings=4096)
    | {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 1}
)
WEIGHTS = {form: pack_weights(CONFIG, random_weights(CONFIG, 0), form, 1) for form in ("q4", "fp32")}
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 127, 128, 300, 1023, 1500]),  # positions before
        st.sampled_from([1, 1, 1, 2, 9, 40, 130]),  # tokens
        st.sampled_from([slice(-1, None), slice(None), slice(0, 0), slice(0, None, 3)]),
    ),
    min_size=1,
    max_size=17,
)


@settings(max_examples=12, deadline=None)
@given(
    STEPS, st.sampled_from(core.isas()), st.sampled_from([1, 2, 3]), st.sampled_from(["int8", "fp32"]), st.integers()
)
def test_rows_of_many_sequences(steps, isa, threads, kv, seed):
    rng = np.random.default_rng(abs(seed))
    form = "q4" if kv == "int8" else "fp32"
    backend = CoreBackend(CONFIG, WEIGHTS[form], 4096, kv, isa, threads)
    filled, sequences = backend.sequence(), []
    filled.fill(max(before for before, *_ in steps), rng)
    for before, *_ in steps:
        sequences.append(filled.fork(before))
    ids = [rng.integers(0, CONFIG.V, count) for _, count, _ in steps]
    alone = []
    for sequence, each, (_, _, rows) in zip(sequences, ids, steps, strict=True):
        alone.append(backend.run(each, sequence.fork(sequence.length), rows))
    together = [Step(each, s, rows) for s, each, (_, _, rows) in zip(sequences, ids, steps, strict=True)]
    for found, wanted in zip(backend.run_together(together), alone, strict=True):
        assert np.array_equal(found, wanted)
    after = [backend.run([7], sequence, slice(-1, None)) for sequence in sequences]
    again = [filled.fork(before) for before, *_ in steps]
    for sequence, each, wanted in zip(again, ids, after, strict=True):
        backend.run(each, sequence, slice(-1, None))
        assert np.array_equal(backend.run([7], sequence, slice(-1, None)), wanted)
