"""The body of a request, read and checked before the application sees it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .json_body import read_json
from .limits import ServerLimits
from .problems import ApiError, unavailable
from .refusal import refuse

_FREE = 64 << 10  # bytes of a body that do not count: small requests go on where large ones must wait


class Bodies:
    """Passes on requests with a body of JSON within the limits. Others get 400, 408, 413, 415 or 503.

    posts  paths that take a body of JSON with POST; the application refuses other paths and methods
    held  bytes of the bodies of requests that have no answer yet, but for the first ones of each
    """

    def __init__(self, app: ASGIApp, posts: frozenset[str], limits: ServerLimits) -> None:
        self._app, self._posts = app, posts
        self._limits = limits
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            try:
                whole = await self._read(scope, receive, body)
            except ApiError as problem:
                self._let_go(body)
                await refuse(problem, scope, receive, send)
                return
            if whole:  # the client is not gone
                await self._pass_on(scope, bytes(body), receive, send)
        finally:
            self._let_go(body)

    def _let_go(self, body: bytearray) -> None:
        self.held -= max(0, len(body) - _FREE)
        body.clear()

    def _takes_json(self, scope: Scope) -> bool:
        return scope["method"] == "POST" and scope["path"] in self._posts

    async def _pass_on(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        if self._takes_json(scope):
            try:
                read_json(body, self._limits.depth, self._limits.containers)
            except ApiError as problem:
                await problem.response()(scope, receive, send)
                return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    async def _read(self, scope: Scope, receive: Receive, body: bytearray) -> bool:
        """Read the body -> whether it came whole, or the client went. Raises ApiError."""
        headers = dict(scope["headers"])
        has_body = b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0
        most = self._limits.body
        if int(headers.get(b"content-length", b"0")) > most:
            raise _too_large(most)
        if self._takes_json(scope) and not _is_json(headers.get(b"content-type", b"")):
            raise ApiError(415, "the body must be application/json", param="Content-Type", code="not_json")
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = has_body
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return False
                    before = max(_FREE, len(body))
                    body += message.get("body", b"")
                    self.held += max(0, len(body) - before)
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise _too_large(most)
                    if self.held > self._limits.bodies and len(body) > _FREE:
                        reason = f"the bodies of all requests have {self._limits.bodies} bytes already"
                        raise unavailable(reason, 1, "too_many_bytes")
        except TimeoutError:
            raise ApiError(408, f"the body took over {self._limits.body_seconds:g} seconds", code="slow_body") from None
        return True


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes", code="body_too_large")


def _is_json(kind: bytes) -> bool:
    name, *parameters = (part.strip().lower() for part in kind.split(b";"))
    return name == b"application/json" and all(p in (b"charset=utf-8", b'charset="utf-8"', b"") for p in parameters)
