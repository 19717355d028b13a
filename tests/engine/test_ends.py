"""The tokens that end an answer: all that a model's files name, and the one that its template writes after a turn."""

import json

import numpy as np
import pytest

import qwq_ref
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.engine.decode import plain
from qwq_ref.engine.ends import end_tokens
from qwq_ref.engine.sampler import Sampler
from qwq_ref.engine.session import Session
from qwq_ref.formats import GenerationConfig
from qwq_ref.spec import Sampling
from qwq_ref.text import ChatTemplate
from qwq_ref.train import rollout
from tests.support.checkpoints import PADDED, id_of, scripted_weights, write_checkpoint
from tests.support.models import config_values
from tests.support.scripts import Script
from tests.support.small_tokenizer import SIZE, VALUES

TEXT_END, TURN_END, OTHER = id_of("<|endoftext|>"), id_of("<|im_end|>"), id_of("<|box_end|>")
ENDS_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def model_with(tmp_path):
    def model_with(eos=None, generation=None, tokenizer=None, template=ENDS_TURNS):
        values = config_values(vocab_size=PADDED, eos_token_id=eos)
        folder = write_checkpoint(tmp_path, values, scripted_weights(values, {}))
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        if tokenizer is not None:
            (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        if template is None:
            (folder / "chat_template.jinja").unlink()
        else:
            (folder / "chat_template.jinja").write_text(template)
        return qwq_ref.load(folder, backend="numpy")

    return model_with


NO_EOS = {"eos_token": None}
PLACES = {
    "a base model's config": ({"eos": TEXT_END, "tokenizer": NO_EOS}, {TEXT_END: "config", TURN_END: "template"}),
    "each another": (
        {"eos": TEXT_END, "generation": [OTHER, 5], "tokenizer": {"eos_token": "<think>"}},
        {OTHER: "config", 5: "config", TEXT_END: "config", id_of("<think>"): "tokenizer", TURN_END: "template"},
    ),
    "all the same": (
        {"eos": [TURN_END], "generation": TURN_END, "tokenizer": {"eos_token": "<|im_end|>"}},
        {TURN_END: "config, tokenizer, template"},
    ),
    "the tokenizer alone": ({"tokenizer": {"eos_token": "<|im_end|>"}, "template": None}, {TURN_END: "tokenizer"}),
    "the template alone": ({"tokenizer": NO_EOS}, {TURN_END: "template"}),
    "the tokenizer's class": ({"template": None}, {TEXT_END: "tokenizer"}),
    "nobody": ({"tokenizer": NO_EOS, "template": None}, {}),
    "no token of this tokenizer": (
        {"tokenizer": {"eos_token": "<|eot_id|>"}, "template": ENDS_TURNS.replace("im_end", "eot_id")}, {}),
    "a template that fails": (
        {"eos": TEXT_END, "tokenizer": NO_EOS, "template": "{{ raise_exception('roles must alternate') }}"},
        {TEXT_END: "config"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_every_place_counts(model_with, name):
    arguments, wanted = PLACES[name]
    assert model_with(**arguments).end_tokens == wanted


def test_without_a_tokenizer_the_config_counts(small):
    defaults = GenerationConfig((3,), model_eos_token_ids=(3, 4))
    assert end_tokens(defaults, None, None) == {3: "config", 4: "config"}
    assert end_tokens(defaults, None, ChatTemplate(ENDS_TURNS)) == {3: "config", 4: "config"}


@pytest.mark.parametrize("raw", [False, True])
def test_an_answer_ends_at_the_end_of_a_turn(model_with, raw):
    model = model_with(eos=TEXT_END, tokenizer=NO_EOS)
    said = model.tokenizer.encode("abc")
    model.backend = Script(PADDED, [*said, TURN_END], last=7)
    generation = model.generate("what?", raw=raw, temperature=0, max_tokens=20)
    assert "".join(map(str, generation)) == "abc"
    assert generation.run.finish_reason == "stop"


def test_verbose_output_names_the_tokens_once(model_with, tmp_path, capsys):
    model_with(eos=TEXT_END, generation=5, tokenizer={"eos_token": "<|endoftext|>"})
    assert main(["generate", "-m", str(tmp_path), "what?", "-v", "-n", "2"]) == 0
    err = capsys.readouterr().err
    line = f"end tokens: 5 (config), <|endoftext|> {TEXT_END} (config, tokenizer), <|im_end|> {TURN_END} (template)\n"
    assert err.count(line) == 1
    assert main(["generate", "-m", str(tmp_path), "what?", "-n", "2"]) == 0
    assert "end tokens" not in capsys.readouterr().err


# --- Ids that no text has --------------------------------------------------------------------------------------------


class Loves(Script):
    """A backend that would say ids of a hole, and else one token behind it."""

    def __init__(self, size, hole):
        super().__init__(size, [], 0)
        self.row = np.zeros(self.config.V, np.float32)
        self.row[hole.start : hole.stop] = 9
        self.row[hole.stop + 3] = 8

    def run(self, ids, sequence, rows, tap=None, progress=None):
        return self.row[None]


def test_ids_in_holes_are_never_drawn(tmp_path):
    folder = tmp_path
    config = config_values(vocab_size=PADDED, eos_token_id=5)
    write_checkpoint(folder, config, scripted_weights(config, {}))
    added = [{**entry, "id": entry["id"] + 4} for entry in VALUES["added_tokens"]]
    (folder / "tokenizer.json").write_text(json.dumps({**VALUES, "added_tokens": added}))
    model = qwq_ref.load(folder, backend="numpy")
    (hole,) = model.tokenizer.holes
    assert len(hole) == 4
    model.backend = Loves(PADDED, hole)
    generation = model.generate("what?", temperature=1, top_k=1, max_tokens=30, seed=1)
    list(generation)
    assert generation.run.output == [hole.stop + 3] * 30
    assert model.backend.row[hole.start] == 9  # the backend's own array is left alone
    how = {"end_ids": (), "vocabulary": SIZE + 4, "max_tokens": 20, "seed": 3, "never": [hole]}
    (answer,) = rollout.answers_each(model.backend, [[1, 2]], Sampling(top_k=1), **how)
    assert answer.ids == [hole.stop + 3] * 20


def test_batched_answers_skip_them_too():
    values = config_values(vocab_size=PADDED, hidden_size=PADDED)
    weights = scripted_weights(values, {1: 7})
    weights["lm_head.weight"][8, 1] = 0.5
    how = {"end_ids": (), "vocabulary": PADDED, "max_tokens": 1, "seed": 0}
    config = Config.from_dict(values)
    assert rollout.answers(config, weights, [[1]], Sampling(0.0), **how)[0].ids == [7]
    assert rollout.answers(config, weights, [[1]], Sampling(0.0), never=[range(6, 8)], **how)[0].ids == [8]


def test_a_loop_without_holes_copies_nothing():
    class Keeps(Script):
        def run(self, *arguments, **more):
            self.made = super().run(*arguments, **more)
            return self.made

    backend, seen = Keeps(PADDED, [1], 2), []

    def choose(logits, prompt, output):
        seen.append(np.shares_memory(logits, backend.made))
        return Sampler(Sampling(0.0), 0)(logits, prompt, output)

    run = plain.Run([1], 0)
    list(plain.generate(Session(backend), run, choose, end_ids=[2], vocabulary=SIZE, context=9))
    assert seen == [True, True]
