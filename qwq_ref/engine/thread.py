"""One thread makes all long calls of the core, for every thread of the application; and pools that outlive a fork.

The pool of the core serves one call at a time: this way every long call has all of its threads in turn. The calling
thread waits in Python, where it notices Ctrl-C at once. It then tells the core to stop, which takes some
milliseconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from ..core import Stop

T = TypeVar("T")
HEARD = 0.1  # seconds between looks for a signal that the system gave to a thread other than the waiting one


class Pool:
    """Threads that begin anew in a forked child, which has none of its parent's, and none of the work they had."""

    def __init__(self, threads: int, name: str = "") -> None:
        self._threads, self._name = threads, name
        self._begin()

    def _begin(self) -> None:
        self._process, self._executor = os.getpid(), ThreadPoolExecutor(self._threads, self._name)

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        if self._process != os.getpid():
            self._begin()
        try:
            return self._executor.submit(work, *arguments)
        except BaseException:  # Ctrl-C, maybe while a thread starts: the executor may not know it, and never end it
            self.shutdown(wait=False)
            self._begin()
            raise

    def shutdown(self, wait: bool = True) -> None:
        """End the threads; work that has not begun is left out."""
        if self._process == os.getpid():
            self._executor.shutdown(wait, cancel_futures=True)


_pool = Pool(1, "qwq-engine")  # its thread starts with the first call


def call(work: Callable[[Stop], T]) -> T:
    """Return work(stop), called on the engine's thread. An interruption is raised here after `work` has ended there."""
    stop, future = Stop(), None
    try:
        future = _pool.submit(work, stop)
        while not wait([future], HEARD).done:
            pass
        return future.result()
    except BaseException:
        stop.set()
        if future is not None:
            future.cancel()  # if work of other threads is still before it
            wait([future])
        raise
