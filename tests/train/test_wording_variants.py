"""The questions in readers' own words: how many there are, and that each has the slots of its kind."""

import json
from collections import Counter
from pathlib import Path
from string import Formatter

import pytest

VARIANTS = json.loads(Path(__file__).with_name("wording_variants.json").read_text(encoding="utf-8"))

# kind -> the sets of slots that a wording of this kind may have
SLOTS: dict[str, tuple[set[str], ...]] = {
    **dict.fromkeys(("sum", "difference", "product", "mod", "gcd", "compare"), ({"a", "b"},)),
    **dict.fromkeys(("largest", "smallest", "sort", "sequence"), ({"numbers"},)),
    **dict.fromkeys(("reverse", "parity", "copy"), ({"text"},)),
    "chain_sum": ({"expression"}, {"numbers"}),
    "count": ({"digit", "text"},),
    "missing_operand": ({"equation"},),
    "boolean": ({"expression"},),
    "units": ({"amount", "unit"},),
    "lookup": ({"table", "wanted"},),
    "countdown": ({"numbers", "target"},),
    "rpn": ({"steps"},),
}
PLAIN = {"greeting": 10, "unknown": 30}  # list of whole questions -> its length


@pytest.fixture(params=["en", "zh"])
def variants(request):
    return VARIANTS[request.param]


def slots(wording):
    """Return the slots in order; a slot has a name, and neither a format nor a conversion."""
    fields = [field for field in Formatter().parse(wording) if field[1] is not None]
    assert all(not spec and not conversion for _, _, spec, conversion in fields), wording
    return [name for _, name, _, _ in fields]


def test_there_are_two_languages():
    assert list(VARIANTS) == ["en", "zh"]


def test_each_kind_has_its_share(variants):
    assert variants.keys() == SLOTS.keys() | PLAIN.keys()
    assert sum(len(variants[kind]) for kind in SLOTS) == 200
    assert all(len(variants[kind]) >= 6 for kind in SLOTS)
    assert {kind: len(variants[kind]) for kind in PLAIN} == PLAIN


def test_a_wording_has_each_slot_of_its_kind_once(variants):
    for kind, allowed in SLOTS.items():
        for wording in variants[kind]:
            found = slots(wording)
            assert set(found) in allowed, f"{kind}: {wording}"
            assert len(found) == len(set(found)), f"{kind}: {wording}"


def test_a_whole_question_has_no_slot(variants):
    assert not [text for kind in PLAIN for text in variants[kind] if slots(text)]


def test_no_wording_is_empty_or_padded(variants):
    assert all(text and text == text.strip() for texts in variants.values() for text in texts)


def test_no_wording_comes_twice(variants):
    """No two kinds share a wording, because it would not tell what is asked."""
    counts = Counter(text for texts in variants.values() for text in texts)
    assert not [text for text, times in counts.items() if times > 1]
