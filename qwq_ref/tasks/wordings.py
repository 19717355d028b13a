"""Wordings: how a problem of a kind is asked. The texts live in `wordings.json`.

Each kind has a few plain wordings. `freely` composes the words of readers: many more wordings, frames around an
expression, other signs and spaces, names of numbers, polite openings and ends, small slips, and either case.

A wording may have alternatives in brackets, one of which is drawn: `[add|sum] {a} and {b}[|, please]`. They may be
nested. `<who>` stands for the alternatives of that name in `parts`.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .author import Author
from .talk import HELLO, UNKNOWN, filled

Slots = Mapping[str, object]

_SIGNS = {"sum": "+", "difference": "-", "negative": "-", "product": "*"}
_TALK = (HELLO, UNKNOWN)
_FRAMED = 0.4  # the share of frames around an expression, where a kind has one
_SLIPS = 0.08  # the share of wordings in which a reader slips
_CASE_MATTERS = ("recall", "units", *_TALK)
_CHINESE = re.compile("[\u4e00-\u9fff\u3001\u3002\uff0c\uff1a\uff1f]")
_AMOUNT = re.compile(r"(\d+)(\D+)(?:(\d+)(\D+))?")
_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen " \
    "seventeen eighteen nineteen"  # fmt: skip
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
_PART = re.compile(r"<(\w+)>")
_BLANKS = re.compile(" {2,}")
_DIGITS = "零一二三四五六七八九"


@functools.cache
def _wordings() -> Any:
    """Return the texts, with the alternatives of every part in the place of its name."""
    data = json.loads(Path(__file__).with_name("wordings.json").read_text("utf-8"))
    for language, parts in data["parts"].items():
        for wordings in (data["frames"], *data["wide"].values()):
            wordings[language] = [_with_parts(wording, parts) for wording in wordings[language]]
    return data


def _with_parts(wording: str, parts: Mapping[str, list[str]]) -> str:
    return _PART.sub(lambda name: f"[{'|'.join(parts[name[1]])}]", wording)


def plain(author: Author, kind: str, slots: Slots) -> str:
    """Ask in one of the plain wordings of a kind. The language does not change what is drawn."""
    if kind in _TALK:
        return str(slots["text"])
    wordings = _wordings()["plain"][kind][author.language]
    return str(author.pick(wordings).format_map(slots))


def templates(kind: str, language: str) -> list[str]:
    """Return all wordings of a kind, with their alternatives and the named places of its slots."""
    data = _wordings()
    found = [*data["plain"][kind][language], *data["wide"].get(kind, {}).get(language, ())]
    if expression := data["expressions"].get(kind):
        found += [frame.replace("{e}", expression) for frame in data["frames"][language]]
    return found


def pattern(wording: str) -> str:
    """Return a regular expression for all that the alternatives of a wording can become."""
    signs = {"[": "(?:", "|": "|", "]": ")"}
    return "".join(signs.get(character) or re.escape(character) for character in wording)


def variety(wording: str) -> int:
    """Return how many ways there are to choose among the alternatives of a wording."""
    # A product of factors for each alternative that is open, and the sum of those that are complete.
    sums, products = [0], [1]
    for sign in re.findall(r"[\[|\]]", wording):
        if sign == "[":
            sums.append(0)
            products.append(1)
        else:
            sums[-1] += products.pop()
            if sign == "|":
                products.append(1)
            else:
                products[-1] *= sums.pop()
    return products[0]


def chosen(author: Author, wording: str) -> str:
    """Draw one of the alternatives in each pair of brackets, and leave no doubled blanks between them."""
    while "[" in wording:
        wording = _ALTERNATIVES.sub(lambda found: author.pick(found[1].split("|")), wording)
    return _BLANKS.sub(" ", wording)


def freely(author: Author, kind: str, slots: Slots) -> str:
    """Ask as a reader may: one of all wordings of a kind, in a form of its own."""
    text = str(slots["text"]) if kind in _TALK else _core(author, kind, slots)
    data, language = _wordings(), author.language
    text = text.strip(" ").rstrip("?.？。")
    if author.chance(0.4):
        text = text[:1].upper() + text[1:]
    if author.chance(0.25):
        text = filled(author, chosen(author, author.pick(data["openings"][language]))) + text
    closing = chosen(author, author.pick(data["closings"][language])) if author.chance(0.12) else ""
    text += filled(author, closing) or author.pick(data["ends"][language])
    if language == "zh" and kind not in _TALK and not _CHINESE.search(text):
        text = text.rstrip("?？!！=＝ ") + "等于多少？"
    draw = 0 if kind in _CASE_MATTERS or language == "zh" else author.integer(0, 99)
    if draw >= 93:
        return text.upper()
    return text.lower() if author.chance(0.25) else text


def _core(author: Author, kind: str, slots: Slots) -> str:
    data, language = _wordings(), author.language
    expression = data["expressions"].get(kind)
    wide = data["wide"].get(kind, {}).get(language, ())
    if author.chance(0.12):
        template = author.pick(data["plain"][kind][language])
    elif expression and author.chance(_FRAMED):
        template = author.pick(data["frames"][language]).replace("{e}", expression)
    else:
        template = author.pick(wide)
    template = chosen(author, template)
    if author.chance(_SLIPS):
        template = slipped(author, template)
    return template.format_map(_formed(author, kind, slots))


def slipped(author: Author, wording: str) -> str:
    """Let the reader slip once: a small word or an apostrophe is missing, or a longer word is misspelt.

    Slots and the words that carry the meaning stay: the texts list the words that may suffer.
    """
    slip = author.integer(0, 2)
    if slip == 0:
        return wording.replace("'", "")
    names = _wordings()["slips"]["dropped" if slip == 1 else "misspelt"][author.language]
    form = r"(?<![{{\w]){}(?![}}\w])" if author.language == "en" else "{}"  # a whole word that is no slot
    places = [found.span() for name in names for found in re.finditer(form.format(name), wording)]
    if not places:
        return wording
    start, stop = places[author.integer(0, len(places) - 1)]
    if slip == 1:
        return _BLANKS.sub(" ", wording[:start] + wording[stop:]).strip(" ")
    return wording[:start] + _misspelt(author, wording[start:stop]) + wording[stop:]


def _misspelt(author: Author, word: str) -> str:
    """Double a letter after the first, or swap it with the next."""
    at = author.integer(1, len(word) - 2)
    first, second = word[at], word[at + 1]
    return word[:at] + (first * 2 + second if author.chance(0.4) else second + first) + word[at + 2 :]


def _formed(author: Author, kind: str, slots: Slots) -> dict[str, str]:
    """Give every slot one of the forms that readers write."""
    formed = {name: str(value) for name, value in slots.items()}
    if kind == "chain_sum":
        formed["numbers"] = formed["expression"].replace("+", ",")
    if kind in ("sum", "product") and author.chance(0.3):
        formed["a"], formed["b"] = formed["b"], formed["a"]
    if sign := _SIGNS.get(kind):
        formed["op"] = _operator(author, sign)
        largest = max(int(formed["a"]), int(formed["b"]))
        if largest < 100 and author.chance(0.5 if largest < 21 else 0.3):
            formed["a"], formed["b"] = (numeral(author, int(formed[name])) for name in "ab")
            formed["op"] = author.pick(_wordings()["words"][author.language][sign])
    for name, value in formed.items():
        if form := _FORMS.get(name):
            formed[name] = form(author, value)
    return formed


def _operator(author: Author, sign: str) -> str:
    data = _wordings()
    return author.pick(data["words"][author.language][sign] if author.chance(0.3) else data["signs"][sign])


def numeral(author: Author, number: int) -> str:
    """Return the name of a number below 100."""
    tens, ones = divmod(number, 10)
    if author.language == "zh":
        if number < 10:
            return _DIGITS[number]
        return ("" if tens == 1 else _DIGITS[tens]) + "十" + (_DIGITS[ones] if ones else "")
    if number < 20:
        return _ONES.split()[number]
    return _TENS.split()[tens - 2] + (author.pick(["-", " "]) + _ONES.split()[ones] if ones else "")


def _expression(author: Author, value: str) -> str:
    if "+" in value and not set(value) & set("&|^"):
        return value.replace("+", _operator(author, "+"))
    return re.sub("[&|^]", r" \g<0> ", value) if author.chance(0.4) else value


def _equation(author: Author, value: str) -> str:
    plus, minus = (_operator(author, sign) if author.chance(0.5) else sign for sign in "+-")
    value = value.replace("-", minus) if "-" in value else value.replace("+", plus)
    return value.replace("=", author.pick(["=", "=", " = ", " = ", author.say(" is ", "等于")]))


def _listed(author: Author, value: str) -> str:
    return author.pick(_wordings()["joints"][author.language]).join(value.split(","))


def _numbers(author: Author, value: str) -> str:
    return _quoted(author, _listed(author, value), 0.06)


def _text(author: Author, value: str) -> str:
    return _quoted(author, value, 0.15)


def _quoted(author: Author, value: str, share: float) -> str:
    if not author.chance(share):
        return value
    before, after = author.pick(_wordings()["quotes"][author.language]).split("|")
    return before + value + after


def _table(author: Author, value: str) -> str:
    sign = author.pick(["=", "=", "=", " = ", author.say(" is ", "是"), ":"])
    return _listed(author, value.replace("=", sign))


def _unit(author: Author, value: str) -> str:
    names = _wordings()["units"][author.language]
    written = author.say(" ", "") + value
    return author.pick(names[written]).strip() if author.chance(0.5) else value


def _amount(author: Author, value: str) -> str:
    if author.chance(0.4) or (found := _AMOUNT.fullmatch(value)) is None:
        return value
    names = _wordings()["units"][author.language]
    parts = [
        number + author.pick([unit.rstrip(), *names[unit.rstrip()]])
        for number, unit in zip(found.groups()[::2], found.groups()[1::2], strict=True)
        if number
    ]
    return author.pick(author.say(" |, | and ", "|零").split("|")).join(parts)


def _steps(author: Author, value: str) -> str:
    others = _wordings()["steps"][author.language]
    steps = []
    for step in value.split(author.say(", ", "，")):
        verb = next(verb for verb in others if step.startswith(verb))
        steps.append(author.pick(others[verb]) + step[len(verb) :] if author.chance(0.35) else step)
    joint = author.pick(
        [", ", ", ", ", then ", " then ", "; ", " and "] if author.language == "en" else list("，，；、")
    )
    return joint.join(steps)


_FORMS = {
    "expression": _expression,
    "equation": _equation,
    "numbers": _numbers,
    "text": _text,
    "table": _table,
    "wanted": _listed,
    "unit": _unit,
    "amount": _amount,
    "steps": _steps,
}
