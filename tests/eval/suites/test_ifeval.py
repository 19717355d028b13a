"""IFEval's instructions, against cases that its definitions decide; strict and loose accuracy."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwq_ref.errors import SuiteError, UsageError
from qwq_ref.eval.suites import open_suite
from qwq_ref.eval.suites.ifeval import language, loose_forms
from qwq_ref.eval.suites.ifeval.instructions import NAMES

ENGLISH = "The quick brown fox jumps over the lazy dog near the river bank"
AT_LEAST, LESS = "at least", "less than"
# Instruction -> [(parameters, answers that keep to it, answers that do not)].
CASES = {
    "keywords:existence": [
        ({"keywords": ["fox", "sea"]}, ["Foxes see the SEA."], ["the fox", "sea"]),
        ({"keywords": ["colou?r"]}, ["color"], ["col"]),  # keywords are regular expressions
    ],
    "keywords:frequency": [
        ({"keyword": "go", "frequency": 2, "relation": AT_LEAST}, ["Go, gopher"], ["go"]),
        ({"keyword": " go ", "frequency": 2, "relation": LESS}, ["go", "stay"], ["go go"]),
    ],
    "keywords:forbidden_words": [({"forbidden_words": ["cat", "dog"]}, ["concatenate"], ["The CAT sat", "a dog."])],
    "keywords:letter_frequency": [
        ({"letter": "e", "let_frequency": 3, "let_relation": AT_LEAST}, ["Eel's eye", "eee"], ["ee"]),
        ({"letter": "Q", "let_frequency": 1, "let_relation": LESS}, ["none"], ["q"]),
        ({"letter": "#", "let_frequency": 2, "let_relation": AT_LEAST}, ["##"], ["#"]),
    ],
    "language:response_language": [
        ({"language": "de"}, ["Das ist ein ganz gewöhnlicher deutscher Satz über das Wetter."], [ENGLISH]),
        ({"language": "de"}, ["12345"], []),  # without letters: it cannot be told
    ],
    "length_constraints:number_sentences": [
        (
            {"num_sentences": 3, "relation": AT_LEAST},
            ["One. Two! Three?", 'He said "no." She left. End'],
            ["One. Two."],
        ),
        ({"num_sentences": 2, "relation": LESS}, ["Dr. Smith paid 3.50 dollars.", "no end"], ["One. Two."]),
    ],
    "length_constraints:number_paragraphs": [
        ({"num_paragraphs": 2}, ["a\n***\nb", "***\na\n***\nb\n***"], ["a\n\nb", "a\n***\n***\nb", "a"]),
    ],
    "length_constraints:number_words": [
        ({"num_words": 4, "relation": AT_LEAST}, ["it's four words", "a b c d"], ["a b c"]),
        ({"num_words": 4, "relation": LESS}, ["a b c"], ["a-b c d"]),
    ],
    "length_constraints:nth_paragraph_first_word": [
        (
            {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
            ["First.\n\nThen, more", "a\n\n'then'", "a\n\nTHEN b"],
            ["Then\n\nb", "a\n\nthence b", "a\n\nthen b\n\nc", "a\n\n\n\nthen"],
        ),
    ],
    "detectable_content:number_placeholders": [({"num_placeholders": 2}, ["[a] and [b c]", "[][]"], ["[a", "[a\n]"])],
    "detectable_content:postscript": [
        ({"postscript_marker": "P.S."}, ["Bye.\nP.S. more", "p. s. x"], ["PS more", "Bye"]),
        ({"postscript_marker": "P.P.S"}, ["Bye.\nP.P.S more", "p.p.s."], ["P.S. more"]),
    ],
    "detectable_format:number_bullet_lists": [
        ({"num_bullets": 2}, ["* a\n* b", "- a\n  * b", "text\n- a\n- b"], ["* a", "* a\n* b\n- c", "**a**\n**b**"]),
    ],
    "detectable_format:constrained_response": [
        ({}, ["My answer is maybe.", "So: My answer is no."], ["My answer is no"])
    ],
    "detectable_format:number_highlighted_sections": [
        ({"num_highlights": 2}, ["*a* and *b*", "**bold** *a*"], ["*a*", "* * and *a*", "*a\nb* *c*"]),
    ],
    "detectable_format:multiple_sections": [
        (
            {"section_spliter": "Section", "num_sections": 2},
            ["Section 1\na\nSection 2\nb"],
            ["Section one", "Section 1"],
        ),
    ],
    "detectable_format:json_format": [({}, ['{"a": 1}', "```json\n[1]\n```", "3"], ["{a: 1}", "so: {}"])],
    "detectable_format:title": [({}, ["<<poem of joy>>\ntext"], ["<poem>", "<< >>", "<<a\nb>>"])],
    "combination:two_responses": [
        ({}, ["one******two", "******one******two"], ["one", "one******one", "a******b******c"])
    ],
    "combination:repeat_prompt": [({"prompt_to_repeat": "Say Hi."}, ["  say hi. Hi!"], ["Hi! Say hi."])],
    "startend:end_checker": [
        ({"end_phrase": "That is all."}, ["x That is ALL.", '"that is all."'], ["That is all. x"])
    ],
    "startend:quotation": [({}, ['"all of it"', ' "" '], ['"', 'x "y"', "'x'"])],
    "change_case:capital_word_frequency": [
        ({"capital_frequency": 2, "capital_relation": AT_LEAST}, ["NASA and ESA"], ["Nasa ESA"]),
        ({"capital_frequency": 2, "capital_relation": LESS}, ["I see 42"], ["I SEE"]),
    ],
    "change_case:english_capital": [({}, [ENGLISH.upper()], [ENGLISH])],
    "change_case:english_lowercase": [({}, [ENGLISH.lower()], [ENGLISH])],
    "punctuation:no_comma": [({}, ["no such mark; none"], ["one, two"])],
}


def suite_of(tmp_path, *instructions, prompt="Do it."):
    row = {"key": 1000, "prompt": prompt, "instruction_id_list": [name for name, _ in instructions]}
    path = tmp_path / "input_data.jsonl"
    path.write_text(json.dumps(row | {"kwargs": [values for _, values in instructions]}) + "\n")
    return open_suite("ifeval", str(path))


def test_every_instruction_has_cases():
    assert set(CASES) == set(NAMES)
    assert len(NAMES) == 25


@pytest.mark.parametrize(
    ("name", "values", "kept", "broken"),
    [(name, *case) for name, cases in CASES.items() for case in cases],
    ids=[f"{name}-{i}" for name, cases in CASES.items() for i in range(len(cases))],
)
def test_an_instruction(tmp_path, name, values, kept, broken):
    judge = suite_of(tmp_path, (name, values)).tasks[0].judge
    for answer in kept:
        assert judge(answer).correct, answer
    for answer in [*broken, "", " \n"]:
        verdict = judge(answer)
        assert not verdict.correct, answer
        assert verdict.why == f"does not hold: {name}"


def test_strict_and_loose(tmp_path):
    ends, comma = ("startend:end_checker", {"end_phrase": "Bye."}), ("punctuation:no_comma", {})
    judge = suite_of(tmp_path, ends, comma).tasks[0].judge
    assert judge("Well. Bye.").parts == {
        **{"strict instructions": (2, 2), "loose": (1, 1), "loose instructions": (2, 2)},
    }
    verdict = judge("Sure, here it is:\nWell. *Bye.*")  # right without its first line and its asterisks
    assert (verdict.correct, verdict.why) == (False, "does not hold: startend:end_checker, punctuation:no_comma")
    assert verdict.parts == {"strict instructions": (0, 2), "loose": (1, 1), "loose instructions": (2, 2)}
    assert judge("a, b\nBye.").parts["loose instructions"] == (2, 2)  # each instruction has its own form
    assert judge("a, b. Bye.").parts == {"strict instructions": (1, 2), "loose": (0, 1), "loose instructions": (1, 2)}


def test_the_forms_of_an_answer():
    assert loose_forms("*a*\nb\nc") == ["*a*\nb\nc", "a\nb\nc", "b\nc", "b\nc", "*a*\nb", "a\nb", "b", "b"]
    assert loose_forms("x") == ["x", "x", "", "", "", "", "", ""]


REFUSED = [
    (("keywords:none", {}), "instruction_id_list: holds an unknown instruction, 'keywords:none'"),
    (("keywords:existence", {}), "kwargs, 0, keywords: must be a list of texts, got None"),
    (("keywords:existence", {"keywords": ["("]}), "kwargs, 0, keywords: is no regular expression"),
    (
        ("length_constraints:number_words", {"num_words": -1, "relation": LESS}),
        "kwargs, 0, num_words: must be a number",
    ),
    (
        ("length_constraints:number_words", {"num_words": 1, "relation": "over"}),
        "kwargs, 0, relation: must be 'at least'",
    ),
    (("startend:end_checker", {"end_phrase": 3}), "kwargs, 0, end_phrase: must be a text, got 3"),
]


@pytest.mark.parametrize(("instruction", "problem"), REFUSED, ids=[problem for _, problem in REFUSED])
def test_broken_parameters(tmp_path, instruction, problem):
    with pytest.raises(SuiteError) as caught:
        suite_of(tmp_path, instruction)
    assert f"line 1, {problem}" in str(caught.value)


def test_broken_lines(tmp_path):
    path = tmp_path / "input.jsonl"
    row = {"key": 1, "prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    for change, problem in [
        ({"key": None}, "line 1, key: must be a number or a text"),
        ({"kwargs": []}, "line 1, kwargs: must be a list with an object for each instruction"),
        ({"instruction_id_list": []}, "line 1, instruction_id_list: must be a list of 1 or more texts"),
    ]:
        path.write_text(json.dumps(row | change))
        with pytest.raises(SuiteError, match=problem):
            open_suite("ifeval", str(path))


def test_without_a_detector_of_languages(tmp_path, monkeypatch):
    monkeypatch.setattr(language.importlib.util, "find_spec", lambda name: None)
    suite_of(tmp_path, ("punctuation:no_comma", {}))
    with pytest.raises(UsageError, match=r"suite: ifeval needs the package langdetect: pip install 'qwq_ref\[eval\]'"):
        suite_of(tmp_path, ("change_case:english_capital", {}))


ALL = [(name, cases[0][0]) for name, cases in CASES.items()]


@given(st.text(st.sampled_from("ab *-.,[]<>\"'\n#P.S"), max_size=80))
def test_any_text_is_judged(tmp_path_factory, text):
    if not hasattr(test_any_text_is_judged, "judge"):
        test_any_text_is_judged.judge = suite_of(tmp_path_factory.mktemp("all"), *ALL).tasks[0].judge
    verdict = test_any_text_is_judged.judge(text)
    strict, of = verdict.parts["strict instructions"]
    assert (verdict.correct, of) == (strict == len(ALL), len(ALL))
    assert verdict.parts["loose instructions"][0] >= strict
