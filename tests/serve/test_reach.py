"""Where a server may listen without a key, and which keys it takes."""

import os
import socket

import pytest

from qwq_ref.errors import UsageError
from qwq_ref.serve import reach
from tests.serve.test_command import KEY, command, refused
from tests.support.servers import request, status

BEYOND = [
    "0.0.0.0",
    "::",
    "",
    "0",
    "0x7f000001",
    "127.1",
    "127.0.0.2",
    "::ffff:127.0.0.1",
    "192.168.0.7",
    "example.org",
]
BEYOND += ["localhost.", "LOCALHOST", "localhost.localdomain", "ip6-localhost", "127.0.0.1 ", "[::1]", "2130706433"]


@pytest.mark.parametrize("host", BEYOND)
def test_every_other_host_needs_a_key(host):
    with pytest.raises(UsageError, match="needs --api-key"):
        reach.check_reach(host, None, [])
    reach.check_reach(host, KEY, [])


@pytest.mark.parametrize("found", ["0.0.0.0", "192.168.0.7", "::"])
def test_a_name_of_loopback_must_mean_loopback(monkeypatch, found):
    family = socket.AF_INET6 if ":" in found else socket.AF_INET

    def lies(host, port, **how):
        return [(family, socket.SOCK_STREAM, 6, "", (found, port, 0, 0) if ":" in found else (found, port))]

    monkeypatch.setattr(socket, "getaddrinfo", lies)
    with pytest.raises(UsageError, match=r"host: localhost is .* and no address of loopback"):
        reach.bind("localhost", 0)


def test_a_socket_of_loopback_is_no_other():
    with reach.bind("localhost", 0) as sock:
        assert sock.getsockname()[0] in ("127.0.0.1", "::1")


@pytest.mark.parametrize(
    "key", ["", "abc", "seven77", "two words", "tab\tkey-long", "line\nkey-long", "\u00fcn\u00efcode-key", "\x7f" * 9]
)
def test_a_bad_key_is_refused_and_never_shown(tmp_path, key):
    (tmp_path / "key").write_text(key if "\n" not in key else "short\n")
    (tmp_path / "key").chmod(0o600)
    found = [refused("--api-key", key), refused("--api-key-file", str(tmp_path / "key"))]
    if key:
        found.append(refused(QWQ_API_KEY=key))
    for code, line in found:
        assert code == 2
        assert line.count("\n") == 1
        assert ("at least 8 printable ASCII characters" if key else "") in line
        assert not key or key not in line


def test_an_empty_variable_is_no_key_and_opens_nothing():
    assert refused("--host", "0.0.0.0", QWQ_API_KEY="") == (
        2,
        "qwq: --host: 0.0.0.0 can be reached from elsewhere: that needs --api-key\n",
    )


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_key_file_that_others_can_read_is_told(tmp_path):
    file = tmp_path / "key"
    file.write_text(KEY)
    for mode, told in ((0o644, True), (0o600, False)):
        file.chmod(mode)
        with command("--api-key-file", str(file)) as running:
            running.ready()
            assert any("can be read by other users" in line for line in running.lines) == told
            assert status(running.ask(request("/v1/models", authorization=f"Bearer {KEY}"))) == 200
            assert not any(KEY in line for line in running.lines)
