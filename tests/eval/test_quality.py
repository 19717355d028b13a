"""The loss of the engine's modes on the shipped model, in its logits and in its answers: docs/quality.md."""

import functools
import json

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core, tasks
from qwq_ref.cli import main
from qwq_ref.eval import accuracy, pairs
from qwq_ref.spec import Sampling
from qwq_ref.train import rollout
from tests.tools import quality

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

# The most that KLD may be, and the least share of positions with the same likeliest token: half or less of what is
# promised of 8 bits (2e-3, 97.5 %) and of an int8 cache (5e-4), so that a mode that gets worse shows.
GATES = {
    ("fp32", "fp32"): (1e-11, 1.0),
    ("bf16", "fp32"): (1e-11, 1.0),
    ("fp32", "int8"): (1e-4, 0.995),
    ("q8", "fp32"): (5e-4, 0.99),
    ("q8", "int8"): (5e-4, 0.99),
    ("q4", "fp32"): (1e-2, 0.97),
    ("q4", "int8"): (1e-2, 0.97),
}


@pytest.fixture(scope="module")
def nano():
    return quality.nano()


@pytest.fixture(scope="module")
def documents(nano):
    return quality.held_out(*nano)


def within(measured, mode):
    kld, same_top = GATES[mode]
    return measured.kld <= kld and measured.same_top >= same_top


def test_the_documents_were_never_trained_on(nano, documents):
    assert sum(len(document.ids) for document in documents) > 5000
    for category in tasks.CATEGORIES:
        for problem in accuracy.problems(category, quality.EACH, quality.SEED):
            assert tasks.split(problem) == "test"
            assert tasks.check(problem, tasks.completion(problem))


@pytest.mark.parametrize("mode", GATES, ids="+".join)
def test_logits_are_within_the_gates(nano, documents, mode):
    measured = quality.measure(documents, quality.engine(*nano, *mode))
    assert within(measured, mode), measured
    own = quality.measure(documents, {tuple(d.ids): d.true for d in documents}.__getitem__)
    assert own.kld == 0
    assert abs(np.log(measured.perplexity / own.perplexity)) <= 0.02


def test_bf16_is_fp32_for_a_bfloat16_checkpoint(nano, documents):
    for kv in ("fp32", "int8"):
        ours, theirs = (quality.engine(*nano, form, kv)(documents[0].ids) for form in ("fp32", "bf16"))
        assert np.array_equal(ours, theirs)


def fewer_bits(w, levels):
    """Symmetric, in groups of 64, with so many levels on either side."""
    groups = w.reshape(len(w), -1, 64)
    scale = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(levels)
    return (np.rint(groups / scale) * scale).reshape(w.shape)


@pytest.mark.parametrize(("form", "levels"), [("q8", 15), ("q4", 3)])
def test_the_gates_refuse_fewer_bits(nano, documents, form, levels):
    """5 bits are not q8, and 3 are not q4."""
    config, weights = nano
    changed = quality.with_matrices(config, weights, functools.partial(fewer_bits, levels=levels))
    measured = quality.measure(documents, quality.engine(config, changed, "fp32"))
    assert not within(measured, (form, "fp32")), measured


def test_q4_against_rounding_to_nearest(nano, documents, request):
    """With 4.25 bits instead of 4.5, q4 has a lower NMSE than rounding as in Q4_0, and an equal KLD.

    In groups of its own size, it is better than rounding in both.

    The weights alone are quantised; the rest is float32. The figures are means over alignments of the groups, because
    one alignment changes KLD by 4 %.
    """
    config, weights = nano
    alignments = range(0, 64, 4) if request.config.getoption("--long") else (0, 20)

    def lost(change):
        changed = (quality.with_matrices(config, weights, quality.aligned(change, columns)) for columns in alignments)
        return quality.mean([quality.measure(documents, quality.engine(config, w, "fp32")) for w in changed])

    ours, q4_0, as_small = (lost(quality.CHANGES[name]) for name in list(quality.CHANGES)[1:])
    assert ours.nmse <= 0.95 * q4_0.nmse
    assert ours.kld <= 1.1 * q4_0.kld
    assert ours.nmse <= 0.8 * as_small.nmse
    assert ours.kld <= 0.8 * as_small.kld
    whole = quality.measure(documents, quality.engine(config, weights, "q4"))
    assert whole.nmse <= 1.15 * ours.nmse  # 8-bit activations are the smaller part


@pytest.fixture(scope="module")
def greedy():
    """form -> whether the answer is right, of 138 problems."""

    @functools.cache
    def answers(form):
        model = qwq_ref.load("qwq-nano", weights=form, threads=1)
        asked = [problem for name in tasks.CATEGORIES for problem in accuracy.problems(name, 6, quality.SEED)]
        said = rollout.answers_each(
            model.backend,
            [model.prompt_ids(problem.prompt) for problem in asked],
            Sampling(temperature=0),
            end_ids=model.defaults.eos_token_ids,
            vocabulary=model.tokenizer.size,
            max_tokens=200,
            seed=0,
        )
        texts = [(model.tokenizer.decode(answer.ids), answer.ended) for answer in said]
        return [accuracy.is_right(problem, *text) for problem, text in zip(asked, texts, strict=True)]

    return answers


@pytest.mark.parametrize(("form", "most"), [("q8", 0.05), ("q4", 0.06)])
def test_answers_are_hardly_worse(greedy, form, most):
    """The upper end of the loss, which would be 2.7 points if no answer differed: the long tier asks 10,005."""
    found = pairs.pairs("all", greedy(form), greedy("fp32"))
    assert found.against > 0.8
    assert found.high <= most, found


@pytest.mark.long
@pytest.mark.parametrize(("form", "kv", "most"), [("q8", "int8", 0.01), ("fp32", "int8", 0.01), ("q4", "int8", 0.03)])
def test_answers_to_ten_thousand_problems(capsys, form, kv, most):
    chosen = ["--weights", form, "--kv", kv, "--against", "fp32", "--categories", "trained"]
    assert main(["eval", "-n", "435", "--seed", "1", "--temp", "0", "-t", "1", "--json", *chosen]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["category"] for row in report["categories"]] == list(tasks.CATEGORIES)
    assert report["all"]["n"] == 10_005
    assert report["all"]["high"] <= most, report["all"]


@pytest.mark.parametrize("temperature", [0, 0.6, 1.5])
def test_one_by_one_or_in_a_batch_the_answers_are_the_same(temperature):
    """The engine draws what the batched sampler draws; float32's last bits turn no token here."""
    engine, batched = (qwq_ref.load("qwq-nano", backend=name, weights="fp32", threads=1) for name in ("core", "numpy"))
    asked = [accuracy.problems(category, 3, 5) for category in ("add3", "countdown3", "recall")]
    prompts = [engine.prompt_ids(problem.prompt) for several in asked for problem in several]
    how = {"end_ids": engine.defaults.eos_token_ids, "vocabulary": engine.tokenizer.size, "max_tokens": 60, "seed": 3}
    sampling = Sampling(temperature=temperature, top_p=0.95, top_k=40)
    together = rollout.answers(batched.config, batched.backend.tensors, prompts, sampling, **how)
    for workers in (1, 3):
        assert rollout.answers_each(engine.backend, prompts, sampling, workers=workers, **how) == together
    assert {answer.ended for answer in together} == {True, False}


def test_pairs_are_counted_problem_by_problem():
    first, second = [True, True, False, False, True], [True, False, True, True, True]
    found = pairs.pairs("mod", first, second)
    assert (found.n, found.accuracy, found.against, found.lost, found.gained) == (5, 0.6, 0.8, 2, 1)
    assert found.low < 0.2 < found.high
    both = pairs.pooled([found, pairs.pairs("gcd", [True], [True])], "all")
    assert (both.n, both.lost, both.gained) == (6, 2, 1)
    assert (both.accuracy, both.against) == pytest.approx((4 / 6, 5 / 6))


def test_the_command_says_what_is_lost(capsys):
    arguments = ["eval", "-n", "4", "--categories", "add3,gcd", "--temp", "0", "-t", "1"]
    assert main([*arguments, "--weights", "q4", "--against", "fp32+int8"]) == 0
    header, *rows, whole = capsys.readouterr().out.splitlines()
    assert header.split()[:6] == ["category", "n", "accuracy", "against", "lost", "gained"]
    assert [row.split()[0] for row in (*rows, whole)] == ["add3", "gcd", "all"]
    assert whole.split()[1] == "8"
    assert main([*arguments, "--backend", "numpy"]) == 0
    in_numpy = capsys.readouterr().out
    assert main([*arguments, "--weights", "fp32", "--isa", core.isas()[0]]) == 0
    assert capsys.readouterr().out == in_numpy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--against", "q5"], "--against: must be one of fp32, bf16, q8, q4, file, got q5"),
        (["--against", "q8+int4"], "--against: must be one of fp32, int8, got int4 (did you mean int8?)"),
        (["--backend", "numpy", "--against", "q8"], "numpy has fp32 weights and an fp32 cache only"),
        (["--max-tokens", "1020"], "max-tokens: 1020 and a prompt of 29 do not fit in 1024"),
        (["-n", "0"], "-n/--problems: must be at least 1, got 0"),
        (["-t", "0"], "threads: must be at least 1, got 0"),
    ],
)
def test_wrong_use(capsys, arguments, message):
    assert main(["eval", "-n", "1", "--categories", "add3", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_keeps_what_is_done(capsys, monkeypatch, as_json):
    asked = accuracy.problems

    def interrupted(category, n, seed):
        if category == "sub3":
            raise KeyboardInterrupt
        return asked(category, n, seed)

    monkeypatch.setattr(accuracy, "problems", interrupted)
    arguments = ["eval", "-n", "2", "--categories", "add3,sub3,gcd", "-t", "1", *["--json"] * as_json]
    for more in ([], ["--against", "q8"]):
        assert main([*arguments, *more]) == 130
        out = capsys.readouterr().out
        if as_json:
            assert [row["category"] for row in json.loads(out)["categories"]] == ["add3"]
        else:
            assert "add3" in out
            assert "gcd" not in out
