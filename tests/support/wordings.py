"""The wording variants: how readers would ask, written apart from the corpus."""

import functools
import json
import re

from qwq_ref.tasks import wordings
from tests.support.paths import ROOT

TALK = ("greeting", "unknown")
FILE = ROOT / "tests" / "train" / "wording_variants.json"
# The categories that ask a kind, where it has not the name of its one category.
CATEGORIES_OF = {
    "sum": ("sum", "addsub2", "add3", "add4"),
    "difference": ("difference", "addsub2", "sub3", "sub4"),
    "product": ("times", "product"),
    "largest": ("minmax",),
    "smallest": ("minmax",),
    "copy": ("recall",),
    "countdown": ("countdown2", "countdown3"),
}


def variants():
    """-> kind -> language -> wordings with named places"""
    data = _data()
    return {
        {"lookup": "recall"}.get(kind, kind): {language: data[language][kind] for language in data}
        for kind in data["en"]
        if kind not in TALK
    }


def talk(kind):
    """Whole greetings, or whole questions that the model does not know: language -> texts"""
    return {language: kinds[kind] for language, kinds in _data().items()}


def _data():
    return json.loads(FILE.read_text("utf-8"))


def asked(wording, problem):
    slots = dict(problem.slots)
    if problem.kind == "chain_sum":
        slots["numbers"] = str(slots["expression"]).replace("+", ",")
    return wording.format_map(slots)


def shape(wording):
    """A wording without case, spaces and punctuation, so that near twins are one."""
    return re.sub(r"[\s.,:;?!。，：；？！、\"']", "", wording.casefold())


class Shapes:
    """The shapes of wordings with alternatives: `shape in shapes` asks whether one of them can become it."""

    def __init__(self, wordings_of_corpus):
        self._patterns = [re.compile(wordings.pattern(shape(wording))) for wording in wordings_of_corpus]

    def __contains__(self, wanted):
        return any(pattern.fullmatch(wanted) for pattern in self._patterns)


@functools.cache
def corpus_shapes():
    """The shapes of all wordings of the corpus, with every sign and word in the place of an operator."""
    data = wordings._wordings()
    signs = [data["signs"], *data["words"].values()]
    operators = {name for by_sign in signs for names in by_sign.values() for name in names}
    return Shapes(
        template.replace("{op}", f"[{'|'.join(sorted(operators))}]")
        for kind in data["plain"]
        for language in ("en", "zh")
        for template in wordings.templates(kind, language)
    )
