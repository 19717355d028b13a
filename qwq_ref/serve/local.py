"""The server's answers without a connection: the application is called in this process, as a client would call it."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message

from .engine import ServedModel
from .limits import ServerLimits

if TYPE_CHECKING:
    from ..engine.model import Model


class LocalModel(ServedModel):
    """A model for clients in this process. No user reads between two requests, so no next turn is prepared."""

    def __init__(self, name: str, model: Model, running: int, lenient: bool = False) -> None:
        """`running`: prompts that share a pass over the weights."""
        # A request may have several prompts, and nobody else waits: none is refused because of others.
        super().__init__(name, lambda: model, ServerLimits(running=running, waiting=1 << 20), lenient)
        ready = threading.Event()
        self.start(ready.set)
        ready.wait()
        if self.problem is not None:
            raise self.problem

    def warm(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> None:
        pass

    def close(self) -> None:
        """Cancel all work, and wait for the end of it."""
        self.scheduler.close()


async def post(app: ASGIApp, path: str, body: bytes) -> tuple[int, bytes]:
    """Send a request with JSON -> the status and the body of its response. A cancelled call cancels the answer."""
    name = path.encode()
    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http"},
        **{"path": path, "raw_path": name, "query_string": b"", "root_path": "", "client": None, "server": None},
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ],
    }
    given, status, parts = False, 0, []

    async def receive() -> Message:
        nonlocal given
        if given:
            await asyncio.Event().wait()  # the client never goes
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return status, b"".join(parts)
