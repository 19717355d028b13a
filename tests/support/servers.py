"""A server in this process, at a free port of loopback."""

import contextlib
import socket
import threading
import time

from qwq_ref.serve.engine import ServedModel
from qwq_ref.serve.limits import ServerLimits
from qwq_ref.serve.reach import address, bind
from qwq_ref.serve.server import make_server


class Running:
    """A server that runs: `url`, `port`, `engine`."""

    def __init__(self, engine, sock, server):
        self.engine, self.server = engine, server
        self.url, self.port = address(sock), sock.getsockname()[1]

    @property
    def counts(self):
        return self.engine.scheduler.counts

    def connect(self, timeout=20):
        """A raw connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def ask_raw(self, data, timeout=20):
        """Send bytes, and return everything until the server closes."""
        with self.connect(timeout) as sock:
            sock.sendall(data)
            return read_all(sock)


@contextlib.contextmanager
def serving(load, limits=None, lenient=False, wait=True, **how):
    """Serve the model that `load` returns, until the block ends."""
    engine = ServedModel("qwq-nano", load, limits or ServerLimits(), lenient)
    server = make_server(engine, tell=lambda line: None, **how)
    sock = bind("127.0.0.1", 0)
    running = Running(engine, sock, server)
    ready = threading.Event()
    engine.start(ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        if wait:
            assert ready.wait(60)
            assert engine.problem is None, engine.problem
        until(lambda: server.started)
        yield running
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def until(condition, seconds=20):
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def at_rest(running):
    """Wait until nothing runs or waits on a server, and no connection stays. No answer may have failed."""
    until(lambda: running.counts.running == running.counts.waiting == 0)
    until(lambda: not running.server.server_state.connections)
    assert running.counts.failed == 0


def read_all(sock):
    """Return the bytes until the other side closes, or resets."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while more := sock.recv(1 << 16):
            data += more
    return data


def request(path, body=None, method=None, **headers):
    """The bytes of a request, whose connection the server closes. A header of None is left out."""
    names = {"host": "localhost", "connection": "close"}
    if body is not None:
        names |= {"content-type": "application/json", "content-length": str(len(body))}
    names |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method or ('GET' if body is None else 'POST')} {path} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in names.items() if value is not None]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def status(answer):
    """The status of a response in bytes."""
    return int(answer.split(b" ", 2)[1]) if answer else None
