"""The shipped models: what transformers makes of them, that they fit, and that qwq-nano answers."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.formats import Checkpoint, resolve
from qwq_ref.spec import forward
from qwq_ref.train.sft import STAGES
from tests.support import hf
from tests.support.paths import DOCS

NAMES = ("qwq-nano-base", "qwq-nano")
QUESTIONS = ("What is 123+456?", "计算38-19。", "Find gcd(39,76).")


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    return resolve(request.param)


@pytest.fixture(scope="module", params=["core", "numpy"])
def nano(request):
    if request.param == "core" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    return qwq_ref.load("qwq-nano", backend=request.param)


def weights_of(name):
    with Checkpoint.open(resolve(name)) as checkpoint:
        return dict(checkpoint)


def test_it_is_small_and_whole(shipped):
    assert sum(path.stat().st_size for path in shipped.iterdir() if path.suffix == ".safetensors") <= 6_000_000
    with Checkpoint.open(shipped) as checkpoint:
        assert checkpoint.dtypes.keys() == {"BF16"}
        checkpoint.check_finite()
        config = checkpoint.config
    assert (config.H, config.K, config.G, config.tie_word_embeddings) == (10, 2, 5, False)
    for inputs in (config.D, config.F, config.H * config.E):
        assert inputs % 64 == 0  # of each matrix: so that every kernel runs on it


def test_its_log_and_recipe_are_of_the_run_that_made_it(shipped):
    recipe = json.loads((shipped / "recipe.json").read_text())
    stage = STAGES[recipe["stage"]]
    assert recipe["steps"] == stage.steps
    with open(shipped / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, stage.steps + 1))
    assert sum(float(row["seconds"]) for row in rows) < 90 * 60
    assert np.mean([float(row["loss"]) for row in rows[-50:]]) < np.mean([float(row["loss"]) for row in rows[:50]])


def test_both_have_one_tokenizer_and_template():
    for name in ("tokenizer.json", "chat_template.jinja", "config.json"):
        assert len({hashlib.sha256((resolve(model) / name).read_bytes()).digest() for model in NAMES}) == 1, name


@pytest.mark.shared
def test_the_template_is_qwq_32b_s(shared_data):
    published = (shared_data / "qwq-32b" / "chat_template.jinja").read_text()
    assert (resolve("qwq-nano") / "chat_template.jinja").read_text() == published


def test_transformers_says_the_same(nano):
    """Logits within the spec's gates against HF, judged by float64, and the same 200 tokens of greedy text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve("qwq-nano")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for question in QUESTIONS:
        ids = nano.prompt_ids(question)
        messages = [{"role": "user", "content": question}]
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
        with torch.no_grad():
            wanted = theirs(torch.tensor([ids])).logits[0].numpy()
        truth, _ = forward(nano.config, weights_of("qwq-nano"), ids, dtype=np.float64)
        assert hf.nmse(nano.logits(ids), wanted) <= 1e-11
        assert hf.nmse(nano.logits(ids), truth) <= max(4 * hf.nmse(wanted, truth), (16 * 2.0**-24) ** 2)
        # Past its own end, so that there are 200: neither side stops at an end token.
        more = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=200, eos_token_id=511)
        said = greedy(nano, ids, 200)
        assert more[0, len(ids) :].tolist() == said
        assert tokenizer.decode(said) == nano.tokenizer.decode(said, skip_special=False)


def greedy(model, ids, count):
    session, said = model.session(), []
    session.extend(ids)
    for _ in range(count):
        said.append(int(np.argmax(session.next_logits())))
        if said[-1] == 511:
            break
        session.extend(said[-1:])
    return said


def test_it_answers_for_real(capsys):
    """The README's question, with the defaults of every option but the seed."""
    assert main(["generate", "What is 123+456?", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == "The answer is \\boxed{579}.\n"
    assert "321+654" in err


def test_its_figures_are_near_those_of_the_docs(capsys):
    """A sample of what `qwq eval` measures in full, with room for chance: 100 of each category."""
    arguments = ["--backend", "numpy", "--seed", "7", "--categories", "trained"]
    assert main(["eval", "-n", "100", "--json", *arguments]) == 0
    report = json.loads(capsys.readouterr().out)
    published = json.loads((DOCS / "qwq-nano.json").read_text())
    wanted = {row["category"]: row["accuracy"] for row in published["categories"]}
    for row in report["categories"]:
        spread = 4 * np.sqrt(max(wanted[row["category"]] * (1 - wanted[row["category"]]), 0.01) / 100)
        assert abs(row["accuracy"] - wanted[row["category"]]) <= spread, row
    assert abs(report["mean"] - published["mean"]) <= 0.03
