"""Problems in readers' words: nothing of the problem changes, and the words leave no doubt about it."""

import re

import numpy as np
import pytest

from qwq_ref import tasks
from qwq_ref.tasks import wordings
from qwq_ref.tasks.author import Author
from tests.support.problems import ALL, numbers

LEARNT = tasks.CATEGORIES + tasks.FURTHER
LANGUAGES = ("en", "zh")
SLOT = re.compile(r"\{(\w+)\}")


def reworded(category, count=200, seed=0):
    rng = np.random.default_rng([seed, (*ALL, *tasks.FURTHER).index(category)])
    for _ in range(count):
        problem = tasks.generate(category, rng)
        yield problem, tasks.reworded(problem, rng)


KINDS = sorted({problem.kind for category in LEARNT for problem, _ in reworded(category, 100)})


@pytest.mark.parametrize("category", LEARNT)
def test_other_words_ask_for_the_same_problem(category):
    different = 0
    for plain, worded in reworded(category):
        assert (worded.key, worded.answer, worded.trace) == (plain.key, plain.answer, plain.trace)
        assert tasks.split(worded) == tasks.split(plain)
        different += worded.prompt != plain.prompt
    assert different > 150


@pytest.mark.parametrize("category", [name for name in LEARNT if name not in ("hello", "unknown")])
def test_every_digit_of_the_problem_is_asked_or_named(category):
    named = 0
    for plain, worded in reworded(category):
        if sorted(re.findall(r"\d", worded.prompt)) != sorted(re.findall(r"\d", plain.prompt)):
            assert plain.kind in ("sum", "difference", "negative", "product"), worded.prompt
            assert max(numbers(plain.prompt)) < 100
            assert not re.search(r"\d", worded.prompt)
            named += 1
    assert named < 120


@pytest.mark.parametrize("category", [name for name in LEARNT if name not in ("hello", "unknown")])
def test_the_words_tell_the_language_of_the_answer(category):
    """Chinese characters or their punctuation ask for Chinese; a full-width sign of arithmetic alone does not."""
    for _, worded in reworded(category):
        chinese = re.search("[\u4e00-\u9fff\u3001\u3002\uff0c\uff1a\uff1f]", worded.prompt)
        assert bool(chinese) == (worded.language == "zh"), worded.prompt


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("hello", "unknown")])
@pytest.mark.parametrize("language", LANGUAGES)
def test_every_wording_has_the_places_of_its_kind(kind, language):
    found = wordings.templates(kind, language)
    assert len(found) >= 10
    assert len(set(found)) >= len(found) - 2  # some frames come twice, to be drawn more often
    example = next(p for category in LEARNT for p, _ in reworded(category, 100) if p.kind == kind)
    for template in found:
        author = Author(np.random.default_rng(0), language)
        for wording in {wordings.chosen(author, template) for _ in range(20)}:
            slots = set(SLOT.findall(wording)) - {"op"}
            if kind == "chain_sum" and slots == {"numbers"}:  # its terms as a list
                continue
            assert slots == set(example.slots), wording


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("hello", "unknown")])
@pytest.mark.parametrize("language", LANGUAGES)
def test_a_kind_has_hundreds_of_wordings(kind, language):
    assert sum(map(wordings.variety, wordings.templates(kind, language))) >= 500


NESTED = "[[please |]add|sum] {a}[ and |, ]{b}"
CHOICES = {f"{verb} {{a}}{joint}{{b}}" for verb in ("please add", "add", "sum") for joint in (" and ", ", ")}


def test_alternatives_are_chosen_and_no_bracket_is_left():
    author = Author(np.random.default_rng(0), "en")
    assert {wordings.chosen(author, NESTED) for _ in range(200)} == CHOICES
    assert wordings.variety(NESTED) == len(CHOICES)
    assert wordings.chosen(author, "no choice") == "no choice"
    for language in LANGUAGES:
        data = wordings._wordings()
        for text in (*data["openings"][language], *data["closings"][language]):
            assert not set("[]|") & set(wordings.chosen(author, text))


def test_the_pattern_of_a_wording_fits_its_choices_alone():
    pattern = re.compile(wordings.pattern(NESTED))
    assert all(pattern.fullmatch(choice) for choice in CHOICES)
    assert not any(pattern.fullmatch(text) for text in ("add {a}{b}", "please sum {a} and {b}", "|", NESTED))


def test_slips_touch_neither_slots_nor_the_words_that_carry_the_meaning():
    author = Author(np.random.default_rng(0), "en")
    found = {wordings.slipped(author, "what's the sum of {a} and these numbers: {is}") for _ in range(400)}
    assert {"whats the sum of {a} and these numbers: {is}", "what's sum of {a} and these numbers: {is}"} <= found
    assert any("nmubers" in text for text in found)
    assert all("sum" in text and "{a} and" in text and text.endswith(": {is}") for text in found)
    chinese = Author(np.random.default_rng(0), "zh")
    assert {wordings.slipped(chinese, "{a}的和") for _ in range(50)} == {"{a}的和", "{a}和"}


@pytest.mark.parametrize("category", ["sum", "difference", "times"])
def test_half_of_the_small_numbers_are_named(category):
    small = [worded.prompt for plain, worded in reworded(category, 1500) if max(numbers(plain.prompt)) < 21]
    assert 0.4 < np.mean([not re.search(r"\d", prompt) for prompt in small]) < 0.6


def test_the_wordings_of_both_languages_are_drawn_alike():
    """So that the language does not change the problems that are drawn."""
    for kind, plain in wordings._wordings()["plain"].items():
        assert len(plain["en"]) == len(plain["zh"]), kind


NAMES = {
    "en": {0: "zero", 7: "seven", 13: "thirteen", 20: "twenty", 42: ("forty-two", "forty two"), 99: "ninety-nine"},
    "zh": {0: "零", 7: "七", 10: "十", 13: "十三", 20: "二十", 42: "四十二", 99: "九十九"},
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_numerals(language):
    author = Author(np.random.default_rng(0), language)
    for number, name in NAMES[language].items():
        name = name if isinstance(name, str) else name[0]
        assert wordings.numeral(author, number).replace(" ", "-") == name
    assert len({wordings.numeral(author, number).replace(" ", "-") for number in range(100)}) == 100


def test_a_seed_decides_the_words():
    assert list(reworded("sum", 50)) == list(reworded("sum", 50))


def test_readers_words_are_of_many_forms():
    prompts = [worded.prompt for category in ("sum", "times") for _, worded in reworded(category, 1500)]
    for form in (
        " + ",
        "+",
        "plus",
        "加",
        "＋",
        "×",
        " x ",
        "times",
        "Please",
        "谢谢",
        "WHAT",
        "what",
        "=",
        "eight",
        "八",
    ):
        assert any(form in prompt for prompt in prompts), form
    ends = {prompt[-1] for prompt in prompts}
    assert {"?", ".", "？", "。", "!"} <= ends
    assert any(end.isdigit() for end in ends)
