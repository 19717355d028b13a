"""The checks of a request before any work: its headers' size, Host, Origin and key.

A page of a foreign site can send requests to a server on loopback, and DNS rebinding makes its own name point there.
The names in Host and Origin show both.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from .problems import ApiError
from .refusal import refuse

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
OPEN = ("/health",)  # paths that need no key
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://(.*)", re.IGNORECASE)


class Guard:
    """Passes on the requests of those who may ask. Others get 400, 401, 403 or 431.

    hosts  names that Host and Origin may have
    key    each request must show it; None: none is needed
    pages  whether paths that are none of the API need no key: a browser asks for a page without one
    head   bytes of the first line and the headers together
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str], key: str | None, head: int, pages: bool = False) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts}
        self._key = None if key is None else key.encode()
        self._head = head
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(scope)) is not None:
            await refuse(problem, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> ApiError | None:
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        target = len(scope["raw_path"]) + len(scope["query_string"])
        if target + sum(len(name) + len(value) + 4 for name, value in headers) > self._head:
            return ApiError(431, f"the headers have more than {self._head} bytes", code="headers_too_large")
        if {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            message = "Content-Length and Transfer-Encoding together leave open where the body ends"
            return ApiError(400, message, code="two_lengths")
        names = {"host": _values(headers, b"host"), "origin": _values(headers, b"origin")}
        if len(names["host"]) != 1 or not self._known(names["host"][0]):
            return ApiError(403, "this Host may not ask here (see --allow-host)", param="Host", code="host_refused")
        for origin in names["origin"]:
            match = _ORIGIN.fullmatch(origin)
            if match is None or not self._known(match[1]):
                return ApiError(403, "pages of this Origin may not ask here", param="Origin", code="origin_refused")
        if self._key is not None and not self._is_open(scope["path"]) and not self._shows_key(headers, self._key):
            message = "the request needs the server's key: Authorization: Bearer KEY"
            return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _known(self, name: str) -> bool:
        match = _HOST.fullmatch(name)
        return match is not None and match[1].lower() in self._hosts

    def _is_open(self, path: str) -> bool:
        return path in OPEN or (self._pages and (path == "/" or path.startswith("/page/")))

    def _shows_key(self, headers: list[tuple[bytes, bytes]], key: bytes) -> bool:
        shown = [value for name, value in headers if name == b"authorization"]
        scheme, _, given = shown[0].partition(b" ") if len(shown) == 1 else (b"", b"", b"")
        return hmac.compare_digest(given.strip(), key) and scheme.lower() == b"bearer"


def _values(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[str]:
    return [value.decode("latin-1") for name, value in headers if name == wanted]
