"""The memory of KV caches: pages of 128 positions, which sequences with a common prefix share.

A page holds the keys and values of all layers. A sequence that writes to a page that others use gets a copy first.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import deque
from typing import Any

import numpy as np

from ..core.attention import PAGE, pages_of
from ..core.memory import aligned
from ..errors import MemoryLimitError
from ..spec.ops import Array

_SLAB = 32 << 20  # bytes that are reserved at a time; the system gives memory to those that are written


class Page:
    """One page: where it begins, and the number of sequences that use it."""

    __slots__ = ("address", "users")

    def __init__(self, address: int) -> None:
        self.address = address
        self.users = 0


class Pool:
    """Pages for all sequences of a backend. Any thread may use it.

    bytes  of a page
    limit  the most pages in use; None: as many as the system has memory for
    """

    def __init__(self, page_bytes: int) -> None:
        self.bytes = page_bytes
        self.limit: int | None = None
        self._slabs: list[Array] = []
        self._free: list[Page] = []
        self._made = 0
        self._lock = threading.RLock()
        self._dropped: deque[list[Page]] = deque()  # of sequences that are gone: any thread may have found that out

    @property
    def used(self) -> int:
        """Pages in use."""
        with self._lock:
            self._collect()
            return self._made - len(self._free)

    @property
    def left(self) -> float:
        """Pages that may still be taken."""
        return np.inf if self.limit is None else self.limit - self.used

    def take(self) -> Page:
        """Return a page of one user. Raises MemoryLimitError where none is left."""
        with self._lock:
            if self.left < 1:
                raise MemoryLimitError(None, "KV cache", f"all {self.limit} pages of {PAGE} positions are in use")
            if not self._free:
                self._grow()
            page = self._free.pop()
            page.users = 1
            return page

    def share(self, pages: list[Page]) -> list[Page]:
        """Return the same pages for one more user."""
        with self._lock:
            for page in pages:
                page.users += 1
            return [*pages]

    def give_back(self, pages: list[Page]) -> None:
        """Take pages from one of their users."""
        with self._lock:
            for page in pages:
                page.users -= 1
                if not page.users:
                    self._free.append(page)

    def own(self, page: Page, used: bool) -> Page:
        """Return a page of one user in place of one that may have more; used: with its contents."""
        with self._lock:
            if page.users == 1:
                return page
            mine = self.take()
            if used:
                _bytes_at(mine.address, self.bytes)[:] = _bytes_at(page.address, self.bytes)
            page.users -= 1
            return mine

    def drop(self, pages: list[Page]) -> None:
        """Take pages from a user that is gone. It may be called at any moment, so it waits for nothing."""
        self._dropped.append(pages)

    def _collect(self) -> None:
        while self._dropped:
            self.give_back(self._dropped.popleft())

    def _grow(self) -> None:
        count = max(1, _SLAB // self.bytes)
        slab = aligned(count * self.bytes)
        self._slabs.append(slab)
        start = slab.ctypes.data
        self._free += [Page(start + i * self.bytes) for i in reversed(range(count))]
        self._made += count


class Table:
    """The pages of one sequence.

    addresses  uint64 [capacity / 128, rounded up]: of its pages, as C reads them; behind the last one 0
    """

    def __init__(self, pool: Pool, capacity: int) -> None:
        self.pool = pool
        self.addresses = np.zeros(pages_of(capacity), np.uint64)
        self._pages: list[Page] = []
        weakref.finalize(self, pool.drop, self._pages)

    def missing(self, length: int, more: int) -> int:
        """Return the number of pages to take before `more` positions can be written behind the first `length`."""
        first, end = length // PAGE, pages_of(length + more)
        shared = sum(page.users > 1 for page in self._pages[first:end])
        return shared + max(0, end - len(self._pages))

    def prepare(self, length: int, more: int) -> None:
        """Make `more` positions behind the first `length` writable. Raises MemoryLimitError as `Pool.take`."""
        first, end = length // PAGE, pages_of(length + more)
        for i in range(first, min(end, len(self._pages))):
            self._put(i, self.pool.own(self._pages[i], used=i * PAGE < length))
        while len(self._pages) < end:
            self._put(len(self._pages), self.pool.take())

    def cut(self, length: int) -> None:
        """Give back the pages behind the first `length` positions."""
        kept = pages_of(length)
        self.pool.give_back(self._pages[kept:])
        del self._pages[kept:]
        self.addresses[kept:] = 0

    def fork(self, length: int) -> Table:
        """Return a table that shares the pages of the first `length` positions."""
        other = Table(self.pool, len(self.addresses) * PAGE)
        for page in self.pool.share(self._pages[: pages_of(length)]):
            other._put(len(other._pages), page)
        return other

    def bytes_of(self, index: int) -> Array:
        """Return page `index` as uint8 [bytes]. It is valid while the table holds the page."""
        return _bytes_at(self._pages[index].address, self.pool.bytes)

    def _put(self, index: int, page: Page) -> None:
        self._pages[index : index + 1] = [page]
        self.addresses[index] = page.address


def _bytes_at(address: int, size: int) -> Array:
    array: Any = (ctypes.c_uint8 * size).from_address(address)
    return np.frombuffer(array, np.uint8)
