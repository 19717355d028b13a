"""A look inside a published model: its own logits, and the memory that was counted."""

import json
import subprocess
import sys

import numpy as np
import pytest

import qwq_ref
from qwq_ref.formats import open_floats
from qwq_ref.inside import SUBJECTS, look, needs
from tests.support.real_models import QWEN_05B, real_model

pytestmark = pytest.mark.real
PROMPT = "The capital of France is"
# Prints the peak of memory before and after a look at a model.
PEAKS = """
import json, sys
from qwq_ref.formats import open_floats
from qwq_ref.host.memory import peak_bytes
from qwq_ref.inside import look
with open_floats(sys.argv[1]) as weights:
    before = peak_bytes()
    look(weights.config, weights, range(1000, 1200), ["attention", "residual", "lens"], head=0)
    print(json.dumps([before, peak_bytes()]))
"""


@pytest.fixture(scope="module")
def file():
    return real_model(QWEN_05B)


def test_the_lens_ends_in_the_logits_of_the_numpy_backend(file):
    model = qwq_ref.load(file, backend="numpy", context=64)
    ids = model.tokenizer.encode(PROMPT)
    logits = model.logits(ids).astype(np.float64)
    probs = np.exp(logits - logits.max(-1, keepdims=True))
    probs /= probs.sum(-1, keepdims=True)
    with open_floats(file) as weights:
        found = look(weights.config, weights, ids, SUBJECTS, head=3)
    ids_of_lens = found.lens.ids[-1]
    assert np.array_equal(ids_of_lens[:, 0], logits.argmax(-1))
    np.testing.assert_allclose(found.lens.probs[-1], np.take_along_axis(probs, ids_of_lens, -1), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.attention.query.sum(-1), 1, rtol=0, atol=1e-5)
    facts = found.to_dict(model.tokenizer)
    assert facts["lens"]["texts"][str(ids_of_lens[-1, 0])] == " Paris"
    assert found.residual.rms[5, 0] > 20 * found.residual.rms[5, 1:].max()  # heads without work look at the first token


def test_memory_is_what_was_counted(file):
    """The model has 1.98 GB in float32; a look holds its largest tensor."""
    done = subprocess.run([sys.executable, "-c", PEAKS, file], capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    with open_floats(file) as weights:
        counted = sum(needs(weights.config, 200, SUBJECTS).values())
    assert 0.4 * counted < after - before <= counted + (64 << 20)
