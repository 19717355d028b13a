"""The pictures of docs/inside.md are those that its commands draw."""

import re

import numpy as np
import pytest

from tests.support.paths import DOCS
from tests.tools import pictures

pytest.importorskip("matplotlib", reason="matplotlib is missing: pip install 'qwq_ref[plot]'")

VALUES = re.compile(r"#[0-9a-f]{6}\b|-?\d+(?:\.\d+)?")


def version(svg):
    return re.search(r"Matplotlib v\S+", svg)[0]


def words(svg):
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def numbers(svg):
    """All numbers, and the parts of colours in steps of the range of a number in a picture."""
    return np.array([n for v in VALUES.findall(svg) for n in (parts(v) if v[0] == "#" else [float(v)])])


def parts(colour):
    return [int(colour[at : at + 2], 16) / 30 for at in (1, 3, 5)]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pictures.draw(folder)
    return folder


@pytest.mark.parametrize("name", pictures.commands())
def test_a_picture_is_current(name, drawn):
    """To the bit on most machines; elsewhere, products of matrices may round otherwise."""
    ours, made = ((folder / name).read_text() for folder in (DOCS, drawn))
    assert words(made) == words(ours), "python -m tests.tools.pictures draws it again"
    if version(ours) == version(made) and ours != made:
        assert VALUES.sub("", ours) == VALUES.sub("", made)
        np.testing.assert_allclose(numbers(made), numbers(ours), rtol=0, atol=0.11)


def test_the_page_shows_all_pictures():
    page = (DOCS / "inside.md").read_text()
    assert sorted(path.name for path in DOCS.glob("inside-*.svg")) == sorted(pictures.commands())
    assert re.findall(r"!\[.*\]\((.*)\)", page) == [*pictures.commands()]
