"""The standard streams of every command: encodings, closed and full streams, readers that go away, slow readers."""

import contextlib
import fcntl
import io
import json
import os
import re
import shlex
import subprocess
import sys
import time

import pytest

from qwq_ref.cli import main, streams
from qwq_ref.errors import FileError, UsageError

ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437", "iso2022_jp", "ascii:strict", "ascii:surrogateescape"]
# Commands that print much or little, by print, argparse or a version.
QUICK = {
    "version": ["--version"],
    "help": ["--help"],
    "command-help": ["eval", "--help"],
    "info": ["info", "--json"],
    "mistakes": ["golden", "mistakes"],
    "operations": ["bench", "--op"],
}


def qwq(*arguments, redirect="", environment=(), **kwargs):
    """Run a command; `redirect` is what a shell would have behind it, such as >&-."""
    command = f"exec {shlex.join([sys.executable, '-m', 'qwq_ref', *map(str, arguments)])} {redirect}"
    usual = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120}
    done = subprocess.run(["sh", "-c", command], env=os.environ | dict(environment), **usual | kwargs)
    return done.returncode, done.stdout or b"", done.stderr or b""


@pytest.fixture(scope="module")
def speaker(scripted):
    return scripted("因é", "—4文!")


# --- Encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_text_that_a_stream_cannot_show_is_escaped(speaker, encoding):
    status, out, err = qwq("generate", "-m", speaker, "是?", environment={"PYTHONIOENCODING": encoding})
    codec = encoding.partition(":")[0]

    def shown(text):
        return "".join(c if encodes(c, codec) else c.encode("ascii", "backslashreplace").decode() for c in text)

    assert status == 0
    assert out.decode(codec) == shown("—4文!\n")
    assert err.decode(codec).startswith(shown("因é\n"))
    assert b"Traceback" not in err


def encodes(character, codec):
    try:
        character.encode(codec)
    except UnicodeEncodeError:
        return False
    return True


def test_an_error_handler_that_the_user_chose_is_kept(speaker):
    _, out, _ = qwq("generate", "-m", speaker, "?", environment={"PYTHONIOENCODING": "ascii:replace"})
    assert out == b"?4?!\n"


@pytest.mark.parametrize("encoding", ["utf-8", "UTF8", "ascii", "latin-1", "cp437"])
def test_json_loses_nothing(speaker, encoding):
    status, out, err = qwq("generate", "-m", speaker, "?", "--json", environment={"PYTHONIOENCODING": encoding})
    report = json.loads(out)  # in UTF-8, of which ASCII is a part
    assert (status, err) == (0, b"")
    assert (report["thinking"], report["answer"]) == ("因é", "—4文!")
    assert out.isascii() == (encoding not in ("utf-8", "UTF8"))


@pytest.mark.parametrize("variables", [{"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, {}, {"PYTHONUTF8": "1"}])
def test_the_c_locale(speaker, variables):
    """Python decodes UTF-8 arguments to surrogates there. The prompt is the same as elsewhere."""
    arguments = ["generate", "-m", speaker, "是é?", "--system", "文", "--json"]
    counts = [
        json.loads(qwq(*arguments, environment=environment)[1])["prompt_tokens"]
        for environment in (variables | {"LC_ALL": "C", "PYTHONIOENCODING": ""}, {"PYTHONUTF8": "1"})
    ]
    assert counts[0] == counts[1]


def test_arguments_that_are_no_text():
    assert streams.argument_text("plain 文", "prompt") == "plain 文"
    assert streams.argument_text(os.fsdecode("文".encode()), "prompt") == "文"
    with pytest.raises(UsageError, match="prompt: is not UTF-8"):
        streams.argument_text("a\udcff", "prompt")


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_files_that_are_not_utf8(tmp_path, encoding):
    """stdout carries the bytes of the name, so that a script can use it; JSON has its escape."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    variables = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "qwq_ref", "convert", folder + b"/packed", "--weights", "q8"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, folder + b"/packed/packed-q8.safetensors\n")
    command = [sys.executable, "-m", "qwq_ref", "generate", "-m", folder + b"/packed", "1+1?", "--json"]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, timeout=120)
    assert done.returncode == 0
    assert json.loads(done.stdout.decode())["model"] == os.fsdecode(folder + b"/packed")


def test_json_in_a_program_that_replaced_stdout():
    for value in ({"a": "文"}, {"a": "\udce9"}):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            streams.print_json(value)
        assert json.loads(out.getvalue()) == value


# --- Closed and full streams -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize(("redirect", "reason"), [(">&-", "is closed"), (">/dev/full", "No space left on device")])
def test_stdout_that_takes_nothing(name, redirect, reason):
    status, _, err = qwq(*QUICK[name], redirect=redirect)
    assert status == 1
    assert re.fullmatch(rf"qwq: standard output: (is closed|cannot be written \({reason}\))\n", err.decode()), err
    assert reason in err.decode()


@pytest.mark.parametrize("command", ["generate", "eval", "doctor", "bench"])
def test_a_closed_stdout_is_found_before_the_work(command):
    model = ["-m", "/nowhere/at/all"]  # not looked at yet
    more = ["?"] if command == "generate" else []
    status, _, err = qwq(command, *more, *model, redirect=">&-")
    assert (status, err) == (1, b"qwq: standard output: is closed\n")


@pytest.mark.parametrize("redirect", [">&-", ">/dev/full"])
def test_the_answer_of_a_stdout_that_takes_nothing(speaker, redirect):
    status, _, err = qwq("generate", "-m", speaker, "?", redirect=redirect)
    assert status == 1
    assert err.decode().splitlines()[-1].startswith("qwq: standard output: ")
    assert b"Traceback" not in err


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_other_streams_do_not_lose_the_answer(speaker, redirect):
    status, out, _ = qwq("generate", "-m", speaker, "?", redirect=redirect)
    assert (status, out.decode()) == (0, "—4文!\n")


def test_everything_closed(speaker, tmp_path):
    """No file may take the number of a closed stream: a message would be written into it."""
    assert qwq("golden", "list", redirect="<&- >&- 2>&-")[0] == 1
    assert qwq("convert", tmp_path / "new", redirect="<&- 2>&-")[0] == 0
    assert qwq("convert", tmp_path / "newer", redirect="<&- >&- 2>&-")[0] == 1
    files = [(tmp_path / name / "packed-q4.safetensors").read_bytes() for name in ("new", "newer")]
    assert files[0] == files[1]
    assert qwq("generate", redirect="<&-")[:2] == (2, b"")


def test_an_error_where_stderr_takes_nothing():
    assert qwq("info", "/nowhere/at/all", redirect="2>/dev/full") == (1, b"", b"")
    assert qwq("info", "/nowhere/at/all", redirect="2>&-") == (1, b"", b"")
    assert qwq("nothing", redirect="2>&-") == (2, b"", b"")


# --- Readers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_a_reader_that_goes_away(name):
    reader, writer = os.pipe()
    os.close(reader)
    status, _, err = qwq(*QUICK[name], stdout=writer)
    os.close(writer)
    assert (status, err) == (141, b"")


def test_a_reader_of_stderr_that_goes_away(speaker):
    reader, writer = os.pipe()
    os.close(reader)
    status, out, _ = qwq("generate", "-m", speaker, "?", stderr=writer)
    assert (status, out.decode()) == (0, "—4文!\n")
    # The reader of both has gone, as in `2>&1 | head`.
    assert qwq("generate", "-m", speaker, "?", stdout=writer, stderr=writer)[0] == 141
    os.close(writer)


@pytest.mark.parametrize("name", ["mistakes", "info"])
def test_a_slow_reader_of_a_stream_that_does_not_block(name):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    fcntl.fcntl(writer, getattr(fcntl, "F_SETPIPE_SZ", 1031), 4096)
    whole = qwq(*QUICK[name])[1]
    assert name != "mistakes" or len(whole) > 4096
    with subprocess.Popen([sys.executable, "-m", "qwq_ref", *QUICK[name]], stdout=writer) as process:
        os.close(writer)
        time.sleep(1)
        with open(reader, "rb") as stream:
            assert stream.read() == whole
    assert process.returncode == 0


def test_unbuffered_streams(speaker):
    status, out, err = qwq("generate", "-m", speaker, "?", environment={"PYTHONUNBUFFERED": "1"})
    assert (status, out.decode()) == (0, "—4文!\n")
    assert err.decode().startswith("因é\n")


def test_a_program_that_calls_main_keeps_its_streams(monkeypatch, capsys):
    before = sys.stdout, sys.stderr
    assert main(["golden", "list"]) == 0
    assert (sys.stdout, sys.stderr) == before
    assert "gqa" in capsys.readouterr().out
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["golden", "list"]) == 0
    assert "gqa" in out.getvalue()


def test_bytes_of_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(FileError, match="standard input: is closed"):
        streams.read_input()
    monkeypatch.setattr("sys.stdin", io.StringIO("文\r\n"))
    assert streams.read_input() == "文\r\n".encode()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\r\n\xff")))
    assert streams.read_input() == b"a\r\n\xff"
