"""The options of `qwq generate` that end an answer, limit its reasoning, or report its log-probabilities."""

import argparse
import dataclasses
import json
import math

import pytest

from qwq_ref.cli import answer_options, generate, main
from qwq_ref.cli.answer_options import settings_of
from qwq_ref.engine.loops import DIFFERENT, TIMES
from qwq_ref.engine.sampler import own_sampling
from qwq_ref.engine.settings import EFFORTS, MOST_LOGPROBS, Settings
from qwq_ref.spec import Sampling
from tests.support.scripts import Given, command, model_that_says, report


def answering(small, text, opening="<think>\n"):
    said = small.encode(text, special=True)
    return model_that_says(small, said, Given(small.encode(opening, special=True)))


def test_a_stop_string_ends_the_answer(small):
    model = answering(small, "so END.</think>The answer END. More.")
    assert command(model, "--stop", "END", "-r", "More")[1] == "The answer \n"
    facts, err = report(model, "--stop", "END")
    assert (facts["answer"], facts["thinking"]) == ("The answer ", "so END.")
    assert (facts["finish_reason"], facts["stop_string"], facts["ending"], err) == ("stop", "END", None, "")
    facts, _ = report(model, "--stop", "no such text")
    assert (facts["answer"], facts["stop_string"]) == ("The answer END. More.", None)


def test_log_probabilities_are_in_the_json(small):
    said = small.encode("so</think>42", special=True)
    facts, _ = report(answering(small, "so</think>42"), "--logprobs", "2")
    assert [entry["id"] for entry in facts["logprobs"]] == said
    assert "".join(entry["token"] for entry in facts["logprobs"]) == "so</think>42"
    for entry in facts["logprobs"]:
        first, second = entry["top"]
        assert (first["id"], first["logprob"]) == (entry["id"], entry["logprob"])
        assert second["logprob"] == pytest.approx(first["logprob"] - 9)
        assert sum(math.exp(each["logprob"]) for each in entry["top"]) < 1
    assert "logprobs" not in report(answering(small, "so</think>42"))[0]
    most = report(answering(small, "so</think>42"), "--logprobs", MOST_LOGPROBS)[0]["logprobs"]
    assert {len(entry["top"]) for entry in most} == {MOST_LOGPROBS}


def test_a_loop_is_announced_and_may_go_on(small):
    unit = list(range(DIFFERENT + 4))
    model = model_that_says(small, unit * (TIMES + 5), Given([1]))
    line = "the output repeats itself: the last 20 tokens came 8 times; --loop-guard off lets it go on"
    status, _, err = command(model)
    assert status == 0
    assert f"\nqwq: {line}\n" in f"\n{err}"
    facts, err = report(model)
    assert (facts["finish_reason"], facts["ending"], err) == ("loop", line, f"qwq: {line}\n")
    facts, _ = report(model, "--loop-guard", "off")
    assert (facts["finish_reason"], facts["output_tokens"]) == ("stop", 20 * (TIMES + 5))
    assert report(model, "--loop-guard", "3")[0]["output_tokens"] == 60


def test_an_effort_limits_the_reasoning(small):
    model = answering(small, "a b c d e f " * 20 + "</think>x")
    assert report(model, "--reasoning-effort", "none")[0]["thinking"] == ""
    assert "long enough" in report(model, "--reasoning-effort", "low", "-n", "150")[0]["thinking"]
    assert "long enough" not in report(model, "--reasoning-effort", "high")[0]["thinking"]


def test_the_options_and_the_library_have_the_same_efforts():
    assert tuple(EFFORTS) == answer_options._EFFORTS


def test_the_options_reach_a_whole_answer(capsys):
    """With the shipped model: a bias forces each token, and the guard counts it."""
    question = ["generate", "What is 1+1?", "--json", "--temp", "0"]
    assert main([*question, "--logit-bias", "65=1000", "--loop-guard", "2", "-n", "30", "--raw"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["answer"], facts["output_tokens"]) == (facts["answer"][:1] * 30, 30)


def test_every_option_is_a_setting():
    parser = argparse.ArgumentParser()
    generate.add_arguments(parser)
    line = (
        "hi --typical-p .5 --top-n-sigma 1 --frequency-penalty 2 --repeat-last-n 9 --logit-bias 5=1 --logit-bias 6-inf"
    )
    line += " --samplers typ_p,temp --stop A --stop B --logprobs 3 --loop-guard off --reasoning-effort low"
    asked = settings_of(parser.parse_args(line.split()))
    assert {name: value for name, value in asked.items() if value is not None} == {
        "raw": False,
        "typical_p": 0.5,
        "top_n_sigma": 1.0,
        "frequency_penalty": 2.0,
        "penalty_window": 9,
        "logit_bias": {5: 1.0, 6: -math.inf},
        "steps": ("typical_p", "temperature"),
        "stop": ["A", "B"],
        "logprobs": 3,
        "loop_guard": 0,
        "reasoning_effort": "low",
    }
    settings = Settings.checked(**asked)
    own = {each.name for each in dataclasses.fields(Settings)} | {each.name for each in dataclasses.fields(Sampling)}
    # For programs alone: a client calls the functions, and a suite begins the answers.
    programs = {"tools", "tool_choice", "parallel_tool_calls", "begun"}
    assert own == {*asked, "sampling", *programs}
    assert own_sampling({}, **settings.sampling).penalty_window == 9
