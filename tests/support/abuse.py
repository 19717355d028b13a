"""Requests that no client should send, each with the statuses that the table in docs/serve.md gives for it."""

import json
import random
import socket
import time
from collections import Counter
from dataclasses import dataclass

from tests.support.servers import read_all, request

CHAT, COMPLETE, RESPOND = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PATHS = (CHAT, COMPLETE, RESPOND, "/tokenize", "/detokenize", "/health", "/v1/models", "/metrics", "/nothing")
POSTS = PATHS[:5]
HOSTS = ["evil.example", "localhost.", "localhost.evil", "127.1", "127.0.0.2", "0.0.0.0", "[::]", "", "a@localhost"]
HOSTS += [
    "localhost:",
    "localhost:1x",
    "localhost, evil",
    "local host",
    "xn--localhost",
    "[::1",
    "127.0.0.1.",
    "2130706433",
]
ORIGINS = ["null", "http://evil.example", "file://", "https://localhost.evil", "http://a@localhost", "x", "http://"]
ORIGINS += ["ftp://localhost", "http://localhost/", "http://localhost http://evil.example"]
ODD_TEXT = ["\x00", "\ud800", "\ufeff", "<|im_end|>", "\u202e", "x" * 300, "</think>", "\r\n\r\n", "{{7*7}}", "%00"]
ODD = [None, True, -1, 1.5, 2**70, -(2**70), 10**400, [], {}, [[]], [None], {"x": {"y": 1}}, *ODD_TEXT]
FIELDS = ["messages", "prompt", "input", "content", "tokens", "n", "best_of", "stop", "logit_bias", "temperature"]
FIELDS += [
    "tools",
    "tool_choice",
    "response_format",
    "seed",
    "top_k",
    "stream",
    "echo",
    "logprobs",
    "max_tokens",
    "zzz",
]
SMALL = {
    CHAT: {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1},
    COMPLETE: {"prompt": "x", "max_tokens": 1},
    RESPOND: {"input": "x", "max_output_tokens": 1},
    "/tokenize": {"content": "x"},
    "/detokenize": {"tokens": [1]},
}
BUSY = {429, 503}  # with Retry-After, from any request: the others are many
GONE = {None}  # no answer, because the connection ended


@dataclass
class Case:
    """A request, and what may come of it.

    data    bytes to send
    want    statuses; None is an end without an answer
    pieces  parts in which it is sent, with short waits
    half    whether the client closes its own side behind it
    read    whether it reads the answer
    answer  the text that the answer must have
    """

    data: bytes
    want: set[int | None]
    pieces: int = 1
    half: bool = False
    read: bool = True
    answer: str | None = None


def known_answers(model, count):
    """Prompts, and the texts that `Model.generate` answers them with."""
    found = []
    for n in range(count):
        prompt = f"What is {n}+{7 * n}?"
        generation = model.generate(prompt, temperature=0, max_tokens=8)
        for _ in generation:
            pass
        found.append((prompt, generation.texts["thinking"] + generation.texts["answer"]))
    return found


def small(path, **fields):
    return json.dumps({**SMALL[path], **fields}).encode()


def good(rng, known):
    """A request whose answer is known, in odd but correct forms."""
    prompt, text = rng.choice(known)
    body = json.dumps({"messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 8}).encode()
    head = {"host": rng.choice(["localhost", "127.0.0.1:80", "[::1]", "LOCALHOST:1"])}
    if rng.random() < 0.3:
        head["origin"] = "http://localhost:3000"
    if rng.random() < 0.2:
        head["expect"] = "100-continue"
    if rng.random() < 0.3:
        cut = rng.randrange(1, len(body))
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]))
        data = request(CHAT, b"", content_length=None, transfer_encoding="chunked", **head) + chunks + b"0\r\n\r\n"
    else:
        data = request(CHAT, body, **head) + rng.choice([b"", b"", b"\r\n"])
    return Case(data, {200} | BUSY, rng.choice([1, 1, 2, 5]), rng.random() < 0.3, answer=text)


def wrong_host(rng, known):
    path = rng.choice(PATHS)
    data = request(path, small(path) if path in SMALL else None, host=rng.choice(HOSTS))
    return Case(data, {403, 400} | BUSY)


def two_hosts(rng, known):
    data = request("/health").replace(b"\r\n", b"\r\nhost: evil.example\r\n", 1)
    return Case(rng.choice([data, data.replace(b"host", b"hoxt"), b"GET /health HTTP/1.0\r\n\r\n"]), {400, 403} | BUSY)


def cross_origin(rng, known):
    path = rng.choice(PATHS)
    data = request(path, small(path) if path in SMALL else None, origin=rng.choice(ORIGINS))
    return Case(data, {403} | BUSY)


def not_json(rng, known):
    kind = rng.choice([None, "text/plain", "multipart/form-data; boundary=x", "application/json;charset=utf-16", "x"])
    path = rng.choice(POSTS)
    return Case(request(path, small(path), content_type=kind), {415} | BUSY)


def broken_json(rng, known):
    path = rng.choice(POSTS)
    body = small(path)
    body = rng.choice(
        [
            body[: rng.randrange(len(body))],
            b"\xef\xbb\xbf" + body,
            body.decode().encode("utf-16"),
            body + b"x",
            body[:-1] + b',"x":1e999}',
            body[:-1] + b',"x":' + b"9" * 5000 + b"}",
            body[:-1] + b',"x":NaN}',
            b"[" * rng.randrange(33, 3000),
            b'{"a":' * 40 + b"1" + b"}" * 40,
            rng.randbytes(rng.randrange(1, 200)).replace(b"1", b"x"),
        ]
    )
    return Case(request(path, body), {400} | BUSY)


def odd_fields(rng, known):
    path = rng.choice(POSTS)
    fields = {rng.choice(FIELDS): rng.choice(ODD) for _ in range(rng.randrange(1, 3))}
    return Case(request(path, json.dumps({**SMALL[path], **fields}).encode()), {200, 400, 404} | BUSY)


def duplicate_keys(rng, known):
    body = b'{"prompt": 1, "prompt": "x", "max_tokens": "no", "max_tokens": 1}'
    return Case(request(COMPLETE, body), {200} | BUSY)


def too_large(rng, known):
    path = rng.choice(POSTS)
    data = request(path, b"", content_length=rng.choice([str(5 << 20), str(10**15)]))
    return Case(data + b"x" * rng.randrange(2000), {413} | BUSY)


def long_head(rng, known):
    name = rng.choice([{"x_long": "y" * 20_000}, {f"x{i}": "y" * 40 for i in range(400)}])
    data = rng.choice([request("/health", **name), request("/" + "p" * 20_000), request("/health?" + "q" * 20_000)])
    return Case(data, {431} | BUSY, rng.choice([1, 3]))


def no_http(rng, known):
    line = rng.choice(
        [
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"GET /health\r\n\r\n",
            b"GET  /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"GET /health HTTP/1.1\r\nhost : localhost\r\n\r\n",
            b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
            b"GET /health HTTP/1.1\r\nhost: localhost\r\n folded: x\r\nno colon\r\n\r\n",
            b"GET /h\xc3\xa9alth HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"G\xc3\x88T /health HTTP/1.1\r\nhost: localhost\r\n\r\n",
            b"\r\n\r\n\r\nx\r\n\r\n",
            b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
            b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
            b"POST /tokenize HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ]
    )
    return Case(line, {400, 403} | BUSY)


def bad_chunks(rng, known):
    chunk = rng.choice(
        [b"x\r\n", b"-1\r\n", b"5\r\nabcdefgh\r\n", b"f" * 30 + b"\r\n", b"0x5\r\nabcde\r\n", b"\x00\r\n"]
    )
    head = request(rng.choice(POSTS), b"", content_length=None, transfer_encoding="chunked")
    return Case(head + b"1\r\n{\r\n" + chunk, {400} | BUSY)


def two_lengths(rng, known):
    inner = request("/metrics")
    data = request("/tokenize", b"0\r\n\r\n" + inner, transfer_encoding="chunked")
    return Case(data, {400} | BUSY)


def odd_target(rng, known):
    path = rng.choice(
        [
            "//",
            "/v1//models",
            "/page/../../etc/passwd",
            "/page/%2e%2e/%2e%2e/etc/passwd",
            "/%00",
            "/..%2f",
            "/nothing?%0d%0ax:1",
            "http://localhost/nothing",
            "http://evil.example/",
            "*",
            "/v1/models/%0d%0aset-cookie:x",
            "/a%ff",
            "/.git",
        ]
    )
    return Case(request(path), {400, 404} | BUSY)


def odd_method(rng, known):
    method = rng.choice(["HEAD", "OPTIONS", "TRACE", "CONNECT", "PUT", "DELETE", "PATCH", "BREW", "get"])
    return Case(request(rng.choice(PATHS), method=method), {404, 405, 415} | BUSY)


def upgrade(rng, known):
    kind = rng.choice(["websocket", "h2c", "x"])
    data = request("/v1/nothing", connection="upgrade, close", upgrade=kind, sec_websocket_key="x", http2_settings="AA")
    return Case(data, {404} | BUSY)


def cut_off(rng, known):
    """A request that ends too early, with or without an end of the connection."""
    path = rng.choice(POSTS)
    data = request(path, small(path))
    return Case(data[: rng.randrange(1, len(data))], {None, 400, 408} | BUSY, half=True)


def mutated(rng, known):
    data = bytearray(request(CHAT, small(CHAT)))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
    return Case(bytes(data), {None, 200, *range(400, 432)} | BUSY, half=True)


def gone(rng, known):
    """An answer that nobody reads: the client goes before it, or in its middle."""
    fields = {"stream": rng.random() < 0.7, "max_tokens": 300, "temperature": 2.0, "n": rng.randrange(1, 3)}
    behind = rng.choice([b"", b"\r\n", request("/health")])
    data = request(CHAT, small(CHAT, **fields), connection=rng.choice(["close", "keep-alive"]))
    return Case(data + behind, {200, None} | BUSY, half=rng.random() < 0.3, read=False)


def slow(rng, known):
    path = rng.choice(POSTS)
    return Case(request(path, small(path)), {200} | BUSY, rng.randrange(10, 40))


def many(rng, known):
    """Requests for too many answers, and large maps."""
    path, fields = rng.choice(
        [
            (CHAT, {"n": 128}),
            (COMPLETE, {"best_of": 65}),
            (COMPLETE, {"prompt": ["x"] * 65}),
            (COMPLETE, {"prompt": ["x"] * 10_000}),
            (COMPLETE, {"stop": ["x"] * 2048}),
            (COMPLETE, {"logit_bias": {str(i): 1 for i in range(5000)}}),
            (COMPLETE, {"prompt": [1.5] * 20_000}),
            (CHAT, {"messages": [{"role": "user", "content": "x" * 100_000}]}),
            ("/tokenize", {"content": "x" * 100_000, "with_pieces": True}),
            ("/detokenize", {"tokens": [1] * 100_000}),
        ]
    )
    return Case(request(path, small(path, **fields)), {400} | BUSY)


KINDS = [good, wrong_host, two_hosts, cross_origin, not_json, broken_json, odd_fields, duplicate_keys, too_large]
KINDS += [
    long_head,
    no_http,
    bad_chunks,
    two_lengths,
    odd_target,
    odd_method,
    upgrade,
    cut_off,
    mutated,
    gone,
    slow,
    many,
]
WEIGHTS = [6, *[3] * (len(KINDS) - 4), 1, 1, 1]


def send(case, port, rng):
    """Carry out a case -> the bytes of the answer, without interim ones."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
        try:
            size = -(-len(case.data) // case.pieces)
            for at in range(0, len(case.data), size):
                sock.sendall(case.data[at : at + size])
                if case.pieces > 1:
                    time.sleep(0.002)
            if case.half:
                sock.shutdown(socket.SHUT_WR)
            if not case.read:
                time.sleep(rng.random() * 0.05)
                return b""
        except (BrokenPipeError, ConnectionResetError):  # refused before it was sent whole
            pass
        try:
            answer = read_all(sock)
        except ConnectionResetError:
            answer = b""
    while answer.startswith(b"HTTP/1.1 100 "):
        answer = answer.partition(b"\r\n\r\n")[2]
    return answer


def fault_of(case, answer):
    """Return the reason for which an answer is wrong, or None."""
    if not case.read:
        return None
    found = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None
    if found not in case.want:
        return f"got {found}, wanted {case.want}"
    head, _, body = answer.partition(b"\r\n\r\n")
    if found in BUSY and b"\r\nretry-after: " not in head.lower():
        return "no Retry-After"
    if found is not None and found >= 400 and not case.data.startswith(b"HEAD"):
        error = json.JSONDecoder().raw_decode(body.decode())[0][
            "error"
        ]  # another answer may follow, to bytes left over
        if not error["message"].isprintable() or len(error["message"]) > 400:
            return f"a bad message: {error['message'][:100]!r}"
    if case.answer is not None and found == 200:
        message = json.loads(body)["choices"][0]["message"]
        if (message.get("reasoning") or "") + (message["content"] or "") != case.answer:
            return "another answer"
    return None


def abuse(port, known, seeds, stop=lambda: False):
    """Send one request for each seed -> counts of (kind, status), and the faults."""
    counts, faults = Counter(), []
    for seed in seeds:
        rng = random.Random(seed)
        (kind,) = rng.choices(KINDS, WEIGHTS)
        case = kind(rng, known)
        try:
            answer = send(case, port, rng)
            fault = fault_of(case, answer)
        except Exception as problem:
            answer, fault = b"", f"{type(problem).__name__}: {problem}"
        counts[kind.__name__, answer[9:12].decode("latin-1")] += 1
        if fault is not None:
            faults.append(f"seed {seed}, {kind.__name__}: {fault}: {case.data[:300]!r} -> {answer[:300]!r}")
        if stop():
            break
    return counts, faults
