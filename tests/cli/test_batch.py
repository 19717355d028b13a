"""`qwq batch`: each line is answered as the server answers it, in order, and nothing is lost or computed twice."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi")

from qwq_ref.cli import main
from qwq_ref.cli.batch_files import Output, count_requests, read_requests
from qwq_ref.errors import FileError

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


def request(name, question="What is 12+34?", **body):
    messages = [{"role": "user", "content": question}]
    content = {"model": "qwq-nano", "messages": messages, "temperature": 0, **body}
    return {"custom_id": name, "method": "POST", "url": CHAT, "body": content}


def write(path, requests):
    path.write_text("".join(f"{json.dumps(each) if isinstance(each, dict) else each}\n" for each in requests))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def answers(lines):
    return [line["response"]["body"]["choices"][0]["message"]["content"] for line in lines]


def process(*arguments, **how):
    command = [sys.executable, "-m", "qwq_ref", "batch", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, **how)


def test_answers_are_in_the_order_of_the_requests(tmp_path, capsys):
    questions = ["What is 12+34?", "What is 12+35?", "hello", "Sort 42,17,88,23.", "What is 1+2?"]
    file = write(tmp_path / "in", [request(f"r{i}", text, max_tokens=90) for i, text in enumerate(questions)])
    assert main(["batch", str(file), "-np", "3"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["custom_id"] for line in lines] == ["r0", "r1", "r2", "r3", "r4"]
    assert [set(line) for line in lines] == [{"id", "custom_id", "response", "error"}] * 5
    assert len({line["id"] for line in lines}) == 5
    assert {line["response"]["status_code"] for line in lines} == {200}
    assert "5 answered" in err
    for question, answer in zip(questions, answers(lines), strict=True):
        assert main(["generate", question, "--temp", "0", "-n", "90"]) == 0
        assert capsys.readouterr().out.strip() == answer.strip()


def test_a_line_that_is_wrong_ends_no_run(tmp_path, capsys):
    lines = [
        request("good"),
        "nonsense",
        "[1]",
        {**request("x"), "custom_id": 3},
        {**request("get"), "method": "GET"},
        {**request("url"), "url": "/v1/embeddings"},
        {**request("body"), "body": []},
        request("good"),
        request("stream", stream=True),
        request("model", model="gpt"),
        request("field", frobnicate=1),
        request("value", temperature="hot"),
        request("long", "x " * 3000),
        '{"custom_id": "deep", "url": "/v1/completions", "body": ' + '{"a":' * 90 + "1" + "}" * 90 + "}",
        "",
        {**request("text"), "url": TEXT, "body": {"model": "qwq-nano", "prompt": "1+1=", "max_tokens": 2}},
    ]
    assert main(["batch", str(write(tmp_path / "in", lines))]) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [each["custom_id"] for each in found] == [
        *("good", None, None, None, "get", "url", "body", "good", "stream", "model", "field", "value", "long", "deep"),
        "text",
    ]
    for number, each in enumerate(found[1:9], 2):
        assert each["response"] is None
        assert each["error"]["code"] == "invalid_request"
        assert each["error"]["message"].startswith(f"line {number}: ")
    refused = {each["custom_id"]: each["response"] for each in found[9:14]}
    assert {name: each["status_code"] for name, each in refused.items()} == {
        **{"model": 404, "field": 400, "value": 400, "long": 400, "deep": 400}
    }
    assert refused["long"]["body"]["error"]["code"] == "context_length_exceeded"
    assert refused["value"]["body"]["error"]["param"] == "temperature"
    assert found[-1]["response"]["body"]["object"] == "text_completion"
    assert "2 answered" in err
    assert "13 refused" in err


def test_names_of_models(tmp_path, capsys):
    file = write(tmp_path / "in", [request("a", model="gpt", max_tokens=3)])
    for words in (["--alias", "gpt"], ["--lenient"]):
        assert main(["batch", str(file), *words]) == 0
        assert json.loads(capsys.readouterr().out)["response"]["status_code"] == 200


def test_a_second_run_computes_nothing_again(tmp_path, capsys):
    file, out = write(tmp_path / "in", [request(f"r{i}") for i in range(4)]), tmp_path / "out"
    assert main(["batch", str(file), "-o", str(out)]) == 0
    first = out.read_bytes()
    capsys.readouterr()
    assert main(["batch", str(file), "-o", str(out)]) == 0
    assert out.read_bytes() == first
    assert "0 answered, 0 output tokens; 4 were there already" in capsys.readouterr().err
    # A torn line, and a longer input.
    out.write_bytes(first[: first.rindex(b"\n", 0, -1) + 40])
    write(file, [request(f"r{i}") for i in range(5)])
    assert main(["batch", str(file), "-o", str(out)]) == 0
    assert "2 answered" in capsys.readouterr().err
    assert out.read_bytes().startswith(first[: first.rindex(b"\n", 0, -1)])
    assert [line["custom_id"] for line in read(out)] == [f"r{i}" for i in range(5)]
    assert not (tmp_path / "out.early").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_end_at_any_time_loses_no_complete_line(tmp_path, number):
    """The first request is long: the answers behind it come early, and are kept as well."""
    slow = request("slow", "What is 12+34?", max_tokens=900, logit_bias={"35": 100})  # never ends by itself
    file, out = write(tmp_path / "in", [slow, *(request(f"r{i}") for i in range(6))]), tmp_path / "out"
    early = tmp_path / "out.early"
    heed = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)  # noqa: E731
    running = process(file, "-o", out, "-np", "4", preexec_fn=heed)
    deadline = time.monotonic() + 60
    while not (early.exists() and early.read_bytes().count(b"\n") >= 2) and running.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    assert b"Traceback" not in err
    assert running.returncode == (130 if number == signal.SIGINT else -number)
    if number == signal.SIGINT:
        assert b"of 7 requests have an answer" in err
    before = early.read_bytes().count(b"\n") if early.exists() else 0
    done = process(file, "-o", out)
    _, err = done.communicate(timeout=120)
    assert done.returncode == 0
    assert [line["custom_id"] for line in read(out)] == ["slow", *(f"r{i}" for i in range(6))]
    assert int(err.decode().split("output tokens; ")[1].split()[0]) >= before >= 2
    assert not early.exists()


@pytest.mark.parametrize("line", ["text", "{}", '{"custom_id": 5, "response": null, "error": null}'])
def test_a_foreign_output_is_refused_before_any_work(tmp_path, capsys, line):
    file, out = write(tmp_path / "in", [request("a")]), tmp_path / "out"
    out.write_text(f"{line}\n")
    assert main(["batch", str(file), "-o", str(out)]) == 1
    assert f"{out}: line 1: is no answer of a batch" in capsys.readouterr().err
    assert out.read_text() == f"{line}\n"


def test_an_output_of_another_input_is_refused(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["batch", str(write(tmp_path / "in", [request("a")])), "-o", str(out)]) == 0
    capsys.readouterr()
    assert main(["batch", str(write(tmp_path / "in", [request("b")])), "-o", str(out)]) == 1
    assert "line 1: has the custom_id 'a', and the input has 'b' there" in capsys.readouterr().err


def test_the_output_is_not_the_input(tmp_path, capsys):
    file = write(tmp_path / "in", [request("a")])
    assert main(["batch", str(file), "-o", str(file)]) == 2
    assert "is the input, too" in capsys.readouterr().err


def test_without_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert main(["batch", str(tmp_path / "in")]) == 2
    assert capsys.readouterr().err == "qwq: batch: needs fastapi: pip install 'qwq_ref[serve]'\n"


def test_requests_from_a_pipe_are_answered_as_they_come():
    running = process("-", "-np", "1", stdin=subprocess.PIPE)
    for name in ("a", "b"):
        running.stdin.write(json.dumps(request(name, max_tokens=4)).encode() + b"\n")
        running.stdin.flush()
    running.stdin.close()
    lines = [json.loads(line) for line in running.stdout]
    assert [line["custom_id"] for line in lines] == ["a", "b"]
    assert running.wait(timeout=60) == 0


def test_the_input_is_not_held_in_memory(tmp_path):
    """Reading ahead of the answers would hold a gigabyte of requests."""
    file = write(tmp_path / "in", [request(f"r{i}", "x" * 10_000) for i in range(50)])
    assert count_requests(str(file)) == 50
    requests = read_requests(str(file))
    assert next(requests).custom_id == "r0"
    requests.close()


def test_an_early_answer_waits_for_its_turn(tmp_path):
    line = {"id": "1", "response": None, "error": None}
    with Output(str(tmp_path / "out")) as output:
        output.write(1, {**line, "custom_id": "b"})
        assert (tmp_path / "out").read_text() == ""
        output.write(0, {**line, "custom_id": "a"})
    assert [each["custom_id"] for each in read(tmp_path / "out")] == ["a", "b"]
    with Output(str(tmp_path / "out")) as output:
        assert output.done == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError), Output(str(tmp_path / "out")):
        pass
