"""Perplexity of a real file beside llama.cpp on the same file and the same chunks of the same tokens."""

import numpy as np
import pytest

import qwq_ref
from qwq_ref.eval.chunks import measure
from tests.support.paths import ROOT
from tests.support.real_models import QWEN_05B, real_model

CTX, CHUNKS = 512, 4

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def path():
    return real_model(QWEN_05B)


@pytest.fixture(scope="module")
def text():
    """Code and prose, a little more than 1,024 tokens of each."""
    code, prose = ((ROOT / name).read_text() for name in ("qwq_ref/spec/ops.py", "docs/glossary.md"))
    return code[:4000] + prose[:9000]


@pytest.fixture(scope="module")
def theirs(path, text):
    """-> the surprises [n] that llama.cpp gives, in the second halves of the chunks, written from its README."""
    package = pytest.importorskip("llama_cpp", reason="runs the real llama.cpp: pip install 'qwq_ref[bench]'")
    model = package.Llama(model_path=str(path), n_ctx=CTX, n_batch=CTX, logits_all=True, verbose=False)
    ids = model.tokenize(text.encode(), add_bos=False, special=False)
    assert len(ids) >= CTX * CHUNKS
    surprises = []
    for start in range(0, CTX * CHUNKS, CTX):
        chunk = ids[start : start + CTX]
        model.reset()
        model.eval(chunk)
        for position in range(CTX // 2, CTX - 1):
            logits = model.scores[position].astype(np.float64)
            surprises.append(np.logaddexp.reduce(logits) - logits[chunk[position + 1]])
    model.close()
    return np.array(surprises)


@pytest.mark.parametrize("kv", ["fp32", "int8"])
def test_it_is_that_of_llama_cpp(path, text, theirs, kv):
    ours = measure(qwq_ref.load(path, kv=kv, context=CTX), text, ctx=CTX, chunks=CHUNKS)
    assert (ours.chunks, ours.tokens) == (CHUNKS, len(theirs))
    ppl, error = np.exp(theirs.mean()), np.exp(theirs.mean()) * theirs.std() / np.sqrt(len(theirs) - 1)
    print(f"{kv}: PPL {ours.ppl.value:.5f} +/- {ours.ppl.error:.5f}, llama.cpp {ppl:.5f} +/- {error:.5f}")
    assert ours.ppl.value == pytest.approx(ppl, rel=3e-3)
    assert ours.ppl.error == pytest.approx(error, rel=1e-2)
