"""The limits of a server: sizes, seconds and numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServerLimits:
    """Sizes in bytes, times in seconds.

    body, head            of a request; `head` is its first line and its headers
    bodies                of all requests together, but for the first 64 KB of each
    depth, containers     objects and lists of JSON within each other, and in all
    head_seconds          from the first byte of a request, or from the connection, to the end of its headers
    body_seconds          from there to the end of its body
    stall_seconds         for which a client may read nothing of its answer
    idle_seconds          for which a connection stays open without a request
    keep_alive            from the last event of a stream to a comment that shows that the server lives
    drain                 for which answers may go on after the first signal
    connections           open at a time
    running, waiting      prompts that share a pass over the weights, and those that wait beside them
    choices               answers to one prompt
    prompts               in one request
    """

    body: int = 4 << 20
    head: int = 16 << 10
    bodies: int = 32 << 20
    depth: int = 32
    containers: int = 1 << 16
    head_seconds: float = 10
    body_seconds: float = 30
    stall_seconds: float = 30
    idle_seconds: float = 60
    keep_alive: float = 10
    drain: float = 10
    connections: int = 128
    running: int = 16
    waiting: int = 64
    choices: int = 16
    prompts: int = 64
