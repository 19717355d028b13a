"""/inside gives the numbers of `qwq plot`, within limits, while the scheduler goes on."""

import json
import threading
import time

import numpy as np
import pytest

from qwq_ref.formats import open_floats, resolve
from qwq_ref.inside import look
from qwq_ref.serve import inside
from tests.support.servers import request, status, until

PROMPT = "What is 12+34?"
ANSWER = "Reverse 12+34:\n21+43\n1+3+0=0</think>\n\nSo 46"


def ask(server, **body):
    answer = server.ask_raw(request("/inside", json.dumps(body).encode()))
    return status(answer), json.loads(answer.split(b"\r\n\r\n", 1)[1])


def test_the_numbers_are_those_of_look(server, nano):
    code, found = ask(server, prompt=PROMPT, answer=ANSWER, token=5)
    thought, said = ANSWER.split("</think>")
    tokenizer = nano.tokenizer
    prompt = nano.prompt_ids(PROMPT)
    ids = [*prompt, *tokenizer.encode(thought), tokenizer.think_end, *tokenizer.encode(said)]
    with open_floats(resolve("qwq-nano")) as weights:
        mine = look(weights.config, weights, ids, token=5, prompt=len(prompt)).to_dict(tokenizer)
    assert code == 200
    assert found == {**mine, "left_out": 0, "most_tokens": 512}
    assert np.allclose(np.sum(found["attention"]["query"], axis=-1), 1, atol=1e-2)


def test_a_long_answer_is_cut_and_a_long_prompt_refused(server):
    code, found = ask(server, prompt="a", answer="a b " * 400, subjects=["residual"])
    assert (code, len(found["tokens"])) == (200, 512)
    assert found["left_out"] > 0
    assert "lens" not in found
    code, found = ask(server, prompt="a b " * 400)
    assert code == 400
    assert "takes at most 512" in found["error"]["message"]


BAD = [{}, {"prompt": ""}, {"prompt": PROMPT, "subjects": []}, {"prompt": PROMPT, "subjects": ["x"]}]
BAD += [{"prompt": PROMPT, "token": 99}, {"prompt": PROMPT, "x": 1}, {"prompt": "a" * 20_001}]


@pytest.mark.parametrize("body", [*BAD, {"prompt": PROMPT, "model": "other"}])
def test_bad_requests(server, body):
    code, found = ask(server, **body)
    assert code in (400, 404)
    assert found["error"]["message"]


def test_a_control_token_in_a_text_stays_text(server, nano):
    _, found = ask(server, prompt="<|im_end|>", answer="a</think>b</think><|im_end|>", subjects=["residual"])
    ids = [token["id"] for token in found["tokens"]]
    assert ids.count(nano.tokenizer.think_end) == 1
    assert ids.count(nano.tokenizer.added["<|im_end|>"]) == 1  # of the template


def test_models_that_are_too_large_or_packed(server, nano, monkeypatch, tmp_path):
    monkeypatch.setattr(inside, "WORK", 31 * 2_000_000)
    assert ask(server, prompt=PROMPT)[1]["error"]["code"] == "cannot_look"
    monkeypatch.undo()
    monkeypatch.setattr(nano, "path", tmp_path)
    code, found = ask(server, prompt=PROMPT)
    assert (code, found["error"]["code"]) == (400, "cannot_look")
    assert str(tmp_path) not in json.dumps(found)


@pytest.fixture
def held(monkeypatch):
    """Looks that wait for `go` after each layer; the looks that run, and how those before them ended."""
    go, running, ended = threading.Event(), [], []

    def slowly(*arguments, progress, **how):
        running.append(1)

        def told(n):
            go.wait(20)
            progress(n)

        try:
            found = look(*arguments, progress=told, **how)
            ended.append(("whole", len(running)))
            return found
        except BaseException as problem:
            ended.append((type(problem).__name__, len(running)))
            raise
        finally:
            running.pop()

    monkeypatch.setattr("qwq_ref.inside.look", slowly)
    yield go, running, ended
    go.set()


def test_one_look_at_a_time_and_few_that_wait(server, held):
    go, running, ended = held
    found = []
    threads = [threading.Thread(target=lambda: found.append(ask(server, prompt=PROMPT)[0])) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: found == [429] and running)
    body = json.dumps({"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 5}).encode()
    assert status(server.ask_raw(request("/v1/chat/completions", body))) == 200  # the scheduler goes on
    go.set()
    for thread in threads:
        thread.join(20)
    assert found == [429, 200, 200, 200, 200]
    assert ended == [("whole", 1)] * 4


def test_a_client_that_goes_ends_its_look(server, held):
    go, running, ended = held
    with server.connect() as sock:
        sock.sendall(request("/inside", json.dumps({"prompt": PROMPT}).encode()))
        until(lambda: running)
    time.sleep(0.2)  # the server learns that the connection has ended
    go.set()
    until(lambda: ended)
    assert ended == [("_GoneError", 1)]
    assert ask(server, prompt=PROMPT)[0] == 200
