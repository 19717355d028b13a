"""Slow, absent and too many clients, by raw connections."""

import concurrent.futures
import json
import socket
import threading
import time
from dataclasses import replace

import openai
import pytest

from qwq_ref.serve.limits import ServerLimits
from tests.support.servers import at_rest, read_all, request, serving, status, until

CHAT = "/v1/chat/completions"
SHORT = ServerLimits(
    head_seconds=0.4,
    body_seconds=0.4,
    stall_seconds=0.6,
    idle_seconds=1,
    keep_alive=0.05,
    drain=0.2,
    connections=8,
    running=2,
    waiting=3,
)


def body(**fields):
    """A request whose answer takes long."""
    return json.dumps({"messages": [{"role": "user", "content": "Count."}], "temperature": 9.0, "seed": 1, **fields})


def ask(**fields):
    return request(CHAT, body(**fields).encode())


@pytest.fixture(scope="module")
def strict(endless):
    with serving(lambda: endless, SHORT) as running:
        yield running


@pytest.fixture(autouse=True)
def all_end(strict):
    yield
    at_rest(strict)


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\nhost: loc", b"G"])
def test_slow_headers_end_the_connection(strict, start):
    with strict.connect() as sock:
        sock.sendall(start)
        began = time.monotonic()
        answer = read_all(sock)
        assert 0.3 < time.monotonic() - began < 3
    assert status(answer) == 408


def test_headers_that_drip_have_no_more_time(strict):
    with strict.connect() as sock:
        began = time.monotonic()
        try:
            while time.monotonic() - began < 3:
                sock.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - began < 2


def test_slow_headers_of_a_second_request_end_the_connection(strict):
    with strict.connect() as sock:
        sock.sendall(request("/health", connection="keep-alive"))
        while b"ok" not in sock.recv(4096):
            pass
        sock.sendall(b"GET /he")
        began = time.monotonic()
        assert status(read_all(sock)) == 408
        assert time.monotonic() - began < 0.9  # before the connection is idle for too long


def test_a_slow_body_ends_the_request(strict):
    with strict.connect() as sock:
        sock.sendall(request(CHAT, b"{", content_length="100"))
        began = time.monotonic()
        for _ in range(5):
            sock.sendall(b" ")
            time.sleep(0.05)
        answer = read_all(sock)
        assert time.monotonic() - began < 4
    assert status(answer) == 408


def test_an_idle_connection_is_closed(strict):
    with strict.connect() as sock:
        sock.sendall(request("/health", connection="keep-alive"))
        began = time.monotonic()
        assert status(read_all(sock)) == 200
        assert time.monotonic() - began > 0.9


def test_too_many_connections_are_refused_until_one_ends(strict):
    held = [strict.connect() for _ in range(SHORT.connections)]
    until(lambda: len(strict.server.server_state.connections) == SHORT.connections)
    answer = strict.ask_raw(request("/health"))
    assert status(answer) == 503
    assert b"retry-after: 1" in answer.lower()
    for sock in held:
        sock.close()
    until(lambda: not strict.server.server_state.connections)
    assert status(strict.ask_raw(request("/health"))) == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_stops_the_answer(strict, stream):
    before = strict.counts
    with strict.connect() as sock:
        sock.sendall(ask(stream=stream))
        until(lambda: strict.counts.running == 1)
        passes = strict.counts.passes
        until(lambda: strict.counts.passes > passes + 5)
    passes = strict.counts.passes
    until(lambda: strict.counts.running == 0)
    assert strict.counts.passes - passes < 40  # of the several hundred that an answer has
    assert strict.counts.cancelled == before.cancelled + 1


def test_a_disconnect_stops_answers_that_wait(strict):
    with strict.connect() as first, strict.connect() as second:
        first.sendall(ask(n=2))
        until(lambda: strict.counts.running == 2)
        second.sendall(ask(n=3, stream=True))
        until(lambda: strict.counts.waiting == 3)
        second.close()
        until(lambda: strict.counts.waiting == 0)


def test_a_client_that_reads_nothing_is_given_up(strict):
    before = strict.counts
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with sock:
        sock.connect(("127.0.0.1", strict.port))
        for _ in range(6):  # one answer of nano fits in the buffers
            sock.sendall(request(CHAT, body(n=2, stream=True, max_tokens=900).encode(), connection="keep-alive"))
        until(lambda: strict.counts.cancelled > before.cancelled, 60)


def test_too_many_prompts_are_refused_with_the_time_to_wait(strict):
    before = strict.counts
    with strict.connect() as first, strict.connect() as second:
        first.sendall(ask(n=2))
        until(lambda: strict.counts.running == 2)
        second.sendall(ask(n=3))
        until(lambda: strict.counts.waiting == 3)
        answer = strict.ask_raw(ask())
        assert status(answer) == 429
        assert b"\r\nretry-after: " in answer.lower()
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "server_busy"
    until(lambda: strict.counts.running == 0)
    assert strict.counts.answered == before.answered


def test_choices_come_all_or_none(strict):
    """Six answers do not fit, so none of them is left over."""
    before = strict.counts
    assert status(strict.ask_raw(ask(n=6))) == 429
    until(lambda: strict.counts.running == strict.counts.waiting == 0)
    assert strict.counts.answered == before.answered
    assert strict.counts.cancelled > before.cancelled


def test_many_clients_get_their_own_answers_or_429(strict, endless):
    prompts = [f"What is {n}+{n}?" for n in range(10, 22)]
    wanted = {}
    for prompt in prompts:
        generation = endless.generate(prompt, temperature=0, max_tokens=60)
        for _ in generation:
            pass
        wanted[prompt] = generation.texts["answer"]
    client = openai.OpenAI(base_url=f"{strict.url}/v1", api_key="x", max_retries=0)
    waits = [1.0]

    def one(prompt):
        messages = [{"role": "user", "content": prompt}]
        for _ in range(400):
            try:
                found = client.chat.completions.create(
                    model="qwq-nano", messages=messages, temperature=0, max_tokens=60
                )
                return found.choices[0].message.content
            except openai.RateLimitError as busy:
                waits.append(float(busy.response.headers["retry-after"]))
                time.sleep(0.02)
        raise AssertionError("it was never answered")

    with client, concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert dict(zip(prompts, pool.map(one, prompts), strict=True)) == wanted
    assert min(waits) >= 1


def test_comments_keep_a_stream_alive(strict):
    """The second answer waits for the first ones, longer than the time between comments."""
    with strict.connect() as first, strict.connect() as second:
        first.sendall(ask(n=2))
        until(lambda: strict.counts.running == 2)
        second.sendall(ask(stream=True))
        data = b""
        while data.count(b": keep-alive\n\n") < 2:
            more = second.recv(4096)
            assert more
            data += more


def test_pipelined_requests_are_answered_in_order(strict):
    data = request("/health", connection="keep-alive") * 3 + request("/v1/models")
    answer = strict.ask_raw(data)
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.rstrip().endswith(b"]}")


def test_a_half_closed_connection_leaves_nothing(strict):
    with strict.connect() as sock:
        sock.sendall(ask(stream=True))
        sock.shutdown(socket.SHUT_WR)
        read_all(sock)


def test_random_bytes_leave_nothing(strict):
    import random

    rng = random.Random(0)
    good = ask(stream=True, max_tokens=2)
    for _ in range(150):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        with strict.connect() as sock:
            sock.sendall(data[: rng.choice([len(data), rng.randrange(1, len(data))])])
            if rng.random() < 0.5:
                sock.shutdown(socket.SHUT_WR)
                answer = read_all(sock)
                assert not answer or status(answer) < 500


class TestLoading:
    def test_the_port_answers_while_the_model_loads(self, nano):
        go = threading.Event()

        def load():
            assert go.wait(30)
            return nano

        with serving(load, SHORT, wait=False) as running:
            for path, text in (("/health", None), (CHAT, body().encode())):
                answer = running.ask_raw(request(path, text))
                assert status(answer) == 503
                assert b"\r\nretry-after: " in answer.lower()
                assert b'"code":"loading"' in answer
            assert status(running.ask_raw(request("/v1/models"))) == 200
            go.set()
            until(lambda: status(running.ask_raw(request("/health"))) == 200)


def test_a_shutdown_lets_answers_end_and_cuts_off_long_ones(endless):
    limits = replace(SHORT, running=4)
    with serving(lambda: endless, limits) as running, running.connect() as short, running.connect() as long:
        long.sendall(ask(stream=True, n=2))
        until(lambda: running.counts.running == 2)
        short.sendall(ask(max_tokens=5))
        until(lambda: running.counts.running == 3 or running.counts.answered == 1)
        running.server.should_exit = True
        assert b"shutting_down" in read_all(long)
        assert status(read_all(short)) == 200
        with pytest.raises(OSError, match="refused"):
            running.connect()
