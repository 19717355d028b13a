"""`--prompt-cache`: what a call computed is there for the next one."""

import json

import pytest

from qwq_ref.cli import main

QUESTION = ["generate", "What is 12+34?", "--seed", "1", "--json", "--prompt-cache"]


def told(capsys):
    return json.loads(capsys.readouterr().out)


def test_a_second_call_computes_new_tokens_alone(tmp_path, capsys):
    path = tmp_path / "a.qwqcache"
    assert main([*QUESTION, str(path)]) == 0
    first = told(capsys)
    assert first["cached_tokens"] == 0
    assert main([*QUESTION, str(path)]) == 0
    again = told(capsys)
    assert again["cached_tokens"] == first["prompt_tokens"] - 1
    assert again["answer"] == first["answer"]
    assert main([*QUESTION[:1], "What is 12+35?", *QUESTION[2:], str(path), "--prompt-cache-ro"]) == 0
    assert 0 < told(capsys)["cached_tokens"] < again["cached_tokens"]
    before = path.read_bytes()
    assert main([*QUESTION, str(path), "--prompt-cache-ro"]) == 0
    assert path.read_bytes() == before


def test_the_last_line_tells_what_was_cached(tmp_path, capsys):
    question = ["generate", "What is 12+34?", "--seed", "1", "--prompt-cache", str(tmp_path / "a.qwqcache"), "-v"]
    for words in ("prompt: ", "; cached: "):
        assert main(question) == 0
        err = capsys.readouterr().err
        assert any(words in f"; {line}" for line in err.splitlines()[-3:])
        assert f"tokens in {tmp_path / 'a.qwqcache'}" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "is missing|No such file"), (b"hello", "is not a safetensors file|header"), (b"", "header: is missing")],
)
def test_a_file_that_is_no_session_is_kept(tmp_path, capsys, content, words):
    path, more = tmp_path / "a.qwqcache", ["--prompt-cache-ro"] if content is None else []
    if content is not None:
        path.write_bytes(content)
    assert main([*QUESTION, str(path), *more]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"qwq: {path}")
    assert len(err.splitlines()) == 1
    assert content is None or path.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["hi", "--prompt-cache-ro"], "--prompt-cache-ro: needs --prompt-cache"),
        (
            ["hi", "--prompt-cache", "x", "--max-memory", "1GB"],
            "--prompt-cache: does not go together with --max-memory",
        ),
        (["--prompts", "x", "--prompt-cache", "x"], "--prompt-cache: has no effect with --prompts"),
    ],
)
def test_wrong_uses(arguments, words, capsys):
    assert main(["generate", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_found_before_loading(capsys):
    assert main([*QUESTION, "/no/such/folder/a.qwqcache"]) == 1
    assert "/no/such/folder/a.qwqcache: cannot be written" in capsys.readouterr().err
