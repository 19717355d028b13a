"""After Ctrl-C, every long command prints what it has, and one line that tells what is kept."""

import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.cli import train as train_command
from qwq_ref.engine import packing
from qwq_ref.train.folder import STATE, saved_step


def after(calls, function=lambda *given, **more: None):
    """A function that interrupts at its call of this number, as Ctrl-C does."""
    count = 0

    def counted(*given, **more):
        nonlocal count
        count += 1
        if count == calls:
            raise KeyboardInterrupt
        return function(*given, **more)

    return counted


def last_line(capsys):
    out, err = capsys.readouterr()
    return out, err.splitlines()[-1]


@pytest.mark.parametrize("steps", [1, 2])
def test_train_tells_where_it_resumes(steps, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as context:
        context.setattr(train_command._Progress, "__call__", after(steps))
        assert main(["train", "base", "-o", str(out), "--steps", "3", "-t", "1"]) == 130
    command = f"qwq train base -o {out} --steps 3 -t 1"
    assert last_line(capsys)[1] == f"qwq: interrupted: the same command resumes at step {steps + 1}: {command}"
    assert saved_step(out) == steps
    assert main(["train", "base", "-o", str(out), "--steps", "3", "-t", "1"]) == 0
    assert saved_step(out) == 3


def test_train_without_a_step_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("qwq_ref.train.sft.new_model", after(1))
    assert main(["train", "base", "-o", str(tmp_path / "run")]) == 130
    assert last_line(capsys)[1] == "qwq: interrupted: no step was done"


def test_a_damaged_state_is_one_line(tmp_path, capsys):
    command = ["train", "base", "-o", str(tmp_path), "--steps", "1", "-t", "1"]
    assert main(command) == 0
    whole = (tmp_path / STATE).read_bytes()
    for content in (b"", b"PK\x03\x04", whole[:-100], whole[:5000] + bytes(8) + whole[5008:]):
        (tmp_path / STATE).write_bytes(content)
        capsys.readouterr()
        assert main(command) == 1
        assert capsys.readouterr().err == f"qwq: {tmp_path / STATE}: is damaged: remove it, and the run starts again\n"
    with np.load(io.BytesIO(whole)) as arrays:
        np.savez(tmp_path / STATE, **{**arrays, "step": np.arange(3)})
    assert main(command) == 1
    assert capsys.readouterr().err == f"qwq: {tmp_path / STATE}: step: has shape (3,), not ()\n"


def test_a_signal_in_training_reaches_the_last_words(tmp_path):
    command = [sys.executable, "-m", "qwq_ref", "train", "base", "-o", tmp_path, "-t", "1", "--seed", "3"]
    usual = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": lambda: signal.signal(2, signal.SIG_DFL)}
    process = subprocess.Popen(command, **usual)
    log = tmp_path / "log.csv"
    try:
        for _ in range(600):
            try:
                process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                pass
            if log.exists():
                break
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=120)[1]
    finally:
        process.kill()
    assert process.returncode == 130, err
    done = saved_step(tmp_path)
    kept = f"the same command resumes at step {done + 1}: qwq train base " if done else "no step was done"
    assert err.splitlines()[-1].startswith(f"qwq: interrupted: {kept}")


@pytest.mark.parametrize("as_json", [False, True])
def test_eval_prints_the_categories_that_it_measured(as_json, capsys, monkeypatch):
    from qwq_ref.eval import accuracy

    monkeypatch.setattr(accuracy, "evaluate", after(3, accuracy.evaluate))
    command = ["eval", "--categories", "add3,sub3,mod", "-n", "1", "--max-tokens", "2", "-t", "1"]
    assert main([*command, *["--json"] * as_json]) == 130
    out, line = last_line(capsys)
    assert line == "qwq: interrupted: 2 of 3 categories were measured"
    if as_json:
        assert [row["category"] for row in json.loads(out)["categories"]] == ["add3", "sub3"]
    else:
        assert "sub3" in out
        assert "mean of 2 categories" in out


@pytest.mark.skipif(not core.available(), reason="the C core is not built")
def test_convert_goes_on_and_record_writes_nothing(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(packing, "quantise_groups", after(2, packing.quantise_groups))
        assert main(["convert", "-m", "qwq-nano", "-o", str(tmp_path / "packed")]) == 130
    assert last_line(capsys)[1] == "qwq: interrupted: the same command goes on from here"
    assert list((tmp_path / "packed").glob("*.safetensors")) == []
    assert main(["convert", "-m", "qwq-nano", "-o", str(tmp_path / "packed")]) == 0
    capsys.readouterr()
    monkeypatch.setattr("qwq_ref.oracle.packs.record.Weights", after(1))
    assert main(["golden", "record", "-m", "qwq-nano", "-p", "1+1?", "-o", str(tmp_path / "pack")]) == 130
    assert last_line(capsys)[1] == "qwq: interrupted: no pack was written"
    assert [path.name for path in tmp_path.iterdir() if "pack" in path.name and path.name != "packed"] == []


@pytest.mark.skipif(not core.available(), reason="the C core is not built")
def test_bench_prints_the_rows_that_it_measured(capsys, monkeypatch):
    from qwq_ref.bench import op_rows

    monkeypatch.setattr(op_rows, "_row", after(2, op_rows._row))
    assert main(["bench", "--op", "rmsnorm", "--shape", "64", "-T", "1,2", "-t", "1", "-o", "json"]) == 130
    out, line = last_line(capsys)
    assert line == "qwq: interrupted: 1 of 2 rows were measured"
    assert len(json.loads(out)["rows"]) == 1
