"""The wording variants: how readers would ask, written apart from the corpus."""

import json
import re

from tests.support.paths import ROOT

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
    return json.loads(FILE.read_text("utf-8"))


def asked(wording, problem):
    return wording.format_map(problem.slots)


def shape(wording):
    """A wording without case, spaces and punctuation, so that near twins are one."""
    return re.sub(r"[\s.,:;?!。，：；？！、\"']", "", wording.casefold())
