"""HTTP on a connection: uvicorn's, with the limits that it lacks.

uvicorn waits for headers without end, answers headers that are too long with 400, and lets a client read nothing of its
answer for as long as it wants. Its limit of connections counts those that have sent a request. It stops to read behind
a pipelined request, and then sees no disconnect. It takes a client that has closed its own side for one that is gone.
"""

from __future__ import annotations

import asyncio
import http
import socket
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .events import COMMENT
from .limits import ServerLimits
from .problems import ApiError, unavailable

_SEND_BUFFER = 64 << 10  # bytes that the system holds for a client: more would hide that it reads nothing
_PIPELINED = 64 << 10  # bytes of requests behind the one that is answered
_CRUMBS = 256 << 10  # bytes of a body that frame its chunks. Each chunk takes time, so many small ones would take much
_PROBES = (0.0, 0.01, 0.2)  # seconds between looks for a client that may be gone; the last one repeats


def protocol_for(limits: ServerLimits) -> type[H11Protocol]:
    """Return the class of connections for a server with these limits."""

    class Connection(LimitedProtocol):
        def __init__(
            self,
            config: Config,
            server_state: ServerState,
            app_state: dict[str, Any],
            _loop: asyncio.AbstractEventLoop | None = None,
        ) -> None:
            super().__init__(config, server_state, app_state, _loop)
            self.limits = limits

    return Connection


class LimitedProtocol(H11Protocol):
    """A connection with limits for slow clients.

    limits  set by the class of `protocol_for`
    """

    limits: ServerLimits
    _head_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _probe_timer: asyncio.TimerHandle | None = None
    _unsent = 0  # bytes at the last look
    _crumbs = 0  # bytes of this request's body, less those of its contents
    _half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        transport.set_write_buffer_limits(0)  # so that every byte that is not read starts the timer
        if len(self.connections) > self.limits.connections:
            message = f"the server has {self.limits.connections} connections already"
            self._refuse(unavailable(message, 1, "too_many_connections"))
            return
        self._head_timer = self._after(self.limits.head_seconds, self._slow_head)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self.conn.their_state is h11.MUST_CLOSE:
            return  # some clients send a line end behind their last request
        if self._head_timer is None and self._between_requests():
            self._head_timer = self._after(self.limits.head_seconds, self._slow_head)
        body = None if self.cycle is None or self.conn.their_state is not h11.SEND_BODY else self.cycle
        had = 0 if body is None else len(body.body)
        super().data_received(data)
        if not self._between_requests():
            self._stop_head_timer()
        if body is None:
            self._crumbs = 0
        elif body is self.cycle and self.conn.their_state is h11.SEND_BODY:
            self._crumbs += len(data) - (len(body.body) - had)
            if self._crumbs > _CRUMBS:
                message = f"the chunks of the body are too small: {_CRUMBS} bytes frame them"
                self._refuse(ApiError(413, message, code="body_too_large"))

    def handle_events(self) -> None:
        super().handle_events()
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= _PIPELINED:
            self.flow.resume_reading()  # or nobody would see that the client goes

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Keep the connection of a client that waits for answers to whole requests, and no other."""
        waits = self.cycle is not None and not self.cycle.response_complete
        if not waits or self.conn.their_state is h11.SEND_BODY or self.scope["http_version"] != "1.1":
            return None
        if not self._half_closed:
            self._half_closed = True
            self._probe(0)
        return True

    def _probe(self, number: int) -> None:
        """Send what changes no answer: if the client is gone, and has not closed its side alone, the next one fails."""
        self._probe_timer = None
        if self.transport.is_closing() or self.cycle.response_complete:
            return
        if self.flow.write_paused:
            pass  # the timer of the client that reads nothing runs
        elif not self.cycle.response_started:
            event: h11.Event = h11.InformationalResponse(status_code=100, headers=[], reason="Continue")
            self.transport.write(self.conn.send(event) or b"")
        elif self.scope["state"].get("events"):
            self.transport.write(self.conn.send(h11.Data(data=COMMENT)) or b"")
        self._probe_timer = self._after(_PROBES[min(number, len(_PROBES) - 1)], lambda: self._probe(number + 1))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()
        elif self._half_closed and self._probe_timer is None:  # a pipelined request follows
            self._probe(0)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, or has too long headers: h11 knows which."""
        long = self.conn.trailing_data[0] and len(self.conn.trailing_data[0]) >= self.limits.head
        if long and self.conn.their_state is h11.ERROR and (self.cycle is None or self.cycle.response_complete):
            self._refuse(
                ApiError(431, f"the headers have more than {self.limits.head} bytes", code="headers_too_large")
            )
        else:
            self._refuse(ApiError(400, "this is no request of HTTP/1.1", code="not_http"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_stall_timer()
        if self._probe_timer is not None:
            self._probe_timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent = self.transport.get_write_buffer_size()
        self._stall_timer = self._after(self.limits.stall_seconds, self._stalled)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

    def _stalled(self) -> None:
        """Give up a client that has read nothing since the last look."""
        before, self._unsent = self._unsent, self.transport.get_write_buffer_size()
        if self._unsent >= before:
            self.transport.abort()
        else:
            self._stall_timer = self._after(self.limits.stall_seconds, self._stalled)

    def _between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _slow_head(self) -> None:
        self._head_timer = None
        if self._between_requests():
            self._refuse(ApiError(408, f"the headers took over {self.limits.head_seconds:g} seconds", code="slow_head"))

    def _after(self, seconds: float, act: Callable[[], None]) -> asyncio.TimerHandle:
        return self.loop.call_later(seconds, act)

    def _refuse(self, problem: ApiError) -> None:
        """Answer without the application, and close. An answer that has begun is cut off."""
        self._stop_head_timer()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            response = problem.response()
            reason = http.HTTPStatus(problem.status).phrase
            head = [f"HTTP/1.1 {problem.status} {reason}".encode(), b"connection: close"]
            head += [name + b": " + value for name, value in response.raw_headers]
            self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + bytes(response.body))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
