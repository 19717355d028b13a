"""The file of a run: each answer once, whatever ended the run before."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from qwq_ref.errors import FileError, SuiteError
from qwq_ref.eval.suites.records import Records, read_records
from qwq_ref.eval.suites.run import questions, run
from qwq_ref.eval.suites.suite import Scored, Suite, Task
from tests.eval.suites.scripted import Says, suite_of, verdict

RIGHT = Says(lambda one: f"a{one.task.id[1:]}")


def asked_of(suite, path, says=RIGHT, facts=None, **how):
    with Records(path, {"suite": suite.name} if facts is None else facts) as records:
        return run(suite, says, questions(suite, **how), records, lambda one: None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_answer_is_a_line(tmp_path):
    path, suite = tmp_path / "out.jsonl", suite_of(3, begun="so ")
    found = asked_of(suite, path, samples=2, seed=7)
    head, *rows = lines(path)
    assert head == {"version": 1, "run": {"suite": "toy"}}
    assert [one.values for one in found] == rows
    assert [(row["id"], row["sample"]) for row in rows] == [(f"t{i}", k) for i in range(3) for k in range(2)]
    assert rows[0] | {"seed": 0, "judge_seconds": 0} == {
        **{"id": "t0", "group": "", "sample": 0, "budget": None, "seed": 0, "prompt": "t0?", "begun": "so "},
        **{"text": "a0", "reasoning": "", "prompt_tokens": 5, "tokens": 3, "reasoning_tokens": 0},
        **{"finish_reason": "stop", "seconds": 0.25, "correct": True, "why": "passed", "judge_seconds": 0, "parts": {}},
    }
    assert len({row["seed"] for row in rows}) == 6
    assert read_records(path)[1] == found


def test_seeds_depend_on_the_run_the_task_and_the_sample_alone():
    few, many = questions(suite_of(2), 3, seed=5), questions(suite_of(9), 1, [None, 4], seed=5)
    by_key = {(one.task.id, one.sample): one.seed for one in few}
    assert all(by_key.get((one.task.id, one.sample), one.seed) == one.seed for one in many)
    assert {one.seed for one in questions(suite_of(2), 3, seed=6)}.isdisjoint(by_key.values())


def test_a_later_run_goes_on(tmp_path):
    path = tmp_path / "out.jsonl"
    asked_of(suite_of(3), path)
    says = Says(lambda one: "no")
    found = asked_of(suite_of(5), path, says, samples=2)
    assert set(says.asked) == {(f"t{i}", k, None) for i in range(5) for k in range(2)} - {
        (f"t{i}", 0, None) for i in range(3)
    }
    assert [one.values["correct"] for one in found] == [True, False] * 3 + [False] * 4
    assert len(lines(path)) == 11
    asked_of(suite_of(5), path, Says(lambda one: pytest.fail("asked again")), limit=2)


@pytest.mark.parametrize("kept", [0, 1, 5, 60, -1])
def test_a_torn_last_line_is_cut_off(tmp_path, kept):
    """After the first `kept` bytes of the last line, or of the whole file."""
    path = tmp_path / "out.jsonl"
    asked_of(suite_of(3), path)
    whole = path.read_bytes()
    start = whole.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(whole[: start + kept] if kept >= 0 else whole[:20])
    says = Says(RIGHT.says)
    asked_of(suite_of(3), path, says)
    assert len(says.asked) == (1 if kept >= 0 else 3)
    assert [line.get("id") for line in lines(path)] == [None, "t0", "t1", "t2"]


def test_another_run_is_refused(tmp_path):
    path = tmp_path / "out.jsonl"
    facts = {"suite": "toy", "max_tokens": 10, "sampling": {"steps": ["temperature"]}}
    asked_of(suite_of(2), path, facts=facts | {"sampling": {"steps": ("temperature",)}})
    before = path.read_bytes()
    for other, field in [({"max_tokens": 11}, "max_tokens"), ({"sampling": {}}, "sampling"), ({"form": "x"}, "form")]:
        with pytest.raises(SuiteError, match=f"^{path}: {field}: is .* in the file, and .* now"):
            asked_of(suite_of(2), path, facts=facts | other)
    with pytest.raises(SuiteError, match="max_tokens: is 10 in the file, and None now"):
        asked_of(suite_of(2), path, facts={"suite": "toy", "sampling": facts["sampling"]})
    assert path.read_bytes() == before


BROKEN = [
    (b"[]\n", "line 1: must hold a JSON object"),
    (b'{"id": "t0"}\n', "line 1: is no beginning of a file of answers"),
    (b'{"version": 2, "run": {}}\n', "line 1: is no beginning of a file of answers"),
    (b'HEAD\n{"id": "t0"\n', "line 2: is not JSON"),
    (b"HEAD\nROW\nROW\n", "line 3, id: 't0' comes twice"),
    (b'HEAD\n{"id": 3}\n', "line 2, id: is not that of an answer, got 3"),
    (b"HEAD\nROW,correct,1\n", "line 2, correct: is not that of an answer, got 1"),
    (b"HEAD\nROW,tokens,true\n", "line 2, tokens: is not that of an answer, got True"),
    (b'HEAD\nROW,budget,"x"\n', "line 2, budget: must be a number of tokens, got 'x'"),
    (b"HEAD\nROW,parts,null\n", "line 2, parts: is not that of an answer, got None"),
]


@pytest.mark.parametrize(("data", "problem"), BROKEN, ids=[problem for _, problem in BROKEN])
def test_broken_files(tmp_path, data, problem):
    good, path = tmp_path / "good.jsonl", tmp_path / "out.jsonl"
    asked_of(suite_of(1), good)
    head, row = good.read_bytes().splitlines()
    made = []
    for line in data.split(b"\n"):
        line, *change = line.split(b",") if line.startswith(b"ROW,") else [line]
        line = line.replace(b"HEAD", head).replace(b"ROW", row)
        if change:
            line = json.dumps(json.loads(line) | {change[0].decode(): json.loads(change[1])}).encode()
        made.append(line)
    path.write_bytes(b"\n".join(made))
    with pytest.raises(SuiteError) as caught:
        asked_of(suite_of(1), path)
    assert f"out.jsonl: {problem}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(FileError, match="cannot be written"):
        asked_of(suite_of(1), tmp_path / "none" / "out.jsonl")
    with pytest.raises(FileError, match="cannot be"):
        asked_of(suite_of(1), tmp_path)


def test_a_judge_that_fails_is_a_verdict(tmp_path):
    def judge(answer):
        raise ValueError("never\n" * 100)

    suite = Suite(
        "toy", [Task("t0", "?", judge), Task("t1", "?", lambda answer: Scored(True, "passed", 0, {"a": (1, 2)}))]
    )
    first, second = asked_of(suite, tmp_path / "out.jsonl")
    assert not first.values["correct"]
    assert first.values["why"].startswith("the judge failed: ValueError: never")
    assert second.values["parts"] == {"a": [1, 2]}


def test_an_interruption_keeps_what_is_judged(tmp_path):
    path = tmp_path / "out.jsonl"

    def says(one):
        if one.task.id == "t3":
            time.sleep(0.2)  # the judges of those before it are done
            raise KeyboardInterrupt
        return RIGHT.says(one)

    with pytest.raises(KeyboardInterrupt):
        asked_of(suite_of(5), path, Says(says))
    assert [line.get("id") for line in lines(path)] == [None, "t0", "t1", "t2"]
    assert len(asked_of(suite_of(5), path)) == 5


def test_judges_do_not_stop_each_other(tmp_path):
    """A slow judge delays the lines behind its own, and loses none."""

    def slow(answer):
        time.sleep(0.3)
        return verdict(True)

    suite = Suite(
        "toy", [Task("slow", "?", slow), *(Task(f"t{i}", "?", lambda answer: verdict(True)) for i in range(9))]
    )
    assert all(one.values["correct"] for one in asked_of(suite, tmp_path / "out.jsonl"))
    assert len(lines(tmp_path / "out.jsonl")) == 11


KILLED = """
import sys, time
from pathlib import Path
from tests.eval.suites.scripted import Says, suite_of
from tests.eval.suites.test_records import asked_of
def says(one):
    time.sleep(0.02)
    return f"a{one.task.id[1:]}"
asked_of(suite_of(200), Path(sys.argv[1]), Says(says))
"""


def test_a_killed_run_is_finished_by_the_next(tmp_path):
    path = tmp_path / "out.jsonl"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], env=os.environ)
    while not path.exists() or path.read_bytes().count(b"\n") < 10:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = path.read_bytes().count(b"\n") - 1
    assert 9 <= there < 200
    says = Says(RIGHT.says)
    found = asked_of(suite_of(200), path, says)
    assert len(says.asked) == 200 - there
    whole = asked_of(suite_of(200), tmp_path / "whole.jsonl")
    same = lambda one: {name: value for name, value in one.values.items() if not name.endswith("seconds")}  # noqa: E731
    assert list(map(same, found)) == list(map(same, whole))
