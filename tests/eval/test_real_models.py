"""Published models, as files that people have: right answers, and the numbers of transformers and llama.cpp."""

from itertools import islice

import numpy as np
import pytest

import qwq_ref
from qwq_ref.eval.kld import kl_divergence
from qwq_ref.formats import open_floats
from qwq_ref.tasks.verifiers import code
from tests.support.real_models import QWEN_05B, QWEN_15B, real_model
from tests.tools.cache_loss import own_text

pytestmark = pytest.mark.real

QUESTION = "Write a Python function is_prime(n) that says whether n is prime. Answer with the code only."
CHECK = """
def check(candidate):
    top = 2_000
    sieve = [n > 1 for n in range(top + 1)]
    for n in range(2, 45):
        if sieve[n]:
            sieve[n * n :: n] = [False] * len(sieve[n * n :: n])
    assert [bool(candidate(n)) for n in range(top + 1)] == sieve
"""
PROMPTS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain recursion to a child in two sentences.",
    "Translate to Chinese: good morning, my friend.",
    "def fibonacci(n):",
    "Sort these numbers: 5, 3, 9, 1.",
    "Write an SQL query that counts the rows of the table orders.",
    "What does the command `ls -la` do?",
    "A train goes 120 km in 2 hours. How fast is it?",
    "Name three fruits.",
]
TOKENS, CLOSE = 100, 0.1  # logits of the two likeliest tokens nearer than CLOSE: either may come


@pytest.mark.parametrize("name", [QWEN_05B, QWEN_15B])
def test_the_code_that_it_writes_is_right(name):
    model = qwq_ref.load(real_model(name), context=1024, text=True)
    answer = "".join(piece.text for piece in model.generate(QUESTION, max_tokens=300, temperature=0))
    verdict = code.verify_function(code.extract_code(answer), "is_prime", CHECK)
    assert verdict.correct, (verdict.why, answer)


@pytest.fixture(scope="module")
def ids():
    tokenizer = qwq_ref.load(real_model(QWEN_05B), context=32, text=True).tokenizer
    return [id for text in own_text() for id in tokenizer.encode(text)[:256]]


@pytest.fixture(scope="module")
def transformers_logits(ids):
    """Those of transformers in float32, on the weights of the file in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    with open_floats(real_model(QWEN_05B)) as source:
        config = source.config
        state = {name: torch.from_numpy(np.array(source[name])) for name in source}
    values = {
        "vocab_size": config.V,
        "hidden_size": config.D,
        "intermediate_size": config.F,
        "num_hidden_layers": config.L,
        "num_attention_heads": config.H,
        "num_key_value_heads": config.K,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    hf = transformers.Qwen2ForCausalLM._from_config(
        transformers.Qwen2Config(**values), attn_implementation="eager", dtype=torch.float32
    )
    hf.load_state_dict(state, strict=not config.tie_word_embeddings)
    with torch.no_grad():
        return hf.eval()(torch.tensor([ids])).logits[0].double().numpy()


def loss(reference, logits):
    return kl_divergence(reference, logits.astype(np.float64)).mean()


def test_logits_in_float32_are_those_of_transformers(ids, transformers_logits):
    model = qwq_ref.load(real_model(QWEN_05B), weights="fp32", kv="fp32", context=len(ids))
    assert loss(transformers_logits, model.logits(ids)) <= 1e-9


def test_weights_of_the_file_lose_as_little_as_in_llama_cpp(ids, transformers_logits):
    """llama.cpp rounds activations in groups of 32, with a cache of float16."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the peer: pip install 'qwq_ref[bench]'")
    path = real_model(QWEN_05B)
    peer = llama_cpp.Llama(str(path), n_ctx=len(ids), n_batch=len(ids), logits_all=True, verbose=False)
    peer.eval(ids)
    theirs = loss(transformers_logits, np.array(peer.scores[: len(ids)]))
    ours = loss(transformers_logits, qwq_ref.load(path, kv="fp32", context=len(ids)).logits(ids))
    print(f"KLD: {ours:.2e}, llama.cpp's {theirs:.2e}")
    assert ours <= 1.3 * theirs


def greedy(session, ids):
    """The likeliest tokens after a prompt, past the end of the answer too."""
    session.extend(ids)
    found = []
    while len(found) < TOKENS:
        found.append(int(session.next_logits().argmax()))
        session.extend(found[-1:])
    return found


def test_greedy_tokens_are_those_of_llama_cpp():
    """Up to the first place where the two likeliest tokens are so near each other that rounding may decide."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="the peer: pip install 'qwq_ref[bench]'")
    path = real_model(QWEN_05B)
    theirs = llama_cpp.Llama(str(path), n_ctx=512, n_threads=1, verbose=False)
    ours = qwq_ref.load(path, context=512, text=True, threads=1)
    exact = qwq_ref.load(path, weights="fp32", kv="fp32", context=512)
    equal = 0
    for prompt in PROMPTS:
        ids = ours.prompt_ids(prompt)
        found = greedy(ours.session(), ids)
        theirs.reset()
        others = list(islice(theirs.generate(ids, temp=0.0, repeat_penalty=1.0), TOKENS))
        differ = next((i for i, pair in enumerate(zip(found, others, strict=True)) if pair[0] != pair[1]), None)
        if differ is None:
            equal += len(found)
            continue
        equal += differ
        best = np.sort(exact.logits(ids + found[:differ])[-1])[-2:]
        assert best[1] - best[0] < CLOSE, (prompt, differ, best)
    print(f"{equal} of {TOKENS * len(PROMPTS)} tokens are equal")
