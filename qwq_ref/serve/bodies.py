"""The body of a request, read and checked before the application sees it."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .json_body import read_json
from .limits import ServerLimits
from .problems import ApiError
from .refusal import refuse

_BODILESS = ("GET", "HEAD", "OPTIONS", "DELETE")


class Bodies:
    """Passes on requests with a body of JSON within the limits. Others get 400, 408, 413 or 415."""

    def __init__(self, app: ASGIApp, limits: ServerLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ApiError as problem:
            await refuse(problem, scope, receive, send)
            return
        if body is None:  # the client is gone
            return
        if scope["method"] not in _BODILESS:
            try:
                read_json(body, self._limits.depth)
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

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        headers = dict(scope["headers"])
        has_body = b"transfer-encoding" in headers or int(headers.get(b"content-length", b"0")) > 0
        most = self._limits.body
        if int(headers.get(b"content-length", b"0")) > most:
            raise _too_large(most)
        if scope["method"] not in _BODILESS and not _is_json(headers.get(b"content-type", b"")):
            raise ApiError(415, "the body must be application/json", param="Content-Type", code="not_json")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                more = has_body
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > most:
                        raise _too_large(most)
        except TimeoutError:
            raise ApiError(408, f"the body took over {self._limits.body_seconds:g} seconds", code="slow_body") from None
        return bytes(body)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes", code="body_too_large")


def _is_json(kind: bytes) -> bool:
    name, *parameters = (part.strip().lower() for part in kind.split(b";"))
    return name == b"application/json" and all(p in (b"charset=utf-8", b'charset="utf-8"', b"") for p in parameters)
