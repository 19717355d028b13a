"""Messages of another process, read by a deadline. `sandbox.inside.values` has their form."""

from __future__ import annotations

import socket
import time
from typing import Any

from ...sandbox.inside import values

_MOST_KEYS = 10_000  # a hostile process can choose keys whose comparison takes long


def message(channel: socket.socket, deadline: float) -> Any:
    """Return the next message. Raises TimeoutError, EOFError, OSError, and ValueError for other bytes."""
    size = int.from_bytes(_received(channel, 4, deadline), "big")
    if size > values.MOST_BYTES:
        raise ValueError("a message is too large")
    return values.decoded(_received(channel, size, deadline), _MOST_KEYS)


def _received(channel: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(left)
        part = channel.recv(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
