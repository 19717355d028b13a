"""The number of threads that a call may ask for."""

from __future__ import annotations

from ._ffi import CoreError

MOST_THREADS = 1024  # QWQ_MOST_THREADS of csrc/qwq.h


def checked_threads(number: int) -> int:
    """Return a number of threads that a call may ask for. Raises CoreError for another number."""
    if not 1 <= number <= MOST_THREADS:
        raise CoreError(None, "threads", f"must be 1 to {MOST_THREADS}, got {number}")
    return number
