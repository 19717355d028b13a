"""The same bytes are the same prompt, from a file, from a pipe and from standard input."""

import argparse
import codecs
import json
import os
import subprocess
import sys
import threading

import pytest

from qwq_ref.cli import main
from qwq_ref.cli.prompt import read_prompt
from qwq_ref.errors import FileError, UsageError

TEXTS = {
    b"what?": "what?",
    b"what?\n": "what?",
    b"what?\r\n": "what?",
    b"what?\r": "what?",
    b"what?\n\n": "what?\n",
    b"a\r\nb\rc\nd": "a\nb\nc\nd",
    b"a\r\r\nb\n\r": "a\n\nb\n",
    b"\n a \n": "\n a ",
    codecs.BOM_UTF8 + b"what?\n": "what?",
    codecs.BOM_UTF8 * 2 + b"x": "\ufeffx",  # the second is a character of the text
    "文é\u2028\x85\x0c\x1c?".encode(): "文é\u2028\x85\x0c\x1c?",  # Python alone would call some of these line ends
    b"x" * 200_000: "x" * 200_000,  # longer than what a pipe holds
}
FAULTS = {
    b"": "prompt: is empty",
    b"\n": "prompt: is empty",
    codecs.BOM_UTF8: "prompt: is empty",
    b"\xff": "NAME: is not UTF-8 (byte 0)",
    b"caf\xe9": "NAME: is not UTF-8 (byte 3)",
    b"\xed\xa0\x80": "NAME: is not UTF-8 (byte 0)",  # a surrogate
    "what?".encode("utf-16"): "NAME: is UTF-16: save it as UTF-8",
    "what?".encode("utf-16-be"): "NAME: is not text: byte 0 is 0; UTF-16 has such bytes",
    codecs.BOM_UTF16_BE + "what?".encode("utf-16-be"): "NAME: is UTF-16: save it as UTF-8",
    "what?".encode("utf-32"): "NAME: is UTF-32: save it as UTF-8",
    codecs.BOM_UTF32_BE + "what?".encode("utf-32-be"): "NAME: is UTF-32: save it as UTF-8",
    "what?".encode("utf-16-le"): "NAME: is not text: byte 1 is 0; UTF-16 has such bytes",
    b"what is this, and a\0": "NAME: is not text: byte 19 is 0",
}


def from_file(data, path, monkeypatch):
    path.write_bytes(data)
    return read_prompt(argparse.Namespace(prompt=None, positional=None, file=str(path))), str(path)


def from_fifo(data, path, monkeypatch):
    """As `<(command)` of a shell."""
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: path.write_bytes(data))
    writer.start()
    try:
        return read_prompt(argparse.Namespace(prompt=None, positional=None, file=str(path))), str(path)
    finally:
        writer.join()


def from_stdin(data, path, monkeypatch, **given):
    path.write_bytes(data)
    with open(path) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        options = {"prompt": None, "positional": None, "file": None} | given
        return read_prompt(argparse.Namespace(**options)), "standard input"


def from_hyphen(data, path, monkeypatch):
    return from_stdin(data, path, monkeypatch, positional="-")


def from_file_hyphen(data, path, monkeypatch):
    return from_stdin(data, path, monkeypatch, file="-")


WAYS = [from_file, from_fifo, from_stdin, from_hyphen, from_file_hyphen]


@pytest.mark.parametrize("way", WAYS)
def test_one_reading(tmp_path, monkeypatch, way):
    for number, (data, text) in enumerate(TEXTS.items()):
        assert way(data, tmp_path / str(number), monkeypatch)[0] == text


@pytest.mark.parametrize("way", WAYS)
def test_bytes_that_are_no_prompt(tmp_path, monkeypatch, way):
    for number, (data, problem) in enumerate(FAULTS.items()):
        path = tmp_path / str(number)
        with pytest.raises((FileError, UsageError)) as caught:
            way(data, path, monkeypatch)
        name = str(path) if way in (from_file, from_fifo) else "standard input"
        assert str(caught.value) == problem.replace("NAME", name)


def options(prompt=None, positional=None, file=None):
    return argparse.Namespace(prompt=prompt, positional=positional, file=file)


def test_where_the_parts_come_from(tmp_path, monkeypatch):
    file = tmp_path / "text"
    file.write_text("file\n")
    with open(file) as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert read_prompt(options(positional="first", file=str(file))) == "first\n\nfile"
        assert read_prompt(options(prompt="-")) == "-"  # as a text
        assert read_prompt(options(prompt="first\r\n")) == "first\r\n"  # an argument is exact
        assert read_prompt(options(positional="first", file="-")) == "first\n\nfile"
        stdin.seek(0)
        assert read_prompt(options(positional="-", file=str(file))) == "file\n\nfile"
        for wrong, words in (
            (options("a", "b"), "given twice"),
            (options(None, "-", "-"), "file: - is standard input"),
        ):
            with pytest.raises(UsageError, match=words):
                read_prompt(wrong)


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for name, reason in {
        str(tmp_path): "Is a directory",
        str(tmp_path / "none"): "No such file or directory",
        str(tmp_path / ("x" * 300)): "File name too long",
        "a\0b": "embedded null byte",
    }.items():
        with pytest.raises(FileError, match=rf": cannot be read \({reason}\)"):
            read_prompt(options(file=name))
    with pytest.raises(FileError, match="/dev/zero: is longer than 67,108,864 bytes"):
        read_prompt(options(file="/dev/zero"))
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="prompt: is missing"):
        read_prompt(options())
    with pytest.raises(FileError, match="standard input: is closed"):
        read_prompt(options(positional="-"))


def test_a_pipe_that_does_not_block(scripted):
    """A plain read ends where nothing has come yet."""
    folder = scripted("two", "4!")
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    command = [sys.executable, "-m", "qwq_ref", "generate", "-m", folder, "--json"]
    with subprocess.Popen(command, stdin=reader, stdout=subprocess.PIPE) as process:
        os.close(reader)
        late = threading.Timer(1, lambda: [os.write(writer, b"hat?\n"), os.close(writer)])
        os.write(writer, b"w")
        late.start()
        out = process.communicate(timeout=120)[0]
    done = subprocess.run([*command, "what?"], capture_output=True, timeout=120)
    assert json.loads(out)["prompt_tokens"] == json.loads(done.stdout)["prompt_tokens"]


def test_golden_reads_the_same_prompt(tmp_path, capsys, monkeypatch):
    counts = []
    for number, data in enumerate((b"a\r\nb\r\n", b"a\nb")):
        file = tmp_path / f"{number}.txt"
        file.write_bytes(data)
        arguments = ["golden", "record", "--taps", "*.q_rope", "-o", str(tmp_path / f"{number}"), "-f", str(file)]
        assert main(arguments) == 0
        counts.append(capsys.readouterr().err.partition(": ")[2].partition(" tokens")[0])
    assert counts[0] == counts[1]
