"""HTTP on a connection: uvicorn's, with the limits that it lacks.

uvicorn waits for headers without end, answers headers that are too long with 400, and lets a client read nothing of its
answer for as long as it wants. Its limit of connections counts those that have sent a request.
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

from .limits import ServerLimits
from .problems import ApiError, unavailable

_SEND_BUFFER = 64 << 10  # bytes that the system holds for a client: more would hide that it reads nothing


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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if len(self.connections) > self.limits.connections:
            message = f"the server has {self.limits.connections} connections already"
            self._refuse(unavailable(message, 1, "too_many_connections"))
            return
        self._head_timer = self._after(self.limits.head_seconds, self._slow_head)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._head_timer is None and self._between_requests():
            self._head_timer = self._after(self.limits.head_seconds, self._slow_head)
        super().data_received(data)
        if not self._between_requests():
            self._stop_head_timer()

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
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall_timer = self._after(self.limits.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_stall_timer()
        super().resume_writing()

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
        if self.cycle is None or self.cycle.response_complete:
            response = problem.response()
            reason = http.HTTPStatus(problem.status).phrase
            head = [f"HTTP/1.1 {problem.status} {reason}".encode(), b"connection: close"]
            head += [name + b": " + value for name, value in response.raw_headers]
            self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + bytes(response.body))
        self.transport.close()
        self._after(self.limits.stall_seconds, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
