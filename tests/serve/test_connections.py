"""Connections that pipeline, that are closed on one side, that read nothing, and that send a body in crumbs."""

import json
import socket
import time
from dataclasses import replace

import pytest

from qwq_ref.serve.limits import ServerLimits
from tests.support.servers import at_rest, read_all, request, serving, status, until

CHAT = "/v1/chat/completions"
COMPLETE = "/v1/completions"
LIMITS = replace(ServerLimits(), stall_seconds=0.5, idle_seconds=1, body_seconds=5)


def ask(connection="close", **fields):
    messages = [{"role": "user", "content": "Count."}]
    body = {"messages": messages, "temperature": 9.0, "seed": 1, "max_tokens": 800, **fields}
    return request(CHAT, json.dumps(body).encode(), connection=connection)


@pytest.fixture(scope="module")
def strict(endless):
    with serving(lambda: endless, LIMITS) as running:
        yield running


@pytest.fixture(autouse=True)
def all_end(strict):
    yield
    at_rest(strict)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("behind", [b"", b"\r\n", request("/health"), ask()])
def test_a_disconnect_is_seen_behind_a_pipelined_request(strict, stream, behind):
    with strict.connect() as sock:
        sock.sendall(ask("keep-alive", stream=stream))
        until(lambda: strict.counts.running == 1)
        sock.sendall(behind)
        passes = strict.counts.passes
        until(lambda: strict.counts.passes > passes + 5)
    passes = strict.counts.passes
    until(lambda: strict.counts.running == 0)
    assert strict.counts.passes - passes < 40  # of 800


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("count", [1, 2])
def test_a_half_closed_connection_is_answered(strict, stream, count):
    with strict.connect() as sock:
        sock.sendall(ask("keep-alive", stream=stream, max_tokens=30) * count)
        sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
    assert answer.count(b"HTTP/1.1 200 OK\r\n") == count
    assert answer.count(b'"finish_reason":"length"') == count
    assert answer.count(b"[DONE]") == (count if stream else 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_half_closed_connection_that_goes_away_stops_its_answer(strict, stream):
    with strict.connect() as sock:
        sock.sendall(ask(stream=stream))
        sock.shutdown(socket.SHUT_WR)
        until(lambda: strict.counts.running == 1)
        passes = strict.counts.passes
        until(lambda: strict.counts.passes > passes + 5)
    before = strict.counts
    until(lambda: strict.counts.running == 0, 3)
    assert strict.counts.cancelled == before.cancelled + 1


def test_half_of_a_request_on_a_half_closed_connection_gets_nothing(strict):
    for data in (ask()[:-5], ask()[:40], b""):
        with strict.connect() as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            assert read_all(sock) == b""


def test_an_answer_that_nobody_reads_ends_its_closing_connection(strict):
    """The rest of the answer is too short to fill the buffer, and the connection is closed already."""
    held = []
    for size in range(400, 560, 20):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", strict.port))
        body = {"prompt": "x" * size, "echo": True, "logprobs": 20, "max_tokens": 0}
        sock.sendall(request(COMPLETE, json.dumps(body).encode()))
        held.append(sock)
    time.sleep(0.2)
    until(lambda: not strict.server.server_state.connections)
    for sock in held:
        sock.close()


def test_a_slow_reader_gets_its_whole_answer(strict):
    body = {"prompt": "x" * 900, "echo": True, "logprobs": 20, "max_tokens": 0}
    whole = strict.ask_raw(request(COMPLETE, json.dumps(body).encode()))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.connect(("127.0.0.1", strict.port))
        sock.sendall(request(COMPLETE, json.dumps(body).encode()))
        data, began = b"", time.monotonic()
        while more := sock.recv(16384):
            data += more
            time.sleep(0.04)
        assert time.monotonic() - began > 0.6  # longer than a client may read nothing
    assert len(data) == len(whole)


def test_a_body_in_crumbs_is_refused(strict):
    head = request(CHAT, b"", content_length=None, transfer_encoding="chunked")
    answer = strict.ask_raw(head + b"1\r\n \r\n" * 300_000 + b"0\r\n\r\n")
    assert status(answer) == 413
    body = ask(max_tokens=1).partition(b"\r\n\r\n")[2]
    few = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    assert status(strict.ask_raw(head + few)) == 200


def test_a_body_of_two_lengths_is_refused(strict):
    body = b"5\r\nhello\r\n0\r\n\r\n"
    answer = strict.ask_raw(request(CHAT, body, transfer_encoding="chunked"))
    assert status(answer) == 400
    assert b'"code":"two_lengths"' in answer


def test_a_body_that_is_no_http_is_an_error(strict):
    head = request(CHAT, b"", content_length=None, transfer_encoding="chunked")
    for bad in (b"x\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"fffffffffffffffffffffffff\r\n"):
        assert status(strict.ask_raw(head + bad)) == 400
