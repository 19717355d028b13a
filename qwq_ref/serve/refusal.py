"""Answer a request whose body was not read, and close the connection."""

from __future__ import annotations

import asyncio
import contextlib

from starlette.types import Receive, Scope, Send

from .problems import ApiError

_SECONDS = 2.0  # for which a client may go on to send: without them, the close would take the answer away from it


async def refuse(problem: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send a problem, and read what the client still sends, for a short time."""
    response = problem.response()
    headers = [*response.raw_headers, (b"connection", b"close")]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})
