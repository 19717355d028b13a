"""Streams of server-sent events, and answers that end when their client goes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .problems import encode, of_late_error

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not hold events back


class GoneError(Exception):
    """The client has closed its connection."""


def event(content: Any, name: str | None = None) -> bytes:
    """Return JSON as an event."""
    head = b"" if name is None else f"event: {name}\n".encode()
    return head + b"data: " + encode(content) + b"\n\n"


class EventStream(Response):
    """A response of events.

    events      read until their end, or until the client goes
    close       called then, in each case
    keep_alive  seconds without an event after which a comment is sent
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], object], keep_alive: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._events, self._close, self._keep_alive = events, close, keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})["events"] = True  # `protocol` may send comments between them
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            with contextlib.suppress(GoneError):
                await while_connected(receive, self._pump(send))
        finally:
            self._close()

    async def _pump(self, send: Send) -> None:
        async def put(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        iterator = aiter(self._events)
        waiting: asyncio.Task[bytes | None] | None = None
        try:
            while True:
                waiting = waiting or asyncio.create_task(_next(iterator))
                done, _ = await asyncio.wait({waiting}, timeout=self._keep_alive)
                if not done:
                    await put(COMMENT)
                    continue
                try:
                    data, waiting = waiting.result(), None
                except Exception as problem:
                    data, waiting = event(of_late_error(problem).content), None
                    await put(data)
                    break
                if data is None:
                    break
                await put(data)
            await put(b"", more=False)
        finally:
            if waiting is not None:
                await _stop(waiting)


async def _next(iterator: AsyncIterator[bytes]) -> bytes | None:
    return await anext(iterator, None)


async def _stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait for its end. Its result is lost."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await task


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of some work, which is cancelled when the client goes. Raises GoneError then."""
    gone, task = asyncio.create_task(_disconnect(receive)), asyncio.create_task(work)
    try:
        await asyncio.wait({gone, task}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        await _stop(gone)
        if not task.done():
            await _stop(task)


async def gather(*works: Coroutine[Any, Any, T]) -> list[T]:
    """Return the results of works that run side by side. If one fails, the others are cancelled."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            await _stop(task)
    return [task.result() for task in tasks]


async def merged(*sources: AsyncIterator[T]) -> AsyncIterator[T]:
    """Yield the items of several iterators, each as soon as it comes. Raises what one of them raises."""
    waiting = {asyncio.create_task(_item(source)): source for source in sources}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=[*waiting].index):
                source = waiting.pop(task)
                found = task.result()
                if found:
                    waiting[asyncio.create_task(_item(source))] = source
                    yield found[0]
    finally:
        for task in waiting:
            await _stop(task)


async def _item(source: AsyncIterator[T]) -> tuple[T] | None:
    """Return the next item, or None at the end."""
    async for item in source:
        return (item,)
    return None
