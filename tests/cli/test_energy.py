"""The energy of a command's work: joules of each part, and one plain line where nothing is measured."""

import json

import pytest

import qwq_ref
from qwq_ref import cli, core
from qwq_ref.cli import energy as cli_energy
from qwq_ref.host.energy import Energy

WHY = "not measured: no counters"


class Steps:
    """A meter that counts 3 J and 2 s from each look to the next."""

    source = "planted"

    def __init__(self):
        self.looks = 0
        self.closed = False

    def total(self):
        self.looks += 1
        return Energy(3.0 * self.looks, 2.0 * self.looks)

    def close(self):
        self.closed = True


@pytest.fixture
def meter(monkeypatch):
    meter = Steps()
    monkeypatch.setattr(cli_energy, "find_meter", lambda watts: (meter, meter.source))
    yield meter
    assert meter.closed


@pytest.fixture
def no_meter(monkeypatch):
    monkeypatch.setattr(cli_energy, "find_meter", lambda watts: (None, WHY))


def qwq(capsys, *arguments):
    assert cli.main([*arguments]) == 0
    return capsys.readouterr()


def test_an_answer_in_parts(meter, capsys):
    out, _ = qwq(capsys, "generate", "What is 12+34?", "-s", "0", "--json")
    answer = json.loads(out)
    prompt, output = answer["prompt_tokens"], answer["output_tokens"]
    assert answer["energy"] == {
        "source": "planted",
        "problem": None,
        "prompt": {"joules": 3.0, "seconds": 2.0, "joules_per_token": 3.0 / prompt},
        "output": {"joules": 3.0, "seconds": 2.0, "joules_per_token": 3.0 / output},
    }


def test_the_line_of_an_answer(meter, capsys):
    _, err = qwq(capsys, "generate", "What is 12+34?", "-s", "0", "-v", "--temp", "0", "-n", "6")
    (line,) = [line for line in err.splitlines() if line.startswith("energy")]
    prompt = int(err.partition("prompt: ")[2].split()[0])
    assert line == f"energy: prompt: 3 J, {3 / prompt:.3g} J a token; output: 3 J, 0.5 J a token; planted"


def test_an_answer_without_output(meter, capsys):
    """An end token comes first: all that was used belongs to the prompt, and no token is divided by."""
    end = next(iter(qwq_ref.load("qwq-nano").end_tokens))
    out, _ = qwq(capsys, "generate", "x", "--raw", "--json", "--logit-bias", f"{end}=+90")
    answer = json.loads(out)
    assert answer["output_tokens"] == 0
    assert answer["energy"]["prompt"] == {
        "joules": 3.0,
        "seconds": 2.0,
        "joules_per_token": 3.0 / answer["prompt_tokens"],
    }
    assert answer["energy"]["output"] == {"joules": None, "seconds": None, "joules_per_token": None}


def test_nobody_looks_without_a_question(monkeypatch, capsys):
    monkeypatch.setattr(cli_energy, "find_meter", lambda watts: pytest.fail("looked"))
    _, err = qwq(capsys, "generate", "What is 12+34?", "-n", "2")
    assert "energy" not in err


def test_one_plain_line_without_a_meter(no_meter, capsys):
    _, err = qwq(capsys, "generate", "What is 12+34?", "-v", "-n", "2")
    assert [line for line in err.splitlines() if "energy" in line] == [f"energy: {WHY}"]
    out, _ = qwq(capsys, "generate", "What is 12+34?", "--json", "-n", "2")
    nothing = {"joules": None, "seconds": None, "joules_per_token": None}
    assert json.loads(out)["energy"] == {"source": None, "problem": WHY, "prompt": nothing, "output": nothing}


def test_prompts_that_share_passes_share_joules(meter, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("What is 1+2?\nWhat is 3+4?\n")
    out, err = qwq(capsys, "generate", "--prompts", str(tmp_path / "prompts.txt"), "-n", "4", "-v")
    assert err.splitlines()[-1] == ("energy: 3 J in 2.0 s, 0.375 J an output token, prompts included; planted")
    assert "energy" not in json.loads(out.splitlines()[0])


def test_an_evaluation(meter, capsys):
    out, _ = qwq(capsys, "eval", "-n", "2", "--categories", "add3,minmax", "--json", "--max-tokens", "9")
    facts = json.loads(out)
    tokens = sum(round(row["tokens"] * row["n"]) for row in facts["categories"])
    used = {"joules": 3.0, "seconds": 2.0, "joules_per_output_token": 3.0 / tokens}
    assert facts["energy"] == {"source": "planted", "problem": None} | used


def test_the_line_of_an_evaluation(no_meter, capsys):
    _, err = qwq(capsys, "eval", "-n", "2", "--categories", "add3", "--max-tokens", "9")
    assert err.splitlines()[-1] == f"energy: {WHY}"


@pytest.mark.skipif(not core.available(), reason="the C core is not built")
def test_a_benchmark(meter, capsys):
    out, _ = qwq(capsys, "bench", "-p", "4", "-n", "3", "-np", "1,2", "-r", "3", "-o", "json")
    facts = json.loads(out)
    assert facts["energy"] == {"source": "planted", "problem": None}
    for row in facts["rows"]:
        assert row["joules"] == [3.0] * 3
        assert row["joules_per_token"] == 3.0 / (row["tokens"] * row["parallel"])


@pytest.mark.skipif(not core.available(), reason="the C core is not built")
def test_a_benchmark_without_a_meter(no_meter, capsys):
    out, _ = qwq(capsys, "bench", "-p", "4", "-n", "0", "-r", "1")
    assert "J/token" not in out
    assert out.splitlines()[-1] == f"energy: {WHY}"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("generate x --watts none", "qwq: --watts: must be a number, got none\n"),
        ("generate x --watts -1", "qwq: --watts: must be at least 0, got -1.0\n"),
        ("bench --op matmul --watts 5", "qwq: --watts: has no effect with --op\n"),
    ],
)
def test_watts_that_cannot_be(arguments, says, capsys):
    assert cli.main(arguments.split()) == 2
    assert capsys.readouterr().err == says
