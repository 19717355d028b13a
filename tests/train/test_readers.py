"""qwq-nano and its readers: their first words, their ways to write a sum, and what it does not know."""

import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest

import qwq_ref
from qwq_ref import tasks
from qwq_ref.tasks import talk
from tests.support.wordings import asked, corpus_shapes, shape, variants

ASKED = {
    "What is 5+6?": "11",
    "5+6=": "11",
    "5 + 6": "11",
    "what's 5 + 6": "11",
    "WHAT IS 5+6": "11",
    "12 plus 30": "42",
    "how much is 7 times 8": "56",
    "7 × 8": "56",
    "100-7": "93",
    "5+123": "128",
    "Please, what is 5 + 123?": "128",
    "5加6等于几": "11",
    "5＋6＝？": "11",
    "what is 3 - 8": "-5",
    "五加六？": "11",
    "five plus six": "11",
    "七乘八": "56",
}
GREETINGS = {
    "en": ("hello", "Hello!", "hi", "what can you do?", "What can you do", "who are you", "Who are you?"),
    "zh": ("你好", "你好！", "你会什么", "你会什么？", "你是谁？"),
}
UNKNOWN = {
    "en": (
        "What is the capital of France?",
        "how is the weather today",
        "Write a poem about spring.",
        "write a python function that sorts a list",
        "What is 12/4?",
    ),
    "zh": ("法国的首都是哪里？", "今天天气怎么样？", "写一首关于春天的诗。"),
}


@pytest.fixture(scope="module")
def nano():
    return qwq_ref.load("qwq-nano", backend="numpy")


def answer(model, prompt):
    """The likeliest answer, without the reasoning."""
    pieces = model.generate(prompt, temperature=0, max_tokens=250)
    return "".join(piece.text for piece in pieces if piece.kind == "answer").strip()


@pytest.mark.parametrize("prompt", ASKED)
def test_a_sum_may_be_asked_in_any_words(nano, prompt):
    assert tasks.boxed(answer(nano, prompt)) == ASKED[prompt]


@pytest.mark.parametrize(("language", "prompt"), [(language, p) for language in GREETINGS for p in GREETINGS[language]])
def test_a_greeting_is_answered_with_what_it_is(nano, language, prompt):
    assert answer(nano, prompt) == talk._talk()["introduction"][language]


@pytest.mark.parametrize(("language", "prompt"), [(language, p) for language in UNKNOWN for p in UNKNOWN[language]])
def test_what_it_does_not_know_is_answered_by_saying_so(nano, language, prompt):
    assert answer(nano, prompt) == talk._talk()["refusal"][language]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_examples_that_it_gives_work(nano, language):
    said = talk._talk()["introduction"][language]
    examples = re.findall(r"[^.?。？：:]+[.?。？]", said.partition("Try: ")[2] or said.partition("试试：")[2])
    assert len(examples) == 3
    assert all(text in talk._talk()["refusal"][language] for text in examples)
    assert [tasks.boxed(answer(nano, text.strip())) for text in examples] == ["579", "17,23,42,88", "512"]


def test_one_hint_after_a_declined_answer_on_a_terminal():
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "qwq_ref", "generate", "What is the capital of France?", "--temp", "0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, text=True, timeout=120)
    os.close(terminal)
    seen = os.read(controller, 65536).decode()
    os.close(controller)
    assert tasks.declines(done.stdout)
    assert seen.count("qwq: qwq-nano is a tiny model") == 1
    piped = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "tiny model" not in piped.stderr


# --- wordings that no training has seen --------------------------------------------------------------------------


def test_there_are_200_variants_a_language():
    counts = {language: sum(len(of[language]) for of in variants().values()) for language in ("en", "zh")}
    assert min(counts.values()) >= 200, counts


def test_variants_that_the_corpus_has_too_are_not_called_unseen():
    """Both were written apart, and readers' shortest words are the same: such a variant is counted on its own."""
    known = corpus_shapes()
    for language in ("en", "zh"):
        told = [wording for of in variants().values() for wording in of[language]]
        unseen = [wording for wording in told if shape(wording) not in known]
        assert len(unseen) >= 60
    assert shape("What's {a} + {b}?") in known
    assert shape("{a} and {b}, would you say?") not in known


def test_variants_lose_little(nano):
    """A sample of what `python -m tests.tools.wordings` measures in full: docs/training.md has the figures."""
    from tests.tools.wordings import drawn, right

    rng = np.random.default_rng(5)
    problems, prompts = [], []
    for kind, by_language in variants().items():
        for language, wordings in by_language.items():
            for wording in wordings[::4]:
                (problem,) = drawn(kind, language, 1, rng)
                problems.append(problem)
                prompts.append(asked(wording, problem))
    assert np.mean(right(nano, problems, prompts, 0)) > 0.88
