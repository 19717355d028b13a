"""`qwq serve` as a process: its lines, its signals, and who may reach it."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from qwq_ref.text import load_tokenizer
from tests.support.paths import PACKAGE
from tests.support.servers import read_all, request, status

CHAT = "/v1/chat/completions"
KEY = "correct-horse-7"
SECRET = "violet-umbrella"


def ask(**fields):
    messages = [{"role": "user", "content": f"Count. {SECRET}"}]
    body = json.dumps({"messages": messages, "temperature": 9.0, "seed": 1, "logit_bias": END, **fields})
    return request(CHAT, body.encode(), authorization=f"Bearer {KEY}")


ADDED = load_tokenizer(PACKAGE / "models" / "qwq-nano").added
END = {str(identity): -100 for identity in ADDED.values()}  # without them, an answer ends at a limit


class Command:
    """A process of `qwq serve`, whose lines on stderr are read as they come."""

    def __init__(self, *words, **variables):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "qwq_ref", "serve", "--port", "0", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **variables},
        )
        self.lines = []
        self.port = None
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(60), self.lines

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/v1", line):
                self.port = int(found[1])
                self._ready.set()
        self._ready.set()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, data):
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def ready(self):
        while status(self.ask(request("/health"))) != 200:
            assert self.process.poll() is None

    def end(self):
        code = self.process.wait(30)
        self._reader.join(10)
        return code


@contextlib.contextmanager
def command(*words, **variables):
    running = Command(*words, **variables)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.end()
        running.process.stdout.close()
        running.process.stderr.close()


def refused(*words, **variables):
    """The one line of a command that ends at once, and its status."""
    env = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-m", "qwq_ref", "serve", *words], capture_output=True, text=True, timeout=60, env=env
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_the_first_signal_lets_answers_end():
    with command() as running:
        running.ready()
        assert any(line.startswith("curl http://127.0.0.1:") for line in running.lines)
        with running.connect() as sock:
            sock.sendall(ask(stream=True, max_tokens=400))
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            running.process.send_signal(signal.SIGTERM)
            answer = read_all(sock)
            assert b"data: [DONE]" in answer
            assert b'"finish_reason":"length"' in answer
        assert running.end() == 143
        assert running.lines[-1] == "qwq: ended by SIGTERM\n"


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_at_once(first):
    with command() as running:
        running.ready()
        with running.connect() as sock:
            sock.sendall(ask(stream=True, n=16))
            while b"_content" not in sock.recv(65536):  # an answer has begun: the signal finds it running
                pass
            running.process.send_signal(first)
            while not any("another signal" in line for line in running.lines):
                assert running.process.poll() is None
                time.sleep(0.01)  # the thread that reads the lines needs its turn
            running.process.send_signal(signal.SIGTERM)
            assert running.end() == 143


def test_no_line_holds_a_key_a_prompt_or_an_answer():
    with command("-v", "--lenient", QWQ_API_KEY=KEY) as running:
        running.ready()
        answer = running.ask(ask(max_tokens=5, junk=SECRET))
        assert status(answer) == 200
        assert status(running.ask(ask(temperature=-1))) == 400
        assert status(running.ask(request(f"/{SECRET}?key={SECRET}", authorization=f"Bearer {KEY}x"))) == 401
        running.process.send_signal(signal.SIGTERM)
        running.end()
        text = "".join(running.lines)
        assert f'"POST {CHAT}" 200' in text
        assert KEY not in text
        assert f"?key={SECRET}" not in text
        assert f"Count. {SECRET}" not in text


def test_nothing_is_printed_for_a_request_without_v():
    with command() as running:
        running.ready()
        before = len(running.lines)
        running.ask(ask(max_tokens=2))
        running.ask(b"no http\r\n\r\n")
        assert len(running.lines) == before


def test_a_busy_port_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused("--port", port)
    assert (code, line) == (1, f"qwq: 127.0.0.1:{port}: cannot be listened at (Address already in use)\n")


def test_beyond_loopback_only_with_a_key():
    assert refused("--host", "0.0.0.0") == (
        2,
        "qwq: --host: 0.0.0.0 can be reached from elsewhere: that needs --api-key\n",
    )
    assert refused("--allow-host", "box")[0] == 2
    for short in ("abc", "two words", "ünïcode-key"):
        code, line = refused("--api-key", short)
        assert code == 2
        assert short not in line


def test_a_key_of_a_file(tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    with command("--api-key-file", str(tmp_path / "key")) as running:
        assert status(running.ask(request("/v1/models"))) == 401
        assert status(running.ask(request("/v1/models", authorization=f"Bearer {KEY}"))) == 200
    assert refused("--api-key-file", str(tmp_path / "none"))[0] == 1
    assert refused("--api-key-file", str(tmp_path / "key"), "--api-key", "x" * 9)[0] == 2


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path):
    code, lines = refused("-m", str(tmp_path), "--port", "0")
    assert code == 1
    assert lines.splitlines()[-1].startswith(f"qwq: {tmp_path}")
    assert "Traceback" not in lines


def test_the_missing_extra_is_named(tmp_path):
    hide = "import importlib.util as u, sys; u.find_spec = lambda name: None"
    script = f"{hide}; from qwq_ref.cli import main; sys.exit(main(['serve']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "qwq: serve: needs fastapi: pip install 'qwq_ref[serve]'\n")
