"""Talk that is no problem: greetings, which the model answers with what it is, and all that it does not know.

The words live in `talk.json`. Composed words stand for those that a reader writes and the model has never seen.
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

from .author import Author, Exercise

HELLO, UNKNOWN = "hello", "unknown"
# Letters and pictures of other scripts: Latin, Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, Hangul, emoji.
_SCRIPTS = (
    *((0xC0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A), (0x905, 0x939)),
    *((0xE01, 0xE2E), (0x3041, 0x30FE), (0xAC00, 0xD7A3), (0x1F300, 0x1F64F)),
)
# There are few greetings, so the split must leave the commonest to training. With this name of their keys, it does.
_FAMILIES = {HELLO: "chatting"}
_SLOT = re.compile(r"\{(\w+)\}")


@functools.cache
def _talk() -> Any:
    return json.loads(Path(__file__).with_name("talk.json").read_text("utf-8"))


def hello(author: Author) -> Exercise:
    """Greet the model, or ask what it is and what it can do."""
    return _exercise(author, HELLO, "introduction")


def unknown(author: Author) -> Exercise:
    """Ask what the model does not know: the world, poems, code, and other mathematics."""
    return _exercise(author, UNKNOWN, "refusal")


def declines(answer: str) -> bool:
    """Return whether an answer begins as the model begins what it says to a question that it does not know."""
    first_sentences = tuple(re.split("(?<=[.。])", text)[0] for text in _talk()["refusal"].values())
    return answer.lstrip().startswith(first_sentences)


def word(author: Author) -> str:
    """Compose a word that means nothing: a reader's name, or any word that the model has never seen."""
    parts = _talk()["syllables"][author.language]
    if author.say("en", "zh") == "zh":
        if author.chance(0.3):  # any Chinese character
            return "".join(chr(code) for code in author.integers(author.integer(1, 3), 0x4E00, 0x9F00))
        characters = parts[0]
        return "".join(characters[n] for n in author.integers(author.integer(1, 3), 0, len(characters) - 1))
    if author.chance(0.1):
        first, last = _SCRIPTS[author.integer(0, len(_SCRIPTS) - 1)]
        return "".join(map(chr, author.integers(author.integer(1, 5), first, last)))
    if author.chance(0.2):  # any letters
        text = "".join(map(chr, author.integers(author.integer(1, 8), ord("a"), ord("z"))))
    else:
        text = "".join(author.pick(parts) for _ in range(author.integer(1, 3)))
    return text.capitalize() if author.chance(0.4) else text


def filled(author: Author, text: str) -> str:
    """Fill the named places of a text with drawn words and numbers, and these words' own places too."""
    while (slot := _SLOT.search(text)) is not None:
        text = text[: slot.start()] + _filler(author, slot[1]) + text[slot.end() :]
    return text


def _filler(author: Author, name: str) -> str:
    if name == "word":
        return word(author)
    if name == "noise":  # any signs
        return "".join(map(chr, author.integers(author.integer(1, 10), ord("!"), ord("~"))))
    if name == "n":
        return str(author.number(author.integer(1, 4)))
    if name == "m":
        return str(author.integer(2, 12))
    if name == "k":
        return str(author.number(author.integer(2, 3)))
    return author.pick(_talk()["fillers"][author.language][name])


def _exercise(author: Author, kind: str, answer: str) -> Exercise:
    talk, language = _talk(), author.language
    text = filled(author, author.pick(talk[kind][language]))
    lead = talk["reasons"][kind][language]
    return Exercise(text.lower(), kind, {"text": text}, lead, (), talk[answer][language], _FAMILIES.get(kind))
