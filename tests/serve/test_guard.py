"""The checks before any work, and the limits of a request, by raw connections."""

import json
import re

import pytest

from qwq_ref.serve.json_body import read_json
from qwq_ref.serve.limits import ServerLimits
from qwq_ref.serve.problems import ApiError
from tests.support.servers import request, serving, status

KEY = "correct-horse"
CHAT = "/v1/chat/completions"


def body(**fields):
    return json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, **fields}).encode()


def problem(answer):
    """The error in a response, which must have OpenAI's shape."""
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1:80", "[::1]:9", "LOCALHOST", "[::1]"])
def test_names_of_loopback_may_ask(server, host):
    assert status(server.ask_raw(request("/health", host=host))) == 200


HOSTILE = ["evil.example", "localhost.evil.example", "localhost:", "127.0.0.1@evil", "0.0.0.0", "", "127.0.0.2", "::1"]


@pytest.mark.parametrize("host", HOSTILE)
@pytest.mark.parametrize("path", ["/health", CHAT, "/nothing", "/openapi.json"])
def test_other_hosts_are_refused_before_any_work(server, host, path):
    before = server.counts
    answer = server.ask_raw(request(path, body(), host=host))
    assert status(answer) == 403
    assert problem(answer)["code"] == "host_refused"
    assert server.counts == before


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost.evil.example", "file://", "https://"]
)
def test_pages_of_other_origins_are_refused(server, origin):
    answer = server.ask_raw(request(CHAT, body(), origin=origin))
    assert status(answer) == 403
    assert problem(answer)["code"] == "origin_refused"


def test_a_page_of_this_machine_may_ask_and_gets_no_cors_headers(server):
    answer = server.ask_raw(request(CHAT, body(), origin="http://localhost:3000"))
    assert status(answer) == 200
    assert b"access-control" not in answer.lower()


def test_a_request_without_a_host_is_refused(server):
    assert status(server.ask_raw(b"GET /health HTTP/1.0\r\n\r\n")) == 403
    assert status(server.ask_raw(b"GET /health HTTP/1.1\r\n\r\n")) == 400
    assert status(server.ask_raw(b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\n\r\n")) == 400


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json; charset=x"]
)
def test_a_body_must_be_json_by_its_type(server, kind):
    answer = server.ask_raw(request(CHAT, body(), content_type=kind))
    assert status(answer) == 415
    assert problem(answer)["param"] == "Content-Type"


def test_a_charset_of_json_is_accepted(server):
    assert status(server.ask_raw(request(CHAT, body(), content_type="application/json; charset=UTF-8"))) == 200


def test_a_large_body_is_refused_by_its_length_and_by_its_bytes(server):
    most = ServerLimits.body
    text = b'"' + b"x" * most + b'"'
    answer = server.ask_raw(request(CHAT, text))
    assert status(answer) == 413
    assert problem(answer)["code"] == "body_too_large"
    assert status(server.ask_raw(request(CHAT, b"", content_length=str(10**15)) + b"x")) == 413
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    endless = request(CHAT, b"", content_length=None, transfer_encoding="chunked") + chunk * 66
    assert status(server.ask_raw(endless)) == 413
    fits = json.dumps({"messages": [], "junk": "x" * (most - 100)}).encode()
    assert problem(server.ask_raw(request(CHAT, fits)))["code"] == "unknown_field"


@pytest.mark.parametrize("at_once", [True, False])
def test_large_headers_are_refused(server, at_once):
    for more in ({"x_long": "y" * ServerLimits.head}, {f"x{i}": "y" * 90 for i in range(200)}):
        data = request("/health", **more)
        if not at_once:
            data = data[: ServerLimits.head + 10]  # the server must not wait for the end
        answer = server.ask_raw(data)
        assert status(answer) == 431
        assert problem(answer)["code"] == "headers_too_large"
    assert status(server.ask_raw(request("/health?" + "q" * ServerLimits.head))) == 431
    assert status(server.ask_raw(request("/health", x_long="y" * (ServerLimits.head - 200)))) == 200


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"\xff\xfe",
        b'{"messages": NaN}',
        b'{"messages": [], "temperature": Infinity}',
        b'{"messages": [], "temperature": 1e999}',
        b'{"messages": [], "seed": ' + b"9" * 5000 + b"}",
        b'{"messages": ' + b"[" * 33 + b"]" * 33 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\ud800": 1}',
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": []}',
        b'{"messages": {}}',
        b'{"messages": [3]}',
        b"{}",
    ],
)
def test_hostile_json_is_an_error_of_one_line(server, text):
    answer = server.ask_raw(request(CHAT, text))
    assert status(answer) == 400
    message = problem(answer)["message"]
    assert message.isprintable()
    assert len(message) < 400


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_numbers_that_json_does_not_have_are_refused_everywhere(server, number):
    with pytest.raises(ApiError, match="JSON"):
        read_json(f'[{{"x": {number}}}]'.encode(), 32)
    text = f'{{"messages": [{{"role": "user", "content": "x"}}], "tools": [{{"x": {number}}}]}}'
    assert problem(server.ask_raw(request(CHAT, text.encode())))["code"] == "invalid_json"


def test_nesting_counts_what_is_outside_of_strings():
    mixed = b'[{"a": "]][[{{", "\\"[[[": [[1]]}]'
    assert read_json(mixed, 4, 4)
    for limits in ((3, 4), (4, 3)):
        with pytest.raises(ApiError, match="more than 3 objects and lists"):
            read_json(mixed, *limits)
    assert read_json(b'"[[["', 0, 0) == "[[["
    assert read_json(b"[" * 32 + b"]" * 32, 32)
    with pytest.raises(ApiError, match="more than 32"):
        read_json(b"[" * 33 + b"]" * 33, 32)


@pytest.mark.parametrize(
    "path", ["/none", "/page/none.js", "/v1", "/v1/chat", "/..%2f..", "/v1/chat/completions/", "/%00", "//"]
)
def test_an_unknown_path_is_an_error(server, path):
    answer = server.ask_raw(request(path))
    assert status(answer) == 404
    problem(answer)


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "GET"])
def test_an_unknown_method_is_an_error(server, method):
    answer = server.ask_raw(request(CHAT, body(), method=method))
    assert status(answer) == 405
    assert b"\r\nallow: POST\r\n" in answer


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v1/models/qwq-nano"])
@pytest.mark.parametrize("data", [b"", b"{", b"no JSON"])
def test_a_path_that_takes_no_body_refuses_the_method_first(server, path, data):
    for name in ("application/json", "text/plain"):
        answer = server.ask_raw(request(path, data, method="POST", **{"content-type": name}))
        assert status(answer) == 405
        assert b"\r\nallow: GET\r\n" in answer


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01", b"GET", b"GET / HTTPS/1.1", b"\r\n" * 50 + b"x"])
def test_no_http_is_an_error(server, data):
    assert status(server.ask_raw(data + b"\r\n\r\n")) == 400


@pytest.fixture(scope="module")
def locked(nano):
    with serving(lambda: nano, key=KEY, hosts=["box.example"]) as running:
        yield running


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong-horse-x", f"Basic {KEY}", f"Bearer {KEY}x", "Bearer", "Bearer é"]
)
def test_a_wrong_key_is_refused(locked, given):
    for path in (CHAT, "/v1/models", "/metrics", "/openapi.json", "/nothing"):
        answer = locked.ask_raw(request(path, body(), authorization=given))
        assert status(answer) == 401
        assert problem(answer)["code"] == "invalid_api_key"
        assert KEY.encode() not in answer


def test_the_key_opens_everything_and_health_needs_none(locked):
    assert status(locked.ask_raw(request("/v1/models", authorization=f"Bearer {KEY}"))) == 200
    assert status(locked.ask_raw(request(CHAT, body(), authorization=f"bearer {KEY}"))) == 200
    assert status(locked.ask_raw(request("/health"))) == 200
    assert status(locked.ask_raw(request("/health", host="box.example:8080", origin="http://box.example"))) == 200
    assert status(locked.ask_raw(request("/health", host="other.example"))) == 403


def test_a_key_is_compared_in_constant_time():
    """Where the check is written, no other comparison sees the key."""
    import inspect

    from qwq_ref.serve.guard import Guard

    source = inspect.getsource(Guard._shows_key)
    assert "hmac.compare_digest(given.strip(), key)" in source
    assert not re.search(r"key ==|== key", inspect.getsource(Guard))
