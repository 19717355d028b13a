"""Mistakes that can be seen without the weights are seen before the weights are downloaded."""

import json
import os
import shutil

import pytest

import qwq_ref
from qwq_ref.cli import main
from qwq_ref.engine.convert import convert
from qwq_ref.engine.plan import model_bytes
from qwq_ref.errors import QwqError
from qwq_ref.host import disk
from qwq_ref.oracle import compare

NAME = "owner/name"


@pytest.fixture
def model(local_hub, random_folder):
    """The hub with a model that can answer -> its files."""
    files = {file.name: file.read_bytes() for file in random_folder.iterdir()}
    local_hub.add(NAME, files)
    return files


@pytest.fixture
def places(tmp_path):
    """Names in braces for arguments: a folder with other files, a new one, files that are there and that are not."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    (tmp_path / "a file").write_text("mine")
    (tmp_path / "empty.jinja").write_text(" \n")
    (tmp_path / "broken.jinja").write_text("{% if %}")
    return {
        "other": tmp_path / "other",
        "new": tmp_path / "made/new",
        "file": tmp_path / "a file",
        "missing": tmp_path / "missing.jinja",
        "empty": tmp_path / "empty.jinja",
        "broken": tmp_path / "broken.jinja",
        "theirs": tmp_path / "theirs",
    }


def weights_asked(hub):
    return hub.asked("GET", "safetensors")


MISTAKES = {
    "convert into another folder": ("convert -o {other}", "other: holds something else"),
    "convert into a file": ("convert -o {file}", "a file: is not a folder"),
    "convert below a file": ("convert -o {file}/x", "cannot be written (Not a directory)"),
    "convert where nothing can be": ("convert -o /proc/x/y", "/proc/x/y: cannot be written (No such file"),
    "record into a folder": ("golden record --ids 1,2 -o {other}", "other: exists already"),
    "record below a file": ("golden record --ids 1,2 -o {file}/x", "cannot be written (Not a directory)"),
    "record where nothing can be": ("golden record --ids 1,2 -o /proc/x/y", "/proc/x/y: cannot be written"),
    "record no text": ("golden record -f {missing} -o {new}", "missing.jinja: cannot be read"),
    "record ids and text": ("golden record --ids 1 hello -o {new}", "--ids: takes the place of the prompt"),
    "record unknown taps": ("golden record --ids 1,2 --taps *.q_rop -o {new}", "--taps: *.q_rop matches no tap"),
    "record unknown taps of a text": ("golden record -p hi --taps *.q_rop -o {new}", "--taps: *.q_rop matches no tap"),
    "record unknown layers": ("golden record --ids 1,2 --layers 9 -o {new}", "--layers: must be -2 to 1"),
    "record an unknown size": ("golden record --ids 1,2 --size huge -o {new}", "--size: must be one of"),
    "record large ids": ("golden record --ids 1,99999999 -o {new}", "below vocab_size"),
    "record without a prompt": ("golden record --ids 1,2 --decode 2 -o {new}", "--decode: must leave a prompt"),
    "record in little memory": ("golden record --ids 1,2 --max-memory 1M -o {new}", "of memory"),
    "a missing template": ("generate --chat-template-file {missing} hi", "missing.jinja: cannot be opened"),
    "an empty template": ("generate --chat-template-file {empty} hi", "holds an empty chat template"),
    "a broken template": ("generate --chat-template-file {broken} hi", "broken.jinja: "),
    "too much context": ("generate -c 99999999 hi", "--ctx-size: must be 1 to "),
    "unknown samplers": ("generate --samplers top_x hi", "--samplers: "),
    "an unknown instruction set": ("generate --isa zz hi", "--isa: zz cannot run here"),
    "eval with an unknown category": ("eval --categories sums,nothing", "--categories: there is no"),
    "bench with layers": ("bench --layers 1", "--layers: must be 1 to 2, of a --shape"),
    "bench with too much context": ("bench -p 16777215", "more than the model's"),
    "compare with no pack": ("golden compare {new} {theirs}", "new: is not a folder"),
    "compare nothing": ("golden compare gqa {missing}", "missing.jinja: "),
    "compare with an unknown map": ("golden compare gqa {theirs} --map {missing}", "missing.jinja: "),
    "compare in an unknown precision": ("golden compare gqa {theirs} --precision fp7", "fp7"),
    "a report where nothing can be": ("golden compare gqa {theirs} --html /proc/x/y", "/proc/x/y: cannot be written"),
    "another model than the pack's": ("golden compare gqa {theirs}", "was recorded from another model"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_seen_before_the_download(local_hub, model, places, capsys, name):
    line, problem = MISTAKES[name]
    shutil.copytree(qwq_ref.oracle.open_golden("gqa").path, places["theirs"])
    words = [word.format(**places) for word in line.split(" ")]
    if "*" in line or "golden" not in line:
        places["new"].parent.mkdir()
    status = main([*words, "-m", NAME, "--yes"])
    told = capsys.readouterr().err
    assert status in (1, 2), told
    assert problem in told.splitlines()[-1]
    assert weights_asked(local_hub) == []
    assert not os.path.lexists(places["new"])


@pytest.mark.parametrize("base", ["missing", "a file", "other"])
def test_training_without_a_base_leaves_no_folder(places, tmp_path, capsys, base):
    """A recipe that is left would refuse the next command with other options."""
    assert main(["train", "cold-start", "-m", str(tmp_path / base), "-o", str(places["new"])]) == 1
    assert "config.json" in capsys.readouterr().err.splitlines()[-1]
    assert not os.path.lexists(places["new"])


def test_nothing_is_left_of_the_trial(local_hub, model, places, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert main(["convert", "-m", "owner/nothing", "-o", str(places["new"])]) == 1
    assert main(["golden", "record", "-m", "owner/nothing", "--ids", "1", "-o", str(places["new"])]) == 1
    assert [path for path in sorted(tmp_path.rglob("*")) if "hub" not in path.parts] == before
    places["new"].mkdir(parents=True)
    assert main(["convert", "-m", NAME, "-o", str(places["new"]), "--weights", "fp32", "--yes"]) == 0


CALLS = {
    "an instruction set": (lambda places: {"isa": "zz"}, "isa: zz cannot run here"),
    "a template": (lambda places: {"chat_template": places["missing"]}, "missing.jinja: cannot be opened"),
    "a broken template": (lambda places: {"chat_template": places["broken"]}, "broken.jinja: "),
    "threads": (lambda places: {"threads": 0}, "threads: must be at least 1"),
    "a context": (lambda places: {"context": 1 << 40}, "ctx-size: must be 1 to"),
}


@pytest.mark.parametrize("name", CALLS)
def test_python_sees_it_before_the_download(local_hub, model, places, name):
    options, problem = CALLS[name]
    with pytest.raises(QwqError) as caught:
        qwq_ref.load(NAME, **options(places))
    assert problem in str(caught.value)
    assert weights_asked(local_hub) == []


def test_the_variable_of_the_instruction_set_counts(local_hub, model, monkeypatch, capsys):
    monkeypatch.setenv("QWQ_ISA", "zz")
    with pytest.raises(QwqError, match="QWQ_ISA: zz cannot run here"):
        qwq_ref.load(NAME)
    assert main(["generate", "-m", NAME, "-y", "hi"]) == 1
    assert "QWQ_ISA: zz" in capsys.readouterr().err
    assert weights_asked(local_hub) == []


def test_python_compares_only_what_is_there(local_hub, model, places):
    with pytest.raises(QwqError, match=r"missing\.jinja"):
        compare("gqa", places["missing"], model=NAME)
    with pytest.raises(QwqError, match="was recorded from another model"):
        compare("gqa", qwq_ref.oracle.open_golden("gqa").path, model=NAME)
    assert weights_asked(local_hub) == []


@pytest.mark.parametrize("command", ["generate -p hi", "eval -n 1", "golden record -p hi -o {new}"])
def test_text_needs_a_tokenizer_before_the_weights(local_hub, model, places, capsys, command):
    local_hub.add(NAME, {name: data for name, data in model.items() if name != "tokenizer.json"})
    words = [word.format(**places) for word in command.split(" ")]
    assert main([*words, "-m", NAME, "--yes"]) in (1, 2)
    assert "tokenizer.json: is missing" in capsys.readouterr().err.splitlines()[-1]
    assert weights_asked(local_hub) == []


@pytest.mark.parametrize("command", ["generate -p hi", "eval -n 1", "golden record --chat -p hi -o {new}"])
def test_a_chat_needs_a_template_before_the_weights(local_hub, model, places, capsys, command):
    without = {name: data for name, data in model.items() if "template" not in name}
    config = json.loads(without.get("tokenizer_config.json", b"{}"))
    config.pop("chat_template", None)
    local_hub.add(NAME, without | {"tokenizer_config.json": json.dumps(config).encode()})
    words = [word.format(**places) for word in command.split(" ")]
    assert main([*words, "-m", NAME, "--yes"]) == 2
    assert "chat template" in capsys.readouterr().err.splitlines()[-1]
    assert weights_asked(local_hub) == []


@pytest.mark.parametrize("file", ["tokenizer.json", "generation_config.json", "tokenizer_config.json"])
def test_broken_small_files_are_seen_before_the_weights(local_hub, model, capsys, file):
    local_hub.add(NAME, model | {file: b'{"a": '})
    assert main(["generate", "-m", NAME, "-y", "hi"]) == 1
    assert f"{file}: is not JSON" in capsys.readouterr().err.splitlines()[-1]
    assert weights_asked(local_hub) == []


def packed(tmp_path):
    convert("qwq-nano", tmp_path / "packed", "q4")
    return {file.name: file.read_bytes() for file in (tmp_path / "packed").iterdir()}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("convert -o {new}", "is packed already"),
        ("generate --weights q8 hi", "weights: q8 are not here; q4 are"),
        ("generate --backend numpy hi", "numpy reads no packed weights"),
        ("eval --against q8 -n 1", "weights: q8 are not here; q4 are"),
        ("bench --weights q4,q8", "weights: q8 are not here; q4 are"),
        ("info --check", "packed weights cannot be checked"),
        ("golden record --ids 1 -o {new}", "packed"),
    ],
)
def test_packed_weights_that_do_not_serve(local_hub, places, tmp_path, capsys, line, problem):
    local_hub.add(NAME, packed(tmp_path))
    words = [word.format(**places) for word in line.split(" ")]
    assert main([*words, "-m", NAME, "--yes"]) in (1, 2)
    assert problem in capsys.readouterr().err.splitlines()[-1]
    assert weights_asked(local_hub) == []


def test_both_models_of_eval_must_fit(local_hub, model, monkeypatch, capsys):
    monkeypatch.setattr("qwq_ref.host.memory.available_bytes", lambda *root: 3 << 20)  # each needs 2.02 MiB
    assert main(["eval", "-m", NAME, "-y", "--weights", "fp32", "--max-tokens", "1", "--against", "fp32"]) == 1
    assert "(the model 2.02 MiB + the other mode 2.02 MiB)" in capsys.readouterr().err.splitlines()[-1]
    assert weights_asked(local_hub) == []


# --- room on the disk ---


def room(monkeypatch, sizes):
    """Let disks have so much room: the beginning of a path -> bytes. Each beginning is a disk of its own."""

    def place(folder):
        return next(start for start in sizes if str(folder).startswith(str(start)))

    monkeypatch.setattr(disk, "free_bytes", lambda folder: sizes[place(folder)])
    monkeypatch.setattr(disk, "same", lambda one, other: place(one) == place(other))


def test_convert_adds_its_result_to_the_download(local_hub, model, tmp_path, monkeypatch, capsys):
    from qwq_ref.config import Config

    absent = sum(len(data) for name, data in model.items() if name != "config.json")
    result = model_bytes(Config.from_dict(json.loads(model["config.json"])), "fp32")
    command = ["convert", "-m", NAME, "-y", "--weights", "fp32", "-o", str(tmp_path / "out/made")]
    room(monkeypatch, {tmp_path: absent + result - 1})
    assert main(command) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "needs " in line
    assert " for the download and " in line
    assert weights_asked(local_hub) == []
    with pytest.raises(QwqError, match="for the download and"):
        convert(NAME, tmp_path / "out/made", "fp32")
    room(monkeypatch, {tmp_path / "out": result - 1, tmp_path: absent})
    assert main(command) == 1
    assert "out/made: needs " in capsys.readouterr().err.splitlines()[-1]
    assert weights_asked(local_hub) == []
    room(monkeypatch, {tmp_path / "out": result + 4096, tmp_path: absent})
    assert main(command) == 0


def test_record_adds_its_pack_to_the_download(local_hub, model, tmp_path, monkeypatch, capsys):
    absent = sum(len(data) for name, data in model.items() if name != "config.json")
    command = ["golden", "record", "-m", NAME, "-y", "--ids", "1,2", "-o", str(tmp_path / "made")]
    room(monkeypatch, {tmp_path: absent + 1000})
    assert main(command) == 1
    assert "made: needs " in capsys.readouterr().err.splitlines()[-1]
    assert weights_asked(local_hub) == []


def test_two_folders_of_one_disk(tmp_path):
    assert disk.same(tmp_path / "a/b", tmp_path / "c")
    assert not disk.same(tmp_path, disk.Path("/proc/x"))
