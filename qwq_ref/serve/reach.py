"""Where a server listens, and who can reach it."""

from __future__ import annotations

import ipaddress
import json
import shlex
import socket
from collections.abc import Iterable

from ..errors import FileError, UsageError


def is_loopback(host: str) -> bool:
    """Return whether nobody beyond this machine can reach an address."""
    return host in ("127.0.0.1", "::1", "localhost")


def check_reach(host: str, key: str | None, hosts: Iterable[str]) -> None:
    """Raise UsageError for a server that strangers could reach without a key."""
    if key is None and not is_loopback(host):
        raise UsageError(None, "host", f"{host} can be reached from elsewhere: that needs --api-key")
    if key is None and list(hosts):
        raise UsageError(None, "allow_host", "needs --api-key: a name can be reached from elsewhere")


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address. Raises FileError, and UsageError for a name that lies.

    A name of loopback must mean loopback: the file of hosts, or a name server, may say otherwise.
    """
    where = f"{host}:{port}"
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, number)
        try:
            if is_loopback(host) and not ipaddress.ip_address(address[0]).is_loopback:
                raise UsageError(None, "host", f"{host} is {address[0]} on this machine, and no address of loopback")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            sock.listen(128)
        except BaseException:
            sock.close()
            raise
    except OSError as problem:
        raise FileError.from_os(problem, where, "cannot be listened at") from None
    return sock


def address(sock: socket.socket) -> str:
    """Return the URL of a socket that listens."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def curl_line(url: str, name: str, key: str | None) -> str:
    """Return a command of the shell that asks the server. It names the key's variable, and not the key."""
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "What is 12+34?"}]})
    secret = "" if key is None else ' -H "Authorization: Bearer $QWQ_API_KEY"'
    return f"curl {url}/v1/chat/completions{secret} -H 'Content-Type: application/json' -d {shlex.quote(body)}"
