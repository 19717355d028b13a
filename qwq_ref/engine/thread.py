"""One thread makes all long calls of the core, for every thread of the application.

The pool of the core serves one call at a time: this way every long call has all of its threads in turn. The calling
thread waits in Python, where it notices Ctrl-C at once. It then tells the core to stop, which takes some
milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from ..core import Stop

T = TypeVar("T")
HEARD = 0.1  # seconds between looks for a signal that the system gave to a thread other than the waiting one
_pool: ThreadPoolExecutor | None = None


def call(work: Callable[[Stop], T]) -> T:
    """Return work(stop), called on the engine's thread. An interruption is raised here after `work` has ended there."""
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
        future.cancel()  # if work of other threads is still before it
        wait([future])
        raise


def _after_fork() -> None:
    """Start a new thread in a forked child, which has none."""
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
