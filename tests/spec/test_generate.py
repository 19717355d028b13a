"""`spec.generate`: text out of the spec alone."""

import numpy as np
import pytest
import torch

import qwq_ref
from qwq_ref import spec
from qwq_ref.config import Config
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.spec import Sampling
from tests.support import hf
from tests.support.models import config_values, random_weights

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def small():
    values = config_values()
    config = Config.from_dict(values)
    return values, config, random_weights(config, 5, harsh=True)


def run(small, how=GREEDY, seed=0, **more):
    _, config, weights = small
    return spec.generate(config, weights, [3, 1, 4], how, np.random.default_rng(seed), **more)


def test_greedy_output_is_that_of_hugging_face(small):
    values, config, weights = small
    model = hf.build(config, values, weights)
    theirs = model.generate(torch.tensor([[3, 1, 4]]), max_new_tokens=12, do_sample=False, eos_token_id=None)
    assert run(small, max_tokens=12) == theirs[0, 3:].tolist()


def test_each_token_is_drawn_from_the_distribution_after_all_tokens_before_it(small):
    """The loop equals its definition: no cache, one number for each token."""
    _, config, weights = small
    how = Sampling(temperature=1.5, top_k=20, repetition_penalty=1.3, presence_penalty=0.4)
    rng, wanted = np.random.default_rng(7), []
    for _ in range(10):
        logits, _ = spec.forward(config, weights, [3, 1, 4, *wanted], dtype=np.float64)
        wanted.append(spec.draw(spec.distribution(logits[-1], how, [3, 1, 4], wanted), rng))
    assert run(small, how, seed=7, max_tokens=10, dtype=np.float64) == wanted
    assert len(set(wanted)) > 1


def test_an_end_token_ends_the_output_and_is_not_in_it(small):
    whole = run(small, max_tokens=12)
    end = next(token for token in whole if token != whole[0])
    assert run(small, max_tokens=12, end_ids=[end, 52]) == whole[: whole.index(end)]
    assert run(small, max_tokens=12, end_ids=[whole[0]]) == []


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_limit_ends_the_output(small, count):
    assert run(small, max_tokens=count) == run(small, max_tokens=12)[:count]


def test_the_spec_alone_answers_a_question():
    model = qwq_ref.load("qwq-nano", backend="numpy")
    with Checkpoint.open(resolve("qwq-nano")) as weights:
        ids = spec.generate(
            weights.config,
            weights,
            model.prompt_ids("What is 123+456?"),
            GREEDY,
            np.random.default_rng(0),
            max_tokens=100,
            end_ids=model.defaults.eos_token_ids,
        )
    assert model.tokenizer.decode(ids).endswith(r"\boxed{579}.")


def test_the_precision_is_that_of_the_model(small):
    """`generate` passes the precision on: it refuses one that `forward` refuses."""
    with pytest.raises(ValueError, match="dtype"):
        run(small, max_tokens=1, dtype=np.int32)
