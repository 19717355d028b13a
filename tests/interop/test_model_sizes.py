"""The table of docs/models.md is that of the planner."""

import itertools

import pytest

from qwq_ref.formats.hub.address import parse
from tests.support.paths import ROOT

pytest.importorskip("gguf")
pytest.importorskip("llama_cpp")


def test_the_page_has_the_planner_s_numbers():
    from tests.tools import model_sizes

    lines = (ROOT / "docs/models.md").read_text().splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.count("|") == 9]
    assert sorted(row[:6] for row in table[2:]) == sorted(model_sizes.rows())
    assert all(len(row) == 8 and all(row) for row in table)


def test_the_types_that_the_engine_repacks_need_more_memory():
    """The advice of the page against Q2_K, Q3_K_M and IQ4_XS."""
    from tests.tools import model_sizes

    memory = {row[0]: float(row[2].split()[0]) for row in model_sizes.rows()}
    assert min(memory[kind] for kind in ("Q2_K", "Q3_K_M", "IQ4_XS")) > memory["Q4_0"]


def test_the_names_in_commands_are_names():
    words = (ROOT / "docs/models.md").read_text().split()
    names = {word.strip("`") for before, word in itertools.pairwise(words) if before == "-m"}
    names = {name for name in names if "/" in name}
    assert len(names) >= 6
    for name in names:
        assert parse(name) is not None, name
