"""`qwq tokenize`: ids, pieces and texts, from each source, without weights and without a network."""

import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import qwq_ref
from qwq_ref.cli import main
from qwq_ref.cli.tokenize import quoted
from qwq_ref.text import load_tokenizer
from tests.support.gguf_text import metadata, write
from tests.support.paths import PACKAGE
from tests.support.small_tokenizer import VALUES

NANO = PACKAGE / "models" / "qwq-nano"
TEXT = "Grüße,\tnano! <|im_end|> 😀\x1b[31m"


@pytest.fixture(scope="module")
def nano():
    return load_tokenizer(NANO)


def run(capsys, *words):
    status = main(["tokenize", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def lines(out):
    """[(id, bytes of the piece)] of the printed table."""
    found = [re.fullmatch(r" *(\d+)  '(.*)'", line) for line in out.splitlines()]
    return [(int(match[1]), unquoted(match[2])) for match in found]


def unquoted(text):
    """The bytes of a piece, from the docstring of `quoted`."""
    names = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'"}

    def byte(match):
        kind, code = match[1][0], match[1][1:]
        if kind == "x":
            return chr(int(code, 16)) if int(code, 16) < 0x80 else chr(0xDC00 + int(code, 16))
        return chr(int(code, 16)) if code else names[kind]

    pattern = r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}|.)"
    return re.sub(pattern, byte, text).encode("utf-8", "surrogateescape")


def test_each_id_stands_beside_its_piece(nano, capsys):
    status, out, err = run(capsys, TEXT)
    assert (status, err) == (0, "")
    found = lines(out)
    assert [identity for identity, _ in found] == nano.encode(TEXT)
    assert b"".join(piece for _, piece in found).decode() == TEXT
    assert out.isprintable() or set(out) - {"\n"} == {c for c in out if c.isprintable()}
    assert len({line.index("'") for line in out.splitlines()}) == 1


@given(st.binary(max_size=12) | st.text(max_size=8).map(str.encode))
def test_a_piece_is_one_printable_line_that_can_be_read_back(data):
    text = quoted(data)
    assert text.isprintable()
    assert (text[0], text[-1]) == ("'", "'")
    assert unquoted(text[1:-1]) == data


def test_the_words_of_llama_tokenize(nano, capsys):
    ids = nano.encode(TEXT)
    assert run(capsys, "--ids", "-p", TEXT)[1] == f"{ids}\n"
    assert run(capsys, "--ids", "--show-count", "--no-bos", "--no-escape", "--no-parse-special", TEXT)[1] == (
        f"{ids}\n{len(ids)} tokens\n"
    )
    assert run(capsys, "--show-count", "a")[1] == f"{nano.encode('a')[0]:>3}  'a'\n1 token\n"
    assert run(capsys, "--ids", "")[1] == "[]\n"
    special = run(capsys, "--ids", "--parse-special", TEXT)[1]
    assert json.loads(special) == nano.encode(TEXT, special=True) != ids


def test_json(nano, capsys):
    report = json.loads(run(capsys, "--json", TEXT)[1])
    assert report["ids"] == nano.encode(TEXT)
    assert report["count"] == len(report["ids"]) == len(report["pieces"])
    assert report["model"] == "qwq-nano"
    assert report["pieces"][0] == "G"


def test_the_same_text_from_each_source(nano, tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(TEXT + "\n")
    wanted = f"{nano.encode(TEXT)}\n"
    for words in (["-f", file], ["-f", "-"], ["--stdin"], ["-"], []):
        with file.open() as stream:
            done = subprocess.run(
                [sys.executable, "-m", "qwq_ref", "tokenize", "--ids", *map(str, words)],
                stdin=stream,
                capture_output=True,
                text=True,
                timeout=60,
            )
        assert (done.stdout, done.stderr, done.returncode) == (wanted, "", 0)


def test_a_long_file_gives_the_ids_of_the_whole_text(nano, tmp_path, capsys):
    text = "".join(f"line {n}: «ä» {'x' * (n % 7)}\n" for n in range(9000))
    file = tmp_path / "long.txt"
    file.write_text(text)
    assert json.loads(run(capsys, "--ids", "-f", file)[1]) == nano.encode(text[:-1])


def test_decoding(nano, capsys):
    ids = nano.encode(TEXT)
    for given_as in (str(ids), " ".join(map(str, ids)), ",".join(map(str, ids)), f"{ids}\n"):
        assert run(capsys, "--decode", given_as)[1] == TEXT + "\n"
    report = json.loads(run(capsys, "--decode", "--json", str(ids))[1])
    assert report == {"model": "qwq-nano", "ids": ids, "text": TEXT, "count": len(ids)}
    assert run(capsys, "--decode", "[]", "--show-count")[1] == "\n0 tokens\n"
    assert run(capsys, "--decode", str(nano.added["<|im_end|>"]))[1] == "<|im_end|>\n"


def test_the_chat_template(capsys):
    model = qwq_ref.load("qwq-nano")
    assert json.loads(run(capsys, "--chat", "--ids", TEXT)[1]) == model.prompt_ids(TEXT)


def test_bos(tmp_path, capsys):
    fields = metadata(VALUES, ggml__bos_token_id=400, ggml__add_bos_token=True)
    file = write(tmp_path / "m.gguf", fields)
    small = load_tokenizer(file)
    assert small.bos == 400
    ids = small.encode("hi")
    assert json.loads(run(capsys, "-m", file, "--ids", "hi")[1]) == [400, *ids]
    assert json.loads(run(capsys, "-m", file, "--ids", "--no-bos", "hi")[1]) == ids


def test_a_folder_needs_a_tokenizer_and_nothing_else(nano, tmp_path, capsys, monkeypatch):
    shutil.copy(NANO / "tokenizer.json", tmp_path)
    monkeypatch.setattr(socket.socket, "connect", None)
    assert json.loads(run(capsys, "-m", tmp_path, "--ids", TEXT)[1]) == nano.encode(TEXT)
    status, out, err = run(capsys, "-m", tmp_path, "--chat", TEXT)
    assert (status, out) == (1, "")
    assert "has no chat template" in err


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["-m", "/nowhere", "x"], 1, "qwq: /nowhere"),
        (["-m", "no/such-model", "x"], 1, "qwq: no/such-model"),
        (["-m", "qwq-32b", "x"], 1, "tokenizer.json: is missing"),
        (["--decode", "1 2 x"], 2, "qwq: --decode: needs token ids, such as 1, 2, 3 or [1, 2, 3]"),
        (["--decode", "[1, 2"], 2, "qwq: --decode: needs token ids"),
        (["--decode", "-1"], 2, "qwq: --decode: needs token ids"),
        (["--decode", "512"], 1, "id 512 is not one of the 512 ids that text has"),
        (["--decode", "9" * 5000], 2, "qwq: --decode: id 99999999999999999999 is not one of 512"),
        (["--decode", "--chat", "1"], 2, "qwq: --chat: has no effect with --decode"),
        (["--chat", "--parse-special", "1"], 2, "qwq: --parse-special: has no effect with --chat"),
        (["--stdin", "x"], 2, "qwq: --stdin: does not go together with another text"),
        (["-f", "/nowhere"], 1, "qwq: /nowhere: cannot be read"),
        (["x", "y"], 2, "qwq: y: is one word too many"),
    ],
)
def test_errors_are_one_line(capsys, words, status, says):
    found, out, err = run(capsys, *words)
    assert (found, out) == (status, "")
    assert says in err
    assert err.count("\n") == 1


def test_colours_are_for_terminals(monkeypatch):
    def on_terminal(**more):
        reader, writer = pty.openpty()
        command = [sys.executable, "-m", "qwq_ref", "tokenize", "--parse-special", "a<|im_end|>"]
        subprocess.run(command, stdout=writer, env={**os.environ, "TERM": "xterm", **more}, check=True, timeout=60)
        os.close(writer)
        text = b""
        while chunk := _read(reader):
            text += chunk
        return text.decode().replace("\r\n", "\n")

    monkeypatch.delenv("NO_COLOR", raising=False)
    seen = on_terminal()
    assert "\x1b[2m" in seen
    assert re.search(r"\x1b\[36m'<\|im_end\|>'\x1b\[0m", seen)
    assert "\x1b" not in on_terminal(NO_COLOR="1")


def _read(reader):
    try:
        return os.read(reader, 4096)
    except OSError:
        return b""
