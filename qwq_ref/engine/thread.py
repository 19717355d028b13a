"""One thread makes all long calls of the core, whatever threads ask for them.

OpenMP keeps a team of threads for every thread that calls it: so there is one team. And whoever asked waits where
Ctrl-C is heard at once: the core is told to stop then, and does within some milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from ..core import Stop

T = TypeVar("T")
HEARD = 0.1  # seconds, after which a signal is heard that the system gave to another thread than the waiting one
_pool: ThreadPoolExecutor | None = None


def call(work: Callable[[Stop], T]) -> T:
    """work(stop) on the engine's thread -> its result. After an interruption here, once `work` has ended there."""
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(1, "qwq-engine")
    stop = Stop()
    future = _pool.submit(work, stop)
    try:
        while not wait([future], HEARD).done:
            pass
        return future.result()
    except BaseException:
        stop.set()
        future.cancel()  # if others' work is still before it
        wait([future])
        raise


def _after_fork() -> None:
    """The thread did not come along. A new one starts here; OpenMP's are refused by the core, which tells why."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
