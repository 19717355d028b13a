"""How tokens are drawn where generation_config.json does not tell, or not what it seems to tell."""

import errno
import json
import os
import subprocess
import sys
import time
import warnings

import pytest

import qwq_ref
from qwq_ref.cli import main
from qwq_ref.formats import resolve

NAME = "owner/name"
LIKELIEST = "each token is the likeliest one; --temp X draws"
ASK = ("generate", "--raw", "-p", "x", "-n", "3", "-c", "64", "--seed", "1", "-m")
EVAL = ("eval", "-n", "1", "--categories", "add4", "--max-tokens", "3", "--json", "-m")


@pytest.fixture
def folder(random_folder, tmp_path):
    """A copy of a model that can answer, without generation_config.json."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in random_folder.iterdir():
        if file.name != "generation_config.json":
            (copy / file.name).write_bytes(file.read_bytes())
    return copy


# The file -> the line without its folder; None: there is none. Hugging Face takes the likeliest token of all of these.
FILES = {
    "none": (None, f"there is no generation_config.json: {LIKELIEST}"),
    "empty": ({}, f"generation_config.json: says nothing of sampling: {LIKELIEST}"),
    "ends alone": ({"eos_token_id": 5}, f"generation_config.json: says nothing of sampling: {LIKELIEST}"),
    "one idle": (
        {"temperature": 0.6},
        f"generation_config.json: temperature has no effect, because do_sample is not true: {LIKELIEST}",
    ),
    "many idle": (
        {"do_sample": None, "temperature": 0.6, "top_k": 20, "top_p": 0.95},
        "generation_config.json: temperature, top_k and top_p have no effect, because do_sample is not true: "
        + LIKELIEST,
    ),
    "idle on purpose": (
        {"do_sample": False, "min_p": 0.1},
        f"generation_config.json: min_p has no effect, because do_sample is not true: {LIKELIEST}",
    ),
    "a typo": (
        {"do_sample": True, "temprature": 0.6},
        "generation_config.json: temprature is not known, and has no effect (did you mean temperature?)",
    ),
    "a typo of do_sample": (
        {"do_samples": True, "temperature": 1.0},
        "generation_config.json: do_samples is not known, and has no effect (did you mean do_sample?)",
    ),
    "greedy on purpose": ({"do_sample": False}, None),
    "drawn": ({"do_sample": True, "temperature": 0.6, "typical_p": 1.0, "pad_token_id": 1, "bos_token_id": 1}, None),
}


def told(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    read = capsys.readouterr()
    lines = [line for line in read.err.splitlines() if line.startswith("qwq: ")]
    return [line for line in lines if "cut off by max-tokens" not in line], read.out


@pytest.mark.parametrize("name", FILES)
def test_every_command_says_what_may_surprise(folder, capsys, name):
    values, line = FILES[name]
    wanted = []
    if values is not None:
        (folder / "generation_config.json").write_text(json.dumps(values))
    if line is not None:
        wanted = [f"qwq: {folder}/{line}" if values is not None else f"qwq: {line}"]
    for command in (ASK, EVAL):
        assert told(capsys, *command, folder)[0] == wanted
    assert told(capsys, *ASK, folder, "--temp", "0.5")[0] == []
    assert told(capsys, *EVAL, folder, "--against", "q4")[0] == wanted
    if name in ("none", "one idle", "drawn"):
        assert told(capsys, "convert", "-m", folder, "-o", folder.parent / "made")[0] == wanted


@pytest.mark.parametrize("name", ["none", "empty", "many idle", "drawn"])
def test_python_warns_once(folder, name):
    values, line = FILES[name]
    if values is not None:
        (folder / "generation_config.json").write_text(json.dumps(values))
    model = qwq_ref.load(folder, context=64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.logits([1])
        list(model.generate("x", raw=True, max_tokens=1, temperature=0.5))
        assert caught == []
        list(model.generate("x", raw=True, max_tokens=1))
        list(model.generate("x", raw=True, max_tokens=1))
    lines = [str(each.message) for each in caught]
    assert len(lines) == (line is not None)
    if line is not None:
        assert lines[0].endswith(line.replace("--temp X", "temperature=X"))


def test_json_names_the_model_alike(local_hub, snapshot, capsys):
    for command in ((*ASK, NAME, "--json"), (*EVAL, NAME)):
        facts = json.loads(told(capsys, *command)[1])
        assert facts["model"] == NAME
        assert facts["path"] == str(snapshot)


def test_eval_names_its_sampling(random_folder, folder, capsys):
    facts = json.loads(told(capsys, *EVAL, random_folder)[1])
    assert facts["sampling"] | {"steps": 0} == {
        "temperature": 0.6,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "steps": 0,
        "frequency_penalty": 0.0,
        "penalty_window": 0,
        "typical_p": 1.0,
        "top_n_sigma": 0.0,
        "logit_bias": {},
        "from": ["generation_config.json"],
    }
    facts = json.loads(told(capsys, *EVAL, folder, "--temp", "0.5")[1])
    assert (facts["sampling"]["temperature"], facts["sampling"]["from"]) == (0.5, ["the command line"])


# --- a snapshot without the file: is it the model that has none, or was it not fetched? ---


@pytest.fixture
def snapshot(local_hub, folder, random_folder):
    """A complete snapshot of another program, without the file that the hub has."""
    files = {file.name: file.read_bytes() for file in random_folder.iterdir()}
    local_hub.add(NAME, files)
    made = resolve(NAME)
    (made / "generation_config.json").unlink()
    return made


FAULTS = {
    "server": (("hub:", "status", 500), "answers with status 500: try again later"),
    "busy": (("hub:", "status", 429), "too many requests"),
    "private": (("hub:", "status", 401), "the hub has no such model, or it is private"),
    "page": (("hub:", "page"), "does not answer as a hub does"),
    "file alone": (("resolve.*generation_config", "status", 500), "answers with status 500: try again later"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_hub_that_does_not_answer_is_not_a_model_without_the_file(local_hub, snapshot, capsys, name):
    fault, why = FAULTS[name]
    local_hub.fault(*fault)
    (line,) = told(capsys, *ASK, NAME)[0]
    assert line.startswith("qwq: there is no generation_config.json in the cache, and it was not fetched (")
    assert why in line
    assert line.endswith(LIKELIEST)
    local_hub.faults.clear()
    assert told(capsys, *ASK, NAME)[0] == []


def test_offline_nobody_knows(local_hub, snapshot, capsys, tmp_path):
    wanted = f"qwq: there is no generation_config.json in the cache, and it was not fetched (offline): {LIKELIEST}"
    for command in (ASK, EVAL):
        assert told(capsys, *command, NAME, "--offline")[0] == [wanted]
    assert told(capsys, "convert", "-m", NAME, "--offline", "-o", tmp_path / "made")[0] == [wanted]


def test_a_model_that_has_none_is_known(local_hub, snapshot, random_folder, capsys):
    files = {each.name: each.read_bytes() for each in random_folder.iterdir() if each.name != "generation_config.json"}
    local_hub.add("owner/without", files)
    resolve("owner/without")
    assert told(capsys, *ASK, "owner/without", "--offline")[0] == [f"qwq: {FILES['none'][1]}"]


def test_a_cache_that_cannot_be_written(local_hub, snapshot, monkeypatch, capsys):
    def refuses(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuses)
    (line,) = told(capsys, *ASK, NAME)[0]
    assert "it was not fetched (the cache cannot be written (Read-only file system)" in line


def test_the_warning_of_python_is_one_line(folder):
    code = f"import qwq_ref; list(qwq_ref.load({str(folder)!r}, context=64).generate('x', raw=True, max_tokens=1))"
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == 1
    assert "UserWarning: there is no generation_config.json: each token is the likeliest one" in done.stderr


def test_a_hostile_file_writes_one_plain_line_in_time(folder, capsys):
    values = {"do_sample": True, "temp\x1b[2Jrature": 1, **{f"temperatur{number}": 1 for number in range(40_000)}}
    (folder / "generation_config.json").write_text(json.dumps(values))
    started = time.monotonic()
    lines = told(capsys, *ASK, folder)[0]
    assert time.monotonic() - started < 20
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 5
