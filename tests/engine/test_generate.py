"""The model and the loop of `qwq generate`, on both backends: Hugging Face's logits and text, and every limit."""

import json

import numpy as np
import pytest
import torch

from qwq_ref.engine.backends import LAST
from qwq_ref.engine.decode import plain as loop
from qwq_ref.engine.sampler import Sampler
from qwq_ref.engine.session import Session
from qwq_ref.errors import UsageError
from qwq_ref.spec import Sampling, forward
from tests.support import hf
from tests.support.checkpoints import PADDED, weights_of
from tests.support.scripts import Length
from tests.support.small_tokenizer import SIZE


def test_greedy_text_is_hf(random_folder, random_model):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(random_folder, dtype=torch.float32, attn_implementation="eager")
    ids = random_model.prompt_ids("count to three")
    padding = list(range(SIZE, PADDED))
    wanted = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=60, suppress_tokens=padding)
    wanted = wanted[0, len(ids) :].tolist()
    generation = random_model.generate("count to three", temperature=0, max_tokens=60)
    list(generation)
    assert generation.run.output == wanted
    assert len(set(wanted)) >= 10


def test_logits_are_hf(random_folder, random_model):
    values = json.loads((random_folder / "config.json").read_text())
    weights = weights_of(random_folder)
    theirs = hf.build(random_model.config, values, weights)
    ids = [5, 9, 1, 200]
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    assert random_model.logits(ids).dtype == np.float32
    assert hf.nmse(random_model.logits(ids), wanted) <= 1e-10


def test_the_seed_decides(random_model):
    def say(seed):
        generation = random_model.generate("hello", max_tokens=25, seed=seed, temperature=1.5)
        text = "".join(str(piece) for piece in generation)
        return text, generation.run.output, generation.run.seed

    assert say(1) == say(1)
    assert say(1)[1] != say(2)[1]
    assert say(None)[2] != say(None)[2]


def test_padding_rows_are_never_drawn(random_model):
    class Loves:
        """A backend whose logits prefer padding, and then the last real token."""

        chunk = 10

        def sequence(self):
            return Length()

        def run(self, ids, sequence, rows, tap=None, progress=None):
            return np.arange(PADDED, dtype=np.float32)[None]

    run = loop.Run([1, 2], seed=0)
    size = random_model.tokenizer.size
    how = Sampler(Sampling(), 0)
    drawn = list(loop.generate(Session(Loves()), run, how, end_ids=(), vocabulary=size, context=50))
    assert max(drawn) == size - 1
    assert len(drawn) == 48
    assert run.finish_reason == "context"


def test_a_long_prompt_is_read_in_chunks_to_the_same_logits(random_folder, random_model):
    chunk = random_model.backend.chunk
    ids = list(np.random.default_rng(0).integers(0, SIZE, chunk * 2 + 3))
    seen = []

    class Spy(type(random_model.backend)):
        def __init__(self):
            self.__dict__.update(random_model.backend.__dict__)

        def run(self, chunk, sequence, rows, tap=None, progress=None):
            assert rows == LAST
            logits = super().run(chunk, sequence, rows, tap, progress)
            seen.append((len(chunk), logits[0]))
            return logits

    counts = []
    run = loop.Run(ids, seed=0)
    arguments = {"end_ids": (), "vocabulary": SIZE, "context": 4096, "max_tokens": 2, "progress": counts.append}
    assert len(list(loop.generate(Session(Spy()), run, Sampler(Sampling(0), 0), **arguments))) == 2
    assert [length for length, _ in seen] == [chunk, chunk, 3, 1]
    assert sum(counts) == pytest.approx(len(ids))
    whole, _ = forward(random_model.config, weights_of(random_folder), ids)
    assert hf.nmse(seen[2][1], whole[-1]) <= 1e-10


def test_a_position_has_its_own_random_number(random_model):
    """A generation that is cut and continued with the same seed gives the same tokens."""
    ids = random_model.prompt_ids("hello")

    def go(prompt, count):
        run = loop.Run(prompt, seed=3)
        how, limits = Sampler(Sampling(temperature=1.2), run.seed), {"context": 4096, "max_tokens": count}
        return list(loop.generate(random_model.session(), run, how, end_ids=(), vocabulary=SIZE, **limits))

    whole = go(ids, 12)
    assert go(ids + whole[:5], 7) == whole[5:]


def test_forced_tokens_respect_the_limits(random_model):
    run = loop.Run([1], seed=0)
    arguments = {"end_ids": (), "vocabulary": SIZE, "context": 100, "max_tokens": 5}
    session, how = random_model.session(), Sampler(Sampling(), 0)
    forced = loop.generate(session, run, how, intervene=lambda output: [7] * 50, **arguments)
    assert list(forced)[1:] == [7] * 4
    assert run.finish_reason == "length"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"think_budget": -1}, "think_budget"),
        ({"top_p": 0.0}, "top_p"),
        ({"max_tokens": 5000}, "prompt"),
        ({"prompt": "a b c d " * 3000}, "prompt"),
        ({"prompt": "", "raw": True}, "prompt"),
        ({"raw": True, "system": "x"}, "raw"),
    ],
)
def test_wrong_arguments_are_refused_before_any_computation(random_model, monkeypatch, arguments, field):
    monkeypatch.setattr(random_model, "backend", None)
    with pytest.raises(UsageError) as caught:
        random_model.generate(**{"prompt": "hello"} | arguments)
    assert caught.value.field == field
