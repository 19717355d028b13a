"""`qwq eval --suite`: the score of a file of problems, the file of answers, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)

PROBLEMS = [
    {"prompt": "What is 12 + 34?", "choices": ["46", "47"], "answer": "A", "group": "letters"},
    *({"prompt": f"What is {n}1 + 34?", "answer": 10 * n + 35, "group": "sums"} for n in range(1, 6)),
]
TIMES = ("seconds", "judge_seconds")


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(problem) + "\n" for problem in PROBLEMS))
    return str(path)


def command(problems, *words):
    return ["eval", "--suite", problems, "-m", "qwq-nano", "--temp", "0", "--max-tokens", "120", *words]


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(path):
    """The answers of a file without times, in order."""
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in lines(path)[1:]]
    return sorted(rows, key=lambda row: (row["id"], row["sample"], row["budget"] or -1))


def test_the_score_and_every_answer(problems, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(command(problems, "-o", str(out))) == 0
    text = capsys.readouterr().out
    assert text.splitlines()[0].split() == [
        "suite",
        "budget",
        "n",
        "pass@1",
        "95%",
        "interval",
        "tokens",
        "reasoning",
        "cut",
    ]
    assert [line.split()[:2] for line in text.splitlines()[1:4]] == [["letters", "1"], ["sums", "5"], ["mine", "6"]]
    sums = [row for row in answers(out) if row["group"] == "sums"]
    assert all(row["correct"] for row in sums)
    assert text.splitlines()[2].split()[2] == "100.0%"
    run = lines(out)[0]["run"]
    assert (run["suite"], run["max_tokens"], run["seed"]) == ("mine", 120, 0)
    assert run["sampling"]["temperature"] == 0
    assert run["model"]["weights form"]
    model = qwq_ref.load("qwq-nano", text=True)
    for row in sums:  # the bits of an answer alone
        generation = model.generate(row["prompt"], temperature=0, max_tokens=120)
        for _ in generation:
            pass
        assert (row["text"], row["reasoning"]) == (generation.texts["answer"], generation.texts["thinking"])
        assert (row["tokens"], row["finish_reason"]) == (len(generation.run.output), generation.run.finish_reason)


def test_json(problems, capsys):
    assert main(command(problems, "--json", "-n", "3", "-k", "2")) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["scores"]] == ["letters", "sums", "mine"]
    assert found["scores"][2]["passed"].keys() == {"pass@1", "pass@2"}
    assert (found["scores"][2]["n"], found["scores"][2]["samples"], found["earlier"]) == (3, 2, 0)
    assert found["run"]["data"]


def test_generated_problems_have_a_mean_over_categories(capsys):
    assert main(["eval", "--suite", "generated", "-m", "qwq-nano", "--temp", "0", "--max-tokens", "9", "-n", "4"]) == 0
    out, err = capsys.readouterr()
    rows = [line.split()[:2] for line in out.splitlines()[1:5]]
    assert rows == [["algorithms", "2"], ["optimisation", "1"], ["science", "1"], ["generated", "4"]]
    assert "generated: of the reference's speed 0.0%, mean over categories 0.0%" in out
    assert "qwq: the proofs are left out: --lean names the programs of Lean" in err


def test_sampled_answers_have_seeds(problems, tmp_path):
    first, again, other = (tmp_path / name for name in ("a", "b", "c"))
    how = ["--temp", "2", "-k", "3", "-n", "2"]
    assert main([*command(problems, "-o", str(first)), *how]) == 0
    assert main([*command(problems, "-o", str(again)), *how, "-np", "2"]) == 0
    assert main([*command(problems, "-o", str(other)), *how, "--seed", "9"]) == 0
    assert answers(first) == answers(again)  # however many share a pass
    texts = lambda path: [row["reasoning"] + row["text"] for row in answers(path)]  # noqa: E731
    assert len(set(texts(first))) > 2
    assert texts(other) != texts(first)


def test_budgets_of_reasoning(problems, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(command(problems, "-o", str(out), "--think-budget", "0,8", "-n", "3", "--json")) == 0
    rows = {row["budget"]: row for row in json.loads(capsys.readouterr().out)["scores"] if row["name"] == "mine"}
    assert set(rows) == {0, 8}
    assert rows[0]["reasoning_tokens"] == 0 < rows[8]["reasoning_tokens"]
    assert len(lines(out)) == 7
    assert main(command(problems, "-o", str(out), "--thinking-budget", "8", "-n", "3")) == 0
    assert len(lines(out)) == 7


def test_another_run_is_refused(problems, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    assert main(command(problems, "-o", str(out), "-n", "1")) == 0
    capsys.readouterr()
    for change, field in [
        (("--seed", "1"), "seed"),
        (("--max-tokens", "9"), "max_tokens"),
        (("--kv", "int8"), "model"),
    ]:
        assert main([*command(problems, "-o", str(out)), *change]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith(f"qwq: {out}: {field}: is ")
        assert line.endswith("name another file, or move it away")


KILLED = [sys.executable, "-m", "qwq_ref"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_ended_goes_on(problems, tmp_path, capsys, number):
    out, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    how = ["-k", "20", "-np", "2", "-o"]
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    process = subprocess.Popen(
        [*KILLED, *command(problems, *how, str(out))],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
        preexec_fn=heed,
    )
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        time.sleep(0.005)
        assert process.poll() is None, process.stderr.read()
    process.send_signal(number)
    err = process.communicate()[1]
    there = out.read_bytes().count(b"\n") - 1
    assert 4 <= there < 120
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert err.strip().splitlines()[-1].startswith("qwq: interrupted: ")
        assert err.strip().splitlines()[-1].endswith(" of 120 answers are kept")
    assert main(command(problems, *how, str(out), "--json")) == 0
    assert json.loads(capsys.readouterr().out)["earlier"] == there
    assert main(command(problems, *how, str(whole))) == 0
    assert answers(out) == answers(whole)


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--suite", "gsm8k"], "--data: is missing: name the file with the problems of gsm8k"),
        (["--suite", "humanevil"], "--suite: there is no 'humanevil' (did you mean humaneval?)"),
        (["--suite", "humaneval", "--form", "x"], "--form: must be one of evalplus, qwen, chat, raw, got x"),
        (["--suite", "humaneval", "--from", "2024-01-01"], "--from: has no effect on the suite humaneval"),
        (["--suite", "humaneval", "--categories", "add3"], "--categories: does not go together with --suite"),
        (["--samples", "2"], "--samples: needs --suite"),
        (["-o", "x"], "-o/--out: needs --suite"),
    ],
)
def test_a_wrong_use(words, problem, capsys):
    assert main(["eval", *words, "-m", "qwq-nano"]) == 2
    assert capsys.readouterr().err.startswith(f"qwq: {problem}")


def test_a_model_that_reasons_begins_its_answers_itself(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    how = ["eval", "--suite", "humaneval", "-m", "qwq-nano", "-n", "1", "--max-tokens", "5", "--temp", "0"]
    assert main([*how, "-o", str(out)]) == 0
    head, row = lines(out)
    assert (head["run"]["form"], row["begun"]) == ("chat", "")
    assert main([*how, "--form", "evalplus"]) == 2
    assert "begun: is a part of the answer, and this prompt opens the reasoning" in capsys.readouterr().err
