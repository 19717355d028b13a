"""The prose of pages, docstrings and help texts follows the rules in docs/glossary.md.

`python -m tests.tools.prose FILES` prints the faults of single files.
"""

import pytest

from tests.support import prose
from tests.support.paths import ROOT

# Files and folders whose prose is not rewritten yet. Delete a line when it is, or list the files that remain.
UNCHECKED: list[str] = []


@pytest.mark.parametrize("name", [name for name in prose.files() if not name.startswith(tuple(UNCHECKED))])
def test_prose(name):
    faults = prose.check(name)
    assert not faults, "\n" + "\n".join(f"{name}:{fault.line}: {fault.rule}\n    {fault.sentence}" for fault in faults)


def test_what_is_unchecked_exists():
    for name in UNCHECKED:
        assert (ROOT / name).exists(), f"{name} is gone: delete its line"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("One. " + "word " * 31 + "end. Two.", "32 words"),
        ("What a budget does is written here.", "begins with What"),
        ("A sentence. Whoever asked waits.", "begins with Whoever"),
        ("How fast it is depends on memory.", "begins with How"),
        ("What your machine can do, says `qwq doctor`.", "the verb comes before"),
        ("It reports the right values of a tap.", "write reference values"),
        ("We Quantize the weights.", "write British spelling"),
    ],
)
def test_a_fault_is_found(text, rule):
    assert any(rule in fault.rule for fault in prose.faults(1, text))


@pytest.mark.parametrize(
    "text",
    [
        "word " * 29 + "end.",
        "What is 123+456?",
        "How to build the core",
        "Call `quantize(reckon)`, which returns codes, e.g. 7. A link is [short](https://example.org/twin).",
    ],
)
def test_plain_prose_has_no_fault(text):
    assert not list(prose.faults(1, text))


def test_code_is_no_prose():
    page = "# Title\n\nText here:\n\n```python\nwhat = 'Whoever asked waits.'\n```\n\n| a cell | How it is |\n"
    found = list(prose.paragraphs(page))
    assert found == [(1, "Title"), (3, "Text here:"), (9, "a cell"), (9, "How it is")]
    module = '"""Say.\n\nSo:\n\n    What it is.\n"""\ndef f():\n    """x [T, D] -> [T]\n\n    The sum\n    of x."""\n'
    assert list(prose.docstrings(module)) == [(1, "Say."), (3, "So:"), (10, "The sum of x.")]
