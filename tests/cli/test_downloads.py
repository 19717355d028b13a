"""A model of the hub that is not in the cache: its files are listed, memory is compared, and the user is asked."""

import dataclasses
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwq_ref import footprint
from qwq_ref.cli import doctor, main, models
from qwq_ref.config import Config
from qwq_ref.footprint import human
from qwq_ref.formats import Download
from qwq_ref.formats.names import SHIPPED
from tests.support.hub_server import environment
from tests.support.models import config_values
from tests.support.terminals import Terminal

NAME = "owner/name"


@pytest.fixture
def model(hub, random_folder):
    """The hub with a model that can answer -> its files."""
    files = {file.name: file.read_bytes() for file in random_folder.iterdir()}
    hub.add(NAME, files | {"README.md": b"never read", "pytorch_model.bin": bytes(9000)})
    return files


def qwq(hub, home, *arguments, **kwargs):
    command = [sys.executable, "-m", "qwq_ref", *map(str, arguments)]
    variables = environment(hub, home, TERM="xterm")
    return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, **kwargs)


ASK = ("generate", "-m", NAME, "--raw", "-p", "x", "-n", "3", "--seed", "1", "-c", "64")


def downloaded(home):
    return sorted(file.name for file in home.rglob("snapshots/*/*"))


def test_without_a_terminal_it_needs_yes(hub, model, tmp_path):
    done = qwq(hub, tmp_path, *ASK)
    assert (done.returncode, done.stdout) == (2, "")
    lines = done.stderr.splitlines()
    assert lines[0] == f"{NAME}: files to read, from the hub to {tmp_path}/hub"
    assert lines[1].split() == ["file", "files", "size", "to", "download"]
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:-2]}
    assert set(rows) == {*model, "total"}
    assert rows["config.json"][0] == "1"
    assert rows["config.json"][-1] == "-"  # it is in the cache now: it tells the memory
    assert rows["total"][0] == str(len(model))
    assert lines[-2].startswith("memory: weights ")
    assert lines[-1].startswith(f"qwq: {NAME}: is not in the cache; --yes downloads it (")
    assert downloaded(tmp_path) == ["config.json"]


@pytest.mark.parametrize("yes", ["--yes", "-y"])
def test_yes_downloads(hub, model, tmp_path, yes):
    done = qwq(hub, tmp_path, *ASK, yes)
    assert done.returncode == 0, done.stderr
    assert "to download" in done.stderr
    assert downloaded(tmp_path) == sorted(model)
    again = qwq(hub, tmp_path, *ASK, "--offline")
    assert again.returncode == 0
    assert again.stdout == done.stdout
    assert "to download" not in again.stderr


def on_terminal(hub, home, arguments, **kwargs):
    variables = environment(hub, home)
    dropped = {name: None for name in ("HF_HUB_OFFLINE",) if name not in variables}
    kept = {name: value for name, value in variables.items() if name.startswith("HF_")}
    return Terminal(*arguments, environment=kept | dropped, **kwargs)


@pytest.mark.parametrize(("answer", "status"), [("y", 0), ("", 0), ("n", 1), ("what no", 1), ("\4", 1)])
def test_on_a_terminal_it_asks(hub, model, tmp_path, answer, status):
    terminal = on_terminal(hub, tmp_path, ASK, columns=120)
    for count, word in enumerate(answer.split(" "), 1):
        terminal.until(rf"(Download [\d.]+ [KM]iB\? \[Y/n\] [^?]*){{{count}}}")
        terminal.press(word if word == "\4" else f"{word}\n")
    ended, lines = terminal.end()
    assert ended == status, lines
    if status:
        assert any(line.startswith(f"qwq: {NAME}: was not downloaded (") for line in lines), lines
        assert downloaded(tmp_path) == ["config.json"]
    else:
        assert downloaded(tmp_path) == sorted(model)
    assert not any("downloading:" in line for line in lines)


def test_ctrl_c_at_the_question(hub, model, tmp_path):
    terminal = on_terminal(hub, tmp_path, ASK)
    terminal.until(r"\[Y/n\] ")
    terminal.press("\3")
    status, lines = terminal.end()
    assert status == 130
    assert lines[-2:] == ["qwq: interrupted", ""]
    assert downloaded(tmp_path) == ["config.json"]


def test_ctrl_c_during_the_download(hub, model, tmp_path):
    hub.fault("store:GET .*safetensors", "stall", 1000, times=1)
    terminal = on_terminal(hub, tmp_path, ASK, columns=120)
    terminal.until(r"\[Y/n\] ")
    terminal.press("y\n")
    deadline = time.monotonic() + 60
    while not hub.asked("GET", "safetensors"):
        assert time.monotonic() < deadline
        terminal.read(0.1)
    terminal.press("\3")
    status, lines = terminal.end()
    assert status == 130
    count = len(model) - 2  # all but the config, which came before, and the weights
    assert f"qwq: interrupted: {count} of {count + 1} files (" in lines[-2]
    assert lines[-2].endswith(" are in the cache, and the next run fetches the rest")
    assert "downloading" not in "".join(lines)


def test_it_asks_though_the_prompt_comes_by_a_pipe(hub, model, tmp_path):
    """The keyboard answers, and not the prompt."""
    command = ["sh", "-c", f"printf 'no\\n' | {sys.executable} -m qwq_ref generate -m {NAME} --raw --json -n 3"]
    terminal = on_terminal(hub, tmp_path, [], command=command)
    terminal.until(r"\[Y/n\] ")
    terminal.press("y\n")
    status, lines = terminal.end()
    assert status == 0, lines
    assert downloaded(tmp_path) == sorted(model)


def test_a_large_download_needs_a_yes(monkeypatch):
    config = Config.from_dict(config_values())
    for size, agreed in ((models._LARGE, False), (models._LARGE - 1, True)):
        monkeypatch.setattr(models, "_terminal", lambda stack: io.StringIO("\n"))
        plan = Download(NAME, Path(), {"model.safetensors": size}, ("model.safetensors",), config)
        assert models._ask(plan) is agreed


def test_a_model_that_does_not_fit_is_not_downloaded(hub, tmp_path):
    values = config_values(num_hidden_layers=4096, hidden_size=16384, intermediate_size=65536)
    hub.add(NAME, {"config.json": json.dumps(values).encode(), "model.safetensors": bytes(9000)})
    done = qwq(hub, tmp_path, "generate", "-m", NAME, "-y", "x")
    assert done.returncode == 1
    assert f"qwq: {NAME}: needs " in done.stderr
    assert " of memory (weights " in done.stderr
    code = f"import qwq_ref; qwq_ref.load('{NAME}')"
    done = subprocess.run([sys.executable, "-c", code], env=environment(hub, tmp_path), capture_output=True, text=True)
    assert "MemoryLimitError: owner/name: needs " in done.stderr
    assert downloaded(tmp_path) == ["config.json"]


def test_python_decides_with_a_function(hub, model, tmp_path):
    confirm = "lambda plan: print(plan.nbytes) or plan.nbytes < {}"
    code = f"import qwq_ref; qwq_ref.load('{NAME}', context=64, confirm={confirm})"
    for limit, ending in ((1, "CheckpointError: owner/name: was not downloaded"), (1 << 40, "")):
        command = [sys.executable, "-c", code.format(limit)]
        done = subprocess.run(command, env=environment(hub, tmp_path), capture_output=True, text=True, timeout=120)
        assert int(done.stdout) > 1
        assert ending in done.stderr
        assert bool(done.returncode) == bool(ending)


def test_a_hub_that_lists_no_sizes_is_asked_for_them(hub, model, tmp_path):
    hub.sizes = False
    done = qwq(hub, tmp_path, *ASK)
    assert done.returncode == 2
    size = human(sum(len(data) for name, data in model.items() if name != "config.json"))
    assert done.stderr.splitlines()[-1].endswith(f"is not in the cache; --yes downloads it ({size})")
    assert "unknown" not in done.stderr


def test_a_size_that_nobody_tells_is_unknown(hub, model, tmp_path):
    hub.sizes = False
    hub.fault("HEAD .*safetensors", "status", 404)
    done = qwq(hub, tmp_path, *ASK)
    assert done.returncode == 2
    rows = {line.split()[0]: line.split()[1:] for line in done.stderr.splitlines()}
    assert rows["model.safetensors"] == ["1", "unknown", "unknown"]
    assert rows["total"][1:] == ["unknown", "unknown"]
    assert done.stderr.splitlines()[-1].endswith("is not in the cache; --yes downloads it (of unknown size)")


def unknown(**sizes):
    """A download of QwQ-32B whose weights have no size."""
    config = Config.from_file(SHIPPED / "qwq-32b/config.json")
    files = {"tokenizer.json": 1000, "model-1.safetensors": None, "model-2.safetensors": None} | sizes
    return Download(NAME, Path(), files, tuple(files), config)


@pytest.mark.parametrize(("answer", "agreed"), [("\n", False), ("y\n", True)])
def test_enter_means_no_to_an_unknown_size(monkeypatch, capsys, answer, agreed):
    asked = []
    monkeypatch.setattr(models, "_terminal", lambda stack: io.StringIO(answer))
    monkeypatch.setattr(models.screen, "ask", lambda text, terminal: asked.append(text) or terminal.readline())
    plan = unknown()
    assert models._ask(plan) is agreed
    assert asked == ["Download of unknown size? [y/N] "]


def test_an_unknown_size_is_at_least_that_of_the_parameters(tmp_path, monkeypatch):
    """So the disk counts, and a limit of `confirm`."""
    weights = footprint.weight_bytes(unknown().config, "bf16")
    assert unknown().nbytes == 1000 + weights
    assert unknown(**{"model-1.safetensors": weights - 7}).nbytes == 1000 + weights
    assert unknown(**{"model-1.safetensors": weights + 7}).nbytes == 1000 + weights + 7
    here = {**unknown().files, "model-1.safetensors": weights - 7}
    plan = dataclasses.replace(unknown(), files=here, absent=("model-2.safetensors",))
    assert plan.nbytes == 7


@pytest.mark.parametrize(
    "arguments",
    [
        ("convert", "-m", NAME, "--weights", "fp32", "-o", "{out}"),
        ("golden", "record", "-m", NAME, "--ids", "1,2", "-o", "{out}"),
        ("info", "-m", NAME, "--check"),
        ("eval", "-m", NAME),
        ("bench", "-m", NAME, "-p", "8", "-n", "0", "-r", "1", "--weights", "fp32"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_that_reads_weights_asks(hub, model, tmp_path, arguments):
    words = [word.format(out=tmp_path / "out") for word in arguments]
    done = qwq(hub, tmp_path, *words)
    assert done.returncode == 2, done.stderr
    assert "--yes downloads it (" in done.stderr
    if arguments[0] == "eval":  # takes long
        return
    done = qwq(hub, tmp_path, *words, "-y")
    assert done.returncode == 0, done.stderr
    assert downloaded(tmp_path) == sorted(model)


def test_info_and_doctor_fetch_a_config_at_most(hub, model, tmp_path):
    done = qwq(hub, tmp_path, "info", "-m", NAME, "--json")
    assert done.returncode == 0, done.stderr
    assert "stored_bytes" not in json.loads(done.stdout)
    assert downloaded(tmp_path) == ["config.json"]
    hub.log.clear()
    done = qwq(hub, tmp_path, "info", "-m", NAME, "--offline")
    assert done.returncode == 0
    assert hub.log == []


def test_doctor_examines_a_model_that_is_not_downloaded(local_hub, random_folder):
    config = (random_folder / "config.json").read_bytes()
    local_hub.add(NAME, {"config.json": config, "model.safetensors": bytes(9000)})
    asked = doctor._read(NAME, offline=False)
    assert (asked.name, asked.run_as, asked.config.L, dict(asked.stored)) == (NAME, NAME, 2, {"BF16": 0})
    assert local_hub.asked("GET", "safetensors") == []
    assert doctor._read(NAME, offline=True) == asked


# --- the sampling, and where it comes from ---

WITHOUT = "qwq: there is no generation_config.json: each token is the likeliest one; --temp X draws"


def messages(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().err


def test_a_missing_generation_config_is_told(random_folder, tmp_path, capsys):
    for file in random_folder.iterdir():
        if file.name != "generation_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    ask = ("generate", "--raw", "-p", "x", "-n", "3", "-c", "64", "--seed", "1")
    assert messages(capsys, *ask, "-m", tmp_path).splitlines()[0] == WITHOUT
    assert WITHOUT not in messages(capsys, *ask, "-m", tmp_path, "--temp", "0.5")
    assert WITHOUT not in messages(capsys, *ask, "-m", random_folder)


def test_verbose_tells_the_sampling(random_folder, capsys):
    ask = ("generate", "-v", "--raw", "-p", "x", "-n", "3", "-c", "64", "-m", random_folder)
    line = "sampling: temperature 0.6, top-k 40, top-p 0.95, min-p 0, repetition-penalty 1, presence-penalty 0, "
    line += "frequency-penalty 0, penalty-window 0, typical-p 1, top-n-sigma 0; from "
    assert f"{line}generation_config.json\n" in messages(capsys, *ask)
    line = line.replace("0.6", "2")
    assert f"{line}generation_config.json and the command line\n" in messages(capsys, *ask, "--temp", "2")
