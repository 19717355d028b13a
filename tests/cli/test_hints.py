"""The hint after an answer: on a terminal, of a shipped model, and only if it declined."""

import io

import pytest

from qwq_ref.cli import hints
from qwq_ref.formats import resolve

DECLINED = "I do not know that. I only solve small problems. Try: What is 123+456?"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def hinted(monkeypatch, model, answer, stream=None):
    stream = stream or Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    hints.print_hint(model, answer)
    return stream.getvalue()


@pytest.mark.parametrize("answer", [DECLINED, f"\n{DECLINED}\n", "这个我不会。我只会解小题。"])
def test_one_line_if_a_shipped_model_declined(monkeypatch, answer):
    said = hinted(monkeypatch, resolve("qwq-nano"), answer)
    assert said.startswith("qwq: qwq-nano is a tiny model for small problems")
    assert "-m" in said
    assert said.count("\n") == 1
    assert len(said) <= 160


@pytest.mark.parametrize("answer", ["The answer is \\boxed{579}.", "", "I am qwq-nano.", "So: I do not know that."])
def test_none_after_any_other_answer(monkeypatch, answer):
    assert hinted(monkeypatch, resolve("qwq-nano"), answer) == ""


def test_none_for_another_model_or_without_a_terminal(monkeypatch, tmp_path):
    assert hinted(monkeypatch, tmp_path / "qwq-nano", DECLINED) == ""
    assert hinted(monkeypatch, resolve("qwq-nano"), DECLINED, io.StringIO()) == ""
