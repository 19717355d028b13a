"""The number of threads that a call may ask for."""

from __future__ import annotations

import os

from ._ffi import CoreError, library

MOST_THREADS = 1024  # QWQ_MOST_THREADS of csrc/qwq.h
_forked = _teams = False  # this process was forked from one that used threads; this process used threads


def threads_supported() -> bool:
    """Return whether the core was built with OpenMP. Otherwise every call runs on one thread."""
    return bool(library().qwq_openmp())


def _after_fork() -> None:
    global _forked
    _forked = _forked or _teams


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def checked_threads(number: int) -> int:
    """Return a number of threads that a call may ask for. Raises CoreError for another number.

    The threads of OpenMP do not survive a fork: a child that asks for them hangs. One thread works.
    """
    global _teams
    if not 1 <= number <= MOST_THREADS:
        raise CoreError(None, "threads", f"must be 1 to {MOST_THREADS}, got {number}")
    if number > 1:
        if _forked:
            raise CoreError(None, "threads", "must be 1 after a fork of a process that used more: start it by spawn")
        _teams = True
    return number
