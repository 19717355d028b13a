"""Run a server: bind its port, load the model meanwhile, and drain at the first signal."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import uvicorn

from .app import PAGE, make_app
from .engine import ServedModel
from .limits import ServerLimits
from .protocol import protocol_for

_GRACE = 3  # seconds after the drain in which cancelled answers reach their clients


class Server(uvicorn.Server):
    """uvicorn's server. The first signal drains the engine, and the second ends the process.

    tell  called with a line for people
    """

    def __init__(self, config: uvicorn.Config, engine: ServedModel, tell: Callable[[str], object]) -> None:
        super().__init__(config)
        self._engine, self._tell = engine, tell

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + sig)
        super().handle_exit(sig, frame)
        if self._engine.loaded and (running := self._engine.scheduler.counts.running):
            seconds = f"{self._engine.limits.drain:g} seconds"
            self._tell(f"qwq: {running} answers may go on for {seconds}; another signal ends them")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take a thread for each prompt that may be prepared: Python's own number of threads is that of processors."""
        threads = ThreadPoolExecutor(2 * self._engine.limits.waiting, thread_name_prefix="qwq-serve")
        asyncio.get_running_loop().set_default_executor(threads)
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.drain()
        await super().shutdown(sockets)


def make_server(
    engine: ServedModel,
    *,
    key: str | None = None,
    hosts: Iterable[str] = (),
    verbose: bool = False,
    page: Path = PAGE,
    tell: Callable[[str], object] = print,
) -> Server:
    """Return a server for an engine, which is not started yet: call `run_server` or `Server.run`."""
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())
    logging.getLogger("uvicorn").propagate = False
    limits: ServerLimits = engine.limits
    config = uvicorn.Config(
        make_app(engine, key=key, hosts=hosts, verbose=verbose, page=page),
        http=protocol_for(limits),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=limits.head,
        timeout_keep_alive=int(limits.idle_seconds),
        timeout_graceful_shutdown=int(limits.drain + _GRACE),
    )
    return Server(config, engine, tell)


def run_server(server: Server, engine: ServedModel, sock: socket.socket) -> None:
    """Answer at a socket until a signal comes. Raises the error of a model that cannot be loaded."""

    def ready() -> None:
        if engine.problem is not None:
            server.should_exit = True

    engine.start(ready)
    server.run(sockets=[sock])
    if engine.problem is not None:
        raise engine.problem
