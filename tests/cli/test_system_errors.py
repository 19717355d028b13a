"""Files that the system refuses to write: one line, exit status 1, and nothing half-written, for every command."""

import builtins
import dataclasses
import errno
import itertools
import json
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.formats.write import atomic_file, write_atomically
from qwq_ref.train import corpus, folder, sft

needs_core = pytest.mark.skipif(not core.available(), reason="the C core is not built: there was no compiler")
NUMBERS = [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EMFILE, errno.EFBIG]
# Each writes OUT.
COMMANDS = {
    "convert": ["convert", "-o", "OUT", "--weights", "q8"],
    "record": ["golden", "record", "-o", "OUT", "--ids", "1,2", "--taps", "*.q_rope", "--include-weights"],
    "vectors": ["golden", "vectors", "-o", "OUT"],
    "export": ["golden", "export", "gqa", "-o", "OUT"],
    "html": ["golden", "compare", "gqa", "GQA", "--no-explain", "--html", "OUT"],
    "json": ["golden", "compare", "gqa", "GQA", "--no-explain", "--json", "OUT"],
    "junit": ["golden", "compare", "gqa", "GQA", "--no-explain", "--junit", "OUT"],
    "train": ["train", "base", "-o", "OUT", "--steps", "1", "-t", "1"],
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    texts = corpus.texts
    monkeypatch.setattr(corpus, "texts", lambda seed, count: texts(seed, 100))
    monkeypatch.setitem(sft.STAGES, "base", dataclasses.replace(sft.STAGES["base"], rows=1))


@pytest.fixture(params=COMMANDS)
def command(request):
    if request.param == "convert" and not core.available():
        pytest.skip("the C core is not built: there was no compiler")
    from qwq_ref import oracle

    return [argument.replace("GQA", str(oracle.path("gqa"))) for argument in COMMANDS[request.param]]


def run(command, out, capsys):
    status = main([argument.replace("OUT", str(out)) for argument in command])
    return status, capsys.readouterr().err


def fails(result, out, reason):
    status, err = result
    err = "".join(line for line in err.splitlines(True) if not line.startswith("step "))  # of train
    assert status == 1, err
    assert err.count("\n") == 1, err
    assert err.startswith(f"qwq: {out}"), err
    assert err.endswith(f": cannot be written ({reason})\n"), err


class Refusal:
    """Calls of the system that make or complete a file or a folder below `folder`. All fail but the first `at`."""

    def __init__(self, monkeypatch, folder, number, at):
        self.folder, self.number, self.at, self.calls = str(folder), number, at, 0
        monkeypatch.setattr(builtins, "open", self.wrapped(open, lambda path, mode="r", *_: mode[0] in "wxa"))
        for name in ("mkdir", "replace", "rename"):
            monkeypatch.setattr(os, name, self.wrapped(getattr(os, name)))
        # A folder whose flush is refused holds complete files.
        monkeypatch.setattr(os, "fsync", self.wrapped(os.fsync, lambda file: stat.S_ISREG(os.fstat(file).st_mode)))

    def wrapped(self, call, counts=lambda *_: True):
        def refusing(*arguments, **named):
            if (isinstance(arguments[0], int) or str(arguments[0]).startswith(self.folder)) and counts(*arguments):
                self.calls += 1
                if self.calls > self.at:
                    raise OSError(self.number, os.strerror(self.number), str(arguments[0]))
            return call(*arguments, **named)

        return refusing


def test_every_call_that_writes_may_be_refused(command, tmp_path, capsys, monkeypatch):
    """Whichever call it is and whatever the reason: one line, nothing half-written, and the next try succeeds."""
    out = tmp_path / "new" / "out"
    out.parent.mkdir()
    for number, at in zip(itertools.cycle(NUMBERS), [*range(6), *range(8, 100, 7)], strict=False):
        with monkeypatch.context() as patch:
            refusal = Refusal(patch, tmp_path, number, at)
            result = run(command, out, capsys)
        if refusal.calls <= at:
            break
        fails(result, out, os.strerror(number))
        assert command[0] == "train" or not list(out.parent.iterdir())  # a run keeps what it has, and resumes
        assert not list(tmp_path.rglob("*.tmp"))
    assert result[0] in (0, 3), result
    assert at >= 3
    assert out.exists()


def test_places_that_cannot_be(command, tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    fails(run(command, file / "x", capsys), file / "x", "Not a directory")
    name = tmp_path / ("x" * 300)
    fails(run(command, name, capsys), name, "File name too long")
    if command[0] != "train":  # its folder may be there
        assert run(command, tmp_path, capsys)[0] in (1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_name_that_is_just_short_enough(command, tmp_path, capsys):
    """The unfinished file beside it has a shorter one."""
    out = tmp_path / ("文" * 80 + "12345")  # 245 bytes
    assert run(command, out, capsys)[0] in (0, 3)
    assert out.exists()


def test_a_limit_on_the_size_of_files(command, tmp_path):
    """As `ulimit -f`."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))

    arguments = [argument.replace("OUT", str(tmp_path / "out")) for argument in command]
    done = subprocess.run(
        [sys.executable, "-m", "qwq_ref", *arguments], capture_output=True, text=True, preexec_fn=limit, timeout=120
    )
    fails((done.returncode, done.stderr), tmp_path / "out", "File too large")
    assert command[0] == "train" or not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["html", "json", "junit", "export"])
def test_devices_and_links_are_written_in_place(name, tmp_path, capsys):
    from qwq_ref import oracle

    command = [argument.replace("GQA", str(oracle.path("gqa"))) for argument in COMMANDS[name]]
    assert run(command, "/dev/null", capsys)[0] in (0, 3)
    assert not Path("/dev/null").is_file()
    fails(run(command, "/dev/full", capsys), "/dev/full", "No space left on device")
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    assert run(command, link, capsys)[0] in (0, 3)
    assert link.is_symlink()
    assert target.stat().st_size > 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_an_atomic_file(tmp_path):
    """A failure keeps the old file; a pipe is written as it is."""
    path = tmp_path / "file"
    path.write_text("old")
    for error_type in (KeyboardInterrupt, ValueError):

        def fail(file, error_type=error_type):
            file.write(b"new")
            raise error_type

        with pytest.raises(error_type):
            write_atomically(path, fail)
        assert path.read_text() == "old"
    reader, writer = os.pipe()
    with atomic_file(f"/dev/fd/{writer}") as file:
        file.write(b"new")
    os.close(writer)
    assert os.read(reader, 10) == b"new"
    os.close(reader)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


# --- What a command keeps --------------------------------------------------------------------------------------------


@needs_core
def test_a_conversion_goes_on_where_a_killed_one_ended(tmp_path, capsys):
    """It left the small files, a part of an unfinished one, or nothing at all."""
    assert main(["convert", str(tmp_path / "whole")]) == 0
    left = tmp_path / "left"
    left.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (left / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    (left / ".packed-q4.safetensors.123.tmp").write_text("a part")
    assert main(["convert", str(left)]) == 0
    (left / ".packed-q4.safetensors.123.tmp").unlink()
    for path in (tmp_path / "whole").iterdir():
        assert (left / path.name).read_bytes() == path.read_bytes()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert main(["convert", str(tmp_path / "other")]) == 2
    assert "is of another model" in capsys.readouterr().err


@needs_core
def test_a_failed_conversion_keeps_other_forms(tmp_path, capsys, monkeypatch):
    assert main(["convert", str(tmp_path / "new"), "--weights", "q8"]) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    with monkeypatch.context() as patch:
        Refusal(patch, tmp_path, errno.ENOSPC, 1)
        assert main(["convert", str(tmp_path / "new"), "--weights", "q4"]) == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()} == before


def test_a_run_whose_disk_is_full_resumes(tmp_path, capsys, monkeypatch):
    command = ["train", "base", "-t", "1", "--steps", "4", "-o"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    out = tmp_path / "out"
    save = sft.write_atomically
    for full_at in (2, 3):
        with monkeypatch.context() as patch:
            steps = []
            update = sft.descend
            patch.setattr(sft, "descend", lambda *a, _u=update, _s=steps, **k: (_s.append(1), _u(*a, **k)))

            def write(path, content, full_at=full_at, steps=steps):
                if len(steps) >= full_at and Path(path).name == "log.csv":
                    raise OSError(errno.ENOSPC, "No space left on device")
                return save(path, content)

            patch.setattr(sft, "write_atomically", write)
            main([*command, str(out)])
    assert main([*command, str(out)]) == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "model.safetensors").read_bytes()


def test_a_step_is_whole_or_not_taken(tmp_path, monkeypatch):
    """Ctrl-C in the middle of the optimiser's step."""
    update = sft.descend

    def interrupted(weights, *arguments, **named):
        update(weights, *arguments, **named)
        if int(arguments[1]["step"]) == 2:
            raise KeyboardInterrupt

    sft.train("base", tmp_path / "whole", steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(sft, "descend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sft.train("base", tmp_path / "out", steps=3)
    assert folder.saved_step(tmp_path / "out") == 0  # nobody knows whether the step was whole
    sft.train("base", tmp_path / "out", steps=3)
    names = ("model.safetensors", "config.json")
    assert [(tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names] == [
        1,
        1,
    ]


def test_a_damaged_recipe_is_named(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text('{"stage": ')
    assert main(["train", "base", "-o", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith(f"qwq: {tmp_path}/recipe.json: is not JSON")


def test_eval_keeps_what_was_measured(tmp_path, capsys, monkeypatch):
    """An error in a later category prints the earlier ones, also as JSON."""
    from qwq_ref.errors import QwqError
    from qwq_ref.eval import accuracy

    problems = accuracy.problems

    def fails_at_sort(category, n, seed):
        if category == "sort":
            raise QwqError("model", None, "is broken")
        return problems(category, n, seed)

    monkeypatch.setattr(accuracy, "problems", fails_at_sort)
    arguments = ["eval", "-n", "2", "--categories", "add3,sort", "--max-tokens", "4"]
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert [row["category"] for row in report["categories"]] == ["add3"]
    assert report["complete"] is False
    assert err == "qwq: model: is broken\n"
    assert main(arguments) == 1
    assert "add3" in capsys.readouterr().out


def test_generate_keeps_what_was_generated(scripted, capsys, monkeypatch):
    from qwq_ref.errors import QwqError
    from qwq_ref.text import StreamDecoder

    feed = StreamDecoder.feed

    def fails_at_the_answer(self, token):
        text = feed(self, token)
        if "!" in text:
            raise QwqError("model", None, "is broken")
        return text

    monkeypatch.setattr(StreamDecoder, "feed", fails_at_the_answer)
    arguments = ["generate", "-m", str(scripted("two", "4!")), "what?"]
    assert main([*arguments, "--json"]) == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["answer"], report["thinking"], report["finish_reason"]) == ("4", "two", "error")
    assert err == "qwq: model: is broken\n"
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == "4\n"
    assert err.endswith("qwq: model: is broken\n")
