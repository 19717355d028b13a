"""Conversions that are killed, interrupted or disturbed: resumed to the same bytes, and never taken for a model."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

import qwq_ref
from qwq_ref import core
from qwq_ref.cli import main
from qwq_ref.engine import conversion, pieces
from qwq_ref.engine.convert import convert
from qwq_ref.engine.export import export
from qwq_ref.errors import CheckpointError, FileError, QwqError, UsageError
from qwq_ref.formats import unfinished as hidden
from qwq_ref.formats.journal import read_journal
from qwq_ref.forms import FORMS
from tests.support.paths import ROOT

if not core.available():
    pytest.skip("the C core is not built: there was no compiler", allow_module_level=True)
IDS = np.arange(40)
HF = "hf"
# A conversion in small pieces, so that a random moment is in any of them.
SCRIPT = """
import sys
from qwq_ref.engine import pieces
pieces.SLICE, pieces._PIECE = 1 << 15, 1 << 14
from qwq_ref.engine.convert import convert
from qwq_ref.engine.export import export
print("ready", flush=True)
folder, kind = sys.argv[1:]
export("qwq-nano", folder) if kind == "hf" else convert("qwq-nano", folder, kind)
"""


def converted(folder, kind, **report):
    return export("qwq-nano", folder, **report) if kind == HF else convert("qwq-nano", folder, kind, **report)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """{kind: files of an uninterrupted conversion}"""
    made = {}
    for kind in (*FORMS, HF):
        folder = tmp_path_factory.mktemp("whole") / kind
        converted(folder, kind)
        made[kind] = contents(folder)
    return made


@pytest.fixture(scope="module")
def logits():
    return {kind: qwq_ref.load("qwq-nano", weights="bf16" if kind == HF else kind).logits(IDS) for kind in (*FORMS, HF)}


class Stop(KeyboardInterrupt):
    pass


def after(count):
    """A function that raises Stop when it is called so many times."""
    calls = iter(range(count))

    def progress(_):
        if next(calls, None) is None:
            raise Stop

    return progress


@pytest.fixture
def fine(monkeypatch):
    monkeypatch.setattr(pieces, "SLICE", 1 << 15)
    monkeypatch.setattr(pieces, "_PIECE", 1 << 14)


@pytest.mark.parametrize("kind", [*FORMS, HF])
def test_an_interrupted_conversion_goes_on(tmp_path, fine, whole, kind):
    """Interrupted again and again, it ends with the bytes of an uninterrupted one, and nothing is done twice."""
    folder, skipped, rounds = tmp_path / "new", [], 0
    while True:
        skipped.append(0)
        try:
            converted(folder, kind, progress=after(20), resumed=lambda n: skipped.append(skipped.pop() + n), threads=2)
            break
        except Stop:
            rounds += 1
            command = f"qwq convert -m qwq-nano -o {folder} " + ("--to hf" if kind == HF else f"--weights {kind}")
            with pytest.raises(CheckpointError, match="holds a conversion that is not finished: finish it") as caught:
                qwq_ref.load(folder)
            assert command in caught.value.problem
    assert rounds > 5
    assert skipped == sorted(skipped)
    assert (
        0 < skipped[-1] < qwq_ref.footprint.parameters(qwq_ref.formats.read_config(qwq_ref.formats.resolve("qwq-nano")))
    )
    assert contents(folder) == whole[kind]


@pytest.mark.parametrize("kind", ["q4", HF])
def test_other_arguments_and_other_sources_start_anew(tmp_path, fine, kind):
    source, folder, seen = tmp_path / "source", tmp_path / "new", []
    source.mkdir()
    for name, data in contents(qwq_ref.formats.resolve("qwq-nano")).items():
        (source / name).write_bytes(data)

    def run(dtype="bfloat16", **report):
        return export(source, folder, dtype, **report) if kind == HF else convert(source, folder, kind, **report)

    def interrupted(**change):
        with pytest.raises(Stop):
            run(progress=after(60), **change)
        (path,) = folder.glob(".unfinished-*")
        return read_journal(path / "journal")[0]

    first = interrupted()
    if kind == HF:
        assert interrupted(dtype="float32")[0]["key"] != first[0]["key"]
        interrupted()
    os.utime(source / "model.safetensors", ns=(1, 1))
    run(resumed=seen.append)
    assert not seen
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("damage", ["data", "header", "size", "journal", "missing", "torn", "empty", "key"])
def test_damage_is_seen(tmp_path, fine, whole, damage):
    folder = tmp_path / "new"
    with pytest.raises(Stop):
        convert("qwq-nano", folder, "q4", progress=after(60))
    place = folder / ".unfinished-q4"
    file, journal = place / "packed-q4.safetensors", place / "journal"
    entries, _ = read_journal(journal)
    assert len(entries) > 5
    if damage in ("data", "header"):
        first = entries[1]["tensor"]
        header = json.loads(
            file.read_bytes()[8:].split(b"\n")[0].decode("latin1").split("\0")[0].rpartition("}")[0] + "}"
        )
        begin = 8 + int.from_bytes(file.read_bytes()[:8], "little") + header[first]["data_offsets"][0]
        with open(file, "r+b") as opened:
            opened.seek(begin + 7 if damage == "data" else 20)
            byte = opened.read(1)
            opened.seek(-1, 1)
            opened.write(bytes([byte[0] ^ 1]))
    elif damage == "size":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "missing":
        file.unlink()
    elif damage == "empty":
        journal.write_bytes(b"")
    elif damage == "torn":
        journal.write_bytes(journal.read_bytes()[:-5])
    elif damage == "key":
        text = json.dumps(entries[0] | {"key": "other"}).encode()
        rest = journal.read_bytes().split(b"\n", 1)[1]
        journal.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text) + rest)
    else:
        data = bytearray(journal.read_bytes())
        data[data.index(b"\n") + 30] ^= 1
        journal.write_bytes(data)
    seen = []
    convert("qwq-nano", folder, "q4", resumed=seen.append)
    assert contents(folder) == whole["q4"]
    assert bool(seen) == (damage in ("data", "torn"))


def state(folder, kind, logits):
    """Whether a killed conversion is to be resumed, or complete. It is never a model with other weights."""
    model = None
    with contextlib.suppress(QwqError):
        model = qwq_ref.load(folder, weights="bf16" if kind == HF else kind)
    if model is None:
        return "resumable"
    assert np.array_equal(model.logits(IDS), logits[kind])
    return "complete"


def finished(folder, kind):
    """Convert, where no earlier run has finished: a folder with a whole checkpoint is refused."""
    if kind == HF and (folder / "model.safetensors").exists() and not list(folder.glob(".*/journal")):
        with pytest.raises(UsageError, match="holds a model already"):
            converted(folder, kind)
    else:
        converted(folder, kind)
    return contents(folder)


def started(folder, kind):
    """A process that begins to convert as soon as this returns."""
    command = [sys.executable, "-c", SCRIPT, str(folder), kind]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def kill(folder, kind, delay):
    """Start a conversion, and kill it some seconds after it began. Return whether it was killed."""
    with started(folder, kind) as process:
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    return process.returncode == -signal.SIGKILL


LONG = [pytest.param(kind, 50, marks=pytest.mark.long) for kind in ("q4", HF)]


@pytest.mark.parametrize(("kind", "points"), [("q4", 2), (HF, 2), *LONG])
def test_killed_at_random_points(tmp_path, whole, logits, kind, points):
    """Old, resumable or complete after each SIGKILL, and the same bytes at the end."""
    rng, seen, killed = random.Random(points), set(), 0
    with started(tmp_path / "timed", kind) as process:
        begin = time.perf_counter()
        process.wait()
        longest = time.perf_counter() - begin
    trial = 0
    while killed < points:
        folder, old, trial = tmp_path / str(trial), kind != HF and trial % 3 == 1, trial + 1
        if old:
            converted(folder, kind)
        for _ in range(rng.randint(1, 3)):
            delay = rng.uniform(0, longest)
            if not kill(folder, kind, delay):  # it has ended before: the machine is faster than it was
                longest = delay
                break
            killed += 1
            found = state(folder, kind, logits)
            assert not old or found == "complete"  # the old file stays until the new one takes its place
            seen.add(found)
        assert finished(folder, kind) == whole[kind]
    assert points < 10 or "resumable" in seen


@pytest.mark.parametrize("kind", ["q4", HF])
def test_killed_while_files_appear(tmp_path, whole, logits, monkeypatch, kind):
    """Stopped before each call that changes a name, after the weights are complete."""
    count, stopped = 0, True
    while stopped:
        folder, calls = tmp_path / str(count), iter(range(count))

        def stopping(call, calls=calls):
            def run(*arguments):
                if next(calls, None) is None:
                    raise Stop
                return call(*arguments)

            return run

        with monkeypatch.context() as patch:
            patch.setattr(conversion, "_write", stopping(conversion._write))
            patch.setattr(conversion, "add_to_manifest", stopping(conversion.add_to_manifest))
            patch.setattr(hidden.Unfinished, "appear", stopping(hidden.Unfinished.appear))
            patch.setattr(Path, "rmdir", stopping(Path.rmdir))
            patch.setattr("qwq_ref.formats.write.check_folder", lambda folder: None)
            try:
                converted(folder, kind)
                stopped = False
            except Stop:
                state(folder, kind, logits)
        assert (finished(folder, kind) if stopped else contents(folder)) == whole[kind]
        count += 1
    assert count > 7


def test_two_writers(tmp_path, whole):
    folder = tmp_path / "new"
    seen = []

    def other(_):
        if not seen:
            command = [sys.executable, "-m", "qwq_ref", "convert", "-o", str(folder), "--weights", "q8"]
            seen.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True))

    convert("qwq-nano", folder, "q4", progress=other)
    (done,) = seen
    assert done.returncode == 1
    assert done.stderr == f"qwq: {folder}: is being written by another conversion: wait for its end\n"
    assert contents(folder) == whole["q4"]


def limited(folder, kind, size):
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n"
    script += "import sys; from qwq_ref.cli import main; sys.exit(main(sys.argv[1:]))"
    options = ["--to", "hf"] if kind == HF else ["--weights", kind]
    command = [sys.executable, "-c", script, "convert", "-o", str(folder), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("kind", ["q4", HF])
@pytest.mark.parametrize("size", [100, 20_000, 1 << 20])
def test_a_file_that_grows_too_large(tmp_path, kind, size):
    done = limited(tmp_path / "new", kind, size)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"qwq: {tmp_path / 'new'}: cannot be written (File too large)\n"
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path):
    """A file system of one MB; needs the right to mount it."""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path} && cd {ROOT}"
    script = "from qwq_ref.host import disk; disk.free_bytes = lambda folder: None\n"
    script += "import sys; from qwq_ref.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [
        "unshare",
        "-m",
        "sh",
        "-c",
        f'{mount} && "$0" -c "$1" convert -o {tmp_path}/new; echo $?; ls -A {tmp_path}',
    ]
    try:
        done = subprocess.run([*command, sys.executable, script], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no unshare")
    if "permission" in done.stderr.lower() or "not permitted" in done.stderr:
        pytest.skip("mounting is not permitted")
    assert done.stdout == "1\n"
    assert done.stderr == f"qwq: {tmp_path}/new: cannot be written (No space left on device)\n"


def test_room_that_an_unfinished_conversion_has(tmp_path, fine, monkeypatch, whole):
    """What is there already needs no more room."""
    folder = tmp_path / "new"
    with pytest.raises(Stop):
        convert("qwq-nano", folder, "q4", progress=after(30))
    monkeypatch.setattr("qwq_ref.host.disk.free_bytes", lambda folder: 10_000)
    with pytest.raises(FileError, match="on its disk, which has"):
        convert("qwq-nano", tmp_path / "other", "q4")
    convert("qwq-nano", folder, "q4")
    assert contents(folder) == whole["q4"]


def manifest_of(name, size=1):
    files = {name: {"bytes": size, "sha256": ""}}
    return json.dumps({"format": "qwq-manifest", "version": 1, "conversions": {"q4": {"files": files}}})


def test_the_manifest(tmp_path, capsys):
    folder = tmp_path / "new"
    for weights in ("q8", "q4"):
        assert main(["convert", "-o", str(folder), "--weights", weights]) == 0
    values = json.loads((folder / "qwq-manifest.json").read_text())
    assert list(values["conversions"]) == ["q4", "q8"]
    entry = values["conversions"]["q4"]
    assert entry["parameters"] == {"weights": "q4"}
    assert entry["tool"] == f"qwq_ref {qwq_ref.__version__}"
    (size,) = (each["bytes"] for each in entry["source"]["files"].values())
    assert size == (qwq_ref.formats.resolve("qwq-nano") / "model.safetensors").stat().st_size
    capsys.readouterr()
    assert main(["convert", "--check", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(line.endswith(": is complete") for line in lines)
    data = bytearray((folder / "packed-q8.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "packed-q8.safetensors").write_bytes(data)
    (folder / "packed-q4.safetensors").write_bytes(b"short")
    (folder / "config.json").unlink()
    assert main(["convert", "--check", str(folder)]) == 1
    out = capsys.readouterr().out
    assert f"{folder}/packed-q8.safetensors: has other contents than the manifest says\n" in out
    assert f"{folder}/packed-q4.safetensors: has 5 bytes; the manifest says 1,257,536\n" in out
    assert f"{folder}/config.json: is missing\n" in out
    for text, words in (
        ("{}", "version: must be 1"),
        ('{"format": "qwq-manifest", "version": 1}', "conversions: must be an object"),
        ('{"format": "qwq-manifest", "version": 1, "conversions": {"q4": {"files": {"../x": {}}}}}', "q4.files: must"),
        (manifest_of("../x"), "q4.files: must"),
        (manifest_of(""), "q4.files: must"),
        (manifest_of("a\nb"), "q4.files: must"),
        (manifest_of("a\0b"), "q4.files: must"),
        (manifest_of("x", -1), "q4.files: must"),
        ('{"format": "qwq-manifest", "version": 1, "conversions": {}}', "conversions: has none"),
    ):
        (folder / "qwq-manifest.json").write_text(text)
        assert main(["convert", "--check", str(folder)]) == 1
        assert words in capsys.readouterr().err
    (folder / "qwq-manifest.json").unlink()
    assert main(["convert", "--check", str(folder)]) == 1
    assert "qwq-manifest.json: is not here: only `qwq convert` writes it" in capsys.readouterr().err
    assert main(["convert", "--check", str(folder), "--dtype", "float32"]) == 2


def test_packed_weights_without_a_manifest(tmp_path, logits):
    convert("qwq-nano", tmp_path / "new", "q4")
    (tmp_path / "new" / "qwq-manifest.json").unlink()
    assert np.array_equal(qwq_ref.load(tmp_path / "new").logits(IDS), logits["q4"])


def test_a_wide_matrix_is_never_held(tmp_path):
    """Neither the embedding nor the head of a model with many tokens."""
    peaks = []
    for name, tokens in (("narrow", 1_000), ("wide", 300_000)):
        config = json.loads((qwq_ref.formats.resolve("qwq-nano") / "config.json").read_text()) | {"vocab_size": tokens}
        source = tmp_path / name
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config))
        made = qwq_ref.config.Config.from_dict(config)
        rng = np.random.default_rng(0)
        tensors = {key: rng.standard_normal(shape, np.float32) / 30 for key, shape in made.tensors().items()}
        qwq_ref.formats.write.write_safetensors(source / "model.safetensors", tensors, "BF16")
        del tensors
        script = "import sys; from qwq_ref.engine.convert import convert\n"
        script += "convert(sys.argv[1], sys.argv[2], 'q4', threads=2)\n"
        script += "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        command = [sys.executable, "-c", script, str(source), str(tmp_path / f"{name}-packed")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] - peaks[0] < 40 << 20  # the wide head has 61 MB in q8, and the embedding 115 MB


def test_a_file_that_cannot_be_opened_differs_too(tmp_path, capsys):
    folder = tmp_path / "new"
    convert("qwq-nano", folder, "q4")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to("nowhere")
    assert main(["convert", "--check", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert f"{folder}/config.json: is not a regular file\n" in out
    assert f"{folder}/tokenizer.json: cannot be opened (No such file or directory)\n" in out
    assert f"{folder}/packed-q4.safetensors: is complete\n" in out


def test_a_check_names_what_is_not_finished(tmp_path, capsys, fine):
    assert main(["convert", "--check", str(tmp_path / "old")]) == 1
    assert capsys.readouterr().err == f"qwq: {tmp_path}/old: is not a folder\n"
    with pytest.raises(Stop):
        converted(tmp_path / "new", "q4", progress=after(5))
    assert main(["convert", "--check", str(tmp_path / "new")]) == 1
    assert "holds a conversion that is not finished: finish it with `qwq convert" in capsys.readouterr().err
