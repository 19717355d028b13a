"""Every field of every request with values that no client should send: an answer or an error, and no fault."""

import json

import pytest

from tests.support.servers import request, status

SMALL = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "x", "max_tokens": 1},
    "/v1/responses": {"input": "x", "max_output_tokens": 1},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [1]},
    "/inside": {"prompt": "x"},
}
ODD = [None, True, -1, 0, 1, 1.5, 1e300, 2**64, -(2**70), "", "x", "\ud800", "<|im_end|>", [], [None], [[]], [{}], {}]
ODD += [[1, "x"], [[1], "x"], {"type": "x"}, {"type": []}, {"x": {"y": [1]}}, [{"type": "function"}], "x" * 2000]
ODD += [{"x": 1}, {"-1": 1}, {"99999999": 1}, {"1": 1e300}]
ODD += [[{"type": "function", "function": {"name": "f", "parameters": p}}] for p in (None, [], {"type": 3}, {})]
ODD += [{"type": "json_schema", "json_schema": s} for s in (None, {}, {"schema": []}, {"schema": {"type": "x"}})]
ODD += [[{"role": "user", "content": c}] for c in (None, 3, [3], [{"type": "text"}], {"a": 1})]
CALLS = [[], [{}], [{"function": {"arguments": "{"}}]]
ODD += [[{"role": "assistant", "content": None, "tool_calls": calls}] for calls in CALLS]
ITEMS = [{"type": "function_call"}, {"type": "function_call_output", "output": 3}, {"type": "reasoning", "content": 3}]
ODD += [[item] for item in ITEMS]


def cases(api):
    """(path, field) of every request."""
    for path, methods in api["paths"].items():
        if "post" in methods:
            schema = methods["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            yield path, api["components"]["schemas"][schema.rpartition("/")[2]]["properties"]


def test_every_request_is_covered(server):
    api = json.loads(server.ask_raw(request("/openapi.json")).partition(b"\r\n\r\n")[2])
    assert {path for path, _ in cases(api)} == set(SMALL)


@pytest.mark.parametrize("path", SMALL)
def test_no_value_is_a_fault(server, capfd, path):
    api = json.loads(server.ask_raw(request("/openapi.json")).partition(b"\r\n\r\n")[2])
    for field in dict(cases(api))[path]:
        for value in ODD:
            body = json.dumps({**SMALL[path], field: value}).encode()
            answer = server.ask_raw(request(path, body))
            assert status(answer) in (200, 400, 404), (field, value, answer)
            assert b'"type":"server_error"' not in answer
            if status(answer) == 400:
                assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"].isprintable()
    assert "fault" not in capfd.readouterr().err
    assert server.counts.failed == 0


@pytest.mark.parametrize("field", ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "zzz"])
def test_no_value_in_a_message_is_a_fault(server, capfd, field):
    for role in ("user", "assistant", "tool"):
        for value in ODD:
            message = {"role": role, "content": "x", field: value}
            last = {"role": "user", "content": "y"}
            for path, name in (("/v1/chat/completions", "messages"), ("/v1/responses", "input")):
                body = {**SMALL[path], name: [message, last]}
                answer = server.ask_raw(request(path, json.dumps(body).encode()))
                assert status(answer) in (200, 400), (role, value, answer)
    assert "fault" not in capfd.readouterr().err
