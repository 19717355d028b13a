"""The 25 instructions of IFEval. Each takes its parameters, and returns a check of an answer.

Two counts differ a little from the published program, which uses trained models of NLTK: `sentences` and the words of
`capital_words`. Everything else is as published, with its surprises: keywords are regular expressions, for example.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from ....errors import SuiteError
from ..data import Row
from .language import is_language, require_detector

Check = Callable[[str], bool]

_ANSWERS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_SENTENCE_END = re.compile(r"""(?<=[.!?…。！？])["'”’)\]]*(?=\s|$)|(?<=[。！？])""")
_NO_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|Inc|Ltd|Jr|Sr|No)|\b[A-Z])\.$")
_FENCES = ("```json", "```Json", "```JSON", "```")
_POSTSCRIPTS = {"P.P.S": r"\s*p\.\s?p\.\s?s.*$", "P.S.": r"\s*p\.\s?s\..*$"}


def compared(count: int, relation: str, threshold: int) -> bool:
    """Return whether a count is "at least" or "less than" a threshold."""
    return count < threshold if relation == "less than" else count >= threshold


def sentences(text: str) -> int:
    """Return the number of sentences: texts that end with a full stop, or a mark like it, before white space."""
    count, rest = 0, ""
    for part in _SENTENCE_END.split(text):
        rest += part
        if rest.strip() and not _NO_END.search(rest.rstrip()):
            count, rest = count + 1, ""
    return count + bool(rest.strip())


def words(text: str) -> int:
    """Return the number of words: runs of letters, digits and underscores."""
    return len(re.findall(r"\w+", text))


def capital_words(text: str) -> int:
    """Return the number of words that are all capital letters."""
    return sum(word.isupper() for word in re.findall(r"[^\W_]+(?:[-.][^\W_]+)*", text))


def existing(text: str, keywords: list[str]) -> bool:
    return all(re.search(keyword, text, re.IGNORECASE) for keyword in keywords)


def frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return compared(len(re.findall(keyword.strip(), text, re.IGNORECASE)), relation, frequency)


def forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in forbidden_words)


def letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return compared(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs between dividers ***; the first and the last may be empty."""
    parts = [bool(part.strip()) for part in re.split(r"\s?\*\*\*\s?", text)]
    return all(parts[1:-1]) and sum(parts) == num_paragraphs


def first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs between empty lines. The number of one counts those that are empty, too."""
    parts = text.split("\n\n")
    full = sum(bool(part.strip()) for part in parts)
    if nth_paragraph > full or not (paragraph := parts[nth_paragraph - 1].strip()):
        return False
    word = re.split("[.,?!'\"]", paragraph.split()[0].lstrip("'").lstrip('"'))[0].lower()
    return full == num_paragraphs and word == first_word.lower()


def placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def postscript(text: str, postscript_marker: str) -> bool:
    marker = postscript_marker.strip()
    pattern = _POSTSCRIPTS.get(marker, rf"\s*{marker.lower()}.*$")
    return re.search(pattern, text.lower(), re.MULTILINE) is not None


def bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^\s*\*[^\*].*$", text, re.MULTILINE)
    return len(stars) + len(re.findall(r"^\s*-.*$", text, re.MULTILINE)) == num_bullets


def constrained(text: str) -> bool:
    return any(answer in text for answer in _ANSWERS)


def highlights(text: str, num_highlights: int) -> bool:
    single = re.findall(r"\*[^\n\*]*\*", text)
    double = re.findall(r"\*\*[^\n\*]*\*\*", text)
    filled = [part.strip("*").strip() for part in single] + [part[2:-2].strip() for part in double]
    return sum(map(bool, filled)) >= num_highlights


def sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.split(rf"\s?{section_spliter.strip()}\s?\d+\s?", text)) - 1 >= num_sections


def is_json(text: str) -> bool:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def title(text: str) -> bool:
    return any(found.lstrip("<").rstrip(">").strip() for found in re.findall(r"<<[^\n]+>>", text))


def two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    full = [part for part in parts if part]
    return all(parts[1:-1]) and len(full) == 2 and full[0] != full[1]


def repeats(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def ends(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quoted(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


# Name -> the check, and its parameters with their kinds. "count", "relation" and "pattern" are kinds of their own.
_TABLE: dict[str, tuple[Callable[..., bool], dict[str, str]]] = {
    "keywords:existence": (existing, {"keywords": "patterns"}),
    "keywords:frequency": (frequency, {"keyword": "pattern", "frequency": "count", "relation": "relation"}),
    "keywords:forbidden_words": (forbidden, {"forbidden_words": "patterns"}),
    "keywords:letter_frequency": (
        letters,
        {"letter": "text", "let_frequency": "count", "let_relation": "relation"},
    ),
    "language:response_language": (lambda text, language: is_language(text, language), {"language": "text"}),
    "length_constraints:number_sentences": (
        lambda text, num_sentences, relation: compared(sentences(text), relation, num_sentences),
        {"num_sentences": "count", "relation": "relation"},
    ),
    "length_constraints:number_paragraphs": (paragraphs, {"num_paragraphs": "count"}),
    "length_constraints:number_words": (
        lambda text, num_words, relation: compared(words(text), relation, num_words),
        {"num_words": "count", "relation": "relation"},
    ),
    "length_constraints:nth_paragraph_first_word": (
        first_word,
        {"num_paragraphs": "count", "nth_paragraph": "count", "first_word": "text"},
    ),
    "detectable_content:number_placeholders": (placeholders, {"num_placeholders": "count"}),
    "detectable_content:postscript": (postscript, {"postscript_marker": "pattern"}),
    "detectable_format:number_bullet_lists": (bullets, {"num_bullets": "count"}),
    "detectable_format:constrained_response": (constrained, {}),
    "detectable_format:number_highlighted_sections": (highlights, {"num_highlights": "count"}),
    "detectable_format:multiple_sections": (sections, {"section_spliter": "pattern", "num_sections": "count"}),
    "detectable_format:json_format": (is_json, {}),
    "detectable_format:title": (title, {}),
    "combination:two_responses": (two_responses, {}),
    "combination:repeat_prompt": (repeats, {"prompt_to_repeat": "text"}),
    "startend:end_checker": (ends, {"end_phrase": "text"}),
    "startend:quotation": (quoted, {}),
    "change_case:capital_word_frequency": (
        lambda text, capital_frequency, capital_relation: compared(
            capital_words(text), capital_relation, capital_frequency
        ),
        {"capital_frequency": "count", "capital_relation": "relation"},
    ),
    "change_case:english_capital": (lambda text: text.isupper() and is_language(text, "en"), {}),
    "change_case:english_lowercase": (lambda text: text.islower() and is_language(text, "en"), {}),
    "punctuation:no_comma": (lambda text: "," not in text, {}),
}
NAMES = tuple(_TABLE)
_DETECTED = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")


def checks_of(row: Row) -> list[tuple[str, Check]]:
    """Return the instructions of a prompt by their names. Raises SuiteError, and UsageError without a detector."""
    names, given = row.texts("instruction_id_list"), row.values.get("kwargs")
    if not isinstance(given, list) or len(given) != len(names) or not all(isinstance(each, dict) for each in given):
        raise row.wrong("kwargs", "must be a list with an object for each instruction")
    found: list[tuple[str, Check]] = []
    for place, (name, values) in enumerate(zip(names, given, strict=True)):
        if name not in _TABLE:
            raise row.wrong("instruction_id_list", f"holds an unknown instruction, {name!r:.60}")
        if name in _DETECTED:
            require_detector()
        check, kinds = _TABLE[name]
        where = f"kwargs, {place}, "
        wanted = {each: _checked(row, where + each, values.get(each), kind) for each, kind in kinds.items()}
        found.append((name, partial(check, **wanted)))
    return found


def _checked(row: Row, name: str, value: Any, kind: str) -> Any:
    """Return a parameter of its kind. Raises SuiteError."""
    wrong = partial(SuiteError, row.path, f"line {row.line}, {name}")
    if kind == "count":
        if not isinstance(value, int | float) or isinstance(value, bool) or value != int(value) or value < 0:
            raise wrong(f"must be a number of at least 0, got {value!r:.40}")
        return int(value)
    if kind == "patterns":
        if not isinstance(value, list) or not value:
            raise wrong(f"must be a list of texts, got {value!r:.40}")
        return [_checked(row, name, each, "pattern") for each in value]
    if not isinstance(value, str) or not value.strip():
        raise wrong(f"must be a text, got {value!r:.40}")
    if kind == "relation" and value not in ("at least", "less than"):
        raise wrong(f"must be 'at least' or 'less than', got {value!r:.40}")
    if kind == "pattern":
        try:
            re.compile(value)
        except (re.error, RecursionError) as problem:
            raise wrong(f"is no regular expression ({problem})") from None
    return value
