"""Requests that look small and cost much: they are refused early, and cost memory and time that stay within limits."""

import json
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from qwq_ref.serve.json_body import read_json
from qwq_ref.serve.limits import ServerLimits
from qwq_ref.serve.problems import ApiError
from tests.support.servers import read_all, request, serving, status, until

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
BODY = 1 << 20


def filled(head, item, tail):
    return head + b",".join([item] * (BODY // (len(item) + 1))) + tail


def code(answer):
    return json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETE, filled(b'{"prompt":[', b"1.5", b"]}")),
        (COMPLETE, filled(b'{"prompt":[', b"[]", b"]}")),
        (COMPLETE, filled(b'{"prompt":[[', b'""', b"]]}")),
        (COMPLETE, filled(b'{"prompt":"x","stop":[', b"1", b"]}")),
        (COMPLETE, b'{"prompt":"x","logit_bias":{%s}}' % b",".join(b'"%d":"a"' % i for i in range(BODY // 14))),
        (CHAT, filled(b'{"messages":[', b"1", b"]}")),
        (CHAT, filled(b'{"messages":[],"tools":[', b"1", b"]}")),
        (CHAT, filled(b'{"messages":[', b"{}", b"]}")),
        (COMPLETE, filled(b'{"prompt":"x","junk":[', b"[]", b"]}")),
        ("/detokenize", filled(b'{"tokens":[', b'""', b"]}")),
        ("/v1/responses", filled(b'{"input":[', b"1", b"]}")),
    ],
)
def test_a_wrong_value_costs_no_more_than_its_body(server, path, body):
    """An error for each of a million values would take seconds, and gigabytes for the largest body."""
    tracemalloc.start()
    try:
        assert status(server.ask_raw(request(path, body))) == 400
        assert tracemalloc.get_traced_memory()[1] < 30 * len(body)
    finally:
        tracemalloc.stop()


def test_a_body_has_a_limit_of_objects_and_lists():
    with pytest.raises(ApiError, match="more than 5 objects and lists"):
        read_json(b'[{},{},{},[],{},"[[[[["]', 32, 5)
    assert read_json(b'[{},{},[],{},"[[[[["]', 32, 5)


def test_the_bodies_of_all_requests_together_have_a_limit(nano):
    """Three large bodies, each a byte short, fill it. Small requests go on, and large ones when those have ended."""
    limits = replace(ServerLimits(), bodies=3 << 20, body_seconds=2)
    large = json.dumps({"prompt": "x", "junk": "y" * BODY}).encode()
    with serving(lambda: nano, limits) as running:
        held = [running.connect() for _ in range(3)]
        for sock in held:
            sock.sendall(request(COMPLETE, large)[:-1])
        bodies = running.server.config.app._app._app
        until(lambda: bodies.held > 2.5 * BODY)
        answer = running.ask_raw(request(COMPLETE, large))
        assert status(answer) == 503
        assert code(answer) == "too_many_bytes"
        assert b"\r\nretry-after: " in answer.lower()
        assert status(running.ask_raw(request("/tokenize", b'{"content": "x"}'))) == 200
        for sock in held:
            sock.close()
        until(lambda: not bodies.held)
        assert code(running.ask_raw(request(COMPLETE, large))) == "unknown_field"
        assert bodies.held == 0


LONG = "What is 12+34? " * 60_000


@pytest.mark.parametrize("text", [LONG, "x" * len(LONG), "\u0301" * 300_000, "<" * len(LONG)])
def test_a_text_that_cannot_fit_is_refused_before_it_is_cut_into_tokens(server, nano, monkeypatch, text):
    """A million characters take ten seconds. No token has more bytes than the longest, so few bytes show it."""
    cut, encode = [], type(nano.tokenizer)._encode_plain

    def count(self, text):
        cut.append(len(text))
        return encode(self, text)

    monkeypatch.setattr(type(nano.tokenizer), "_encode_plain", count)
    for path, body in (
        (CHAT, {"messages": [{"role": "user", "content": text}]}),
        (CHAT, {"messages": [{"role": "user", "content": text}], "n": 16}),
        ("/v1/responses", {"input": text}),
        (COMPLETE, {"prompt": text}),
        (COMPLETE, {"prompt": [text] * 2}),
        (COMPLETE, {"prompt": text, "echo": True, "logprobs": 1, "max_tokens": 0}),
        ("/tokenize", {"content": text, "with_pieces": True}),
        ("/tokenize", {"messages": [{"role": "user", "content": text}]}),
    ):
        answer = server.ask_raw(request(path, json.dumps(body, ensure_ascii=False).encode()))
        assert status(answer) == 400, path
        assert code(answer) == "context_length_exceeded"
    assert sum(cut) < 1000  # the templates' own words


def test_texts_and_ids_beyond_the_context_are_no_tokens(server, nano):
    fits = "0" * nano.context
    assert status(server.ask_raw(request("/tokenize", json.dumps({"content": fits}).encode()))) == 200
    assert code(server.ask_raw(request("/tokenize", json.dumps({"content": fits + "0"}).encode()))) == (
        "context_length_exceeded"
    )
    ids = [1] * nano.context
    assert status(server.ask_raw(request("/detokenize", json.dumps({"tokens": ids}).encode()))) == 200
    assert code(server.ask_raw(request("/detokenize", json.dumps({"tokens": [*ids, 1]}).encode()))) == (
        "context_length_exceeded"
    )


def test_a_logit_bias_has_a_limit(server):
    """Each step of an answer would go through all of it."""
    bias = {f"{n}": 1 for n in range(4097)}
    answer = server.ask_raw(request(COMPLETE, json.dumps({"prompt": "x", "logit_bias": bias}).encode()))
    assert status(answer) == 400
    assert b"at most 4096" in answer


def test_a_prompt_that_waits_for_its_preparation_counts_as_waiting(nano, monkeypatch):
    """Many clients at once cannot fill the queue in front of the queue."""
    go, limits = threading.Event(), replace(ServerLimits(), waiting=3)
    prepare = type(nano).prepare

    def slow(self, *args, **how):
        assert go.wait(30)
        return prepare(self, *args, **how)

    monkeypatch.setattr(type(nano), "prepare", slow)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
    with serving(lambda: nano, limits) as running:
        held = [running.connect() for _ in range(3)]
        for sock in held:
            sock.sendall(request(CHAT, body))
        until(lambda: running.engine.preparing == 3)
        assert status(running.ask_raw(request(CHAT, body))) == 429
        go.set()
        assert [status(read_all(sock)) for sock in held] == [200] * 3
        until(lambda: running.engine.preparing == 0)


def test_slow_prompts_hold_up_no_other_request(nano, monkeypatch):
    """A grammar may compile for seconds, one at a time. The other threads must not run out meanwhile."""
    go, prepare = threading.Event(), type(nano).prepare

    def slow(self, *args, **how):
        assert go.wait(30)
        return prepare(self, *args, **how)

    monkeypatch.setattr(type(nano), "prepare", slow)
    body = json.dumps({"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}).encode()
    with serving(lambda: nano) as running:
        held = [running.connect() for _ in range(60)]
        for sock in held:
            sock.sendall(request(CHAT, body))
        until(lambda: running.engine.preparing == 60)
        assert status(running.ask_raw(request("/tokenize", b'{"content": "x"}'), timeout=10)) == 200
        go.set()
        assert {status(read_all(sock)) for sock in held} == {200}


def test_the_least_number_of_tokens_is_no_more_than_there_are(nano):
    rng = np.random.default_rng(0)
    tokenizer = nano.tokenizer
    texts = [tokenizer.decode(rng.integers(0, tokenizer.size, 50).tolist()) for _ in range(200)]
    texts += ["", "x", "  " * 99, "e\u0301" * 40, "\u212a" * 40, "\U0001d15e" * 30, "\u1100\u1161\u11a8" * 30]
    for text in texts:
        assert tokenizer.least(text) <= len(tokenizer.encode(text))
    assert tokenizer.least("x" * 100_000) > 1000


@pytest.mark.parametrize("field", ["max_tokens", "n", "best_of", "top_k", "logprobs"])
def test_a_number_of_many_digits_is_not_repeated(server, field):
    body = {"prompt": "x", field: int("9" * 4000)}
    answer = server.ask_raw(request(COMPLETE, json.dumps(body).encode()))
    assert status(answer) == 400
    assert len(answer) < 700
