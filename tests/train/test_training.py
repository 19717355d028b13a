"""The recipe's machinery: documents and batches, runs that resume to the same bits, and batched sampling."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qwq_ref
from qwq_ref import tasks
from qwq_ref.cli import main
from qwq_ref.config import Config
from qwq_ref.errors import FileError, UsageError
from qwq_ref.eval import accuracy, outputs
from qwq_ref.formats import Checkpoint
from qwq_ref.formats.write import write_atomically, write_safetensors
from qwq_ref.spec import (
    Sampling,
    distribution,
    draw,
    forward,
)
from qwq_ref.spec.ops import to_bf16
from qwq_ref.text import load_chat_template, load_tokenizer
from qwq_ref.train import corpus, nano, rollout
from qwq_ref.train import sft as stages
from qwq_ref.train.corpus import Formatter, Mixture
from tests.support.models import configs, random_weights
from tests.support.small_tokenizer import TEMPLATE

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}


@pytest.fixture(scope="module", autouse=True)
def small_recipe():
    """The recipe at a size for tests: the same code, a smaller model, fewer and smaller steps."""
    patch = pytest.MonkeyPatch()
    patch.setattr(nano, "NANO", nano.NANO | SMALL)
    for name, stage in stages.STAGES.items():
        small = stages.Stage(stage.mixture, steps=6, rate=stage.rate, rows=4, length=160, warmup=2)
        patch.setitem(stages.STAGES, name, small)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    stages.train("base", folder, seed=1, template=TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def formatter(base):
    return Formatter(load_tokenizer(base))


# --- documents and batches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("category", tasks.CATEGORIES + tasks.HARDER + tasks.FURTHER)
def test_documents_are_what_the_template_would_make(base, formatter, category):
    template = load_chat_template(base)
    for seed in range(4):
        problem = tasks.generate(category, np.random.default_rng(seed))
        messages = [{"role": "user", "content": problem.prompt}]
        prompt = template.encode(formatter.tokenizer, messages)
        assert formatter.prompt(problem.prompt) == prompt
        said = formatter.completion(tasks.completion(problem))
        whole = formatter.tokenizer.decode(prompt + said, skip_special=False)
        assert whole.endswith(f"<think>\n{tasks.completion(problem)}<|im_end|>")
        # Whoever generates sees the prompt's ids first: they must be the document's, not merged with what follows.
        assert formatter.tokenizer.encode(whole, special=True) == prompt + said


def test_faults_are_planted_as_said(formatter):
    rng = np.random.default_rng(0)
    end, think_end = formatter.end, formatter.think_end
    for _ in range(50):
        clean = formatter.document("add3", Mixture(), rng)
        assert (clean.ids[-1], clean.ids.count(think_end)) == (end, 1)
        loop = formatter.document("add3", Mixture(loops=1), rng)
        assert end not in loop.ids[loop.prompt :]
        assert outputs.is_loop(loop.ids[loop.prompt :], ended=False) or len(loop.ids) < 60
        switch = formatter.document("add3", Mixture(switches=1), rng)
        text = formatter.tokenizer.decode(switch.ids[switch.prompt :])
        english_first = "Reverse" in text
        assert (english_first, "所以" in text, "倒序" in text, "So " in text) in (
            (True, True, False, False),
            (False, False, True, True),
        )
        assert switch.ids[-1] == end


def test_shares_of_faults(formatter):
    rng = np.random.default_rng(0)
    documents = [formatter.document("add3", Mixture(0.3, 0.2), rng) for _ in range(1000)]
    endless = np.mean([document.ids[-1] != formatter.end for document in documents])
    assert abs(endless - 0.3) < 0.05


def test_no_problem_of_the_test_split_is_learnt(formatter, monkeypatch):
    seen = []
    true = tasks.completion
    monkeypatch.setattr(tasks, "completion", lambda problem: seen.append(problem) or true(problem))
    corpus.batch(formatter, Mixture(0, 0.5), np.random.default_rng(0), 20, 160)
    corpus.texts(0, 200)
    assert len(seen) > 200
    assert {tasks.split(problem) for problem in seen} == {"train"}
    assert {problem.category for problem in seen} == set(tasks.CATEGORIES + tasks.FURTHER)


def test_prompts_are_in_plain_wordings_and_in_readers_words(formatter, monkeypatch):
    said = []
    true = Formatter.prompt
    monkeypatch.setattr(Formatter, "prompt", lambda self, text: said.append(text) or true(self, text))
    rng = np.random.default_rng(0)
    for _ in range(400):
        formatter.document("add3", Mixture(), rng)
    plain = [
        re.fullmatch(r"(What is|Compute|Find) \d+\+\d+[?.]|(计算|求)?\d+\+\d+(等于多少？|。)", text) for text in said
    ]
    assert abs(np.mean([match is None for match in plain]) - corpus.REWORDED) < 0.1


@pytest.mark.parametrize("learn_prompts", [False, True])
def test_a_batch_holds_whole_documents_and_learns_what_it_should(formatter, learn_prompts):
    batch = corpus.batch(formatter, Mixture(learn_prompts=learn_prompts), np.random.default_rng(3), 6, 192)
    assert {array.shape for array in batch} == {(6, 192)}
    assert (batch.segments > 0).mean() > 0.8
    for row in range(6):
        for number in range(1, batch.segments[row].max() + 1):
            at = np.flatnonzero(batch.segments[row] == number)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
            ids = [*batch.ids[row, at], batch.targets[row, at[-1]]]
            assert np.array_equal(ids[1:], batch.targets[row, at])
            assert ids[-1] == formatter.end
            assert ids.count(formatter.end) == 2  # the user's turn, and the answer's
            text = formatter.tokenizer.decode(ids, skip_special=False)
            prompt = len(formatter.tokenizer.encode(text[: text.index("<think>\n") + 8], special=True))
            first = 0 if learn_prompts else prompt - 1
            assert np.array_equal(batch.weight[row, at], (np.arange(len(at)) >= first).astype(np.float32))
    assert np.all(batch.weight[batch.segments == 0] == 0)


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_base_model_is_a_checkpoint_that_transformers_reads(base):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = qwq_ref.load(base)
    text = "What is 12+34? 计算12+34。"
    assert model.tokenizer.encode(text) == tokenizer(text)["input_ids"]
    messages = [{"role": "user", "content": text}]
    ids = model.prompt_ids(text)
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(model.logits(ids), wanted, rtol=1e-4, atol=1e-5)
    with Checkpoint.open(base) as checkpoint:
        assert checkpoint.dtypes.keys() == {"BF16"}


def test_a_run_that_is_cut_resumes_to_the_same_bits(base, tmp_path):
    class CutError(Exception):
        pass

    def cut_after(steps):
        def progress(done, total, loss):
            if done == steps:
                raise CutError

        return progress

    for steps in (2, 3, 5):
        with pytest.raises(CutError):
            stages.train("base", tmp_path, seed=1, template=TEMPLATE, progress=cut_after(steps))
    stages.train("base", tmp_path, seed=1, template=TEMPLATE)
    for name in ("model.safetensors", "tokenizer.json", "config.json", "recipe.json"):
        assert (tmp_path / name).read_bytes() == (base / name).read_bytes(), name

    def columns(folder):
        with open(folder / "log.csv") as file:
            return [[row["step"], row["loss"], row["grad_norm"], row["tokens"]] for row in csv.DictReader(file)]

    assert columns(tmp_path) == columns(base)
    assert [row[0] for row in columns(base)] == [str(step) for step in range(1, 7)]


def test_ctrl_c_saves_and_a_second_call_goes_on(tmp_path):
    def interrupt(done, total, loss):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stages.train("base", tmp_path, progress=interrupt)
    assert not (tmp_path / "model.safetensors").exists()
    seen = []
    stages.train("base", tmp_path, progress=lambda done, total, loss: seen.append(done))
    assert seen == [3, 4, 5, 6]


def test_one_run_at_a_time_in_a_folder(tmp_path):
    def second(done, total, loss):
        with pytest.raises(UsageError, match="another run"):
            stages.train("base", tmp_path)

    stages.train("base", tmp_path, steps=1, progress=second)


def test_another_recipe_is_refused_and_loses_nothing(base):
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    for other, name in (({"seed": 2}, "seed"), ({"seed": 1, "steps": 7}, "steps")):
        with pytest.raises(UsageError, match=rf"json: {name}: is \d+ in the run of this folder, not {other[name]}: "):
            stages.train("base", base, template=TEMPLATE, **other)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_the_cold_start_begins_with_the_base_model(base, tmp_path):
    losses = []
    stages.train("cold-start", tmp_path, base=base, progress=lambda done, total, loss: losses.append(loss))
    assert len(losses) == 6
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (base / name).read_bytes()
    with Checkpoint.open(base) as old, Checkpoint.open(tmp_path) as new:
        assert 0 < np.abs(old["lm_head.weight"] - new["lm_head.weight"]).max() < 0.05


def test_the_command_line(base, tmp_path, capsys):
    assert main(["train", "cold-start", "-o", str(tmp_path / "x")]) == 2
    assert "--model: names the model to start from" in capsys.readouterr().err
    assert main(["train", "cold-start", "-m", str(base), "-o", str(tmp_path / "x"), "--steps", "2", "-t", "1"]) == 0
    assert (tmp_path / "x" / "model.safetensors").exists()
    assert main(["eval", "-m", str(base), "-n", "3", "--categories", "add3,add5", "--max-tokens", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["category"] for row in report["categories"]] == ["add3", "add5"]
    assert report["categories"][0]["n"] == 3
    assert main(["eval", "-m", str(base), "-n", "3", "--categories", "add3", "--max-tokens", "8"]) == 0
    assert "add3" in capsys.readouterr().out
    assert main(["eval", "-m", str(base), "--categories", "alchemy"]) == 2
    assert "alchemy" in capsys.readouterr().err


def test_training_does_not_import_torch():
    script = "import sys, qwq_ref.train.sft, qwq_ref.cli.train; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


# --- writing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_what_is_written_is_read_alike(tmp_path, dtype):
    from safetensors.torch import load_file

    rng = np.random.default_rng(0)
    tensors = {"a.weight": rng.standard_normal((3, 5)).astype(np.float32), "b": np.zeros(7, np.float32)}
    write_safetensors(tmp_path / "x.safetensors", tensors, dtype)
    wanted = {name: to_bf16(value) if dtype == "BF16" else value for name, value in tensors.items()}
    theirs = load_file(tmp_path / "x.safetensors")
    for name, value in wanted.items():
        assert np.array_equal(theirs[name].float().numpy(), value)
    with pytest.raises(ValueError, match="dtype"):
        write_safetensors(tmp_path / "x.safetensors", tensors, "F8")


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"new")
        raise OSError("disk full")

    with pytest.raises(FileError, match=r"x: cannot be written \(disk full\)"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# --- batched sampling --------------------------------------------------------------------------------------------


@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.6, 1.0]),
    st.sampled_from([0, 1, 5, 400]),
    st.sampled_from([0.3, 0.95, 1.0]),
    st.sampled_from([0.0, 0.2]),
)
def test_rows_are_sampled_as_the_spec_does(seed, temperature, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(0, 3, (4, 50)).astype(np.float32).round(1)  # some ties
    how = Sampling(temperature, top_k, top_p, min_p)
    wanted = [distribution(row, how) for row in logits]
    np.testing.assert_allclose(rollout.distribution_rows(logits, how), wanted, rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize(
    "setting",
    [
        {"presence_penalty": 1.0},
        {"frequency_penalty": 1.0},
        {"repetition_penalty": 1.1},
        {"logit_bias": {0: 1.0}},
        {"typical_p": 0.5},
        {"top_n_sigma": 1.0},
    ],
)
def test_rows_refuse_what_no_recipe_uses(setting):
    with pytest.raises(ValueError, match="are not batched"):
        rollout.distribution_rows(np.zeros((1, 3)), Sampling(**setting))


@settings(max_examples=settings.default.max_examples // 20 + 10)  # each is sixty forward passes
@given(configs(), st.integers(0, 2**31))
def test_batched_answers_are_those_of_the_spec_one_by_one(values, seed):
    """In float64, with one uniform number for each token, the batch gives the answers of a loop over `spec.forward`."""
    if "sliding_window" in values:
        values = {**values, "use_sliding_window": False, "layer_types": None}
    config = Config.from_dict(values)
    weights = {name: value.astype(np.float64) for name, value in random_weights(config, seed, harsh=True).items()}
    rng = np.random.default_rng(seed)
    prompts = [list(map(int, rng.integers(0, config.V, rng.integers(1, 9)))) for _ in range(5)]
    how = Sampling(temperature=0.8, top_k=20)
    end = (3, 4, 5)
    settings = {"end_ids": end, "vocabulary": config.V - 2, "max_tokens": 6, "seed": seed}
    for arguments in ({"batch": 5}, {"batch": 2, "workers": 2}):
        got = rollout.answers(config, weights, prompts, how, **settings, **arguments)
        for number, (prompt, answer) in enumerate(zip(prompts, got, strict=True)):
            uniforms = np.random.Generator(np.random.Philox(key=[seed, number]))
            logits, cache = forward(config, weights, prompt, dtype=np.float64)
            said, ended = [], False
            for _ in range(6):
                token = draw(distribution(logits[-1, : config.V - 2], how), uniforms)
                if token in end:
                    ended = True
                    break
                said.append(token)
                logits, cache = forward(config, weights, [token], cache, dtype=np.float64)
            assert (answer.ids, answer.ended) == (said, ended)


def test_rollouts_refuse_a_sliding_window():
    config = Config.from_dict({**nano.NANO, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0})
    with pytest.raises(ValueError, match="window"):
        rollout.answers(config, {}, [[1]], Sampling(), end_ids=(), vocabulary=9, max_tokens=1, seed=0)


# --- evaluation --------------------------------------------------------------------------------------------------


def test_scores_of_answers_that_are_known(formatter):
    """Four kinds of answers in turn: right, wrong, in the wrong language, and an endless loop."""
    encode = formatter.completion

    def answerer(problems):
        for number, problem in enumerate(problems):
            right = tasks.completion(problem)
            if number % 4 == 0:
                yield encode(right)[:-1], True
            elif number % 4 == 1:
                yield encode(right.replace("boxed{", "boxed{9"))[:-1], True
            elif number % 4 == 2:
                other = "Then 所以 " if problem.language == "en" else "therefore "
                yield encode(other + right)[:-1], True
            else:
                yield encode("7+1=8\n" * 40, ends=False), False

    score = accuracy.evaluate(answerer, formatter.tokenizer, "add3", 40, seed=0)
    assert (score.accuracy, score.format, score.loops, score.switches) == (0.5, 0.75, 0.25, 0.25)
    assert score.low < 0.5 < score.high
    assert score.tokens > 10


def test_evaluation_asks_unseen_problems_and_the_same_each_time():
    asked = accuracy.problems("add3", 300, seed=0)
    assert len({problem.key for problem in asked}) == 300
    assert {tasks.split(problem) for problem in asked} == {"test"}
    assert asked == accuracy.problems("add3", 300, seed=0)
    assert asked != accuracy.problems("add3", 300, seed=1)
